"""A collection as it was at one version: immutable, and itself a set of negatives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.catalogue import Catalogue
from negindex.checkpoint import Checkpoint
from negindex.derived import Derived
from negindex.errors import Damaged, Erased, NotAllowed
from negindex.exact import Block, Scan, check_places
from negindex.index import Index, is_small
from negindex.kernel import LITERAL, Kernel
from negindex.mixture import READ_ROWS, Mixture
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Query, Reach
from negindex.partial import Origin, Partial
from negindex.segment import Segment

Parts = Mapping[str, tuple[Segment, NDArray[np.int64]]]  # file: it, and the sorted places of its rows in force
_AHEAD = 4  # blocks that the disk is asked for before they are read
_ASKED = 1 << 16  # rows of which a snapshot remembers that the record was asked


@dataclass(frozen=True, eq=False)
class Split:
    """How a calibrated set is asked: rows that the index holds by the mixture, those that came since by a scan."""

    index: Index
    mixture: Mixture
    rest: Snapshot
    scale: float  # rms radius of the mixture's rows over that of all


class Snapshot(Scan):
    """The rows in force at ``version``. It never changes and never follows; ``len`` is its rows in force.

    Where the set was calibrated, a large one is asked by a mixture, in milliseconds and with a stated error, when the
    calibrated kernel is; the literal one is answered by the same index, and every other one by a scan.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        version: int,
        parts: Mapping[str, tuple[Segment, NDArray[np.int64]]],
        derived: Derived | None = None,
        *,
        before: Split | None = None,
        whole: bool = True,
    ) -> None:
        """parts: the sealed files by name, each with the sorted places of its rows in force.

        derived: None where there is nothing but rows. before: how an earlier version was asked, to start from.
        whole: whether these are all rows in force, and an index may be built of them.
        """
        self.version, self.parts = version, parts
        self.shape, self.space = catalogue.meta.shape, catalogue.meta.lies_in
        self._catalogue, self._derived, self._whole = catalogue, derived, whole
        self._record = None if derived is None else catalogue.calibration(version)
        follows = before is not None and self._record is not None and before.index.kernel == self._record.kernel
        self._before = before if follows else None
        self._split: Split | None = None
        self._was_split = False
        self._lock = threading.Lock()
        self._in_force: set[int] = set()  # of what the record was asked; what a version holds never changes
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

    @cached_property
    def default_kernel(self) -> Kernel:
        """The calibrated one, else the literal one; raises Damaged where the calibration cannot be read."""
        if self._record is None or self._derived is None:
            return LITERAL
        calibration = self._derived.calibration(self._record)
        return LITERAL if calibration is None else calibration.kernel

    def answer(self, query: Query) -> Partial:
        split = self._split_for(query.kernel)
        if split is None:
            return super().answer(query)
        error = None if query.error is None else query.error / split.scale
        told = split.mixture.answer(replace(query, error=error))
        told = replace(told, error=told.error * split.scale)
        return query.merge(told, split.rest.answer(query)) if len(split.rest) else told

    def nearest(self, reach: Reach) -> Near:
        split = self._standing()
        if split is None:
            return super().nearest(reach)
        told = split.mixture.nearest(reach)
        return reach.merge(told, split.rest.nearest(reach)) if len(split.rest) else told

    def moments(self) -> Moments:
        split = self._standing()
        return super().moments() if split is None else Moments.merge(split.mixture.moments(), split.rest.moments())

    def _standing(self) -> Split | None:
        """The split by the calibrated kernel where an index of it stands already: what needs none builds none."""
        if self._record is None or self._derived is None or is_small(self):
            return None
        with suppress(Damaged, NotAllowed):  # no calibration that can be read, or no record: there are still the rows
            kernel = self.default_kernel
            if kernel.fingerprint != self._record.kernel:
                return None
            index = None if self._was_split else self._derived.index(kernel)  # held here, so that it is read once
            if self._was_split or index is not None:
                return self.split(kernel)
        return None

    def _split_for(self, kernel: Kernel) -> Split | None:
        """None where the rows are scanned."""
        if self._record is None or is_small(self):
            return None
        if self._record.kernel == kernel.fingerprint:
            return self.split(kernel)
        if kernel != LITERAL or len(self) < READ_ROWS:
            return None
        with suppress(Damaged):  # without its calibration the set is scanned for other kernels
            split = self.split(self.default_kernel)
            return split if split is not None and split.mixture.models(kernel) else None
        return None

    def split(self, kernel: Kernel) -> Split | None:
        """How the calibrated kernel is answered; made when it is first asked. None where a scan is the better way.

        Without an index that can be used, one is built in memory.
        """
        with self._lock:
            if not self._was_split:
                with suppress(NotAllowed):  # the record was closed: the rows are still there to be scanned
                    self._split = self._made(kernel, self._before)
                self._was_split, self._before = True, None
            return self._split

    @property
    def so_far(self) -> Split | None:
        """What a later version may start from."""
        return self._split or self._before

    def _made(self, kernel: Kernel, before: Split | None) -> Split | None:
        assert self._derived is not None
        index = self._derived.index(kernel)
        if index is not None:
            try:
                return self._over(index, before.mixture if before is not None and before.index is index else None)
            except (Erased, Damaged):  # rows that it holds have no bytes any more: it cannot follow
                pass
        return self._over(self._derived.remember(Index.build(self, kernel)), None) if self._whole else None

    def _over(self, index: Index, before: Mixture | None) -> Split | None:
        assert self._derived is not None
        numbers = {file: index.numbers_of(segment.ids[places]) for file, (segment, places) in self.parts.items()}
        held = self._scanned({file: numbers[file] >= 0 for file in numbers})
        rest = self._scanned({file: numbers[file] < 0 for file in numbers})
        if not len(held):
            return None
        known = np.concatenate([some[some >= 0] for some in numbers.values()])
        mixture = index.over(held, known, self._derived.fetch, None if before is None else before.clusters)
        if mixture is None:
            return None
        of_all = Moments.merge(mixture.moments(), rest.moments())
        return Split(index, mixture, rest, mixture.clusters.rms / max(of_all.rms, 1e-300))

    def _scanned(self, chosen: Mapping[str, NDArray[np.bool_]]) -> Snapshot:
        """Some of the rows, by a mask for each file, to be scanned whatever the kernel is."""
        parts = {file: (segment, places[chosen[file]]) for file, (segment, places) in self.parts.items()}
        return Snapshot(self._catalogue, self.version, parts)

    def blocks(self, size: int) -> Iterator[Block]:
        parts = [(one, some[at : at + size]) for one, some in self._parts for at in range(0, len(some), size)]
        for number, (segment, places) in enumerate(parts):
            for following, soon in parts[number + _AHEAD if number else 1 : number + 1 + _AHEAD]:
                _expect(following, soon)
            rows = _read(segment.rows, places)
            yield Block(torch.from_numpy(segment.ids[places]), torch.from_numpy(rows).flatten(1))

    def take(self, places: Tensor) -> Block:
        check_places(places, len(self))
        order = np.argsort(places.numpy(), kind="stable")  # each file is read once, and forwards
        asked, ids, rows = places.numpy()[order], np.empty(len(order), np.int64), None
        bounds = np.searchsorted(asked, self._starts)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            segment, own = self._parts[number]
            first, last = bounds[number : number + 2].tolist()
            rows = np.empty((len(order), *self.shape), segment.rows.dtype) if rows is None else rows
            some = own[asked[first:last] - self._starts[number]]
            ids[first:last] = segment.ids[some]
            segment.take(some, rows[first:last])
        if rows is None:
            return Block(torch.from_numpy(ids), torch.empty(0, *self.shape).flatten(1))
        if (order[1:] < order[:-1]).any():
            back = order.argsort()
            ids, rows = ids[back], rows[back]
        return Block(torch.from_numpy(ids), torch.from_numpy(rows).flatten(1))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each part's rows begin among all of them, and where the last one's end."""
        return np.cumsum([0, *(len(places) for _, places in self._parts)])

    def where(self, *, label: str) -> Snapshot:
        """The rows that were added under ``label``: a set of negatives of its own."""
        wanted = np.array(self._catalogue.labelled(label), np.int64)
        return self._chosen(lambda segment, places: places[np.isin(segment.ids[places], wanted)])

    def digests(self) -> dict[int, str]:
        return self._catalogue.digests([int(i) for segment, places in self._parts for i in segment.ids[places]])

    def holds(self, digests: Collection[str]) -> set[str]:
        return {digest for digest, row_ids in self._with(digests).items() if len(row_ids)}

    def without(self, digests: Collection[str]) -> Snapshot:
        gone = [row_id for row_ids in self._with(digests).values() for row_id in row_ids]
        if not gone:
            return self
        return self._chosen(lambda segment, places: places[~np.isin(segment.ids[places], gone)])

    def _chosen(self, chosen: Callable[[Segment, NDArray[np.int64]], NDArray[np.int64]]) -> Snapshot:
        return self._view({file: chosen(segment, places) for file, (segment, places) in self.parts.items()})

    def _view(self, places: Mapping[str, NDArray[np.int64]]) -> Snapshot:
        """Some of the rows, at the same version."""
        parts = {file: (segment, places[file]) for file, (segment, _) in self.parts.items()}
        return self._again(parts)

    def _again(self, parts: Parts) -> Snapshot:
        """A view of some of the rows, which is asked as this one is."""
        return Snapshot(self._catalogue, self.version, parts, self._derived, before=self.so_far, whole=False)

    def _with(self, digests: Collection[str]) -> dict[str, list[int]]:
        """{digest: ids of the rows in this view that have it}."""
        known = self._catalogue.ids_with(sorted(digests))
        everywhere = np.array([row_id for row_ids in known.values() for row_id in row_ids], np.int64)
        here = {int(i) for segment, places in self._parts for i in np.intersect1d(everywhere, segment.ids[places])}
        return {digest: [i for i in row_ids if i in here] for digest, row_ids in known.items()}

    def not_in_force(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that no row in force at this version has, by the record: none of those that it answers."""
        unasked = set(ids) - self._in_force
        strange = self._catalogue.not_in_force(sorted(unasked), self.version) if unasked else []
        if len(self._in_force) + len(unasked) > _ASKED:
            self._in_force.clear()
        self._in_force.update(unasked.difference(strange))
        return strange

    def radius(self, kernel: Kernel) -> float:
        """The rms radius of the rows, which errors are stated in; from the index where there is one for the kernel.

        Cost: else one pass over all rows, the first time.
        """
        split = self._split
        if split is not None and kernel in (LITERAL, split.mixture.kernel):
            return split.mixture.clusters.rms / split.scale
        return self._radius

    @cached_property
    def _radius(self) -> float:
        return self.moments().rms

    @property
    def files(self) -> set[str]:
        """Names of the files that it keeps mapped: of rows, and the index that it has been asked by."""
        split = self.so_far
        return {*self.parts, *([] if split is None else [split.index.file])}

    def source_keys(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key} of rows that an answer names."""
        return self._catalogue.source_keys(ids)


def _expect(segment: Segment, places: NDArray[np.int64]) -> None:
    """Have the disk fetch sorted rows, if there is little else between them, while others are worked on."""
    first, last = int(places[0]), int(places[-1]) + 1
    if last - first <= 2 * len(places):
        segment.expect(first, last)


def _read(rows: NDArray[np.generic], places: NDArray[np.int64]) -> NDArray[np.generic]:
    """Copy rows out of the map; sorted places without gaps are one sequential read."""
    first, last = int(places[0]), int(places[-1])
    whole = last - first + 1 == len(places)
    return np.array(rows[first : last + 1]) if whole else rows[places]
