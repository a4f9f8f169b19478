"""Acting on one branch of guidance is what a changed network would be; what cannot be read is refused."""

import copy
import functools
import gc
import re
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_pipelines import BATCH, PIPELINES, given_to_step, raw, several
from worlds import alpha_sigma, always, diffusers_on_numpy_2, gap, like, never, random_world, seeded, truth

from negindex import Exact
from negindex.errors import InvalidInput, NotAllowed, NotFinite
from negindex.sampler import SafeDenoising, guard, paired
from negindex.sampler.encode import space_of
from negindex.sampler.pipelines import ClassConditionalPipeline
from negindex.tools.bench_placement import Asked, _setting, _share

pytestmark = [
    diffusers_on_numpy_2,
    pytest.mark.filterwarnings(
        "ignore:The configuration file of this scheduler. EulerDiscrete:FutureWarning",  # of steps_offset
        "ignore:__array_wrap__ must accept:DeprecationWarning",  # diffusers on numpy 2
    ),
]
SCALES = {  # of guidance, where there is any that is linear
    name: 2.0 if name.startswith("Flux") else 7.0 if name == "StableDiffusion3-modular" else 3.0
    for name in PIPELINES
    if name not in ("DDPM", "DDIM", "QwenImage")
}
CONDITIONAL_FIRST = ("Flux", "FluxImg2Img", "FluxKontext", "DiT", "Wan", "StableDiffusion3-modular")
every_branch = pytest.mark.parametrize("acts_on", ["conditional", "unconditional"])
every_pipeline = pytest.mark.parametrize("name", SCALES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_for(pipe: Any, shape: tuple[int, ...]) -> Exact:
    return Exact(torch.rand(4, *shape, generator=seeded(0)) - 0.5, space=space_of(pipe))


def target_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(9), dtype=torch.float64) - 0.5


def towards(target: torch.Tensor, share: float) -> Any:
    """A rule that reads the branch's own x0."""
    return lambda view: share * (target - view.x0)


def network_of(pipe: Any) -> torch.nn.Module:
    return getattr(pipe, "transformer", None) or pipe.unet


def outputs_of(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the scheduler itself is given for an output at each step, behind every guard."""
    return given_to_step(pipe, monkeypatch, "model_output")


# -- acting on a branch is changing the network ------------------------------------------------


class Changed:
    """A network whose one branch is moved a share of the way to a clean sample; written without the library.

    halves: which of its two answers is moved, the first or the second, of one call or of two.
    steps: how many of the scheduler's timesteps, from the last, the pipeline runs.
    """

    def __init__(self, pipe: Any, target: torch.Tensor, share: float, halves: tuple[bool, bool], steps: int) -> None:
        self.pipe, self.target, self.share, self.halves, self.steps = pipe, target, share, halves, steps
        self.calls = 0

    def __call__(self, network: Any, args: Any, kwargs: Any, result: Any) -> Any:
        out = result if isinstance(result, torch.Tensor) else result[0]
        given = args[0] if args else kwargs["hidden_states"]
        at_once = len(out) == 2 * BATCH
        step, part = divmod(self.calls, 1 if at_once else 2)
        self.calls += 1
        pieces = out.chunk(2) if at_once else [out]
        moved = [
            self.moved(piece, given[:BATCH], step) if self.halves[i if at_once else part] else piece
            for i, piece in enumerate(pieces)
        ]
        changed = torch.cat(moved)
        return (changed,) if isinstance(result, tuple) else type(result)(sample=changed)

    def moved(self, out: torch.Tensor, given: torch.Tensor, step: int) -> torch.Tensor:
        scheduler = self.pipe.scheduler
        a, s = alpha_sigma(scheduler, scheduler.timesteps[step - self.steps])
        kind = scheduler.config.get("prediction_type", "flow_prediction")
        mean, target = out.double(), self.target.expand(BATCH, *self.target.shape[1:])
        places = tuple(slice(0, n) for n in target.shape)
        x, norm = given[places].double(), (a * a + s * s) ** 0.5
        if hasattr(scheduler, "scale_model_input") and a == 1:
            x = x * norm  # an unscaled state was scaled for the network
        a, s, x = (a / norm, s / norm, x / norm) if kind != "flow_prediction" else (a, s, x)
        o = mean[places]
        x0 = {"epsilon": (x - s * o) / a, "v_prediction": a * x - s * o, "flow_prediction": x - s * o}[kind]
        slope = {"epsilon": -a / s, "v_prediction": -1 / s, "flow_prediction": -1 / s}[kind]
        mean[places] += slope * self.share * (target - x0)
        return mean.to(out.dtype)


@every_branch
@every_pipeline
def test_acting_on_a_branch_is_a_network_that_answers_the_changed_branch(name, acts_on, monkeypatch):
    """... step by step, whatever the pipeline does with its branches."""
    tiny = PIPELINES[name]
    pipe = tiny.make()
    rows = rows_for(pipe, tiny.shape)
    target, seen = target_of(tiny.shape), outputs_of(pipe, monkeypatch)
    plain = tiny.run(pipe)
    seen.clear()
    with guard(pipe, rows, gate=always, rule=towards(target, 0.3), copies=None, acts_on=acts_on):
        made = tiny.run(pipe)
    guarded, wanted = list(seen), acts_on == "conditional"
    seen.clear()
    halves = (wanted, not wanted) if name in CONDITIONAL_FIRST else (not wanted, wanted)
    laid = tiny.laid(target[None].expand(BATCH, *tiny.shape))[:1]
    changed = Changed(pipe, laid, 0.3, halves, tiny.steps)
    hook = network_of(pipe).register_forward_hook(changed, with_kwargs=True)
    want = tiny.run(pipe)
    hook.remove()
    assert len(guarded) == len(seen) == tiny.steps
    for got, expected in zip(guarded, seen, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    torch.testing.assert_close(made, want, rtol=0, atol=2e-5 * float(want.abs().max()))
    assert (made - plain).abs().max() > 1e-3 * plain.abs().max()


# -- what arrives ------------------------------------------------------------------------------


@every_pipeline
def test_a_change_arrives_with_its_branchs_weight_and_the_receipt_says_so(name):
    """d, w d and (1 - w) d: receipts state the size that arrives, and where it was added."""
    tiny = PIPELINES[name]
    pipe = tiny.make()
    nudge = 1e-3 * target_of(tiny.shape)
    arriving = {}
    for acts_on in ("guided", "conditional", "unconditional"):
        options = {"gate": always, "rule": lambda view: nudge.expand(view.x_t.shape), "copies": None}
        with guard(pipe, rows_for(pipe, tiny.shape), **options, acts_on=acts_on) as guarded:
            tiny.run(pipe)
        arriving[acts_on] = [step.correction for receipt in guarded.receipts for step in receipt.steps]
        said = {receipt.rule for receipt in guarded.receipts}
        assert said == {"<lambda>" if acts_on == "guided" else f"<lambda>, on the {acts_on} branch"}
    size, w = float(nudge.norm()), SCALES[name]
    assert arriving["guided"] == pytest.approx([size] * BATCH * tiny.steps)
    scales = [got / size for got in arriving["conditional"]]
    if name != "CogVideoX":  # whose scale changes from step to step
        assert scales == pytest.approx([w] * BATCH * tiny.steps, rel=1e-4)
    assert arriving["unconditional"] == pytest.approx([size * (scale - 1) for scale in scales], rel=1e-4)


@every_branch
@every_pipeline
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_correction_of_zero_is_bit_identical(name, acts_on, dtype):
    tiny = PIPELINES[name]
    pipe = tiny.make(dtype)
    plain = tiny.run(pipe, several())
    with guard(pipe, rows_for(pipe, tiny.shape), gate=never, acts_on=acts_on):
        assert raw(tiny.run(pipe, several())) == raw(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@every_branch
def test_in_half_precision_a_branch_is_changed_as_in_float32(acts_on, dtype, monkeypatch):
    """At the first step, from the same sample; later ones start from what halves were rounded to."""
    tiny, first = PIPELINES["StableDiffusion3"], []
    for kind in (torch.float32, dtype):
        with monkeypatch.context() as patched:
            pipe = tiny.make(kind)
            seen = outputs_of(pipe, patched)
            latents = torch.randn(BATCH, *tiny.shape, generator=seeded(4)).to(dtype)
            rule = towards(target_of(tiny.shape), 0.3)
            with guard(pipe, rows_for(pipe, tiny.shape), gate=always, rule=rule, copies=None, acts_on=acts_on):
                tiny.run(pipe, latents=latents.to(kind))
            first.append(seen[0])
    assert first[1].dtype == dtype
    torch.testing.assert_close(first[1].float(), first[0], rtol=0, atol=0.03 * float(first[0].abs().max()))


@every_branch
def test_several_images_a_prompt_are_several_rows_of_each_branch(acts_on):
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    with guard(pipe, rows_for(pipe, tiny.shape), gate=always, rule=towards(0, 0.1), acts_on=acts_on) as guarded:
        tiny.run(pipe, [seeded(i) for i in range(3 * BATCH)], num_images_per_prompt=3)
    assert len(guarded.receipts) == 3 * BATCH


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.HeunDiscreteScheduler,
        diffusers.KDPM2DiscreteScheduler,
        functools.partial(diffusers.PNDMScheduler, skip_prk_steps=True),
    ],
    ids=["Heun", "KDPM2", "PNDM"],
)
def test_a_solver_that_asks_twice_a_step_is_split_each_time(scheduler, monkeypatch):
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    pipe.scheduler = scheduler()
    nudge, runs = 1e-2 * target_of(tiny.shape), []
    seen = outputs_of(pipe, monkeypatch)
    for acts_on, share in (("guided", 1), ("conditional", 1 / 3), ("unconditional", -1 / 2)):
        options = {"gate": always, "rule": lambda view, share=share: share * nudge.expand(view.x_t.shape)}
        with guard(pipe, rows_for(pipe, tiny.shape), **options, copies=None, acts_on=acts_on):
            tiny.run(pipe)
        runs.append(torch.stack(seen))
        seen.clear()
    assert len(runs[0]) > tiny.steps
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=0, atol=1e-5 * float(run.abs().max()))


# -- the theorem on a branch -------------------------------------------------------------------


class TwoPosteriors(torch.nn.Module):
    """A perfectly trained network: the posterior mean over a class's rows, and over all rows, at once."""

    def __init__(self, scheduler: Any, of_class: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__()
        self.scheduler, self.parts = scheduler, (of_class, rows)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        alpha, sigma = alpha_sigma(self.scheduler, t)
        means = [
            like(truth(part, half, alpha, sigma).mean, half) for part, half in zip(self.parts, x.chunk(2), strict=True)
        ]
        return (x - alpha * torch.cat(means)) / sigma


class Guided:
    """Classifier-free guidance by hand, in float64."""

    def __init__(self, unet: TwoPosteriors, scale: float) -> None:
        self.unet, self.scheduler, self.scale = unet, unet.scheduler, scale

    def __call__(self, batch: int = 2, steps: int = 4) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.randn(batch, *self.unet.parts[0].shape[1:], generator=seeded(0), dtype=torch.float64)
        for t in self.scheduler.timesteps[:2]:  # beyond, Eq. 4 divides by what rounds to zero
            c, u = self.unet(torch.cat([x, x]), t, torch.tensor([1] * batch + [0] * batch)).chunk(2)
            x = self.scheduler.step(u + self.scale * (c - u), t, x).prev_sample
        return x


@pytest.mark.parametrize(("acts_on", "safe_class"), [("conditional", True), ("unconditional", False)])
def test_the_theorem_holds_on_the_branch_that_it_is_about(acts_on, safe_class, monkeypatch):
    """Exact odds over a branch's own rows make that branch the posterior mean over its safe rows alone."""
    world, scale = random_world(safe=8, unsafe=4, seed=3), 3.0
    of_class = torch.cat([world.safe[:5], world.unsafe])
    safe = world.safe[:5] if safe_class else world.safe
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = Guided(TwoPosteriors(scheduler, of_class, world.rows), scale)
    outputs = outputs_of(pipe, monkeypatch)
    options = {"prior": 4 / (len(safe) + 4), "rule": SafeDenoising(float("inf")), "copies": None}
    steps = []
    with guard(pipe, Exact(world.unsafe), Exact(safe), **options, acts_on=acts_on):
        hook = pipe.unet.register_forward_pre_hook(lambda network, args: steps.append(args[0].chunk(2)[0]))
        pipe()
        hook.remove()
    for x, t, out in zip(steps, scheduler.timesteps[:2], outputs, strict=True):
        alpha, sigma = alpha_sigma(scheduler, t)
        c, u = (truth(part, x, alpha, sigma).mean for part in ((safe, world.rows) if safe_class else (of_class, safe)))
        error = gap((x - sigma * out) / alpha, u + scale * (c - u))
        assert (error <= 1e-4 * world.rms).all()


# -- guards on top of one another --------------------------------------------------------------

PAIRS = [(a, b) for a in ("guided", "conditional", "unconditional") for b in ("guided", "conditional", "unconditional")]


@pytest.mark.parametrize(("below", "above"), PAIRS[1:])
def test_nested_guards_each_see_what_the_others_made_of_their_branch(below, above, monkeypatch):
    """The guard that was attached last acts first; a change of the guided output is one of both branches."""
    tiny, w = PIPELINES["StableDiffusion-eps"], 3.0
    pipe = tiny.make()
    rows, target = rows_for(pipe, tiny.shape), target_of(tiny.shape)
    seen, x0s = [], []

    def rule(view: Any) -> torch.Tensor:
        x0s.append(view.x0)
        return 0.3 * (target - view.x0)

    options = {"gate": always, "rule": rule, "copies": None}
    for acts_on in dict.fromkeys((below, above)):  # each one alone, to see its branch as the network has it
        with guard(pipe, rows, **options, acts_on=acts_on):
            tiny.run(pipe, num_inference_steps=1)
        seen.append(x0s.pop())
    plain = dict(zip(dict.fromkeys((below, above)), seen, strict=True))
    with guard(pipe, rows, **options, acts_on=below), guard(pipe, rows, **options, acts_on=above):
        tiny.run(pipe, num_inference_steps=1)
    first, second = x0s
    torch.testing.assert_close(first, plain[above], rtol=0, atol=1e-5)
    change = 0.3 * (target - plain[above])
    weight = {"guided": 1.0, "conditional": w, "unconditional": 1 - w}
    reaches = weight[above] if below == "guided" else float(above in ("guided", below))
    torch.testing.assert_close(second, plain[below] + reaches * change, rtol=0, atol=2e-5)


def test_a_branch_guard_leaves_no_trace(tmp_path):
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    rows, plain = rows_for(pipe, tiny.shape), tiny.run(pipe)
    before = ({name: id(value) for name, value in vars(pipe.unet).items()}, type(pipe), type(pipe.scheduler))
    outer = guard(pipe, rows, gate=never, acts_on="conditional")
    inner = guard(pipe, rows, gate=never, acts_on="unconditional")
    with pytest.raises(NotAllowed, match="detach that one first"):
        outer.detach()
    assert len(pipe.unet._forward_hooks) == 1
    tiny.run(pipe)
    inner.detach()
    tiny.run(pipe)  # the one that is left still sees its branch
    pipe.save_pretrained(str(tmp_path))
    outer.detach()
    assert ({name: id(value) for name, value in vars(pipe.unet).items()}, type(pipe), type(pipe.scheduler)) == before
    assert not pipe.unet._forward_hooks
    assert raw(tiny.run(pipe)) == raw(plain)


def test_a_copied_network_holds_on_to_no_guard_and_no_answers():
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    with guard(pipe, rows_for(pipe, tiny.shape), gate=never, acts_on="conditional") as guarded:
        copied = copy.deepcopy(pipe.unet)
        plain = tiny.run(pipe)
        pipe.unet, own = copied, pipe.unet
        assert raw(tiny.run(pipe)) == raw(plain)  # watched like its original
        pipe.unet = own
    pipe.unet = copied
    assert raw(tiny.run(pipe)) == raw(plain)
    gc.collect()
    assert not guarded._branches._answers


def test_a_copied_scheduler_is_refused_once_the_network_is_no_longer_watched():
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    with guard(pipe, rows_for(pipe, tiny.shape), gate=never, acts_on="conditional"):
        pipe.scheduler, own = copy.deepcopy(pipe.scheduler), pipe.scheduler
        copied, pipe.scheduler = pipe.scheduler, own
    pipe.scheduler = copied
    with pytest.raises(NotAllowed, match="answered nothing"):
        tiny.run(pipe)


def test_a_pipeline_made_from_a_guarded_one_acts_on_its_branch_too():
    """... though its own call is not seen: scheduler and network are shared."""
    tiny = PIPELINES["Img2Img"]
    pipe = PIPELINES["StableDiffusion-eps"].make()
    options = {"gate": always, "rule": towards(target_of(tiny.shape), 0.3), "copies": None}
    derived = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    derived.set_progress_bar_config(disable=True)
    with guard(derived, rows_for(pipe, tiny.shape), **options, acts_on="conditional"):
        want = tiny.run(derived)
    with guard(pipe, rows_for(pipe, tiny.shape), **options, acts_on="conditional"):
        again = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        again.set_progress_bar_config(disable=True)
        assert raw(tiny.run(again)) == raw(want)


# -- without guidance --------------------------------------------------------------------------

UNGUIDED = {
    "DDIM": {},
    "StableDiffusion-eps": {"guidance_scale": 1.0},
    "DiT": {"guidance_scale": 1.0},
    "Flux": {"true_cfg_scale": 1.0},  # guidance-distilled: the scale is an input of the network
    "QwenImage": {"true_cfg_scale": 1.0},
}


@pytest.mark.parametrize(("name", "options"), UNGUIDED.items(), ids=UNGUIDED.keys())
def test_without_guidance_the_conditional_branch_is_the_output_and_there_is_no_other(name, options):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    if name == "QwenImage":
        options = {**options, "negative_prompt_embeds": None, "negative_prompt_embeds_mask": None}
    rule = towards(target_of(tiny.shape), 0.3)
    made = []
    for acts_on in ("guided", "conditional"):
        with guard(pipe, rows_for(pipe, tiny.shape), gate=always, rule=rule, acts_on=acts_on):
            made.append(tiny.run(pipe, **options))
    assert raw(made[0]) == raw(made[1])
    with (
        guard(pipe, rows_for(pipe, tiny.shape), gate=never, acts_on="unconditional"),
        pytest.raises(NotAllowed, match="one branch alone; ask for guidance"),
    ):
        tiny.run(pipe, **options)


# -- what is refused ---------------------------------------------------------------------------


def refused(pipe: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, match: str, **options: Any) -> None:
    """... by both branches, before the scheduler takes a step, though nothing is near; and not by 'guided'."""
    taken = outputs_of(pipe, monkeypatch)
    for acts_on in ("conditional", "unconditional"):
        with (
            guard(pipe, rows_for(pipe, tiny.shape), gate=never, acts_on=acts_on),
            pytest.raises(NotAllowed, match=match),
        ):
            tiny.run(pipe, **options)
        assert not taken
    with guard(pipe, rows_for(pipe, tiny.shape), gate=never):
        tiny.run(pipe, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rescaled_guidance_is_refused(dtype, monkeypatch):
    tiny = PIPELINES["StableDiffusion-eps"]
    refused(tiny.make(dtype), tiny, monkeypatch, r"is not u \+ w \(c - u\)", guidance_rescale=0.7)


def test_qwen_images_own_rescaling_is_refused(monkeypatch):
    tiny = PIPELINES["QwenImage"]
    refused(tiny.make(), tiny, monkeypatch, r"is not u \+ w \(c - u\)")


def test_skipped_layers_are_refused(monkeypatch):
    tiny = PIPELINES["StableDiffusion3"]
    options = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0}
    refused(tiny.make(), tiny, monkeypatch, "rows for a step of 2 images", **options)


@pytest.mark.parametrize(("scale", "match"), [(3.0, "rows for a step of 2 images"), (1.0, "asked the very same")])
def test_perturbed_attention_is_refused(scale, match, monkeypatch):
    tiny = PIPELINES["StableDiffusion-eps"]
    parts = {name: part for name, part in tiny.make().components.items() if name in ("vae", "unet", "scheduler")}
    pipe = diffusers.StableDiffusionPAGPipeline(
        **dict.fromkeys(tiny.unused), **parts, **tiny.settings, pag_applied_layers="down"
    )
    pipe.set_progress_bar_config(disable=True)
    refused(pipe, tiny, monkeypatch, match, guidance_scale=scale, pag_scale=3.0)


@pytest.mark.parametrize(
    "guider",
    [
        functools.partial(diffusers.AdaptiveProjectedGuidance, eta=0.0),
        functools.partial(diffusers.ClassifierFreeZeroStarGuidance, zero_init_steps=0),
        functools.partial(diffusers.ClassifierFreeGuidance, guidance_rescale=0.5),
    ],
    ids=["APG", "zero-star", "rescaled"],
)
def test_guiders_that_are_not_linear_are_refused(guider, monkeypatch):
    tiny = PIPELINES["StableDiffusion3-modular"]
    pipe = tiny.make()
    pipe.update_components(guider=guider())
    refused(pipe, tiny, monkeypatch, r"is not u \+ w \(c - u\)")


def test_a_second_network_is_refused(monkeypatch):
    """Guidance by another model, whose answer the hook does not see."""
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    worse = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for weight in worse.parameters():
            weight.mul_(0.9)

    class Auto(type(pipe)):
        @torch.no_grad()
        def __call__(self, prompt_embeds, num_inference_steps, generator, **rest):
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.randn(BATCH, 4, 8, 8, generator=generator)
            for t in self.scheduler.timesteps:
                good, bad = (net(x, t, encoder_hidden_states=prompt_embeds).sample for net in (self.unet, worse))
                x = self.scheduler.step(bad + 2 * (good - bad), t, x).prev_sample
            return x

    pipe.__class__ = Auto
    refused(pipe, tiny, monkeypatch, r"nor its one answer")


def tiny_classes(dtype: torch.dtype = torch.float32) -> ClassConditionalPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4,
            num_class_embeds=4,
        )  # fmt: skip
    pipe = ClassConditionalPipeline(network.eval().to(dtype), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


ONES = Exact(torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("scale", "dtype", "match"),
    [
        (0.3, torch.float32, "weighed"),
        (1.01, torch.bfloat16, "weighed"),  # rounding hides which branch outweighs the other
        (-2.0, torch.float32, "turns guidance round"),
    ],
)
def test_a_scale_that_does_not_tell_the_branches_apart_is_refused(scale, dtype, match):
    pipe = tiny_classes(dtype)
    with guard(pipe, ONES, gate=never, acts_on="conditional"), pytest.raises(NotAllowed, match=match):
        pipe([0, 1], 3, guidance_scale=scale, generator=seeded(1))


def test_a_negative_scale_of_a_guider_is_refused():
    tiny = PIPELINES["StableDiffusion3-modular"]
    pipe = tiny.make()
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=-2.0))
    rows = rows_for(pipe, tiny.shape)
    with guard(pipe, rows, gate=never, acts_on="conditional"), pytest.raises(NotAllowed, match="turns guidance round"):
        tiny.run(pipe)


def test_branches_that_say_the_same_may_be_looked_at_and_not_changed():
    tiny = PIPELINES["StableDiffusion-eps"]
    pipe = tiny.make()
    same = {"negative_prompt_embeds": tiny.options()["prompt_embeds"]}
    plain = tiny.run(pipe, **same)
    with guard(pipe, rows_for(pipe, tiny.shape), gate=never, acts_on="conditional"):
        assert raw(tiny.run(pipe, **same)) == raw(plain)
    for acts_on in ("conditional", "unconditional"):
        with (
            guard(pipe, rows_for(pipe, tiny.shape), gate=always, rule=towards(0, 0.5), acts_on=acts_on),
            pytest.raises(NotAllowed, match="guidance scale cannot be read"),
        ):
            tiny.run(pipe, **same)


def test_what_is_refused_before_anything_is_attached():
    class NoNetwork:
        scheduler = diffusers.DDIMScheduler()

    pipe = NoNetwork()
    with pytest.raises(NotAllowed, match="whose branches could be seen"):
        guard(pipe, Exact(torch.ones(1, 1, 4, 4)), gate=never, acts_on="conditional")
    with pytest.raises(InvalidInput, match="acts_on = 'both'; give one of guided, conditional, unconditional"):
        guard(pipe, Exact(torch.ones(1, 1, 4, 4)), gate=never, acts_on="both")
    assert (type(pipe), type(pipe.scheduler)) == (NoNetwork, diffusers.DDIMScheduler)


def test_a_step_whose_network_was_not_seen_is_refused():
    pipe = tiny_classes()
    with guard(pipe, ONES, gate=never, acts_on="conditional"):
        pipe.scheduler.set_timesteps(4)
        x = torch.ones(1, 1, 8, 8)
        pipe.unet(x, 3, class_labels=torch.tensor([1]))
        pipe.scheduler.set_timesteps(4)  # another run begins: what was answered before is no part of it
        with pytest.raises(NotAllowed, match="answered nothing"):
            pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x)


def test_what_failed_in_the_middle_leaves_nothing_to_the_next_call():
    pipe = tiny_classes()
    with guard(pipe, ONES, gate=never, acts_on="unconditional") as guarded:
        hook = pipe.unet.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            pipe([0, 1], 3, guidance_scale=2.0)
        hook.remove()
        pipe([0, 1, 2], 3, guidance_scale=2.0)
        assert [len(receipt.steps) for receipt in guarded.receipts] == [3, 3, 3]


def test_a_call_that_sets_no_timesteps_begins_without_the_answers_of_the_last():
    class Continues(ClassConditionalPipeline):
        """Goes on with timesteps that its caller has set; may stop between the network and the step."""

        def __call__(self, stops: bool) -> torch.Tensor:
            x, t = torch.ones(1, 1, 8, 8), self.scheduler.timesteps[0]
            out = self.unet(x, t, class_labels=torch.tensor([1])).sample
            if stops:
                raise KeyboardInterrupt
            return self.scheduler.step(out, t, x).prev_sample

    pipe = Continues(tiny_classes().unet, diffusers.DDIMScheduler())
    pipe.scheduler.set_timesteps(3)
    with torch.no_grad(), guard(pipe, ONES, gate=never, acts_on="conditional") as guarded:
        with pytest.raises(KeyboardInterrupt):
            pipe(stops=True)
        pipe(stops=False)
        assert len(guarded.receipts) == 1


def test_a_diverged_network_is_named_as_such():
    pipe = tiny_classes()
    with torch.no_grad():
        next(pipe.unet.parameters()).fill_(float("nan"))
    with guard(pipe, ONES, gate=never, acts_on="conditional"), pytest.raises(NotFinite, match="NaN or Inf"):
        pipe([0, 1], 3, guidance_scale=2.0)


# -- the trained model -------------------------------------------------------------------------


def test_at_one_size_paired_makes_the_same_images_on_every_branch_and_leaves_the_class_only_with_the_right_sign():
    """Its change does not depend on the branch: what differs is the weight, and for u at w > 1 the sign."""
    setting = _setting(Asked(20, 2.0, 0), prior=0.3)
    plain = setting.eights(setting.guarded(paired, "guided"))
    assert plain.size > 0.5
    for acts_on, sign, factor in (("conditional", 1, 0.5), ("unconditional", -1, -1.0)):
        found, run = setting._matched(paired, acts_on, sign, plain.size)
        assert found == pytest.approx(factor)
        assert run.size == pytest.approx(plain.size, rel=1e-3)
        torch.testing.assert_close(run.samples, plain.samples, rtol=0, atol=1e-2)
    towards_them = setting.eights(setting._scaled(paired, 0.69, "unconditional"))
    eights = [float((setting.judge.read(run.samples)[0] == 8).mean()) for run in (plain, towards_them)]
    assert eights[0] < 0.6 < 0.9 < eights[1]
    line = setting.figures(towards_them.samples, plain.samples, lambda: setting.guarded(paired, "guided"))
    assert float(re.findall(r"[\d.]+", line)[3]) > 1.5 * setting.judge.distance(plain.samples).mean()


def test_shares_are_printed_with_their_wilson_interval():
    """Textbook values: 81 of 263 is 0.308 [0.2553, 0.3662]; none of 10 is [0, 0.2775]."""
    assert _share(np.arange(263) < 81) == "31% [26, 37]"
    assert _share(np.zeros(10, bool)) == "0% [0, 28]"
