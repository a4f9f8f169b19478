"""Half precision: the correction is worked out from the very values, in float64, and rounded once."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from worlds import ClosedForm, diffusers_on_numpy_2, random_world

from negindex import Exact
from negindex.sampler import guard

pytestmark = diffusers_on_numpy_2

SCHEDULERS = {
    "ddim-epsilon": lambda: DDIMScheduler(clip_sample=False),
    "ddim-v": lambda: DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "dpm-sample": lambda: DPMSolverMultistepScheduler(prediction_type="sample"),
    "euler-epsilon": EulerDiscreteScheduler,
    "flow": FlowMatchEulerDiscreteScheduler,
}


def first_output(monkeypatch, world, scheduler, out, x, dtype):
    """The model output that a guarded step hands on, and what its receipt says."""
    pipe, given = ClosedForm(world.rows, scheduler), []
    plain = type(scheduler).step
    with monkeypatch.context() as patched:
        patched.setattr(type(scheduler), "step", _spying(plain, given))
        with guard(pipe, Exact(world.unsafe), Exact(world.safe), prior=world.prior, copies=None) as g:
            scheduler.set_timesteps(8)
            t = scheduler.timesteps[5]
            scheduler.step(out.to(dtype), t, x.to(dtype))
            return given[0], g.receipts


def _spying(plain, given):
    def step(self, model_output, timestep, sample, *args, **kwargs):
        given.append(model_output)
        return plain(self, model_output, timestep, sample, *args, **kwargs)

    return step


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_correction_in_half_precision_is_that_of_the_same_values_in_float32(name, half, monkeypatch):
    world, generator = random_world(seed=51), torch.Generator().manual_seed(51)
    x, out = (torch.randn(3, *world.rows.shape[1:], generator=generator).to(half).float() for _ in range(2))
    full, wide = first_output(monkeypatch, world, SCHEDULERS[name](), out, x, torch.float32)
    rounded, narrow = first_output(monkeypatch, world, SCHEDULERS[name](), out, x, half)
    assert rounded.dtype == half
    correction = (full - out).norm()
    assert correction > 0.05
    assert (rounded.float() - full).norm() <= 1e-2 * full.norm()
    for a, b in zip(wide, narrow, strict=True):
        assert a.steps == b.steps, "log-norms, odds and the size of the correction stay float64, of the same values"
