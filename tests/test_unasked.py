"""What is asked for is told from the conditional branch, and an unsafe request is answered as if nothing was asked."""

import diffusers
import pytest
import torch
from test_branches import Guided, TwoPosteriors
from tiny_pipelines import BATCH, PIPELINES, raw, several
from worlds import diffusers_on_numpy_2, never, random_world, seeded

from negindex import Exact, NoiseLevel
from negindex.errors import NotAllowed, NothingToCompareWith, OutOfRange
from negindex.sampler import Constant, Unasked, View, guard, paired
from negindex.sampler.encode import space_of
from negindex.sampler.rules import Predicted
from negindex.sampler.unasked import asked_share

pytestmark = [
    diffusers_on_numpy_2,
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler. EulerDiscrete:FutureWarning"),
]
ALL, NONE = Unasked(at=-1e9, below=1e9), Unasked(at=1e9)  # every request is unsafe; none is
SILENT = Constant(1e-12)  # odds under which the paired part does nothing
TINY = "StableDiffusion-eps"


def sets(pipe, shape, seed=0):
    chance = seeded(seed)
    return tuple(Exact(torch.rand(n, *shape, generator=chance) - 0.5, space=space_of(pipe)) for n in (4, 6))


def guarded(pipe, tiny, rule, gate=None, **options):
    with guard(pipe, *sets(pipe, tiny.shape), 0.5, rule=rule, gate=gate, copies=None) as guarding:
        return tiny.run(pipe, several(), **options), guarding.receipts


def view(x0, log_odds=0.0, branches=None, level=None):
    world = random_world()
    x = torch.randn(len(x0), 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    level = level or NoiseLevel(0.6, 0.8)
    unsafe, safe = (Exact(rows).posterior(x, level) for rows in (world.unsafe, world.safe))
    odds = torch.full((len(x0),), log_odds, dtype=torch.float64)
    told = {} if branches is None else {"branches": lambda: branches}
    return View(x0, unsafe, safe, odds, x, level.expand(len(x0)), Exact(world.unsafe), **told)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 2.5])
def test_of_a_mixture_of_both_means_it_tells_the_share(share):
    seen = view(torch.zeros(3, 1, 4, 4))
    mixed = (1 - share) * seen.reference.mean + share * seen.unsafe.mean
    torch.testing.assert_close(asked_share(seen, mixed), torch.full((3,), share, dtype=torch.float64))


def test_what_lies_across_both_means_changes_no_share():
    seen = view(torch.zeros(3, 1, 4, 4))
    apart = (seen.unsafe.mean - seen.reference.mean).flatten(1)
    across = torch.randn(3, 16, generator=seeded(2), dtype=torch.float64)
    across -= (across * apart).sum(1, keepdim=True) / apart.square().sum(1, keepdim=True) * apart
    shares = asked_share(seen, seen.unsafe.mean + 5 * across.reshape(3, 1, 4, 4))
    torch.testing.assert_close(shares, torch.ones(3, dtype=torch.float64))


def test_sets_that_say_the_same_tell_no_share():
    seen = view(torch.zeros(3, 1, 4, 4))
    seen = View(seen.x0, seen.unsafe, seen.unsafe, seen.log_odds, seen.x_t, seen.level, seen.negatives)
    assert torch.equal(asked_share(seen, seen.x_t), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("scheduler", [None, diffusers.DPMSolverMultistepScheduler, diffusers.HeunDiscreteScheduler])
def test_an_unsafe_request_is_answered_as_if_nothing_had_been_asked(scheduler):
    tiny = PIPELINES[TINY]
    pipe = tiny.make()
    if scheduler is not None:
        pipe.scheduler = scheduler()
    made, _ = guarded(pipe, tiny, ALL, SILENT)
    told = tiny.options()
    free = {"prompt_embeds": told["negative_prompt_embeds"], "guidance_scale": 1.0, "negative_prompt_embeds": None}
    nothing_asked = tiny.run(pipe, several(), **free)
    torch.testing.assert_close(made, nothing_asked, rtol=0, atol=2e-4 * float(nothing_asked.abs().max()))
    assert float((made - tiny.run(pipe, several())).abs().max()) > 1e-2 * float(made.abs().max())


@pytest.mark.parametrize("name", [TINY, "StableDiffusion3", "Flux", "DiT"])
def test_a_safe_request_is_left_to_the_paired_rule_bit_for_bit(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    made, _ = guarded(pipe, tiny, NONE)
    assert raw(made) == raw(guarded(pipe, tiny, paired)[0])


def test_without_guidance_it_is_the_paired_rule():
    tiny = PIPELINES[TINY]
    pipe = tiny.make()
    assert raw(guarded(pipe, tiny, ALL, guidance_scale=1.0)[0]) == raw(
        guarded(pipe, tiny, paired, guidance_scale=1.0)[0]
    )


def test_a_request_once_seen_stays_seen_and_the_next_call_begins_anew():
    told = view(torch.zeros(2, 1, 4, 4))
    unsafe, safe = told.unsafe.mean[:2], told.reference.mean[:2]
    rule, apart = Unasked(gain=1e3), torch.ones(2, 1, 4, 4, dtype=torch.float64)
    seen = [view(torch.zeros(2, 1, 4, 4), branches=Predicted(c, apart)) for c in (unsafe, safe)]
    call = rule.begin()
    torch.testing.assert_close(call(seen[0]) - paired(seen[0]), apart)
    torch.testing.assert_close(call(seen[1]) - paired(seen[1]), apart)  # what was asked is remembered
    assert torch.equal(rule.begin()(seen[1]), paired(seen[1]))
    assert torch.equal(rule(seen[1]), paired(seen[1]))


def test_two_calls_make_the_same_images():
    tiny = PIPELINES[TINY]
    pipe = tiny.make()
    with guard(pipe, *sets(pipe, tiny.shape), 0.5, rule=Unasked(at=0.0, gain=1.0, below=1e9), copies=None):
        first, second = tiny.run(pipe, several()), tiny.run(pipe, several())
    assert raw(first) == raw(second)


def test_above_its_noise_level_and_outside_the_window_nothing_is_heard():
    zeros = torch.zeros(2, 1, 4, 4)
    both = Predicted(torch.full_like(zeros, 9.0).double(), torch.ones_like(zeros).double())
    loud = view(zeros, branches=both, level=NoiseLevel(0.1, 1.0))
    assert torch.equal(Unasked(at=-1e9, below=9.0)(loud), paired(loud))
    assert not torch.equal(Unasked(at=-1e9, below=11.0)(loud), paired(loud))
    assert not bool(Unasked(at=-1e9, below=11.0)(view(zeros, float("-inf"), both)).any())


def test_a_gate_that_is_sure_of_safety_keeps_the_pipeline_bit_for_bit():
    tiny = PIPELINES[TINY]
    pipe = tiny.make()
    plain = tiny.run(pipe, several())
    with guard(pipe, *sets(pipe, tiny.shape), gate=never, rule=ALL, copies=None):
        assert raw(tiny.run(pipe, several())) == raw(plain)


def test_receipts_name_it_with_its_numbers():
    tiny = PIPELINES[TINY]
    receipts = guarded(tiny.make(), tiny, Unasked(at=0.5))[1]
    assert [receipt.rule for receipt in receipts] == ["unasked, at 0.5, gain 20, below 6"] * BATCH


def test_guidance_that_cannot_be_taken_apart_is_refused():
    tiny = PIPELINES[TINY]
    pipe = tiny.make()
    with pytest.raises(NotAllowed, match="guidance_rescale"):
        guarded(pipe, tiny, ALL, guidance_rescale=0.7)


class ToTheEnd(Guided):
    """Guidance by hand through all steps."""

    def __call__(self, batch: int = 8, steps: int = 8) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.randn(batch, *self.unet.parts[0].shape[1:], generator=seeded(0), dtype=torch.float64)
        for t in self.scheduler.timesteps:
            c, u = self.unet(torch.cat([x, x]), t, torch.tensor([1] * batch + [0] * batch)).chunk(2)
            x = self.scheduler.step(u + self.scale * (c - u), t, x).prev_sample
        return x


def test_in_a_world_of_two_classes_the_unsafe_request_is_dropped_and_the_safe_one_kept():
    """The network is the posterior mean of a class's rows, and of all rows: what is asked for is known."""
    world = random_world(shape=(4, 2, 2), safe=12, unsafe=12, scale=0.3)
    safe, unsafe = world.safe + 1, world.unsafe - 1
    rows = torch.cat([safe, unsafe])
    scheduler = diffusers.DDIMScheduler(clip_sample=False)

    def unsafe_share(of_class, rule):
        pipe = ToTheEnd(TwoPosteriors(scheduler, of_class, rows), 3.0)
        if rule is None:
            return float((pipe().mean((1, 2, 3)) < 0).double().mean())
        with guard(pipe, Exact(unsafe), Exact(safe), 0.5, rule=rule, copies=None):
            return float((pipe().mean((1, 2, 3)) < 0).double().mean())

    assert unsafe_share(unsafe, None) == 1.0
    assert unsafe_share(unsafe, Unasked()) == 0.0
    assert unsafe_share(safe, Unasked()) == unsafe_share(safe, None) == 0.0


def test_numbers_that_make_no_sense_and_a_missing_reference_are_refused():
    for wrong in ({"gain": 0.0}, {"below": -1.0}):
        with pytest.raises(OutOfRange):
            Unasked(**wrong)
    seen = view(torch.zeros(2, 1, 4, 4))
    bare = View(seen.x0, seen.unsafe, None, seen.log_odds, seen.x_t, seen.level, seen.negatives)
    with pytest.raises(NothingToCompareWith):
        Unasked()(bare)
    with pytest.raises(NothingToCompareWith):
        asked_share(bare, seen.x0)
