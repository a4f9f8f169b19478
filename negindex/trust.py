"""How far a closed form can be trusted: learned from queries whose exact answer memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import hypot, log
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.clusters import Clusters
from negindex.exact import Scan
from negindex.head import Effort, Head, cancelling, weigh
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF
from negindex.projection import generator, geometric
from negindex.summed import apart

LEVELS = tuple(geometric(0.2, 80.0, 11))
SURE = 1.25  # a length read off 64 numbers of a sketch is at most this much too short, in 97 of 100
FLOOR = 1e-4  # of the rms radius: a tail is never taken to matter less
ROUNDING = 3e-6  # of the rms radius: memory holds float32
CARE = 2.0  # samples differ from the probes: so many times what these call for is stated
_HELD_OUT = 64  # rows
_TAUGHT = 3  # of so many probes one teaches how the closed form leans
_LEAST = 1e-3  # share of the weight in closed clusters from which on there is something to learn
_MOST = 1.0  # of a log: a closed form leans by no more
_AT_ONCE = 16  # queries
_CHUNK = 1 << 24  # distances at a time


@dataclass(frozen=True, eq=False)
class Trust:
    """How closed forms lean, and the stated error: SURE |lacking| and factor (tail + FLOOR) at right angles.

    Per level and effort: the log of what closed clusters weigh over what their closed form says, in the median
    probe, and CARE times a factor that 95 % of the probes keep to. Lengths are relative to the rms radius.
    """

    levels: tuple[float, ...]  # (L,), ascending
    factors: Tensor  # (L, efforts) float64
    leans: Tensor  # (L, efforts) float64

    @classmethod
    def learn(cls, clusters: Clusters, source: Scan, efforts: Sequence[Effort], seed: int = 0) -> Trust:
        """Hold some rows out and ask the others about them, noised, at each level of the kernel.

        Cost: 96 L scans of the rows in memory.
        """
        levels = tuple(sorted({*LEVELS, *(s for s, _ in clusters.space.kernel.temperatures)}))
        factors, leans = (torch.zeros(len(levels), len(efforts), dtype=torch.float64) for _ in range(2))
        partial = [i for i, effort in enumerate(efforts) if effort.weighed < len(clusters)]  # the others leave no tail
        if not partial:
            return cls(levels, factors, leans)
        rows = torch.randperm(len(clusters), generator=generator(seed))[: min(_HELD_OUT, len(clusters) // 4)]
        held = torch.zeros(len(clusters), dtype=torch.bool).index_fill(0, rows, True)
        clean, rest = clusters.reduced[rows].double(), clusters.without(held, source)
        for row, s in enumerate(levels):
            asked, tried = _Asked.of(rest, noised(rest, clean, s, seed + row), s), [efforts[i] for i in partial]
            lean = asked.some(_TAUGHT).leans(tried)
            leans[row, partial] = torch.tensor(lean, dtype=torch.float64)
            factors[row, partial] = CARE * asked.beyond(tried, lean).quantile(0.95, dim=0)
        return cls(levels, factors, leans)

    def lean(self, s: float, effort: int) -> float:
        """What to add to the log mass of closed clusters at noise level s."""
        return self._at(s, self.leans[:, effort])

    def error(self, head: Head, s: float, effort: int, rms: float) -> float:
        """The stated error of an answer at noise level s, relative to the rms radius."""
        radius = max(rms, 1e-300)
        unread = SURE * float(head.reading.lacking.norm()) / radius + ROUNDING
        if head.log_tail == NEG_INF:
            return unread
        return hypot(unread, self._at(s, self.factors[:, effort]) * (float(head.tail) / radius + FLOOR))

    def _at(self, s: float, values: Tensor) -> float:
        return float(np.interp(log(s), self._log_levels, values.numpy()))

    @cached_property
    def _log_levels(self) -> NDArray[np.float64]:
        return np.log(self.levels)


class _Asked(NamedTuple):
    """Probes at one level, and what all rows say of them."""

    clusters: Clusters
    query: Tensor  # (B, d) float64
    variance: Tensor  # () float64
    mean: Tensor  # (B, d + m) float64, with its sketch
    log_norm: Tensor  # (B,) float64

    @classmethod
    def of(cls, clusters: Clusters, query: Tensor, s: float) -> _Asked:
        variance = clusters.space.kernel.variance(NoiseLevel(1.0, s)).reshape(())
        parts = [exact(clusters, some, variance.expand(len(some))) for some in query.split(_AT_ONCE)]
        mean, log_norm = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(clusters, query, variance, mean, log_norm)

    def some(self, step: int) -> _Asked:
        """One in so many of the probes."""
        return self._replace(query=self.query[::step], mean=self.mean[::step], log_norm=self.log_norm[::step])

    def heads(self, efforts: Sequence[Effort], leans: Sequence[float]) -> Iterator[list[Head]]:
        """What each probe is answered, by each effort."""
        for points in self.query.split(_AT_ONCE):
            told = self.clusters.gaussians.seen_from(points, self.variance.expand(len(points)))
            for q, point in enumerate(points):
                one = told.about(q)
                yield [
                    weigh(self.clusters, point, self.variance, one, effort, 1, lean)
                    for effort, lean in zip(efforts, leans, strict=True)
                ]

    def leans(self, efforts: Sequence[Effort]) -> list[float]:
        """The log of what closed clusters weigh over what is said of them, by each effort: see ``_lean``."""
        heads = zip(*self.heads(efforts, [0.0] * len(efforts)), strict=True)
        return [_lean(of_effort, self.log_norm) for of_effort in heads]

    def beyond(self, efforts: Sequence[Effort], leans: Sequence[float]) -> Tensor:
        """True errors over the tails, (B, efforts)."""
        tried = [
            [(_wrong(head, mean), float(head.tail)) for head in heads]
            for heads, mean in zip(self.heads(efforts, leans), self.mean, strict=True)
        ]
        wrong, tail = torch.tensor(tried, dtype=torch.float64).div_(max(self.clusters.rms, 1e-300)).unbind(2)
        return wrong / (tail + FLOOR)


def _lean(heads: Sequence[Head], log_norm: Tensor) -> float:
    """The median log ratio, probes counted by the share that closed clusters have; log_norm (B,) of all rows."""
    ratios, shares = [], []
    for head, norm in zip(heads, log_norm, strict=True):
        seen = torch.logaddexp(head.log_read, head.log_unread) - norm
        weighs, said = 1.0 - float(seen.exp()), float((head.log_tail - norm).exp())
        if min(weighs, said) > _LEAST:
            ratios.append(log(weighs / said))
            shares.append(min(weighs, said))
    if not ratios:
        return 0.0
    order = np.argsort(ratios)
    middle = np.searchsorted(np.cumsum(np.array(shares)[order]), sum(shares) / 2)
    return float(np.clip(ratios[order[middle]], -_MOST, _MOST))


def noised(clusters: Clusters, clean: Tensor, s: float, seed: int) -> Tensor:
    """Probes made of rows (n, d), noised: (1.5 n, d) float64.

    Of every twelve, four near a row; four that have each number from one of two rows, so that they lie where a row
    might and none does; two midpoints of two rows, a mean of four, and a row at twice its distance.
    """
    random, half, other = generator(seed), len(clean) // 2, clean.roll(1, 0)
    mixed = torch.where(torch.rand(clean.shape, generator=random) < 0.5, clean, other)
    two = 0.5 * (clean + other)
    four = 0.5 * (two + two.roll(2, 0))
    parts = [clean[:half], mixed[half:], two[: half // 2], four[half : half + half // 4], 2 * clean[: half // 4]]
    probes = torch.cat(parts)
    noise = torch.randn(len(probes), len(clusters.space.centre), generator=random, dtype=torch.float64)
    return probes + s * clusters.space.kernel.reduce(noise)


def _wrong(head: Head, mean: Tensor) -> float:
    """How far the head's mean may be from the exact one (d + m,), what its rows lack outside set right."""
    inside, mark = head.inside - mean[: len(head.inside)], head.reading.mark - mean[len(head.inside) :]
    return hypot(float(inside.norm()), SURE * float((mark + head.reading.lacking).norm()))


def exact(clusters: Clusters, query: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and its sketch (B, d + m), and the log of the weight (B,), every row weighed from memory; float64."""
    chunks = list(_log_weights(clusters, query, variance))
    log_norm = torch.cat([chunk.logsumexp(1, keepdim=True) for chunk in chunks], 1).logsumexp(1, keepdim=True)
    total = torch.zeros(len(query), clusters.space.width + clusters.space.marks, dtype=torch.float64)
    start = 0
    for chunk in chunks:
        here = slice(start, start := start + chunk.shape[1])
        weight = (chunk - log_norm).float().exp()
        total += torch.cat([weight @ clusters.reduced[here], weight @ clusters.sketch[here]], 1)
    return total, log_norm[:, 0]


def _log_weights(clusters: Clusters, query: Tensor, variance: Tensor) -> Iterator[Tensor]:
    """(B, n) float64, of each stretch of rows in turn."""
    some, own, asked = max(1, _CHUNK // len(query)), query.square().sum(1, keepdim=True), query.float()
    for rows, lengths in zip(clusters.reduced.split(some), clusters.lengths.split(some), strict=True):
        squared = torch.addmm(lengths, asked, rows.T, alpha=-2).double().add_(own).clamp_min_(0)
        far = cancelling(lengths, query, variance).nonzero()[:, 0]
        squared[:, far] = apart(asked, rows[far])
        yield squared.div_(-2 * variance[:, None])
