"""The rows of a collection under one label: a set of negatives of its own, which follows as the collection does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from negindex.checkpoint import Checkpoint
from negindex.errors import EmptySet
from negindex.kernel import Kernel
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Negatives, Query, Reach
from negindex.partial import Origin, Partial
from negindex.snapshot import Snapshot


class Following(Protocol):
    """What a view is taken of: a collection, or whatever else pins to snapshots."""

    shape: tuple[int, ...]
    space: str

    def pin(self) -> Snapshot: ...


class Labelled(Negatives):
    """The rows in force under ``label``; pinning it gives those of the collection's newest version.

    Its origin is SET_ID#LABEL, so that receipts tell the views of one set apart. A label that no row in force
    has is a state that comes and goes with takedowns: the view is then empty, ``len`` is 0, and a look-up raises
    EmptySet and names the label. It never says "nothing near".
    """

    def __init__(self, collection: Following, label: str, rows: Snapshot | None = None) -> None:
        """rows: those that a pinned view holds; None for a view that follows ``collection``."""
        self.collection, self.label = collection, label
        self.shape, self.space = collection.shape, collection.space
        self._rows = rows
        self._latest: tuple[Snapshot, Labelled] | None = None

    @property
    def rows(self) -> Snapshot:
        """The rows in force under the label now, or at the version that the view was pinned to."""
        return self.pin().rows if self._rows is None else self._rows

    def pin(self) -> Labelled:
        """The view at the newest version; the same object while nothing changes."""
        if self._rows is not None:
            return self
        newest, latest = self.collection.pin(), self._latest
        if latest is None or latest[0] is not newest:
            latest = (newest, Labelled(self.collection, self.label, newest.where(label=self.label)))
            self._latest = latest
        return latest[1]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(Origin(f"{origin.set_id}#{self.label}", origin.version) for origin in self.rows.origins)

    @property
    def checkpoint(self) -> Checkpoint:
        """The log's root at the version of these rows."""
        return self.rows.checkpoint

    @property
    def default_kernel(self) -> Kernel:
        return self.rows.default_kernel

    def answer(self, query: Query) -> Partial:
        pinned = self.pin()
        return replace(pinned.rows.answer(query), origins=pinned.origins)

    def nearest(self, reach: Reach) -> Near:
        pinned = self.pin()
        return pinned.rows.nearest(reach)._replace(origins=pinned.origins)

    def moments(self) -> Moments:
        return self.rows.moments()

    def digests(self) -> dict[int, str]:
        return self.rows.digests()

    def holds(self, digests: Collection[str]) -> set[str]:
        return self.rows.holds(digests)

    def without(self, digests: Collection[str]) -> Labelled:
        return Labelled(self.collection, self.label, self.rows.without(digests))

    def source_keys(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key} of rows that an answer names."""
        return self.rows.source_keys(ids)

    def _check_samples(self, x: Tensor) -> None:
        self.check_has_rows()
        super()._check_samples(x)

    def check_has_rows(self) -> None:
        """Raise EmptySet, naming the label, where no row in force has it."""
        if not len(self):
            raise EmptySet(
                f"the label {self.label!r} has no row in force, so nothing can be said about what is near; "
                "add rows under it, or leave the label out"
            )
