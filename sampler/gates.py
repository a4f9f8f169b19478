"""From an answer to odds: gate(x_t, level, partial) -> log_odds (B,) float64 of "x_0 is unsafe".

Any callable of that shape is a gate. A rule turns the odds into what it needs: ``beta = exp(log_odds)``
for Eq. 4, ``pi = sigmoid(log_odds)`` for the paired form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from negindex.errors import KernelMismatch, OutOfRange
from negindex.negatives import Negatives, row_elements
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF, Partial

Gate = Callable[[Tensor, NoiseLevel, Partial], Tensor]


def log_ratio(unsafe: Partial, benign: Partial, prior: float) -> Tensor:
    """logit(prior) + (log_norm_u - log N_u) - (log_norm_s - log N_s), (B,) float64: Eq. 5 in logs.

    A difference of log norms, which may be large, and one number that is not.
    """
    if unsafe.kernel != benign.kernel:
        raise KernelMismatch(
            f"odds of answers by {unsafe.kernel.name} and {benign.kernel.name}; ask both sets with one kernel"
        )
    known = log(prior) - log(1 - prior) - log(unsafe.count) + log(benign.count)
    return unsafe.log_norm - benign.log_norm + known


@dataclass(frozen=True)
class Ratio:
    """The concept gate: the negation set against a benign reference, seen through one kernel.

    prior: P(unsafe) before the sample is looked at, in (0, 1). It is the user's lever: high where the
    caller asks for the concept (a conditional model, an adversarial prompt).
    Source: Kim et al. 2025, Eq. 5.
    """

    reference: Negatives
    prior: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1:
            raise OutOfRange(f"prior = {self.prior}; give a probability between 0 and 1, both excluded, such as 0.1")

    def __call__(self, x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
        return log_ratio(partial, self.reference.posterior(x_t, level, kernel=partial.kernel), self.prior)

    def __str__(self) -> str:
        return f"ratio, prior {self.prior:g}"


@dataclass(frozen=True)
class Constant:
    """The same odds always: beta >= 0. Beware: without a window it moves benign samples just as hard."""

    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise OutOfRange(f"beta = {self.beta}; give a finite number >= 0")

    def __call__(self, x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
        return torch.full_like(partial.log_norm, log(self.beta) if self.beta else NEG_INF)

    def __str__(self) -> str:
        return f"constant, beta {self.beta:g}"


@dataclass(frozen=True)
class Threshold:
    """The paper's practice: beta = eta times the mean kernel value, and none below a threshold.

    The value is ``log_norm - log N + d/2``, d the kernel's dimensions: the mean kernel value itself is
    zero in float64 above some 1,500 dimensions, even for a perfect match. A noised copy of one row of N
    scores about -log N at every level.
    Source: Kim et al. 2025, Eq. 7.
    """

    at: float
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.eta < float("inf"):
            raise OutOfRange(f"eta = {self.eta}; give a positive finite strength")

    def __call__(self, x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
        projection = partial.kernel.projection
        dimensions = row_elements(tuple(x_t.shape[1:])) if projection is None else len(projection)
        value = partial.log_norm - log(partial.count) + dimensions / 2
        return torch.where(value >= self.at, value + log(self.eta), NEG_INF)

    def __str__(self) -> str:
        return f"threshold {self.at:g}, eta {self.eta:g}"
