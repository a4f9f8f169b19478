"""Safe denoisers in the k-diffusion shape: denoise(x, sigma, **cond) -> E[x_0 | x], x = x_0 + sigma eps."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from negindex.kernel import Kernel
from negindex.negatives import Negatives
from negindex.noise import NoiseLevel
from negindex.sampler.correction import Correction
from negindex.sampler.gates import Gate
from negindex.sampler.rules import SafeDenoising, paired
from negindex.sampler.windows import Window


class Denoiser(Protocol):
    """x: (B, *S); sigma: number or (B,); returns the estimate of x_0, (B, *S)."""

    def __call__(self, x: Tensor, sigma: Tensor | float, **cond: Any) -> Tensor: ...


class Corrected:
    """A denoiser with a correction on top; itself a denoiser, so corrections stack.

    A bare denoiser cannot tell where an image begins: a ``Collection`` is followed from call to call. Give
    a ``Snapshot`` where one version must hold for a whole image.
    """

    def __init__(self, denoise: Denoiser, correction: Correction) -> None:
        self.denoise, self.correction = denoise, correction

    def __call__(self, x: Tensor, sigma: Tensor | float, **cond: Any) -> Tensor:
        """The corrected estimate, in the dtype of the inner one; sums are made in float64."""
        x0 = self.denoise(x, sigma, **cond)
        delta = self.correction.pin().look(x, x0, NoiseLevel(1.0, sigma)).delta
        return (x0 + delta).to(x0.dtype)


class SafeDenoiser(Corrected):
    """x0 + beta (x0 - E_unsafe), beta = exp(log_odds) <= beta_max (Kim et al. 2025, Eq. 4)."""

    def __init__(
        self,
        denoise: Denoiser,
        negatives: Negatives,
        gate: Gate,
        beta_max: float = 1.0,
        *,
        window: Window | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        rule = SafeDenoising(beta_max)
        super().__init__(denoise, Correction(negatives, rule=rule, gate=gate, window=window, kernel=kernel))


class PairedDenoiser(Corrected):
    """x0 + pi (E_ref - E_unsafe), pi = sigmoid(log_odds): Eq. 4 in the form that does not blow up."""

    def __init__(
        self,
        denoise: Denoiser,
        negatives: Negatives,
        reference: Negatives,
        prior: float = 0.1,
        gate: Gate | None = None,
        *,
        window: Window | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        super().__init__(denoise, Correction(negatives, reference, prior, paired, gate, window, kernel))
