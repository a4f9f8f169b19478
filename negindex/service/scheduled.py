"""Backups on schedule: of every set, each gone through after it was written, the last few kept.

They lie in ``TO/SET/TIME``. What fails is an alarm and a figure, and is tried again; serving goes on.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from negindex.backup import UNFINISHED, Kept, discard
from negindex.clocks import length
from negindex.collection import Collection
from negindex.disk import Disk, writer_lock
from negindex.errors import Damaged, Locked, NegindexError, NotThere
from negindex.service.alarms import BackupAlarm
from negindex.service.held import Sets
from negindex.service.logs import log
from negindex.service.metrics import Metrics
from negindex.service.settings import Settings
from negindex.store import NEW
from negindex.verify import verify

AGAIN = timedelta(minutes=10)  # after a failure, unless backups are due more often
_NAME = re.compile(r"\d{8}T\d{6}Z")


class Stopped(Exception):
    """The service stops, and a backup that is being made is taken back."""


class Stoppable(Disk):
    """Begins no file any more once the event is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def write(self, file: BinaryIO, fill: Callable[[BinaryIO], None]) -> None:
        if self._stop.is_set():
            raise Stopped
        super().write(file, fill)


class Backups:
    """Of one directory of sets. ``go_round`` is for one thread; ``alarms`` and ``tell`` are for any."""

    def __init__(self, settings: Settings, metrics: Metrics, disk: Disk | None = None) -> None:
        """settings: with ``backup_every`` and ``backup_to``."""
        if settings.backup_every is None or settings.backup_to is None:
            raise ValueError("no backups are asked for")
        self._root, self._to, self._keep = settings.root, settings.backup_to.absolute(), settings.backup_keep
        self._every, self._metrics, self._disk = length(settings.backup_every), metrics, disk or Disk()
        self._newest: dict[str, datetime | None] = {}
        self._failing: dict[str, BackupAlarm] = {}
        self._not_before: dict[str, datetime] = {}

    def go_round(self, now: datetime | None = None) -> int:
        """Back up the sets whose time has come; returns how many were. One that fails leaves the others their turn."""
        made, names = 0, Sets(self._root, pins=1).names()
        for gone in (self._newest.keys() | self._failing.keys()) - set(names):
            self._newest.pop(gone, None)
            self._failing.pop(gone, None)
        for name in names:
            at = now or datetime.now(UTC)
            try:
                with closing(Collection.open(self._root / name, disk=self._disk)) as collection:
                    made += self._see_to(name, collection, at)
            except Locked:
                log("backup-waits", set=name)  # another service makes it, or somebody writes for long
            except Stopped:
                return made
            except (NegindexError, OSError) as error:
                self._fail(name, error, at)
        return made

    def alarms(self) -> list[BackupAlarm]:
        """Those of sets whose last try failed."""
        return list(self._failing.values())

    def tell(self, now: datetime) -> None:
        """Put the backups' ages among the figures."""
        for name, newest in list(self._newest.items()):
            self._metrics.backups(name, math.inf if newest is None else (now - newest).total_seconds())

    def _see_to(self, name: str, collection: Collection, now: datetime) -> bool:
        if not self._is_due(name, collection, now):
            return False
        folder = self._folder(name, collection)
        with writer_lock(folder, wait=0):
            if not self._is_due(name, collection, now):  # another service made one meanwhile
                return False
            self._sweep(name, collection, folder)
            self._make(collection, folder / now.strftime("%Y%m%dT%H%M%SZ"))
            self._note(name, collection)
            for one in self._there(name, collection)[: -self._keep]:
                collection.remove_backup(one.path)
        log("backed-up", set=name, version=collection.backups()[-1].version)
        return True

    def _is_due(self, name: str, collection: Collection, now: datetime) -> bool:
        self._note(name, collection)
        newest, not_before = self._newest[name], self._not_before.get(name)
        return (newest is None or newest + self._every <= now) and (not_before is None or not_before <= now)

    def _note(self, name: str, collection: Collection) -> None:
        """Look when the newest backup was made; one that is newer than at the last failure ends the alarm."""
        times = [datetime.fromisoformat(one.at) for one in self._there(name, collection) if one.at]
        newest = self._newest[name] = max(times, default=None)
        if name in self._failing and self._failing[name].last_good != _said(newest):
            del self._failing[name], self._not_before[name]

    def _sweep(self, name: str, collection: Collection, folder: Path) -> None:
        """Take away what a crash left of those that were never finished, whether they came on record or not."""
        for one in self._own(name, collection):
            if one.found == UNFINISHED:
                with suppress(Locked):  # somebody is making it
                    collection.remove_backup(one.path)
        for left in folder.glob(f"*{NEW}"):
            if _NAME.fullmatch(left.name.removesuffix(NEW)):
                with suppress(Locked):
                    discard(left)

    def _folder(self, name: str, collection: Collection) -> Path:
        """The set's folder of backups, made for its first. Raises NotThere where it was there before."""
        folder = self._to / name
        if not folder.is_dir():
            if self._own(name, collection) or not self._to.is_dir():
                raise NotThere(f"{folder} is not there, and backups on record lie in it; mount the disk that it is on")
            folder.mkdir(mode=0o700)
            self._disk.sync_directory(self._to)
        return folder

    def _own(self, name: str, collection: Collection) -> list[Kept]:
        """The set's backups on schedule that are on record, the oldest first."""
        paths = {Path(one.path): one for one in collection.backups()}
        own = [path for path in paths if path.parent == self._to / name and _NAME.fullmatch(path.name)]
        return [paths[path] for path in sorted(own)]

    def _there(self, name: str, collection: Collection) -> list[Kept]:
        return [one for one in self._own(name, collection) if Path(one.path).exists()]

    def _make(self, collection: Collection, to: Path) -> None:
        """One backup, gone through from end to end; one that has a fault is taken away. Raises Damaged."""
        made = collection.backup(to)
        try:
            faults = verify(to, [collection.checkpoint(made.version)]).faults
        except NegindexError:
            collection.remove_backup(to)
            raise
        if faults:
            collection.remove_backup(to)
            raise Damaged(
                f"{to} has {len(faults)} faults, the first {faults[0]}; `negindex verify` the set, and check the disk"
            )

    def _fail(self, name: str, error: Exception, now: datetime) -> None:
        newest, before = self._newest.setdefault(name, None), self._failing.get(name)
        word = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        said = f"{type(error).__name__} {word}".strip()
        since = now.isoformat(timespec="seconds") if before is None else before.since
        self._failing[name] = BackupAlarm(name, said, since, _said(newest))
        self._not_before[name] = now + min(AGAIN, self._every)
        self._metrics.backup_failed(name)
        log("backup-failed", logging.ERROR, set=name, error=said)


def _said(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")
