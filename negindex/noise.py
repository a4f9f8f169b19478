"""How much of a noisy sample is signal: x_t = alpha x_0 + sigma eps."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from negindex.errors import InvalidNoiseLevel, ShapeMismatch


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """The forward process at one time, scalar or one level a sample.

    alpha, sigma: number or tensor (B,); kept in float64 on the CPU. diffusers' DDPM family has
    alpha = sqrt(alphas_cumprod[t]); k-diffusion's "sigma" is s = sigma / alpha.
    Raises InvalidNoiseLevel unless alpha >= 0 and sigma > 0, both finite.

    >>> NoiseLevel(0.6, 0.8).s.item()
    1.3333333333333335
    """

    alpha: Tensor
    sigma: Tensor

    def __init__(self, alpha: Tensor | float, sigma: Tensor | float) -> None:
        a, b = _as_float64(alpha), _as_float64(sigma)
        if a.shape != b.shape:
            a, b = _together(a, b)
        if a.dim() > 1:
            raise ShapeMismatch(
                f"noise level of shape {tuple(a.shape)}; give a number or one level a sample, shape (B,)"
            )
        if not all(0 <= value < inf for value in a.reshape(-1).tolist()):  # a few numbers: quicker than torch's passes
            raise InvalidNoiseLevel(f"alpha = {a.tolist()}; every alpha must be finite and >= 0")
        if not all(0 < value < inf for value in b.reshape(-1).tolist()):
            raise InvalidNoiseLevel(
                f"sigma = {b.tolist()}; every sigma must be finite and > 0: at sigma = 0 the sample is clean "
                "and there is no posterior to ask for, so stop the look-ups one step earlier"
            )
        object.__setattr__(self, "alpha", a)
        object.__setattr__(self, "sigma", b)

    @property
    def s(self) -> Tensor:
        """Noise in units of the signal, sigma / alpha; inf where alpha = 0 (pure noise)."""
        return self.sigma / self.alpha

    def expand(self, batch: int) -> NoiseLevel:
        """The same level with one entry a sample, shape (batch,)."""
        if self.alpha.dim() == 1 and len(self.alpha) not in (1, batch):
            raise ShapeMismatch(f"{len(self.alpha)} noise levels for a batch of {batch}; give one level or {batch}")
        return self if self.alpha.shape == (batch,) else _checked(self.alpha.expand(batch), self.sigma.expand(batch))


def _checked(alpha: Tensor, sigma: Tensor) -> NoiseLevel:
    """A level of numbers that another one has checked."""
    level = object.__new__(NoiseLevel)
    object.__setattr__(level, "alpha", alpha)
    object.__setattr__(level, "sigma", sigma)
    return level


def _together(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    try:
        a, b = torch.broadcast_tensors(alpha, sigma)
    except RuntimeError as error:
        raise ShapeMismatch(
            f"alpha of shape {tuple(alpha.shape)} with sigma of shape {tuple(sigma.shape)}; give a number each, or one "
            "a sample each"
        ) from error
    return a, b


def _as_float64(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()
