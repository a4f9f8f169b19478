"""Clusters as normal distributions of several widths: what they weigh and where they pull, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor

RANK = 8  # principal axes kept of a cluster's covariance; the rest of it counts as alike in all directions
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a cluster's covariance: its rows are a mix of normal ones of these widths
_FAR = 1e15  # from which on squares are too large for float32
_COARSE = 1e4  # times h: at that length float32 numbers are too coarse
_NEGLIGIBLE = 1e-9  # of the largest weight
_GATHERED = 4  # clusters are gathered where so many times as many are there
_STEPS = 15  # of expectation and maximisation
_PRIOR = 0.1  # rows, over all scales


class Told(NamedTuple):
    """What each of K clusters says about E[x_0 | x_t] if its rows are a mix of normal distributions about its mean.

    A cluster's own E[x_0 | x_t] is ``plain`` + ``pull`` @ ``axes``.
    """

    log_mass: Tensor  # (B, K) float64
    log_most: Tensor  # (B, K) float64, the mass if all its rows were of the widest: never less than log_mass
    plain: Tensor  # (B, K, d) float32, about the space's centre
    pull: Tensor  # (B, K, R) float32
    spread: Tensor  # (B, K) float64, the rows' variance about it as the query sees them, all dimensions together
    distance: Tensor  # (B, K) float64, squared, from the query to the cluster's mean
    axes: Tensor  # (K, R, d) float32, of every sample

    def about(self, sample: int) -> Told:
        """One sample's, without the batch's dimension."""
        return Told._make([*(part[sample] for part in self[:-1]), self.axes])

    def mean(self, weight: Tensor) -> Tensor:
        """One sample's: the sum of all clusters' means (d,) float32 by weights (K,)."""
        some = (weight > _NEGLIGIBLE * weight.max()).nonzero()[:, 0]
        few = _GATHERED * len(some) < len(weight)
        share, plain, pull, axes = (
            part[some] if few else part for part in (weight.float(), self.plain, self.pull, self.axes)
        )
        return share @ plain + (share[:, None] * pull).flatten() @ axes.flatten(0, 1)

    def squared_from(self, point: Tensor) -> Tensor:
        """One sample's: how far the clusters' means are from a point (d,), squared, (K,) float64.

        As if what the axes add were at right angles to the rest, which spares a pass over them.
        """
        away = self.plain - point.float()
        return (torch.einsum("kd,kd->k", away, away) + torch.einsum("kr,kr->k", self.pull, self.pull)).double()


class Gaussians(NamedTuple):
    """Moments of K clusters inside the kernel's space, and of sketches outside it."""

    counts: Tensor  # (K,) int64
    mean: Tensor  # (K, d) float32, about the space's centre; 0 for a cluster without rows
    axes: Tensor  # (K, R, d) float32, orthonormal principal axes: most of what a look-up reads here
    middle: Tensor  # (K, R) float32, the mean along the axes
    variance: Tensor  # (K, R) float64, along the axes
    rest: Tensor  # (K,) float64, along every other direction
    shares: Tensor  # (K, S) float64, of its rows at each of SCALES times its covariance
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

        Of a width c: log mass = log n - ½ (q-m)ᵀ (cC + h²I)⁻¹ (q-m) - ½ log det (I + cC/h²) and
        mean = m + cC (cC + h²I)⁻¹ (q-m), with C of rank 16 plus a multiple of the identity off the axes; widths
        count by their shares. Clusters of real rows have denser cores and heavier tails than a normal distribution,
        which a far query would misjudge by half. Cost: 8 B K d products.
        """
        coarse = float(query.norm(dim=1).max()) > min(_FAR, _COARSE * float(variance.min().sqrt()))
        kind = torch.float64 if coarse else torch.float32
        times, h2 = _times(self.axes), variance[:, None, None, None]
        apart = query.to(kind)[:, None] - self.mean  # (B, K, d)
        if coarse:
            along = torch.einsum("krd,bkd->bkr", self.axes.to(kind), apart)
        else:  # of all samples in one pass over the axes
            along = (query.to(kind) @ self.axes.flatten(0, 1).T).unflatten(1, self.middle.shape) - self.middle
        distance = torch.einsum("bkd,bkd->bk", apart, apart)
        left = (distance - along.square().sum(2)).clamp_min(0)
        squares = torch.cat([along.square(), left[..., None]], 2)  # (B, K, R + 1)
        scales = torch.cat([self.variance, self.rest[:, None]], 1)  # (K, R + 1)
        wide = (torch.tensor(SCALES, dtype=torch.float64)[:, None] * scales[:, None]).to(kind)  # (K, S, R + 1)
        total = wide + h2.to(kind)  # (B, K, S, R + 1)
        exponent = (squares[:, :, None] / total).sum(3) + (total / h2.to(kind)).log() @ times.to(kind)
        each = self.counts.log()[:, None] - 0.5 * exponent.double()  # (B, K, S)
        shared = each + self.shares.log()
        log_mass = shared.logsumexp(2)
        share = (shared - log_mass[..., None].clamp_min(-1e300)).exp().to(kind)
        kept = torch.einsum("bks,bksr->bkr", share, wide / total)  # what remains of an offset along each axis
        return Told(
            log_mass=log_mass,
            log_most=torch.maximum(log_mass, each[..., -1]),
            plain=torch.addcmul(self.mean, kept[..., -1:], apart).float(),
            pull=(along * (kept[..., :-1] - kept[..., -1:])).float(),
            spread=(variance[:, None, None] * kept) @ times + self.scatter,
            distance=distance.double(),
            axes=self.axes,
        )


def _times(axes: Tensor) -> Tensor:
    """(R + 1,) float64: in how many directions a cluster varies as along each axis (..., R, d), and as beside them."""
    rank, width = axes.shape[-2:]
    times = torch.ones(rank + 1, dtype=torch.float64)
    times[-1] = width - rank
    return times


def _fit(reduced: Tensor, sketch: Tensor) -> tuple[Tensor, ...]:
    """One cluster's moments, in the order of ``Gaussians``."""
    count, width = max(len(reduced), 1), reduced.shape[1]
    rank = min(RANK, width)
    rows, marks = reduced.to(torch.float64), sketch.to(torch.float64)
    mean, mark = rows.sum(0) / count, marks.sum(0) / count
    axes, variance = _principal(rows - mean, rank)
    rest = ((rows - mean).square().sum() / count - variance.sum()).clamp_min(0) / max(width - rank, 1)
    shares = _shares(rows - mean, axes, torch.cat([variance, rest[None]]))
    scatter = (marks - mark).square().sum() / count
    middle = axes @ mean
    return torch.tensor(len(reduced)), mean.float(), axes.float(), middle.float(), variance, rest, shares, mark, scatter


def _shares(rows: Tensor, axes: Tensor, scales: Tensor) -> Tensor:
    """The shares (S,) of widths under which centred rows (n, d) are likeliest, by expectation and maximisation."""
    along, times = (rows @ axes.T).square(), _times(axes)
    squares = torch.cat([along, (rows.square().sum(1) - along.sum(1)).clamp_min(0)[:, None]], 1)
    some = scales > 0
    length = (squares[:, some] / scales[some]).sum(1, keepdim=True)  # of each row, by the covariance
    wide = torch.tensor(SCALES, dtype=torch.float64)
    log_density = -0.5 * (length / wide + times[some].sum() * wide.log())
    shares = torch.full_like(wide, 1 / len(wide))
    for _ in range(_STEPS if len(rows) else 0):
        of_rows = (log_density + shares.log()).softmax(1)
        shares = (of_rows.sum(0) + _PRIOR / len(wide)) / (len(rows) + _PRIOR)
    return shares


def _principal(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The principal axes (rank, d) of centred rows (n, d), and the variance (rank,) along each; 0 where rows end."""
    count, width = rows.shape
    axes, variance = rows.new_zeros(rank, width), rows.new_zeros(rank)
    if count < width:  # by the products of the rows among each other: as many numbers, fewer of them
        value, vector = torch.linalg.eigh(rows @ rows.T)
        found = value.flip(0)[:rank].clamp_min(0)
        long = found > 1e-12 * found[:1].sum()
        turned = vector.flip(1)[:, :rank].T @ rows / found.clamp_min(1e-300).sqrt()[:, None]
        axes[: len(found)] = torch.where(long[:, None], turned, 0)
        variance[: len(found)] = torch.where(long, found / max(count, 1), 0)
        return axes, variance
    value, vector = torch.linalg.eigh(rows.T @ rows)
    return vector.flip(1)[:, :rank].T.contiguous(), (value.flip(0)[:rank] / count).clamp_min(0)
