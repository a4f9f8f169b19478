"""What somebody has to look at, claims' deadlines and backups that failed: told once each, to log and webhook."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import SplitResult, urlsplit

from negindex.claims import Due
from negindex.disk import Disk
from negindex.service.logs import log

TOLD = "alarms.json"
_SECONDS = 10.0


class Alarm(NamedTuple):
    """A deadline that somebody has to look at. It names a claim by its number, and nobody."""

    set: str
    claim: int
    regime: str
    state: str
    clock: str
    due: str  # ISO 8601, UTC
    kind: str  # "near" or "missed"

    @property
    def event(self) -> str:
        """What it is about."""
        return "claim-alarm"

    @property
    def name(self) -> str:
        """The same for the same alarm."""
        return f"{self.set}/{self.claim}/{self.clock}/{self.due}/{self.kind}"


class BackupAlarm(NamedTuple):
    """A set's backups on schedule have failed since some time."""

    set: str
    error: str  # the class of the last failure, and the disk's own word for it, such as "OSError ENOSPC"
    since: str  # ISO 8601, UTC, of the first failure in a row
    last_good: str | None  # when the newest backup was made

    @property
    def event(self) -> str:
        """What it is about."""
        return "backup-alarm"

    @property
    def name(self) -> str:
        """The same while they go on failing."""
        return f"{self.set}/backup/{self.since}"


def alarms(name: str, due: Iterable[Due], now: datetime) -> list[Alarm]:
    """Those of a set's running clocks that are near or missed."""
    found = []
    for one in due:
        kind = "missed" if one.clock.missed(now) else "near" if one.clock.near(now) else ""
        if kind:
            at = one.clock.due.astimezone(UTC).isoformat(timespec="seconds")
            found.append(Alarm(name, one.claim, one.regime, one.state, one.clock.name, at, kind))
    return found


class Bell:
    """Tells of each alarm once, also over restarts: what was told is kept in ``DIR/alarms.json``.

    An alarm that the webhook did not take is told again in the next round.
    """

    def __init__(self, root: Path, webhook: str | None) -> None:
        self._path, self._webhook = root / TOLD, webhook
        self._told = self._read()

    def ring(self, found: Iterable[Alarm | BackupAlarm], sets: Iterable[str]) -> int:
        """Tell of what is new; returns how many that were. sets: those that were looked at, whose others are over."""
        standing = {alarm.name: alarm for alarm in found}
        looked_at = tuple(f"{name}/" for name in sets)
        still = {name for name in self._told if name in standing or not name.startswith(looked_at)}
        new = [name for name in standing if name not in still]
        for name in new:
            alarm = standing[name]
            log(alarm.event, logging.WARNING, **alarm._asdict())
            if self._webhook is None or _posted(self._webhook, alarm):
                still.add(name)
        if still != self._told:
            self._told = still
            self._write()
        return len(new)

    def _read(self) -> set[str]:
        try:
            return set(map(str, json.loads(self._path.read_bytes())))
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError):
            log("alarms-unreadable", logging.WARNING)  # then all are told again
            return set()

    def _write(self) -> None:
        text = json.dumps(sorted(self._told)).encode()

        def fill(file: BinaryIO) -> None:
            file.write(text)

        disk, aside = Disk(), self._path.with_name(TOLD + ".aside")
        with open(aside, "wb") as file:
            disk.write(file, fill)
            disk.sync(file)
        disk.rename(aside, self._path)


def _posted(url: str, alarm: Alarm | BackupAlarm) -> bool:
    """Whether the webhook took it: any status from 200 to 299. Redirects are not followed."""
    parts = urlsplit(url)
    target = parts._replace(scheme="", netloc="").geturl() or "/"
    try:
        with closing(_connection(parts)) as connection:
            body = json.dumps({"event": alarm.event, **alarm._asdict()})
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        log("webhook-failed", logging.ERROR, error=type(error).__name__)
        return False
    if not 200 <= status < 300:
        log("webhook-failed", logging.ERROR, status=status)
    return 200 <= status < 300


def _connection(parts: SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=_SECONDS, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=_SECONDS)
