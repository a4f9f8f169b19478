"""The sets of a union, asked at the same time: how long each may take, and what became of it."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, Self, TypeVar

import torch

from negindex.errors import InvalidInput, NegindexError, Unreachable
from negindex.negatives import Negatives
from negindex.partial import Missing

RESTS = 5.0  # seconds for which a member that failed is not asked again, where the others answer without it
_LOGGER = logging.getLogger("negindex.union")

T = TypeVar("T")


class Member:
    """One set of a union. What is known of how it fares is shared by the union and its pins."""

    def __init__(self, number: int, negatives: Negatives, seconds: float | None, fares: Fares | None = None) -> None:
        """seconds: how long it may take for one question; None for as long as the set itself allows."""
        self.number, self.negatives, self.seconds = number, negatives, seconds
        self.fares = Fares() if fares is None else fares

    def at(self, negatives: Negatives) -> Self:
        """The same member, with another view of its set."""
        return type(self)(self.number, negatives, self.seconds, self.fares)

    @property
    def waits(self) -> bool:
        """Whether it is asked by a thread of its own."""
        return self.negatives.elsewhere or self.seconds is not None

    @property
    def name(self) -> str:
        """For messages: its place in the union, which set it is, and where."""
        try:
            return f"member {self.number} ({self.negatives.address})"
        except (NegindexError, OSError):
            return f"member {self.number}"

    def missing(self, error: NegindexError) -> Missing:
        """What an answer says that comes without it."""
        try:
            known = self.negatives.known_as
        except (NegindexError, OSError):
            known = ""
        return Missing(known, type(error).__name__, str(error))

    def named(self, error: NegindexError | OSError) -> NegindexError:
        """The member's error, of the same kind, saying whose it is."""
        told = copy.copy(error) if isinstance(error, NegindexError) else Unreachable()
        told.args = (f"{self.name}: {error}",)
        told.__cause__ = error
        return told


class Fares:
    """What became of a member's questions."""

    def __init__(self) -> None:
        self.late: list[tuple[Thread, float]] = []  # not heard of in time, and since when they are asked
        self.failed: tuple[float, NegindexError] | None = None

    def still_at(self) -> float | None:
        """Since when it has been at a question that nobody waits for any more; None where it is at none."""
        self.late = [(thread, since) for thread, since in self.late if thread.is_alive()]
        return self.late[0][1] if self.late else None

    def resting(self) -> NegindexError | None:
        """Why it is not asked now."""
        return self.failed[1] if self.failed is not None and time.monotonic() - self.failed[0] < RESTS else None


class Asking(Generic[T]):
    """One question to some members. Those that wait have a thread each, the others are asked by ``threads``."""

    def __init__(self, members: Sequence[Member], question: Callable[[Member], T], threads: int) -> None:
        self._members, self._question, self._threads = members, question, threads
        self._told: SimpleQueue[tuple[int, T | BaseException]] = SimpleQueue()
        self._running: dict[int, tuple[Thread, float]] = {}
        self._here: deque[int] = deque()

    def answers(self, *, rest: bool, first: bool) -> dict[int, T | NegindexError]:
        """{place: what the member told, or what became of it}.

        rest: let those that failed a moment ago rest. first: tell no more once one has failed.
        Raises InvalidInput, and whatever is no failure of a member: the question is wrong, not the member.
        """
        found: dict[int, T | NegindexError] = {}
        for place, member in enumerate(self._members):
            if rest and (resting := member.fares.resting()) is not None:
                found[place] = resting
            elif not member.waits:
                self._here.append(place)
            elif (since := member.fares.still_at()) is not None:
                ago = time.monotonic() - since
                found[place] = Unreachable(f"{member.name}: still at a question of {ago:.1f} s ago; see to it")
            else:
                self._running[place] = self._started(self._ask, place), time.monotonic()
        for _ in range(min(self._threads, len(self._here)) - 1):
            self._started(self._ask_those_here)
        self._ask_those_here()
        while len(found) < len(self._members) and not (first and _failed(found)):
            found.update(self._next())
        return found

    def _started(self, work: Callable[..., None], *args: int) -> Thread:
        thread = Thread(target=copy_context().run, args=(work, *args), daemon=True)  # it ends with its question
        thread.start()
        return thread

    def _ask_those_here(self) -> None:
        while self._here:
            try:
                place = self._here.popleft()
            except IndexError:  # another thread was quicker
                return
            self._ask(place)

    def _ask(self, place: int) -> None:
        try:
            with torch.no_grad():
                self._told.put((place, self._question(self._members[place])))
        except BaseException as error:
            self._told.put((place, error))

    def _next(self) -> dict[int, T | NegindexError]:
        """What is told next, or who is late."""
        ends = {p: since + s for p, (_, since) in self._running.items() if (s := self._members[p].seconds) is not None}
        try:
            place, told = self._told.get(timeout=max(0.0, min(ends.values()) - time.monotonic()) if ends else None)
        except Empty:
            return {place: self._late(place) for place, end in ends.items() if end <= time.monotonic()}
        self._running.pop(place, None)
        member = self._members[place]
        if not isinstance(told, BaseException):
            member.fares.failed = None
            return {place: told}
        if isinstance(told, InvalidInput):
            raise member.named(told)
        if not isinstance(told, NegindexError | OSError):
            raise told
        return {place: member.named(told)}

    def _late(self, place: int) -> NegindexError:
        member = self._members[place]
        member.fares.late.append(self._running.pop(place))
        return Unreachable(
            f"{member.name}: no answer within {member.seconds:g} s; give it longer (timeout=...), or see to it"
        )


def _failed(found: dict[int, T | NegindexError]) -> bool:
    return any(isinstance(told, NegindexError) for told in found.values())


def without(members: Sequence[Member], failed: dict[int, NegindexError]) -> tuple[Missing, ...]:
    """Note which members failed, warn of each once a while, and say so for the answer."""
    told = []
    for place, error in failed.items():
        fares = members[place].fares
        if fares.resting() is None:
            fares.failed = (time.monotonic(), error)
            _LOGGER.warning("answered without %s", error)
        told.append(members[place].missing(error))
    return tuple(told)
