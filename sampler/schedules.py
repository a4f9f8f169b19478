"""How each family of diffusers schedulers writes x_t, and how to change x0 through its model output.

A correction of x0 travels as ``out' = out + J dx0`` with ``J = d out / d x0`` at fixed x_t. Nothing
makes a round trip through x0, so a correction of zero leaves the output bit for bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, sin, sqrt
from typing import Any, NamedTuple

from torch import Tensor

from negindex.errors import OutOfRange, UnsupportedScheduler
from negindex.noise import NoiseLevel


class Reading(NamedTuple):
    """One step of a scheduler in the method's own terms."""

    level: NoiseLevel
    of_sample: float  # x0 = of_sample x_t + of_output out, the model's E[x_0 | x_t]
    of_output: float  # both 0 where x0 is not defined
    x_t: Tensor  # (B, *S)
    out: Tensor  # (B, *S)

    @property
    def x0(self) -> Tensor:
        """(B, *S) float64, worked out anew each time that it is asked for."""
        return self.of_sample * self.x_t.double() + self.of_output * self.out.double()

    @property
    def jacobian(self) -> float:
        """d out / d x0 at fixed x_t; 0 where no output carries a change of x0."""
        return 1 / self.of_output if self.of_output else 0.0


class Family(NamedTuple):
    """What the schedulers of one kind have in common."""

    alpha_sigma: Callable[[Any, Any], tuple[float, float]]  # (scheduler, timestep) -> alpha, sigma of `sample`
    predictions: tuple[str, ...]
    refused: tuple[str, ...] = ()  # step arguments that change x_t, or the output, where the guard cannot see it
    preconditioned: bool = False  # the output is what EDM's network answers, not epsilon or v


def _vp_by_timestep(scheduler: Any, timestep: Any) -> tuple[float, float]:
    alpha_bar = float(scheduler.alphas_cumprod[timestep])
    return sqrt(alpha_bar), sqrt(1 - alpha_bar)


def _step_index(scheduler: Any, timestep: Any) -> int:
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    return int(scheduler.step_index)


def _current_sigma(scheduler: Any, timestep: Any) -> Tensor:
    sigma: Tensor = scheduler.sigmas[_step_index(scheduler, timestep)]
    return sigma


def _vp_by_sigma(scheduler: Any, timestep: Any) -> tuple[float, float]:
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(_current_sigma(scheduler, timestep).double())
    return float(alpha), float(sigma)


def _ve(scheduler: Any, timestep: Any) -> tuple[float, float]:
    return 1.0, float(_current_sigma(scheduler, timestep))


def _ve_by_halves(second: Callable[[Any, int], Tensor | float]) -> Callable[[Any, Any], tuple[float, float]]:
    """A solver that asks the network twice a step; ``second`` says where its second state stands."""

    def alpha_sigma(scheduler: Any, timestep: Any) -> tuple[float, float]:
        i = _step_index(scheduler, timestep)
        return 1.0, float(scheduler.sigmas[i] if scheduler.state_in_first_order else second(scheduler, i))

    return alpha_sigma


def _halfway(scheduler: Any, i: int) -> float:
    """The midpoint in log sigma."""
    return sqrt(float(scheduler.sigmas[i - 1]) * float(scheduler.sigmas[i]))


def _flow(scheduler: Any, timestep: Any) -> tuple[float, float]:
    sigma = float(_current_sigma(scheduler, timestep))
    return 1 - sigma, sigma


def _trigflow(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """States are kept scaled by sigma_data: x_t = sigma_data (cos t x_0 + sin t eps)."""
    angle = float(scheduler.timesteps[_step_index(scheduler, timestep)])
    scale = float(scheduler.config.sigma_data)
    return scale * max(cos(angle), 0.0), scale * sin(angle)  # diffusers' first angle lies just beyond a right one


_VP = ("epsilon", "v_prediction", "sample")
_VP_OR_FLOW = (*_VP, "flow_prediction")
_NOT_SAMPLE = ("epsilon", "v_prediction")
_CHURN = ("s_churn",)
FAMILIES: dict[str, Family] = {
    # variance preserving, by the training schedule
    "DDIMScheduler": Family(_vp_by_timestep, _VP),
    "DDIMParallelScheduler": Family(_vp_by_timestep, _VP),
    "DDPMScheduler": Family(_vp_by_timestep, _VP),
    "DDPMParallelScheduler": Family(_vp_by_timestep, _VP),
    "PNDMScheduler": Family(_vp_by_timestep, ("epsilon",)),  # with v it mixes outputs of several times
    "LCMScheduler": Family(_vp_by_timestep, _VP),
    "TCDScheduler": Family(_vp_by_timestep, _VP),
    "CogVideoXDDIMScheduler": Family(_vp_by_timestep, _VP),
    "CogVideoXDPMScheduler": Family(_vp_by_timestep, _VP),
    # variance preserving, by their own sigmas; rectified flow where use_flow_sigmas says so
    "DPMSolverMultistepScheduler": Family(_vp_by_sigma, _VP_OR_FLOW),
    "DPMSolverSinglestepScheduler": Family(_vp_by_sigma, _VP_OR_FLOW),
    "DEISMultistepScheduler": Family(_vp_by_sigma, _VP_OR_FLOW),
    "UniPCMultistepScheduler": Family(_vp_by_sigma, _VP_OR_FLOW),
    "SASolverScheduler": Family(_vp_by_sigma, _VP_OR_FLOW),
    # variance exploding
    "EulerDiscreteScheduler": Family(_ve, _VP, refused=_CHURN),
    "EulerAncestralDiscreteScheduler": Family(_ve, _NOT_SAMPLE),
    "LMSDiscreteScheduler": Family(_ve, _VP),
    "HeunDiscreteScheduler": Family(_ve, _VP),  # in both halves sigmas[step_index]
    "KDPM2DiscreteScheduler": Family(_ve_by_halves(lambda s, i: s.sigmas_interpol[i]), _NOT_SAMPLE),
    "KDPM2AncestralDiscreteScheduler": Family(_ve_by_halves(lambda s, i: s.sigmas_interpol[i - 1]), _NOT_SAMPLE),
    "DPMSolverSDEScheduler": Family(_ve_by_halves(_halfway), _NOT_SAMPLE),
    # EDM's preconditioned networks
    "EDMEulerScheduler": Family(_ve, _NOT_SAMPLE, refused=(*_CHURN, "pred_original_sample"), preconditioned=True),
    "EDMDPMSolverMultistepScheduler": Family(_ve, _NOT_SAMPLE, preconditioned=True),
    "CosineDPMSolverMultistepScheduler": Family(_ve, _NOT_SAMPLE, preconditioned=True),
    # flow matching
    "FlowMatchEulerDiscreteScheduler": Family(_flow, ("flow_prediction",), refused=("per_token_timesteps",)),
    "FlowMatchHeunDiscreteScheduler": Family(_flow, ("flow_prediction",), refused=_CHURN),
    "FlowMatchLCMScheduler": Family(_flow, ("flow_prediction",)),
    "LTXEulerAncestralRFScheduler": Family(_flow, ("flow_prediction",)),
    "SCMScheduler": Family(_trigflow, ("trigflow",)),
}
_TOKENS = "its states are discrete tokens, which have no Gaussian noise level"
_PRIOR = "it samples a prior's embeddings, which are no images"
REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "UnCLIPScheduler": _PRIOR,
    "DDPMWuerstchenScheduler": _PRIOR,
    "DDIMInverseScheduler": "it runs from an image to noise",
    "DPMSolverMultistepInverseScheduler": "it runs from an image to noise",
    "IPNDMScheduler": "it mixes states and outputs of several times before it is clear what x0 is",
    "CMStochasticIterativeScheduler": "its boundary coefficients are not worked out here",
}


def family_of(scheduler: Any) -> Family:
    """The family of a scheduler that the guard knows to read; raises UnsupportedScheduler with the reason."""
    kind = type(scheduler)
    family = FAMILIES.get(kind.__name__) if kind.__module__.startswith("diffusers.schedulers.") else None
    if family is None:
        reason = REFUSED.get(kind.__name__, "its step was never read")
        raise UnsupportedScheduler(
            f"{kind.__module__}.{kind.__name__} cannot be guarded: {reason}; use one of {', '.join(FAMILIES)}"
        )
    if prediction_of(scheduler) not in family.predictions:
        raise UnsupportedScheduler(
            f"{kind.__name__} with prediction_type {prediction_of(scheduler)!r}; "
            f"use one of {', '.join(family.predictions)}"
        )
    if scheduler.config.get("predict_x0") is False:
        raise UnsupportedScheduler(
            f"{kind.__name__} with predict_x0=False, which gives NaN also unguarded; use predict_x0=True"
        )
    return family


def prediction_of(scheduler: Any) -> str:
    """What the model's output means: epsilon, v_prediction, sample, flow_prediction or trigflow."""
    return str(scheduler.config.get("prediction_type", "flow_prediction"))


def read(
    scheduler: Any, family: Family, out: Tensor, timestep: Any, sample: Tensor, extra: Mapping[str, Any]
) -> Reading:
    """Read a step's arguments: ``sample`` is x_t, ``out`` the model's output for it, both (B, *S).

    extra: the step's other arguments, by name; those that would change x_t or the output behind the
    guard's back are refused.
    """
    for name in family.refused:
        given = extra.get(name)
        if given is not None and not (isinstance(given, int | float) and given == 0):
            raise OutOfRange(
                f"{type(scheduler).__name__}.step({name}=...) acts where no guard can see it; leave {name} out"
            )
    a, s = family.alpha_sigma(scheduler, timestep)
    level, prediction = NoiseLevel(a, s), prediction_of(scheduler)
    if family.preconditioned:
        sign = 1 if prediction == "epsilon" else -1
        shares = _preconditioned(s, float(scheduler.config.sigma_data), sign)
    else:
        shares = x0_shares(prediction, a, s)
    return Reading(level, *shares, sample, out)


def x0_shares(prediction: str, a: float, s: float) -> tuple[float, float]:
    """(p, q) with x0 = p x + q out, for x = a x_0 + s eps; both 0 where x0 is not defined.

    v is defined for a² + s² = 1, trigflow's output for states of any scale; an unscaled state (a = 1) is
    brought there first.
    """
    square = a * a + s * s
    if prediction == "epsilon":
        return (1 / a, -s / a) if a > 0 else (0.0, 0.0)
    if prediction == "v_prediction":
        return a / square, -s / square**0.5
    if prediction == "trigflow":  # the output is as large as the state: x0 = (cos t x - sin t out) / scale
        return a / square, -s / square
    if prediction == "flow_prediction":
        return 1.0, -s
    return 0.0, 1.0


def _preconditioned(s: float, data: float, sign: int) -> tuple[float, float]:
    """x0 = c_skip x + c_out out (Karras et al. 2022, table 1), x = x_0 + s eps, sigma_data = ``data``."""
    variance = s * s + data * data
    return data * data / variance, sign * s * data / variance**0.5
