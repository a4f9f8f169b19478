"""What follows from rows and is kept beside them: calibrations, and the index that answers by one.

Write order: 1 the file is written aside; 2 fsync, rename, fsync of the directory; 3 one SQLite transaction names it,
with its checksum. What no record names is swept. An index is a cache: one that is absent, or has other bytes than
were written, is never loaded. It is then built in memory by who needs it, and written anew by the next ``compact``.
A calibration is not: nothing gives it back, so one that is damaged is an error.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import threading
import uuid
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from negindex.calibration import Calibration
from negindex.catalogue import Catalogue
from negindex.disk import ASIDE, Disk, sha256_of
from negindex.errors import Damaged, Erased
from negindex.exact import Block
from negindex.index import Index
from negindex.kernel import Kernel
from negindex.segments import Segments, taken
from negindex.states import DerivedRecord

DERIVED, ENDING = "derived", ".safetensors"
_PIECE = 1 << 20


class Derived:
    """The folder of derived files of one collection; it may be missing."""

    def __init__(self, folder: Path, catalogue: Catalogue, segments: Segments, disk: Disk) -> None:
        self.folder, self._catalogue, self._segments, self._disk = folder, catalogue, segments, disk
        self._known: dict[str, Calibration] = {}
        self._open: weakref.WeakValueDictionary[str, Index] = weakref.WeakValueDictionary()
        self._bad: set[str] = set()
        self._lock = threading.Lock()

    # -- writing ---------------------------------------------------------------------------

    def seal(
        self, name: str, kind: str, kernel: Kernel, covers: int, fill: Callable[[BinaryIO], None]
    ) -> DerivedRecord:
        """A new file, on the disk when this returns. Raises OSError when the disk did not keep what was written."""
        if not self.folder.is_dir():
            self.folder.mkdir()
            self._disk.sync_directory(self.folder.parent)
        path = self.folder / name
        written = ""

        def hashed(file: BinaryIO) -> None:
            nonlocal written
            fill(file)
            file.seek(0)
            digest = hashlib.sha256()
            while piece := file.read(_PIECE):
                digest.update(piece)
            written = digest.hexdigest()

        self._disk.create(path, hashed)
        if sha256_of(path) != written:
            path.unlink()
            raise OSError(errno.EIO, "the disk did not keep what was written; check it, then try again", str(path))
        return DerivedRecord(path.name, kind, kernel.fingerprint, path.stat().st_size, written, covers, 0)

    def seal_calibration(self, calibration: Calibration, covers: int) -> DerivedRecord:
        """covers: the version whose rows it was learned from."""
        kind = "calibration"
        return self.seal(new_file(kind), kind, calibration.kernel, covers, calibration.write)

    def seal_index(self, index: Index, covers: int) -> DerivedRecord:
        """Under the name that it was given. covers: the version whose rows it holds."""
        set_id, kernel = self._catalogue.meta.set_id, index.clusters.space.kernel
        return self.seal(index.file, "index", kernel, covers, lambda file: index.write(file, set_id))

    def sweep(self, named: Collection[str]) -> None:
        """Remove what a crashed writer left: files that the record does not name."""
        for path in [*self.folder.glob(f"*{ENDING}"), *self.folder.glob(f"*{ENDING}{ASIDE}")]:
            if path.name not in named:
                path.unlink()

    # -- reading ---------------------------------------------------------------------------

    def calibration(self, record: DerivedRecord) -> Calibration | None:
        """The one on record; None where an erasure took it meanwhile. Raises Damaged for other bytes."""
        if record.file not in self._known:
            try:
                with self._opened(record) as file:
                    self._known[record.file] = Calibration.read(file, self.folder / record.file)
            except (Damaged, OSError) as error:
                if all(record.file != one.file for one in self._catalogue.derived()):
                    return None
                raise Damaged(
                    f"{self.folder / record.file}, the calibration of this set, cannot be read ({error}); restore it "
                    "from a backup, or run `negindex calibrate` again"
                ) from error
        return self._known[record.file]

    def index(self, kernel: Kernel) -> Index | None:
        """The one on record for a kernel, mapped once for all who hold it; else one in memory; else None."""
        record = self._catalogue.index_of(kernel.fingerprint)
        with self._lock:
            if record is None or record.file in self._bad:
                return self._open.get(kernel.fingerprint)
            found = self._open.get(record.file)
            if found is None:
                try:
                    with self._opened(record) as file:
                        path, set_id = self.folder / record.file, self._catalogue.meta.set_id
                        found = self._open[record.file] = Index.read(file, path, set_id, kernel)
                except (Damaged, OSError):
                    self._bad.add(record.file)
                    return self._open.get(kernel.fingerprint)
            return found

    def remember(self, index: Index) -> Index:
        """Hand one that was built in memory to all who ask, while somebody holds it."""
        with self._lock:
            self._open[index.kernel] = index
        return index

    def _opened(self, record: DerivedRecord) -> BinaryIO:
        """The file, with a shared lock that an erasure waits for; raises Damaged where its bytes are others."""
        path = self.folder / record.file
        file = open(path, "rb")  # noqa: SIM115, the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                raise Damaged(f"{path} has other bytes than were written")
        except BaseException:
            file.close()
            raise
        return file

    def fetch(self, ids: Tensor) -> Block:
        """Rows in full, in force or not, in the order of their ids (n,). Raises Erased where bytes are gone."""
        while True:
            with self._catalogue.reading():
                placed, files = self._catalogue.placed(ids.tolist()), self._catalogue.segments()
            if len(placed) < len(ids):
                raise Erased("rows whose bytes were erased or given up; open a newer version")
            by_number = {file.segment: file for file in files}
            try:
                found = [(self._segments.open(by_number[placed[i][0]]), placed[i][1]) for i in ids.tolist()]
            except Damaged:
                if files == self._catalogue.segments():
                    raise  # else a file was replaced meanwhile: read where the rows lie now
                continue
            return Block(ids, torch.from_numpy(taken(found)).flatten(1))


def new_file(kind: str) -> str:
    """The name of a file to be; no two are alike."""
    return f"{kind}-{uuid.uuid4().hex[:16]}{ENDING}"
