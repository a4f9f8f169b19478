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
from collections.abc import Collection as AbstractCollection
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from numpy.typing import ArrayLike
from torch import Tensor

from negindex.catalogue import Catalogue
from negindex.checkpoint import Checkpoint
from negindex.claims import Claims
from negindex.disk import Disk
from negindex.errors import InvalidInput, NotAllowed, OutOfRange, UnknownKey
from negindex.incoming import check_keys, incoming, some_are
from negindex.keys import Key
from negindex.labelled import Labelled
from negindex.log import Record
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Negatives, Query, Reach, row_elements
from negindex.partial import Origin, Partial
from negindex.schema import IN_HOUSE
from negindex.segments import Holder
from negindex.snapshot import Snapshot
from negindex.states import Meta, Note, Outstanding, Provenance, SegmentRecord, Version
from negindex.store import CATALOGUE, SEGMENTS, Store

DTYPES = ("float16", "float32")


class Collection(Negatives):
    """A directory of rows with a record of what is in force; a ``Negatives`` that follows.

    Pinning it gives the newest version each time; ``snapshot`` gives one that never follows. Several
    processes may read while one writes.
    """

    def __init__(self, path: Path, disk: Disk, key: Key | None = None) -> None:
        self.path = path
        self._store = Store(path, disk, key)
        self._catalogue = self._store.catalogue
        self.shape, self.space = self._store.meta.shape, self._store.meta.space
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
        ``sampler.encode.space_of`` says of a pipeline. dtype: how rows are stored, float16 or float32.
        key: signs the log's checkpoints; give it to ``open`` too.
        Raises NotAllowed where something stands already.
        """
        path = Path(path)
        row_elements(tuple(shape))
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
    ) -> int:
        """Put rows in force under an in-house claim; when this returns they are on the disk. Returns the version.

        rows: (N, *S), torch or numpy; source_keys: N distinct upstream names.
        label: one for all rows, or one a row. sources: what is kept of each source image.
        embeddings: (N, E) for people's look-ups, kept in float16.
        A key in force with the same bytes changes nothing (but for an in-house claim, where it had none); with
        other bytes it raises DuplicateKey. A key that was withdrawn comes back under a new id. Content that a claim
        or an erasure keeps out raises ContentRefused. All rows are added, or none.
        """
        given = incoming(self._store.meta, rows, source_keys, label, sources, embeddings)
        with self._store.writing():
            sealed, ids = self._store.seal(given)
            new = self._without_in_house(ids)
            if not new:
                return self.newest().version
            with self._catalogue.change("add", Note(reason, by)) as change:
                claim = change.open_claim(IN_HOUSE, "in_force")
                change.store(sealed)
                change.link(claim, new)
                change.reckon(new)
            self._store.match(new)
        return change.version

    def withdraw(self, source_keys: Sequence[str], reason: str, *, by: str = "") -> int:
        """Take rows out of force from the next version on, closing their in-house claims; returns that version.

        Raises UnknownKey when a key is not in force, and ClaimLive when another claim stands behind a row; then
        nothing is withdrawn.
        """
        keys = check_keys(source_keys, len(source_keys))
        if not keys:
            raise OutOfRange("no source key to withdraw; give at least one")
        with self._store.writing():
            held = {key: row_id for key, (row_id, _, live) in self._catalogue.held(keys).items() if live}
            missing = [key for key in keys if key not in held]
            if missing:
                raise UnknownKey(f"{some_are(missing)} not in force; `negindex status --keys` lists what is")
            ids = [held[key] for key in keys]
            self._store.check_unclaimed(ids)
            with self._catalogue.change("withdraw", Note(reason, by)) as change:
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
        keys = check_keys(source_keys, len(source_keys))
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
        with self._store.writing():
            pass
        return self.outstanding()

    def compact(self, forget_before: int | None = None, *, reason: str = "", by: str = "") -> int:
        """Merge small files and part withdrawn rows from those in force; returns how many files were rewritten.

        No version changes by it, unless old ones are given up: forget_before gives up the bytes of rows that only
        versions before it read; those versions can no longer be opened, and the log says so.
        """
        if forget_before is not None:
            self._catalogue.version(forget_before)
        with self._store.writing():
            if forget_before is not None:
                self._store.forget(forget_before, Note(reason, by))
            return self._store.compact()

    # -- reading it ------------------------------------------------------------------------

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The rows in force at a version (the newest when None), for as long as it is held.

        Raises UnknownVersion, and Erased where bytes that the version needs are gone.
        """
        return Snapshot(self._catalogue, *self._store.parts(version))

    def pin(self) -> Snapshot:
        """The newest version; the same object while nothing changes."""
        newest = self.newest().version
        with self._lock:
            if self._newest is None or self._newest.version != newest:
                known = None if self._newest is None else (self._newest.version, self._newest.parts)
                self._newest = Snapshot(self._catalogue, *self._store.parts(None, known))
            return self._newest

    def where(self, *, label: str) -> Labelled:
        """The rows under a label, followed as the collection is: a set of negatives of its own."""
        return Labelled(self, label)

    def newest(self) -> Version:
        """The version in force now: number, time, action, reason, rows changed, rows in force."""
        return self._catalogue.newest()

    def versions(self) -> list[Version]:
        """The whole history, oldest first."""
        return self._catalogue.versions()

    def version_at(self, at: datetime) -> Version:
        """The version that was in force at a moment; raises UnknownVersion before the first."""
        return self._catalogue.version_at(at.astimezone(UTC).isoformat(timespec="milliseconds"))

    def in_force(self, version: int | None = None) -> dict[int, str | None]:
        """{id: source key} of the rows in force at a version, also one that can no longer be opened.

        The key is None once the row is erased.
        """
        number = self.newest().version if version is None else self._catalogue.version(version).version
        return dict(self._catalogue.in_force_at(number))

    def log(self, start: int = 0, stop: int | None = None) -> list[Record]:
        """The log's records, without personal data, from one version up to another (left out)."""
        return self._catalogue.records(start, stop)

    def checkpoint(self, version: int | None = None) -> Checkpoint:
        """The log's root at a version, signed where a key was given when it was made."""
        return self._catalogue.checkpoint(self.newest().version if version is None else version)

    def source_keys(self, label: str | None = None) -> list[str]:
        """The source keys in force, sorted; those under one label when it is given."""
        return self._catalogue.keys_in_force(label)

    def segments(self) -> list[SegmentRecord]:
        """The sealed files: name, rows, bytes, checksum, versions that its rows came into force at."""
        return self._catalogue.segments()

    def outstanding(self) -> list[Outstanding]:
        """What holds erased bytes still: files that readers have open, the journal, backups out of reach."""
        return self._catalogue.outstanding()

    def holders(self, one: Outstanding) -> list[Holder]:
        """The processes that keep a file from being let go, as far as this system tells."""
        return self._store.holders(one)

    def __len__(self) -> int:
        return self.newest().in_force

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.pin().origins

    def answer(self, query: Query) -> Partial:
        return self.pin().answer(query)

    def nearest(self, reach: Reach) -> Near:
        return self.pin().nearest(reach)

    def moments(self) -> Moments:
        return self.pin().moments()

    def digests(self) -> dict[int, str]:
        return self.pin().digests()

    def holds(self, digests: AbstractCollection[str]) -> set[str]:
        return self.pin().holds(digests)

    def without(self, digests: AbstractCollection[str]) -> Snapshot:
        return self.pin().without(digests)

    # -- inside ----------------------------------------------------------------------------

    def _without_in_house(self, ids: Mapping[str, int]) -> list[int]:
        """Those of the rows that no in-house claim names yet."""
        claims = self._catalogue.claims_on(list(ids.values()))
        return [i for i in ids.values() if not any(claim.regime == IN_HOUSE for claim in claims.get(i, ()))]
