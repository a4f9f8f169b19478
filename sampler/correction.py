"""One step's look: ask the sets, gate the answer, work out the change of x0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.errors import NotFinite, NothingToCompareWith, ShapeMismatch, SpaceMismatch
from negindex.kernel import Kernel
from negindex.negatives import Negatives
from negindex.noise import NoiseLevel
from negindex.partial import NEG_INF, Missing, Partial
from negindex.sampler.copies import Copied, CopyGate, Watch
from negindex.sampler.gates import Gate, Ratio, log_ratio
from negindex.sampler.rules import Predicted, Rule, SafeDenoising, View, begun, needs_odds, paired
from negindex.sampler.windows import Moment, Window


class Look(NamedTuple):
    """What one step saw and did."""

    delta: Tensor  # (B, *S) float64, the change of x0
    correction: Tensor  # (B,) float64, its L2 norm
    log_odds: Tensor  # (B,) float64, -inf outside the window, +inf where copied
    level: NoiseLevel  # (B,)
    unsafe: Partial  # what the set said, copies or not
    reference: Partial | None
    copied: Tensor  # (B,) bool, where the copy gate fired
    missing: tuple[Missing, ...] = ()  # sets of a union of negatives that were not in the look
    missing_reference: tuple[Missing, ...] = ()  # of a union of references


@dataclass(frozen=True)
class Correction:
    """Sets, kernel, gate and rule, put together; the same for a denoiser and for a scheduler.

    With a reference the default is the paired rule behind the ratio gate. Without one a gate must be
    named, or a rule that needs none: raises NothingToCompareWith and says the remedies.
    window: where the gate is heard. copies: the copy gate, heard everywhere; None for none.
    kernel: what both sets are seen through; None takes the negatives' own, also for the reference.
    """

    negatives: Negatives
    reference: Negatives | None = None
    prior: float = 0.1
    rule: Rule | None = None
    gate: Gate | None = None
    window: Window | None = None
    kernel: Kernel | None = None
    copies: CopyGate | None = None
    _pinned: dict[object, Correction] = field(init=False, repr=False, compare=False, default_factory=dict)
    _watch: Watch | None = field(init=False, repr=False, compare=False, default=None)  # of one call

    def __post_init__(self) -> None:
        if self.reference is None and isinstance(self.gate, Ratio):
            object.__setattr__(self, "reference", self.gate.reference)
        if self.reference is None and self.gate is None and (self.rule is None or needs_odds(self.rule)):
            raise NothingToCompareWith(
                "a guard with nothing to compare with: how near is near enough is unknown. Give reference=... "
                "(benign images in the same space: the best remedy), calibrate a gate on the set's own held-out rows "
                "(gate=TriggerShare.learned(negatives, 0.95)), or name one, such as gate=Threshold(...); "
                "rule=Spell(radius) needs none"
            )
        if self.gate is None and self.reference is not None:
            object.__setattr__(self, "gate", Ratio(self.reference, self.prior))
        if self.rule is None:
            object.__setattr__(self, "rule", SafeDenoising() if self.reference is None else paired)
        if self.reference is not None:
            _check_comparable(self.negatives, self.reference)

    def pin(self) -> Correction:
        """The same with every set at its newest version, for a whole image.

        A takedown wins over the reference: rows of the reference that are also negatives, byte for byte,
        are set aside, since they would vouch for what is to be kept away.
        """
        negatives = self.negatives.pin()
        reference = None if self.reference is None else self.reference.pin()
        named = self.gate.reference.pin() if isinstance(self.gate, Ratio) else None
        sides = (negatives, reference, named)
        versions = tuple(None if side is None else (side.origins, side.missing) for side in sides)
        if versions not in self._pinned:
            self._pinned.clear()
            self._pinned[versions] = self._at(negatives, reference, named)
        return self._pinned[versions]

    def _at(self, negatives: Negatives, reference: Negatives | None, named: Negatives | None) -> Correction:
        """Fixed to pinned sets; ``named`` is the ratio gate's own reference, most often the same one."""
        shared = isinstance(self.gate, Ratio) and self.gate.reference is self.reference
        reference = None if reference is None else _less(reference, negatives)
        named = reference if shared or named is None else _less(named, negatives)
        gate = self.gate if named is None or not isinstance(self.gate, Ratio) else Ratio(named, self.gate.prior)
        copies = None if self.copies is None else self.copies.sized(negatives, reference)
        kernel = negatives.default_kernel if self.kernel is None else self.kernel
        return replace(self, negatives=negatives, reference=reference, gate=gate, copies=copies, kernel=kernel)

    def begin(self) -> Correction:
        """The same for one call of a pipeline: a rule and a copy gate that remember within a call begin anew."""
        assert self.rule is not None
        call = replace(self, rule=begun(self.rule))
        object.__setattr__(call, "_watch", None if self.copies is None else self.copies.begin())
        return call

    @property
    def weighed_by(self) -> Kernel:
        """The kernel that was named, or the negatives' own."""
        return self.negatives.default_kernel if self.kernel is None else self.kernel

    def look(
        self,
        x_t: Tensor,
        x0: Tensor | Callable[[], Tensor],
        level: NoiseLevel,
        timestep: float | None = None,
        fraction: float | Callable[[], float | None] | None = None,
        branches: Callable[[], Predicted | None] = lambda: None,
    ) -> Look:
        """Ask for x_t at ``level`` and change the model's x0, both (B, *S); computed in float64.

        timestep, fraction: what a scheduler knows beside the level, for windows that need it.
        x0 and fraction may be functions that work them out: they are called only where a rule or a window asks.
        branches: x0 as each branch of guidance predicts it, for a rule that looks at them.
        """
        assert self.rule is not None
        level = level.expand(len(x_t))
        unsafe = self.negatives.posterior(x_t, level, kernel=self.kernel)
        benign = None if self.reference is None else self.reference.posterior(x_t, level, kernel=unsafe.kernel)
        log_odds = self._odds(x_t, level, unsafe, benign)
        if self.window is not None:
            moment = Moment(level, timestep, fraction() if callable(fraction) else fraction)
            acts = self.window(moment).to(log_odds.device)
            log_odds = torch.where(acts, log_odds, NEG_INF)
        found = self._copied(x_t, level)
        copied, seen = found.fires.to(log_odds.device), found.put_into(unsafe)
        log_odds = log_odds.masked_fill(copied, float("inf"))
        delta = self.rule(View(x0, seen, benign, log_odds, x_t.detach(), level, self.negatives, branches))
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        if not all(map(isfinite, length.tolist())):  # finite only where every element is
            raise NotFinite(
                "the correction is NaN, Inf or beyond float64: the model's x0 diverged, or a rule divided by zero; "
                "no image was changed"
            )
        missing = tuple(dict.fromkeys(unsafe.missing + found.missing))
        return Look(
            delta, length, log_odds, level, unsafe, benign, copied, missing, () if benign is None else benign.missing
        )

    def _copied(self, x_t: Tensor, level: NoiseLevel) -> Copied:
        """Which samples the copy gate knows, where there is one."""
        if self.copies is None:
            return Copied.nowhere(x_t)
        watch = self._watch or self.copies.begin()
        return watch.find(x_t, level, self.negatives, self.reference, self.kernel)

    def _odds(self, x_t: Tensor, level: NoiseLevel, unsafe: Partial, benign: Partial | None) -> Tensor:
        """(B,) what the gate says; certainty where the rule needs no gate and none was named."""
        if self.gate is None:
            return torch.full_like(unsafe.log_norm, float("inf"))
        if isinstance(self.gate, Ratio) and benign is not None and self.gate.reference is self.reference:
            return log_ratio(unsafe, benign, self.gate.prior)
        return _checked_odds(self.gate(x_t, level, unsafe), unsafe)


def _less(reference: Negatives, negatives: Negatives) -> Negatives:
    """The reference without the rows that are negatives too."""
    return reference.without(negatives.holds(reference.digests().values()))


def _check_comparable(negatives: Negatives, reference: Negatives) -> None:
    if negatives.shape != reference.shape:
        raise ShapeMismatch(
            f"negatives of shape {negatives.shape}, reference of {reference.shape}; build both from images of one size"
        )
    if negatives.space != reference.space:
        raise SpaceMismatch(
            f"negatives in space {negatives.space!r}, reference in {reference.space!r}; encode both alike"
        )


def _checked_odds(log_odds: Tensor, partial: Partial) -> Tensor:
    """What a caller's own gate returned, if it is a (B,) of odds."""
    if log_odds.shape != partial.log_norm.shape:
        raise ShapeMismatch(
            f"the gate returned shape {tuple(log_odds.shape)}; "
            f"return one log odds a sample, {tuple(partial.log_norm.shape)}"
        )
    if bool(torch.isnan(log_odds).any()):
        raise NotFinite("the gate returned NaN; return -inf for 'surely benign' and +inf for 'surely unsafe'")
    return log_odds.to(partial.log_norm)
