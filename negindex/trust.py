"""How far a closed form can be trusted: learned from queries whose exact answer memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot, log

import numpy as np
import torch
from torch import Tensor

from negindex.clusters import Clusters
from negindex.exact import Scan
from negindex.head import Effort, Head, apart, cancelling, weigh
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF
from negindex.projection import generator, geometric

LEVELS = tuple(geometric(0.2, 80.0, 11))
SURE = 1.25  # a length read off 64 numbers of a sketch is at most this much too short, in 97 of 100
FLOOR = 1e-4  # of the rms radius: a tail is never taken to matter less
ROUNDING = 3e-6  # of the rms radius: memory holds float32
NOUGHT = 1e-3  # of the rms radius: an error that matters to nobody
_POWERS = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
_HELD_OUT = 64  # rows
_AT_ONCE = 16  # queries
_CHUNK = 1 << 24  # distances at a time


@dataclass(frozen=True, eq=False)
class Trust:
    """Stated error: SURE |lacking| and factor (tail + FLOOR)^power at right angles, all relative to the rms radius.

    Per level and effort, the power under which the law says least too much, and a factor that 99 % of the
    probes keep to.
    """

    levels: tuple[float, ...]  # (L,), ascending
    factors: Tensor  # (L, efforts) float64
    powers: Tensor  # (L, efforts) float64

    @classmethod
    def learn(cls, clusters: Clusters, source: Scan, efforts: Sequence[Effort], seed: int = 0) -> Trust:
        """Hold some rows out and ask the others about them, noised, at each level of the kernel.

        Cost: 96 L scans of the rows in memory.
        """
        levels = tuple(sorted({*LEVELS, *(s for s, _ in clusters.space.kernel.temperatures)}))
        factors, powers = (torch.zeros(len(levels), len(efforts), dtype=torch.float64) for _ in range(2))
        partial = [i for i, effort in enumerate(efforts) if effort.weighed < len(clusters)]  # the others leave no tail
        if not partial:
            return cls(levels, factors, powers)
        rows = torch.randperm(len(clusters), generator=generator(seed))[: min(_HELD_OUT, len(clusters) // 4)]
        held = torch.zeros(len(clusters), dtype=torch.bool).index_fill(0, rows, True)
        clean, rest = clusters.reduced[rows].double(), clusters.without(held, source)
        for row, s in enumerate(levels):
            wrong, tail = _tried(rest, noised(rest, clean, s, seed + row), s, [efforts[i] for i in partial])
            factors[row, partial], powers[row, partial] = _law(wrong, tail)
        return cls(levels, factors, powers)

    def error(self, head: Head, s: float, effort: int, rms: float) -> float:
        """The stated error of an answer at noise level s, relative to the rms radius."""
        radius = max(rms, 1e-300)
        unread = SURE * float(head.reading.lacking.norm()) / radius + ROUNDING
        if head.log_tail == NEG_INF:
            return unread
        tail = self.factors[:, effort] * (head.tail / radius + FLOOR) ** self.powers[:, effort]
        return hypot(unread, float(np.interp(log(s), np.log(self.levels), tail.numpy())))


def _law(wrong: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and powers (efforts,) from true errors and tails (B, efforts), both relative to the rms radius."""
    ratio = wrong / (tail + FLOOR) ** _POWERS[:, None, None]  # (powers, B, efforts)
    factor = ratio.quantile(0.99, dim=1)  # (powers, efforts)
    stated = factor[:, None] * (tail + FLOOR) ** _POWERS[:, None, None]
    excess = (stated / wrong.clamp_min(NOUGHT)).median(1).values
    best = excess.argmin(0, keepdim=True)
    return factor.gather(0, best)[0], _POWERS[best[0]]


def noised(clusters: Clusters, clean: Tensor, s: float, seed: int) -> Tensor:
    """Rows (n, d), midpoints of two and rows at twice their distance, all noised: (1.5 n, d) float64."""
    quarter = len(clean) // 4
    middle, far = 0.5 * (clean[:quarter] + clean[quarter : 2 * quarter]), 2 * clean[-quarter:]
    clean = torch.cat([clean, middle, far])
    noise = torch.randn(len(clean), len(clusters.space.centre), generator=generator(seed), dtype=torch.float64)
    return clean + s * clusters.space.kernel.reduce(noise)


def _tried(clusters: Clusters, query: Tensor, s: float, efforts: Sequence[Effort]) -> tuple[Tensor, Tensor]:
    """True errors of the closed form, and the heads' tails, (B, efforts) each and relative to the rms radius."""
    variance, tried = clusters.space.kernel.variance(NoiseLevel(1.0, s)).expand(_AT_ONCE), []
    for points in query.split(_AT_ONCE):
        h2 = variance[: len(points)]
        told = clusters.gaussians.seen_from(points, h2)
        for q, mean in enumerate(exact(clusters, points, h2)):
            heads = [weigh(clusters, points[q], h2[q], told.about(q), effort, 1) for effort in efforts]
            tried.append([(_wrong(head, mean), float(head.tail)) for head in heads])
    wrong, tail = (torch.tensor(tried, dtype=torch.float64) / max(clusters.rms, 1e-300)).unbind(2)
    return wrong, tail


def _wrong(head: Head, mean: Tensor) -> float:
    """How far the head's mean may be from the exact one (d + m,), what its rows lack outside set right."""
    inside, mark = head.inside - mean[: len(head.inside)], head.reading.mark - mean[len(head.inside) :]
    return hypot(float(inside.norm()), SURE * float((mark + head.reading.lacking).norm()))


def exact(clusters: Clusters, query: Tensor, variance: Tensor) -> Tensor:
    """The mean and its sketch (B, d + m) float64 with every row weighed from memory."""
    chunks = list(_log_weights(clusters, query, variance))
    log_norm = torch.cat([chunk.logsumexp(1, keepdim=True) for chunk in chunks], 1).logsumexp(1, keepdim=True)
    total = torch.zeros(len(query), clusters.space.width + clusters.space.marks, dtype=torch.float64)
    start = 0
    for chunk in chunks:
        here = slice(start, start := start + chunk.shape[1])
        weight = (chunk - log_norm).float().exp()
        total += torch.cat([weight @ clusters.reduced[here], weight @ clusters.sketch[here]], 1)
    return total


def _log_weights(clusters: Clusters, query: Tensor, variance: Tensor) -> Iterator[Tensor]:
    """(B, n) float64, of each stretch of rows in turn."""
    some, own, asked = max(1, _CHUNK // len(query)), query.square().sum(1, keepdim=True), query.float()
    for rows, lengths in zip(clusters.reduced.split(some), clusters.lengths.split(some), strict=True):
        squared = torch.addmm(lengths, asked, rows.T, alpha=-2).double().add_(own).clamp_min_(0)
        far = cancelling(lengths, query, variance).nonzero()[:, 0]
        squared[:, far] = apart(asked, rows[far])
        yield squared.div_(-2 * variance[:, None])
