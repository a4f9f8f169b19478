"""Where in a run the guard acts: windows by noise level, by timestep, by share of the steps.

A window is any callable ``Moment -> (B,) bool``; ``window=lambda moment: moment.level.s > 1`` is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.errors import InvalidInput, OutOfRange
from negindex.noise import NoiseLevel


class Moment(NamedTuple):
    """One step of a run. A bare denoiser knows its noise level alone."""

    level: NoiseLevel  # (B,)
    timestep: float | None = None  # the scheduler's own
    fraction: float | None = None  # steps before this one / all steps of the schedule, in [0, 1)


Window = Callable[[Moment], Tensor]  # -> (B,) bool: where the guard acts


@dataclass(frozen=True)
class Between:
    """A window by noise level: act where low <= s <= high, s = sigma / alpha."""

    low: float = 0.0
    high: float = float("inf")

    def __call__(self, moment: Moment) -> Tensor:
        return (moment.level.s >= self.low) & (moment.level.s <= self.high)

    def __str__(self) -> str:
        return f"{self.low:g} <= s <= {self.high:g}"


@dataclass(frozen=True)
class Timesteps:
    """A window by the scheduler's timestep: act where low <= t <= high.

    780 to 1000 of 1000 is the early window of Kim et al. 2025. The same timestep is another noise level
    under another schedule: ``Between`` says what it means.
    """

    low: float = 780
    high: float = 1000

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise OutOfRange(f"a window of timesteps from {self.low} to {self.high}; give low <= high")

    def __call__(self, moment: Moment) -> Tensor:
        if moment.timestep is None:
            raise _unknown("timestep", self)
        return _everywhere(moment, self.low <= moment.timestep <= self.high)

    def __str__(self) -> str:
        return f"{self.low:g} <= t <= {self.high:g}"


@dataclass(frozen=True)
class Fraction:
    """A window by share of the schedule's steps: of n steps, act in step i = 0, 1, … where low <= i / n < high.

    Windows that share a bound share no step. A run that starts late, as image-to-image does, starts late in
    the schedule too.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise OutOfRange(f"a window from {self.low} to {self.high} of the steps; give 0 <= low < high <= 1")

    def __call__(self, moment: Moment) -> Tensor:
        if moment.fraction is None:
            raise _unknown("place among the scheduler's timesteps", self)
        return _everywhere(moment, self.low <= moment.fraction < self.high)

    def __str__(self) -> str:
        return f"{self.low:g} <= step / steps < {self.high:g}"


def _everywhere(moment: Moment, acts: bool) -> Tensor:
    return torch.full_like(moment.level.s, acts, dtype=torch.bool)


def _unknown(what: str, window: Timesteps | Fraction) -> InvalidInput:
    return InvalidInput(
        f"the window {window} needs a {what}, and this call has none, as a bare denoiser never has; "
        "use Between(low, high), by noise level"
    )
