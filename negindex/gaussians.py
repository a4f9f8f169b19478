"""Clusters as normal distributions of several widths: what they weigh and where they pull, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from negindex.summed import apart, from_left, from_right

RANK = 8  # principal axes kept of a cluster's covariance; the rest of it counts as alike in all directions
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a cluster's covariance: its rows are a mix of normal ones of these widths
_FAR = 1e15  # from which on squares are too large for float32
_COARSE = 1e4  # times h: at that length float32 numbers are too coarse
_SMALL = 1e-30  # no sum of shares is less
_STEPS = 15  # of expectation and maximisation
_PRIOR = 0.1  # rows, over all scales


class Told(NamedTuple):
    """What each of K clusters says about E[x_0 | x_t] if its rows are a mix of normal distributions about its mean.

    A cluster's own E[x_0 | x_t] is its mean + ``kept`` (``query`` - its mean) + ``pull`` along its axes.
    """

    log_mass: Tensor  # (B, K) float64
    log_most: Tensor  # (B, K) float64, the mass if all its rows were of the widest: never less than log_mass
    kept: Tensor  # (B, K) float64, what remains of an offset beside the axes
    pull: Tensor  # (B, R, K) float32, what remains more than that along them
    spread: Tensor  # (B, K) float64, the rows' variance about it as the query sees them, all dimensions together
    distance: Tensor  # (B, K) float64, squared, from the query to the cluster's mean
    query: Tensor  # (B, d) float64, about the space's centre
    across: Tensor  # of every sample, see ``Gaussians.across``

    def about(self, sample: int) -> Told:
        """One sample's, without the batch's dimension."""
        return Told._make([*(part[sample] for part in self[:-1]), self.across])

    def centre(self, weight: Tensor) -> Tensor:
        """One sample's: the sum of all clusters' means (d,) float64 by weights (K,)."""
        kept = weight * self.kept
        along = torch.cat([weight.float() * self.pull, (weight - kept).float()[None]])
        return from_right(self.across.flatten(1), along.flatten()).double() + kept.sum() * self.query

    def middle(self, weight: Tensor) -> Tensor:
        """The same without what the axes add, which spares a pass over them."""
        kept = weight * self.kept
        return from_right(self.across[:, -1], (weight - kept).float()).double() + kept.sum() * self.query

    def squared_from(self, point: Tensor, lengths: Tensor) -> Tensor:
        """One sample's: how far the clusters' means are from a point (d,), squared, (K,) float64.

        lengths: (K,) float64, squared, of their own means. As if what the axes add were at right angles to the rest;
        the rest lies on the line from the cluster's own mean to the query (Stewart's theorem).
        """
        kept, from_query = self.kept, (point - self.query).square().sum()
        own = lengths + point.square().sum() - 2 * from_left(point.float(), self.across[:, -1])
        rest = (1 - kept) * (own - kept * self.distance) + kept * from_query
        return rest.clamp_min_(0) + self.pull.square().sum(0)


class _Moments(NamedTuple):
    """Of K clusters."""

    counts: Tensor  # (K,) int64
    mean: Tensor  # (K, d) float32, about the space's centre; 0 for a cluster without rows
    axes: Tensor  # (K, R, d) float32, orthonormal principal axes: most of what a look-up reads here
    middle: Tensor  # (K, R) float32, the mean along the axes
    variance: Tensor  # (K, R) float64, along the axes
    rest: Tensor  # (K,) float64, along every other direction
    shares: Tensor  # (K, S) float64, of its rows at each of SCALES times its covariance
    mark: Tensor  # (K, m) float64, mean of the sketches
    scatter: Tensor  # (K,) float64, mean squared distance of the sketches, and so of what they stand for, from it


class Gaussians(_Moments):
    """Moments of K clusters inside the kernel's space, and of sketches outside it."""

    @cached_property
    def across(self) -> Tensor:
        """(d, R + 1, K) float32, the axes, and the means behind them: a pass over long lines takes half the time."""
        return torch.cat([self.axes, self.mean[:, None]], 1).permute(2, 1, 0).contiguous()

    @cached_property
    def wide(self) -> Tensor:
        """(R + 1, S, K) float64, the variances along the axes and along every other direction, of each width."""
        scales = torch.cat([self.variance, self.rest[:, None]], 1).T
        return scales[:, None] * torch.tensor(SCALES, dtype=torch.float64)[:, None]

    @cached_property
    def lengths(self) -> Tensor:
        """(K,) float64, squared, of the means."""
        return self.mean.double().square().sum(1)

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
        mean = m + cC (cC + h²I)⁻¹ (q-m), with C of rank 8 plus a multiple of the identity off the axes; widths
        count by their shares. Clusters of real rows have denser cores and heavier tails than a normal distribution,
        which a far query would misjudge by half. Cost: 4 B K d products with the axes.
        """
        coarse = float(query.norm(dim=1).max()) > min(_FAR, _COARSE * float(variance.min().sqrt()))
        kind = torch.float64 if coarse else torch.float32
        distance, along = apart(query.to(kind), self.mean.to(kind)), self._along(query.to(kind))
        squares = along.square()
        left = (distance - squares.sum(1)).clamp_min_(0).to(kind)
        squares = torch.cat([squares, left[:, None]], 1)  # (B, R + 1, K)
        wide = self.wide.to(kind)
        h2 = (variance if bool((variance != variance[0]).any()) else variance[:1])[:, None, None, None].to(kind)
        total = wide + h2  # (B, R + 1, S, K), of one sample where the others' is the same
        lost = h2 / total  # of an offset along each axis
        times = _times(self.axes)
        narrower = lost.log()
        narrower[:, -1] *= float(times[-1])
        exponent = ((squares / h2[:, 0])[:, :, None] * lost).sum(1) - narrower.sum(1)
        each = self.counts.log() - 0.5 * exponent.double()  # (B, S, K)
        shared = each + self.shares.T.log()
        most = shared.amax(1, keepdim=True).clamp_min_(-1e300)
        share = (shared - most).to(kind).exp_()
        whole = share.sum(1, keepdim=True)
        log_mass = (most + whole.double().log_())[:, 0]
        kept = ((share / whole.clamp_min(_SMALL))[:, None] * (wide / total)).sum(2)
        return Told(
            log_mass=log_mass,
            log_most=torch.maximum(log_mass, each[:, -1]),
            kept=kept[:, -1].double(),
            pull=(along * (kept[:, :-1] - kept[:, -1:])).float(),
            spread=variance[:, None] * (times[:, None] * kept).sum(1) + self.scatter,
            distance=distance.double(),
            query=query,
            across=self.across,
        )

    def _along(self, query: Tensor) -> Tensor:
        """(B, R, K), how far queries (B, d) are from the clusters' means along the axes; of all in one pass."""
        if query.dtype == torch.float64:
            return torch.einsum("krd,bkd->brk", self.axes.double(), query[:, None] - self.mean)
        found = from_left(query, self.across[:, :-1].flatten(1))  # (B, R K)
        return found.reshape(-1, *self.middle.T.shape).sub_(self.middle.T)


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
