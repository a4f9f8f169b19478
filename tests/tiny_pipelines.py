"""Diffusers' own pipelines around networks of a few thousand random weights: nothing is fetched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from worlds import seeded

BATCH, STEPS, WIDTH = 2, 3, 8  # WIDTH: of a text embedding
SIZE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Tiny:
    """One pipeline, how to call it, and what its rows are."""

    parts: Callable[[], dict[str, Any]]  # components; those left out are None
    shape: tuple[int, ...]  # of a row
    kind: str  # a class of diffusers
    options: Callable[[], dict[str, Any]]
    steps: int = STEPS
    unused: tuple[str, ...] = ()  # components that the pipeline may go without
    settings: dict[str, Any] = field(default_factory=dict)  # of the pipeline itself
    laid: Callable[[Tensor], Tensor] = lambda rows: rows  # rows as the pipeline hands them to a step
    decoded: Callable[[Any, Tensor], Tensor] = lambda pipe, sample: sample  # a sample as the pipeline returns it
    free: Callable[[Tensor], Tensor] = lambda out: out  # the part of an output that is sampled
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)

    def make(self, dtype: torch.dtype = torch.float32) -> Any:
        """A pipeline with the same weights at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts = self.parts()
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
                if part.dtype != dtype:
                    part.to(dtype)
        return quiet(self.built(parts))

    def built(self, parts: dict[str, Any]) -> Any:
        return getattr(diffusers, self.kind)(**dict.fromkeys(self.unused), **parts, **self.settings)

    def run(self, pipe: Any, generator: Any = None, **options: Any) -> Tensor:
        """Two images (or clips), as ``output_type`` has them, in the model's dtype."""
        dtype = next(p.dtype for p in vars(pipe).values() if isinstance(p, torch.nn.Module))
        given = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.options().items()
        }
        made = pipe(**{**given, "generator": generator or one(), **options})
        return made if isinstance(made, Tensor) else torch.as_tensor(made["images" if "images" in made else "frames"])

    def shown(self, pipe: Any, rows: Tensor) -> Tensor:
        """What the pipeline returns where these are the clean rows."""
        return self.decoded(pipe, self.laid(rows))


class Modular(Tiny):
    """A modular pipeline that starts from text embeddings and ends at the latents; ``kind`` names its blocks."""

    def blocks(self) -> Any:
        blocks = getattr(diffusers.modular_pipelines, self.kind)()
        blocks.sub_blocks.pop("text_encoder")
        return blocks

    def built(self, parts: dict[str, Any]) -> Any:
        pipe = self.blocks().init_pipeline()
        pipe.update_components(**parts)
        return pipe


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def one() -> torch.Generator:
    """One generator for the batch."""
    return seeded(1)


def several() -> list[torch.Generator]:
    """A generator an image."""
    return [seeded(1 + i) for i in range(BATCH)]


def text(*shape: int, seed: int = 3, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, *shape, generator=seeded(seed))


# -- parts -------------------------------------------------------------------------------------


def vae(channels: int = 4, **options: Any) -> Any:
    """Two pixels to one latent."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **options,
    )


def unet(channels: int = 4, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )


def pixel_unet() -> Any:
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )


def ddim(prediction: str = "epsilon") -> Any:
    return diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, steps_offset=1)


# -- Stable Diffusion --------------------------------------------------------------------------

SD_UNUSED = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
SD_SETTINGS = {"requires_safety_checker": False}


def sd_parts(scheduler: Callable[[], Any], channels: int = 4) -> Callable[[], dict[str, Any]]:
    return lambda: {"vae": vae(), "unet": unet(channels), "scheduler": scheduler()}


def guided() -> dict[str, Any]:
    return {
        "prompt_embeds": text(4, WIDTH),
        "negative_prompt_embeds": text(4, WIDTH, seed=4),
        "guidance_scale": 3.0,
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }


def picture(height: int = 16, width: int = 16, batch: int = BATCH) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=seeded(5))


def left_half() -> Tensor:
    mask = torch.zeros(BATCH, 1, 16, 16)
    mask[..., :8] = 1
    return mask


def stable_diffusion(scheduler: Callable[[], Any]) -> Tiny:
    return Tiny(
        sd_parts(scheduler), (4, 8, 8), "StableDiffusionPipeline", lambda: guided() | SIZE,
        unused=SD_UNUSED, settings=SD_SETTINGS,
    )  # fmt: skip


def inpaint(channels: int, free: Callable[[Tensor], Tensor]) -> Tiny:
    return Tiny(
        sd_parts(ddim, channels), (4, 8, 8), "StableDiffusionInpaintPipeline",
        lambda: guided() | SIZE | {"image": picture(), "mask_image": left_half(), "strength": 1.0},
        unused=SD_UNUSED, settings=SD_SETTINGS, free=free,
    )  # fmt: skip


def xl_parts() -> dict[str, Any]:
    xl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    }
    return {"vae": vae(), "unet": unet(**xl), "scheduler": diffusers.EulerDiscreteScheduler()}


def pooled() -> dict[str, Any]:
    return {"pooled_prompt_embeds": text(WIDTH), "negative_pooled_prompt_embeds": text(WIDTH, seed=4)}


# -- transformers ------------------------------------------------------------------------------


def sd3_parts() -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return {"vae": vae(scaling_factor=1.5, shift_factor=0.06), "transformer": transformer, "scheduler": scheduler}


def flux_parts() -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return {"vae": vae(scaling_factor=0.36, shift_factor=0.1), "transformer": transformer, "scheduler": scheduler}


def flux_tokens(rows: Tensor) -> Tensor:
    """Rows (B, C, H, W), each 2 × 2 patch to a token, channels outermost; written anew, not called."""
    height, width = rows.shape[-2:]
    places = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    return torch.stack([rows[:, :, y : y + 2, x : x + 2].flatten(1) for y, x in places], 1)


def flux(kind: str = "FluxPipeline", **options: Any) -> Tiny:
    size = {"height": 16, "width": 32, "true_cfg_scale": 2.0}
    return Tiny(
        flux_parts, (4, 8, 16), kind, lambda: guided() | pooled() | size | options, unused=TWO_TEXT_ENCODERS,
        laid=flux_tokens, steps=2 if "strength" in options else STEPS,
    )  # fmt: skip


def qwen_parts() -> dict[str, Any]:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return {"vae": autoencoder, "transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}


def qwen_options() -> dict[str, Any]:
    full = torch.ones(BATCH, 4, dtype=torch.long)
    given = guided() | {"prompt_embeds_mask": full, "negative_prompt_embeds_mask": full, "true_cfg_scale": 2.0}
    del given["guidance_scale"]
    return given | {"height": 16, "width": 32}


def modular_options() -> dict[str, Any]:
    given = guided() | pooled() | SIZE | {"output": "latents"}
    del given["guidance_scale"], given["output_type"]
    return given


def pixart_parts() -> dict[str, Any]:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return {"vae": vae(), "transformer": transformer, "scheduler": diffusers.DPMSolverMultistepScheduler()}


def masks() -> dict[str, Any]:
    full = torch.ones(BATCH, 4, dtype=torch.long)
    return {"prompt_attention_mask": full, "negative_prompt_attention_mask": full}


def unbinned() -> dict[str, Any]:
    return masks() | {"negative_prompt": None, "use_resolution_binning": False}


def sana_parts() -> dict[str, Any]:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=8,
    )
    two = {"block_types": ("ResBlock", "ResBlock"), "block_out_channels": (8, 8), "layers_per_block": (1, 1)}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in two.items()}
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41,
        **sides,
    )
    flow = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return {"vae": autoencoder, "transformer": transformer, "scheduler": flow}


def dit_parts() -> dict[str, Any]:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
    )
    return {"vae": vae(), "transformer": transformer, "scheduler": ddim()}


def dit_decoded(pipe: Any, sample: Tensor) -> Tensor:
    with torch.no_grad():
        pixels = pipe.vae.decode(sample[:BATCH].to(pipe.vae.dtype) / pipe.vae.config.scaling_factor).sample.float()
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def in_pixels(pipe: Any, sample: Tensor) -> Tensor:
    return (sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def if_parts() -> dict[str, Any]:
    """DeepFloyd IF: pixels, guidance, and a learned variance that goes to the step beside the prediction."""
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )
    return {"unet": network, "scheduler": diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)}


# -- video -------------------------------------------------------------------------------------


def wan_parts() -> dict[str, Any]:
    autoencoder = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return {"vae": autoencoder, "transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}


def cogvideo_parts() -> dict[str, Any]:
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=4,
    )
    return {"vae": autoencoder, "transformer": transformer, "scheduler": ddim("v_prediction")}


def animate_parts() -> dict[str, Any]:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        use_motion_mid_block=False,
    )
    return {"vae": vae(), "unet": unet(), "motion_adapter": adapter, "scheduler": ddim()}


def ltx_parts() -> dict[str, Any]:
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return {"vae": autoencoder, "transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}


def ltx_tokens(rows: Tensor) -> Tensor:
    """Rows (B, C, F, H, W), each place to a token of its channels."""
    return rows.flatten(2).transpose(1, 2)


TEXT_ENCODER = ("text_encoder", "tokenizer")
TWO_TEXT_ENCODERS = (*TEXT_ENCODER, "text_encoder_2", "tokenizer_2")
THREE_TEXT_ENCODERS = (*TWO_TEXT_ENCODERS, "text_encoder_3", "tokenizer_3")
PIPELINES = {
    "StableDiffusion-eps": stable_diffusion(ddim),
    "StableDiffusion-v": stable_diffusion(lambda: ddim("v_prediction")),
    "StableDiffusion-Euler": stable_diffusion(diffusers.EulerDiscreteScheduler),
    "StableDiffusionXL": Tiny(
        xl_parts, (4, 8, 8), "StableDiffusionXLPipeline", lambda: guided() | pooled() | SIZE, unused=TWO_TEXT_ENCODERS
    ),
    "Img2Img": Tiny(
        sd_parts(ddim), (4, 8, 8), "StableDiffusionImg2ImgPipeline",
        lambda: guided() | {"image": picture(), "strength": 0.7}, steps=2, unused=SD_UNUSED, settings=SD_SETTINGS,
    ),
    "Inpaint-4": inpaint(4, lambda out: out[..., :4]),
    "Inpaint-9": inpaint(9, lambda out: out),
    "StableDiffusion3": Tiny(
        sd3_parts, (4, 8, 8), "StableDiffusion3Pipeline", lambda: guided() | pooled() | SIZE,
        unused=THREE_TEXT_ENCODERS,
    ),
    "StableDiffusion3-modular": Modular(sd3_parts, (4, 8, 8), "StableDiffusion3AutoBlocks", modular_options),
    "Flux": flux(),
    "FluxImg2Img": flux("FluxImg2ImgPipeline", image=picture(16, 32), strength=0.6),
    "FluxKontext": flux(
        "FluxKontextPipeline", image=picture(32, 16, batch=1), max_area=16 * 32, _auto_resize=False
    ),
    "QwenImage": Tiny(
        qwen_parts, (4, 1, 8, 16), "QwenImagePipeline", qwen_options, unused=TEXT_ENCODER,
        laid=lambda rows: flux_tokens(rows[:, :, 0]),
    ),
    "PixArtSigma": Tiny(
        pixart_parts, (4, 8, 8), "PixArtSigmaPipeline", lambda: guided() | unbinned() | SIZE, unused=TEXT_ENCODER
    ),
    "Sana": Tiny(
        sana_parts, (4, 16, 16), "SanaPipeline", lambda: guided() | unbinned() | {"height": 32, "width": 32},
        unused=TEXT_ENCODER,
    ),
    "DiT": Tiny(
        dit_parts, (4, 8, 8), "DiTPipeline",
        lambda: {"class_labels": [1, 2], "guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "np"},
        laid=lambda rows: torch.cat([rows, rows]), decoded=dit_decoded,
    ),
    "DDPM": Tiny(
        lambda: {"unet": pixel_unet(), "scheduler": diffusers.DDPMScheduler()}, (3, 8, 8), "DDPMPipeline",
        lambda: {"batch_size": BATCH, "num_inference_steps": STEPS, "output_type": "np"}, decoded=in_pixels,
        dtypes=(torch.float32,),  # to numpy, which has no bfloat16
    ),
    "DDIM": Tiny(
        lambda: {"unet": pixel_unet(), "scheduler": ddim()}, (3, 8, 8), "DDIMPipeline",
        lambda: {"batch_size": BATCH, "num_inference_steps": STEPS, "output_type": "np"}, decoded=in_pixels,
        dtypes=(torch.float32,),  # to numpy, which has no bfloat16
    ),
    "DeepFloydIF": Tiny(
        if_parts, (3, 8, 8), "IFPipeline", lambda: guided() | {"output_type": "pt"},
        unused=(*TEXT_ENCODER, "safety_checker", "feature_extractor", "watermarker"), settings=SD_SETTINGS,
    ),
    "AnimateDiff": Tiny(
        animate_parts, (4, 3, 8, 8), "AnimateDiffPipeline", lambda: guided() | SIZE | {"num_frames": 3},
        unused=(*TEXT_ENCODER, "feature_extractor", "image_encoder"),
    ),
    "Wan": Tiny(
        wan_parts, (16, 3, 2, 2), "WanPipeline", lambda: guided() | SIZE | {"num_frames": 9}, unused=TEXT_ENCODER
    ),
    "CogVideoX": Tiny(
        cogvideo_parts, (3, 4, 2, 2), "CogVideoXPipeline", lambda: guided() | SIZE | {"num_frames": 9},
        unused=TEXT_ENCODER,
    ),
    "LTX": Tiny(
        ltx_parts, (8, 2, 2, 3), "LTXPipeline",
        lambda: guided() | masks() | {"height": 64, "width": 96, "num_frames": 9},
        unused=TEXT_ENCODER, laid=ltx_tokens,
    ),
}  # fmt: skip


# -- what tests of them look at ----------------------------------------------------------------


def given_to_step(pipe, monkeypatch, argument):
    """A list that fills with what the scheduler itself is given, "sample" or "model_output", behind every guard."""
    seen, kind = [], type(pipe.scheduler)
    original = kind.step

    @functools.wraps(original)
    def step(self, model_output, timestep, sample, *args, **kwargs):
        seen.append({"model_output": model_output, "sample": sample}[argument].clone())
        return original(self, model_output, timestep, sample, *args, **kwargs)

    monkeypatch.setattr(kind, "step", step)
    return seen


def raw(out):
    """A tensor's bytes, whatever its type."""
    return out.contiguous().flatten().view(torch.uint8).numpy().tobytes()
