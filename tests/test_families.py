"""Every family of schedulers: what a guard does through it is what the theorem says, to the end of the run.

The network is the closed form over all rows, at noise levels that are worked out here from what each
scheduler does to states and network inputs, not from the guard's own table.
"""

import inspect

import diffusers
import pytest
import torch
from worlds import alpha_sigma, always, diffusers_on_numpy_2, like, never, random_world, seeded, truth

from negindex import Exact
from negindex.errors import OutOfRange, UnsupportedScheduler
from negindex.sampler import guard
from negindex.sampler.schedules import FAMILIES, REFUSED, family_of

pytestmark = [
    diffusers_on_numpy_2,
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at its own end points
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.filterwarnings("ignore:.*algorithm_type dpmsolver is deprecated:FutureWarning"),
]

STEPS = 16
SETTINGS = {  # scheduler: settings beside the defaults, each a run of its own
    "DDIMScheduler": [{"clip_sample": False}],
    "DDIMParallelScheduler": [{"clip_sample": False}],
    "DDPMScheduler": [{"clip_sample": False}],
    "DDPMParallelScheduler": [{"clip_sample": False}],
    "PNDMScheduler": [{"skip_prk_steps": True}, {"skip_prk_steps": False}],
    "LCMScheduler": [{}],
    "TCDScheduler": [{}],
    "CogVideoXDDIMScheduler": [{"clip_sample": False, "rescale_betas_zero_snr": False}],
    "CogVideoXDPMScheduler": [{"clip_sample": False, "rescale_betas_zero_snr": False}],
    "DPMSolverMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_lu_lambdas": True},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"solver_order": 3},
    ],
    "DPMSolverSinglestepScheduler": [{}, {"use_karras_sigmas": True}, {"algorithm_type": "sde-dpmsolver++"}],
    "DEISMultistepScheduler": [{}, {"use_karras_sigmas": True}],
    "UniPCMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ],
    "SASolverScheduler": [{}, {"use_karras_sigmas": True}, {"algorithm_type": "noise_prediction"}],
    "EulerDiscreteScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
    ],
    "EulerAncestralDiscreteScheduler": [{}],
    "LMSDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "HeunDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "KDPM2DiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "KDPM2AncestralDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "DPMSolverSDEScheduler": [{"noise_sampler_seed": 1}, {"noise_sampler_seed": 1, "use_karras_sigmas": True}],
    "EDMEulerScheduler": [{}, {"sigma_schedule": "exponential"}],
    "EDMDPMSolverMultistepScheduler": [{}, {"algorithm_type": "sde-dpmsolver++"}],
    "CosineDPMSolverMultistepScheduler": [{}],
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"shift": 3.0},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
    ],
    "FlowMatchHeunDiscreteScheduler": [{}],
    "FlowMatchLCMScheduler": [{}],
    "LTXEulerAncestralRFScheduler": [{}],
    "SCMScheduler": [{}],
}
ENDS_NOISY = ("PNDM", "DEIS", "SASolver", "TCD", "sigma_min")


def runs():
    """(name, a maker of the scheduler) for each family, setting and prediction type."""
    for name, settings in SETTINGS.items():
        for given in settings:
            for prediction in FAMILIES[name].predictions:
                chosen = dict(given)
                if "prediction_type" in inspect.signature(getattr(diffusers, name).__init__).parameters:
                    chosen["prediction_type"] = prediction
                if (
                    prediction == "flow_prediction"
                    and "use_flow_sigmas" in inspect.signature(getattr(diffusers, name).__init__).parameters
                ):
                    if len(chosen) > 1 and any(key.startswith(("use_", "algorithm")) for key in given):
                        continue  # flow sigmas are a schedule of their own
                    chosen["use_flow_sigmas"] = True
                said = "-".join(f"{key}={value}" for key, value in given.items() if key != "noise_sampler_seed")
                yield f"{name.removesuffix('Scheduler')}-{prediction}{'-' if said else ''}{said}", name, chosen


RUNS = list(runs())
each_run = pytest.mark.parametrize(("name", "chosen"), [run[1:] for run in RUNS], ids=[run[0] for run in RUNS])


class ClosedFormRun:
    """A pipeline loop whose network is the posterior mean over rows, whatever the scheduler's conventions."""

    def __init__(self, rows, name, chosen):
        self.rows, self.scheduler = rows, getattr(diffusers, name)(**chosen)
        self.kind, self.calls = self.scheduler.config.get("prediction_type", "flow_prediction"), 0

    def __call__(self, batch=3, steps=STEPS, seed=0, dtype=torch.float64):
        torch.manual_seed(seed)  # for noise that a scheduler draws without a generator
        scheduler, generator = self.scheduler, seeded(seed)
        timing = {"intermediate_timesteps": None} if isinstance(scheduler, diffusers.SCMScheduler) else {}
        scheduler.set_timesteps(steps, **timing)
        takes = inspect.signature(scheduler.step).parameters
        x = torch.randn(batch, *self.rows.shape[1:], generator=generator, dtype=dtype) * self.first_scale()
        timesteps, before = scheduler.timesteps, None
        times = timesteps[:-1] if isinstance(scheduler, diffusers.SCMScheduler) else timesteps
        for i, t in enumerate(times):
            given = {"model_output": self.network(x, t), "timestep": t, "sample": x}
            if "generator" in takes:
                given["generator"] = generator
            if "old_pred_original_sample" in takes:
                given |= {"old_pred_original_sample": before, "timestep_back": timesteps[i - 1] if i else None}
            result = scheduler.step(**given, return_dict=False)
            x, before = result[0], result[-1]
            self.calls += 1
        return x / getattr(scheduler.config, "sigma_data", 1.0) if self.kind == "trigflow" else x

    def first_scale(self):
        if self.kind == "trigflow":
            return self.scheduler.config.sigma_data
        return getattr(self.scheduler, "init_noise_sigma", 1.0)

    def network(self, x, t):
        alpha, sigma = self.level(t)
        x0 = like(truth(self.rows, x.double(), alpha, sigma).mean, x)
        return self.output(x.double(), x0, alpha, sigma).to(x.dtype)

    def level(self, t):
        """alpha and sigma of the state, from what the scheduler does to states and network inputs."""
        scheduler, one = self.scheduler, torch.ones(1, 1, dtype=torch.float64)
        if self.kind == "trigflow":
            scale, angle = scheduler.config.sigma_data, min(float(t), torch.pi / 2)
            return scale * max(0.0, torch.tensor(angle, dtype=torch.float64).cos().item()), scale * float(t.sin())
        if hasattr(scheduler, "is_scale_input_called") or hasattr(scheduler, "sigmas_interpol"):
            shrunk = scheduler.scale_model_input(one, t).item()  # 1 / sqrt(sigma² + sigma_data²)
        elif type(scheduler).__name__ in ("HeunDiscreteScheduler", "DPMSolverSDEScheduler"):
            shrunk = scheduler.scale_model_input(one, t).item()
        elif self.kind == "flow_prediction":
            return 1 - float(t) / 1000, float(t) / 1000
        else:
            return alpha_sigma(scheduler, t)
        data = scheduler.config.get("sigma_data", 1.0)
        return 1.0, (1 / shrunk**2 - data**2) ** 0.5

    def output(self, x, x0, alpha, sigma):
        """What a perfectly trained network answers, by each convention's own definition."""
        scheduler, eps = self.scheduler, (x - alpha * x0) / sigma
        if FAMILIES[type(scheduler).__name__].preconditioned:
            data = scheduler.config.sigma_data
            total = (sigma**2 + data**2) ** 0.5
            sign = 1 if self.kind == "epsilon" else -1
            return (x0 - data**2 / total**2 * x) * total / (sign * sigma * data)
        if self.kind == "v_prediction":
            norm = (alpha**2 + sigma**2) ** 0.5
            return (alpha * eps - sigma * x0) / norm
        if self.kind == "trigflow":  # the velocity of the state in t
            return alpha * eps - sigma * x0
        return {"epsilon": eps, "sample": x0, "flow_prediction": eps - x0}[self.kind]


@each_run
def test_a_guarded_run_over_all_rows_is_a_run_over_the_safe_rows(name, chosen):
    world = random_world(safe=4, unsafe=12, seed=31)
    everything, safe = ClosedFormRun(world.rows, name, chosen), ClosedFormRun(world.safe, name, chosen)
    with guard(everything, Exact(world.unsafe), Exact(world.safe), prior=world.prior, copies=None) as guarded:
        kept = everything()
    looked = len(guarded.receipts[0].steps)
    assert looked == everything.calls, "one look a call of the network, two-call solvers included"
    alone, free = safe(), everything()
    assert (kept - alone).norm() <= 1e-3 * alone.norm()
    assert (free - alone).norm() > 0.02 * alone.norm()


@pytest.mark.parametrize(
    ("name", "chosen"),
    # SASolver's noise prediction extrapolates past the noise that it drew itself and diverges when x0 is held
    [run[1:] for run in RUNS if "noise_prediction" not in run[2].values()],
    ids=[run[0] for run in RUNS if "noise_prediction" not in run[2].values()],
)
def test_a_forced_x0_is_where_the_sample_ends(name, chosen):
    world = random_world(seed=32)
    point = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    pipe = ClosedFormRun(world.rows, name, chosen)
    with guard(pipe, Exact(world.unsafe), gate=always, rule=lambda view: point - view.x0):
        sample = pipe(batch=2)
    noisy = any(mark in f"{name}{chosen}" for mark in ENDS_NOISY)
    assert (sample - point).abs().max() < (0.2 if noisy else 1e-4)


@each_run
def test_a_guard_with_nothing_to_correct_leaves_every_bit(name, chosen):
    world = random_world(seed=33)
    for dtype in (torch.float32, torch.float64):
        pipe = ClosedFormRun(world.rows, name, chosen)
        free = pipe(batch=2, dtype=dtype)
        with guard(pipe, Exact(world.unsafe), gate=never, copies=None):
            kept = pipe(batch=2, dtype=dtype)
        assert free.isfinite().all()
        assert torch.equal(free, kept)


def test_every_family_and_prediction_is_run():
    assert set(SETTINGS) == set(FAMILIES)
    assert {(name, chosen.get("prediction_type", "flow_prediction")) for _, name, chosen in RUNS} == {
        (name, prediction) for name, family in FAMILIES.items() for prediction in family.predictions
    }


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(diffusers, name)])
def test_a_scheduler_that_is_out_is_refused_with_its_reason(name):
    scheduler = object.__new__(getattr(diffusers, name))
    with pytest.raises(UnsupportedScheduler, match="cannot be guarded") as refusal:
        family_of(scheduler)
    assert REFUSED[name] in str(refusal.value)


def test_settings_that_cannot_be_guarded_are_refused():
    with pytest.raises(UnsupportedScheduler, match="v_prediction"):
        family_of(diffusers.PNDMScheduler(prediction_type="v_prediction"))
    with pytest.raises(UnsupportedScheduler, match="predict_x0"):
        family_of(diffusers.UniPCMultistepScheduler(predict_x0=False))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("EulerDiscreteScheduler", {"s_churn": 0.5}),
        ("EDMEulerScheduler", {"s_churn": 0.5}),
        ("EDMEulerScheduler", {"pred_original_sample": torch.zeros(1, 1, 4, 4)}),
        ("FlowMatchHeunDiscreteScheduler", {"s_churn": 0.5}),
        ("FlowMatchEulerDiscreteScheduler", {"per_token_timesteps": torch.zeros(1, 4)}),
    ],
)
def test_step_arguments_that_act_behind_the_guard_are_refused(name, extra):
    world = random_world(seed=34)
    pipe = ClosedFormRun(world.rows, name, {})
    with guard(pipe, Exact(world.unsafe), gate=never, copies=None):
        pipe.scheduler.set_timesteps(4)
        x, t = torch.zeros(1, 1, 4, 4), pipe.scheduler.timesteps[0]
        with pytest.raises(OutOfRange, match=next(iter(extra))):
            pipe.scheduler.step(x, t, x, **extra)
