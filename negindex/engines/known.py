"""Which engines a set has pushed its index to: a file for each in the set's folder ``engines``.

It is written before anything is pushed, and goes when the engine has been dropped, so that an erasure knows whom to
tell. The folder holds nothing else, and a set without engines has none. It is not part of a backup.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from negindex.disk import Disk
from negindex.engines.address import Address
from negindex.engines.link import Link
from negindex.errors import Damaged, Locked, NotThere

ENGINES = "engines"
_PATIENCE = 3.0  # seconds that a change waits for an engine that may be gone


class Engines:
    """The engines of one set."""

    def __init__(self, folder: Path, set_id: str, disk: Disk) -> None:
        self.folder, self._set_id, self._disk = folder, set_id, disk

    def known(self) -> list[Address]:
        """All of them, by their addresses."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Address.of(json.loads(path.read_text(encoding="utf-8"))["address"]))
            except (ValueError, KeyError, TypeError) as error:
                raise Damaged(
                    f"{path} names no engine ({error}); `negindex engine push` it again, and delete the file"
                ) from error
        return sorted(found)

    def note(self, address: Address) -> None:
        """Have it on the disk that there is one."""
        if not self.folder.is_dir():
            self.folder.mkdir()
            self._disk.sync_directory(self.folder.parent)
        if not self._path(address).is_file():
            said = json.dumps({"address": address.text}).encode()
            self._disk.create(self._path(address), partial(_write, said))

    def forget(self, address: Address) -> None:
        """Have it no more on record. Raises NotThere."""
        self._check(address)
        self._disk.remove(self._path(address))

    @contextmanager
    def held(self, address: Address) -> Iterator[None]:
        """Be the only one who changes what it holds. Raises NotThere for one that is not on record, and Locked."""
        self._check(address)
        with open(self._path(address), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"another program is changing {address.text}; try again when it is done") from None
            yield

    def prefix(self, address: Address) -> str:
        """How the names of this set's tables begin there."""
        return f"{address.name}_{self._set_id[:8]}_"

    def table(self, address: Address, index_file: str) -> str:
        """The name of the table that holds the rows of an index file."""
        return self.prefix(address) + index_file.removeprefix("index-").partition(".")[0]

    def clear(self, address: str, indices: Collection[str], folder: Path) -> None:
        """Drop every table of this set there that is not of an index on record, as an erasure asks.

        One whose file a reader still has open stays with it, and raises Locked. Nothing is to be done where the engine
        has been dropped. Raises Unreachable.
        """
        place = Address.of(address)
        if not self._path(place).is_file():
            return
        with self.held(place):
            link = Link(place, timeout=_PATIENCE)
            try:
                kept = self.drop_stale(link, indices, folder)
            finally:
                link.close()
        if kept:
            raise Locked(f"{kept[0]} in {address} is asked by a reader still; it goes when that is done")

    def drop_stale(self, link: Link, indices: Collection[str], folder: Path) -> list[str]:
        """Drop tables of indices that are not on record, but for those whose file is held; returns these."""
        on_record, kept = {self.table(link.address, file) for file in indices}, []
        there = {self.table(link.address, path.name) for path in folder.glob("index-*")}
        for table in link.tables(self.prefix(link.address)):
            if table in on_record:
                continue
            if table in there:
                kept.append(table)
            else:
                link.drop(table)
        return kept

    def _check(self, address: Address) -> None:
        if not self._path(address).is_file():
            known = ", ".join(one.text for one in self.known()) or "none"
            raise NotThere(f"{address.text} is no engine of this set, whose engines are: {known}; push to it first")

    def _path(self, address: Address) -> Path:
        return self.folder / f"{hashlib.sha256(address.text.encode()).hexdigest()[:16]}.json"


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
