"""What a set of rows says about E[x_0 | x_t]: a statistic that merges like attention blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.errors import KernelMismatch, ShapeMismatch
from negindex.kernel import Kernel

NEG_INF = float("-inf")


class Origin(NamedTuple):
    """Which set answered, and at which of its versions."""

    set_id: str
    version: int


class Missing(NamedTuple):
    """A set of a union that did not answer, where the union was told to go on without it."""

    set_id: str  # as its answers would say it
    error: str  # the error's name in negindex.errors
    said: str  # which member, where it is, and what it said


class Heaviest(NamedTuple):
    """The rows that weigh most, heaviest first; id -1 and log-weight -inf fill the places left over."""

    origin: Tensor  # (B, H) int64, index into Partial.origins
    ids: Tensor  # (B, H) int64
    log_weight: Tensor  # (B, H) float64, unnormalised


@dataclass(frozen=True, eq=False)
class Partial:
    """The posterior over one set of negatives, in a form that any split merges back to.

    Dividing by ``count`` is the gate's business, so thresholds survive growth of the set.
    ``log_tail`` and ``log_unread`` are -inf and ``error`` is 0 where every row was read.
    Source: Kim et al. 2025 (arXiv 2502.08011), Eq. 6.
    """

    log_norm: Tensor  # (B,)    float64, log-sum-exp of the log-weights; -inf when empty
    mean: Tensor  # (B, *S) float64, weighted mean of the rows; 0 when empty
    log_tail: Tensor  # (B,)    float64, log of the weight that was modelled, not weighed row by row
    log_unread: Tensor  # (B,)    float64, log of the weight of rows that were weighed but not read in full
    error: Tensor  # (B,)    float64, stated: at least ||mean - exact|| / rms radius of the set
    heaviest: Heaviest
    count: int  # rows in force behind the answer
    kernel: Kernel
    origins: tuple[Origin, ...]
    missing: tuple[Missing, ...] = ()  # sets of the same union that are not in the answer

    @classmethod
    def empty(cls, batch: int, shape: tuple[int, ...], kernel: Kernel, device: torch.device | str = "cpu") -> Partial:
        """What no rows say: the neutral element of ``merge``."""
        nothing = torch.full((batch,), NEG_INF, dtype=torch.float64, device=device)
        none = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return cls(
            log_norm=nothing,
            mean=torch.zeros(batch, *shape, dtype=torch.float64, device=device),
            log_tail=nothing,
            log_unread=nothing,
            error=torch.zeros_like(nothing),
            heaviest=Heaviest(none, none, none.to(torch.float64)),
            count=0,
            kernel=kernel,
            origins=(),
        )

    @property
    def captured(self) -> Tensor:
        """(B,) share of the posterior weight that was read row by row, in [0, 1]."""
        modelled = torch.logaddexp(self.log_tail, self.log_unread)
        return 1 - _share(modelled, self.log_norm)

    def merge(self, other: Partial) -> Partial:
        """The answer of both sets of rows together: log-add-exp and a convex combination.

        Exact answers merge to rounding whatever the split; modelled ones within the sum of their
        stated errors. Raises KernelMismatch when the two were weighed by different kernels.
        """
        if self.kernel != other.kernel:
            raise KernelMismatch(
                f"answers weighed by {self.kernel.name} and by {other.kernel.name} cannot be merged; "
                "ask both sets with one kernel (posterior(..., kernel=...))"
            )
        if self.mean.shape != other.mean.shape:
            raise ShapeMismatch(
                f"answers of shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)} cannot be merged"
            )
        log_norm = torch.logaddexp(self.log_norm, other.log_norm)
        ours, theirs = _convex(self.log_norm, other.log_norm)
        origins = tuple(dict.fromkeys(self.origins + other.origins))
        return Partial(
            log_norm=log_norm,
            mean=_scale(ours, self.mean) + _scale(theirs, other.mean),
            log_tail=torch.logaddexp(self.log_tail, other.log_tail),
            log_unread=torch.logaddexp(self.log_unread, other.log_unread),
            error=ours * self.error + theirs * other.error,
            heaviest=_merge_heaviest(self, other, origins),
            count=self.count + other.count,
            kernel=self.kernel,
            origins=origins,
            missing=tuple(dict.fromkeys(self.missing + other.missing)),
        )

    def put(self, samples: Tensor, part: Partial) -> Partial:
        """The answers with those of ``part`` in the places of some samples (n,) of its batch."""
        at = samples.to(self.mean.device)

        def put(one: Tensor, other: Tensor) -> Tensor:
            return one.index_copy(0, at, other)

        return replace(
            self,
            log_norm=put(self.log_norm, part.log_norm),
            mean=put(self.mean, part.mean),
            log_tail=put(self.log_tail, part.log_tail),
            log_unread=put(self.log_unread, part.log_unread),
            error=put(self.error, part.error),
            heaviest=Heaviest(*map(put, self.heaviest, part.heaviest)),
        )

    def to(self, device: torch.device | str) -> Partial:
        """The same answer with its tensors on ``device``; itself where they are."""
        if self.mean.device == torch.device(device):
            return self
        return replace(
            self,
            log_norm=self.log_norm.to(device),
            mean=self.mean.to(device),
            log_tail=self.log_tail.to(device),
            log_unread=self.log_unread.to(device),
            error=self.error.to(device),
            heaviest=Heaviest(*(t.to(device) for t in self.heaviest)),
        )


def _share(log_part: Tensor, log_whole: Tensor) -> Tensor:
    return torch.where(log_part == NEG_INF, 0.0, torch.exp(log_part - log_whole))


def _convex(log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of two weights in their sum, from their difference: they add up to 1 however large the logs."""
    a, b = torch.sigmoid(log_a - log_b), torch.sigmoid(log_b - log_a)
    return torch.where(log_a == NEG_INF, 0.0, a), torch.where(log_b == NEG_INF, 0.0, b)


def _scale(share: Tensor, mean: Tensor) -> Tensor:
    return share.reshape(-1, *[1] * (mean.dim() - 1)) * mean


def _places(a: Partial, b: Partial) -> int:
    """How many heaviest rows both can name together: all, or as many as the one that was asked for fewest.

    An answer with as many places as rows names them all; any other number is the k that it was asked for.
    """
    widths = [part.heaviest.ids.shape[1] for part in (a, b)]
    asked = [width for width, part in zip(widths, (a, b), strict=True) if width != part.count]
    return min(asked, default=sum(widths))


def _merge_heaviest(a: Partial, b: Partial, origins: tuple[Origin, ...]) -> Heaviest:
    def renumbered(part: Partial) -> Tensor:
        place = torch.tensor([origins.index(o) for o in part.origins] + [0], device=part.mean.device)
        return place[part.heaviest.origin]

    log_weight = torch.cat([a.heaviest.log_weight, b.heaviest.log_weight], 1)
    width = _places(a, b)
    log_weight, order = log_weight.sort(dim=1, descending=True, stable=True)
    order = order[:, :width]
    return Heaviest(
        origin=torch.cat([renumbered(a), renumbered(b)], 1).gather(1, order),
        ids=torch.cat([a.heaviest.ids, b.heaviest.ids], 1).gather(1, order),
        log_weight=log_weight[:, :width],
    )
