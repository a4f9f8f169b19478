"""Disks that fail on purpose, at one chosen call, so that a test can go through all of them.

>>> disk = FaultyDisk()  # at = 0: nothing goes wrong, the calls are counted
>>> disk.calls
[]

A rehearsal with ``FaultyDisk()`` tells which calls an operation makes; ``points(disk.calls)`` lists every
moment at which it can be cut short; then one fresh process or collection a moment:
``Collection.open(path, disk=KillingDisk(at=3, when="after")).add(...)``.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, Literal

from negindex.disk import Disk, Objects

When = Literal["before", "half", "after"]  # half: of a write, the first half of the bytes


class FaultyDisk(Disk):
    """Numbers its calls from 1 and has its ``fault`` at the one numbered ``at``; 0 is never.

    only: number the calls of this name alone, such as "commit".
    """

    def __init__(self, at: int = 0, when: When = "before", only: str = "") -> None:
        self.at, self.when, self.only = at, when, only
        self.calls: list[str] = []

    def fault(self) -> None:
        """What goes wrong; an honest disk has none."""

    def write(self, file: BinaryIO, fill: Callable[[BinaryIO], None]) -> None:
        with self._call("write") as here:
            super().write(file, fill)
            if here and self.when == "half":
                file.truncate(os.fstat(file.fileno()).st_size // 2)
                self.fault()

    def sync(self, file: BinaryIO) -> None:
        with self._call("sync"):
            super().sync(file)

    def rename(self, aside: Path, path: Path) -> None:
        with self._call("rename"):
            super().rename(aside, path)

    def sync_directory(self, directory: Path) -> None:
        with self._call("sync_directory"):
            super().sync_directory(directory)

    def commit(self, connection: sqlite3.Connection) -> None:
        with self._call("commit"):
            super().commit(connection)

    def remove(self, path: Path) -> None:
        with self._call("remove"):
            super().remove(path)

    def put_object(self, store: Objects, name: str, path: Path) -> None:
        with self._call("put_object") as here:
            if here and self.when == "half":
                with NamedTemporaryFile() as half:
                    half.write(path.read_bytes()[: path.stat().st_size // 2])
                    half.flush()
                    super().put_object(store, name, Path(half.name))
                self.fault()
            else:
                super().put_object(store, name, path)

    def delete_object(self, store: Objects, name: str) -> None:
        with self._call("delete_object"):
            super().delete_object(store, name)

    def scrub(self, connection: sqlite3.Connection) -> bool:
        with self._call("scrub"):
            return super().scrub(connection)

    def copy_database(self, connection: sqlite3.Connection, path: Path) -> None:
        with self._call("copy_database") as here:
            super().copy_database(connection, path)
            if here and self.when == "half":
                os.truncate(path, path.stat().st_size // 2)
                self.fault()

    @contextmanager
    def _call(self, name: str) -> Iterator[bool]:
        self.calls.append(name)
        numbered = self.calls.count(self.only) if self.only else len(self.calls)
        here = numbered == self.at and name == (self.only or name)
        if here and self.when == "before":
            self.fault()
        yield here
        if here and self.when == "after":
            self.fault()


class KillingDisk(FaultyDisk):
    """Kills its own process (SIGKILL: no handler runs, nothing is flushed)."""

    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FailingDisk(FaultyDisk):
    """Raises OSError: ENOSPC (full) unless told EIO (broken) or another; works again afterwards."""

    def __init__(self, at: int = 0, when: When = "before", error: int = errno.ENOSPC, only: str = "") -> None:
        super().__init__(at, when, only)
        self.error = error

    def fault(self) -> None:
        raise OSError(self.error, os.strerror(self.error))


class ShortDisk(FaultyDisk):
    """Keeps half of what a write gave it, and reports success."""

    def __init__(self, at: int = 0, only: str = "") -> None:
        super().__init__(at, "half", only)


def points(calls: Sequence[str]) -> list[tuple[int, When]]:
    """Every (at, when) of an operation that makes these calls.

    >>> points(["write", "commit"])
    [(1, 'before'), (1, 'half'), (1, 'after'), (2, 'before'), (2, 'after')]
    """
    whens: tuple[When, ...] = ("before", "half", "after")
    written = ("write", "copy_database", "put_object")
    return [(at, when) for at, name in enumerate(calls, 1) for when in whens if when != "half" or name in written]
