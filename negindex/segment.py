"""Sealed files of rows: HDF5 that every tool reads, mapped into memory without the library."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import uuid
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from negindex.disk import Disk, hash_part, put_whole
from negindex.draft import Ids
from negindex.errors import Damaged
from negindex.states import SegmentRecord

SEGMENT_BYTES = 1 << 30  # erasing a row rewrites at most this much
IDS = "ids"
_PART = 8 << 20  # bytes that are hashed, and taken by the disk, while the next are written


def write_segment(
    disk: Disk,
    folder: Path,
    set_id: str,
    rows: NDArray[np.floating],
    ids: Ids,
    embeddings: NDArray[np.floating] | None = None,
) -> SegmentRecord:
    """Seal rows (N, *S), their ids (N,) and embeddings (N, E) in a new file, and read them back.

    All but the ids is written, hashed and given to the disk before they are waited for. Where they are cancelled it
    raises CancelledError, and no file is left.
    Raises OSError when the disk did not keep what was written, before anything names the file.
    """
    arrays = {"rows": rows} | ({} if embeddings is None else {"embeddings": embeddings})
    digest, path = "", folder / new_name(0)

    def fill(file: BinaryIO) -> None:
        nonlocal digest
        digest = _fill(disk, file, set_id, arrays, ids)

    def named() -> Path:
        nonlocal path
        path = folder / new_name(int(ids.result()[0]))
        return path

    disk.create(path, fill, named)
    size = 0 if embeddings is None else embeddings.shape[1]
    record = SegmentRecord(0, path.name, len(rows), path.stat().st_size, digest, size)
    try:
        kept = Segment(path, set_id, rows.shape[1:], record, rows.dtype)
        same = _same_bytes(kept.rows, rows) and np.array_equal(kept.ids, ids.result())
        same = same and (embeddings is None or _same_bytes(np.asarray(kept.embeddings), embeddings))
    except Damaged:
        same = False
    if not same:
        path.unlink()
        raise OSError(errno.EIO, "the disk did not keep what was written; check it, then try again", str(path))
    return record


def new_name(first: int) -> str:
    """Of a file whose first row has this id; no two are alike."""
    return f"{first:012d}-{uuid.uuid4().hex[:8]}.h5"


def _fill(
    disk: Disk,
    file: BinaryIO,
    set_id: str,
    arrays: Mapping[str, NDArray[np.generic]],
    ids: Ids,
) -> str:
    """Write a whole file of arrays (N, ...), the ids last; returns its sha256, if the disk keeps what it was given.

    What was written is hashed, and taken by the disk, in threads of their own while the rest is written. These come
    back to Python seldom: whoever holds its lock, as the thread that makes the next rows ready, keeps it for 5 ms.
    """
    digest, end = hashlib.sha256(), 0
    with ThreadPoolExecutor(1, "negindex-hashes") as hashes, ThreadPoolExecutor(1, "negindex-syncs") as syncs:
        beside: list[Future[None]] = []
        syncing: Future[None] | None = None
        for name, place in _lay_out(file, set_id, arrays):
            flat = (ids.result() if name == IDS else arrays[name]).reshape(-1).view(np.uint8)
            beside.append(hashes.submit(hash_part, digest, file, end, place))
            end = place + len(flat)
            for start in range(0, len(flat), _PART):
                part = flat[start : start + _PART].data
                file.seek(place + start)
                put_whole(file, part)
                file.flush()
                beside.append(hashes.submit(digest.update, part))
                more = start + _PART < len(flat) or not ids.done()  # is to come, some time
                if more and (syncing is None or syncing.done()):
                    syncing = syncs.submit(disk.sync, file)  # of all that is written by then
                    beside.append(syncing)
        for one in beside:
            one.result()
    hash_part(digest, file, end)
    return digest.hexdigest()


def _lay_out(file: BinaryIO, set_id: str, arrays: Mapping[str, NDArray[np.generic]]) -> list[tuple[str, int]]:
    """Write all of the file but the arrays' own bytes, and those of the ids; returns where each one's go, by place."""
    plain = h5py.h5p.create(h5py.h5p.DATASET_CREATE)  # contiguous: no chunks, no filters
    plain.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plain.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(file, "w") as h5:
        h5.attrs["set_id"] = set_id
        made = {name: h5.create_dataset(name, one.shape, one.dtype, dcpl=plain) for name, one in arrays.items()}
        made[IDS] = h5.create_dataset(IDS, len(arrays["rows"]), np.int64, dcpl=plain)
        places = [(name, int(data.id.get_offset())) for name, data in made.items()]
    file.flush()
    return sorted(places, key=itemgetter(1))


def _same_bytes(kept: NDArray[np.generic], given: NDArray[np.generic]) -> bool:
    """Bit for bit, a part at a time, so that little beside the two is held; eight bytes as one number."""
    a, b = (np.ascontiguousarray(one).reshape(-1).view(np.uint8) for one in (kept, given))
    whole, step = len(a) - len(a) % 8, 1 << 22
    return len(a) == len(b) and all(
        np.array_equal(one[start : start + step], two[start : start + step])
        for one, two in ((a[:whole].view(np.uint64), b[:whole].view(np.uint64)), (a[whole:], b[whole:]))
        for start in range(0, len(one), step)
    )


class Segment:
    """One sealed file, open for reading.

    While it is held, a shared lock on the file says so: an erasure in another process waits for it.
    """

    def __init__(
        self,
        path: Path,
        set_id: str,
        shape: tuple[int, ...],
        record: SegmentRecord,
        dtype: DTypeLike,
        copy: BinaryIO | None = None,
    ) -> None:
        """Map the file; raises Damaged when it is not the one that the record names.

        copy: its bytes in an open file of one's own, which is mapped instead; ``path`` then is a name for it.
        """
        self.path = path
        try:
            if copy is not None:
                with h5py.File(copy, "r") as h5:
                    self._map(copy, h5, set_id, shape, record, dtype)
                return
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH)
            found = os.fstat(handle).st_size
            if found != record.bytes:
                raise Damaged(
                    f"{path} has {found} bytes, the catalogue says {record.bytes}; restore the file from a backup"
                )
            with h5py.File(path, "r") as h5:
                self._map(path, h5, set_id, shape, record, dtype)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise Damaged(f"{path} cannot be read as a segment ({error}); restore the file from a backup") from error

    def _map(
        self,
        file: Path | BinaryIO,
        h5: h5py.File,
        set_id: str,
        shape: tuple[int, ...],
        record: SegmentRecord,
        dtype: DTypeLike,
    ) -> None:
        if h5.attrs.get("set_id") != set_id:
            raise Damaged(f"{self.path} belongs to another collection; restore the file from a backup")
        self.rows = _mapped(file, self.path, h5, "rows", (record.rows, *shape), dtype)  # (N, *S)
        self.ids = np.array(_mapped(file, self.path, h5, IDS, (record.rows,), np.int64))  # (N,) int64
        self.embeddings: NDArray[np.generic] | None = None  # (N, E) float16
        if record.embedding:
            wide = (record.rows, record.embedding)
            self.embeddings = _mapped(file, self.path, h5, "embeddings", wide, np.float16)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: NDArray[np.int64], into: NDArray[np.generic]) -> None:
        """Copy rows at scattered places, in their order, into (n, *S) of their dtype.

        The system is told of all of them first, so that a disk fetches them at once and nothing else; left to
        itself it fetches one after the other, each with megabytes that lie around it.
        """
        self._expect((place, place + 1) for place in places.tolist())
        rows = self.rows.view(np.ndarray)  # a memmap takes longer
        rows.take(places, 0, into, "clip")  # no place is beyond the file; to "raise" it would copy once more

    def expect(self, first: int, last: int) -> None:
        """Have the disk fetch rows first : last of the map while something else goes on."""
        self._expect([(first, last)])

    def _expect(self, bounds: Iterable[tuple[int, int]]) -> None:
        """The same of rows between each two places."""
        if not isinstance(self.rows, np.memmap) or not isinstance(self.rows.base, mmap.mmap):
            return
        base, size = self.rows.offset % mmap.ALLOCATIONGRANULARITY, self.rows.nbytes // max(len(self.rows), 1)
        madvise = self.rows.base.madvise
        for first, last in bounds:
            start = base + first * size
            page = start - start % mmap.PAGESIZE
            madvise(mmap.MADV_WILLNEED, page, base + last * size - page)


def plain_data(path: Path, h5: h5py.File, name: str) -> h5py.Dataset:
    """A data set of the file's top level that lies whole and unpacked inside it.

    Raises Damaged for whatever would read another file or run a plugin: links, external storage, views, filters.
    """
    if "/" in name or not isinstance(h5.get(name, getlink=True), h5py.HardLink):
        raise Damaged(f"{path}: {name!r} is a link to elsewhere; restore the file from a backup")
    data = h5[name]
    plain = isinstance(data, h5py.Dataset) and not (data.external or data.is_virtual or data.chunks)
    if not plain or data.id.get_offset() is None:
        raise Damaged(f"{path}: {name!r} is no contiguous data set inside the file; restore it from a backup")
    return data


def _mapped(
    file: Path | BinaryIO, path: Path, h5: h5py.File, name: str, shape: tuple[int, ...], dtype: DTypeLike
) -> NDArray[np.generic]:
    """The data set as a read-only map."""
    data = plain_data(path, h5, name)
    if data.shape != shape or data.dtype != dtype:
        raise Damaged(
            f"{path}: {name!r} is no contiguous data set of {np.dtype(dtype)} and shape {shape} inside the file; "
            "restore it from a backup"
        )
    return np.memmap(file, dtype, "r", data.id.get_offset(), shape)
