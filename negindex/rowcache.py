"""Rows that were read from elsewhere, kept on this disk: never more than a limit, shared by processes, emptied by name.

A folder for each sealed file, in it a file for each span of rows. One lock orders all that changes anything; readers
need none, since a file that goes away under them stays whole for them. The lock's file says how many bytes there may
be: never fewer than there are, since it is written before a file comes and after files went.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ASIDE = "aside"
_KEEP = 0.9  # share of the limit that is left when there is no more room
_PAGE = 4096  # a file takes whole pages of the disk


class RowCache:
    """What it holds is checked by who reads it; a folder that cannot be written is one that holds nothing."""

    def __init__(self, folder: Path, limit: Callable[[], int]) -> None:
        """limit: bytes on the disk, whole pages counted; 0 keeps nothing. It may change, and is asked for each time."""
        self.folder, self._limit = folder, limit

    @property
    def limit(self) -> int:
        return self._limit()

    def get(self, file: str, span: str, first: int = 0, size: int | None = None) -> bytes | None:
        """Bytes of a span of a sealed file, from ``first`` on; None where they are not here."""
        path = self.folder / file / span
        try:
            with open(path, "rb") as held:
                held.seek(first)
                found = held.read() if size is None else held.read(size)
            os.utime(path)  # the least recently asked for goes first
        except OSError:
            return None
        return found if size is None or len(found) == size else None

    def put(self, file: str, span: str, content: bytes, still: Callable[[], bool]) -> None:
        """Keep a span, if ``still`` says so while nobody can empty the cache."""
        room, limit = _on_disk(len(content)), self.limit
        if room > limit:
            return
        with suppress(OSError), self._locked() as total:
            path = self.folder / file / span
            if path.exists() or not still():
                return
            used = total.read()
            if used + room > limit:
                used = self._evict(int(limit * _KEEP) - room)
            total.write(used + room)
            path.parent.mkdir(exist_ok=True)
            aside = self.folder / _ASIDE
            aside.write_bytes(content)
            aside.rename(path)

    def drop(self, file: str, span: str | None = None) -> None:
        """Have nothing of a sealed file, or not one span of it."""
        if not self.folder.is_dir():
            return
        with self._locked():
            if span is not None:
                (self.folder / file / span).unlink(missing_ok=True)
                return
            (self.folder / _ASIDE).unlink(missing_ok=True)
            if (self.folder / file).is_dir():
                shutil.rmtree(self.folder / file)

    def keep_only(self, files: Collection[str]) -> None:
        """Have nothing of sealed files but these."""
        if not self.folder.is_dir():
            return
        with self._locked() as total:
            (self.folder / _ASIDE).unlink(missing_ok=True)
            gone = [folder for folder in self.folder.iterdir() if folder.is_dir() and folder.name not in files]
            for folder in gone:
                shutil.rmtree(folder)
            if gone:
                total.write(self.bytes())

    def shrink(self) -> None:
        """Have no more than the limit, which was lowered."""
        if self.folder.is_dir():
            with self._locked() as total:
                total.write(self._evict(self.limit))

    def bytes(self) -> int:
        """What it takes on the disk now."""
        return sum(size for _, size, _ in self._held())

    # -- inside, under the lock ------------------------------------------------------------

    def _held(self) -> list[tuple[float, int, Path]]:
        """(when it was last asked for, bytes on the disk, path) of every span."""
        found = []
        for path in self.folder.glob("*/*"):
            with suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime, _on_disk(state.st_size), path))
        return found

    def _evict(self, most: int) -> int:
        """Let go of what was not asked for longest, until there are at most so many bytes; returns how many."""
        (self.folder / _ASIDE).unlink(missing_ok=True)
        held = sorted(self._held())
        used = sum(size for _, size, _ in held)
        for _, size, path in held:
            if used <= max(0, most):
                break
            path.unlink(missing_ok=True)
            used -= size
        return used

    @contextmanager
    def _locked(self) -> Iterator[_Total]:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield _Total(handle, self)
        finally:
            os.close(handle)


class _Total:
    """How many bytes there may be, in the lock's file."""

    def __init__(self, handle: int, cache: RowCache) -> None:
        self._handle, self._cache = handle, cache

    def read(self) -> int:
        said = os.pread(self._handle, 32, 0).decode(errors="replace").strip()
        return int(said) if said.isdecimal() else self._cache.bytes()

    def write(self, total: int) -> None:
        os.pwrite(self._handle, f"{total:<31}\n".encode(), 0)


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
