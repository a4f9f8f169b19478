"""One sample's answer from memory: the rows of some clusters weighed one by one, the other clusters in closed form."""

from __future__ import annotations

from math import copysign, inf, isfinite
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negindex.clusters import Clusters
from negindex.gaussians import Told
from negindex.kernel import squared_distances
from negindex.partial import NEG_INF

_NEGLIGIBLE = 1e-12  # share of the weight below which a row's outside part is not asked for
_WORTH = 1 / 64  # of the reading's mean share a row must weigh to be read: all that weigh less change nothing
_EXACT = 64  # clusters whose mean outside the kernel is read in full, at least
_GATHERED = 4  # rows are gathered one by one where so many times as many lie in the stretches
_CANCELS = 1e-4  # of the squared lengths: where h² is less, float32 cannot tell weights by expanded squares
_FEW = 4  # rows whose squares would cancel are placed apart from the others while they are at most one in so many
_BELIEVED = 1.0  # of a log mass: a closed form that is off by no more where it can be checked stands as it is
_SUBTRACTED = 512  # of the rows weighed, so many heaviest count in float64: where few have all the weight, these do


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
    """The rows of some clusters, weighed."""

    clusters: Tensor  # (O,) int64, ascending
    stretches: Stretches  # where their rows lie
    owner: Tensor  # (n,) int64, each row's place in ``clusters``
    number: Tensor  # (n,) int64
    log_weight: Tensor  # (n,) float64; the heaviest are subtracted in float64, the others in float32
    heaviest: Tensor  # (H,) int64, places of the heaviest, heaviest first

    def weight(self) -> tuple[Tensor, Tensor]:
        """(n,) float64 relative to the heaviest, and the log of the sum; exponentials of the light ones in float32."""
        apart = self.log_weight - self.log_weight[self.heaviest[0]]
        weight = apart.float().exp().double()
        weight[self.heaviest] = apart[self.heaviest].exp()
        return weight, weight.sum().log() + self.log_weight[self.heaviest[0]]


class Stretches:
    """n rows that lie in a few stretches of a table: multiplied where they are, since a copy costs ten times as much.

    By numpy, which takes a third of torch's time for a matrix and one vector on some processors.
    """

    def __init__(self, offsets: Tensor, clusters: Tensor) -> None:
        """The rows offsets[c] : offsets[c + 1] of some clusters, ascending; neighbours are one stretch."""
        start, stop = offsets[clusters], offsets[clusters + 1]
        first = torch.ones(len(clusters), dtype=torch.bool)
        first[1:] = start[1:] != stop[:-1]
        self.bounds = list(zip(start[first].tolist(), stop[first.roll(-1)].tolist(), strict=True))
        self.numbers = torch.cat([torch.arange(a, b) for a, b in self.bounds])  # (n,) int64

    def of(self, numbers: Tensor) -> Tensor:
        """Theirs of numbers (N,): (n,)."""
        return torch.cat([numbers[a:b] for a, b in self.bounds])

    def squared(self, table: Tensor, vector: Tensor) -> Tensor:
        """||vector - z||² of each row of a table (N, d), (n,) float64, by subtraction in float32."""
        return torch.cat([apart(vector[None], table[a:b])[0] for a, b in self.bounds])

    def products(self, table: Tensor, vector: Tensor) -> Tensor:
        """Of each row of a table (N, d) with a vector (d,): (n,); all float32."""
        rows, by, found, done = table.numpy(), vector.numpy(), np.empty(len(self.numbers), np.float32), 0
        for a, b in self.bounds:
            np.matmul(rows[a:b], by, out=found[done : (done := done + b - a)])
        return torch.from_numpy(found)

    def weighted(self, table: Tensor, weight: Tensor) -> Tensor:
        """The sum of the rows of a table (N, d) float32 by weights (n,) float64: (d,) float64."""
        heavy = (weight > _NEGLIGIBLE).nonzero()[:, 0]
        if _GATHERED * len(heavy) < len(weight):
            return (weight[heavy].float() @ table.index_select(0, self.numbers[heavy])).double()
        rows, share, total, done = table.numpy(), weight.float().numpy(), np.zeros(table.shape[1]), 0
        for a, b in self.bounds:
            total += share[done : (done := done + b - a)] @ rows[a:b]
        return torch.from_numpy(total)


def weigh(
    clusters: Clusters, query: Tensor, variance: Tensor, told: Told, effort: Effort, named: int, lean: float = 0.0
) -> Head:
    """Answer query (d,) float64 about the centre, variance () = h², given one sample's closed form of all clusters.

    Inside the kernel the rows of opened clusters count exactly. Outside it the heaviest are to be read, the others
    of their cluster contribute the plain mean of those unread, and closed clusters their mean. lean: the log of what
    closed clusters are known to weigh over what their closed form says.
    Cost: ``effort.weighed`` distances, and as many products with d and with m numbers.
    """
    stake = stakes(told)
    opened = choose(told, stake, clusters.counts, effort.weighed, named)
    seen = _weighed(clusters, query, variance, opened, max(effort.read, named))
    lean -= _astray(told, stake, seen)
    log_closed = (told.log_mass + lean).index_fill(0, opened, NEG_INF)
    log_tail, (weight, log_weighed) = log_closed.logsumexp(0), seen.weight()
    log_norm = torch.logaddexp(log_weighed, log_tail)
    weight *= (log_weighed - log_norm).exp() / weight.sum()
    closed = (log_closed - log_norm).exp()
    inside = seen.stretches.weighted(clusters.reduced, weight) + told.mean(closed)

    read = seen.heaviest[: effort.read]
    least = _WORTH / effort.read if effort.read < len(weight) else 0.0
    read = read[weight[read] > max(least, _NEGLIGIBLE)]
    reading = _reading(clusters, seen, weight, read, closed, max(_EXACT, effort.read // 4))
    most = (told.log_most + lean - log_norm).clamp_max(0).exp().index_fill(0, opened, 0.0)
    far = told.squared_from(inside) + (clusters.gaussians.mark - reading.mark).square().sum(1)
    return Head(
        log_read=seen.log_weight[read].logsumexp(0),
        log_unread=log_norm + weight.index_fill(0, read, 0.0).sum().log(),
        log_tail=log_tail,
        inside=inside,
        reading=reading,
        opened=opened,
        named=seen.number[seen.heaviest[:named]],
        log_weight=seen.log_weight[seen.heaviest[:named]],
        tail=(most * (far + told.spread)).sum().sqrt(),  # the root of what they add to the second moment, at most
    )


def stakes(told: Told) -> Tensor:
    """(K,) float64, the log of each cluster's part of the posterior's second moment, as the closed form has it."""
    far = told.squared_from(told.log_mass.softmax(0).float() @ told.plain) + told.spread
    return told.log_mass + far.log()


def choose(told: Told, stake: Tensor, counts: Tensor, weighed: int, named: int) -> Tensor:
    """Clusters to open, ascending: by what is at stake and by distance in turn, while their rows fit.

    Where the kernel is so narrow that normal clusters misjudge their mass, the distance finds the right ones. At least
    ``named`` rows.
    """
    by_stake = stake.argsort(descending=True, stable=True).argsort()
    by_distance = told.distance.argsort(stable=True).argsort()
    turn = torch.minimum(2 * by_stake, 2 * by_distance + 1).argsort()
    rows = counts[turn].cumsum(0)
    fits = (rows <= weighed) | (rows - counts[turn] < named)
    return turn[fits].sort().values


def _astray(told: Told, stake: Tensor, seen: Opened) -> float:
    """By how much more than _BELIEVED the log of the closed form's mass is off where it can be checked.

    That is in the half of the opened clusters that is least at stake. A sample far outside the rows sees but the tails
    of clusters, which no normal distribution gets right: there the closed form may be wrong by any factor.
    """
    least = stake[seen.clusters].argsort(stable=True)[: len(seen.clusters) // 2]
    checked = torch.zeros(len(seen.clusters), dtype=torch.bool).index_fill(0, least, True)
    weighed = seen.log_weight[checked[seen.owner]].logsumexp(0)
    off = float(told.log_mass[seen.clusters[least]].logsumexp(0) - weighed)
    return copysign(max(0.0, abs(off) - _BELIEVED), off) if isfinite(off) else 0.0


def _weighed(clusters: Clusters, query: Tensor, variance: Tensor, opened: Tensor, heaviest: int) -> Opened:
    """Weigh the rows of the opened clusters, at least the ``heaviest`` of them in float64."""
    stretches = Stretches(clusters.offsets, opened)
    number = stretches.numbers
    distance = squared(clusters, query, variance, stretches)
    if clusters.live is not None:
        distance.masked_fill_(~clusters.live[number], inf)
    live = int(clusters.counts[opened].sum())
    top = distance.topk(min(max(heaviest, _SUBTRACTED), live), largest=False).indices
    log_weight = distance / (-2 * variance)
    log_weight[top] = squared_distances(query[None], clusters.reduced[number[top]].double())[0] / (-2 * variance)
    top = top[log_weight[top].argsort(descending=True, stable=True)]
    owner = torch.arange(len(opened)).repeat_interleave(clusters.offsets.diff()[opened])
    return Opened(opened, stretches, owner, number, log_weight, top)


def squared(clusters: Clusters, query: Tensor, variance: Tensor, stretches: Stretches) -> Tensor:
    """||query - z||² of the rows, (n,) float64 of float32 products: squares expanded where they do not cancel."""
    lengths = stretches.of(clusters.lengths)
    far = cancelling(lengths, query, variance).nonzero()[:, 0]
    if _FEW * len(far) > len(lengths):
        return stretches.squared(clusters.reduced, query.float())
    found = (lengths - 2 * stretches.products(clusters.reduced, query.float())).double()
    found.add_(query.square().sum()).clamp_min_(0)
    return found.index_copy_(0, far, apart(query[None], clusters.reduced[stretches.numbers[far]])[0])


def cancelling(lengths: Tensor, query: Tensor, variance: Tensor) -> Tensor:
    """Of rows by squared length (n,): whether float32 products with queries (..., d) are too coarse for their h²."""
    most = float(variance.min()) / _CANCELS - float(query.square().sum(-1).max())
    return ~(lengths <= most)  # where both are beyond all numbers too


def apart(query: Tensor, rows: Tensor) -> Tensor:
    """||query - z||² by subtraction in float32, (B, d), (n, d) -> (B, n) float64."""
    return torch.cdist(query.float(), rows, compute_mode="donot_use_mm_for_euclid_dist").double().square_()


def _reading(clusters: Clusters, seen: Opened, weight: Tensor, read: Tensor, closed: Tensor, exact: int) -> Reading:
    """Let the n - k unread rows of each opened cluster have their plain mean, by their share u of the weight.

    That mean is (n mean - Σ read) / (n - k): the cluster's mean weighs u n / (n - k), and each row that is read
    u / (n - k) less.
    """
    counts, marks = clusters.counts[seen.clusters], clusters.gaussians.mark
    unread = weight.index_fill(0, read, 0.0)
    share = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, seen.owner, unread)
    each = share / (counts - seen.owner[read].bincount(minlength=len(counts))).clamp_min(1)
    less, instead = each[seen.owner[read]], each * counts
    row_weight, cluster_weight = weight[read] - less, closed.index_add(0, seen.clusters, instead)
    owed = seen.stretches.weighted(clusters.sketch, unread.index_copy(0, read, less)) - instead @ marks[seen.clusters]
    mark = cluster_weight @ marks + row_weight @ clusters.sketch[seen.number[read]].double()
    full = cluster_weight.topk(min(exact, len(cluster_weight))).indices
    others = cluster_weight.index_fill(0, full, 0.0)
    short = others @ clusters.lacking
    return Reading(seen.number[read], row_weight, full, cluster_weight[full], others, mark - short, owed + short)
