"""A miniature text-to-image world: a real Stable Diffusion pipeline, small enough to be trained on one core."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from negindex.sampler.evaluation.byte_pairs import learn, vocabulary
from negindex.sampler.evaluation.captions import corpus
from negindex.sampler.evaluation.fashion import SIDE

TOKENS = 24  # a prompt's length, padded
_LATENT, _MERGES = SIDE // 4, 500
_MARKS = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class Size:
    """How large the networks are."""

    vae: tuple[int, int, int] = (16, 32, 32)
    unet: tuple[int, int] = (48, 96)
    text: int = 64
    text_layers: int = 2


def new_vae(size: Size) -> Any:
    """An AutoencoderKL before training: (1, 32, 32) pixels to (4, 8, 8) latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        sample_size=SIDE,
        block_out_channels=size.vae,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )


def new_unet(size: Size) -> Any:
    """A UNet2DConditionModel before training; attention to the text at the lower resolution and in the middle."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=_LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=size.unet,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=size.text,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(size: Size, tokenizer: Any) -> Any:
    """A CLIPTextModel before training."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.text,
            intermediate_size=4 * size.text,
            projection_dim=size.text,
            num_hidden_layers=size.text_layers,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_tokenizer(texts: Sequence[str] | None = None) -> Any:
    """A CLIPTokenizer whose byte pairs are those of the captions; any other text falls into smaller pieces."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    plain = CLIPTokenizer(vocab={mark: i for i, mark in enumerate(_MARKS)}, merges=[]).backend_tokenizer
    words: Counter[str] = Counter()
    for text in corpus() if texts is None else texts:
        parts = plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text))
        words.update(word for word, _ in parts)
    merges: Any = learn(words, _MERGES)
    vocab = vocabulary(_MARKS, pre_tokenizers.ByteLevel.alphabet(), merges)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def assemble(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any) -> Any:
    """The pipeline: v-prediction on Stable Diffusion's schedule, DDIM, no safety checker."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_scheduler() -> Any:
    """DDIM that ends at the clean image."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )


def tokens(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """(N, 24) int64, padded and cut as the pipeline does."""
    told = tokenizer(list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    ids: torch.Tensor = told.input_ids
    return ids


def save(pipe: Any, folder: Path) -> None:
    """The pipeline's folder, weights as float16; the pipeline itself stays as it is."""
    stored = copy.deepcopy(pipe)
    for part in (stored.vae, stored.unet, stored.text_encoder):
        part.half()
    stored.save_pretrained(folder)
