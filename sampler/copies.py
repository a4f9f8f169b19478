"""The copy gate: a near-copy of one row, whatever else is in the set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from negindex.errors import OutOfRange
from negindex.moments import Moments
from negindex.negatives import Negatives, row_elements
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF, Missing, Partial

Level = TypeVar("Level", Tensor, float)

SHARE = 0.15  # of the rms radius: on 8 × 8 digits no fresh one fires at 0.1, at most 0.08 % at 0.15, 2.4 % at 0.2


class Copied(NamedTuple):
    """Which samples are noised near-copies of a row, and of which."""

    fires: Tensor  # (B,) bool
    rows: Tensor  # (B, *S) float64, the nearest row; 0 where nothing fires
    missing: tuple[Missing, ...] = ()  # sets of a union that were not asked

    @classmethod
    def nowhere(cls, x_t: Tensor) -> Copied:
        """Of samples that no gate has looked at."""
        nought = torch.zeros((), dtype=torch.float64, device=x_t.device)
        return cls(torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device), nought.expand(x_t.shape))

    def put_into(self, unsafe: Partial) -> Partial:
        """The answer with E_unsafe = z, read in full, for the samples that fire; the same where none does."""
        if not bool(self.fires.any()):
            return unsafe
        fires = self.fires.to(unsafe.mean.device)
        each = fires.reshape(-1, *[1] * (unsafe.mean.dim() - 1))
        return replace(
            unsafe,
            mean=torch.where(each, self.rows.to(unsafe.mean), unsafe.mean),
            log_tail=unsafe.log_tail.masked_fill(fires, NEG_INF),
            log_unread=unsafe.log_unread.masked_fill(fires, NEG_INF),
            error=unsafe.error.masked_fill(fires, 0.0),
        )


@dataclass(frozen=True)
class CopyGate:
    """Fires where a row z lies at ||y - z||² <= s² D + 3 s² sqrt(2 D) + r², with y = x_t / alpha and D dimensions.

    A noised copy of z lies at s² D on average, with standard deviation s² sqrt(2 D). The gate speaks where
    3 s² sqrt(2 D) <= r²: at higher noise the distance cannot tell copies within r from other images, and at
    that level it reaches out to sqrt(2) r. It never divides by the number of rows: one takedown does not
    drown in a large set, as it does in a ratio.

    radius: r, the L2 distance of a near-duplicate. None takes 0.15 of the rms distance of images from their
        mean: of the reference, or of the set itself where there is none. One row, or rows that are all
        copies of one image, have no such distance, and the image's own contrast stands in for it: its
        distance from an image that is flat in each channel. A flat image has neither: then name a radius,
        or the gate stays silent.
    """

    radius: float | None = None

    def __post_init__(self) -> None:
        if self.radius is not None and not 0 <= self.radius < float("inf"):
            raise OutOfRange(f"radius = {self.radius}; give a finite distance >= 0, or None to take it from the data")

    def sized(self, negatives: Negatives, reference: Negatives | None) -> CopyGate:
        """The gate with its radius taken from the data, if it has none. Cost: one pass over the rows."""
        if self.radius is not None:
            return self
        images = negatives if reference is None else reference
        return CopyGate(SHARE * _scale(images.moments(), images.shape))

    def speaks(self, level: NoiseLevel, dimensions: int) -> Tensor:
        """Whether noise at this level still leaves the radius to be seen, shape as the level's."""
        return _slack(level.s, dimensions) <= self._r**2

    def find(self, x_t: Tensor, level: NoiseLevel, negatives: Negatives) -> Copied:
        """The samples x_t (B, *S) that are near-copies; asks the set only about levels where the gate speaks."""
        nowhere, dimensions = Copied.nowhere(x_t), row_elements(negatives.shape)
        if _slack(min(level.s.reshape(-1).tolist(), default=inf), dimensions) > self._r**2:  # it speaks of none of them
            return nowhere
        level = level.expand(len(x_t))
        asked = self.speaks(level, dimensions).nonzero()[:, 0]
        limit = level.s.square() * dimensions + _slack(level.s, dimensions) + self._r**2
        alpha = level.alpha[asked].to(x_t.device).reshape(-1, *[1] * (x_t.dim() - 1))
        at = asked.to(x_t.device)
        near = negatives.near(x_t[at].to(torch.float64) / alpha, limit[asked].sqrt(), k=1, noise=level.s[asked])
        fires, rows = nowhere.fires.clone(), nowhere.rows.clone()
        fires[at], rows[at] = near.found.any(1), near.rows.sum(1)  # of one place, or of none
        return Copied(fires, rows, near.missing)

    @property
    def _r(self) -> float:
        if self.radius is None:
            raise OutOfRange("a copy gate without a radius; take it from the data with sized(negatives, reference)")
        return self.radius

    def __str__(self) -> str:
        return "within a radius from the data" if self.radius is None else f"within {self.radius:g}"


BY_DATA = CopyGate()


def _scale(moments: Moments, shape: tuple[int, ...]) -> float:
    """How far images lie apart; where they are near-copies of one image, how far it lies from a flat one."""
    mean = moments.mean.reshape(shape if len(shape) > 2 else (1, *shape))
    contrast = float((mean - mean.flatten(1).mean(1).reshape(-1, *[1] * (mean.dim() - 1))).norm())
    return moments.rms if moments.rms > SHARE * contrast else contrast


def noisiest(radius: float, dimensions: int) -> float:
    """The highest noise level s at which a gate of this radius speaks: 3 s² sqrt(2 D) = r²."""
    return radius / sqrt(3 * sqrt(2 * dimensions))


def _slack(s: Level, dimensions: int) -> Level:
    """3 s² sqrt(2 D): three standard deviations of ||y - z||² for a copy of z at noise level s."""
    return s * s * (3 * sqrt(2 * dimensions))
