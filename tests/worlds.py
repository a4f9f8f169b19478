"""Worlds small enough to know the truth in.

A finite data set, split into safe and unsafe rows, has its posterior in closed form. The truth here is
summed in numpy's longdouble from ``||x_t - alpha z||² / (2 sigma²)``, by none of the library's code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex import NoiseLevel, Partial

EPS = float(np.finfo(np.float64).eps)
RELEVANT = 50  # nats below a set's heaviest row: what lies further down weighs nothing in float64


class World(NamedTuple):
    """A data set of N = N_safe + N_unsafe rows."""

    safe: Tensor  # (N_safe, *S)
    unsafe: Tensor  # (N_unsafe, *S)

    @property
    def rows(self) -> Tensor:
        return torch.cat([self.safe, self.unsafe])

    @property
    def prior(self) -> float:
        return len(self.unsafe) / (len(self.safe) + len(self.unsafe))

    @property
    def rms(self) -> float:
        """Root mean square distance of the rows from their mean."""
        flat = self.rows.double().flatten(1)
        return float((flat - flat.mean(0)).norm(dim=1).square().mean().sqrt())


def random_world(
    shape: tuple[int, ...] = (1, 4, 4), safe: int = 9, unsafe: int = 5, scale: float = 1.0, seed: int = 0
) -> World:
    """Rows whose elements are normal with standard deviation ``scale``."""
    rows = scale * torch.randn(safe + unsafe, *shape, generator=seeded(seed), dtype=torch.float64)
    return World(rows[:safe], rows[safe:])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Truth(NamedTuple):
    """The posterior over some rows, in longdouble."""

    log_weight: NDArray[np.longdouble]  # (B, N)
    log_norm: NDArray[np.longdouble]  # (B,)
    mean: NDArray[np.longdouble]  # (B, D)

    @property
    def largest(self) -> float:
        """The largest |log-weight| of a row that weighs something."""
        weighs = self.log_weight > self.log_weight.max(1, keepdims=True) - RELEVANT
        return float(np.abs(self.log_weight[weighs]).max())


def truth(rows: Tensor, x_t: Tensor, alpha: Any, sigma: Any) -> Truth:
    """E[x_0 | x_t] over ``rows``; alpha and sigma: one number, or one a sample."""
    z, x = wide(rows), wide(x_t)
    a, s = (np.broadcast_to(np.asarray(value, np.longdouble), len(x)) for value in (alpha, sigma))
    log_weight = np.stack([-np.square(x[b] - a[b] * z).sum(1) / (2 * s[b] ** 2) for b in range(len(x))])
    top = log_weight.max(1)
    weight = np.exp(log_weight - top[:, None])
    total = weight.sum(1)
    return Truth(log_weight, top + np.log(total), weight @ z / total[:, None])


def wide(values: Tensor) -> NDArray[np.longdouble]:
    """(n, *S) -> (n, D) longdouble, the very values."""
    return values.detach().flatten(1).double().numpy().astype(np.longdouble)


def like(mean: NDArray[np.longdouble], x: Tensor) -> Tensor:
    """(B, D) as the closest float64 of x's shape."""
    return torch.from_numpy(mean.astype(np.float64)).reshape(x.shape)


def gap(got: Tensor, mean: NDArray[np.longdouble]) -> NDArray[np.float64]:
    """(B,) L2 distance from the truth."""
    return np.sqrt(np.square(wide(got) - mean).sum(1)).astype(np.float64)


def log_beta(world: World, x_t: Tensor, alpha: Any, sigma: Any) -> NDArray[np.longdouble]:
    """log beta* = log (N_u / N_s) + log p_u - log p_s; the counts inside p cancel those before it."""
    unsafe, safe = truth(world.unsafe, x_t, alpha, sigma), truth(world.safe, x_t, alpha, sigma)
    return unsafe.log_norm - safe.log_norm


def exact_gate(world: World) -> Callable[[Tensor, NoiseLevel, Partial], Tensor]:
    """The gate that knows the world: beta* itself."""

    def gate(x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
        return torch.from_numpy(log_beta(world, x_t, level.alpha, level.sigma).astype(np.float64))

    return gate


def never(x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
    """A gate that is sure that nothing is unsafe."""
    return torch.full_like(partial.log_norm, float("-inf"))


def always(x_t: Tensor, level: NoiseLevel, partial: Partial) -> Tensor:
    """A gate that is sure that everything is unsafe."""
    return torch.full_like(partial.log_norm, float("inf"))


# -- diffusers ---------------------------------------------------------------------------------

diffusers_on_numpy_2 = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # inside set_timesteps
)


def alpha_sigma(scheduler: Any, t: Tensor) -> tuple[float, float]:
    """alpha and sigma of a scheduler's state at ``t``, as its own way to add noise shows them."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(one, t[None], zero).item(), scheduler.scale_noise(zero, t[None], one).item()
    return scheduler.add_noise(one, zero, t[None]).item(), scheduler.add_noise(zero, one, t[None]).item()


class ClosedForm:
    """A pipeline whose network is the posterior mean over all rows, in the scheduler's prediction type.

    on_network: called at each step before the network runs, with the step's number.
    """

    def __init__(self, rows: Tensor, scheduler: Any, on_network: Callable[[int], None] = lambda step: None) -> None:
        self.rows, self.scheduler, self.on_network = rows, scheduler, on_network

    def __call__(self, batch: int = 1, steps: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        scheduler, generator = self.scheduler, seeded(seed)
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, *self.rows.shape[1:], generator=generator, dtype=dtype)
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for step, t in enumerate(scheduler.timesteps):
            self.on_network(step)
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(self.network(scaled, t), t, x, generator=generator).prev_sample
        return x

    def network(self, scaled: Tensor, t: Tensor) -> Tensor:
        """What a perfectly trained network answers."""
        alpha, sigma = alpha_sigma(self.scheduler, t)
        kind = self.scheduler.config.get("prediction_type", "flow_prediction")
        if kind != "flow_prediction":  # trained on states of variance alpha² + sigma² = 1
            norm = float(np.hypot(alpha, sigma))
            alpha, sigma = alpha / norm, sigma / norm
        x = scaled.double()
        x0 = like(truth(self.rows, x, alpha, sigma).mean, x)
        eps = (x - alpha * x0) / sigma
        v = alpha * eps - sigma * x0
        return {"epsilon": eps, "v_prediction": v, "sample": x0, "flow_prediction": eps - x0}[kind].to(scaled.dtype)


class Stepped(NamedTuple):
    """One step as the scheduler itself took it, behind every guard."""

    alpha: float
    sigma: float
    x_t: Tensor
    x0: Tensor  # the scheduler's own reading of the output that it was given
    model_output: Tensor


def watch(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[Stepped]:
    """Record the steps of a diffusers scheduler class; call before a guard is attached."""
    seen: list[Stepped] = []
    original: Any = kind.step  # type: ignore[attr-defined]

    @functools.wraps(original)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        alpha, sigma = alpha_sigma(self, timestep)
        result = original(self, model_output, timestep, sample, *args, **kwargs)
        seen.append(Stepped(alpha, sigma, sample, _own_x0(self, model_output, sample, sigma, result), model_output))
        return result

    monkeypatch.setattr(kind, "step", step)
    return seen


def _own_x0(scheduler: Any, out: Tensor, sample: Tensor, sigma: float, result: Any) -> Tensor:
    x0 = getattr(result, "pred_original_sample", None)
    if x0 is not None:
        return x0
    if hasattr(scheduler, "convert_model_output"):  # DPM-Solver++ keeps x0 as what it integrates
        return scheduler.model_outputs[-1]
    return sample - sigma * out
