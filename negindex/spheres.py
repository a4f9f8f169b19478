"""Which rows of a large set can be near a sample: few are read in full, and no row that is near is left out.

A row within R of a sample lies, as the kernel sees both, within R times what its projection lengthens at most. Reach
is widened by all that rounding can do to the float32 vectors in memory.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf, isinf, sqrt
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from negindex.clusters import Clusters
from negindex.exact import Block, Scan, measure
from negindex.head import Stretches
from negindex.near import Near
from negindex.negatives import Reach
from negindex.projection import Space
from negindex.summed import apart

MISSED = 14.6  # -log of the probability of each of two things by which noise hides a row: 4.6e-7
_LEADING = 16  # dimensions that tell most rows' distance from a sample to be too large
_SAMPLE = 1 << 14  # rows that say which these are
_HALF = 2.0**-24  # of the last place of a float32 number, relative to it
_FAR = 1e15  # from which on squares come near to what float32 holds
_AT_ONCE = 1 << 20  # numbers of rows that are read or weighed together: 4 MiB in float32
_WORTH = 4  # where one row in so many or more could be near a sample, a scan is the better way


class Spheres(NamedTuple):
    """Around each of K clusters a sphere that holds all its rows, live or not; and the rows in a few dimensions."""

    centre: Tensor  # (K, d) float32
    radius: Tensor  # (K,) float64, to the precision of float32
    leading: Tensor  # (m,) int64, the dimensions in which rows vary most
    rows: Tensor  # (N, m) float32, in these
    lengths: Tensor  # (N,) float32, squared, of those

    @classmethod
    def around(cls, clusters: Clusters) -> Self:
        """Cost: one pass over the rows as the kernel sees them. Memory: 68 bytes a row."""
        centre, bounds, reduced = clusters.gaussians.mean, clusters.offsets.tolist(), clusters.reduced
        radius = [
            apart(one[None], reduced[a:b])[0].max().sqrt() if a < b else torch.zeros((), dtype=torch.float64)
            for one, (a, b) in zip(centre, pairwise(bounds), strict=True)
        ]
        some = reduced[:: max(1, len(reduced) // _SAMPLE)]
        varies = (some - some.mean(0)).square().mean(0).nan_to_num(0.0)
        leading = varies.topk(min(_LEADING, len(varies))).indices.sort().values
        rows = reduced[:, leading]
        return cls(centre, torch.stack(radius), leading, rows, torch.einsum("nm,nm->n", rows, rows))


class Sample(NamedTuple):
    """What is asked about, as the kernel sees it."""

    point: Tensor  # (d,) float32, about the space's centre
    length: float  # from the centre, in all dimensions
    seen: float  # the same as the kernel sees it
    asked: Reach  # about it alone


class Finder(Protocol):
    """Who knows where rows lie as the kernel sees them."""

    def within(self, sample: Sample, limit: float) -> Tensor | None:
        """The numbers of live rows whose vectors are no farther than the limit, and perhaps more, ascending.

        None where they are too many to be told.
        """

    def closest(self, sample: Sample, k: int) -> Tensor | None:
        """The numbers of k live rows that look near the sample, of at least k; None where that cannot be told."""


class InMemory(NamedTuple):
    """All of them in this machine's memory."""

    clusters: Clusters
    spheres: Spheres

    def within(self, sample: Sample, limit: float) -> Tensor:
        return _within(self.clusters, self.spheres, sample, limit)

    def closest(self, sample: Sample, k: int) -> Tensor:
        clusters = self.clusters
        order = apart(sample.point[None], self.spheres.centre)[0].argsort()
        enough = int((clusters.counts[order].cumsum(0) < k).sum()) + 1
        numbers = Stretches(clusters.offsets, order[:enough].sort().values).numbers
        if clusters.live is not None:
            numbers = numbers[clusters.live[numbers]]
        return numbers[apart(sample.point[None], clusters.reduced[numbers])[0].topk(k, largest=False).indices]


def nearest(source: Scan, clusters: Clusters, finder: Finder, reach: Reach) -> Near:
    """What a scan of ``source`` finds: rows that can be within reach are read in full and compared as it does.

    Where only k limits, the k-th nearest of some rows that the kernel sees near the sample gives a radius. A sample
    that too many rows can be near to is scanned. Cost: N m products a sample, and the rows read.
    """
    samples = _samples(clusters.space, reach)
    if not samples:
        return measure(source.take(torch.empty(0, dtype=torch.int64)), reach, source.shape, source.origins)
    found = [_candidates(source, clusters, finder, sample) for sample in samples]
    scanned = [b for b, numbers in enumerate(found) if numbers is None]
    whole = source.nearest(reach.some(torch.tensor(scanned))) if scanned else None
    parts = []
    for sample, numbers in zip(samples, found, strict=True):
        if numbers is not None:
            parts.append(_read(source, clusters, numbers, sample.asked).to(reach.x.device))
        elif whole is not None:
            parts.append(whole.about(slice(0, 1)))
            whole = whole.about(slice(1, None))
    return Near.together(parts)


def _samples(space: Space, reach: Reach) -> list[Sample]:
    """Those of the batch, one by one."""
    from_centre = reach.x.flatten(1).to("cpu", torch.float64) - space.centre
    points = space.kernel.reduce(from_centre)
    lengths, seen = (vectors.norm(dim=1).tolist() for vectors in (from_centre, points))
    return [Sample(points[b].float(), lengths[b], seen[b], reach.some(torch.tensor([b]))) for b in range(len(points))]


def _candidates(source: Scan, clusters: Clusters, finder: Finder, sample: Sample) -> Tensor | None:
    """The numbers of live rows that can be within the sample's reach; None where a scan is the better way."""
    asked = sample.asked
    radius, noise, image_radius = float(asked.radius), min(float(asked.noise), _FAR), float(asked.image_radius)
    if isinf(radius) and sample.length < _FAR:
        radius, noise, image_radius = _kth(source, clusters, finder, sample), 0.0, inf
    if not sample.length + radius < _FAR:
        return None
    limit = _limit(clusters.space, sample, radius, noise, image_radius)
    if not limit < _FAR:
        return None
    numbers = finder.within(sample, limit)
    return None if numbers is None or _WORTH * len(numbers) >= len(clusters) else numbers


def _limit(space: Space, sample: Sample, radius: float, noise: float, image_radius: float) -> float:
    """How far the vector in memory of a row within the radius, and within that of the image, can be from the sample's.

    Rounding: such a row is at most length + radius from the centre; sums of D float32 products are off by D half places
    of the sum of their absolute values at most (Higham 2002, 3.5).
    Noise: in the D - d dimensions or more that the kernel does not see, white noise of deviation s leaves any
    two images s² (n - 2 sqrt(n t)) apart, n = D - d, but with probability e^-t (Laurent and Massart 2000, Lemma 1;
    what else parts them there adds to it). So much less of radius² can lie in the dimensions that it sees.
    There lies a row z within R of the image x, as P shows them, where ||P (x - z) + s P eps||² is no more than
    ||P||² R² + 2 s ||P||² R sqrt(2 t) + s² (T + 2 sqrt(U t) + 2 ||P||² t), with T the trace of P Pᵀ and U that of its
    square, but with probability 2 e^-t (the same Lemma; t = MISSED). The smaller one of the two counts.
    """
    (stretch, grain), dimensions = space.stretch, len(space.centre)
    unseen = dimensions - space.width
    hidden = noise**2 * max(0.0, unseen - 2 * sqrt(unseen * MISSED))
    places = _HALF * (8 if space.lift is None else dimensions + 8)
    coarse = grain * places / (1 - places) if places < 0.5 else inf
    inside = min(stretch * sqrt(max(0.0, radius**2 - hidden)), _about(space, image_radius, noise))
    rounding = coarse * (sample.length + radius) + 4 * _HALF * (grain * float(space.centre.norm()) + sample.seen)
    return inside * (1 + 1e-9) + rounding + 1e-15


def _about(space: Space, image_radius: float, noise: float) -> float:
    """How far the noisy image looks at most from a row within the radius of the image itself."""
    widest, (total, squares) = space.stretch[0] ** 2, space.spread
    drift = 2 * noise * widest * image_radius * sqrt(2 * MISSED) if noise else 0.0
    own = noise**2 * (total + 2 * sqrt(squares * MISSED) + 2 * widest * MISSED)
    return sqrt(widest * image_radius**2 + drift + own)


def _within(clusters: Clusters, spheres: Spheres, sample: Sample, limit: float) -> Tensor:
    """The numbers of live rows whose vectors are no farther than the limit from the sample's, ascending.

    Clusters go by the triangle inequality, rows by their leading dimensions, then by all. NaN is never too far.
    """
    point, loose = sample.point, _loose(len(sample.point))
    far = apart(point[None], spheres.centre)[0].sqrt()
    opened = (~(far * (1 - loose) > spheres.radius * (1 + loose) + limit)).nonzero()[:, 0]
    if not len(opened):
        return opened
    stretches, lead = Stretches(clusters.offsets, opened), point[spheres.leading]
    squared = stretches.slices_of(spheres.lengths).sub_(stretches.products(spheres.rows, lead), alpha=2)
    length = float(lead.double().norm())
    most = limit**2 - length**2 + 2 * _loose(len(lead)) * (2 * length + limit) ** 2
    numbers = stretches.chosen(~(squared > most))
    if clusters.live is not None:
        numbers = numbers[clusters.live[numbers]]
    parts = numbers.split(max(1, _AT_ONCE // len(point)))
    squared = torch.cat([apart(point[None], clusters.reduced[some])[0] for some in parts])
    return numbers[~(squared.sqrt() * (1 - loose) > limit)]


def loose_squared(limit: float, width: int) -> float:
    """What float32 may take a squared distance for that is no more than the limit's, in d = width dimensions."""
    return (limit / (1 - _loose(width))) ** 2 * (1 + _loose(width)) + 1e-30


def _loose(terms: int) -> float:
    """What float32 can take from a distance or a sum of so many products, relative to it, twice over."""
    return 2 * (terms + 8) * _HALF


def _kth(source: Scan, clusters: Clusters, finder: Finder, sample: Sample) -> float:
    """A distance within which there are k rows; inf where there are not so many."""
    k = sample.asked.k
    some = None if k is None or k > len(clusters) else finder.closest(sample, k)
    return inf if some is None else float(_read(source, clusters, some, sample.asked).distances[0, -1])


def _read(source: Scan, clusters: Clusters, numbers: Tensor, reach: Reach) -> Near:
    """Of some rows (n,), those within reach of one sample: float32 tells most to be too far, float64 compares the rest.

    Off by at most: what sums of D squares lose, relative to the distance; the last places of x, and of rows that are
    not float16, which are no longer than x and the distance.
    """
    origins, x = source.origins, reach.x.flatten(1)[0].to(torch.float64)
    loose, places = _loose(len(x)), 4 * _HALF * float(x.norm()) + 1e-15
    furthest, told = float(reach.radius), None
    for some in clusters.places[numbers].sort().values.split(max(1, _AT_ONCE // len(x))):  # file by file
        block = source.take(some)
        off = torch.linalg.vector_norm(block.rows.float() - x.to(block.rows.device, torch.float32), dim=1).double()
        if reach.k is not None and len(off) >= reach.k:
            furthest = min(furthest, float(off.kthvalue(reach.k).values) * (1 + loose) + places)
        maybe = ~(off * (1 - loose) - places > furthest)
        if told is not None and not bool(maybe.any()):
            continue
        part = measure(Block(block.ids[maybe], block.rows[maybe]), reach, source.shape, origins)
        told = part if told is None else reach.merge(told, part)
    assert told is not None  # a split has one part at least
    return told
