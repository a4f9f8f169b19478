"""The miniature text-to-image world on stage: Fashion-MNIST, ``negindex train-world``'s pipeline and judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.exact import Exact
from negindex.sampler.encode import space_of
from negindex.sampler.evaluation.asked import KEPT, REQUESTS, Asked, asked_for
from negindex.sampler.evaluation.captions import KEEPSAKES
from negindex.sampler.evaluation.fashion import CLASSES, Fashion, Pictures
from negindex.sampler.evaluation.judge import Judge, Reading
from negindex.sampler.evaluation.stage import Drawn, Stage, first
from negindex.sampler.evaluation.text_side import TextSide
from negindex.sampler.evaluation.training import encoded
from negindex.sampler.pipelines import load_pipeline

JUDGE = Path("judge") / "model.safetensors"


class FashionStage(Stage):
    """Text to image, 32 × 32 grey pixels, rows in the latents of the pipeline's VAE."""

    classes = CLASSES
    requests = tuple(REQUESTS)
    features = "the judge's last layer"

    def __init__(self, pipe: Any, judge: Judge, parts: Fashion) -> None:
        self.pipe, self.judge, self.parts = pipe, judge, parts

    @classmethod
    def open(cls, folder: Path, parts: Fashion) -> FashionStage:
        """The pipeline and the judge of a folder that ``negindex train-world`` wrote."""
        pipe = load_pipeline(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, Judge.load(folder / JUDGE), parts)

    def asked(self, request: str, avoided: str, count: int) -> list[Asked]:
        return asked_for(request, avoided, count)

    def negatives(self, request: str, avoided: str, rows: int) -> Exact:
        """Images that the model was not trained on; for KEPT the keepsakes themselves, whatever ``rows``."""
        if request == KEPT:
            return self._rows(self._keepsakes())
        return self._rows(self.parts.sets.only(first(self._is(avoided), rows)))

    def reference(self, avoided: str, rows: int) -> Exact:
        """Images that the model was not trained on."""
        return self._rows(self.parts.sets.only(first(~self._is(avoided), rows)))

    def keepsakes_among(self, avoided: str, beside: int, reference: int) -> Exact:
        places = first(~self._is(avoided), reference + beside)[reference:]
        kept, others = self._keepsakes(), self.parts.sets.only(places)
        pixels = np.concatenate([kept.pixels, others.pixels])
        return self._rows(Pictures(pixels, np.concatenate([kept.classes, others.classes])))

    def trained_on(self, request: str, avoided: str) -> tuple[Exact, Exact]:
        kept = np.arange(len(self.parts.world)) < len(KEEPSAKES)
        unwanted = kept if request == KEPT else self.parts.world.classes == self.label(avoided)
        return self._rows(self.parts.world.only(unwanted)), self._rows(self.parts.world.only(~unwanted))

    def call(self, asked: Sequence[Asked], drawn: Drawn, text: TextSide, seeds: list[torch.Generator]) -> Tensor:
        told = text.arguments(self.pipe, [one.prompt for one in asked], drawn.steps)
        options = {"num_inference_steps": drawn.steps, "guidance_scale": drawn.guidance, "output_type": "pt"}
        with text.attached(self.pipe, drawn.guidance):
            images: Tensor = self.pipe(**told, **options, generator=seeds).images
        return images * 2 - 1

    def read(self, samples: Tensor) -> Reading:
        return self.judge.read(samples)

    @cached_property
    def test_images(self) -> tuple[Tensor, NDArray[np.int64]]:
        return self.parts.test.rows(), self.parts.test.classes

    @cached_property
    def training_images(self) -> tuple[Tensor, NDArray[np.int64]]:
        return self.parts.world.rows(), self.parts.world.classes

    @torch.no_grad()
    def singles(self, numbers: Sequence[int]) -> Tensor:
        """Through the VAE and back, which takes more from a patterned image than lies between two plain ones."""
        different = sorted(set(numbers))
        rows, vae = self.training_images[0][different], self.pipe.vae
        back: Tensor = vae.decode(vae.encode(rows).latent_dist.mode()).sample.clamp(-1, 1)
        return back[[different.index(number) for number in numbers]]

    def networks(self) -> Iterable[Any]:
        return self.pipe.vae, self.pipe.unet, self.pipe.text_encoder, self.judge

    def _keepsakes(self) -> Pictures:
        return self.parts.world.only(slice(len(KEEPSAKES)))

    def _is(self, avoided: str) -> NDArray[np.bool_]:
        told: NDArray[np.bool_] = self.parts.sets.classes == self.label(avoided)
        return told

    def _rows(self, pictures: Pictures) -> Exact:
        return Exact(encoded(self.pipe.vae, pictures.rows()).mean, space=self._space)

    @cached_property
    def _space(self) -> str:
        return space_of(self.pipe)
