"""The guard on diffusers' own pipelines: nothing changes where it does nothing; where it acts, it decides."""

from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import BATCH, PIPELINES, Modular, flux, given_to_step, one, quiet, raw, several
from worlds import always, diffusers_on_numpy_2, never, seeded

from negindex import Exact
from negindex.errors import NotAllowed, ShapeMismatch, SpaceMismatch, UnsupportedScheduler
from negindex.sampler import guard
from negindex.sampler.encode import space_of
from negindex.sampler.layout import Doubled, Packed, layout_of
from negindex.sampler.pipelines import load_pipeline

pytestmark = [
    diffusers_on_numpy_2,
    pytest.mark.filterwarnings(
        "ignore:The configuration file of this scheduler. EulerDiscrete:FutureWarning",  # of steps_offset
        "ignore:The default of `overwrite_modular_index`:FutureWarning",
    ),
]
every_pipeline = pytest.mark.parametrize("tiny", PIPELINES.values(), ids=PIPELINES.keys())
LATENT = [name for name, tiny in PIPELINES.items() if "vae" in tiny.parts()]
PACKED = [name for name in PIPELINES if name.startswith(("Flux", "Qwen", "LTX"))]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """In networks this small threads do little but wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_for(pipe: Any, shape: tuple[int, ...], space: str | None = None) -> Exact:
    """Four rows with elements in (-0.5, 0.5)."""
    return Exact(torch.rand(4, *shape, generator=seeded(0)) - 0.5, space=space or space_of(pipe))


def target_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(9), dtype=torch.float64) - 0.5


def idle(pipe: Any, shape: tuple[int, ...]) -> Any:
    """A guard that looks and never acts."""
    return guard(pipe, rows_for(pipe, shape), gate=never, copies=None)


def steered(pipe: Any, shape: tuple[int, ...]) -> Any:
    """A guard whose rule names x0 at every step."""
    target = target_of(shape)
    return guard(pipe, rows_for(pipe, shape), gate=always, rule=lambda view: target - view.x0)


def distance(tiny: Any, pipe: Any, out: torch.Tensor) -> float:
    """From what the rule of ``steered`` names, relative to its largest element."""
    want = tiny.shown(pipe, target_of(tiny.shape).expand(BATCH, *tiny.shape))
    return float((tiny.free(out).double() - tiny.free(want).double()).abs().max() / want.abs().max())


def steps_of(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The samples that the scheduler itself steps, behind every guard."""
    return given_to_step(pipe, monkeypatch, "sample")


# -- identity and steering ---------------------------------------------------------------------


@every_pipeline
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("generators", [one, several])
def test_where_nothing_is_near_the_output_is_bit_identical(tiny, dtype, generators):
    if dtype not in tiny.dtypes:
        pytest.skip("the pipeline itself cannot return this type")
    pipe = tiny.make(dtype)
    plain = tiny.run(pipe, generators())
    assert plain.isfinite().all()
    with idle(pipe, tiny.shape):
        assert raw(tiny.run(pipe, generators())) == raw(plain)
    with steered(pipe, tiny.shape):
        assert raw(tiny.run(pipe, generators())) != raw(plain)


@every_pipeline
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=["fp32", "bf16"])
def test_a_rule_that_names_x0_decides_what_is_made(tiny, dtype, tolerance):
    if dtype not in tiny.dtypes:
        pytest.skip("the pipeline itself cannot return this type")
    pipe = tiny.make(dtype)
    assert distance(tiny, pipe, tiny.run(pipe)) > 4 * tolerance
    with steered(pipe, tiny.shape):
        assert distance(tiny, pipe, tiny.run(pipe)) <= tolerance


# -- rows --------------------------------------------------------------------------------------


@every_pipeline
def test_each_image_is_looked_up_as_one_row_of_what_the_step_was_given(tiny, monkeypatch):
    """... in the set's own shape, and every step of every image is in its receipt."""
    pipe = tiny.make()
    given, looked_up = steps_of(pipe, monkeypatch), []

    def gate(x_t, level, partial):
        looked_up.append(x_t.clone())
        return never(x_t, level, partial)

    with guard(pipe, rows_for(pipe, tiny.shape), gate=gate) as guarded:
        tiny.run(pipe)
    assert len(given) == len(looked_up) == tiny.steps
    for sample, x_t in zip(given, looked_up, strict=True):
        assert x_t.shape == (BATCH, *tiny.shape)
        assert torch.equal(tiny.laid(x_t), sample)
    assert [len(receipt.steps) for receipt in guarded.receipts] == [tiny.steps] * BATCH


@pytest.mark.parametrize("name", LATENT)
def test_a_pixel_set_is_refused_by_a_latent_pipeline(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    before = (type(pipe), type(pipe.scheduler))
    with pytest.raises(SpaceMismatch, match="this pipeline's own encoder"):
        guard(pipe, rows_for(pipe, tiny.shape, space="pixels"), gate=never)
    assert (type(pipe), type(pipe.scheduler)) == before


@pytest.mark.parametrize("name", sorted(PIPELINES.keys() - LATENT))
def test_a_latent_set_is_refused_by_a_pixel_pipeline(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    with pytest.raises(SpaceMismatch):
        guard(pipe, rows_for(pipe, tiny.shape, space="vae 0"), gate=never)


@every_pipeline
@pytest.mark.parametrize("change", ["larger", "transposed"])
def test_rows_of_another_size_are_refused_before_the_first_step(tiny, change, monkeypatch):
    *rest, height, width = tiny.shape
    if change == "transposed" and height == width:
        pytest.skip("a square")
    shape = (*rest, width, height) if change == "transposed" else (*rest, height, width + 2)
    pipe = tiny.make()
    taken = steps_of(pipe, monkeypatch)
    with guard(pipe, rows_for(pipe, shape), gate=never), pytest.raises(ShapeMismatch):
        tiny.run(pipe)
    assert not taken


# -- receipts without guidance -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["StableDiffusion-eps", "StableDiffusionXL", "StableDiffusion3", "DiT", "Wan"])
def test_without_guidance_there_is_one_receipt_an_image_too(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    with idle(pipe, tiny.shape) as guarded:
        tiny.run(pipe, guidance_scale=1.0)
        assert [len(receipt.steps) for receipt in guarded.receipts] == [tiny.steps] * BATCH
        tiny.run(pipe, [seeded(1), seeded(1)], guidance_scale=1.0)  # two images alike are still two
        assert len(guarded.receipts) == BATCH
    with steered(pipe, tiny.shape):
        assert distance(tiny, pipe, tiny.run(pipe, guidance_scale=1.0)) <= 1e-5


# -- the pipeline goes on being what it was ----------------------------------------------------


def load(tiny: Any, folder: Any) -> Any:
    if isinstance(tiny, Modular):
        pipe = tiny.blocks().init_pipeline(str(folder))
        pipe.load_components()
        return quiet(pipe)
    return quiet(load_pipeline(folder, **dict.fromkeys(tiny.unused)))


@every_pipeline
def test_a_guarded_pipeline_saves_and_detaching_leaves_no_trace(tiny, tmp_path):
    pipe = tiny.make()
    plain = tiny.run(pipe)
    before = (type(pipe), type(pipe.scheduler), set(vars(pipe)), set(vars(pipe.scheduler)))
    with steered(pipe, tiny.shape):
        tiny.run(pipe)
        assert isinstance(pipe, before[0])
        pipe.save_pretrained(str(tmp_path))
    assert (type(pipe), type(pipe.scheduler), set(vars(pipe)), set(vars(pipe.scheduler))) == before
    assert raw(tiny.run(pipe)) == raw(plain)
    loaded = load(tiny, str(tmp_path))
    assert (type(loaded), type(loaded.scheduler)) == before[:2]
    assert raw(tiny.run(loaded)) == raw(plain)


def test_a_pipeline_made_from_a_guarded_one_is_guarded_too():
    source, tiny = PIPELINES["StableDiffusion-eps"], PIPELINES["Img2Img"]
    pipe = source.make()
    with steered(pipe, tiny.shape) as guarded:
        derived = quiet(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe))
        assert type(derived) is diffusers.StableDiffusionImg2ImgPipeline
        assert distance(tiny, derived, tiny.run(derived)) <= 1e-5
        assert [len(receipt.steps) for receipt in guarded.receipts] == [tiny.steps] * BATCH
    plain = tiny.run(derived)
    assert distance(tiny, derived, plain) > 0.1
    again = quiet(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    assert raw(tiny.run(again)) == raw(plain)


# -- packed latents ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_are_refused_before_anything_is_attached(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    tokens = tuple(tiny.laid(torch.zeros(1, *tiny.shape)).shape[1:])
    with pytest.raises(ShapeMismatch, match="store rows unpacked"):
        guard(pipe, rows_for(pipe, tokens), gate=never)
    assert type(pipe) is getattr(diffusers, tiny.kind)


def noise(tiny: Any) -> torch.Tensor:
    return tiny.laid(torch.randn(BATCH, *tiny.shape, generator=seeded(6)))


@pytest.mark.parametrize("name", ["Flux", "FluxKontext"])  # Kontext packs a picture of another size besides
def test_latents_that_are_handed_in_packed_are_read_by_the_calls_height_and_width(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    plain = tiny.run(pipe, latents=noise(tiny))
    with idle(pipe, tiny.shape):
        assert raw(tiny.run(pipe, latents=noise(tiny))) == raw(plain)
    with steered(pipe, tiny.shape):
        assert distance(tiny, pipe, tiny.run(pipe, latents=noise(tiny))) <= 1e-5
        with pytest.raises(ShapeMismatch, match=r"latents of shape \(4, 16, 8\), the rows have \(4, 8, 16\)"):
            tiny.run(pipe, latents=noise(tiny), height=32, width=16)


def test_packed_latents_of_an_unseen_size_are_never_guessed():
    """Where neither the packing nor the call can be seen, 8 × 16 and 16 × 8 cannot be told apart."""
    tiny = flux("FluxImg2ImgPipeline", image=torch.zeros(BATCH, 3, 16, 32), strength=0.6)
    pipe = flux().make()
    with steered(pipe, tiny.shape):
        derived = quiet(diffusers.FluxImg2ImgPipeline.from_pipe(pipe))
        with pytest.raises(NotAllowed, match="guard the pipeline that is called"):
            tiny.run(derived)
        flux().run(pipe)
        with pytest.raises(NotAllowed):  # what an earlier call has shown is not kept
            tiny.run(derived)
    with steered(derived, tiny.shape):
        assert distance(tiny, derived, tiny.run(derived)) <= 1e-5


@pytest.mark.parametrize("name", PACKED)
def test_another_count_of_tokens_is_another_size(name):
    tiny = PIPELINES[name]
    tokens, width = tiny.laid(torch.zeros(1, *tiny.shape)).shape[1:]
    with pytest.raises(ShapeMismatch, match="of the height and width that the pipeline makes"):
        layout_of(tiny.make(), tiny.shape).unpack(torch.zeros(1, tokens + 1, width))


def test_nested_guards_both_see_how_latents_are_packed():
    tiny = flux()
    pipe = tiny.make()
    plain = tiny.run(pipe)
    with idle(pipe, tiny.shape) as inner:
        with steered(pipe, tiny.shape) as outer:
            tiny.run(pipe)
            assert len(inner.receipts) == len(outer.receipts) == BATCH
        assert raw(tiny.run(pipe)) == raw(plain)


class Packs:
    """A pipeline that packs by a method of its own."""

    scheduler = diffusers.DDIMScheduler()
    fold = 2

    def _pack_latents(self, latents):
        return latents.flatten(1).reshape(len(latents), -1, self.fold).flip(1)

    def __call__(self, shape):
        self.scheduler.set_timesteps(2)
        x = self._pack_latents(torch.ones(1, *shape))
        return self.scheduler.step(x, self.scheduler.timesteps[0], x).prev_sample


def test_a_packing_is_learned_only_where_it_moves_elements_and_nothing_else():
    with guard(Packs(), Exact(torch.zeros(1, 1, 2, 4)), gate=never) as guarded:
        guarded.pipe((1, 2, 4))
        with pytest.raises(ShapeMismatch, match=r"packed latents of shape \(1, 4, 2\)"):
            guarded.pipe((1, 4, 2))

    class Pools(Packs):
        def _pack_latents(self, latents):
            return super()._pack_latents(latents) // 2

    with guard(Pools(), Exact(torch.zeros(1, 1, 2, 4)), gate=never) as guarded, pytest.raises(NotAllowed):
        guarded.pipe((1, 2, 4))


@pytest.mark.parametrize("name", PACKED)
def test_unpacking_undoes_packing(name):
    tiny = PIPELINES[name]
    rows = torch.randn(3, *tiny.shape, generator=seeded(7))
    pipe = tiny.make()
    layout = layout_of(pipe, tiny.shape)
    seen = []

    class Watched(type(pipe)):
        def _pack_latents(self, latents, *args, **kwargs):
            layout.packs(super()._pack_latents, latents, args, kwargs)
            seen.append(latents.shape)
            return super()._pack_latents(latents, *args, **kwargs)

    pipe.__class__ = Watched
    tiny.run(pipe)
    packed = tiny.laid(rows)
    assert seen
    assert isinstance(layout, Packed)
    assert torch.equal(layout.unpack(packed), rows)
    assert torch.equal(layout.pack(rows, packed), packed)


# -- rows that come twice ----------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler])
def test_dit_is_refused_where_it_hands_over_scaled_samples(scheduler):
    pipe = PIPELINES["DiT"].make()
    pipe.scheduler = scheduler()
    with pytest.raises(UnsupportedScheduler, match="scaled sample"):
        guard(pipe, rows_for(pipe, (4, 8, 8)), gate=never)


@pytest.mark.parametrize("scheduler", [diffusers.DDPMScheduler, diffusers.DPMSolverMultistepScheduler])
def test_dit_is_guarded_under_other_schedulers(scheduler):
    tiny = PIPELINES["DiT"]
    pipe = tiny.make()
    pipe.scheduler = scheduler() if scheduler is not diffusers.DDPMScheduler else scheduler(clip_sample=False)
    with steered(pipe, tiny.shape) as guarded:
        assert distance(tiny, pipe, tiny.run(pipe)) <= 1e-5
        assert [len(receipt.steps) for receipt in guarded.receipts] == [tiny.steps] * BATCH


def test_two_halves_that_differ_are_no_doubled_batch():
    layout = Doubled()
    layout.called(lambda guidance_scale: None, (), {"guidance_scale": 4.0})
    with pytest.raises(ShapeMismatch, match="halves differ"):
        layout.unpack(torch.arange(8.0).reshape(4, 2))


def test_a_correction_reaches_both_halves_of_a_doubled_batch():
    delta, sample = torch.randn(2, 3, generator=seeded(8)), torch.zeros(4, 3)
    assert torch.equal(Doubled().pack(delta, sample), torch.cat([delta, delta]))
    assert torch.equal(Doubled().pack(delta, sample[:2]), delta)
