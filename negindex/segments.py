"""The folder of sealed files: sealing, opening, and letting go of a file that somebody may still read."""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.disk import Disk
from negindex.segment import SEGMENT_BYTES, Segment, write_segment
from negindex.states import Meta, SegmentRecord


class Holder(NamedTuple):
    """A process that reads a file."""

    pid: int
    program: str  # its command line, or "" where the system does not tell


class Segments:
    """The sealed files of one collection."""

    def __init__(self, folder: Path, meta: Meta, disk: Disk) -> None:
        self.folder, self._meta, self._disk = folder, meta, disk
        self._open: weakref.WeakValueDictionary[str, Segment] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def seal(
        self, rows: NDArray[np.floating], ids: NDArray[np.int64], embeddings: NDArray[np.floating] | None = None
    ) -> SegmentRecord:
        """Write rows (N, *S), their ids (N,) and embeddings (N, E) in a new file, on the disk when this returns."""
        path = self.folder / f"{ids[0]:012d}-{uuid.uuid4().hex[:8]}.h5"
        digest = write_segment(self._disk, path, self._meta.set_id, rows, ids, embeddings)
        size = 0 if embeddings is None else embeddings.shape[1]
        return SegmentRecord(0, path.name, len(ids), path.stat().st_size, digest, size)

    def open(self, record: SegmentRecord) -> Segment:
        """The file, mapped once for all who hold it; raises Damaged when it is not the one that is on record."""
        with self._lock:
            found = self._open.get(record.file)
            if found is None:
                meta = self._meta
                found = Segment(self.folder / record.file, meta.set_id, meta.shape, record, np.dtype(meta.dtype))
                self._open[record.file] = found
            return found

    def rewrite(
        self, sources: Sequence[tuple[SegmentRecord, NDArray[np.int64]]]
    ) -> list[tuple[SegmentRecord, list[int]]]:
        """Copy chosen places of files into new ones of at most SEGMENT_BYTES; returns each with its ids in order."""
        made = []
        for group in _in_groups(sources, max(1, SEGMENT_BYTES // self._row_bytes())):
            parts = [(self.open(record), places) for record, places in group]
            ids = np.concatenate([segment.ids[places] for segment, places in parts])
            rows = np.concatenate([segment.rows[places] for segment, places in parts])
            kept = [segment.embeddings for segment, _ in parts]
            joint = None
            if all(one is not None for one in kept):
                joint = np.concatenate([one[p] for one, (_, p) in zip(kept, parts, strict=True) if one is not None])
            made.append((self.seal(rows, ids, joint), [int(i) for i in ids]))
        return made

    def sweep(self, named: set[str]) -> None:
        """Remove what a crashed writer left: files that the record does not name."""
        for path in self.folder.glob("*.h5*"):
            if path.name not in named:
                path.unlink()

    def _row_bytes(self) -> int:
        return int(np.prod(self._meta.shape)) * np.dtype(self._meta.dtype).itemsize


def let_go(disk: Disk, path: Path) -> bool:
    """Remove a file unless somebody reads it; whether it is gone. Nobody new can: the record names it no more."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        disk.remove(path)
        return True
    finally:
        os.close(handle)


def holders(path: Path) -> list[Holder]:
    """Processes that have a file open, as far as this system lets one see."""
    wanted = _quietly(os.stat, path)
    found: dict[int, Holder] = {}
    for pid, number in _open_files():
        state = _quietly(os.stat, f"/proc/{pid}/fd/{number}")
        if wanted is not None and state is not None and os.path.samestat(state, wanted):
            line = _quietly(Path(f"/proc/{pid}/cmdline").read_bytes) or b""
            found[pid] = Holder(pid, line.replace(b"\0", b" ").decode(errors="replace").strip())
    return list(found.values())


def _open_files() -> Iterator[tuple[int, int]]:
    for pid in _quietly(os.listdir, "/proc") or []:
        if pid.isdigit():
            yield from ((int(pid), int(number)) for number in _quietly(os.listdir, f"/proc/{pid}/fd") or [])


def _quietly(ask: Callable[..., Any], *args: Any) -> Any:
    """What the system tells, or None: processes end, and some are other people's."""
    try:
        return ask(*args)
    except OSError:
        return None


def _in_groups(
    sources: Sequence[tuple[SegmentRecord, NDArray[np.int64]]], most: int
) -> Iterator[list[tuple[SegmentRecord, NDArray[np.int64]]]]:
    """The same places in the same order, cut into groups of at most ``most`` rows, each of one embedding's size."""
    group: list[tuple[SegmentRecord, NDArray[np.int64]]] = []
    room = most
    for record, places in sources:
        while len(places):
            if group and (not room or group[-1][0].embedding != record.embedding):
                yield group
                group, room = [], most
            group.append((record, places[:room]))
            places, room = places[room:], room - len(group[-1][1])
    if group:
        yield group
