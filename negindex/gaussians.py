"""Clusters as normal distributions of several widths: what they weigh and where they pull, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor

RANK = 16  # principal axes kept of a cluster's covariance; the rest of it counts as alike in all directions
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a cluster's covariance: its rows are a mix of normal ones of these widths
_FAR = 1e15  # from which on squares are too large for float32
_STEPS = 15  # of expectation and maximisation
_PRIOR = 0.1  # rows, over all scales


class Told(NamedTuple):
    """What each of K clusters says about E[x_0 | x_t] if its rows are a mix of normal distributions about its mean."""

    log_mass: Tensor  # (B, K) float64
    log_most: Tensor  # (B, K) float64, the mass if all its rows were of the widest: never less than log_mass
    mean: Tensor  # (B, K, d) float32, about the space's centre
    spread: Tensor  # (B, K) float64, the rows' variance about it as the query sees them, all dimensions together
    distance: Tensor  # (B, K) float64, squared, from the query to the cluster's mean

    def about(self, sample: int) -> Told:
        """One sample's, without the batch's dimension."""
        return Told(*(part[sample] for part in self))


class Gaussians(NamedTuple):
    """Moments of K clusters inside the kernel's space, and of sketches outside it."""

    counts: Tensor  # (K,) int64
    mean: Tensor  # (K, d) float32, about the space's centre; 0 for a cluster without rows
    axes: Tensor  # (K, d, R) float32, orthonormal principal axes: most of what a look-up reads here
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
        which a far query would misjudge by half. Cost: 32 B K d products.
        """
        kind = torch.float32 if float(query.abs().max()) < _FAR else torch.float64
        axes, times, h2 = self.axes.to(kind), _times(self.axes), variance[:, None, None, None]
        apart = query.to(kind)[:, None] - self.mean  # (B, K, d)
        along = torch.einsum("kdr,bkd->bkr", axes, apart)
        distance = torch.einsum("bkd,bkd->bk", apart, apart)
        left = (distance - along.square().sum(2)).clamp_min(0)
        squares = torch.cat([along.square(), left[..., None]], 2).double()  # (B, K, R + 1)
        scales = torch.cat([self.variance, self.rest[:, None]], 1)  # (K, R + 1)
        wide = torch.tensor(SCALES, dtype=torch.float64)[:, None] * scales[:, None]  # (K, S, R + 1)
        total = wide + h2  # (B, K, S, R + 1)
        determinant = (total / h2).to(kind).log() @ times.to(kind)  # in float32 a logarithm takes a third of the time
        each = self.counts.log()[:, None] - 0.5 * ((squares[:, :, None] / total).sum(3) + determinant)  # (B, K, S)
        shared = each + self.shares.log()
        log_mass = shared.logsumexp(2)
        share = (shared - log_mass[..., None].clamp_min(-1e300)).exp()
        kept = (share[..., None] * (wide / total)).sum(2)  # (B, K, R + 1), what remains of an offset along each axis
        turned = torch.einsum("kdr,bkr->bkd", axes, (along * (kept[..., :-1] - kept[..., -1:])).to(kind))
        return Told(
            log_mass=log_mass,
            log_most=torch.maximum(log_mass, each[..., -1]),
            mean=torch.addcmul(self.mean + turned, kept[..., -1:].to(kind), apart).float(),
            spread=(variance[:, None, None] * kept) @ times + self.scatter,
            distance=distance.double(),
        )


def _times(axes: Tensor) -> Tensor:
    """(R + 1,) float64: in how many directions a cluster varies as along each axis (..., d, R), and as beside them."""
    width, rank = axes.shape[-2:]
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
    return torch.tensor(len(reduced)), mean.float(), axes.float(), variance, rest, shares, mark, scatter


def _shares(rows: Tensor, axes: Tensor, scales: Tensor) -> Tensor:
    """The shares (S,) of widths under which centred rows (n, d) are likeliest, by expectation and maximisation."""
    along, times = (rows @ axes).square(), _times(axes)
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
