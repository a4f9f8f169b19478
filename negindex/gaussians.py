"""Clusters as normal distributions: what they weigh and where they pull, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor

RANK = 16  # principal axes kept of a cluster's covariance; the rest of it counts as alike in all directions
_HEAVY = 4  # times its covariance, a cluster's mass is taken again: k-means leaves tails heavier than normal ones


class Told(NamedTuple):
    """What each of K clusters says about E[x_0 | x_t] if its rows are normally distributed."""

    log_mass: Tensor  # (B, K) float64
    log_most: Tensor  # (B, K) float64, what the mass may be if tails are heavier: never less than log_mass
    mean: Tensor  # (B, K, d) float64, about the space's centre
    spread: Tensor  # (B, K) float64, the rows' variance about it as the query sees them, all dimensions together
    distance: Tensor  # (B, K) float64, squared, from the query to the cluster's mean

    def about(self, sample: int) -> Told:
        """One sample's, without the batch's dimension."""
        return Told(*(part[sample] for part in self))


class Gaussians(NamedTuple):
    """Moments of K clusters inside the kernel's space, and of sketches outside it."""

    counts: Tensor  # (K,) int64
    mean: Tensor  # (K, d) float64, about the space's centre; 0 for a cluster without rows
    axes: Tensor  # (K, d, R) float64, orthonormal principal axes
    variance: Tensor  # (K, R) float64, along the axes
    rest: Tensor  # (K,) float64, along every other direction
    mark: Tensor  # (K, m) float64, mean of the sketches
    scatter: Tensor  # (K,) float64, mean squared distance of the sketches, and so of what they stand for, from it

    @classmethod
    def fit(cls, clusters: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Of the rows (n, d) and sketches (n, m) of each cluster, n >= 0."""
        return cls(*(torch.stack(part) for part in zip(*(_fit(*rows) for rows in clusters), strict=True)))

    def but(self, clusters: Tensor, other: Self) -> Self:
        """The same with the moments of some clusters (c,) replaced by ``other``'s."""
        return type(self)(*(one.index_copy(0, clusters, two) for one, two in zip(self, other, strict=True)))

    def seen_from(self, query: Tensor, variance: Tensor) -> Told:
        """Every cluster in closed form: query (B, d) float64 about the centre, variance (B,) = h².

        log mass = log n - ½ (q-m)ᵀ (C + h²I)⁻¹ (q-m) - ½ log det (I + C/h²), mean = m + C (C + h²I)⁻¹ (q-m),
        with C of rank 16 plus a multiple of the identity off the axes. Cost: 32 B K d products.
        """
        h2, apart = variance[:, None, None], query[:, None] - self.mean  # (B, K, d)
        along = torch.einsum("kdr,bkd->bkr", self.axes, apart)
        distance = apart.square().sum(2)
        left = (distance - along.square().sum(2)).clamp_min(0)
        squares = torch.cat([along.square(), left[..., None]], 2)  # (B, K, R + 1)
        scales = torch.cat([self.variance, self.rest[:, None]], 1)  # (K, R + 1)
        times = scales.new_ones(scales.shape[1])  # in how many directions C has each of the scales
        times[-1] = self.mean.shape[1] - self.variance.shape[1]
        log_mass, log_wide = (
            self.counts.log() - 0.5 * ((squares / (some + h2)).sum(2) + torch.log1p(some / h2) @ times)
            for some in (scales, _HEAVY * scales)
        )
        kept = scales / (scales + h2)  # (B, K, R + 1)
        turned = torch.einsum("kdr,bkr->bkd", self.axes, along * (kept[..., :-1] - kept[..., -1:]))
        return Told(
            log_mass=log_mass,
            log_most=torch.maximum(log_mass, log_wide),
            mean=self.mean + turned + kept[..., -1:] * apart,
            spread=(scales * (1 - kept)) @ times + self.scatter,
            distance=distance,
        )


def _fit(reduced: Tensor, sketch: Tensor) -> tuple[Tensor, ...]:
    """One cluster's moments, in the order of ``Gaussians``."""
    count, width = max(len(reduced), 1), reduced.shape[1]
    rank = min(RANK, width)
    rows, marks = reduced.to(torch.float64), sketch.to(torch.float64)
    mean, mark = rows.sum(0) / count, marks.sum(0) / count
    axes, variance = _principal(rows - mean, rank)
    rest = ((rows - mean).square().sum() / count - variance.sum()).clamp_min(0) / max(width - rank, 1)
    return torch.tensor(len(reduced)), mean, axes, variance, rest, mark, (marks - mark).square().sum() / count


def _principal(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The principal axes (d, rank) of centred rows (n, d), and the variance (rank,) along each; 0 where rows end."""
    count, width = rows.shape
    axes, variance = rows.new_zeros(width, rank), rows.new_zeros(rank)
    if count < width:  # by the products of the rows among each other: as many numbers, fewer of them
        value, vector = torch.linalg.eigh(rows @ rows.T)
        found = value.flip(0)[:rank].clamp_min(0)
        long = found > 1e-12 * found[:1].sum()
        axes[:, : len(found)] = torch.where(long, rows.T @ vector.flip(1)[:, :rank] / found.clamp_min(1e-300).sqrt(), 0)
        variance[: len(found)] = torch.where(long, found / max(count, 1), 0)
        return axes, variance
    value, vector = torch.linalg.eigh(rows.T @ rows)
    return vector.flip(1)[:, :rank].contiguous(), (value.flip(0)[:rank] / count).clamp_min(0)
