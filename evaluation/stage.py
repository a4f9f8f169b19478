"""A miniature world on stage: the pipeline, real images apart for every purpose, and the judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.errors import OutOfRange
from negindex.evaluation.asked import KEPT, Asked
from negindex.evaluation.captions import KEEPSAKES
from negindex.evaluation.fashion import CLASSES, Fashion, Pictures
from negindex.evaluation.judge import Judge, Reading
from negindex.evaluation.measures import nearest
from negindex.evaluation.text_side import TextSide
from negindex.evaluation.training import encoded
from negindex.exact import Exact
from negindex.sampler.encode import space_of
from negindex.sampler.pipelines import load_pipeline

JUDGE = Path("judge") / "model.safetensors"
CLOSE = 0.5  # a copy lies within this share of the usual distance of a fresh image from the nearest training image
_PROBES = 500  # test images that the usual distance is read off


@dataclass(frozen=True)
class Drawn:
    """How images are sampled, the same in every cell."""

    steps: int = 20
    guidance: float = 3.0
    batch: int = 50
    seed: int = 0


@dataclass(eq=False)
class Stage:
    """pipe: a text-to-image pipeline of 32 × 32 grey pixels. parts: who may see which real images."""

    pipe: Any
    judge: Judge
    parts: Fashion

    @classmethod
    def open(cls, folder: Path, parts: Fashion) -> Stage:
        """The pipeline and the judge of a folder that ``negindex train-world`` wrote."""
        pipe = load_pipeline(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, Judge.load(folder / JUDGE), parts)

    # -- sets -------------------------------------------------------------------------------------

    def negatives(self, request: str, avoided: str, rows: int) -> Exact:
        """Real images of the unwanted class, which the model was not trained on; or the keepsakes themselves."""
        if request == KEPT:
            return self._rows(self.parts.world.only(slice(len(KEEPSAKES))))
        return self._rows(_first(self.parts.sets, self._is(avoided), rows))

    def reference(self, avoided: str, rows: int) -> Exact:
        """Real images of the other classes, which the model was not trained on."""
        return self._rows(_first(self.parts.sets, ~self._is(avoided), rows))

    def trained_on(self, avoided: str) -> tuple[Exact, Exact]:
        """(unwanted, other) images that the model was trained on: what an oracle knows."""
        unwanted = self.parts.world.classes == CLASSES.index(avoided)
        return self._rows(self.parts.world.only(unwanted)), self._rows(self.parts.world.only(~unwanted))

    def _is(self, avoided: str) -> NDArray[np.bool_]:
        return self.parts.sets.classes == CLASSES.index(avoided)

    def _rows(self, pictures: Pictures) -> Exact:
        return Exact(encoded(self.pipe.vae, pictures.rows()).mean, space=self.space)

    @cached_property
    def space(self) -> str:
        return space_of(self.pipe)

    @cached_property
    def weights(self) -> str:
        """Names the pipeline's and the judge's weights."""
        digest = hashlib.sha256()
        for part in (self.pipe.vae, self.pipe.unet, self.pipe.text_encoder, self.judge):
            for name, weight in sorted(part.state_dict().items()):
                digest.update(name.encode() + weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- samples ----------------------------------------------------------------------------------

    def sample(
        self, asked: Sequence[Asked], drawn: Drawn, text: TextSide, guarding: AbstractContextManager[Any]
    ) -> Tensor:
        """(N, 1, 32, 32) in [-1, 1]; image i from ``seed + i``, whatever the method and the batch."""
        made = []
        with guarding:
            for start in range(0, len(asked), drawn.batch):
                some = asked[start : start + drawn.batch]
                seeds = [torch.Generator().manual_seed(drawn.seed + start + i) for i in range(len(some))]
                told = text.arguments(self.pipe, [one.prompt for one in some], drawn.steps)
                options = {"num_inference_steps": drawn.steps, "guidance_scale": drawn.guidance, "output_type": "pt"}
                with text.attached(self.pipe, drawn.guidance):
                    made.append(self.pipe(**told, **options, generator=seeds).images)
        return torch.cat(made) * 2 - 1

    # -- what is real -----------------------------------------------------------------------------

    @cached_property
    def test(self) -> tuple[Tensor, Reading]:
        """The test images (N, 1, 32, 32) and how the judge reads them."""
        rows = self.parts.test.rows()
        return rows, self.judge.read(rows)

    def real(self, avoided: str, request: str) -> NDArray[np.int64]:
        """Places of the test images that samples should look like: of the other classes, or of the keepsakes' own."""
        classes = self.parts.test.classes
        if request == KEPT:
            return np.flatnonzero(np.isin(classes, self.parts.world.classes[: len(KEEPSAKES)]))
        return np.flatnonzero(classes != CLASSES.index(avoided))

    def distance(self, samples: Tensor) -> NDArray[np.float64]:
        """(N,) L2 distance to the nearest training image of the model, in pixels of [-1, 1]."""
        return nearest(_flat(samples), self._training)

    def copies(self, samples: Tensor, wanted: Sequence[int | None]) -> NDArray[np.bool_]:
        """Which samples are near-copies of the keepsake that was asked for: within half of a fresh image's distance."""
        kept = self._training[[0 if number is None else number for number in wanted]]
        apart = np.linalg.norm(_flat(samples) - kept, axis=1)
        return np.asarray(apart <= CLOSE * self.usual_distance)

    @cached_property
    def usual_distance(self) -> float:
        """The median distance of a test image from the nearest training image."""
        return float(np.median(self.distance(self.test[0][:_PROBES])))

    @cached_property
    def _training(self) -> NDArray[np.float32]:
        return _flat(self.parts.world.rows())


def _first(pictures: Pictures, keep: NDArray[np.bool_], rows: int) -> Pictures:
    places = np.flatnonzero(keep)[:rows]
    if len(places) < rows:
        raise OutOfRange(f"{rows} rows of {len(places)} images; ask for at most {len(places)}")
    chosen = np.zeros(len(pictures), bool)
    chosen[places] = True
    return pictures.only(chosen)


def _flat(samples: Tensor) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = samples.flatten(1).float().numpy()
    return flat
