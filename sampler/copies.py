"""The copy gate: a near-copy of one row, whatever else is in the set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import inf, sqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from negindex.errors import OutOfRange
from negindex.kernel import LITERAL, Kernel
from negindex.moments import Moments
from negindex.negatives import Negatives, row_elements
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF, Missing, Partial

Level = TypeVar("Level", Tensor, float)

# Shares of the rms radius, and what was measured with them: docs/evidence.md, "How near a copy lies".
SHARE = 0.15  # without a reference
CERTAIN, REACH = 0.08, 0.35  # with one: within the first always, between the two where no other row explains the sample
_WIDTH = 0.5  # of the reach: how far off a row still explains a sample, a kernel's bandwidth
_NOUGHT = 1 / 15  # of the reach: two lengths whose product is below the square of this are no step in any direction


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

    def about(self, samples: Tensor) -> Copied:
        """The same about some samples (n,) of its batch."""
        return Copied(self.fires[samples], self.rows[samples], self.missing)

    def same_as(self, rows: Tensor) -> Tensor:
        """(B,) bool: of the rows (B, *S), those that the samples were found to copy."""
        return self.fires & (self.rows == rows).flatten(1).all(1)

    def and_earlier(self, before: Copied | None) -> Copied:
        """Which row each sample was last found to copy, now or before."""
        if before is None or before.rows.shape != self.rows.shape:
            return self
        each = self.fires.reshape(-1, *[1] * (self.rows.dim() - 1))
        return Copied(self.fires | before.fires, torch.where(each, self.rows, before.rows))

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
    that level it reaches out to sqrt(2) r; a set with an index may leave out rows that lie beyond both r and R from
    the image under the noise. It never divides by the number of rows: one takedown does not drown in a large set, as
    it does in a ratio.

    A model gives what it memorised back less exactly than fresh images of a crowd lie from some row, so no one
    distance tells the two apart. Where z lies beyond r and within the reach R, at levels where R can be seen, the
    sets are asked what they make of y: E, the mean of all rows, negatives and reference, by the calibrated kernel that
    the guard weighs by, or by the literal one at a width of R / 2.
    A fresh image of a crowd lies from z the way that E does; from the row that a copy copies, E lies the other way.
    It fires where (y - z) · (E - z) <= (R / 15)², which is so too where E is z: nothing else is near. In one call of a
    pipeline, a sample that was found to copy z is held to the reach of z from then on (``begin``): the guard's own
    correction turns it towards E, and the model turns it back.

    radius: r, the L2 distance of a near-duplicate. reach: R; 0 looks no further than r. With a radius of None both
        come from the data: 0.08 and 0.35 of the rms distance of the reference's images from their mean; without a
        reference 0.15 of the set's own and no reach. One row, or rows that are all copies of one image, have no such
        distance, and the image's own contrast stands in for it: its distance from an image that is flat in each
        channel. A flat image has neither: then name a radius, or the gate stays silent.
    """

    radius: float | None = None
    reach: float = 0.0

    def __post_init__(self) -> None:
        if self.radius is not None and not 0 <= self.radius < inf:
            raise OutOfRange(f"radius = {self.radius}; give a finite distance >= 0, or None to take it from the data")
        if not 0 <= self.reach < inf or (self.reach and self.radius is None):
            raise OutOfRange(f"reach = {self.reach}; give a finite distance >= 0, and a radius with it")

    def sized(self, negatives: Negatives, reference: Negatives | None) -> CopyGate:
        """The gate with its distances taken from the data, if it has none. Cost: one pass over the rows."""
        if self.radius is not None:
            return self
        if reference is None:
            return CopyGate(SHARE * _scale(negatives.moments(), negatives.shape))
        scale = _scale(reference.moments(), reference.shape)
        return CopyGate(CERTAIN * scale, REACH * scale)

    def begin(self) -> Watch:
        """The gate for one call of a pipeline, which remembers what was copied."""
        return Watch(self)

    def speaks(self, level: NoiseLevel, dimensions: int) -> Tensor:
        """Whether noise at this level still leaves the radius or the reach to be seen, shape as the level's."""
        return _slack(level.s, dimensions) <= self._furthest**2

    def find(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        negatives: Negatives,
        reference: Negatives | None = None,
        before: Copied | None = None,
        kernel: Kernel | None = None,
    ) -> Copied:
        """The samples x_t (B, *S) that are near-copies; asks the set only about levels where the gate speaks.

        reference: what else explains a sample between radius and reach. Both sets are asked of such samples alone.
        before: what these samples were found to copy at an earlier step. kernel: what both sets are seen through; None
        takes the negatives' own.
        """
        nowhere, dimensions = Copied.nowhere(x_t), row_elements(negatives.shape)
        least = min(level.s.reshape(-1).tolist(), default=inf)
        if _slack(least, dimensions) > self._furthest**2:  # it speaks of none of them
            return nowhere
        level = level.expand(len(x_t))
        asked = self.speaks(level, dimensions).nonzero()[:, 0]
        s, at = level.s[asked], asked.to(x_t.device)
        y = x_t[at].to(torch.float64) / level.alpha[asked].to(x_t.device).reshape(-1, *[1] * (x_t.dim() - 1))
        limit = self._distance(self._furthest, s, dimensions)
        near = negatives.near(y, limit, k=1, noise=s, image_radius=self._furthest)
        found, rows, apart = near.found.any(1), near.rows.sum(1), near.distances.sum(1)  # of one place, or of none
        copied = found & (apart <= self._distance(self._r, s, dimensions).to(apart.device))
        if before is not None and before.rows.shape == x_t.shape:
            copied |= found & before.about(at).same_as(rows)
        unsure = (found & ~copied).nonzero()[:, 0]
        if len(unsure):
            sets = (negatives,) if reference is None else (negatives, reference)
            weighed_by = negatives.default_kernel if kernel is None else kernel
            copied[unsure] = self._unexplained(y[unsure], rows[unsure], s[unsure.cpu()], sets, weighed_by)
        fires, of = nowhere.fires.clone(), nowhere.rows.clone()
        fires[at] = copied
        of[at] = torch.where(copied.reshape(-1, *[1] * (y.dim() - 1)), rows, 0.0)
        return Copied(fires, of, near.missing)

    def _unexplained(self, y: Tensor, z: Tensor, s: Tensor, sets: Sequence[Negatives], kernel: Kernel) -> Tensor:
        """(n,) bool: the way from z to y, both (n, *S), is not the way to what the rows make of y, at levels s (n,)."""
        level = NoiseLevel(1.0, _WIDTH * self.reach if kernel == LITERAL else s)
        told = reduce(Partial.merge, (one.posterior(y, level, kernel=kernel) for one in sets))
        along = ((y - z) * (told.mean.to(y) - z)).flatten(1).sum(1)
        return along <= (_NOUGHT * self.reach) ** 2

    @staticmethod
    def _distance(radius: float, s: Tensor, dimensions: int) -> Tensor:
        """How far y may lie from a row that it copies within a radius, at levels s (n,); -1 where that is not seen."""
        slack = _slack(s, dimensions)
        return (s.square() * dimensions + slack + radius**2).sqrt().masked_fill(slack > radius**2, -1)

    @property
    def _r(self) -> float:
        if self.radius is None:
            raise OutOfRange("a copy gate without a radius; take it from the data with sized(negatives, reference)")
        return self.radius

    @property
    def _furthest(self) -> float:
        return max(self._r, self.reach)

    def __str__(self) -> str:
        if self.radius is None:
            return "within a radius from the data"
        if self.reach <= self.radius:
            return f"within {self.radius:g}"
        return f"within {self.radius:g}, or {self.reach:g} where no other row explains the sample"


class Watch:
    """``CopyGate`` in one call of a pipeline: what each sample of the batch was found to copy so far."""

    def __init__(self, gate: CopyGate) -> None:
        self._gate = gate
        self._before: Copied | None = None

    def find(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        negatives: Negatives,
        reference: Negatives | None = None,
        kernel: Kernel | None = None,
    ) -> Copied:
        """As ``CopyGate.find``, in the light of the steps before."""
        gate = self._gate.sized(negatives, reference)
        found = gate.find(x_t, level, negatives, reference, self._before, kernel)
        self._before = found.and_earlier(self._before)
        return found


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
