"""Windows: by noise level, by timestep, by share of the steps; outside them the gate is not heard."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from worlds import ClosedForm, diffusers_on_numpy_2, random_world, seeded

from negindex import Exact, NoiseLevel
from negindex.errors import InvalidInput, OutOfRange
from negindex.sampler import Between, Correction, Fraction, Moment, PairedDenoiser, Timesteps, guard

pytestmark = diffusers_on_numpy_2

INF, NAN = float("inf"), float("nan")
LEVELS = NoiseLevel(1.0, torch.tensor([0.2, 0.7, 3.0], dtype=torch.float64))
WORLD = random_world()
UNSAFE, SAFE = Exact(WORLD.unsafe), Exact(WORLD.safe)
SCHEDULERS = [DDIMScheduler(), EulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()]
each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)


def look(window, timestep=None, fraction=None):
    x = torch.randn(3, 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    return Correction(UNSAFE, SAFE, window=window).look(x, x, LEVELS, timestep, fraction)


def acted(scheduler, window, steps=10):
    """In which steps of a guarded run the gate was heard."""
    with guard(ClosedForm(WORLD.rows, scheduler), UNSAFE, SAFE, window=window, copies=None) as guarded:
        guarded.pipe(batch=1, steps=steps)
    (receipt,) = guarded.receipts
    assert not any(step.correction for step in receipt.steps if step.log_odds == -INF)
    return [step.log_odds > -INF for step in receipt.steps]


@pytest.mark.parametrize("window", [Between(0.1, 0.5), Between(1.0), Between(high=0.5), lambda at: at.level.s > 1])
def test_outside_its_window_a_guard_changes_nothing(window):
    seen, acts = look(window), window(Moment(LEVELS))
    assert (seen.log_odds == -INF).tolist() == (~acts).tolist()
    assert (seen.correction == 0).tolist() == (~acts).tolist()
    assert 0 < acts.sum() < 3


@pytest.mark.parametrize("window", [Timesteps(780, 1000), Fraction(0.0, 0.22)])
def test_a_window_by_step_opens_for_the_whole_batch(window):
    assert (look(window, timestep=900, fraction=0.1).correction > 0).all()
    assert not look(window, timestep=700, fraction=0.3).correction.any()


def test_the_bounds_of_a_window_belong_to_it():
    level = NoiseLevel(1.0, torch.tensor([0.99, 1.0, 2.0, 2.01], dtype=torch.float64))
    assert Between(1.0, 2.0)(Moment(level)).tolist() == [False, True, True, False]
    assert Between()(Moment(NoiseLevel(0.0, 1.0))).item()
    one = NoiseLevel(1.0, torch.ones(1))
    assert [Timesteps(780, 1000)(Moment(one, t)).item() for t in (779, 780, 1000, 1001)] == [False, True, True, False]


@pytest.mark.parametrize("steps", [1, 3, 10, 50])
@pytest.mark.parametrize("cut", [0.22, 1 / 3, 0.5])
def test_two_windows_that_share_a_bound_share_the_steps_between_them(steps, cut):
    early, late = Fraction(0.0, cut), Fraction(cut, 1.0)
    for i in range(steps):
        moment = Moment(LEVELS, fraction=i / steps)
        assert torch.equal(early(moment), ~late(moment))
        assert torch.equal(early(moment), torch.full((3,), i / steps < cut))


@each_scheduler
def test_a_guard_counts_the_steps_of_the_schedule(scheduler):
    assert acted(scheduler, Fraction(0.0, 0.22)) == [True] * 3 + [False] * 7
    assert acted(scheduler, Fraction(0.5, 1.0)) == [False] * 5 + [True] * 5


@each_scheduler
def test_a_guard_knows_its_timestep(scheduler):
    scheduler.set_timesteps(10)
    inside = [780 <= t <= 1000 for t in scheduler.timesteps.tolist()]
    assert acted(scheduler, Timesteps(low=780, high=1000)) == inside
    assert 0 < sum(inside) < 10


def test_a_run_that_starts_late_starts_late_in_the_schedule():
    """As image-to-image does: the last of the scheduler's timesteps only."""
    pipe = ClosedForm(WORLD.rows, DDIMScheduler())
    with guard(pipe, UNSAFE, SAFE, window=Fraction(0.0, 0.8), copies=None) as guarded:
        pipe.scheduler.set_timesteps(10)
        x = torch.zeros(1, 1, 4, 4)
        for t in pipe.scheduler.timesteps[6:]:
            x = pipe.scheduler.step(torch.zeros_like(x), t, x).prev_sample
        (receipt,) = guarded.receipts
    assert [step.log_odds > -INF for step in receipt.steps] == [True, True, False, False]


@pytest.mark.parametrize("window", [Timesteps(), Fraction(0.0, 0.22)])
def test_a_bare_denoiser_has_no_steps_to_count(window):
    denoiser = PairedDenoiser(lambda x, sigma: x, UNSAFE, SAFE, window=window)
    with pytest.raises(InvalidInput, match=r"a bare denoiser never has; use Between\(low, high\)"):
        denoiser(WORLD.safe, 1.0)


@pytest.mark.parametrize(("low", "high"), [(2, 1), (NAN, 1), (0, NAN)])
def test_a_window_that_never_opens_is_refused(low, high):
    with pytest.raises(OutOfRange, match="give low <= high"):
        Timesteps(low, high)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (NAN, 1.0)])
def test_a_share_that_is_none_is_refused(low, high):
    with pytest.raises(OutOfRange, match="give 0 <= low < high <= 1"):
        Fraction(low, high)


def test_windows_say_what_they_are():
    assert str(Timesteps(780, 1000)) == "780 <= t <= 1000"
    assert str(Fraction(0.0, 0.22)) == "0 <= step / steps < 0.22"
    assert str(Between(0.5, 20)) == "0.5 <= s <= 20"


def test_a_fraction_is_worked_out_only_for_a_window():
    asked = []
    x = torch.zeros(len(LEVELS.alpha), *UNSAFE.shape)
    for window, times in ((None, 0), (Fraction(0.0, 0.5), 1)):
        correction = Correction(UNSAFE, SAFE, window=window)
        look = correction.look(x, x, LEVELS, 10.0, lambda: asked.append(1) or 0.25)
        assert len(asked) == times
        assert torch.equal(look.delta, correction.look(x, x, LEVELS, 10.0, 0.25).delta)
