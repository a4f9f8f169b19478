"""Where sealed files lie: the set's own folder, whose files are mapped, or a place elsewhere that is read by ranges.

A file elsewhere is on record under its whole address, so each file says where it lies; one in the folder by its name.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from negindex.disk import WRITTEN, Disk, put_whole
from negindex.errors import Damaged, Gone, InvalidInput

CACHE_BYTES = 4 << 30  # what the local cache of rows that lie elsewhere may take, where nobody says
PIECE = 16 << 20  # bytes of a whole file that are asked for at a time
_SEALED = re.compile(r"[0-9]{12}-[0-9a-f]{8}\.h5")


class RowStore(Protocol):
    """Sealed files under names that are never used twice; each is there whole before anything names it."""

    @property
    def address(self) -> str:
        """For people; without credentials."""

    def names(self) -> list[str]:
        """What is there, also what no record names."""

    def size(self, name: str) -> int:
        """Bytes of a file. Raises Gone where there is none."""

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes first : last of a file for each span, asked for together.

        Raises Gone where there is no such file, and Damaged where it ends before.
        """

    def put(self, name: str, source: Path) -> None:
        """Keep a file's bytes under a new name; they are safe when this returns."""

    def delete(self, name: str) -> None:
        """Have no byte of a file any more; nothing happens where there is none."""


class Folder:
    """The set's own folder."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self._disk = path, disk

    @property
    def address(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return [file.name for file in self.path.glob("*.h5*")]

    def size(self, name: str) -> int:
        with self._opened(name) as file:
            return file.seek(0, 2)

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        with self._opened(name) as file:
            return [whole(self.address, name, last - first, _at(file, first, last)) for first, last in spans]

    def put(self, name: str, source: Path) -> None:
        with open(source, "rb") as given:
            self._disk.create(self.path / name, lambda file: shutil.copyfileobj(given, file, WRITTEN))

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _opened(self, name: str) -> BinaryIO:
        try:
            return open(self.path / name, "rb")
        except FileNotFoundError:
            raise gone(self.address, name) from None


def is_away(file: str) -> bool:
    """Whether a file's name on record is an address elsewhere."""
    return "://" in file


def apart(file: str) -> tuple[str, str]:
    """The place and the name of a file that lies elsewhere."""
    place, _, name = file.rpartition("/")
    return place, name


def is_sealed_name(name: str) -> bool:
    """Whether a store would have given a sealed file this name: what has another is none of its own."""
    return _SEALED.fullmatch(name) is not None


def checked_address(url: str) -> str:
    """An address that may be put on record, without a slash at its end.

    Raises InvalidInput for none, for one with credentials, and for chains: a cache of fsspec's own would keep what
    is erased.
    """
    if "://" not in url or "::" in url:
        raise InvalidInput(f"{_shown(url)!r}; give one address that fsspec knows, such as s3://bucket/prefix")
    told = urlsplit(url)
    if "@" in told.netloc or told.query or told.fragment:
        raise InvalidInput(
            f"{_shown(url)!r} holds credentials or options, which are never put on record; give them to fsspec by its "
            "configuration or environment, and name the place alone"
        )
    return url.rstrip("/")


def _shown(url: str) -> str:
    """An address without what may be secret."""
    scheme, mark, rest = url.split("?")[0].split("#")[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def fetch(store: RowStore, name: str, size: int, to: BinaryIO | None = None) -> str:
    """The sha256 of a file's first ``size`` bytes, written to ``to`` as they come."""
    digest = hashlib.sha256()
    for start in range(0, size, PIECE):
        (piece,) = store.read(name, [(start, min(start + PIECE, size))])
        digest.update(piece)
        if to is not None:
            put_whole(to, memoryview(piece))
    return digest.hexdigest()


def whole(address: str, name: str, size: int, found: bytes) -> bytes:
    """What was read, if it is as long as was asked for. Raises Damaged."""
    if len(found) != size:
        raise Damaged(
            f"{address}/{name} gave {len(found)} bytes of {size} asked for: it is cut short; put it back from a copy"
        )
    return found


def gone(address: str, name: str) -> Gone:
    """The error for a file that is not there."""
    return Gone(f"{address}/{name} is not there; put it back from a copy, or restore the set from a backup")


def _at(file: BinaryIO, first: int, last: int) -> bytes:
    file.seek(first)
    return file.read(last - first)
