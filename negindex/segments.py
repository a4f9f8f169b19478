"""The sealed files of a set: sealing, opening, and letting go of a file that somebody may still read."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from negindex.away import AwaySegment, Known
from negindex.disk import Disk
from negindex.draft import Draft, Ids, given
from negindex.errors import Damaged, Erased, NotAllowed
from negindex.objects import Objects, store_at
from negindex.rowcache import RowCache
from negindex.rowstore import Folder, RowStore, apart, fetch, is_away
from negindex.segment import SEGMENT_BYTES, Segment, new_name, write_segment
from negindex.states import Meta, Place, SegmentRecord

OWNER = "owner.json"  # beside the files: which copy of the set may change them
CACHE = "cache"


class Holder(NamedTuple):
    """A process that reads a file."""

    pid: int
    program: str  # its command line, or "" where the system does not tell


class Record(Known, Protocol):
    """What the record of a set tells of its files, and is told."""

    def place(self) -> Place:
        """Where new files go."""

    def segments(self, version: int | None = None) -> list[SegmentRecord]:
        """The files with rows."""

    def placed(self, ids: Sequence[int]) -> dict[int, tuple[int, int]]:
        """{id: (segment, place)} of rows whose bytes are there."""

    def reading(self) -> AbstractContextManager[None]:
        """Everything read inside belongs to one version."""

    def put_rows_at(self, place: Place) -> None:
        """Have new files go to a place."""

    def to_let_go(self) -> set[str]:
        """Files that no rows lie in any more, and that may be there still."""


class Segments:
    """The sealed files of one collection, in its folder or elsewhere."""

    def __init__(self, folder: Path, meta: Meta, disk: Disk, record: Record | None = None) -> None:
        """record: None where files lie in the folder alone, as in a copy."""
        self.folder, self._meta, self._disk, self._record = folder, meta, disk, record
        self.home = Folder(folder, disk)
        self._stores: dict[str, Objects] = {}
        self._ours: set[str] = set()  # places that this copy of the set may change, since the writer's lock was taken
        self._open: weakref.WeakValueDictionary[str, Segment] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    @property
    def cache(self) -> RowCache:
        """Of rows that lie elsewhere; beside the folder."""
        return RowCache(self.folder.with_name(CACHE), lambda: self._place().cache_bytes)

    # -- writing ---------------------------------------------------------------------------

    def seal(
        self, rows: NDArray[np.floating], ids: NDArray[np.int64], embeddings: NDArray[np.floating] | None = None
    ) -> SegmentRecord:
        """Write rows (N, *S), their ids (N,) and embeddings (N, E) in a new file, on the disk when this returns."""
        made = self._write(rows, embeddings, given(ids))
        if not self.is_away:
            return made
        try:
            return self.carry(made, self._place().url)
        finally:
            self._disk.remove(self.folder / made.file)

    def draft(self, rows: NDArray[np.floating], embeddings: NDArray[np.floating] | None = None) -> Draft:
        """Begin the same in the folder, wherever new files go, before the ids are known; asks the record nothing."""
        return Draft(partial(self._write, rows, embeddings))

    def _write(self, rows: NDArray[np.floating], embeddings: NDArray[np.floating] | None, ids: Ids) -> SegmentRecord:
        return write_segment(self._disk, self.folder, self._meta.set_id, rows, ids, embeddings)

    @property
    def is_away(self) -> bool:
        """Whether new files go elsewhere."""
        return bool(self._place().url)

    def carry(self, file: SegmentRecord, url: str) -> SegmentRecord:
        """Copy a file to a place ("" for the folder) under a new name, and read it back there.

        Raises Damaged where its bytes are not those on record, and OSError where the place did not keep them.
        """
        name = new_name(int(file.file.rpartition("/")[2].partition("-")[0]))
        source, own = self.locate(file.file)
        if url and not is_away(file.file):
            self._put(url, name, self.folder / file.file)
        else:
            with TemporaryFile(dir=self.folder) as copy:
                check_bytes(fetch(source, own, file.bytes, copy), file)
                copy.flush()
                self._put(url, name, Path(f"/dev/fd/{copy.fileno()}"))
        to: RowStore = self.at(url) if url else self.home
        if to.size(name) != file.bytes or fetch(to, name, file.bytes) != file.sha256:
            self._discard(url, name)
            check_bytes(fetch(source, own, file.bytes), file)
            raise OSError(f"{to.address} did not keep what was written; check it, then try again")
        return file._replace(file=f"{url}/{name}" if url else name)

    def _put(self, url: str, name: str, source: Path) -> None:
        if url:
            self.own(url)
            self._disk.put_object(self.at(url), name, source)
        else:
            self.home.put(name, source)

    def _discard(self, url: str, name: str) -> None:
        self._disk.delete_object(self.at(url), name) if url else self.home.delete(name)

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
        """Remove what a crashed writer left: files that the record does not name, and that nobody is writing."""
        for name in self.home.names():
            if name not in named:
                let_go(self._disk, self.folder / name)
        self.cache.keep_only({apart(file)[1] for file in named if is_away(file)})

    # -- elsewhere -------------------------------------------------------------------------

    def at(self, url: str) -> Objects:
        """The files in one place."""
        if url not in self._stores:
            self._stores[url] = store_at(url)
        return self._stores[url]

    def locate(self, file: str) -> tuple[RowStore, str]:
        """Where a file lies, and its name there."""
        place, name = apart(file)
        return (self.at(place), name) if is_away(file) else (self.home, file)

    def begin(self) -> None:
        """The writer's lock was taken: whose the places are is to be seen anew."""
        self._ours.clear()

    def own(self, url: str) -> None:
        """Make sure, once a change, that no other copy of the set changed a place, and sweep it.

        Raises NotAllowed where one did: files that this copy knows nothing of would be lost.
        """
        if url in self._ours:
            return
        assert self._record is not None
        store, place = self.at(url), self._record.place()
        found = _stamp(store, self._meta.set_id)
        if found is not None and (url, found) not in place.stamps:
            raise NotAllowed(
                f"{url} was changed by another copy of this set; go on with that one, or, if it is no more, delete "
                f"{OWNER} there: files that this copy does not name are swept then"
            )
        stamp = secrets.token_hex(8)
        others = tuple(pair for pair in place.stamps if pair[0] != url)
        self._record.put_rows_at(place._replace(stamps=(*others, *([(url, found)] if found else []), (url, stamp))))
        store.put_note(OWNER, json.dumps({"set_id": self._meta.set_id, "stamp": stamp}).encode())
        named = {file.file for file in self._record.segments()} | self._record.to_let_go()
        for name in store.names():
            if f"{url}/{name}" not in named:
                self._disk.delete_object(store, name)
        self._ours.add(url)

    def leave(self, url: str) -> None:
        """Have a place say no more whose it is."""
        self._disk.delete_object(self.at(url), OWNER)
        self._ours.discard(url)

    def _place(self) -> Place:
        return Place() if self._record is None else self._record.place()

    # -- reading ---------------------------------------------------------------------------

    def open(self, record: SegmentRecord) -> Segment:
        """The file, open once for all who hold it; raises Damaged when it is not the one that is on record."""
        with self._lock:
            found = self._open.get(record.file)
            if found is None:
                found = self._open[record.file] = self._opened(record)
            return found

    def _opened(self, record: SegmentRecord) -> Segment:
        shape, dtype = self._meta.shape, np.dtype(self._meta.dtype)
        if not is_away(record.file):
            return Segment(self.folder / record.file, self._meta.set_id, shape, record, dtype)
        if self._record is None:
            raise Damaged(f"{record.file} lies elsewhere, and this is a copy that holds its own rows")
        place, known = self.locate(record.file), self._record
        return AwaySegment(record, place, shape, dtype, known=known, cache=self.cache, find=self.find)

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """(n, *S) rows by their ids, from where they lie now. Raises Erased where bytes are gone."""
        assert self._record is not None
        wanted = [int(row) for row in ids]
        while True:
            with self._record.reading():
                placed, files = self._record.placed(wanted), self._record.segments()
            if missing := [row for row in wanted if row not in placed]:
                raise Erased(f"row {missing[0]} was erased, or given up by a compaction; open a newer version")
            by_number = {file.segment: file for file in files}
            try:
                return taken([(self.open(by_number[placed[row][0]]), placed[row][1]) for row in wanted])
            except Damaged:
                if files == self._record.segments():
                    raise  # else a file was replaced meanwhile: read where the rows lie now

    # -- letting go ------------------------------------------------------------------------

    def let_go(self, file: str) -> bool:
        """Remove a file that the record names no more, unless somebody maps it; whether it is gone.

        One that lies elsewhere goes at once, and what is kept of it here: who still reads it finds rows by their ids.
        """
        if not is_away(file):
            return let_go(self._disk, self.folder / file)
        url, name = apart(file)
        self.cache.drop(name)
        self._disk.delete_object(self.at(url), name)
        return True

    def _row_bytes(self) -> int:
        return int(np.prod(self._meta.shape)) * np.dtype(self._meta.dtype).itemsize


def taken(found: Sequence[tuple[Segment, int]]) -> NDArray[np.generic]:
    """(n, *S) rows, in the order of these files and places, of which there is at least one; each file is read once."""
    first = found[0][0].rows
    rows = np.empty((len(found), *first.shape[1:]), first.dtype)
    by_file: dict[int, list[int]] = {}
    for number, (segment, _) in enumerate(found):
        by_file.setdefault(id(segment), []).append(number)
    for numbers in by_file.values():
        places = np.array([found[number][1] for number in numbers], np.int64)
        some = np.empty((len(numbers), *rows.shape[1:]), rows.dtype)
        found[numbers[0]][0].take(places, some)
        rows[numbers] = some
    return rows


def check_bytes(digest: str, file: SegmentRecord) -> None:
    """Raise Damaged where a file's sha256 is not that on record."""
    if digest != file.sha256:
        raise Damaged(f"{file.file} is not what the record says; put it back from a copy, or restore from a backup")


def _stamp(store: Objects, set_id: str) -> str | None:
    """Of the copy of the set that changed a place last; None where none has. Raises NotAllowed for another set's."""
    note = store.note(OWNER)
    if note is None:
        return None
    try:
        said = json.loads(note)
        found, stamp = str(said["set_id"]), str(said["stamp"])
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{store.address}/{OWNER} does not say whose the files are; put it back from a copy") from None
    if found != set_id:
        raise NotAllowed(f"{store.address} is another set's; name a place of its own")
    return stamp


def let_go(disk: Disk, path: Path) -> bool:
    """Remove a file unless somebody reads or writes it; whether it is gone. The record names it not, or no more."""
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
