"""A named set of rows that changes: every change is one version, and old versions stay as they were.

Write order, with what a crash in each gap leaves behind:

1. the rows' file is written aside          a file ending in .aside, swept at the next writer's open
2. fsync, rename, fsync of the directory    a finished file that nothing names, swept likewise
3. one SQLite transaction                   the sole commit point: the new version is in force
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Collection as AbstractCollection
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from negindex.catalogue import Catalogue, Meta, NewRow, SegmentRecord, Version
from negindex.disk import Disk, writer_lock
from negindex.errors import (
    DuplicateKey,
    InvalidInput,
    Locked,
    NotAllowed,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    UnknownKey,
)
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Negatives, Query, Reach, row_elements
from negindex.partial import Origin, Partial
from negindex.segment import SEGMENT_BYTES, Segment, write_segment
from negindex.snapshot import Snapshot
from negindex.text import is_unicode

DTYPES = ("float16", "float32")
_CATALOGUE, _SEGMENTS = "catalogue.sqlite", "segments"


class Collection(Negatives):
    """A directory of rows with a record of what is in force; a ``Negatives`` that follows.

    Pinning it gives the newest version each time; ``snapshot`` gives one that never follows. Several
    processes may read while one writes.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self._disk = path, disk
        self._catalogue = Catalogue(path / _CATALOGUE, disk)
        self.shape, self.space = self._catalogue.meta.shape, self._catalogue.meta.space
        self._segments: dict[str, Segment] = {}
        self._newest: Snapshot | None = None
        self._lock = threading.Lock()
        self._sweep()

    @classmethod
    def create(
        cls, path: Path | str, shape: Sequence[int], space: str, *, dtype: str = "float16", disk: Disk | None = None
    ) -> Collection:
        """Make an empty collection at version 0, whole or not at all.

        shape: one row's shape, such as (4, 64, 64). space: what the rows are, "pixels" or what
        ``sampler.encode.space_of`` says of a pipeline. dtype: how rows are stored, float16 or float32.
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
        (aside / _SEGMENTS).mkdir(parents=True)
        disk = disk or Disk()
        Catalogue.create(aside / _CATALOGUE, Meta(uuid.uuid4().hex, tuple(shape), space, dtype))
        disk.sync_directory(aside)
        disk.rename(aside, path)
        disk.sync_directory(path.parent)
        return cls(path, disk)

    @classmethod
    def open(cls, path: Path | str, *, disk: Disk | None = None) -> Collection:
        """Open what ``create`` made; raises NoCollection, NewerFormat or Damaged."""
        return cls(Path(path), disk or Disk())

    def close(self) -> None:
        """Close the record; snapshots that are already open go on answering."""
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
    ) -> int:
        """Put rows in force; when this returns they are on the disk. Returns the version.

        rows: (N, *S), torch or numpy; source_keys: N distinct upstream names.
        label: one for all rows, or one a row.
        A key in force with the same bytes changes nothing; with other bytes it raises DuplicateKey.
        A key that was withdrawn comes back under a new id. All rows are added, or none.
        """
        stored = self._as_stored(rows)
        keys, labels = _check_keys(source_keys, len(stored)), _spread(label, len(stored))
        digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in stored]
        with writer_lock(self.path):
            known = self._catalogue.in_force(keys)
            other = [key for key, digest in zip(keys, digests, strict=True) if known.get(key, (0, digest))[1] != digest]
            if other:
                raise DuplicateKey(
                    f"{_some(other)} in force with other bytes; withdraw first, or use another key", other
                )
            fresh = np.array([i for i, key in enumerate(keys) if key not in known], np.int64)
            if not len(fresh):
                return self.newest().version
            ids = self._catalogue.next_id() + np.arange(len(fresh), dtype=np.int64)
            step = max(1, SEGMENT_BYTES // stored[0].nbytes)
            files = []
            for start in range(0, len(fresh), step):
                part = fresh[start : start + step]
                new = [
                    NewRow(int(ids[start + place]), keys[i], labels[i], digests[i], place)
                    for place, i in enumerate(part)
                ]
                files.append((self._seal(stored[part], ids[start : start + step]), new))
            return self._catalogue.add(files, reason)

    def withdraw(self, source_keys: Sequence[str], reason: str) -> int:
        """Take rows out of force from the next version on; returns that version.

        Raises UnknownKey when a key is not in force; then nothing is withdrawn.
        """
        keys = _check_keys(source_keys, len(source_keys))
        if not keys:
            raise OutOfRange("no source key to withdraw; give at least one")
        with writer_lock(self.path):
            known = self._catalogue.in_force(keys)
            missing = [key for key in keys if key not in known]
            if missing:
                raise UnknownKey(f"{_some(missing)} not in force; `negindex status --keys` lists what is")
            return self._catalogue.withdraw([known[key][0] for key in keys], reason)

    # -- reading it ------------------------------------------------------------------------

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The rows in force at a version (the newest when None), for as long as it is held."""
        with self._catalogue.reading():
            number = self.newest().version if version is None else self._catalogue.version(version).version
            records = self._catalogue.segments(number)
            gone: dict[int, list[int]] = {record.segment: [] for record in records}
            for segment, place in self._catalogue.withdrawn(number):
                gone[segment].append(place)
        parts = []
        for record in records:
            places = np.delete(np.arange(record.rows, dtype=np.int64), gone[record.segment])
            if len(places):
                parts.append((self._segment(record), places))
        return Snapshot(self._catalogue, number, parts)

    def pin(self) -> Snapshot:
        """The newest version; the same object while nothing changes."""
        newest = self.newest().version
        with self._lock:
            if self._newest is None or self._newest.version != newest:
                self._newest = self.snapshot(newest)
            return self._newest

    def newest(self) -> Version:
        """The version in force now: number, time, action, reason, rows changed, rows in force."""
        return self._catalogue.newest()

    def versions(self) -> list[Version]:
        """The whole history, oldest first."""
        return self._catalogue.versions()

    def source_keys(self, label: str | None = None) -> list[str]:
        """The source keys in force, sorted; those under one label when it is given."""
        return self._catalogue.keys_in_force(label)

    def segments(self) -> list[SegmentRecord]:
        """The sealed files: name, rows, bytes, checksum, version that added each."""
        return self._catalogue.segments()

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

    def _as_stored(self, rows: Tensor | ArrayLike) -> NDArray[np.floating]:
        if isinstance(rows, Tensor):  # numpy has no bfloat16
            rows = rows.detach().cpu().to(torch.float32 if rows.dtype == torch.bfloat16 else rows.dtype)
        array = np.asarray(rows)
        if array.ndim < 1 or array.shape[1:] != self.shape:
            raise ShapeMismatch(
                f"rows of shape {array.shape} for a collection of {self.shape} rows; give (N, *{self.shape})"
            )
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, dtype=self.dtype)
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=tuple(range(1, stored.ndim))))
        if len(bad):
            raise NotFinite(
                f"{len(bad)} of {len(stored)} rows hold NaN, Inf, or values beyond {self.dtype}'s "
                f"{np.finfo(self.dtype).max:g} (first at {bad[:10].tolist()}); leave them out"
            )
        return stored

    def _seal(self, rows: NDArray[np.floating], ids: NDArray[np.int64]) -> SegmentRecord:
        file = f"{ids[0]:012d}-{uuid.uuid4().hex[:8]}.h5"
        path = self.path / _SEGMENTS / file
        digest = write_segment(self._disk, path, self.set_id, rows, ids)
        return SegmentRecord(0, file, len(ids), path.stat().st_size, digest, 0)

    def _segment(self, record: SegmentRecord) -> Segment:
        if record.file not in self._segments:
            path = self.path / _SEGMENTS / record.file
            self._segments[record.file] = Segment(path, self.set_id, self.shape, record.rows, record.bytes, self.dtype)
        return self._segments[record.file]

    def _sweep(self) -> None:
        """Remove what a crashed writer left; skipped while another writer is at work."""
        try:
            with writer_lock(self.path, wait=0):
                named = {record.file for record in self._catalogue.segments()}
                for path in (self.path / _SEGMENTS).glob("*.h5*"):
                    if path.name not in named:
                        path.unlink()
        except Locked:
            pass


def _check_keys(source_keys: Sequence[str], rows: int) -> list[str]:
    if isinstance(source_keys, str):
        raise InvalidInput(f"source_keys is the text {source_keys!r}; give a list of keys")
    keys = list(source_keys)
    if len(keys) != rows:
        raise ShapeMismatch(f"{len(keys)} source keys for {rows} rows; give one key a row")
    strange = [key for key in keys if not (key and is_unicode(key))]
    if strange:
        raise InvalidInput(
            f"{_some(strange)} no source key: empty, or no Unicode text; give each row its upstream's name"
        )
    if len(set(keys)) != len(keys):
        twice = [key for key, times in Counter(keys).items() if times > 1]
        raise DuplicateKey(f"{_some(twice)} given more than once in one call; give each key once")
    return keys


def _spread(label: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
    label = [label] * rows if label is None or isinstance(label, str) else label
    if len(label) != rows:
        raise ShapeMismatch(f"{len(label)} labels for {rows} rows; give one for all, or one a row")
    strange = [one for one in label if not (one is None or is_unicode(one))]
    if strange:
        raise InvalidInput(f"{_some(strange)} no label; give Unicode text, or None")
    return list(label)


def _some(keys: Sequence[object]) -> str:
    shown = ", ".join(repr(key) for key in keys[:5])
    return f"{shown} and {len(keys) - 5} more are" if len(keys) > 5 else f"{shown} {'is' if len(keys) == 1 else 'are'}"
