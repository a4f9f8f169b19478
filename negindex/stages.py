"""When each part of a look-up was done, told to whoever listens; nothing is measured where nobody does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Stage(NamedTuple):
    """One part of an answer. Times in nanoseconds since 1970."""

    name: str
    began: int
    ended: int
    within: str = ""  # the stage that it is a part of

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.began) / 1e9


_LISTENING: ContextVar[list[Stage] | None] = ContextVar("negindex.stages", default=None)


@contextmanager
def listening(heard: list[Stage]) -> Iterator[None]:
    """Have the stages of what is done inside put into a list.

    >>> heard = []
    >>> with listening(heard), stage("gather", within="search"):
    ...     pass
    >>> [(one.name, one.within, one.began <= one.ended) for one in heard]
    [('gather', 'search', True)]
    """
    before = _LISTENING.set(heard)
    try:
        yield
    finally:
        _LISTENING.reset(before)


@contextmanager
def stage(name: str, within: str = "") -> Iterator[None]:
    """What is done inside is a stage."""
    heard = _LISTENING.get()
    if heard is None:
        yield
        return
    began = time.time_ns()
    try:
        yield
    finally:
        heard.append(Stage(name, began, time.time_ns(), within))
