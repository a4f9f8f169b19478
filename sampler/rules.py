"""What to do with the odds: a rule turns what a step sees into the change of x0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.errors import NothingToCompareWith, OutOfRange
from negindex.partial import Partial


class View(NamedTuple):
    """What a rule sees of one step."""

    x0: Tensor  # (B, *S) float64, the model's E[x_0 | x_t]
    unsafe: Partial
    reference: Partial | None
    log_odds: Tensor  # (B,) float64


Rule = Callable[[View], Tensor]  # -> change of x0, (B, *S) float64; 0 where log_odds = -inf


def paired(view: View) -> Tensor:
    """pi (E_ref - E_unsafe): the theorem in the form that does not blow up.

    E_data = (1 - pi) E_safe + pi E_unsafe, so E_safe = E_data + pi (E_safe - E_unsafe); a benign
    reference stands for E_safe on the right. pi <= 1, so nothing is extrapolated.
    """
    if view.reference is None:
        raise NothingToCompareWith(
            "the paired rule moves towards a benign reference; give reference=..., or use SafeDenoising"
        )
    pi = torch.sigmoid(view.log_odds)
    return _each(pi, view.unsafe.mean) * (view.reference.mean - view.unsafe.mean)


@dataclass(frozen=True)
class SafeDenoising:
    """beta (x0 - E_unsafe), beta = exp(log_odds) capped at ``beta_max`` (Kim et al. 2025, Eq. 4 and 7)."""

    beta_max: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta_max > 0:
            raise OutOfRange(f"beta_max = {self.beta_max}; give a positive cap (inf for none)")

    def __call__(self, view: View) -> Tensor:
        beta = torch.exp(view.log_odds).clamp(max=self.beta_max)
        return _each(beta, view.x0) * (view.x0 - view.unsafe.mean)

    def __str__(self) -> str:
        return f"safe-denoiser, beta <= {self.beta_max:g}"


def _each(weight: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …), to scale one sample each."""
    return weight.reshape(-1, *[1] * (like.dim() - 1))
