"""Where a set's rows lie and how far they scatter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of some rows; those of any split merge to the whole's."""

    count: int
    mean: Tensor  # (D,) float64; 0 when there is no row
    scatter: float  # sum of ||z - mean||²

    @property
    def rms(self) -> float:
        """The rows' root-mean-square distance from their mean; 0 when there is none."""
        return float((self.scatter / max(self.count, 1)) ** 0.5)

    def merge(self, other: Moments) -> Moments:
        """Of both sets of rows together (Chan, Golub and LeVeque 1979: no cancellation)."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        apart = other.mean - self.mean
        between = float(apart.square().sum()) * share * self.count
        return Moments(count, self.mean + share * apart, self.scatter + other.scatter + between)
