"""A guard in place: nothing changes where nothing is near, nothing is left when it comes off, nothing slips by."""

import copy
import inspect
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, IPNDMScheduler, UNet2DModel
from diffusers import DPMSolverMultistepScheduler as DPMSolver
from diffusers import EulerDiscreteScheduler as Euler
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from worlds import ClosedForm, diffusers_on_numpy_2, gap, never, random_world, seeded, truth, watch

from negindex import Collection, Exact
from negindex.errors import (
    NotAllowed,
    NothingToCompareWith,
    OutOfRange,
    SchedulerReplaced,
    ShapeMismatch,
    SpaceMismatch,
    UnsupportedScheduler,
)
from negindex.sampler import Between, Correction, guard, paired
from negindex.sampler.pipelines import ClassConditionalPipeline, load_pipeline

pytestmark = diffusers_on_numpy_2

SCHEDULERS = {
    **{
        f"{kind.__name__}-{prediction}": kind(prediction_type=prediction)
        for kind in (DDIMScheduler, DDPMScheduler, Euler, DPMSolver)
        for prediction in ("epsilon", "v_prediction", "sample")
    },
    "DPMSolver-flow": DPMSolver(prediction_type="flow_prediction", use_flow_sigmas=True),
    "FlowMatch": FlowMatch(),
}
ROWS = torch.randn(8, 1, 8, 8, generator=seeded(0))
UNSAFE, SAFE = Exact(ROWS[:3]), Exact(ROWS[3:])


def unet(classes: int | None = 4) -> UNet2DModel:
    """Random weights, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            num_class_embeds=classes,
        ).eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny(scheduler: Any = None, dtype: torch.dtype = torch.float32) -> ClassConditionalPipeline:
    return quiet(ClassConditionalPipeline(unet().to(dtype), scheduler or DDIMScheduler()))


def sample(pipe: Any, labels: tuple[int, ...] = (0, 2), seeds: tuple[int, ...] = (1, 2)) -> torch.Tensor:
    generators = [seeded(seed) for seed in seeds]
    return pipe(list(labels), 4, guidance_scale=2.0, generator=generators, output_type="pt").images


def bits(values: torch.Tensor) -> list[int]:
    return values.contiguous().view(torch.int16 if values.element_size() == 2 else torch.int32).flatten().tolist()


# -- a correction of zero ----------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_where_nothing_is_near_the_output_is_bit_identical(scheduler, dtype):
    pipe = tiny(scheduler, dtype)
    plain = bits(sample(pipe))
    for options in ({}, {"reference": SAFE}):
        with guard(pipe, UNSAFE, gate=never, **options) as guarded:
            assert bits(sample(pipe)) == plain
        assert [len(receipt.steps) for receipt in guarded.receipts] == [4, 4]
    with guard(pipe, UNSAFE, SAFE, 0.9):
        assert bits(sample(pipe)) != plain


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_diffusers_own_pipelines_are_bit_identical_too(kind):
    pipe = quiet(kind(unet(classes=None), DDPMScheduler()))

    def run() -> bytes:
        options = {"num_inference_steps": 4, "output_type": "np"}
        return pipe(batch_size=2, generator=seeded(1), **options).images.tobytes()

    plain = run()
    with guard(pipe, UNSAFE, gate=never) as guarded:
        assert run() == plain
        assert len(guarded.receipts) == 2
    with guard(pipe, UNSAFE, SAFE, 0.9):
        assert run() != plain


def test_a_window_that_never_opens_is_bit_identical():
    pipe = tiny()
    plain = bits(sample(pipe))
    with guard(pipe, UNSAFE, SAFE, 0.9, window=Between(1e6)):
        assert bits(sample(pipe)) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_minus_zero_stays_minus_zero(dtype, monkeypatch):
    seen = watch(monkeypatch, DDIMScheduler)
    pipe = tiny()
    pipe.scheduler.set_timesteps(4)
    out = torch.zeros(1, 1, 8, 8, dtype=dtype).neg()
    with guard(pipe, UNSAFE, gate=never):
        x_t = torch.randn(out.shape, generator=seeded(2)).to(dtype)  # of both signs, so are the zeros to be added
        pipe.scheduler.step(out, pipe.scheduler.timesteps[0], x_t)
    assert bits(seen[0].model_output) == bits(out)
    assert torch.signbit(seen[0].model_output).all()


def test_a_batch_is_guarded_as_its_images_are():
    pipe, labels, seeds = tiny(), (0, 1, 2, 0), (5, 6, 7, 8)
    with guard(pipe, UNSAFE, SAFE, 0.7) as guarded:
        together = sample(pipe, labels, seeds)
        of_batch = [[step.correction for step in receipt.steps] for receipt in guarded.receipts]
        for i in range(4):
            alone = sample(pipe, labels[i : i + 1], seeds[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-4)
            (receipt,) = guarded.receipts
            assert [step.correction for step in receipt.steps] == pytest.approx(of_batch[i], rel=1e-4)
    assert min(map(max, of_batch)) > 0.1


def test_a_learned_variance_passes_through(monkeypatch):
    """The first C of 2C channels are corrected, as they would be alone."""
    seen = watch(monkeypatch, DDPMScheduler)
    mean, variance = torch.randn(2, 2, 1, 8, 8, generator=seeded(3))
    x = torch.randn(2, 1, 8, 8, generator=seeded(4))
    for kind, out in (("fixed_small", mean), ("learned_range", torch.cat([mean, variance], 1))):
        pipe = quiet(DDPMPipeline(unet(classes=None), DDPMScheduler(variance_type=kind)))
        with guard(pipe, UNSAFE, SAFE, 0.7):
            pipe.scheduler.set_timesteps(4)
            pipe.scheduler.step(out, pipe.scheduler.timesteps[1], x, generator=seeded(5))
    alone, both = (step.model_output for step in seen)
    assert bits(both[:, 1:]) == bits(variance)
    assert bits(both[:, :1]) == bits(alone)
    assert (alone != mean).any()


# -- what is refused before anything is attached -----------------------------------------------

REFUSED = {
    "nothing to compare with": (NothingToCompareWith, {}),
    "another space": (SpaceMismatch, {"negatives": Exact(ROWS, space="vae 1"), "gate": never}),
    "a reference in another space": (SpaceMismatch, {"reference": Exact(ROWS, space="vae 1")}),
    "a reference of another shape": (ShapeMismatch, {"reference": Exact(torch.zeros(1, 3, 8, 8))}),
    "a prior of 1": (OutOfRange, {"reference": SAFE, "prior": 1.0}),
    "a scheduler it cannot read": (UnsupportedScheduler, {"reference": SAFE, "scheduler": IPNDMScheduler()}),
}


@pytest.mark.parametrize(("error", "options"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_refused_before_anything_is_attached(error, options):
    options = {"negatives": UNSAFE, **options}
    pipe = tiny(options.pop("scheduler", DDIMScheduler()))
    before = trace(pipe)
    with pytest.raises(error):
        guard(pipe, **options)
    assert trace(pipe) == before


def test_nothing_to_compare_with_names_its_three_remedies():
    with pytest.raises(NothingToCompareWith, match=r"reference=.*calibrate a gate.*TriggerShare.*gate=Threshold"):
        guard(tiny(), UNSAFE)


def test_rows_of_another_size_are_refused_at_the_first_step():
    pipe = tiny()
    with guard(pipe, Exact(torch.zeros(1, 1, 4, 4)), gate=never), pytest.raises(ShapeMismatch):
        sample(pipe)


def test_a_step_that_moves_x_t_where_no_guard_sees_it_is_refused():
    pipe = tiny(Euler())
    pipe.scheduler.set_timesteps(4)
    t, x = pipe.scheduler.timesteps[0], torch.ones(1, 1, 8, 8)
    with guard(pipe, UNSAFE, SAFE):
        with pytest.raises(OutOfRange, match="s_churn"):
            pipe.scheduler.step(x, t, x, s_churn=0.5)
        pipe.scheduler.scale_model_input(x, t)
        pipe.scheduler.step(x, t, x, s_churn=0.0)


# -- nothing slips by --------------------------------------------------------------------------


def test_a_replaced_scheduler_is_noticed():
    pipe = tiny()
    with guard(pipe, UNSAFE, SAFE):
        own, pipe.scheduler = pipe.scheduler, DDIMScheduler()
        with pytest.raises(SchedulerReplaced, match="guard again"):
            sample(pipe)
        pipe.scheduler = own
        sample(pipe)


def test_a_call_that_never_steps_the_guarded_scheduler_is_withheld():
    class Skips:
        scheduler = DDIMScheduler()

        def __call__(self) -> str:
            self.scheduler.set_timesteps(3)
            return "an image"

    pipe = Skips()
    with guard(pipe, Exact(ROWS), gate=never), pytest.raises(NotAllowed, match="unguarded and is withheld"):
        pipe()
    assert pipe() == "an image"


def test_a_failing_network_raises_its_own_error_and_the_next_call_is_guarded():
    def fail(step: int) -> None:
        if step == 1:
            raise RuntimeError("out of memory")

    world = random_world()
    pipe = ClosedForm(world.rows, DDIMScheduler(), on_network=fail)
    with guard(pipe, Exact(world.unsafe), Exact(world.safe)) as guarded:
        with pytest.raises(RuntimeError, match="out of memory"):
            pipe(batch=2)
        pipe.on_network = lambda step: None
        pipe(batch=3, steps=5)
        assert [len(receipt.steps) for receipt in guarded.receipts] == [5, 5, 5]


def test_a_copied_scheduler_is_guarded_like_its_original():
    pipe = tiny()
    out, x = torch.randn(2, 1, 1, 8, 8, generator=seeded(6))

    def stepped(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(4)
        return scheduler.step(out, scheduler.timesteps[1], x).prev_sample

    plain = stepped(pipe.scheduler)
    with guard(pipe, UNSAFE, SAFE, 0.7) as guarded:
        copied = copy.deepcopy(pipe.scheduler)
        guarded_output = stepped(pipe.scheduler)
        assert torch.equal(stepped(copied), guarded_output)
        assert len(guarded.receipts) == 1
    assert not torch.equal(guarded_output, plain)


# -- the pipeline goes on being what it was ----------------------------------------------------


def trace(pipe: Any) -> list[Any]:
    """Class, and the identity of every attribute, of the pipeline and its scheduler."""
    return [(type(obj), {name: id(value) for name, value in vars(obj).items()}) for obj in (pipe, pipe.scheduler)]


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler(), Euler(), DPMSolver(), FlowMatch()])
def test_detaching_leaves_no_trace(scheduler):
    pipe = tiny(scheduler)
    before = trace(pipe)
    guarded = guard(pipe, UNSAFE, SAFE)
    guarded.detach()
    assert trace(pipe) == before
    plain = bits(sample(pipe))
    names = [set(vars(pipe)), set(vars(pipe.scheduler))]
    with guard(pipe, UNSAFE, SAFE, 0.9):
        sample(pipe)
    assert [set(vars(pipe)), set(vars(pipe.scheduler))] == names
    assert bits(sample(pipe)) == plain
    guarded.detach()  # the second time does nothing


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler(), Euler(), DPMSolver(), FlowMatch()])
def test_classes_names_and_signatures_are_those_of_the_original(scheduler):
    pipe, kind = tiny(scheduler), type(scheduler)
    with guard(pipe, UNSAFE, SAFE):
        assert isinstance(pipe.scheduler, kind)
        assert isinstance(pipe, ClassConditionalPipeline)
        names = [(k.__name__, k.__qualname__, k.__module__, k.__doc__) for k in (kind, type(pipe.scheduler))]
        assert names[0] == names[1]
        for method in ("step", "set_timesteps"):
            assert inspect.signature(getattr(pipe.scheduler, method)) == inspect.signature(getattr(scheduler, method))
            assert inspect.signature(getattr(type(scheduler), method)) == inspect.signature(getattr(kind, method))
        assert inspect.signature(type(pipe).__call__) == inspect.signature(ClassConditionalPipeline.__call__)


def test_a_guarded_pipeline_saves_what_an_unguarded_one_does(tmp_path):
    pipe = tiny(Euler())
    plain = sample(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    with guard(pipe, UNSAFE, SAFE, 0.9):
        pipe.save_pretrained(tmp_path / "guarded")
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "guarded" / file).read_text() == (tmp_path / "plain" / file).read_text()
    config = json.loads((tmp_path / "guarded/scheduler/scheduler_config.json").read_text())
    assert config["_class_name"] == "EulerDiscreteScheduler"
    loaded = quiet(load_pipeline(tmp_path / "guarded"))
    assert type(loaded.scheduler) is Euler
    assert torch.equal(sample(loaded), plain)


def test_any_object_with_a_scheduler_can_be_guarded():
    @dataclass
    class Unhashable:
        scheduler: Any

        def __call__(self) -> torch.Tensor:
            self.scheduler.set_timesteps(2)
            x = torch.ones(1, 1, 8, 8)
            return self.scheduler.step(x, self.scheduler.timesteps[0], x).prev_sample

    pipe = Unhashable(DDIMScheduler())
    plain = pipe()
    with guard(pipe, UNSAFE, SAFE, 0.7):
        assert not torch.equal(pipe(), plain)
    assert torch.equal(pipe(), plain)


# -- several guards, sets that change ----------------------------------------------------------


def test_nested_guards_negate_both_sets(monkeypatch):
    world = random_world(safe=9, unsafe=6)
    a, b = world.unsafe[:2], world.unsafe[2:]
    seen = watch(monkeypatch, DDIMScheduler)
    pipe = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    without_b = torch.cat([world.safe, a])
    with guard(pipe, Exact(a), Exact(world.safe), prior=2 / 11), guard(pipe, Exact(b), Exact(without_b), prior=4 / 15):
        pipe(batch=2, steps=4)
    for step in seen:
        error = gap(step.x0, truth(world.safe, step.x_t, step.alpha, step.sigma).mean)
        assert (error <= 1e-4 * world.rms).all()


def test_nested_guards_come_off_in_the_reverse_order():
    pipe = tiny()
    before = trace(pipe)
    first, second = guard(pipe, UNSAFE, SAFE), guard(pipe, UNSAFE, gate=never)
    between = trace(pipe)
    with pytest.raises(NotAllowed, match="detach that one first"):
        first.detach()
    assert trace(pipe) == between
    second.detach()
    first.detach()
    assert trace(pipe) == before


def test_a_followed_set_is_pinned_for_the_whole_image(tmp_path):
    world = random_world(safe=6, unsafe=4)
    rows = world.unsafe.float()
    with Collection.create(tmp_path / "set", (1, 4, 4), "pixels", dtype="float32") as collection:
        collection.add(rows[:2], ["a", "b"])
        pipe = ClosedForm(world.rows, DDIMScheduler(), lambda step: takedown() if step == 1 else None)

        def takedown() -> None:
            collection.add(rows[2:], ["c", "d"])

        with guard(pipe, collection, Exact(world.safe.float())) as guarded:
            first = pipe(batch=1, steps=4)
            assert collection.newest().version == 2
            (receipt,) = guarded.receipts
            assert [stated.version for stated in receipt.sets] == [1]
            assert {row.source_key for step in receipt.steps for row in step.heaviest} == {"a", "b"}
            pipe.on_network = lambda step: None
            second = pipe(batch=1, steps=4)
            (receipt,) = guarded.receipts
            assert [stated.version for stated in receipt.sets] == [2]
            assert {row.source_key for step in receipt.steps for row in step.heaviest} == set("abcd")
        with guard(pipe, collection.snapshot(1), Exact(world.safe.float())):
            assert torch.equal(pipe(batch=1, steps=4), first)
        assert not torch.equal(first, second)


def test_reference_rows_come_back_when_they_are_no_negatives_any_more(tmp_path):
    rows = torch.randn(6, 1, 4, 4, generator=seeded(9))
    reference = Exact(rows[2:])
    with Collection.create(tmp_path / "set", (1, 4, 4), "pixels", dtype="float32") as collection:
        collection.add(rows[:3], ["a", "b", "c"])  # c is in the reference too
        correction = Correction(collection, reference)
        assert len(correction.pin().reference) == len(correction.pin().gate.reference) == 3
        collection.add(rows[3:4], ["d"])
        assert len(correction.pin().reference) == len(correction.pin().gate.reference) == 2
        collection.withdraw(["c", "d"], "counter-notice")
        assert len(correction.pin().reference) == len(correction.pin().gate.reference) == 4
        assert correction.pin().rule is paired
