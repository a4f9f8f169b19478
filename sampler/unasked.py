"""The prior taken from the request: what an unsafe one asks for is answered as if nothing had been asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from negindex.errors import NothingToCompareWith, OutOfRange
from negindex.partial import NEG_INF
from negindex.sampler.rules import View, paired


@dataclass(frozen=True)
class Unasked:
    """p (u - x0) + pi (E_ref - E_unsafe): back to the unconditional prediction u, and the paired rule on top.

    The theorem's ``E_data = E_ref + pi (E_unsafe - E_ref)``, solved for pi by least squares with the conditional
    prediction c in the place of E_data, tells how much of what is *asked for* is unsafe:
    ``rho = <c - E_ref, E_unsafe - E_ref> / ||E_unsafe - E_ref||²``, about 1 where the request is for the set, about 0
    where it is for the reference, whatever the sample looks like yet. ``p = sigmoid(gain (rho - at))``, the largest so
    far: once seen, a request stays what it was, though the sample turns away from it. At p = 1 the guidance is gone.
    below: the noise level s from which rho is heard; at the highest levels all of the set's means are alike.
    Needs classifier-free guidance to take apart (docs/guidance.md); where the step ran one branch it is ``paired``.
    """

    at: float = 0.7
    gain: float = 20.0
    below: float = 6.0
    needs_branches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.gain > 0 and self.below > 0):
            raise OutOfRange(f"gain = {self.gain}, below = {self.below}; give positive numbers, such as 20 and 6")

    def begin(self) -> Asking:
        """The rule for one call of the pipeline, which remembers what was asked."""
        return Asking(self)

    def __call__(self, view: View) -> Tensor:
        """Without a memory: what this step alone shows of the request."""
        return self.begin()(view)

    def __str__(self) -> str:
        return f"unasked, at {self.at:g}, gain {self.gain:g}, below {self.below:g}"


class Asking:
    """``Unasked`` in one call: the highest odds of every sample's request so far."""

    needs_branches: ClassVar[bool] = True

    def __init__(self, rule: Unasked) -> None:
        self._rule = rule
        self._log_odds: Tensor | None = None  # (B,)

    def __call__(self, view: View) -> Tensor:
        change = paired(view)
        branches = view.branches()
        if branches is None:
            return change
        unsafe = torch.sigmoid(self._heard(view, branches.conditional)).masked_fill(view.log_odds == NEG_INF, 0.0)
        return change + unsafe.reshape(-1, *[1] * (change.dim() - 1)) * (branches.unconditional - view.x0)

    def _heard(self, view: View, conditional: Tensor) -> Tensor:
        """(B,) log odds that the request is unsafe, the highest so far."""
        now = self._rule.gain * (asked_share(view, conditional) - self._rule.at)
        scale = (view.level.sigma / view.level.alpha).to(now)
        now = torch.where(scale <= self._rule.below, now, NEG_INF)
        self._log_odds = now if self._log_odds is None else torch.maximum(self._log_odds, now)
        return self._log_odds

    def __str__(self) -> str:
        return str(self._rule)


def asked_share(view: View, x0: Tensor) -> Tensor:
    """(B,) rho: how far an x0 lies from the reference's mean towards the set's, both seen from x_t; 0 where equal."""
    if view.reference is None:
        raise NothingToCompareWith("what is asked for is told beside a benign reference; give reference=...")
    apart = (view.unsafe.mean - view.reference.mean).flatten(1)
    along = ((x0 - view.reference.mean).flatten(1) * apart).sum(1)
    square = apart.square().sum(1)
    return torch.where(square > 0, along / square.clamp(min=_TINY), 0.0)


_TINY = 1e-300
