"""Limits on what callers send: how large a body is, how long it takes, how often somebody asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from fastapi import HTTPException, Request

from negindex.errors import Unreachable
from negindex.service import wire

CALLERS = 10_000  # that are remembered at once


class Refused(HTTPException):
    """A request that is turned away before it is looked at. code: the class of error that a client raises."""

    def __init__(self, status: int, detail: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.code = code

    @property
    def title(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status_code).phrase


class Room:
    """Bytes of bodies that one worker holds at once."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0


class Turns:
    """One after the other, and at most so many that wait or are at it. For several threads."""

    def __init__(self, most: int, tell: Callable[[int], None]) -> None:
        """tell: hears how many they are."""
        self._most, self._tell, self._taken = most, tell, 0
        self._guard, self._turn = threading.Lock(), threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Inside, nobody else is at it. Raises Unreachable where too many wait."""
        self._count(1)
        try:
            with self._turn:
                yield
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        with self._guard:
            if step > 0 and self._taken >= self._most:
                raise Unreachable(f"{self._taken} uploads wait already, at most {self._most}; try again in a while")
            self._taken += step
            self._tell(self._taken)


async def read_body(
    request: Request, most: int, seconds: float, room: Room, kinds: Sequence[str] = (wire.MEDIA_TYPE,)
) -> bytearray:
    """A request's body, of arrays unless told, as it came. Raises Refused for one that is packed, too large, too slow,
    not told the length of, or of another kind. Memory grows with what has come, not with what is claimed.
    """
    length = _length(request, most, kinds)
    if room.taken + length > room.most:
        raise Refused(503, "bodies of other requests fill the room; try again", "Unreachable", {"Retry-After": "1"})
    body = bytearray()
    room.taken += length
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > length:
                    raise Refused(400, f"a body longer than the {length} bytes it was said to have", "InvalidInput")
    except TimeoutError:
        raise Refused(408, f"the body did not come within {seconds:g} s", "Unreachable") from None
    finally:
        room.taken -= length
    if len(body) != length:
        raise Refused(400, f"a body of {len(body)} bytes that was said to have {length}", "InvalidInput")
    return body


def _length(request: Request, most: int, kinds: Sequence[str]) -> int:
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "packed bodies are not taken; send it as it is, without Content-Encoding", "InvalidInput")
    if headers.get("content-type", "").partition(";")[0].strip().lower() not in kinds:
        raise Refused(415, f"a body of another kind; send {' or '.join(kinds)}", "InvalidInput")
    said = headers.get("content-length", "")
    if not (said.isascii() and said.isdecimal()) or len(said) > 18:
        raise Refused(411, "a body of no stated length; send Content-Length", "InvalidInput")
    if int(said) > most:
        raise Refused(
            413, f"a body of {int(said)} bytes, at most {most}; ask about fewer samples at once", "OutOfRange"
        )
    return int(said)


class Rate:
    """So many requests a second each, and some more at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, max(burst, 1.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, who: str) -> None:
        """Count one request; raises Refused where it is one too many."""
        wait = self.wait(who)
        if wait:
            headers = {"Retry-After": str(int(wait) + 1)}
            raise Refused(429, f"more than {self.rate:g} requests a second; try again later", "Unreachable", headers)

    def wait(self, who: str) -> float:
        """Seconds until ``who`` may ask again; 0, and one is counted, where that is now."""
        now = time.monotonic()
        left, since = self._left.pop(who, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.rate)
        allowed = left >= 1
        self._left[who] = (left - 1 if allowed else left, now)
        while len(self._left) > CALLERS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate
