"""A sealed file that lies elsewhere: rows are read by ranges, each checked by its sha256 on record before it counts.

Which rows lie in it, at which places and with which bytes, is on record; so opening one asks nobody. What was read is
kept in the local cache. Before any kept byte is used, the record is asked whether the file still is one of its own: a
file that holds an erased row never is. Where it is not any more, rows are read from where they lie now.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Protocol, cast

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from negindex.errors import Damaged, Gone, NegindexError, NotAllowed
from negindex.rowcache import RowCache
from negindex.rowstore import RowStore, fetch
from negindex.segment import Segment, plain_data
from negindex.states import SegmentRecord

UNIT = 1 << 20  # bytes of neighbouring rows that are read and kept together where most of them are wanted
CHECKED = 10.0  # seconds after which a file of which rows are kept is looked for in its place again
_HEAD = 1 << 12  # bytes at a file's start that say where in it the rows are
Places = NDArray[np.int64]


class Known(Protocol):
    """What the record tells of files elsewhere."""

    def sealed_rows(self, segment: int) -> list[tuple[int, int, str]]:
        """(place, id, sha256) of the rows in a file, by place."""

    def is_named(self, file: str) -> bool:
        """Whether rows lie in a file now."""


class AwaySegment(Segment):
    """Reads as a mapped one does; the bytes come when they are asked for."""

    def __init__(
        self,
        record: SegmentRecord,
        place: tuple[RowStore, str],
        shape: tuple[int, ...],
        dtype: DTypeLike,
        *,
        known: Known,
        cache: RowCache,
        find: Callable[[Places], NDArray[np.generic]],
    ) -> None:
        """place: the store and the file's name there. find: (n, *S) rows by their ids, from where they lie now.

        Raises Damaged where the record has other rows in the file than it should: they lie elsewhere since.
        """
        held = known.sealed_rows(record.segment)
        if len(held) != record.rows or [at for at, _, _ in held] != list(range(len(held))):
            raise Damaged(f"{record.file} holds {record.rows} rows, and {len(held)} are on record; open the set anew")
        self.path = Path(place[1])
        self.ids = np.array([row for _, row, _ in held], np.int64)
        digests = b"".join(bytes.fromhex(digest) for _, _, digest in held)
        self._rows = _Rows(record, place, (record.rows, *shape), np.dtype(dtype), self.ids, digests, known, cache, find)
        self.rows = cast(NDArray[np.generic], self._rows)
        self.embeddings = None
        if record.embedding:
            self.embeddings = cast(NDArray[np.generic], _Embeddings(record, place))

    def take(self, places: Places, into: NDArray[np.generic]) -> None:
        into[...] = self._rows[places]

    def expect(self, first: int, last: int) -> None:
        """Nothing: what is asked for together is fetched together."""


class _Lazy:
    """Reads like an array (N, ...)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.generic]:
        if isinstance(key, int | np.integer):
            return cast(NDArray[np.generic], self._at(np.array([range(len(self))[int(key)]]))[0])
        return self._at(np.arange(len(self))[key])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[np.generic]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _at(self, places: Places) -> NDArray[np.generic]:
        raise NotImplementedError  # each kind has its own


class _Span(NamedTuple):
    """Neighbouring rows that are read together."""

    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.first}-{self.last}"


class _Rows(_Lazy):
    def __init__(
        self,
        record: SegmentRecord,
        place: tuple[RowStore, str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        ids: Places,
        digests: bytes,
        known: Known,
        cache: RowCache,
        find: Callable[[Places], NDArray[np.generic]],
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._record, (self._store, self._name), self._digests = record, place, digests
        self._ids, self._known, self._cache, self._find = ids, known, cache, find
        self._bytes = int(np.prod(shape[1:])) * dtype.itemsize  # of a row
        self._unit = max(1, UNIT // max(1, self._bytes))  # rows
        self._offset: int | None = None
        self._seen = float("-inf")  # when the file was last found in its place

    def _at(self, places: Places) -> NDArray[np.generic]:
        """(n, *S) rows, in the order of their places. Raises Unreachable, Damaged, Erased."""
        if not len(places):
            return np.empty((0, *self.shape[1:]), self.dtype)
        kept = self._may_keep()
        if kept is not False:
            try:
                return self._read(places, keep=bool(kept))
            except Gone:
                self._cache.drop(self._name)
                if self._may_keep() is not False:
                    raise
        return self._find(self._ids[places])

    def _may_keep(self) -> bool | None:
        """Whether the record names the file; None where it was closed, and cannot tell."""
        try:
            return self._known.is_named(self._record.file)
        except NotAllowed:
            return None

    def _read(self, places: Places, *, keep: bool) -> NDArray[np.generic]:
        if keep and time.monotonic() - self._seen > CHECKED:
            self._check_there()
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        into = out.reshape(len(places), -1).view(np.uint8)
        missing: list[tuple[_Span, Places]] = []
        for span, which in self._spans(places):
            found = self._kept(span) if keep else None
            if found is None:
                missing.append((span, which))
            else:
                self._put(into, which, places, span, found)
        for (span, which), found in zip(missing, self._fetched([span for span, _ in missing]), strict=True):
            self._check(span, found)
            if keep and self._may_keep():
                self._cache.put(self._name, span.name, found, lambda: bool(self._may_keep()))
            self._put(into, which, places, span, found)
        return out

    def _spans(self, places: Places) -> Iterator[tuple[_Span, Places]]:
        """What to read for these places, and for which of them: whole units where most of one is wanted, else rows."""
        units, which_unit = np.unique(places // self._unit, return_inverse=True)
        order = np.argsort(which_unit, kind="stable")
        for unit, some in zip(units, np.split(order, np.flatnonzero(np.diff(which_unit[order])) + 1), strict=True):
            first, last = int(unit) * self._unit, min((int(unit) + 1) * self._unit, len(self))
            if 2 * len(np.unique(places[some])) > last - first:
                yield _Span(first, last), some
            else:
                for row in np.unique(places[some]).tolist():
                    yield _Span(row, row + 1), some[places[some] == row]

    def _put(self, into: NDArray[np.uint8], which: Places, places: Places, span: _Span, found: bytes) -> None:
        rows = np.frombuffer(found, np.uint8).reshape(-1, self._bytes)
        into[which] = rows[places[which] - span.first]

    def _kept(self, span: _Span) -> bytes | None:
        """What the cache has, if it is what is on record."""
        first, size = span.first // self._unit * self._unit, (span.last - span.first) * self._bytes
        unit = _Span(first, min(first + self._unit, len(self)))
        for held, start in ((unit, (span.first - first) * self._bytes), (span, 0)):
            found = self._cache.get(self._name, held.name, start, size)
            if found is not None and self._wrong(span, found) is None:
                return found
            if found is not None:
                self._cache.drop(self._name, held.name)
        return None

    def _fetched(self, spans: Sequence[_Span]) -> list[bytes]:
        if not spans:
            return []
        at = self._start()
        found = self._store.read(
            self._name, [(at + span.first * self._bytes, at + span.last * self._bytes) for span in spans]
        )
        self._seen = time.monotonic()
        return found

    def _check(self, span: _Span, found: bytes) -> None:
        if (row := self._wrong(span, found)) is not None:
            raise Damaged(
                f"row {self._ids[row]} in {self._record.file} has other bytes than were stored; put the file back from "
                "a copy, or restore the set from a backup"
            )

    def _wrong(self, span: _Span, found: bytes) -> int | None:
        """The first place whose bytes are not those on record."""
        view, size = memoryview(found), self._bytes
        for number, place in enumerate(range(span.first, span.last)):
            digest = hashlib.sha256(view[number * size : (number + 1) * size]).digest()
            if digest != self._digests[32 * place : 32 * (place + 1)]:
                return place
        return None

    def _check_there(self) -> None:
        """Raises Gone, Damaged for a file of another size."""
        size = self._store.size(self._name)
        if size != self._record.bytes:
            raise Damaged(f"{self._record.file} has {size} bytes, on record are {self._record.bytes}; put it back")
        self._seen = time.monotonic()

    def _start(self) -> int:
        """Where in the file the rows are, by its own head; rows that do not lie there are found by their sha256."""
        if self._offset is None:
            head = _Ranges(self._store, self._name, self._record.bytes)
            try:
                with h5py.File(head, "r") as h5:
                    self._offset = int(plain_data(Path(self._name), h5, "rows").id.get_offset())
            except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
                raise head.failed or _no_segment(self._record.file, error) from None
        return self._offset


class _Embeddings(_Lazy):
    """No checksum of their own is on record: the whole file is read, and checked, when they are first asked for."""

    def __init__(self, record: SegmentRecord, place: tuple[RowStore, str]) -> None:
        self.shape, self.dtype = (record.rows, record.embedding), np.dtype(np.float16)
        self._record, self._place = record, place
        self._whole: NDArray[np.generic] | None = None

    def _at(self, places: Places) -> NDArray[np.generic]:
        if self._whole is None:
            with TemporaryFile() as file:
                if fetch(*self._place, self._record.bytes, file) != self._record.sha256:
                    raise Damaged(f"{self._record.file} has other bytes than were sealed; put it back from a copy")
                with h5py.File(file, "r") as h5:
                    self._whole = np.array(plain_data(Path(self._place[1]), h5, "embeddings"))
        return self._whole[places]


class _Ranges(io.RawIOBase):
    """A file elsewhere as h5py reads one: in pieces, of which the first is kept."""

    def __init__(self, store: RowStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._position = store, name, size, 0
        self.failed: NegindexError | None = None  # h5py tells of it in words of its own
        self._head = store.read(name, [(0, min(_HEAD, size))])[0]

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + {0: 0, 1: self._position, 2: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        first, last = self._position, min(self._position + len(buffer), self._size)
        if last <= first:
            return 0
        held = self._head[first:last] if last <= len(self._head) else None
        try:
            found = self._store.read(self._name, [(first, last)])[0] if held is None else held
        except NegindexError as error:
            self.failed = error
            raise OSError(str(error)) from error
        buffer[: len(found)] = found
        self._position = last
        return len(found)


def _no_segment(file: str, error: Exception) -> Damaged:
    return Damaged(f"{file} cannot be read as a segment ({error}); put it back from a copy")
