"""For ``negindex bench serve``: a worker that is killed, and somebody who opens claims on the pages meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

if TYPE_CHECKING:
    from negindex.collection import Collection

_TOKEN = re.compile(r'name="token" value="([^"]*)"')
_PAUSE = 0.2  # seconds between claims
_PATIENCE = 30.0  # seconds


class Claimant:
    """Opens claims by hash, one after the other, each on a connection of its own, so by whichever worker takes it."""

    def __init__(self, url: str, name: str, key: str) -> None:
        """key: of a curator."""
        self._url, self._set, self._key = url, f"{url}/pages/sets/{name}", key
        self._opener = build_opener(HTTPCookieProcessor())
        self.acknowledged: list[int] = []  # numbers of claims
        self.unanswered = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self.log_in()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def lost(self, made: Collection) -> int:
        """How many of the claims that were acknowledged are not on record."""
        return len(set(self.acknowledged) - {one.claim for one in made.claims.every()})

    def log_in(self) -> None:
        """With the key, as a browser does."""
        form = self._sent(f"{self._url}/pages/login")[1]
        told = {"token": _TOKEN.findall(form)[0], "key": self._key, "next": "/pages/receipts"}
        self._token = _TOKEN.findall(self._sent(f"{self._url}/pages/login", told)[1])[0]

    def _work(self) -> None:
        number = 0
        while not self._end.wait(_PAUSE):
            number += 1
            try:
                self.acknowledged.append(self.open_claim(number))
            except (URLError, HTTPException, OSError):
                self.unanswered += 1  # it may have been opened or not: nobody said

    def open_claim(self, number: int) -> int:
        """Open a claim by a hash that this number makes; the claim's own number, once it is on the disk."""
        told = {"token": self._token, "regime": "hash-only", "hashes": f"sha256:{number:064x}"}
        where, _ = self._sent(f"{self._set}/open-claim", told)
        return int(where.rpartition("/")[2])

    def _sent(self, url: str, told: dict[str, str] | None = None) -> tuple[str, str]:
        """Where a form, or a question, led to, and the page there."""
        data = None if told is None else urlencode(told).encode()
        with self._opener.open(url, data, timeout=_PATIENCE) as answer:
            return answer.url, answer.read().decode()


class Victim:
    """Kills the worker that answered last, some seconds after it is entered."""

    def __init__(self, log: Path, after: float) -> None:
        """log: the service's."""
        self._log, self._timer = log, threading.Timer(after, self._kill)
        self._at: datetime | None = None

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()

    def back(self, within: float) -> float:
        """Seconds from the kill until the worker that takes its place is up. Raises Unreachable."""
        from negindex.errors import Unreachable

        self._timer.join()
        end = time.monotonic() + within
        while self._at is not None and time.monotonic() < end:
            if up := [at for at in self._times("started") if at > self._at]:
                return (up[0] - self._at).total_seconds()
            time.sleep(0.05)
        raise Unreachable(f"no worker took the place of one that was killed, within {within:g} s; see {self._log}")

    def _kill(self) -> None:
        victim = int(self._events("request")[-1]["process"])
        self._at = datetime.now(UTC)
        os.kill(victim, signal.SIGKILL)

    def _times(self, event: str) -> list[datetime]:
        return [datetime.fromisoformat(one["at"]) for one in self._events(event)]

    def _events(self, event: str) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if f'"event": "{event}"' in line and line.endswith("}")]
