"""Whether a collection still is what was written: every table against the log, every file byte for byte.

The log's records are chained by hash and the leaves of a tree; all else that a catalogue says of rows and claims
follows from them, or is bound to them by a salted commitment. So what was changed without changing the log is named
here, and a log that was changed with all that hangs on it shows against a checkpoint that was kept elsewhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import h5py

from negindex.audit import Fault, Faults, lossless
from negindex.catalogue import Catalogue
from negindex.checkpoint import Checkpoint
from negindex.derived import DERIVED
from negindex.disk import Disk, is_written, sha256_of, writer_lock
from negindex.errors import Damaged, InvalidInput, Locked, NotAllowed
from negindex.objects import store_at
from negindex.rowstore import apart, fetch, is_away
from negindex.schema import connect, named
from negindex.segment import Segment
from negindex.standing import OnRecord
from negindex.states import Meta, SegmentRecord
from negindex.store import CATALOGUE, SEGMENTS

__all__ = ["UNTOLD", "Fault", "Verdict", "verify"]
UNTOLD = (
    "whether the whole set was rolled back or cut short cannot be told without a checkpoint that was kept elsewhere; "
    "export one with `negindex checkpoint` and give it with --checkpoint"
)


@dataclass
class Verdict:
    """What was found, and what was gone through."""

    faults: list[Fault]
    versions: int
    rows: int
    files: int
    bytes: int


def verify(path: Path | str, checkpoints: Sequence[Checkpoint] = ()) -> Verdict:
    """Go through a collection's catalogue and files to the end, whatever is found; nothing is changed or swept.

    The catalogue is read at one version, while others may write; files that are replaced meanwhile are followed.
    checkpoints: exported before and kept elsewhere; without them nobody can tell whether the whole directory was
    rolled back, or the newest versions cut off, together with all that hangs on them.
    Files that lie elsewhere are read whole. Raises Unreachable where their place is, NoCollection, NewerFormat, or
    Damaged where the catalogue cannot be opened at all.
    """
    path, faults = Path(path), Faults()
    try:
        with closing(Catalogue(path / CATALOGUE, Disk())) as catalogue:
            meta = catalogue.meta
        with closing(connect(path / CATALOGUE)) as db:
            db.text_factory = lossless
            tables = OnRecord(db, faults)
            db.execute("BEGIN")
            tables.check_layout()
            tables.check(checkpoints)
            tables.check_standing()
            db.execute("ROLLBACK")
            files = Files(path, db, meta, faults, tables.history.top)
            with tables.section("segments"):
                files.check()
            with tables.section("derived"):
                files.check_derived()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # what SQLite says may hold the damaged text
        found = named(error, path / CATALOGUE) if isinstance(error, sqlite3.DatabaseError) else None
        raise found or Damaged(f"{path / CATALOGUE} cannot be read ({error}); restore it from a backup") from error
    return Verdict(faults.listed(), tables.last + 1, tables.rows, files.count, files.bytes)


class Files:
    """The sealed files of a collection that others may be writing to."""

    def __init__(self, path: Path, db: sqlite3.Connection, meta: Meta, faults: Faults, top: int) -> None:
        self._path, self._db, self._meta, self._faults = path, db, meta, faults
        self._top = top  # the last row that there was when the catalogue was read
        self.count = self.bytes = 0

    def check(self) -> None:
        """Every file on record, those too that replace one while this goes on; then files that nothing names."""
        seen: set[int] = set()
        while new := [file for file in self._named() if file.segment not in seen]:
            for file in new:
                seen.add(file.segment)
                self._check_one(file)
        self._check_strays()

    def check_derived(self) -> None:
        """Calibrations and the index, byte for byte; one that was replaced meanwhile is no fault."""
        sql = "SELECT file, kind, bytes, sha256 FROM derived ORDER BY file"
        for file, kind, size, digest in self._db.execute(sql).fetchall():
            remedy = "it is not used, and `negindex compact` makes it anew"
            remedy = remedy if kind == "index" else "restore it from a backup, or calibrate again"
            said = self._derived_fault(file, size, digest)
            still = self._db.execute("SELECT 1 FROM derived WHERE file = ?", (file,)).fetchone()
            if said and still:
                self._faults.add("derived", ascii(file)[1:-1], f"{said}; {remedy}")

    def _derived_fault(self, file: object, size: object, digest: object) -> str:
        folder = self._path / DERIVED
        if not isinstance(file, str) or (folder / file).parent != folder:
            return "is no file of this set's folder"
        try:
            found = (folder / file).stat().st_size, sha256_of(folder / file)
        except (OSError, ValueError) as error:
            return f"cannot be read ({error!a})"
        self.count, self.bytes = self.count + 1, self.bytes + found[0]
        said = f"has {found[0]} bytes of sha256 {found[1]}, and was written as {size!a} of {digest!a}"
        return "" if found == (size, digest) else said

    def _named(self) -> list[SegmentRecord]:
        """The files with rows that there were when the catalogue was read."""
        sql = """SELECT * FROM segments WHERE coalesce((SELECT min(id) FROM rows WHERE rows.segment = segments.segment),
                 0) <= ? ORDER BY segment"""
        return [SegmentRecord(*row) for row in self._db.execute(sql, (self._top,))]

    def _check_one(self, file: SegmentRecord) -> None:
        found = Faults()
        name = ascii(file.file)[1:-1]
        try:
            for said in self._odd(file, found):
                found.add("segment", name, said)
        except (OSError, ValueError, Damaged, InvalidInput, NotAllowed) as error:  # ValueError: a name with a NUL
            found.add("segment", name, f"cannot be read ({error!a})")
        if found.listed() and not self._stands(file):
            return  # it was replaced meanwhile, and what replaced it is checked in its turn
        self._faults.take(found)
        self.count += 1

    def _odd(self, file: SegmentRecord, found: Faults) -> Iterator[str]:
        """What is odd about a file, in words; rows that are not those on record are noted by number."""
        if not isinstance(file.file, str):
            yield "is no name of a file"
            return
        if is_away(file.file):
            with TemporaryFile(dir=self._path) as copy:
                place, name = apart(file.file)
                store = store_at(place)
                digest = fetch(store, name, store.size(name), copy)
                copy.flush()
                yield from self._odd_in(Path(name), digest, file, found, cast(BinaryIO, copy))
            return
        path = self._path / SEGMENTS / file.file
        if path.parent != self._path / SEGMENTS:
            yield "is no file of this set's folder"
            return
        yield from self._odd_in(path, sha256_of(path), file, found)

    def _odd_in(
        self, path: Path, digest: str, file: SegmentRecord, found: Faults, copy: BinaryIO | None = None
    ) -> Iterator[str]:
        self.bytes += path.stat().st_size if copy is None else copy.seek(0, 2)
        if digest != file.sha256:
            yield f"has other bytes than were written: their sha256 is {digest}, on record is {file.sha256!a}"
        try:
            segment = Segment(path, self._meta.set_id, self._meta.shape, file, self._meta.dtype, copy)
            with h5py.File(path if copy is None else copy, "r") as h5:
                if set(h5) != {"rows", "ids", *(["embeddings"] if file.embedding else [])}:
                    yield f"holds {sorted(h5)!a}, which is not what is on record"
        except (Damaged, OSError, RuntimeError) as error:
            yield f"is not as it was sealed ({error!a})"
            return
        self._check_rows(file, segment, found)

    def _check_rows(self, file: SegmentRecord, segment: Segment, found: Faults) -> None:
        sql = "SELECT id, place, sha256 FROM rows WHERE segment = ? ORDER BY place, id"
        places = 0
        for row_id, place, digest in self._db.execute(sql, (file.segment,)):
            if place != places or place >= len(segment) or segment.ids[place] != row_id:
                found.add("row", row_id, f"does not lie at place {place!a} of {file.file!a}, where it is on record")
            elif sha256(segment.rows[place].tobytes()).hexdigest() != digest:
                found.add("row", row_id, f"has other bytes in {file.file!a} than were stored")
            places += 1
        if places != len(segment):
            found.add("segment", ascii(file.file)[1:-1], f"holds {len(segment)} rows, and {places} are on record")

    def _stands(self, file: SegmentRecord) -> bool:
        sql = "SELECT 1 FROM segments WHERE segment = ? AND file = ?"
        return self._db.execute(sql, (file.segment, file.file)).fetchone() is not None

    def _check_strays(self) -> None:
        """Files that nothing names, unless a writer is at work, whose they may be."""
        try:
            with writer_lock(self._path, wait=0):
                sql = """SELECT file FROM segments UNION SELECT file FROM derived
                         UNION SELECT name FROM outstanding WHERE what IN ('file', 'derived')"""
                named = {name for (name,) in self._db.execute(sql)}
                folders = [folder for folder in (self._path / SEGMENTS, self._path / DERIVED) if folder.is_dir()]
                there = {entry.name for folder in folders for entry in folder.iterdir() if not is_written(entry)}
        except Locked:
            return
        for name in sorted(there - named):
            said = "is named by no record: a crash leaves such a file, and the next open sweeps it; look at it before"
            self._faults.add("stray", ascii(name)[1:-1], said)
