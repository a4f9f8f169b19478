"""A collection as it was at one version: immutable, and itself a set of negatives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.catalogue import Catalogue
from negindex.checkpoint import Checkpoint
from negindex.exact import Block, Scan, check_places
from negindex.partial import Origin
from negindex.segment import Segment

Parts = Mapping[str, tuple[Segment, NDArray[np.int64]]]  # file: it, and the sorted places of its rows in force


class Snapshot(Scan):
    """The rows in force at ``version``. It never changes and never follows; ``len`` is its rows in force."""

    def __init__(
        self, catalogue: Catalogue, version: int, parts: Mapping[str, tuple[Segment, NDArray[np.int64]]]
    ) -> None:
        """parts: the sealed files by name, each with the sorted places of its rows in force."""
        self.version, self.parts = version, parts
        self.shape, self.space = catalogue.meta.shape, catalogue.meta.space
        self._catalogue = catalogue
        self._parts = [(segment, places) for segment, places in parts.values() if len(places)]
        self._count = sum(len(places) for _, places in self._parts)

    def __len__(self) -> int:
        return self._count

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (Origin(self._catalogue.meta.set_id, self.version),)

    @property
    def checkpoint(self) -> Checkpoint:
        """The log's root at this version, signed where a key was given when it was made."""
        return self._catalogue.checkpoint(self.version)

    def blocks(self, size: int) -> Iterator[Block]:
        for segment, places in self._parts:
            for start in range(0, len(places), size):
                some = places[start : start + size]
                rows = _read(segment.rows, some)
                yield Block(torch.from_numpy(segment.ids[some]), torch.from_numpy(rows).flatten(1))

    def take(self, places: Tensor) -> Block:
        check_places(places, len(self))
        order = np.argsort(places.numpy(), kind="stable")  # each file is read once, and forwards
        asked, ids, rows = places.numpy()[order], np.empty(len(order), np.int64), None
        start = 0
        for segment, own in self._parts:
            here = slice(*np.searchsorted(asked, (start, start + len(own))))
            if here.start < here.stop:
                some = own[asked[here] - start]
                rows = np.empty((len(order), *self.shape), segment.rows.dtype) if rows is None else rows
                ids[order[here]], rows[order[here]] = segment.ids[some], segment.take(some)
            start += len(own)
        found = torch.empty(0, *self.shape) if rows is None else torch.from_numpy(rows)
        return Block(torch.from_numpy(ids), found.flatten(1))

    def where(self, *, label: str) -> Snapshot:
        """The rows that were added under ``label``: a set of negatives of its own."""
        wanted = np.array(self._catalogue.labelled(label), np.int64)
        return self._view(lambda segment, places: places[np.isin(segment.ids[places], wanted)])

    def digests(self) -> dict[int, str]:
        return self._catalogue.digests([int(i) for segment, places in self._parts for i in segment.ids[places]])

    def holds(self, digests: Collection[str]) -> set[str]:
        return {digest for digest, row_ids in self._with(digests).items() if len(row_ids)}

    def without(self, digests: Collection[str]) -> Snapshot:
        gone = [row_id for row_ids in self._with(digests).values() for row_id in row_ids]
        if not gone:
            return self
        return self._view(lambda segment, places: places[~np.isin(segment.ids[places], gone)])

    def _view(self, chosen: Callable[[Segment, NDArray[np.int64]], NDArray[np.int64]]) -> Snapshot:
        """Some of the rows, at the same version."""
        parts = {file: (segment, chosen(segment, places)) for file, (segment, places) in self.parts.items()}
        return Snapshot(self._catalogue, self.version, parts)

    def _with(self, digests: Collection[str]) -> dict[str, list[int]]:
        """{digest: ids of the rows in this view that have it}."""
        known = self._catalogue.ids_with(sorted(digests))
        everywhere = np.array([row_id for row_ids in known.values() for row_id in row_ids], np.int64)
        here = {int(i) for segment, places in self._parts for i in np.intersect1d(everywhere, segment.ids[places])}
        return {digest: [i for i in row_ids if i in here] for digest, row_ids in known.items()}

    def source_keys(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key} of rows that an answer names."""
        return self._catalogue.source_keys(ids)


def _read(rows: NDArray[np.generic], places: NDArray[np.int64]) -> NDArray[np.generic]:
    """Copy rows out of the map; sorted places without gaps are one sequential read."""
    first, last = int(places[0]), int(places[-1])
    whole = last - first + 1 == len(places)
    return np.array(rows[first : last + 1]) if whole else rows[places]
