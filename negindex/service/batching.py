"""Questions that arrive together are answered together: one search and one gather for all of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from negindex.errors import NegindexError, Unreachable

Q = TypeVar("Q")
R = TypeVar("R")
_STOPPING = "the service is stopping; ask another"


class Threads:
    """A few threads that do what they are given. ``concurrent.futures`` does more around each piece of work than a
    look-up's part of a millisecond leaves room for; here nobody asks what came of it.
    """

    def __init__(self, count: int, name: str) -> None:
        """They begin with the first piece of work."""
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count, self._name, self._ended = count, name, False
        self._threads: list[threading.Thread] = []

    def give(self, work: Callable[[], None]) -> None:
        """Have it done; it may raise nothing. Raises Unreachable after ``shutdown``. For one thread."""
        if self._ended:
            raise Unreachable(_STOPPING)
        while len(self._threads) < self._count:
            number = len(self._threads)
            self._threads.append(threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True))
            self._threads[-1].start()
        self._given.put(work)

    def shutdown(self) -> None:
        """Finish what was given, and end."""
        self._ended = True
        for _ in self._threads:
            self._given.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (work := self._given.get()) is not None:
            work()
            del work  # it holds samples


class _Waiting(NamedTuple):
    question: Any
    size: int
    since: float
    told: asyncio.Future[Any]


class Lane(Generic[Q, R]):
    """One set's questions, in the order in which their groups began to wait; one call is under way at a time.

    While a call is under way, what arrives waits and is answered by the next one: nothing is held back for company.
    Not for several threads: it lives in one event loop.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[R]], pool: Threads, most: int, waiting: int) -> None:
        """answer: of questions of one group, in ``pool``. most: samples of one call; waiting: that may wait."""
        self._answer, self._pool, self._most, self._limit = answer, pool, most, waiting
        self._groups: OrderedDict[Hashable, list[_Waiting]] = OrderedDict()
        self._samples = 0
        self._busy = False

    async def ask(self, group: Hashable, question: Q, size: int) -> tuple[R, float]:
        """The answer, and the seconds that the question waited. Raises Unreachable where too many wait, and what
        ``answer`` raises for this question.
        """
        if self._samples and self._samples + size > self._limit:
            raise Unreachable(f"{self._samples} samples wait already, at most {self._limit}; try again, or add workers")
        self._samples += size
        one = _Waiting(question, size, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._groups.setdefault(group, []).append(one)
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._begin)  # with whoever else has come by then
        try:
            told: tuple[R, float] = await one.told
        finally:
            del one  # an error holds this frame: were it held here in turn, the files that it was about would stay open
        return told

    def _begin(self) -> None:
        some = self._next()
        try:
            self._pool.give(partial(self._work, asyncio.get_running_loop(), some))
        except Unreachable as error:
            self._end(some, [error] * len(some), time.perf_counter())

    def _work(self, loop: asyncio.AbstractEventLoop, some: list[_Waiting]) -> None:
        """In the pool."""
        began = time.perf_counter()
        told: Sequence[R | BaseException] = [Unreachable(_STOPPING)] * len(some)
        try:
            told = self._told([one.question for one in some])
        finally:  # whatever happens, nobody waits for ever
            with suppress(RuntimeError):  # a loop that has ended has nobody who waits
                loop.call_soon_threadsafe(self._end, some, told, began)
            del some, told  # an error holds this frame; see ``ask``

    def _end(self, some: Sequence[_Waiting], told: Sequence[R | BaseException], began: float) -> None:
        for one, answer in zip(some, told, strict=True):
            self._samples -= one.size
            _tell(one, answer, began)
        self._busy = bool(self._groups)
        if self._busy:
            self._begin()

    def _next(self) -> list[_Waiting]:
        """As many of the group that waits longest as one call takes; at least one."""
        group, waiting = self._groups.popitem(last=False)
        taken, size = 0, 0
        while taken < len(waiting) and (not taken or size + waiting[taken].size <= self._most):
            size += waiting[taken].size
            taken += 1
        if waiting[taken:]:
            self._groups[group] = waiting[taken:]
        return waiting[:taken]

    def _told(self, questions: list[Q]) -> Sequence[R | BaseException]:
        """The answers; where they cannot be had together, each alone, so that an error reaches only who caused it."""
        try:
            return self._answer(questions)
        except NegindexError as error:
            return [error] if len(questions) == 1 else [one for q in questions for one in self._told([q])]
        except Exception as error:
            return [error] * len(questions)


def _tell(one: _Waiting, answer: Any, began: float) -> None:
    if one.told.done():  # whoever asked is gone
        return
    if isinstance(answer, BaseException):
        one.told.set_exception(answer)
    else:
        one.told.set_result((answer, began - one.since))
