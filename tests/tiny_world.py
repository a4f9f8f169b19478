"""A text-to-image world of random components and made-up images: everything but the training."""

import numpy as np
import torch

from negindex.sampler.evaluation.fashion import CLASSES, Fashion, Pictures
from negindex.sampler.evaluation.fashion_stage import FashionStage
from negindex.sampler.evaluation.judge import Judge
from negindex.sampler.evaluation.world import Size, assemble, new_text_encoder, new_tokenizer, new_unet, new_vae

TINY = Size(vae=(8, 8, 8), unet=(16, 16), text=16, text_layers=1)


def pictures(count, seed=0):
    """Grey noise with a bright bar whose place is the class."""
    chance = np.random.default_rng(seed)
    classes = np.arange(count) % len(CLASSES)
    pixels = chance.integers(0, 60, (count, 28, 28)).astype(np.uint8)
    for image, label in zip(pixels, classes, strict=True):
        image[:, 2 * label : 2 * label + 4] += 150
    return Pictures(pixels, classes.astype(np.int64))


def parts():
    return Fashion(*(pictures(count, seed) for seed, count in enumerate((120, 600, 40, 100))))


def pipeline():
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    pipe = assemble(new_vae(TINY), new_text_encoder(TINY, tokenizer), tokenizer, new_unet(TINY))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stage():
    pipe = pipeline()
    pipe.vae.register_to_config(scaling_factor=1.0)
    return FashionStage(pipe, Judge(width=8), parts())
