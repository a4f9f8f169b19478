"""Rows in a pipeline's own latent space: what the pipeline decodes from them is what the VAE encoded."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image
from worlds import diffusers_on_numpy_2

import negindex.data
from negindex import Collection
from negindex.errors import Damaged, InvalidInput, NotThere, OutOfRange, SpaceMismatch
from negindex.sampler.corpus import encoder_for
from negindex.sampler.encode import PixelEncoder, read_image, space_of
from negindex.sampler.pipelines import load_pipeline
from negindex.sampler.vae import VaeEncoder, downsampling, encoder_of, parts_in
from negindex.tools.cli import main

pytestmark = diffusers_on_numpy_2
DIGITS = negindex.data.__path__[0] + "/digits-unet"
MEANS = {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.5, 1.5, 2.0, 3.0]}


def kl(seed=0, **config):
    torch.manual_seed(seed)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=2, **blocks, **config).eval()


def random_image(tmp_path, size=(16, 16), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    return tmp_path / f"{seed}.png"


@torch.no_grad()
def encoded(vae, path, size=16):
    """The VAE's own latents of a file, unscaled, by the encoder of pixels."""
    told = vae.encode(torch.from_numpy(PixelEncoder(size, size, 3).encode(path))[None])
    return told.latent_dist.mode() if hasattr(told, "latent_dist") else next(iter(told.values()))


# -- the pipelines' own code decodes the rows ----------------------------------------------------


def unet(**more):
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=4,
        **more,
    )


def sd(vae):
    pipe = StableDiffusionPipeline(
        vae,
        None,
        None,
        unet(),
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )
    return pipe, {"prompt_embeds": torch.zeros(1, 3, 8), "guidance_scale": 1.0}


def sdxl(vae):
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    pipe = StableDiffusionXLPipeline(
        vae, None, None, None, None, unet(projection_class_embeddings_input_dim=32, **extra), DDIMScheduler()
    )
    asked = {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8), "guidance_scale": 1.0}
    return pipe, asked


def sd3(vae):
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
    )
    pipe = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, None, None
    )
    asked = {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8), "guidance_scale": 1.0}
    return pipe, asked


def flux(vae):
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(0, 2, 2),
    )
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)
    return pipe, {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8)}


@pytest.mark.parametrize(
    ("made", "config"),
    [
        (sd, {"scaling_factor": 0.18215}),
        (sdxl, {"scaling_factor": 0.13025}),
        (sdxl, {"scaling_factor": 0.5, **MEANS}),
        (sd3, {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        (flux, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    ],
    ids=["sd", "sdxl", "sdxl with means", "sd3", "flux"],
)
def test_what_a_pipeline_decodes_from_a_row_is_what_the_vae_encoded(tmp_path, monkeypatch, made, config):
    """The pipeline's last step is made to end in the row; its own code then undoes the scaling."""
    vae, path = kl(**config), random_image(tmp_path)
    pipe, asked = made(vae)
    pipe.set_progress_bar_config(disable=True)
    encoder = encoder_of(pipe, 16, 16)
    row, seen = torch.from_numpy(encoder.encode(path)), []
    assert encoder.space == space_of(pipe)
    assert encoder.shape == tuple(row.shape) == (4, 8, 8)
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, *rest, **named: seen.append(z) or decode(z, *rest, **named))
    last = pipe._pack_latents(row[None], 1, *row.shape) if made is flux else row[None]
    pipe(**asked, height=16, width=16, num_inference_steps=1, callback_on_step_end=lambda *_: {"latents": last})
    torch.testing.assert_close(seen[0], encoded(vae, path), rtol=1e-6, atol=1e-6)


# -- by each family's formula --------------------------------------------------------------------


def frames(vae_class):
    torch.manual_seed(0)
    named = {"latents_mean": MEANS["latents_mean"], "latents_std": MEANS["latents_std"]}
    return vae_class(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True], **named
    ).eval()


@pytest.mark.parametrize("kind", [AutoencoderKLQwenImage, AutoencoderKLWan])
def test_a_vae_of_frames_gives_rows_of_one_frame(tmp_path, kind):
    vae, path = frames(kind), random_image(tmp_path)
    encoder = VaeEncoder(vae, 16, 16)
    row = torch.from_numpy(encoder.encode(path))
    assert encoder.shape == tuple(row.shape) == (4, 1, 4, 4)
    deep = (4, 1, 1, 1)
    mean, std = (torch.tensor(MEANS[name]).view(deep) for name in ("latents_mean", "latents_std"))
    back = row / (1.0 / std) + mean  # as WanPipeline and QwenImagePipeline have it
    with torch.no_grad():
        pixels = torch.from_numpy(PixelEncoder(16, 16, 3).encode(path))[None, :, None]
        torch.testing.assert_close(back, vae.encode(pixels).latent_dist.mode()[0], rtol=1e-6, atol=1e-6)


def tiny():
    torch.manual_seed(0)
    few = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.7, **few).eval()


def deep_compression():
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        decoder_norm_types=("rms_norm", "rms_norm"),
        decoder_act_fns=("silu", "silu"),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.41407,
    ).eval()


@pytest.mark.parametrize("made", [tiny, deep_compression])
def test_a_vae_without_a_distribution_gives_its_latents(tmp_path, made):
    vae, path = made(), random_image(tmp_path)
    row = torch.from_numpy(VaeEncoder(vae, 16, 16).encode(path))
    torch.testing.assert_close(row[None] / vae.config.scaling_factor, encoded(vae, path), rtol=1e-6, atol=1e-6)


def test_rows_need_not_be_square_and_sizes_must_divide(tmp_path):
    assert downsampling(kl()) == 2
    encoder = VaeEncoder(kl(), 12, 20)
    assert encoder.shape == (4, 6, 10) == encoder.encode(random_image(tmp_path, (20, 12))).shape
    with pytest.raises(OutOfRange, match="multiples of 2"):
        VaeEncoder(kl(), 13, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pipeline_in_half_precision_is_encoded_in_float32_and_left_as_it_is(tmp_path, dtype):
    path, half = random_image(tmp_path), kl().to(dtype)
    rounded = kl().to(dtype).float()
    row = VaeEncoder(half, 16, 16).encode(path)
    assert row.dtype == np.float32
    assert (row == VaeEncoder(rounded, 16, 16).encode(path)).all()
    assert half.dtype == dtype


def test_a_row_does_not_depend_on_what_else_is_encoded(tmp_path):
    encoder = VaeEncoder(kl(), 16, 16)
    alone = encoder.encode(random_image(tmp_path))
    encoder.encode(random_image(tmp_path, seed=1))
    assert (encoder.encode(tmp_path / "0.png") == alone).all()
    assert (encoder.row(read_image(tmp_path / "0.png"), "image") == alone).all()


def test_a_vae_whose_scaling_is_not_known_is_refused():
    with pytest.raises(InvalidInput, match="VQModel"):
        VaeEncoder(VQModel(), 16, 16)
    with pytest.raises(InvalidInput, match="mean without a deviation"):
        VaeEncoder(kl(latents_mean=[0.0] * 4), 16, 16)
    with pytest.raises(InvalidInput, match="mean and a shift"):
        VaeEncoder(kl(shift_factor=0.1, **MEANS), 16, 16)
    with pytest.raises(InvalidInput, match="neither a unet nor a transformer"):
        encoder_of(SimpleNamespace(), 16, 16)


# -- a folder ------------------------------------------------------------------------------------


def save_pipeline(folder, **options):
    torch.manual_seed(2)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=3
    )
    DiTPipeline(transformer, kl(**options), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_folders_vae_and_the_loaded_pipeline_are_one_space(folder, dtype):
    parts = parts_in(folder)
    assert vars(parts).keys() == {"vae"}
    assert parts.vae.dtype == torch.float32
    assert space_of(parts) == space_of(load_pipeline(folder, dtype=dtype))


def test_a_folder_without_a_vae_is_pixels_with_the_models_channels():
    assert encoder_of(parts_in(DIGITS), 8, 8) == PixelEncoder(8, 8, 1)


def test_a_folder_that_cannot_be_read_says_so(folder, tmp_path):
    with pytest.raises(NotThere, match="holds no pipeline"):
        parts_in(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    next((broken / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(Damaged, match="vae cannot be read"):
        parts_in(broken)
    index = json.loads((folder / "model_index.json").read_text())
    for vae, said in ((["mine", "AutoencoderKL"], "mine.AutoencoderKL"), (["diffusers", "VQModel"], "VQModel")):
        (broken / "model_index.json").write_text(json.dumps({**index, "vae": vae}))
        with pytest.raises(InvalidInput, match=said):
            parts_in(broken)
    for text in ("", "[]", "7", "{}"):
        (broken / "model_index.json").write_text(text)
        with pytest.raises(Damaged):
            parts_in(broken)


# -- the command ---------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def latents(folder, tmp_path):
    """A set of three images in the pipeline's latent space."""
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(3):
        random_image(images, (20, 16), seed)
    (images / "bad.png").write_text("no image")
    done = run("build", tmp_path / "a.set", images, "--pipeline", folder, "--size", "16x20")
    assert done.exit_code == 3
    assert "3 rows in force (3 added, 0 already there, 1 refused)" in done.stdout
    assert "bad.png is no image" in done.stderr
    return tmp_path / "a.set"


def test_build_and_add_make_rows_in_the_pipelines_space(latents, folder, tmp_path):
    collection, pipe = Collection.open(latents), load_pipeline(folder)
    assert (collection.space, collection.shape) == (space_of(pipe), (4, 8, 10))
    expected = np.stack([encoder_of(pipe, 16, 20).encode(tmp_path / "images" / f"{i}.png") for i in range(3)])
    (block,) = collection.pin().blocks(10)
    assert (block.rows.numpy().reshape(expected.shape) == expected.astype(np.float16)).all()
    again = run("build", latents, tmp_path / "images", "--pipeline", folder, "--size", "16x20")
    assert "(0 added, 3 already there, 1 refused)" in again.stdout
    done = run("add", latents, random_image(tmp_path, seed=9), "--pipeline", folder, "--label", "claim")
    assert done.exit_code == 0, done.output
    assert "4 rows in force" in done.stdout


def test_a_pipeline_of_another_space_is_refused_before_anything_is_encoded(latents, tmp_path, monkeypatch):
    other = save_pipeline(tmp_path / "other", scaling_factor=0.5)
    monkeypatch.setattr(VaeEncoder, "encode", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr(PixelEncoder, "encode", lambda *_: pytest.fail("encoded"))
    image, spaces = random_image(tmp_path), (Collection.open(latents).space, space_of(parts_in(other)))
    for words in (
        ["add", latents, image, "--pipeline", other],
        ["build", latents, image, "--pipeline", other, "--size", "16x20"],
    ):
        done = run(*words)
        assert done.exit_code == 2
        assert all(repr(space) in done.stderr for space in spaces)
    for words, said in (
        (["add", latents, image], "--pipeline"),
        (["add", latents, image, "--pipeline", DIGITS], "'pixels'"),
        (["build", latents, image, "--size", "16x20"], "'pixels'"),
    ):
        done = run(*words)
        assert done.exit_code == 2, words
        assert said in done.stderr
    with pytest.raises(SpaceMismatch):
        encoder_for(Collection.open(latents))
    assert Collection.open(latents).newest().version == 1


def test_another_size_and_options_of_pixels_are_refused(latents, folder, tmp_path):
    image = random_image(tmp_path)
    done = run("build", latents, image, "--pipeline", folder, "--size", 16)
    assert done.exit_code == 2
    assert "(4, 8, 10)" in done.stderr
    assert "(4, 8, 8)" in done.stderr
    for more in (["--space", "pixels"], ["--channels", 3]):
        done = run("build", tmp_path / "b.set", image, "--pipeline", folder, "--size", 16, *more)
        assert done.exit_code == 2
        assert "leave out --space and --channels" in done.stderr
    assert not (tmp_path / "b.set").exists()


def test_a_pipeline_of_pixels_makes_a_set_of_pixels_with_its_channels(tmp_path):
    Image.new("L", (8, 8), 5).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "red.png")
    words = ["build", tmp_path / "a.set", tmp_path / "a.png", tmp_path / "red.png", "--pipeline", DIGITS, "--size", 8]
    done = run(*words)
    assert done.exit_code == 3
    assert "red.png has colour" in done.stderr
    assert Collection.open(tmp_path / "a.set").shape == (1, 8, 8)
