"""A mixture whose rows lie in an engine: the same clusters, the same closed forms, other memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex import spheres
from negindex.clusters import Clusters
from negindex.engines.table import InEngine, Table
from negindex.head import choose, stakes
from negindex.mixture import Mixture
from negindex.near import Near
from negindex.negatives import Query, Reach
from negindex.partial import Heaviest, Partial

AT_ONCE = 1 << 18  # rows of an engine that memory holds for one batch


class OnEngine(Mixture):
    """``mixture`` with what the kernel sees of each row fetched from an engine, the clusters that are opened alone.

    Clusters are chosen, and answer in closed form, as they do in memory: an answer is the same to the rounding of
    float32. Raises Unreachable, and EngineBehind where rows of the version do not come. The literal kernel is answered
    from the index file on this side.
    """

    def __init__(
        self, mixture: Mixture, table: Table, version: int, numbers_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> None:
        """numbers_of: rows' numbers in the clusters by their ids, as the index has them."""
        super().__init__(
            mixture.source,
            mixture.clusters,
            mixture.trust,
            efforts=mixture.efforts,
            scan_elements=mixture.scan_elements,
        )
        self.table, self.version, self._numbers_of = table, version, numbers_of

    def nearest(self, reach: Reach) -> Near:
        finder = InEngine(self.table, self.clusters, self.version, self._numbers_of)
        with self.table.there(self.clusters, self.version):
            found = spheres.nearest(self.source, self.clusters, finder, reach)
        self.check_whole()
        return found

    def check_whole(self) -> None:
        """Raise Unreachable, or EngineBehind, unless the engine holds as many rows as the index."""
        self.table.check_whole(self.clusters, self.version)

    def _modelled(self, query: Query) -> Partial:
        if query.kernel != self.kernel:
            return super()._modelled(query)
        told, left = None, torch.arange(len(query.x_t))
        for number in self.tried(query):
            some = self._by(number, query.some(left))
            told = some if told is None else told.put(left, some)
            if query.error is None:
                break
            left = left[some.error > query.error]
            if not len(left):
                break
        assert told is not None
        return told

    def _by(self, number: int, query: Query) -> Partial:
        """By one effort, however well it does."""
        opened = self._opened(number, query)
        batch = len(query.x_t)
        if batch > 1 and int(self.clusters.counts[opened].sum()) > AT_ONCE:
            first, last = torch.arange(batch).tensor_split(2)
            return _beside(self._by(number, query.some(first)), self._by(number, query.some(last)))
        rows, seen = self.table.rows_of(self.clusters, opened, self.version)
        return _Part(self, self.clusters.holding(opened, rows, seen), number)._modelled(query)

    def _opened(self, number: int, query: Query) -> Tensor:
        """The clusters that any of the samples needs, ascending."""
        clusters, most = self.clusters, self.efforts[number].weighed
        points, variance = clusters.space.place(query.y), query.kernel.variance(query.level)
        told = clusters.gaussians.seen_from(points, variance)
        each = [
            choose(one, stakes(one, clusters.gaussians.lengths), clusters.counts, most, query.named)
            for one in (told.about(b) for b in range(len(points)))
        ]
        chosen: Tensor = torch.cat(each).unique()
        return chosen


class _Part(Mixture):
    """The whole, of which only the clusters that one effort opens are in memory."""

    def __init__(self, whole: Mixture, clusters: Clusters, number: int) -> None:
        super().__init__(whole.source, clusters, whole.trust, efforts=whole.efforts, scan_elements=0)
        self._number = number

    def tried(self, query: Query) -> list[int]:
        return [self._number]


def _beside(one: Partial, other: Partial) -> Partial:
    """The answers about some samples, and then about others."""
    return replace(
        one,
        log_norm=torch.cat([one.log_norm, other.log_norm]),
        mean=torch.cat([one.mean, other.mean]),
        log_tail=torch.cat([one.log_tail, other.log_tail]),
        log_unread=torch.cat([one.log_unread, other.log_unread]),
        error=torch.cat([one.error, other.error]),
        heaviest=Heaviest(*(torch.cat(pair) for pair in zip(one.heaviest, other.heaviest, strict=True))),
    )
