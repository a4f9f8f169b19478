"""The gate that a set can set by itself: heard where a sample looks as much like the set as its own rows do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log

import torch
from torch import Tensor

from negindex.calibration import FEWEST_ROWS
from negindex.errors import InvalidInput, KernelMismatch, OutOfRange
from negindex.exact import Scan
from negindex.held_out import HeldOut
from negindex.kernel import LITERAL, Kernel
from negindex.labelled import Labelled
from negindex.mixture import Mixture
from negindex.negatives import Negatives, row_elements
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF, Partial
from negindex.projection import geometric

LEVELS = tuple(geometric(0.2, 80.0, 21))
_QUERIES = 256


@dataclass(frozen=True)
class TriggerShare:
    """Odds of ``eta`` where log_norm - log N is at least what a share of the set's own rows reach, none below.

    Make one with ``TriggerShare.learned``. It is weaker than ``Ratio``: it knows what the rows are like and not what
    harmless images are like, so that at high noise, where all images look alike, harmless ones trigger it as often
    as the rows do. Hear it in a window of low noise, or give a reference and use ``Ratio``.

    share: of noised held-out rows that trigger it, in (0, 1). levels: two or more of (s, threshold), ascending in s.
    Elsewhere h² times the threshold follows straight lines in s², as it does where one row or all rows weigh alike.
    Pure noise, of which nothing is known, triggers it.
    Source: the thresholds of Kim et al. 2025, Eq. 7, learned by leave-one-out at each noise level.
    """

    share: float
    levels: tuple[tuple[float, float], ...]
    kernel: Kernel  # that they were learned for
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise OutOfRange(f"share = {self.share}; give a share of the set's rows between 0 and 1, such as 0.95")
        if not 0 < self.eta < float("inf"):
            raise OutOfRange(f"eta = {self.eta}; give a positive finite strength")
        at = [s for s, _ in self.levels]
        if len(at) < 2 or at != sorted(set(at)) or at[0] <= 0:
            raise OutOfRange(f"levels at {at}; give two or more noise levels s > 0 in ascending order, each once")

    @classmethod
    def learned(
        cls,
        negatives: Negatives,
        share: float,
        kernel: Kernel = LITERAL,
        *,
        eta: float = 1.0,
        levels: tuple[float, ...] | None = None,
        queries: int = _QUERIES,
        seed: int = 0,
    ) -> TriggerShare:
        """Hold rows out, noise them, and see what the other rows say of them; near-duplicates are held out together.

        levels: noise levels s; None takes 21 from 0.2 to 80, and those at which the kernel's temperatures are named.
        The set is read as it is now; learn again when it has doubled, since thresholds depend on what is in it.
        Cost: one pass over the rows. Raises OutOfRange for fewer than 200 rows, InvalidInput for a union.
        """
        rows = _rows_of(negatives)
        if len(rows) < FEWEST_ROWS:
            raise OutOfRange(
                f"{len(rows)} rows are too few to learn thresholds from, which takes {FEWEST_ROWS}; give a reference, "
                "or use the copy gate alone"
            )
        elements = row_elements(rows.shape)
        inside = torch.eye(1, elements, dtype=torch.float64) if kernel.projection is None else kernel.projection
        held = HeldOut.of(rows, rows.moments().mean.float(), inside, queries, seed)
        width = None if kernel.projection is None else len(inside)
        found = []
        for s in sorted(set(levels or (*LEVELS, *(s for s, _ in kernel.temperatures)))):
            values = held.log_means(s, width, float(kernel.variance(NoiseLevel(1.0, s))))
            found.append((s, float(values.quantile(1 - share))))
        return cls(share, tuple(found), kernel, eta)

    def __call__(self, x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
        if partial.kernel != self.kernel:
            raise KernelMismatch(
                f"thresholds learned for kernel {self.kernel.name}, asked of {partial.kernel.name}; learn them for "
                "that kernel (TriggerShare.learned(negatives, share, kernel))"
            )
        level = level.expand(len(x_t))
        threshold = self._thresholds(level.s, partial.kernel.variance(level)).to(partial.log_norm)
        value = partial.log_norm - log(partial.count)
        return torch.full_like(value, log(self.eta)).masked_fill(value < threshold, NEG_INF)

    def _thresholds(self, s: Tensor, variance: Tensor) -> Tensor:
        """(B,) float64, -inf for pure noise. The lines of the first and last two levels go on beyond them."""
        at, scaled = self._lines
        place = torch.searchsorted(at, s.square()).clamp(1, len(at) - 1)
        slope = (scaled[place] - scaled[place - 1]) / (at[place] - at[place - 1])
        line = scaled[place] + slope * (s.square() - at[place])
        return torch.where(s.isfinite(), line / variance, NEG_INF)

    @cached_property
    def _lines(self) -> tuple[Tensor, Tensor]:
        """s² and h² times the threshold of each level, float64."""
        s, values = torch.tensor(self.levels, dtype=torch.float64).T.contiguous()
        return s.square(), self.kernel.variance(NoiseLevel(torch.ones_like(s), s)) * values

    def __str__(self) -> str:
        return f"trigger share {self.share:g}, eta {self.eta:g}, without a reference"


def _rows_of(negatives: Negatives) -> Scan:
    pinned = negatives.pin()
    rows = pinned.rows if isinstance(pinned, Labelled) else pinned
    rows = rows.source if isinstance(rows, Mixture) else rows
    if not isinstance(rows, Scan):
        raise InvalidInput(f"a {type(rows).__name__} of sets; learn thresholds from one set, and guard with it")
    return rows
