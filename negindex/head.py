"""One sample's answer from memory: the rows of some clusters weighed one by one, the other clusters in closed form."""

from __future__ import annotations

from functools import cached_property
from math import copysign, inf, isfinite
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negindex.clusters import Clusters
from negindex.gaussians import Told
from negindex.kernel import squared_distances
from negindex.partial import NEG_INF
from negindex.summed import apart, summed

_NEGLIGIBLE = 1e-12  # share of the weight below which a row's outside part is not asked for
_WORTH = 1 / 64  # of the reading's mean share a row must weigh to be read: all that weigh less change nothing
_EXACT = 64  # clusters whose mean outside the kernel is read in full, at least
_CANCELS = 1e-4  # of the squared lengths: where h² is less, float32 cannot tell weights by expanded squares
_FEW = 4  # rows whose squares would cancel are placed apart from the others while they are at most one in so many
_BELIEVED = 1.0  # of a log mass: a closed form that is off by no more where it can be checked stands as it is
_SUBTRACTED = 512  # of the rows weighed, so many heaviest count in float64: where few have all the weight, these do
_HUGE = 1e300


class Effort(NamedTuple):
    """How much is looked at for one sample."""

    weighed: int  # rows weighed from memory, in whole clusters
    read: int  # rows read in full


class Reading(NamedTuple):
    """What the mean outside the kernel is made of: Σ row_weight outside(row) + Σ cluster_weight outside(cluster).

    Clusters but for the ``exact`` ones count as their leading directions have them.
    """

    rows: Tensor  # (k,) int64, the rows to read in full, by their number in the clusters
    row_weight: Tensor  # (k,) float64
    exact: Tensor  # (c,) int64, the clusters of most weight
    exact_weight: Tensor  # (c,) float64
    cluster_weight: Tensor  # (K,) float64, of the others; 0 for these
    mark: Tensor  # (m,) float64, sketch of the sum
    lacking: Tensor  # (m,) float64, sketch of what it lacks: rows of opened clusters that are not read, and so on


class Head(NamedTuple):
    """What memory says about E[x_0 | x_t], and which rows to read for the rest; weights are shares of the whole."""

    log_read: Tensor  # () float64, log weight of the rows to read
    log_unread: Tensor  # () float64, of rows weighed that are not to be read
    log_tail: Tensor  # () float64, of clusters in closed form
    inside: Tensor  # (d,) float64, the mean as the kernel sees it, about the centre
    reading: Reading
    opened: Tensor  # (O,) int64, the clusters whose rows were weighed
    named: Tensor  # (H,) int64, the heaviest rows, heaviest first, by their number in the clusters
    log_weight: Tensor  # (H,) float64, theirs
    tail: Tensor  # () float64, what closed clusters could be wrong about, a length in the rows' units

    @property
    def log_norm(self) -> Tensor:
        """() float64, never less than the log of a part."""
        return torch.logaddexp(torch.logaddexp(self.log_tail, self.log_unread), self.log_read)


class Opened(NamedTuple):
    """The rows of O clusters, weighed: the heaviest in float64, the others relative to the nearest of their cluster."""

    clusters: Tensor  # (O,) int64, ascending
    stretches: Stretches  # where their n rows lie
    sizes: Tensor  # (O,) int64, how many they are
    light: Tensor  # (n,) float32, weights over their cluster's ``level``; 0 for the heaviest
    level: Tensor  # (O,) float64, a log-weight
    log_mass: Tensor  # (O,) float64, of all
    owner: Tensor  # (H,) int64, each of the heaviest rows' place in ``clusters``, heaviest first
    number: Tensor  # (H,) int64, theirs
    rows: Tensor  # (H, d) float64, as the kernel sees them
    log_weight: Tensor  # (H,) float64


class Stretches:
    """n rows that lie in a few stretches of a table, worked with where they are."""

    def __init__(self, offsets: Tensor, clusters: Tensor) -> None:
        """The rows offsets[c] : offsets[c + 1] of some clusters, ascending; neighbours are one stretch."""
        start, stop = offsets[clusters], offsets[clusters + 1]
        first = torch.ones(len(clusters), dtype=torch.bool)
        first[1:] = start[1:] != stop[:-1]
        self._start, self._sizes = start[first], stop[first.roll(-1)] - start[first]
        self.bounds = list(zip(self._start.tolist(), stop[first.roll(-1)].tolist(), strict=True))

    @cached_property
    def numbers(self) -> Tensor:
        """(n,) int64."""
        before = self._sizes.cumsum(0) - self._sizes
        return (self._start - before).repeat_interleave(self._sizes) + torch.arange(int(self._sizes.sum()))

    def of(self, numbers: Tensor) -> Tensor:
        """Theirs of numbers (N,): (n,)."""
        return numbers.index_select(0, self.numbers)

    def slices_of(self, numbers: Tensor) -> Tensor:
        """The same, in less time where most of all rows are theirs."""
        return torch.cat([numbers[a:b] for a, b in self.bounds])

    def chosen(self, which: Tensor) -> Tensor:
        """The numbers (m,) int64 of those that ``which`` (n,) bool chooses, where that is few of them."""
        place = which.nonzero()[:, 0]
        ends = self._sizes.cumsum(0)
        return place + (self._start - ends + self._sizes)[torch.bucketize(place, ends, right=True)]

    def squared(self, table: Tensor, vector: Tensor) -> Tensor:
        """||vector - z||² of each row of a table (N, d), (n,) float64, by subtraction in float32."""
        return torch.cat([apart(vector[None], table[a:b])[0] for a, b in self.bounds])

    def products(self, table: Tensor, vector: Tensor) -> Tensor:
        """Of each row of a table (N, d) with a vector (d,): (n,); all float32. See ``summed.products``."""
        rows, by, found, done = table.numpy(), vector.numpy(), np.empty(int(self._sizes.sum()), np.float32), 0
        for a, b in self.bounds:
            np.matmul(rows[a:b], by, out=found[done : (done := done + b - a)])
        return torch.from_numpy(found)

    def counting(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of shares (n,) float32 of a whole those that count for anything, and whose they are: (m,) int64."""
        some = (weight > _NEGLIGIBLE).nonzero()[:, 0]
        return weight.index_select(0, some), self.numbers.index_select(0, some)


def weigh(
    clusters: Clusters, query: Tensor, variance: Tensor, told: Told, effort: Effort, named: int, lean: float = 0.0
) -> Head:
    """Answer query (d,) float64 about the centre, variance () = h², given one sample's closed form of all clusters.

    Inside the kernel the rows of opened clusters count exactly. Outside it the heaviest are to be read, the others
    of their cluster contribute the plain mean of those unread, and closed clusters their mean. lean: the log of what
    closed clusters are known to weigh over what their closed form says.
    Cost: ``effort.weighed`` distances, and as many products with d and with m numbers.
    """
    stake = stakes(told, clusters.gaussians.lengths)
    opened = choose(told, stake, clusters.counts, effort.weighed, named)
    seen = _weighed(clusters, query, variance, opened, max(effort.read, named))
    lean -= _astray(told, stake, seen)
    log_closed = (told.log_mass + lean).index_fill(0, opened, NEG_INF)
    log_tail = log_closed.logsumexp(0)
    log_norm = torch.logaddexp(seen.log_mass.logsumexp(0), log_tail)
    heavy, scale = (seen.log_weight - log_norm).exp(), (seen.level - log_norm).exp()
    light = seen.light * scale.float().repeat_interleave(seen.sizes)
    closed, counting = (log_closed - log_norm).exp(), seen.stretches.counting(light)
    inside = summed(clusters.reduced, *counting) + heavy @ seen.rows + told.centre(closed)

    least = _WORTH / effort.read if effort.read < len(light) else 0.0
    read = int((heavy[: effort.read] > max(least, _NEGLIGIBLE)).sum())
    share, sketch = _by_cluster(light, seen.sizes), summed(clusters.sketch, *counting)
    reading = _reading(clusters, seen, heavy, read, share, sketch, closed, max(_EXACT, effort.read // 4))
    most = (told.log_most + lean - log_norm).clamp_max(0).exp().index_fill(0, opened, 0.0)
    far = told.squared_from(inside, clusters.gaussians.lengths)
    far += squared_distances(reading.mark[None], clusters.gaussians.mark)[0]
    return Head(
        log_read=seen.log_weight[:read].logsumexp(0),
        log_unread=log_norm + (share.sum() + heavy[read:].sum()).log(),
        log_tail=log_tail,
        inside=inside,
        reading=reading,
        opened=opened,
        named=seen.number[:named],
        log_weight=seen.log_weight[:named],
        tail=(most * (far + told.spread)).sum().sqrt(),  # the root of what they add to the second moment, at most
    )


def stakes(told: Told, lengths: Tensor) -> Tensor:
    """(K,) float64, the log of each cluster's part of the posterior's second moment, as the closed form has it.

    lengths: (K,) float64, squared, of the clusters' means.
    """
    far = told.squared_from(told.middle(told.log_mass.softmax(0)), lengths) + told.spread
    return told.log_mass + far.log()


def choose(told: Told, stake: Tensor, counts: Tensor, weighed: int, named: int) -> Tensor:
    """Clusters to open, ascending: by what is at stake and by distance in turn, while their rows fit.

    Where the kernel is so narrow that normal clusters misjudge their mass, the distance finds the right ones. At least
    ``named`` rows.
    """
    size, turns = counts.numpy(), np.empty((2, len(counts)), np.int64)
    for turn, order in zip(turns, (-stake.numpy(), told.distance.numpy()), strict=True):
        turn[order.argsort(kind="stable")] = np.arange(0, 2 * len(size), 2)
    order = np.minimum(turns[0], turns[1] + 1).argsort()
    rows = size[order].cumsum()
    opened = order[((rows <= weighed) | (rows - size[order] < named)) & (size[order] > 0)]
    return torch.from_numpy(np.sort(opened))


def _astray(told: Told, stake: Tensor, seen: Opened) -> float:
    """By how much more than _BELIEVED the log of the closed form's mass is off where it can be checked.

    That is in the half of the opened clusters that is least at stake. A sample far outside the rows sees but the tails
    of clusters, which no normal distribution gets right: there the closed form may be wrong by any factor.
    """
    least = stake[seen.clusters].argsort(stable=True)[: len(seen.clusters) // 2]
    off = float(told.log_mass[seen.clusters[least]].logsumexp(0) - seen.log_mass[least].logsumexp(0))
    return copysign(max(0.0, abs(off) - _BELIEVED), off) if isfinite(off) else 0.0


def _weighed(clusters: Clusters, query: Tensor, variance: Tensor, opened: Tensor, heaviest: int) -> Opened:
    """Weigh the rows of the opened clusters, none without rows, at least the ``heaviest`` of them in float64."""
    stretches, sizes = Stretches(clusters.offsets, opened), clusters.offsets.diff()[opened]
    ends = sizes.cumsum(0)
    distance = squared(clusters, query, variance, stretches)
    if clusters.live is not None:
        distance.masked_fill_(~stretches.of(clusters.live), inf)
    live = int(clusters.counts[opened].sum())
    many = min(max(heaviest, _SUBTRACTED), live)
    top = torch.from_numpy(np.argpartition(distance.numpy(), many - 1)[:many])
    number, owner = stretches.numbers[top], torch.bucketize(top, ends, right=True)
    rows = clusters.reduced.index_select(0, number).double()
    distance[top] = exact = squared_distances(query[None], rows)[0]
    order = exact.argsort(stable=True)

    start = (ends - sizes).numpy()
    nearest = torch.from_numpy(np.minimum.reduceat(distance.numpy(), start)).clamp_max_(_HUGE)
    apart = distance.sub_(nearest.repeat_interleave(sizes)).div_(-2 * variance)
    light = apart.float().exp_().index_fill_(0, top, 0.0)
    mass = _by_cluster(light, sizes).index_add_(0, owner, apart[top].exp_())
    level = nearest / (-2 * variance)
    return Opened(
        clusters=opened,
        stretches=stretches,
        sizes=sizes,
        light=light,
        level=level,
        log_mass=level + mass.log_(),
        owner=owner[order],
        number=number[order],
        rows=rows.index_select(0, order),
        log_weight=exact[order] / (-2 * variance),
    )


def squared(clusters: Clusters, query: Tensor, variance: Tensor, stretches: Stretches) -> Tensor:
    """||query - z||² of the rows, (n,) float64 of float32 products: squares expanded where they do not cancel."""
    lengths = stretches.of(clusters.lengths)
    far = cancelling(lengths, query, variance).nonzero()[:, 0]
    if _FEW * len(far) > len(lengths):
        return stretches.squared(clusters.reduced, query.float())
    found = lengths.sub_(stretches.products(clusters.reduced, query.float()), alpha=2).double()
    found.add_(query.square().sum()).clamp_min_(0)
    if len(far):
        found[far] = apart(query[None], clusters.reduced[stretches.numbers[far]])[0]
    return found


def cancelling(lengths: Tensor, query: Tensor, variance: Tensor) -> Tensor:
    """Of rows by squared length (n,): whether float32 products with queries (..., d) are too coarse for their h²."""
    most = float(variance.min()) / _CANCELS - float(query.square().sum(-1).max())
    return ~(lengths <= most)  # where both are beyond all numbers too


def _reading(
    clusters: Clusters,
    seen: Opened,
    heavy: Tensor,
    read: int,
    share: Tensor,
    sketch: Tensor,
    closed: Tensor,
    exact: int,
) -> Reading:
    """Let the n - k unread rows of each opened cluster have their plain mean, by their share u of the weight.

    That mean is (n mean - Σ read) / (n - k): the cluster's mean weighs u n / (n - k), and each row that is read
    u / (n - k) less. heavy: (H,) the heaviest rows' shares of the whole; the first ``read`` of them are read. share,
    sketch: (O,) what the other rows of each cluster weigh, (m,) their sketch.
    """
    counts, marks = clusters.counts[seen.clusters], clusters.gaussians.mark
    owner, unread = seen.owner[:read], heavy.index_fill(0, torch.arange(read), 0.0)
    share = share.index_add(0, seen.owner, unread)
    each = share / (counts - owner.bincount(minlength=len(counts))).clamp_min(1)
    less, instead = each[owner], each * counts
    row_weight, cluster_weight = heavy[:read] - less, closed.index_add(0, seen.clusters, instead)
    sketches = clusters.sketch.index_select(0, seen.number).double()
    unread[:read] = less
    owed = sketch + unread @ sketches - instead @ marks[seen.clusters]
    mark = cluster_weight @ marks + row_weight @ sketches[:read]
    full = cluster_weight.topk(min(exact, len(cluster_weight))).indices
    others = cluster_weight.index_fill(0, full, 0.0)
    short = others @ clusters.lacking
    return Reading(seen.number[:read], row_weight, full, cluster_weight[full], others, mark - short, owed + short)


def _by_cluster(weight: Tensor, sizes: Tensor) -> Tensor:
    """(O,) float64, the sums of weights (n,) over so many rows (O,) in turn, of at least one each."""
    start = (sizes.cumsum(0) - sizes).numpy()
    return torch.from_numpy(np.add.reduceat(weight.numpy(), start, dtype=np.float64))
