"""The digit model on stage: class-conditional and unconditional, rows and samples in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.errors import InvalidInput
from negindex.exact import Exact
from negindex.sampler.evaluation.asked import NOTHING, OTHERS, PLAIN, Asked
from negindex.sampler.evaluation.judge import Reading
from negindex.sampler.evaluation.stage import Drawn, Stage, first
from negindex.sampler.evaluation.text_side import AsAsked, TextSide
from negindex.sampler.pipelines import load_pipeline
from negindex.tools.demo_measures import Judge
from negindex.tools.digits import CLASSES, Digits, load


class DigitsStage(Stage):
    """``negindex train-digits``'s pipeline. So few digits there are that sets are made of what it was trained on."""

    classes = tuple(map(str, CLASSES))
    requests = (PLAIN, OTHERS, NOTHING)
    features = "the 64 pixels"

    def __init__(self, folder: Path) -> None:
        self.pipe = load_pipeline(folder, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self._trained, self._held_out = load()
        self._judge = Judge(self._trained, self._held_out)

    def asked(self, request: str, avoided: str, count: int) -> list[Asked]:
        if request == NOTHING:
            return [Asked(None, "")] * count
        of = [self.label(avoided)] if request == PLAIN else [c for c in CLASSES if str(c) != avoided]
        return [Asked(of[i % len(of)], "") for i in range(count)]

    def negatives(self, request: str, avoided: str, rows: int) -> Exact:
        return self._rows(self._is(avoided), rows)

    def reference(self, avoided: str, rows: int) -> Exact:
        return self._rows(~self._is(avoided), rows)

    def trained_on(self, request: str, avoided: str) -> tuple[Exact, Exact]:
        unwanted = self._is(avoided)
        return Exact(self._trained.only(unwanted).rows), Exact(self._trained.only(~unwanted).rows)

    def call(self, asked: Sequence[Asked], drawn: Drawn, text: TextSide, seeds: list[torch.Generator]) -> Tensor:
        if type(text) is not AsAsked:
            raise InvalidInput(f"{text}: the digit model takes no prompts; leave the text side out")
        labels = [one.wanted for one in asked]
        options = {"num_inference_steps": drawn.steps, "guidance_scale": drawn.guidance, "output_type": "pt"}
        images: Tensor = self.pipe(labels, **options, generator=seeds).images
        return images

    def read(self, samples: Tensor) -> Reading:
        pixels = samples.flatten(1).double().numpy()
        probability = self._judge.probabilities(samples)
        return Reading(probability.argmax(1), probability, pixels)

    @cached_property
    def test_images(self) -> tuple[Tensor, NDArray[np.int64]]:
        return self._held_out.rows, self._held_out.classes

    @cached_property
    def training_images(self) -> tuple[Tensor, NDArray[np.int64]]:
        return self._trained.rows, self._trained.classes

    def networks(self) -> Iterable[Any]:
        return (self.pipe.unet,)

    def _is(self, avoided: str) -> NDArray[np.bool_]:
        told: NDArray[np.bool_] = self._trained.classes == self.label(avoided)
        return told

    def _rows(self, keep: NDArray[np.bool_], rows: int) -> Exact:
        """Spread over the data set, whose order is that of the writers."""
        places = np.flatnonzero(keep)
        chosen = places[np.linspace(0, len(places) - 1, min(rows, len(places))).round().astype(np.int64)]
        mask = np.zeros(len(keep), bool)
        mask[chosen if rows <= len(places) else first(keep, rows)] = True
        digits: Digits = self._trained.only(mask)
        return Exact(digits.rows)
