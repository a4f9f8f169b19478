"""The literal kernel over a large set: the rows that may matter are read in full, as many as the noise level asks for.

||y - z||² is its part inside a projection, which memory holds, and ||y'||² - 2 <y', z'> + ||z'||² beyond it, where
memory holds all but the product. The noise in y' has no direction, so the product is as good as normal, of deviation
||y'|| ||z'|| / sqrt(D - d): each row's log-weight is known but for a normal error, of a few nats where the kernel is
of use. The rows that could weigh most are read, in rounds, until the others hardly can: at small s a few hundred, where
the kernel is widest in use some thousand of a million. Source: Kim et al. 2025, Eq. 6.
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negindex.clusters import Clusters
from negindex.exact import BLOCK_ELEMENTS, Scan
from negindex.head import Stretches, squared
from negindex.kernel import squared_distances
from negindex.partial import NEG_INF
from negindex.summed import summed
from negindex.trust import SURE
from negindex.unread import Unread, shares, stated

USUAL_ERROR = 0.02  # of the rms radius: where no error is asked for, reading ends there
ASKED = 4  # times as many rows as usual are read, at most, where an error is asked for
_FIRST, _MORE = 256, 4  # rows of the first round, and how many times as many have been read after each further one
_LIKELY = 3.0  # deviations above its log-weight at which a row's claim to be read is judged
_SINGLE = 1 << 14  # rows that could weigh most are looked at one by one, the others cluster by cluster
_EXACT = 64  # clusters whose mean beyond the projection counts in full
_SETTLED = 256  # heaviest rows that are subtracted in float64
_CACHED = 1 << 18  # numbers
_ROUNDING = 1e-5  # of the rms radius: rows are summed in float32
_ODD = 1 / 16  # of its cluster's: no row scatters less about the mean, whatever its length says
_NARROW = 1e-9  # a deviation is never taken for less
_PLACES = 4 * 2.0**-24  # of squared lengths: what float32 can take from a squared distance
_ROUGH = 1.0  # nats: where float32 may take more from a log-weight, rows are weighed in float64


class Answer(NamedTuple):
    """What is said of one sample."""

    log_norm: Tensor  # () float64
    log_unread: Tensor  # () float64, of rows that were not read
    mean: Tensor  # (D,) float64
    error: float  # stated, over the rms radius
    named: Tensor  # (H,) int64, the heaviest rows read, heaviest first, by their number in the clusters
    log_weight: Tensor  # (H,) float64, theirs
    read: int  # rows


class Sample(NamedTuple):
    """One sample in clean scale."""

    y: Tensor  # (D,) float64
    inside: Tensor  # (d,) float64, about the centre, as the projection has it
    apart: Tensor  # (D,) float32, about the centre
    beyond: Tensor  # (D,) float32, what the projection does not see of it
    length: float  # squared, of what it does not see
    each: float  # the mean square of that in each of its D - d dimensions
    variance: float  # s²

    @classmethod
    def of(cls, clusters: Clusters, y: Tensor, inside: Tensor, variance: Tensor) -> Sample:
        """y (D,), inside (d,), variance (), all float64."""
        apart = y - clusters.space.centre.double()
        length = float((apart.square().sum() - inside.square().sum()).clamp_min(0))
        each, beyond = length / max(1, len(y) - len(inside)), clusters.space.outside(apart.float())
        return cls(y, inside, apart.float(), beyond, length, each, float(variance))


def usual_reading(rows: int) -> int:
    """How many rows are read for one sample of a set of so many, at most, where no error is asked for."""
    return min(1 << 13, max(1 << 10, rows // 128))


def answer(clusters: Clusters, source: Scan, sample: Sample, most: int, error: float, named: int) -> Answer:
    """Read rows until the stated error is the one asked for, or until they are as many as ``most``.

    The projection must be orthonormal. Cost: a distance inside the projection for each row of the set; for each row
    read, its bytes and 4 D operations.
    """
    known = _Known.of(clusters, sample, max(most, named, _SINGLE))
    read, done, many = _Read(clusters, source, sample, known.single), 0, _FIRST
    most = min(max(most, named), len(known.single))
    while True:
        many = min(max(many, named), most)
        read.add(known.single[done:many])
        rest = _Rest.of(clusters, sample, known, read)
        if rest.error <= error or many == most:
            break
        done, many = many, _MORE * many
    top = read.settle(named)
    rest = _Rest.of(clusters, sample, known, read)
    shift = -sample.length / (2 * sample.variance)
    return Answer(
        log_norm=torch.tensor(rest.log_norm + shift, dtype=torch.float64),
        log_unread=torch.cat([rest.singles, rest.groups]).sum().log() + rest.log_norm + shift,
        mean=rest.mean(clusters, sample, known, read),
        error=rest.error,
        named=read.number[top],
        log_weight=read.log_weight[top] + shift,
        read=many,
    )


class _Known(NamedTuple):
    """What memory says: log-weights but for a normal error, less the part that all rows share."""

    log_weight: Tensor  # (N,) float64; -inf for rows that are not live
    single: Tensor  # (n,) int64, the live rows that could weigh most, the likeliest first
    deviation: Tensor  # (n,) float64, theirs
    grouped: Tensor  # (N,) float64, log-weights of the others, -inf for these
    log_mass: Tensor  # (K,) float64, of the others, by cluster
    many: Tensor  # (K,) float64, how many they are
    spread: Tensor  # (K,) float64, their deviation

    @classmethod
    def of(cls, clusters: Clusters, sample: Sample, singles: int) -> _Known:
        """Weigh all rows from memory."""
        sizes, twice = clusters.offsets.diff(), 2 * sample.variance
        own = (clusters.along @ (clusters.leading @ sample.beyond)).double()  # (K,) products with clusters' means
        explained = clusters.along.square().sum(1)
        every = Stretches(clusters.offsets, torch.arange(len(sizes)))
        log_weight = squared(clusters, sample.inside, torch.tensor(sample.variance).double(), every)
        log_weight.add_(clusters.beyond).sub_((2 * own).repeat_interleave(sizes)).div_(-twice)
        scatter = (clusters.beyond_each.float() - explained).clamp_min(0)
        apart = (clusters.beyond - explained.repeat_interleave(sizes)).abs_()  # from the mean, if at right angles to it
        torch.maximum(apart, (_ODD * scatter).repeat_interleave(sizes), out=apart)
        wide = _deviation(sample, apart, clusters.lengths + clusters.beyond)
        if clusters.live is not None:
            log_weight.masked_fill_(~clusters.live, NEG_INF)
        single = _largest(log_weight + _LIKELY * wide, min(singles, len(clusters)))
        grouped = log_weight.index_fill(0, single, NEG_INF)
        taken = torch.bucketize(single, clusters.offsets[1:], right=True).bincount(minlength=len(sizes))
        return cls(
            log_weight=log_weight,
            single=single,
            deviation=wide[single].double(),
            grouped=grouped,
            log_mass=_by_cluster(grouped, clusters.offsets),
            many=(clusters.counts - taken).double(),
            spread=_deviation(sample, scatter.double(), clusters.lengths_each),
        )


def _deviation(sample: Sample, beyond: Tensor, lengths: Tensor) -> Tensor:
    """Of the product with what is not known of rows beyond the projection (n,), squared, over s², and of rounding.

    lengths: (n,) of the rows, squared, in all dimensions.
    """
    rounded = _PLACES * (lengths + float(sample.inside.square().sum()))
    return (sample.each * beyond).sqrt().add_(rounded).div_(sample.variance).clamp_min_(_NARROW)


def _largest(numbers: Tensor, count: int) -> Tensor:
    """(count,) int64, the places of the largest, largest first."""
    some = torch.from_numpy(np.argpartition(numbers.numpy(), len(numbers) - count)[len(numbers) - count :])
    return some[numbers[some].argsort(descending=True, stable=True)]


def _by_cluster(log_weight: Tensor, offsets: Tensor) -> Tensor:
    """(K,) float64, the log of the summed weights of each cluster's rows; -inf where none has weight."""
    sizes, found = offsets.diff(), torch.full((len(offsets) - 1,), NEG_INF, dtype=torch.float64)
    there = (sizes > 0).nonzero()[:, 0]
    start, weights = offsets[there].numpy(), log_weight.numpy()
    top = torch.from_numpy(np.maximum.reduceat(weights, start)) if len(there) else found[:0]
    level = top.clamp_min(-1e300).repeat_interleave(sizes[there])
    light = (log_weight - level).float().exp().numpy()
    if len(there):
        found[there] = torch.from_numpy(np.add.reduceat(light, start, dtype=np.float64)).log() + top
    return found


class _Read:
    """Rows read in full: their log-weights, on the same scale as those in ``_Known``, and their weighted sum."""

    def __init__(self, clusters: Clusters, source: Scan, sample: Sample, single: Tensor) -> None:
        """single: (n,) int64, the rows that may be read."""
        self._clusters, self._source, self._sample = clusters, source, sample
        self._own = float(sample.inside.square().sum())
        self._centre = float(clusters.space.centre.double() @ sample.apart.double())
        longest = float((clusters.lengths[single] + clusters.beyond[single]).max())
        self._is_narrow = _PLACES * (longest + self._own) > _ROUGH * sample.variance
        self.number = torch.empty(0, dtype=torch.int64)
        self.log_weight = torch.empty(0, dtype=torch.float64)
        self._top = NEG_INF
        kind = torch.float64 if self._is_narrow else torch.float32
        self._sum = torch.zeros(len(sample.y), dtype=kind)  # of the rows, by weights relative to the top

    def add(self, numbers: Tensor) -> None:
        """Read more rows; weights of float32 products, or of float64 distances where s is too narrow for those."""
        at_once = max(1, _CACHED // len(self._sample.y))
        for some in numbers.sort().values.split(max(1, BLOCK_ELEMENTS // len(self._sample.y))):
            rows = self._source.take(self._clusters.places[some]).rows.to("cpu")
            for part, which in zip(rows.split(at_once), some.split(at_once), strict=True):
                self._weigh(part.to(self._sum.dtype), which)

    def _weigh(self, rows: Tensor, number: Tensor) -> None:
        if self._is_narrow:
            log_weight = self._exact(rows)
        else:
            length = (self._clusters.lengths[number] + self._clusters.beyond[number]).double()
            product = (rows @ self._sample.apart).double() - self._centre
            log_weight = (2 * product - length - self._own) / (2 * self._sample.variance)
        self._raise(float(log_weight.max()))
        self._sum.addmv_(rows.T, (log_weight - self._top).exp().to(rows.dtype))
        self.number, self.log_weight = torch.cat([self.number, number]), torch.cat([self.log_weight, log_weight])

    def _exact(self, rows: Tensor) -> Tensor:
        """(n,) float64 log-weights of rows (n, D) float64."""
        distance = squared_distances(self._sample.y[None], rows)[0] - self._sample.length
        return distance / (-2 * self._sample.variance)

    def _raise(self, top: float) -> None:
        if top > self._top:
            self._sum.mul_(exp(self._top - top))
            self._top = top

    def settle(self, named: int) -> Tensor:
        """Weigh the heaviest again, by subtraction in float64; returns the places of the heaviest, heaviest first."""
        heavy = self.log_weight.topk(min(len(self.number), max(named, _SETTLED))).indices
        heavy = heavy[self.number[heavy].argsort()]
        total, before = torch.zeros(len(self._sample.y), dtype=torch.float64), self.log_weight[heavy]
        for some in torch.arange(len(heavy)).split(max(1, _CACHED // len(self._sample.y))):
            places = self._clusters.places[self.number[heavy[some]]]
            rows = self._source.take(places).rows.to("cpu", torch.float64)
            self.log_weight[heavy[some]] = exact = self._exact(rows)
            old = self._top
            self._raise(float(exact.max()))
            total.mul_(exp(old - self._top))
            total += ((exact - self._top).exp() - (before[some] - self._top).exp()) @ rows
        self._sum = self._sum.double() + total
        return heavy[self.log_weight[heavy].argsort(descending=True, stable=True)][:named]

    @property
    def log_norm(self) -> float:
        """Of the rows read."""
        return float(self.log_weight.logsumexp(0))

    @property
    def mean(self) -> Tensor:
        """(D,) float64, of the rows read, about the centre."""
        return self._sum.double() * exp(self._top - self.log_norm) - self._clusters.space.centre.double()


class _Rest(NamedTuple):
    """The whole, with what was not read as it is expected to be."""

    log_norm: float
    of_read: float  # share of the rows read
    singles: Tensor  # (m,) float64, of the other rows that are looked at one by one
    groups: Tensor  # (K,) float64, of the others by cluster
    light: tuple[Tensor, Tensor]  # of both, what comes of rows lighter than the whole
    error: float  # stated, over the rms radius

    @classmethod
    def of(cls, clusters: Clusters, sample: Sample, known: _Known, read: _Read) -> _Rest:
        """The rows read are the first ones of ``known.single``."""
        done, many = len(read.number), len(known.single) - len(read.number)
        wide = max(1.0, _factor(known, read))
        left = known.single[done:]
        log_weight = torch.cat([known.log_weight[left], known.log_mass - known.many.clamp_min(1).log()])
        unread = Unread(
            log_share=log_weight,
            deviation=torch.cat([known.deviation[done:], known.spread]) * wide,
            many=torch.cat([torch.ones(many, dtype=torch.float64), known.many]),
            distance=log_weight,  # set below, of those that matter
        )
        of_rows, log_norm = read.log_norm, read.log_norm
        for _ in range(3):  # no row may count for more than the whole, which is not known before
            over = unread._replace(log_share=log_weight - log_norm)
            matter = over.matter().nonzero()[:, 0]
            share, light = shares(over.some(matter))
            whole = exp(of_rows - log_norm) + float(share.sum())
            log_norm += log(whole)
        share, light = (torch.zeros_like(log_weight).index_copy_(0, matter, part / whole) for part in (share, light))
        single, group = left[matter[matter < many]], matter[matter >= many] - many
        over = over.some(matter)._replace(distance=_squared_distances(clusters, single, group, read.mean))
        error = SURE * stated(over) / max(clusters.rms, 1e-300) + _ROUNDING
        lights = (light[:many], light[many:])
        return cls(log_norm, exp(of_rows - log_norm), share[:many], share[many:], lights, error)

    def mean(self, clusters: Clusters, sample: Sample, known: _Known, read: _Read) -> Tensor:
        """(D,) float64, of the whole: unread rows as memory has them, beyond the projection as their cluster's mean.

        An unread row that weighs more than expected does so for lying nearer to the sample beyond the projection.
        """
        left, sizes = known.single[len(read.number) :], clusters.offsets.diff()
        each = (self.groups.log() - known.log_mass).nan_to_num(NEG_INF, posinf=NEG_INF, neginf=NEG_INF)
        weight = (known.grouped + each.repeat_interleave(sizes)).exp().index_copy_(0, left, self.singles)
        every = Stretches(clusters.offsets, torch.arange(len(sizes)))
        inside = summed(clusters.reduced, *every.counting(weight.float()))
        owner = torch.bucketize(left, clusters.offsets[1:], right=True)
        group = self.groups.index_add(0, owner, self.singles)
        full = group.topk(min(_EXACT, len(group))).indices
        others = group.index_fill(0, full, 0.0).float() @ clusters.along
        beyond = group[full].float() @ clusters.outside[full] + others @ clusters.leading
        length = clusters.beyond[left].double() @ self.light[0] + clusters.beyond_each @ self.light[1]
        nearer = float(length) / max(1, len(sample.y) - len(sample.inside)) / sample.variance
        unread = clusters.space.raised(inside[None])[0] + beyond + nearer * sample.beyond
        return self.of_read * read.mean + unread.double() + clusters.space.centre.double()


def _factor(known: _Known, read: _Read) -> float:
    """How many times as far as noise without direction has it the rows read lie from what memory said of them."""
    taken = known.single[: len(read.number)]
    order, found = taken.argsort(), read.log_weight[read.number.argsort()]
    apart = (found - known.log_weight[taken[order]]) / known.deviation[: len(taken)][order]
    return float(apart.square().mean().sqrt())


def _squared_distances(clusters: Clusters, rows: Tensor, groups: Tensor, mean: Tensor) -> Tensor:
    """Of rows (n,) and then of the rows of clusters (c,), on average, from a point (D,) about the centre, squared."""
    inside = clusters.space.kernel.reduce(mean[None])[0]
    length = mean.square().sum()  # of the point; what it has beyond the projection counts as unlike any row's
    products = clusters.reduced[rows] @ inside.float()
    single = (clusters.lengths[rows] - 2 * products + clusters.beyond[rows]).double()
    about = clusters.gaussians.mean[groups] @ inside.float()
    group = clusters.lengths_each[groups] - 2 * about.double()
    return (torch.cat([single, group]) + length).clamp_min(0)
