"""A file of rows that is written before its version's turn, while the version before it is committed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from negindex.states import SegmentRecord

Ids = Future[NDArray[np.int64]]  # of a file's rows, (N,)
Write = Callable[[Ids], SegmentRecord]


class Draft:
    """A file that is written but for its rows' ids, which the record gives when its version's turn comes.

    Nothing names it until then: a lock keeps others from sweeping it, and who begins it closes it. What a process that
    is killed leaves is swept like any other unfinished file.
    """

    def __init__(self, write: Write) -> None:
        """Begin it in a thread of its own. write: makes the file, and waits for the ids that it is given at last."""
        self._ids, self._made = Ids(), Future[SegmentRecord]()
        Thread(target=_run, args=(write, self._ids, self._made), name="negindex-draft", daemon=True).start()

    def seal(self, ids: NDArray[np.int64]) -> Callable[[], SegmentRecord]:
        """Have it finished, with its rows' ids. What is returned waits for that, and raises what went wrong."""
        self._ids.set_result(ids)
        return self._made.result

    def close(self) -> None:
        """Give it up, unless it is to be finished; nothing half written is left when this returns."""
        self._ids.cancel()
        wait([self._made])


def given(ids: NDArray[np.int64]) -> Ids:
    """Ids that are known."""
    known = Ids()
    known.set_result(ids)
    return known


def _run(write: Write, ids: Ids, made: Future[SegmentRecord]) -> None:
    try:
        made.set_result(write(ids))
    except BaseException as error:
        made.set_exception(error)
