"""A named set of rows that changes: every change is one version, and old versions stay as they were.

Write order, with what a crash in each gap leaves behind:

1. the rows' file is written aside          a file ending in .aside, swept at the next writer's open
2. fsync, rename, fsync of the directory    a finished file that nothing names, swept likewise
3. one SQLite transaction                   the sole commit point: the new version is in force
4. files that it replaced are let go        on record as outstanding, let go at the next writer's open
"""

from __future__ import annotations

import secrets
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from negindex import backup
from negindex.alike import Alike, Likeness, alike, groups_held
from negindex.backup import Backup, Kept
from negindex.calibration import Calibration, calibrate
from negindex.catalogue import Catalogue
from negindex.checkpoint import Checkpoint
from negindex.claims import Claims
from negindex.dedup import Member, duplicates
from negindex.disk import Disk, writer_lock
from negindex.engines.known import Engines
from negindex.errors import InvalidInput, Locked, NotAllowed, OutOfRange, ShapeMismatch, UnknownKey
from negindex.exact import Scan
from negindex.geometry import apart, first_views, item_of
from negindex.hamming import NEAR
from negindex.history import Dead, Difference, claims_at, dead, difference
from negindex.incoming import Incoming, check_keys, incoming, some_are
from negindex.index import Ahead, Index, is_small, nobody
from negindex.keys import Key
from negindex.labelled import Labelled
from negindex.log import Record
from negindex.moving import move
from negindex.nearest import Neighbour, nearest_embedding, nearest_pdq
from negindex.negatives import Following, Negatives, row_elements
from negindex.schema import IN_HOUSE
from negindex.segments import Holder
from negindex.snapshot import Snapshot
from negindex.states import (
    ClaimRecord,
    DerivedRecord,
    Held,
    Meta,
    Note,
    Outstanding,
    Provenance,
    RowRecord,
    SegmentRecord,
    Version,
)
from negindex.store import CATALOGUE, SEGMENTS, Store
from negindex.stored import in_blocks
from negindex.verify import Fault, verify

DTYPES = ("float16", "float32")


class Collection(Following):
    """A directory of rows with a record of what is in force; a ``Negatives`` that follows.

    Pinning it gives the newest version each time; ``snapshot`` gives one that never follows. Several
    processes may read while one writes.
    """

    def __init__(self, path: Path, disk: Disk, key: Key | None = None) -> None:
        self.path = path
        self._store = Store(path, disk, key)
        self._catalogue = self._store.catalogue
        self.shape, self.space = self._store.meta.shape, self._store.meta.lies_in
        self.geometry, self.stated_space = self._store.meta.geometry, self._store.meta.space
        self._newest: Snapshot | None = None
        self._lock = threading.Lock()
        self.claims = Claims(self._store)

    @classmethod
    def create(
        cls,
        path: Path | str,
        shape: Sequence[int],
        space: str,
        *,
        dtype: str = "float16",
        disk: Disk | None = None,
        key: Key | None = None,
    ) -> Collection:
        """Make an empty collection at version 0, whole or not at all.

        shape: one row's shape, such as (4, 64, 64). space: what the rows are, "pixels" or what
        ``sampler.encode.space_of`` says of a pipeline, with how images become rows (``geometry.stated``) where that
        is not to cover. dtype: how rows are stored, float16 or float32.
        key: signs the log's checkpoints; give it to ``open`` too.
        Raises NotAllowed where something stands already.
        """
        path = Path(path)
        row_elements(tuple(shape))
        apart(space)
        if dtype not in DTYPES:
            raise InvalidInput(f"dtype {dtype!r}; give one of {', '.join(DTYPES)}")
        if path.exists():
            raise NotAllowed(f"{path} exists; open it with Collection.open, or name another place")
        aside = path.with_name(path.name + ".new")
        shutil.rmtree(aside, ignore_errors=True)
        (aside / SEGMENTS).mkdir(parents=True)
        disk = disk or Disk()
        meta = Meta(uuid.uuid4().hex, tuple(shape), space, dtype, secrets.token_hex(32))
        Catalogue.create(aside / CATALOGUE, meta, key)
        disk.sync_directory(aside)
        disk.rename(aside, path)
        disk.sync_directory(path.parent)
        return cls(path, disk, key)

    @classmethod
    def open(cls, path: Path | str, *, disk: Disk | None = None, key: Key | None = None) -> Collection:
        """Open what ``create`` made; raises NoCollection, NewerFormat or Damaged.

        key: signs the checkpoint of every change that is made through this handle.
        """
        return cls(Path(path), disk or Disk(), key)

    def close(self) -> None:
        """Close the record; snapshots that are already open go on answering."""
        self._newest = None
        self._catalogue.close()

    @property
    def set_id(self) -> str:
        """The collection's own name for itself; copies and renames keep it."""
        return self._catalogue.meta.set_id

    @property
    def dtype(self) -> str:
        """How rows are stored."""
        return self._catalogue.meta.dtype

    @property
    def embedded_by(self) -> str | None:
        """The fingerprint of the model whose embeddings lie beside rows, "" where nobody told; None without any."""
        return self._catalogue.embedded_by()

    # -- changing the set ------------------------------------------------------------------

    def add(
        self,
        rows: Tensor | ArrayLike,
        source_keys: Sequence[str],
        *,
        label: str | Sequence[str | None] | None = None,
        reason: str = "",
        by: str = "",
        sources: Sequence[Provenance | None] | None = None,
        embeddings: Tensor | ArrayLike | None = None,
        embedded_by: str = "",
    ) -> int:
        """Put rows in force under an in-house claim; when this returns they are on the disk. Returns the version.

        rows: (N, *S), torch or numpy; source_keys: N distinct upstream names.
        label: one for all rows, or one a row. sources: what is kept of each source image.
        embeddings: (N, E) for people's look-ups, kept in float16. embedded_by: the fingerprint of the model that made
        them; a set holds those of one model, and those of another raise SpaceMismatch.
        A key in force with the same bytes changes nothing (but for an in-house claim, where it had none); with
        other bytes it raises DuplicateKey. A key that was withdrawn comes back under a new id. Content that a claim
        or an erasure keeps out raises ContentRefused. All rows are added, or none.
        """
        given = self.incoming(
            rows, source_keys, label=label, sources=sources, embeddings=embeddings, embedded_by=embedded_by
        )
        return self.add_incoming(given, reason=reason, by=by)

    def incoming(
        self,
        rows: Tensor | ArrayLike,
        source_keys: Sequence[str],
        *,
        label: str | Sequence[str | None] | None = None,
        sources: Sequence[Provenance | None] | None = None,
        embeddings: Tensor | ArrayLike | None = None,
        embedded_by: str = "",
        finite: bool = False,
    ) -> Incoming:
        """Rows checked and hashed as ``add`` does first; changes nothing, and any thread may do it beside a change.

        They may share the memory of ``rows``, which stays as it is until they are added.
        finite: the caller has looked them through for NaN and Inf, in the type that they are stored as.
        """
        return incoming(self._store.meta, rows, source_keys, label, sources, embeddings, embedded_by, finite)

    def begun(self, given: Incoming) -> Incoming:
        """Such rows with their file being written already, if they are many; any thread may do it beside a change.

        It is swept, not named, unless they are added; ``close`` them when they are, or will not be.
        """
        return replace(given, draft=self._store.draft(given))

    def add_incoming(self, given: Incoming, *, reason: str = "", by: str = "") -> int:
        """``add`` of rows that ``incoming`` has checked; they go in once, since the salts that bind them are drawn."""
        words = {} if given.embeddings is None else {"embedded_by": given.embedded_by}
        with self._store.writing():
            sealed, ids = self._store.seal(given)
            fresh = {i for _, rows in sealed for i in rows.ids}
            known = self._without_in_house({key: i for key, i in ids.items() if i not in fresh})
            new = [*known, *sorted(fresh)]
            if not new:
                return self.newest().version
            with self._catalogue.together():
                with self._catalogue.change("add", Note(reason, by, words)) as change:
                    claim = change.open_claim(IN_HOUSE, "in_force")
                    change.store(sealed, in_force=True)
                    change.link(claim, new)
                    change.reckon(known)
                self._store.match(new)
        return change.version

    def withdraw(self, source_keys: Sequence[str], reason: str, *, by: str = "") -> int:
        """Take rows out of force from the next version on, closing their in-house claims; returns that version.

        The views of one image go together (``family``). Raises UnknownKey when a key is not in force, and ClaimLive
        when another claim stands behind a row; then nothing is withdrawn.
        """
        keys = self.family(check_keys(source_keys, len(source_keys)))
        if not keys:
            raise OutOfRange("no source key to withdraw; give at least one")
        with self._store.writing():
            held = {key: row_id for key, (row_id, _, live) in self._catalogue.held(keys).items() if live}
            missing = [key for key in keys if key not in held]
            if missing:
                raise UnknownKey(f"{some_are(missing)} not in force; `negindex status --keys` lists what is")
            return self._take_out([held[key] for key in keys], Note(reason, by))

    def dedup(self, reason: str, *, distance: int = NEAR, by: str = "") -> tuple[int, list[list[Member]]]:
        """Withdraw near-duplicates, so that one row an image stays; returns the version and what became of each row.

        ``duplicates`` says which; where there are none, nothing changes. Nothing is withdrawn by a comparison with a
        row that leaves meanwhile: both happen under the writer's lock.
        """
        with self._store.writing():
            groups = self.duplicates(distance=distance)
            gone = [one.row for group in groups for one in group if not one.stays]
            if not gone:
                return self.newest().version, groups
            return self._take_out(gone, Note(reason, by, {"near_duplicates_within": distance})), groups

    def _take_out(self, ids: Sequence[int], note: Note) -> int:
        self._store.check_unclaimed(ids)
        with self._catalogue.change("withdraw", note) as change:
            change.close_in_house(ids)
            change.reckon(ids)
        return change.version

    def erase(self, source_keys: Sequence[str], reason: str, *, by: str = "", keep_out: bool = False) -> int:
        """Remove rows' bytes and names everywhere, of every row that ever had one of the keys; returns the version.

        Rows that are in force leave it. Gone are segments, the record's rows and notes of claims on nothing else,
        journals, and this program's backups; versions that held the rows can no longer be opened. What a reader
        still holds is ``outstanding``: the erasure is pending until that list is empty (``settle``).
        keep_out: leave a keyed fingerprint that refuses the same bytes later; the choice is recorded.
        Raises UnknownKey, ClaimLive where a claim other than in-house ones is live, OnHold; then nothing is erased.
        """
        keys = self.family(check_keys(source_keys, len(source_keys)), ever=True)
        if not keys:
            raise OutOfRange("no source key to erase; give at least one")
        with self._store.writing():
            found = self._catalogue.ids_under(keys)
            missing = [key for key in keys if key not in found]
            if missing:
                raise UnknownKey(f"{some_are(missing)} in this set nowhere, and perhaps erased already")
            ids = sorted(i for key in keys for i in found[key])
            self._newest = None  # this handle's own view must not hold it up
            return self._store.erase(ids, Note(reason, by, {"keep_out": keep_out}), keep_out=keep_out)

    def settle(self) -> list[Outstanding]:
        """Finish what erasures owe, as far as readers let; returns what is still outstanding."""
        self._newest = None
        self._store.trouble.clear()
        with self._store.writing():
            pass
        return self.outstanding()

    def compact(
        self,
        forget_before: int | None = None,
        *,
        reason: str = "",
        by: str = "",
        index: bool = True,
        ahead: Ahead = nobody,
    ) -> int:
        """Merge small files and part withdrawn rows from those in force; returns how many files were rewritten.

        The index of a calibrated set is made anew where it lacks many rows (``reindex``), unless ``index`` is False.
        No version changes by it, unless old ones are given up: forget_before gives up the bytes of rows that only
        versions before it read; those versions can no longer be opened, and the log says so.
        """
        if forget_before is not None:
            self._catalogue.version(forget_before)
        with self._store.writing():
            if forget_before is not None:
                self._store.forget(forget_before, Note(reason, by))
            rewritten = self._store.compact()
        if index:
            self.reindex(ahead)
        return rewritten

    def reindex(self, ahead: Ahead = nobody) -> bool:
        """Make the index of a calibrated set anew where it is missing, damaged, or lacks many rows; whether it did.

        ahead: who is to hold the index before it is on record, and look-ups are answered by it. What it raises is
        raised, and the index on record stays.
        """
        rows = self.snapshot()
        calibration = self.calibration(rows.version)
        if calibration is None or is_small(rows) or self._store.is_indexed(rows, calibration.kernel):
            return False
        self._newest = None  # this handle's own view must not keep the old one
        return self._store.reindex(rows, calibration.kernel, ahead)

    def move_rows(self, to: str | None, *, cache_bytes: int | None = None) -> int:
        """Have rows lie elsewhere, ``to`` an address that fsspec knows, or in the set's own folder again (None).

        Every file is copied and read back there before one transaction names them all; no version changes by it.
        Returns how many files were moved. New rows go there from then on. Nobody else changes the set meanwhile;
        readers go on. cache_bytes: what rows that were read from there may take on this disk, 4 GiB where nobody says.
        Raises InvalidInput for an address with credentials, Unreachable, NotAllowed, Damaged; then nothing is moved.
        """
        self._newest = None
        return move(self._store, to, cache_bytes)

    @property
    def rows_at(self) -> str | None:
        """The address under which rows lie; None for the set's own folder."""
        return self._catalogue.place().url or None

    @property
    def rows_kept(self) -> tuple[int, int]:
        """Bytes that rows from elsewhere take on this disk now, and may take."""
        cache = self._store.segments.cache
        return cache.bytes(), cache.limit

    # -- calibration -----------------------------------------------------------------------

    def calibrate(
        self,
        reference: Negatives | None = None,
        *,
        seed: int = 0,
        by: str = "",
        reason: str = "",
        ahead: Ahead = nobody,
    ) -> Calibration:
        """Learn which kernel denoises the rows in force best, and answer by it from the next version on.

        reference: benign rows that count alike; those that are negatives too are left out. What was learned is a
        version of its own, on record by its checksum, and asked wherever nobody names a kernel. A large set gets an
        index, by which it answers in milliseconds; additions and withdrawals follow at once. Old versions go on
        being answered by what they were calibrated by. For the cost see ``negindex.calibrate`` and ``Mixture.build``.
        ahead: see ``reindex``; what it raises is raised, and nothing is changed.
        Raises OutOfRange for fewer than 200 rows, and what ``negindex.calibrate`` raises.
        """
        while True:
            rows = self.snapshot()
            other = None if reference is None else _less(reference.pin(), rows)
            learned = calibrate(rows, other, seed=seed)
            against = [] if other is None else [[origin.set_id, origin.version] for origin in other.origins]
            if self._keep(learned, rows, Note(reason, by, {"reference": against}), ahead) is not None:
                return learned

    def adopt(self, calibration: Calibration, *, by: str = "", reason: str = "", ahead: Ahead = nobody) -> int:
        """Answer by a calibration that was learned elsewhere, such as on a set that this one is the reference of.

        Returns the version. ahead: see ``reindex``. Raises ShapeMismatch where it is made for rows of another size.
        """
        projection, elements = calibration.kernel.projection, row_elements(self.shape)
        if projection is not None and projection.shape[1] != elements:
            raise ShapeMismatch(
                f"a calibration for rows of {projection.shape[1]} numbers, and these have {elements}; calibrate the set"
            )
        while True:
            version = self._keep(calibration, self.snapshot(), Note(reason, by), ahead)
            if version is not None:
                return version

    def calibration(self, version: int | None = None) -> Calibration | None:
        """The one in force at a version (the newest when None); None where there is none, or an erasure took it.

        Where an erasure took the newest, it is the newest of those that saw none of the erased rows.
        Raises UnknownVersion, and Damaged where it cannot be read.
        """
        number = (self.newest() if version is None else self._catalogue.version(version)).version
        record = self._catalogue.calibration(number)
        return None if record is None else self._store.derived.calibration(record)

    def derived(self) -> list[DerivedRecord]:
        """The files that follow from rows: calibrations and the index; name, checksum, the version that it covers."""
        return self._catalogue.derived()

    def index(self) -> Index | None:
        """The index on record that the newest version is answered by; None where there is none that can be read."""
        record = self._catalogue.calibration(self.newest().version)
        calibration = None if record is None else self._store.derived.calibration(record)
        index = None if calibration is None else self._store.derived.index(calibration.kernel)
        return index if index is not None and index.file in self._store.indices() else None

    def marks(self, ids: Sequence[int]) -> dict[int, tuple[int | None, int | None, str | None]]:
        """{id: (version that it came into force at, version that it left at, label)} of rows."""
        return self._catalogue.marks(ids)

    @property
    def engines(self) -> Engines:
        """The engines that hold what the index of this set holds."""
        return self._store.engines

    def unindexed(self) -> int | None:
        """Rows in force that the index lacks, which are scanned; None where there is no index on record."""
        record = self._catalogue.calibration(self.newest().version)
        index = None if record is None else self._catalogue.index_of(record.kernel)
        return None if index is None else self._catalogue.added_since(index.covers)

    def _keep(self, calibration: Calibration, rows: Snapshot, note: Note, ahead: Ahead) -> int | None:
        self._newest = None
        return self._store.keep(calibration, rows, note, ahead)

    # -- backups ---------------------------------------------------------------------------

    def backup(self, to: Path | str) -> Backup:
        """Copy the set, as it is at its newest version, to a new directory, whole or not at all.

        Readers and a writer go on meanwhile. What is erased later is taken out of the copy too, by ``settle`` and
        by every change, as soon as it can be reached. Raises NotAllowed where ``to`` exists, NotThere where its
        folder does not, and Damaged, naming the file, where bytes are not those on record.
        """
        made = backup.make(self._store, Path(to))
        if any(one.name == made.path for one in self.outstanding()):
            with suppress(Locked):  # it stays on the list
                self.settle()
        return made

    def backups(self) -> list[Kept]:
        """The backups on record: version, place, whether they look to be there, and which erasures they owe."""
        return backup.kept(self._store)

    def forget_backup(self, path: Path | str, *, by: str, reason: str = "") -> int:
        """Record, as a version, that somebody says that a backup is gone; nothing is owed to it any more.

        Raises NotThere where none is on record at ``path``, and NotAllowed while one lies there.
        """
        return backup.forget(self._store, Path(path), by=by, reason=reason)

    def remove_backup(self, path: Path | str) -> None:
        """Delete a backup that is on record, with what erasures owe it. No version changes by it.

        Raises NotThere where none is on record at ``path`` or it cannot be reached, NotAllowed where something else
        lies there, and Locked while an erasure is being taken out of it.
        """
        backup.remove(self._store, Path(path))

    @classmethod
    def restore(
        cls,
        backup_path: Path | str,
        path: Path | str,
        *,
        log: Path | str | None = None,
        key: Key | None = None,
        by: str = "",
        reason: str = "",
        disk: Disk | None = None,
    ) -> Collection:
        """Make the set of a backup at a new ``path``, whole or not at all; what came after it is re-applied.

        log: what the set's log said later: a file as `negindex log SET --json` prints it, or the directory of the
        old set, when its record can be read. Withdrawals, erasures, claims and holds after the backup follow from
        it, versions and roots stay those that they were, and rows that were stored later are out of force: their
        bytes are lost. Without it only erasures that had reached this backup are known. Either way the last
        version is ``restore``, and its record lists, as ``dropped``, the rows that are lost.
        Raises NotThere for no backup, NotAllowed where ``path`` exists or the log is of another history.
        """
        disk, later = disk or Disk(), None if log is None else Path(log)
        backup.restore(Path(backup_path), Path(path), disk, log=later, key=key, by=by, reason=reason)
        return cls(Path(path), disk, key)

    # -- reading it ------------------------------------------------------------------------

    @property
    def known_as(self) -> str:
        return self.set_id

    @property
    def address(self) -> str:
        return f"set {self.set_id} in {self.path}"

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The rows in force at a version (the newest when None), for as long as it is held.

        Raises UnknownVersion, and Erased where bytes that the version needs are gone.
        """
        return Snapshot(self._catalogue, *self._store.parts(version), self._store.derived)

    def pin(self) -> Snapshot:
        """The newest version; the same object while nothing changes."""
        newest = self._catalogue.number()
        with self._lock:
            if self._newest is None or self._newest.version != newest:
                last = self._newest
                parts = self._store.parts(None, None if last is None else (last.version, last.parts))
                before = None if last is None else last.so_far
                self._newest = Snapshot(self._catalogue, *parts, self._store.derived, before=before)
            return self._newest

    def let_go(self) -> None:
        """Keep no snapshot for the next pin, so that files that were replaced since can go."""
        with self._lock:
            self._newest = None

    def where(self, *, label: str) -> Labelled:
        """The rows under a label, followed as the collection is: a set of negatives of its own."""
        return Labelled(self, label)

    def newest(self) -> Version:
        """The version in force now: number, time, action, reason, rows changed, rows in force."""
        return self._catalogue.newest()

    def versions(self) -> list[Version]:
        """The whole history, oldest first."""
        return self._catalogue.versions()

    def version(self, number: int) -> Version:
        """One version; raises UnknownVersion."""
        return self._catalogue.version(number)

    def version_at(self, at: datetime) -> Version:
        """The version that was in force at a moment; raises UnknownVersion before the first."""
        return self._catalogue.version_at(at.astimezone(UTC).isoformat(timespec="milliseconds"))

    def in_force(self, version: int | None = None) -> dict[int, str | None]:
        """{id: source key} of the rows in force at a version, also one that can no longer be opened.

        The key is None once the row is erased.
        """
        number = self.newest().version if version is None else self._catalogue.version(version).version
        return dict(self._catalogue.in_force_at(number))

    def check_readable(self, version: int) -> None:
        """Raise Erased where bytes that a version needs are gone; UnknownVersion where there is none."""
        self._catalogue.check_readable(self._catalogue.version(version).version)

    def claims_at(self, version: int) -> dict[int, ClaimRecord]:
        """{number: regime, state and hold} of every claim as it stood at a version."""
        return claims_at(self._catalogue, version)

    def diff(self, before: int, after: int) -> Difference:
        """Which rows entered and left from one version to another, and which claims changed; either may be the older.

        Also of versions that can no longer be opened: an erased row has no key.
        """
        return difference(self._catalogue, before, after)

    def dead(self, before: int | None = None) -> Dead:
        """Rows, and their bytes, that ``compact(forget_before=before)`` gives up; the newest version when None."""
        return dead(self._catalogue, (self.newest() if before is None else self._catalogue.version(before)).version)

    def rows_under(self, source_keys: Sequence[str]) -> NDArray[np.floating]:
        """Rows as they are stored, (N, *S), that are in force or proposed under these keys. Raises UnknownKey."""
        keys = check_keys(source_keys, len(source_keys))
        with writer_lock(self.path):  # no file is replaced meanwhile
            held = self._catalogue.held(keys)
            if missing := [key for key in keys if key not in held]:
                raise UnknownKey(f"{some_are(missing)} not in the set; `negindex status --keys` lists what is in force")
            found = self._store.read([held[key][0] for key in keys])
        return found.rows[[found.keys.index(key) for key in keys]]

    def held(self, source_keys: Sequence[str]) -> dict[str, Held]:
        """{source key: the row in force under it, and what it was made of}; keys not in force are left out."""
        found = {row: key for key, (row, _, live) in self._catalogue.held(source_keys).items() if live}
        claims = self._catalogue.claims_on(list(found))
        ours = {row for row, some in claims.items() if any(claim.regime == IN_HOUSE for claim in some)}
        made = self._catalogue.made_of(list(found))
        return {found[row]: Held(row, digest, image, added, row in ours) for row, digest, image, added in made}

    def stored(self, ids: Sequence[int]) -> Incoming:
        """Rows as they were stored, with their keys, labels and what is kept of their sources, to be added elsewhere.

        Those whose bytes are gone are left out.
        """
        return self._store.read(ids)

    def stored_at(self, snapshot: Snapshot, most: int) -> Iterator[Incoming]:
        """The rows of a snapshot of this set likewise, all of them in the order of their ids, at most so many together.

        Embeddings of one block are of one size, or there are none. Files that others replace meanwhile are read to
        their end; rows that are erased meanwhile are left out.
        """
        return in_blocks(self._catalogue, snapshot.parts, most)

    def family(self, source_keys: Sequence[str], *, ever: bool = False) -> list[str]:
        """The keys with those of all views of the same images, which come and go together.

        An image is several rows in a set that tiles or mirrors (``geometry``); in others these are the keys alone.
        ever: of rows that were withdrawn too.
        """
        return self._catalogue.family(source_keys, ever)

    def ids_under(self, source_keys: Sequence[str]) -> dict[str, list[int]]:
        """{source key: ids of every row that has it}, in force or not; keys that no row has are left out."""
        return self._catalogue.ids_under(source_keys)

    def alike(
        self,
        looked_for: Sequence[Likeness],
        *,
        distance: int = NEAR,
        cosine: float | None = None,
        ever: bool = False,
    ) -> list[Alike]:
        """Rows that are these images, or near them: by bytes, by PDQ, by embedding; the surest and nearest first.

        Of rows in force or proposed; with ``ever`` also of those withdrawn. distance: bits of PDQ that may differ,
        where both qualities are at least 50. cosine: of embeddings, from it on; needed where any is given, and
        measured for the model that made them. A row is named once an image, by the surest way; of rows that are views
        of one image the surest and nearest is named alone.
        Raises ShapeMismatch for hashes or embeddings of another size, OutOfRange, InvalidInput.
        """
        found = alike(self._catalogue, self._store.segments, looked_for, distance=distance, cosine=cosine, ever=ever)
        if not self.geometry.is_many:
            return found
        return first_views(found, lambda one: (one.given, item_of(one.source_key), one.in_force))

    def alike_among(self, *, distance: int = NEAR, ever: bool = False) -> list[dict[int, str]]:
        """Groups of rows of the set that are near each other, by bytes or PDQ: {id: source key} of two or more.

        Link by link, so that the ends of a long group can be farther apart than ``distance``. Mirrored and turned
        copies stay apart: of a row only the hash of its image as it is was kept.
        """
        groups = groups_held(self._catalogue, distance=distance, ever=ever)
        keys = self._catalogue.source_keys([row for group in groups for row in group])
        known = ({row: keys[row] for row in group if row in keys} for group in groups)
        return [group for group in known if len({item_of(key) for key in group.values()}) > 1]

    def duplicates(self, *, distance: int = NEAR) -> list[list[Member]]:
        """Groups of rows in force that are near-duplicates, and which of them ``dedup`` would keep.

        A row goes only where one that stays, under the same label, has the same bytes or differs in at most
        ``distance`` bits of PDQ: of a long group, whose ends are unlike, several stay. Rows under a claim stay, then
        the oldest.
        """
        return duplicates(self._catalogue, distance=distance)

    def nearest_pdq(self, forms: Sequence[bytes], k: int) -> list[Neighbour]:
        """The k rows in force whose hashes differ least from an image's, mirrored and turned ones included."""
        return nearest_pdq(self._catalogue, forms, k)

    def nearest_embedding(self, embedding: NDArray[np.floating], k: int) -> list[Neighbour]:
        """The k rows in force with an embedding whose cosine with this one, of the same model, is largest."""
        return nearest_embedding(self._catalogue, self.pin().parts.values(), embedding, k)

    def keys_of(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key} of rows, in force or not; an erased row has none."""
        return self._catalogue.source_keys(ids)

    def row(self, row_id: int) -> RowRecord:
        """One row as the record has it, whatever became of it. Raises UnknownKey for a number that no row has."""
        return self._catalogue.row(row_id)

    def claims_on(self, ids: Sequence[int], *, ever: bool = False) -> dict[int, list[ClaimRecord]]:
        """{row id: the live claims that name it}; with ``ever`` all claims that do, or did."""
        return self._catalogue.claims_on(ids, ever)

    def barred(self, looked_for: Sequence[Likeness]) -> list[bool]:
        """Of each image, whether ``add`` refuses it: a hash-only claim names it or what is near, or an erasure."""
        return self._store.barred(looked_for)

    def log(self, start: int = 0, stop: int | None = None) -> list[Record]:
        """The log's records, without personal data, from one version up to another (left out)."""
        return self._catalogue.records(start, stop)

    def checkpoint(self, version: int | None = None) -> Checkpoint:
        """The log's root at a version, signed where a key was given when it was made."""
        return self._catalogue.checkpoint(self.newest().version if version is None else version)

    def verify(self, checkpoints: Sequence[Checkpoint] = ()) -> list[Fault]:
        """Everything that is not as it was written, in the record or in the files; [] when all is.

        checkpoints: exported before and kept elsewhere. Without one, a roll-back of the whole set, or the end of its
        log cut off with all that hangs on it, cannot be told.
        """
        return verify(self.path, checkpoints).faults

    def source_keys(self, label: str | None = None) -> list[str]:
        """The source keys in force, sorted; those under one label when it is given."""
        return self._catalogue.keys_in_force(label)

    def segments(self) -> list[SegmentRecord]:
        """The sealed files: name, rows, bytes, checksum, versions that its rows came into force at."""
        return self._catalogue.segments()

    def outstanding(self) -> list[Outstanding]:
        """What holds erased bytes still: files that readers have open, the journal, backups, engines out of reach."""
        return self._catalogue.outstanding()

    def holders(self, one: Outstanding) -> list[Holder]:
        """The processes that keep a file from being let go, as far as this system tells."""
        return self._store.holders(one)

    def __len__(self) -> int:
        return self.newest().in_force

    # -- inside ----------------------------------------------------------------------------

    def _without_in_house(self, ids: Mapping[str, int]) -> list[int]:
        """Those of the rows that no in-house claim names yet."""
        claims = self._catalogue.claims_on(list(ids.values()))
        return [i for i in ids.values() if not any(claim.regime == IN_HOUSE for claim in claims.get(i, ()))]


def _less(reference: Negatives, negatives: Snapshot) -> Scan:
    """The rows of a pinned reference that are not negatives too."""
    rows = reference.rows if isinstance(reference, Labelled) else reference
    left = rows.without(negatives.holds(rows.digests().values()))
    if not isinstance(left, Scan):
        raise InvalidInput(f"a reference of kind {type(reference).__name__}; give a collection, a snapshot or rows")
    return left
