"""Rows in the kernel's own space, gathered in clusters whose moments stand for rows that are not looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from typing import NamedTuple, Self

import torch
from torch import Tensor

from negindex.exact import BLOCK_ELEMENTS, Block, Scan
from negindex.gaussians import Gaussians
from negindex.kmeans import assign, kmeans
from negindex.negatives import row_elements
from negindex.projection import Space, principal_directions

_ROWS_A_CLUSTER, _CLUSTERS = 64, 2048
_LEADING = 32
_OF_ROWS = ("ids", "places", "reduced", "lengths", "beyond", "sketch")


class Whole(NamedTuple):
    """Sums over full-size rows. Of float16 rows they are exact while they stay below 2^29: rows can be taken back."""

    sums: Tensor  # (K, D) float64, of the rows themselves
    squares: Tensor  # (K,) float64, of ||z - centre||²

    @classmethod
    def nothing(cls, count: int, dimensions: int) -> Self:
        """The sums of clusters that have no rows yet."""
        sums = torch.zeros(count, dimensions, dtype=torch.float64)
        return cls(sums, torch.zeros(count, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Clusters:
    """N rows sorted by cluster: ids, places in their source, reduced vectors and sketches; moments of K clusters.

    Immutable; tensors alone, so that they can be saved as they are. Memory: 4 N (d + m) + 24 N + 12 K D bytes.
    """

    space: Space
    ids: Tensor  # (N,) int64
    places: Tensor  # (N,) int64, for ``source.take``
    reduced: Tensor  # (N, d) float32, P (z - centre)
    lengths: Tensor  # (N,) float32, the squared length of each reduced row
    beyond: Tensor  # (N,) float32, the squared length of what the kernel does not see of each row, about the centre
    sketch: Tensor  # (N, m) float32
    offsets: Tensor  # (K + 1,) int64: the rows of cluster c are offsets[c] : offsets[c + 1]
    gaussians: Gaussians
    whole: Whole
    outside: Tensor  # (K, D) float32, of the cluster's mean about the centre, what the kernel does not see
    leading: Tensor  # (r, D) float32, orthonormal directions in which ``outside`` varies most
    along: Tensor  # (K, r) float32, ``outside`` in these: a hundredth of its numbers say nearly all of it
    live: Tensor | None = None  # (N,) bool; a row that is not live lies there and counts for nothing; None: all are

    @classmethod
    def build(cls, source: Scan, space: Space, seed: int = 0, count: int | None = None) -> Self:
        """Cluster the rows of ``source`` in the space. Cost: two passes over the rows, and k-means.

        count: how many clusters; None takes one for 64 rows, at most 2,048 or the root of N.
        """
        reduced, sketch = torch.empty(len(source), space.width), torch.empty(len(source), space.marks)
        start = 0
        for block in source.blocks(_at_once(source)):
            here = slice(start, start := start + len(block.ids))
            reduced[here], sketch[here] = space.see(block.rows)
        if not len(source):
            return cls.gather(source, space, reduced, sketch, torch.empty(0, dtype=torch.int64), 1)
        centres = kmeans(reduced, min(count or usual_count(len(reduced)), len(reduced)), seed)
        return cls.gather(source, space, reduced, sketch, assign(reduced, centres)[0], len(centres))

    @classmethod
    def gather(cls, source: Scan, space: Space, reduced: Tensor, sketch: Tensor, cluster: Tensor, count: int) -> Self:
        """With a given assignment: reduced vectors, sketches and cluster (N,) of each row in the source's order."""
        order = cluster.argsort(stable=True)
        offsets = _offsets(cluster.bincount(minlength=count))
        reduced, sketch = reduced[order], sketch[order]
        whole = Whole.nothing(count, len(space.centre))
        ids, squares = torch.empty(len(source), dtype=torch.int64), torch.empty(len(source), dtype=torch.float64)
        start = 0
        for block in source.blocks(_at_once(source)):  # nothing small is kept of a block: it would break up the heap
            here = slice(start, start := start + len(block.ids))
            squares[here] = _add(whole, block, cluster[here], space, 1)
            ids[here] = block.ids.cpu()
        gaussians = Gaussians.fit(_slices(offsets, reduced, sketch))
        outside = _outside(whole.sums, gaussians.counts, space)
        leading = _leading(outside, gaussians.counts, space)
        lengths = torch.einsum("nd,nd->n", reduced, reduced)
        return cls(
            space=space,
            ids=ids[order],
            places=order,
            reduced=reduced,
            lengths=lengths,
            beyond=(squares[order] - space.seen_length(reduced)).clamp_min(0).float(),
            sketch=sketch,
            offsets=offsets,
            gaussians=gaussians,
            whole=whole,
            outside=outside,
            leading=leading,
            along=outside @ leading.T,
        )

    def __len__(self) -> int:
        return self._live

    @cached_property
    def _live(self) -> int:
        return int(self.counts.sum())

    @property
    def counts(self) -> Tensor:
        """(K,) int64, live rows of each cluster."""
        return self.gaussians.counts

    @cached_property
    def rms(self) -> float:
        """The rows' root-mean-square distance from their mean, in all dimensions."""
        apart = self.mean - self.space.centre.to(torch.float64)
        return float((self.whole.squares.sum() / max(len(self), 1) - apart.square().sum()).clamp_min(0).sqrt())

    @cached_property
    def lacking(self) -> Tensor:
        """(K, m) float64, sketch of what ``along`` lacks of ``outside``."""
        return self.gaussians.mark - (self.along @ (self.leading @ self.space.sketcher)).double()

    @cached_property
    def beyond_each(self) -> Tensor:
        """(K,) float64, the mean of ``beyond`` over the live rows of each cluster."""
        kept = slice(None) if self.live is None else self.live
        total = torch.zeros(len(self.counts), dtype=torch.float64)
        total.index_add_(0, self.of_rows()[kept], self.beyond[kept].double())
        return total / self.counts.clamp_min(1)

    @cached_property
    def lengths_each(self) -> Tensor:
        """(K,) float64, the mean squared length of the live rows of each cluster, about the centre."""
        return self.whole.squares / self.counts.clamp_min(1)

    @cached_property
    def mean(self) -> Tensor:
        """(D,) float64, the rows' plain mean."""
        return self.whole.sums.sum(0) / max(len(self), 1)

    def of_rows(self) -> Tensor:
        """(N,) int64, the cluster of each row."""
        return torch.arange(len(self.counts)).repeat_interleave(self.offsets.diff())

    def without(self, gone: Tensor, source: Scan) -> Self:
        """The clusters less the rows with ``gone`` (N,) bool true, which are read from ``source``, still with them.

        Moments equal those of clusters gathered afresh from the survivors: sums by exact subtraction,
        reduced ones from memory, of the clusters that lost a row.
        """
        if not bool(gone.any()):
            return self
        if self.live is not None:
            return self.packed().without(gone[self.live], source)
        left = self.hiding(gone.nonzero()[:, 0], lambda rows: source.take(self.places[rows]))
        return replace(left.packed(), places=_renumbered(self.places, gone))

    def hiding(self, gone: Tensor, read: Callable[[Tensor], Block]) -> Self:
        """The clusters less the live rows numbered ``gone`` (g,), which ``read`` reads in full by these numbers.

        The rows stay in memory, not live, so that what is kept of a row is shared, not copied.
        Cost: the moments of all clusters are copied, those of the clusters that lost a row are made again.
        """
        live = torch.ones(len(self.ids), dtype=torch.bool) if self.live is None else self.live
        live = live.index_fill(0, gone, False)
        cluster = torch.bucketize(gone, self.offsets[1:], right=True)
        whole = Whole(*(part.clone() for part in self.whole))
        for some in torch.arange(len(gone)).split(max(1, BLOCK_ELEMENTS // len(self.space.centre))):
            _add(whole, read(gone[some]), cluster[some], self.space, -1)
        lost = cluster.unique()
        fitted = Gaussians.fit(_slices(self.offsets, self.reduced, self.sketch, lost, live)) if len(lost) else None
        gaussians = self.gaussians if fitted is None else self.gaussians.but(lost, fitted)
        counts = gaussians.counts
        whole.sums[counts == 0] = whole.squares[counts == 0] = 0.0
        afresh = _outside(whole.sums[lost], counts[lost], self.space)
        return replace(
            self,
            gaussians=gaussians,
            whole=whole,
            outside=self.outside.index_copy(0, lost, afresh),
            along=self.along.index_copy(0, lost, afresh @ self.leading.T),
            live=live,
        )

    def holding(self, opened: Tensor, numbers: Tensor, seen: Tensor) -> Self:
        """The same with the rows of some clusters (O,) alone, as another place holds them; no others are to be opened.

        numbers: (n,) of all live rows of these, ascending. seen: (n, d + m) float32, each one's reduced vector beside
        its sketch. What lies beyond the kernel of each row is left out: only a look-up by this kernel can be answered.
        """
        sizes = torch.zeros_like(self.counts).index_copy(0, opened, self.counts[opened])
        reduced, sketch = (part.contiguous() for part in seen.split([self.space.width, self.space.marks], 1))
        part = replace(
            self,
            ids=self.ids[numbers],
            places=self.places[numbers],
            reduced=reduced,
            lengths=torch.einsum("nd,nd->n", reduced, reduced),
            beyond=self.beyond[:0],
            sketch=sketch,
            offsets=_offsets(sizes),
            live=None,
        )
        part.__dict__.update(rms=self.rms, lacking=self.lacking)  # these follow from clusters, which stay
        return part

    def packed(self) -> Self:
        """The same without the rows that are not live."""
        if self.live is None:
            return self
        kept = {name: getattr(self, name)[self.live] for name in _OF_ROWS}
        return replace(self, **kept, offsets=_offsets(self.counts), live=None)

    def first(self, count: int) -> Tensor:
        """Numbers of the first live rows, at most ``count``."""
        return torch.arange(len(self.ids))[:count] if self.live is None else self.live.nonzero()[:count, 0]


def usual_count(rows: int) -> int:
    """How many clusters so many rows are gathered in: one for 64, at most 2,048 or the root of their number."""
    return max(1, min(rows // _ROWS_A_CLUSTER, max(_CLUSTERS, isqrt(rows))))


def _at_once(source: Scan) -> int:
    """How many full-size rows memory holds at a time."""
    return max(1, BLOCK_ELEMENTS // row_elements(source.shape))


def _offsets(counts: Tensor) -> Tensor:
    """Where each cluster's rows begin, and where the last one's end."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _add(whole: Whole, rows: Block, cluster: Tensor, space: Space, sign: int) -> Tensor:
    """Add rows of clusters (n,) to the sums, or take them off, in place; returns their ||z - centre||², (n,)."""
    exact = rows.rows.to("cpu", torch.float64)
    whole.sums.index_add_(0, cluster, exact, alpha=sign)
    squares = (exact - space.centre.to(torch.float64)).square().sum(1)
    whole.squares.index_add_(0, cluster, squares, alpha=sign)
    return squares


def _slices(
    offsets: Tensor, reduced: Tensor, sketch: Tensor, clusters: Tensor | None = None, live: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of each cluster, or of some, and their sketches; the live ones (N,) alone where that is given."""
    bounds = offsets.tolist()
    for c in range(len(bounds) - 1) if clusters is None else clusters.tolist():
        here = slice(bounds[c], bounds[c + 1])
        kept = slice(None) if live is None else live[here]
        yield reduced[here][kept], sketch[here][kept]


def _outside(sums: Tensor, counts: Tensor, space: Space) -> Tensor:
    """What the kernel does not see of the means of clusters: (K, D) float32, about the centre."""
    mean = sums / counts.clamp_min(1)[:, None] - space.centre.to(torch.float64)
    return space.outside(mean.masked_fill(counts[:, None] == 0, 0.0)).to(torch.float32)


def _leading(outside: Tensor, counts: Tensor, space: Space) -> Tensor:
    """(r, D) float32: directions of the means (K, D) float32 of clusters, by their counts."""
    if space.lift is None:
        return outside[:0]
    share = counts.float() / max(int(counts.sum()), 1)
    return principal_directions(outside, share, min(_LEADING, *outside.shape), 0).float()


def _renumbered(places: Tensor, gone: Tensor) -> Tensor:
    """The places of the rows that stay, once those that go have closed their gaps."""
    before = torch.zeros(len(places), dtype=torch.int64)
    before[places[gone]] = 1
    kept = places[~gone]
    return kept - before.cumsum(0)[kept]
