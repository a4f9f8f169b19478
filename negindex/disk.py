"""The only place that writes files: whole or not at all, also over a power cut.

Every call that reaches the disk is a method, so that tests can make any one of them fail, or be the
last thing that the process ever did (negindex.testing.faults).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from negindex.errors import Locked, NotAllowed

_PIECE = 1 << 18  # bytes read at a time, which stay in the processor's cache
WRITTEN = 1 << 20  # bytes written at a time, see ``put_whole``
ASIDE = ".aside"  # a file under this ending was never finished


class Objects(Protocol):
    """Files elsewhere."""

    def put(self, name: str, source: Path) -> None: ...
    def delete(self, name: str) -> None: ...


class Disk:
    """Durable writes in their fixed order: write aside, fsync, rename, fsync the directory, commit."""

    def write(self, file: BinaryIO, fill: Callable[[BinaryIO], None]) -> None:
        """Let ``fill`` write the whole content."""
        fill(file)
        file.flush()

    def sync(self, file: BinaryIO) -> None:
        """Have the file's bytes on the disk before anything names them."""
        os.fsync(file.fileno())

    def rename(self, aside: Path, path: Path) -> None:
        """Give the finished file its name."""
        os.replace(aside, path)

    def sync_directory(self, directory: Path) -> None:
        """Have the name itself on the disk."""
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def commit(self, connection: sqlite3.Connection) -> None:
        """The sole commit point of a change."""
        connection.execute("COMMIT")

    def remove(self, path: Path) -> None:
        """Take a file away, its name and, once nobody has it open, its bytes."""
        path.unlink(missing_ok=True)
        self.sync_directory(path.parent)

    def put_object(self, store: Objects, name: str, path: Path) -> None:
        """Keep a file's bytes in a place elsewhere."""
        store.put(name, path)

    def delete_object(self, store: Objects, name: str) -> None:
        """Have no byte of a file elsewhere any more."""
        store.delete(name)

    def scrub(self, connection: sqlite3.Connection) -> bool:
        """Write a database anew without what was deleted, and empty its journal; False while a reader needs it."""
        connection.execute("VACUUM")
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return int(busy) == 0

    def copy_database(self, connection: sqlite3.Connection, path: Path) -> None:
        """Write one version of a database that may be in use to a new file, without what was deleted."""
        connection.execute("VACUUM INTO ?", (str(path),))
        with open(path, "rb+") as file:
            os.fsync(file.fileno())

    def create(self, path: Path, fill: Callable[[BinaryIO], None], named: Callable[[], Path] | None = None) -> None:
        """Make ``path`` with what ``fill`` writes: afterwards it is whole and on the disk.

        named: tells another path in the same folder, where the name is known only when all is written.
        On an error nothing is left; after a crash, at most a file ending in ASIDE,
        or a finished file that nothing names yet. A lock on the unfinished file says that somebody is at it.
        """
        aside = path.with_name(path.name + ASIDE)
        try:
            with _locked(aside) as file:
                self.write(file, fill)
                self.sync(file)
            path = path if named is None else named()
            self.rename(aside, path)
            self.sync_directory(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise

    def put_private(self, path: Path, content: bytes) -> None:
        """Have ``path`` hold this, for its owner alone; what it held before stays whole until then."""
        aside = path.with_name(path.name + ASIDE)

        def fill(file: BinaryIO) -> None:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)

        try:
            with open(aside, "wb") as file:
                self.write(file, fill)
                self.sync(file)
            self.rename(aside, path)
            self.sync_directory(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def _locked(aside: Path) -> Iterator[BinaryIO]:
    """A new file that this process alone writes to, and that no sweep takes away meanwhile."""
    while True:
        with open(aside, "w+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else it was swept between the two
                yield file
                return


def is_written(path: Path) -> bool:
    """Whether somebody is writing a file that has not its name yet."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def check_private(file: BinaryIO, path: Path) -> None:
    """Raise NotAllowed where others than its owner can reach an open file; path names it."""
    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise NotAllowed(f"{path} has mode {mode:03o}: others than its owner can reach it; `chmod 600 {path}`")


def put_whole(file: BinaryIO, content: memoryview) -> None:
    """Write bytes, however many, little by little.

    Linux finds memory for more at a time in pieces of 2 MiB, which a virtual machine may have to ask its host for
    first: there 8 MiB at a time took five times as long.
    """
    for start in range(0, len(content), WRITTEN):
        file.write(content[start : start + WRITTEN])


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with open(path, "rb", buffering=0) as file:
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """Hex sha256 of all that an open file holds."""
    digest = hashlib.sha256()
    hash_part(digest, file)
    return digest.hexdigest()


def hash_part(digest: hashlib._Hash, file: BinaryIO, start: int = 0, stop: int | None = None) -> None:
    """Take bytes start : stop of an open file into a hash, or all from ``start`` on; read in pieces."""
    piece = memoryview(bytearray(_PIECE))
    while size := os.preadv(file.fileno(), [piece if stop is None else piece[: stop - start]], start):
        digest.update(piece[:size])
        start += size


@contextmanager
def writer_lock(directory: Path, *, wait: float = 10.0) -> Iterator[None]:
    """Be the directory's only writer among all processes, or raise Locked after ``wait`` seconds."""
    with open(directory / "writer.lock", "ab") as file:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Locked(
                        f"{directory} is being written by another process, and still was after {wait:g} s; "
                        "try again when it is done"
                    ) from None
                time.sleep(0.002)
        yield
