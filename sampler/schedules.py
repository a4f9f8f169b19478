"""How each family of diffusers schedulers writes x_t, and how to change x0 through its model output.

A correction of x0 travels as ``out' = out + J dx0`` with ``J = d out / d x0`` at fixed x_t. Nothing
makes a round trip through x0, so a correction of zero leaves the output bit for bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negindex.errors import OutOfRange, UnsupportedScheduler
from negindex.noise import NoiseLevel


class Reading(NamedTuple):
    """One step of a scheduler in the method's own terms."""

    level: NoiseLevel
    x0: Tensor  # (B, *S) float64, the model's E[x_0 | x_t]; 0 where it is not defined
    jacobian: float  # d out / d x0 at fixed x_t


class Family(NamedTuple):
    """What the schedulers of one kind have in common."""

    alpha_sigma: Callable[[Any, Any], tuple[Tensor, Tensor]]  # (scheduler, timestep) -> alpha, sigma of `sample`
    predictions: tuple[str, ...]
    refused: tuple[str, ...] = ()  # step arguments that change x_t inside the step


def _vp_by_timestep(scheduler: Any, timestep: Any) -> tuple[Tensor, Tensor]:
    alpha_bar = scheduler.alphas_cumprod[timestep].double()
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _current_sigma(scheduler: Any, timestep: Any) -> Tensor:
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    sigma: Tensor = scheduler.sigmas[scheduler.step_index].double()
    return sigma


def _vp_by_sigma(scheduler: Any, timestep: Any) -> tuple[Tensor, Tensor]:
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(_current_sigma(scheduler, timestep))
    return alpha, sigma


def _ve(scheduler: Any, timestep: Any) -> tuple[Tensor, Tensor]:
    sigma = _current_sigma(scheduler, timestep)
    return torch.ones_like(sigma), sigma


def _flow(scheduler: Any, timestep: Any) -> tuple[Tensor, Tensor]:
    sigma = _current_sigma(scheduler, timestep)
    return 1 - sigma, sigma


_VP = ("epsilon", "v_prediction", "sample")
FAMILIES: dict[str, Family] = {
    "DDIMScheduler": Family(_vp_by_timestep, _VP),
    "DDPMScheduler": Family(_vp_by_timestep, _VP),
    "DPMSolverMultistepScheduler": Family(_vp_by_sigma, (*_VP, "flow_prediction")),
    "EulerDiscreteScheduler": Family(_ve, _VP, refused=("s_churn",)),
    "FlowMatchEulerDiscreteScheduler": Family(_flow, ("flow_prediction",), refused=("per_token_timesteps",)),
}


def family_of(scheduler: Any) -> Family:
    """The family of a scheduler that the guard knows to read; raises UnsupportedScheduler otherwise."""
    kind = type(scheduler)
    family = FAMILIES.get(kind.__name__) if kind.__module__.startswith("diffusers.schedulers.") else None
    if family is None:
        raise UnsupportedScheduler(
            f"{kind.__module__}.{kind.__name__} is not a scheduler whose step can be read; "
            f"use one of {', '.join(FAMILIES)}"
        )
    if prediction_of(scheduler) not in family.predictions:
        raise UnsupportedScheduler(
            f"{kind.__name__} with prediction_type {prediction_of(scheduler)!r}; "
            f"use one of {', '.join(family.predictions)}"
        )
    return family


def prediction_of(scheduler: Any) -> str:
    """What the model's output means: epsilon, v_prediction, sample or flow_prediction."""
    return str(scheduler.config.get("prediction_type", "flow_prediction"))


def read(scheduler: Any, family: Family, out: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]) -> Reading:
    """Read a step's arguments: ``sample`` is x_t, ``out`` the model's output for it, both (B, *S).

    extra: the step's other arguments, by name; those that would change x_t inside the step are refused.
    """
    for name in family.refused:
        if extra.get(name):
            raise OutOfRange(
                f"{type(scheduler).__name__}.step({name}={extra[name]!r}) changes x_t where no guard can see it; "
                "leave it out"
            )
    alpha, sigma = family.alpha_sigma(scheduler, timestep)
    x0, jacobian = x0_and_jacobian(prediction_of(scheduler), sample.double(), out.double(), float(alpha), float(sigma))
    return Reading(NoiseLevel(alpha, sigma), x0, jacobian)


def x0_and_jacobian(prediction: str, x: Tensor, out: Tensor, a: float, s: float) -> tuple[Tensor, float]:
    """x0 from the output, and d out / d x0, for x = a x_0 + s eps.

    v is defined for a² + s² = 1; an unscaled state (a = 1) is brought there first.
    """
    if prediction == "epsilon":
        return ((x - s * out) / a, -a / s) if a > 0 else (torch.zeros_like(x), 0.0)
    if prediction == "v_prediction":
        norm = (a * a + s * s) ** 0.5
        return (a * x / norm - s * out) / norm, -norm / s
    if prediction == "flow_prediction":
        return x - s * out, -1 / s
    return out, 1.0
