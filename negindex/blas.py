"""numpy's products on the thread that asks for them, while look-ups last.

numpy's wheels multiply by OpenBLAS, which splits a product of ten thousand numbers among threads of its own, one a
core. Where the cores have other work, a product of 0.3 ms then waits 8 ms for its parts. How many threads there are
is a number of the whole process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from threading import Lock
from typing import NamedTuple


class Library(NamedTuple):
    """How many threads a library uses, and how to say it."""

    threads: Callable[[], int]
    set: Callable[[int], object]


class OneThread:
    """A context for any number of threads at once: while one is inside, the libraries use one thread.

    The last one to leave gives them back as many as they had.
    """

    def __init__(self, libraries: Callable[[], Sequence[Library]]) -> None:
        self._libraries = libraries
        self._lock, self._inside = Lock(), 0
        self._before: list[tuple[Library, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [(library, library.threads()) for library in self._libraries()]
                for library, _ in self._before:
                    library.set(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._give_back()

    def after_fork(self) -> None:
        """In a child, where the threads that were inside are not."""
        inside, self._lock, self._inside = self._inside, Lock(), 0
        if inside:
            self._give_back()

    def _give_back(self) -> None:
        for library, count in self._before:
            library.set(count)


@cache
def open_blas() -> Sequence[Library]:
    """Every OpenBLAS in the process, once it is asked for, that has threads of its own; numpy's is among them."""
    from threadpoolctl import threadpool_info

    return [
        library
        for info in threadpool_info()
        if info["internal_api"] == "openblas" and info["threading_layer"] == "pthreads"
        for library in _functions(ctypes.CDLL(info["filepath"]))
    ]


def _functions(loaded: ctypes.CDLL) -> Iterator[Library]:
    """Of one OpenBLAS, by the names that its build gives them."""
    for before, after in product(("", "scipy_"), ("", "64_", "_64")):
        get, put = (f"{before}openblas_{verb}_num_threads{after}" for verb in ("get", "set"))
        if hasattr(loaded, get) and hasattr(loaded, put):
            yield Library(getattr(loaded, get), getattr(loaded, put))


one_thread = OneThread(open_blas)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_thread.after_fork)
