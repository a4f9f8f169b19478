"""What to do with the odds: a rule turns what a step sees into the change of x0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from negindex.errors import NothingToCompareWith, OutOfRange
from negindex.negatives import Negatives
from negindex.noise import NoiseLevel
from negindex.partial import Partial


class Predicted(NamedTuple):
    """x0 (B, *S) float64 as each branch of classifier-free guidance predicts it."""

    conditional: Tensor
    unconditional: Tensor


def _no_branches() -> Predicted | None:
    return None


@dataclass(frozen=True, eq=False)
class View:
    """What a rule sees of one step."""

    predicted: Tensor | Callable[[], Tensor]  # the model's x0, or what works it out; read it as ``x0``
    unsafe: Partial
    reference: Partial | None
    log_odds: Tensor  # (B,) float64
    x_t: Tensor  # (B, *S)
    level: NoiseLevel  # (B,)
    negatives: Negatives  # as pinned for the image
    branches: Callable[[], Predicted | None] = _no_branches  # None where no guidance ran; for ``needs_branches``

    @cached_property
    def x0(self) -> Tensor:
        """(B, *S) float64, the model's E[x_0 | x_t]; worked out when a rule first asks for it."""
        predicted = self.predicted() if callable(self.predicted) else self.predicted
        return predicted.detach().to(torch.float64)


Rule = Callable[[View], Tensor]  # -> change of x0, (B, *S) float64; 0 where log_odds = -inf


def needs_odds(rule: Rule) -> bool:
    """Whether the rule has to be told how likely "unsafe" is; one that does not says ``needs_odds = False``.

    Without a gate it sees log_odds = +inf inside the window and -inf outside.
    """
    return bool(getattr(rule, "needs_odds", True))


def needs_branches(rule: Rule | None) -> bool:
    """Whether the rule looks at the branches of guidance; one that does says ``needs_branches = True``."""
    return bool(getattr(rule, "needs_branches", False))


def begun(rule: Rule) -> Rule:
    """The rule for one call of the pipeline: one that remembers within a call says so by ``begin()``."""
    begin = getattr(rule, "begin", None)
    return rule if begin is None else begin()


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
    return (view.reference.mean - view.unsafe.mean).mul_(_each(pi, view.unsafe.mean))


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


@dataclass(frozen=True)
class Spell:
    """lambda sum_k relu(r / ||x0 - z_k|| - 1) (x0 - z_k): out of the ball of radius r around each row (SPELL).

    radius: r, L2 in the set's own space. overcompensation: lambda.
    It needs neither reference nor gate; where a gate is given it moves by pi = sigmoid(log_odds) of that.
    On a row itself the direction is undefined: there the sample leaves along its own noise, x_t - alpha x0,
    by lambda r, which is the limit of the length; where that is zero too it stays.
    Cost: one ``near`` look-up beside the posterior's. Source: Kirchhof et al. 2024 (arXiv 2410.06025).
    """

    radius: float
    overcompensation: float = 1.6
    needs_odds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise OutOfRange(f"radius = {self.radius}; give a positive finite distance")
        if not 0 < self.overcompensation < float("inf"):
            raise OutOfRange(f"overcompensation = {self.overcompensation}; give a positive finite number, such as 1.6")

    def __call__(self, view: View) -> Tensor:
        near = view.negatives.near(view.x0, self.radius)
        x0 = view.x0.flatten(1)[:, None]  # (B, 1, D)
        away = x0 - near.rows.flatten(2)  # (B, K, D)
        noise = _noise(view).flatten(1)[:, None].expand_as(away)
        on_a_row = (near.distances == 0)[..., None]
        direction = torch.nn.functional.normalize(torch.where(on_a_row, noise, away), dim=2, eps=_TINY)
        length = (self.radius - near.distances).clamp(min=0)  # (B, K); 0 in places left over, at distance inf
        push = (length[..., None] * direction).sum(1).reshape(view.x0.shape)
        return self.overcompensation * _each(torch.sigmoid(view.log_odds), push) * push

    def __str__(self) -> str:
        return f"spell, radius {self.radius:g}, overcompensation {self.overcompensation:g}"


@dataclass(frozen=True)
class MeanDiscrepancy:
    """strength (1/N) sum_n k(x0, z_n) (x0 - z_n), k = exp(-||x0 - z||² / (2 h²)): away from where rows are dense.

    The squared maximum mean discrepancy between the sample and the rows is 1 - 2 m(x0) + a constant, with
    m(x) = (1/N) sum_n k(x, z_n); its gradient is -2 grad m = (2/N) sum_n k(x0, z_n) (x0 - z_n) / h², and the
    step *climbs* it: strength h² times half of that. m's curvature is at most 1/h², so for any strength below
    2 a step lowers m, the similarity to the rows.
    bandwidth: h, L2 in the set's own space; of the order of the distance between rows, or k is 0 everywhere.
    Dividing by N is the method's: one row of a large set pushes 1/N as hard; ``Spell`` does not divide.
    It needs neither reference nor gate; where a gate is given it moves by pi = sigmoid(log_odds) of that.
    Source: Kim, Kim and Park 2026 (arXiv 2603.13300), with the kernel taken at x0.
    """

    bandwidth: float
    strength: float = 1.0
    needs_odds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < float("inf"):
            raise OutOfRange(f"bandwidth = {self.bandwidth}; give a positive finite distance")
        if not 0 < self.strength < float("inf"):
            raise OutOfRange(f"strength = {self.strength}; give a positive finite number, below 2 to be safe")

    def __call__(self, view: View) -> Tensor:
        told = view.negatives.posterior(view.x0, NoiseLevel(1.0, self.bandwidth))  # the same kernel, seen from x0
        mean_kernel = torch.exp(told.log_norm - log(told.count))  # m(x0)
        weight = self.strength * torch.sigmoid(view.log_odds) * mean_kernel
        return _each(weight, view.x0) * (view.x0 - told.mean)

    def __str__(self) -> str:
        return f"mean discrepancy, bandwidth {self.bandwidth:g}, strength {self.strength:g}"


_TINY = 1e-300  # a direction of zero stays zero


def _noise(view: View) -> Tensor:
    """x_t - alpha x0, (B, *S) float64: the noise that the model sees in the sample."""
    alpha = view.level.alpha.to(view.x0.device)
    return view.x_t.to(view.x0) - _each(alpha, view.x0) * view.x0


def _each(weight: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …), to scale one sample each."""
    return weight.reshape(-1, *[1] * (like.dim() - 1))
