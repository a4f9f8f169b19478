"""Through each scheduler: the guard reads x_t, alpha and sigma right, and its change of x0 arrives."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from worlds import (
    ClosedForm,
    alpha_sigma,
    always,
    diffusers_on_numpy_2,
    exact_gate,
    gap,
    random_world,
    seeded,
    truth,
    watch,
)

from negindex import Exact, NoiseLevel
from negindex.errors import UnsupportedScheduler
from negindex.sampler import Ratio, SafeDenoising, guard
from negindex.sampler.schedules import Reading, family_of, x0_shares

pytestmark = diffusers_on_numpy_2

PREDICTIONS = ("epsilon", "v_prediction", "sample")
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def schedulers():
    """Every supported family, with each prediction type and with the settings that reach the ends."""
    for p in PREDICTIONS:
        yield f"ddim-{p}", DDIMScheduler(prediction_type=p, clip_sample=False)
        yield f"ddpm-{p}", DDPMScheduler(prediction_type=p, clip_sample=False)
        yield f"euler-{p}", EulerDiscreteScheduler(prediction_type=p)
        yield f"dpm-{p}", DPMSolverMultistepScheduler(prediction_type=p)
    for p in ("v_prediction", "sample"):
        yield f"ddim-zero-snr-{p}", DDIMScheduler(prediction_type=p, clip_sample=False, **ZERO_SNR)
        yield f"ddpm-zero-snr-{p}", DDPMScheduler(prediction_type=p, clip_sample=False, **ZERO_SNR)
        yield f"euler-zero-snr-{p}", EulerDiscreteScheduler(prediction_type=p, **ZERO_SNR)
        yield f"dpm-zero-snr-{p}", DPMSolverMultistepScheduler(prediction_type=p, **ZERO_SNR)
    yield "euler-karras", EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="trailing")
    yield "dpm-sde", DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)
    yield "dpm-flow", DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    yield "flow", FlowMatchEulerDiscreteScheduler()
    yield "flow-shifted", FlowMatchEulerDiscreteScheduler(shift=3.0)
    yield "flow-stochastic", FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)


NAMED = dict(schedulers())
each_scheduler = pytest.mark.parametrize("scheduler", NAMED.values(), ids=NAMED.keys())


def check_theorem(world, seen, steps):
    """Every step's x0, as the scheduler read it, against the mean over the safe rows at that x_t."""
    assert len(seen) == steps
    for step in seen:
        error = gap(step.x0, truth(world.safe, step.x_t, step.alpha, step.sigma).mean)
        assert (error <= 1e-4 * world.rms).all(), (step.alpha, step.sigma, error / world.rms)


def correction_of(step, world):
    """How far the theorem moved x0 at this step."""
    whole, safe = (truth(rows, step.x_t, step.alpha, step.sigma).mean for rows in (world.rows, world.safe))
    return np.sqrt(np.square(whole - safe).sum(1)).max()


@each_scheduler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_safe_denoising_gives_the_closed_form_over_the_safe_rows_at_each_step(scheduler, dtype, monkeypatch):
    world = random_world(seed=20)
    seen = watch(monkeypatch, type(scheduler))
    pipe = ClosedForm(world.rows, scheduler)
    with guard(pipe, Exact(world.unsafe), rule=SafeDenoising(float("inf")), gate=exact_gate(world), copies=None):
        pipe(batch=3, steps=6, dtype=dtype)
    check_theorem(world, seen, 6)
    assert max(correction_of(step, world) for step in seen) > 0.05 * world.rms


@each_scheduler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_paired_gives_the_closed_form_over_the_safe_rows_at_each_step(scheduler, dtype, monkeypatch):
    world = random_world(seed=21)
    seen = watch(monkeypatch, type(scheduler))
    pipe = ClosedForm(world.rows, scheduler)
    with guard(pipe, Exact(world.unsafe), Exact(world.safe), prior=world.prior, copies=None):
        pipe(batch=3, steps=6, dtype=dtype)
    check_theorem(world, seen, 6)
    assert max(correction_of(step, world) for step in seen) > 0.05 * world.rms


@each_scheduler
def test_a_guarded_run_over_all_rows_is_a_run_over_the_safe_rows(scheduler):
    world = random_world(safe=4, unsafe=12, seed=22)
    pipe, safe_pipe = ClosedForm(world.rows, scheduler), ClosedForm(world.safe, scheduler)
    with guard(pipe, Exact(world.unsafe), Exact(world.safe), prior=world.prior, copies=None):
        guarded = pipe(batch=6, steps=6, seed=5)
    safe, unguarded = safe_pipe(batch=6, steps=6, seed=5), pipe(batch=6, steps=6, seed=5)
    assert (guarded - safe).norm() <= 1e-3 * safe.norm()
    assert (unguarded - safe).norm() > 0.1 * safe.norm()


@each_scheduler
def test_a_forced_x0_is_where_the_sample_ends(scheduler):
    """Steer: the rule moves x0 to one point whatever the network says; the last sample is that point."""
    world = random_world(seed=23)
    point = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    pipe = ClosedForm(world.rows, scheduler)
    with guard(pipe, Exact(world.unsafe), gate=always, rule=lambda view: point - view.x0):
        sample = pipe(batch=2, steps=6)
    ends_noisy = (
        isinstance(scheduler, DDIMScheduler | DDPMScheduler) and scheduler.config.timestep_spacing == "trailing"
    )
    assert (sample - point).abs().max() < (0.05 if ends_noisy else 1e-4)  # sigma is 0.01 where it ends


ENDS = ("ddim-zero-snr-v_prediction", "ddim-zero-snr-sample", "ddpm-zero-snr-v_prediction", "flow", "flow-shifted")


@pytest.mark.parametrize("name", ENDS)
def test_at_pure_noise_the_correction_still_arrives(name, monkeypatch):
    world, scheduler = random_world(seed=24), NAMED[name]
    seen = watch(monkeypatch, type(scheduler))
    pipe = ClosedForm(world.rows, scheduler)
    with guard(pipe, Exact(world.unsafe), Exact(world.safe), prior=world.prior) as guarded:
        pipe(batch=2, steps=3)
    first = guarded.receipts[0].steps[0]
    assert (first.alpha, seen[0].alpha) == (0, 0)
    assert first.log_odds == pytest.approx(np.log(5 / 9), abs=1e-12)
    assert (gap(seen[0].x0, world.safe.double().flatten(1).mean(0).numpy()) < 1e-4 * world.rms).all()


def reading_of(prediction, x, out, alpha, sigma):
    return Reading(NoiseLevel(alpha, sigma), *x0_shares(prediction, alpha, sigma), x, out)


def test_noise_prediction_at_pure_noise_is_left_as_it_is():
    """There out = x_t whatever x0 is: no output carries a change."""
    x, out = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), -0.5, dtype=torch.float64)
    reading = reading_of("epsilon", x, out, 0.0, 1.0)
    assert (reading.jacobian, reading.x0.abs().max().item()) == (0.0, 0.0)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow_prediction"])
@pytest.mark.parametrize("alpha", [1.0, 0.6, 1e-3])
def test_the_jacobian_carries_a_change_of_x0_through_the_output(prediction, alpha):
    """x0(out + J d) = x0(out) + d, for states of every scale."""
    sigma = 1 - alpha if prediction == "flow_prediction" and alpha < 1 else 0.8
    x, out, change = torch.randn(3, 2, 7, generator=seeded(25), dtype=torch.float64)
    before = reading_of(prediction, x, out, alpha, sigma)
    after = reading_of(prediction, x, out + before.jacobian * change, alpha, sigma)
    torch.testing.assert_close(after.x0, before.x0 + change, rtol=1e-9, atol=1e-9)


@each_scheduler
def test_the_level_read_is_the_one_the_scheduler_adds_noise_with(scheduler):
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps[:1]:  # later ones are only known while stepping, which the theorem covers
        alpha, sigma = family_of(scheduler).alpha_sigma(scheduler, t)
        assert (float(alpha), float(sigma)) == pytest.approx(alpha_sigma(scheduler, t), rel=1e-6, abs=1e-12)


def test_a_prediction_type_that_is_not_known_is_refused():
    with pytest.raises(UnsupportedScheduler, match=r"prediction_type 'original_sample'.*use one of epsilon"):
        family_of(EulerDiscreteScheduler(prediction_type="original_sample"))


def test_a_scheduler_of_the_same_name_from_elsewhere_is_refused():
    class DDIMScheduler:
        pass

    with pytest.raises(UnsupportedScheduler, match="use one of DDIMScheduler"):
        family_of(DDIMScheduler())


def test_the_ratio_gate_alone_guards_like_the_exact_one():
    world = random_world(seed=26)
    pipe, samples = ClosedForm(world.rows, DDIMScheduler(clip_sample=False)), []
    for gate in (exact_gate(world), Ratio(Exact(world.safe), world.prior)):
        with guard(pipe, Exact(world.unsafe), rule=SafeDenoising(float("inf")), gate=gate, copies=None):
            samples.append(pipe(batch=2, steps=5))
    torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def test_the_default_rule_never_works_out_x0(monkeypatch):
    monkeypatch.setattr(Reading, "x0", property(lambda reading: pytest.fail("x0 was worked out")))
    world = random_world(seed=27)
    pipe = ClosedForm(world.rows, DDIMScheduler())
    with guard(pipe, Exact(world.unsafe), Exact(world.safe)) as guarded:
        pipe(batch=2, steps=3)
    assert max(step.correction for step in guarded.receipts[0].steps) > 0
    with guard(pipe, Exact(world.unsafe), gate=always), pytest.raises(pytest.fail.Exception, match="worked out"):
        pipe(batch=2, steps=3)
