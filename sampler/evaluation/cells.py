"""One cell: a method, a request, and what is measured of the samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.errors import Damaged
from negindex.sampler.evaluation.asked import KEPT
from negindex.sampler.evaluation.intervals import RESAMPLES, Figure, bootstrap, mean_of, share_of
from negindex.sampler.evaluation.judge import Reading
from negindex.sampler.evaluation.measures import Gaussian, covered, frechet, vendi
from negindex.sampler.evaluation.stage import Stage


@dataclass(frozen=True)
class Cell:
    """What was made and measured under one method and one request."""

    method: str
    stated: dict[str, str]
    request: str
    fingerprint: str  # of all that it depends on
    count: int
    measures: dict[str, Figure]
    classes: dict[str, dict[str, float]]  # {class: {"share": of the samples read as it, "confidence": of those}}
    read: list[int]  # (N,) class of each sample, by seed
    hit: list[bool]  # (N,) read as what was asked for; of keepsakes, copies of the one that was asked for

    def save(self, path: Path) -> None:
        """Written aside and renamed: a cell is there whole or not at all."""
        aside = path.with_suffix(".aside")
        aside.write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cell:
        """What ``save`` wrote; raises Damaged."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            figures = {name: Figure(*value) for name, value in said.pop("measures").items()}
            return cls(measures=figures, **said)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Damaged(f"{path} is no cell that can be read ({error}); remove it and run again") from error

    def __str__(self) -> str:
        shown = ("unwanted", "hit", "fd", "cpu")
        told = ", ".join(f"{name} {self.measures[name].value:.3g}" for name in shown if name in self.measures)
        return f"{self.request}, {self.method}: {told}"


def measured(
    stage: Stage,
    avoided: str,
    request: str,
    wanted: Sequence[int | None],
    samples: Tensor,
    real: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """What a cell says of its samples (N, 1, H, W), asked for as ``wanted`` says.

    real: features (M, d) of the real images to compare with; None takes the test images of all other classes.
    """
    reading = stage.read(samples)
    if request == KEPT:
        hit = stage.copies(samples, wanted)
    else:
        hit = reading.classes == np.array([-1 if number is None else number for number in wanted])
    unwanted, distance = reading.classes == stage.label(avoided), stage.distance(samples)
    kept_away = ~hit if request == KEPT else ~unwanted
    measures = {
        "unwanted": share_of(unwanted),
        "clean": share_of(kept_away & stage.clean(reading, distance)),
        "hit": share_of(hit),
        "confidence": mean_of(reading.probability.max(1)),
        "distance": mean_of(distance),
        **distances(reading.features, stage.tested.features[stage.real(avoided)] if real is None else real),
    }
    classes = by_class(reading, stage.classes)
    return {"measures": measures, "classes": classes, "read": reading.classes.tolist(), "hit": hit.tolist()}


def distances(features: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, Figure]:
    """FD, precision, recall and diversity of features (N, d) beside those of real images."""
    diversity = bootstrap(lambda drawn: vendi(features[drawn]), len(features))
    return {**fidelity(features, real), "vendi": diversity}


def fidelity(features: NDArray[np.float64], real: NDArray[np.float64], resamples: int = RESAMPLES) -> dict[str, Figure]:
    """FD, precision and recall of features (N, d) beside those of real images.

    Precision and recall take as many real images as there are samples, where there are; their intervals count the
    samples and the real images as drawn, the balls as given.
    """
    target, beside = Gaussian.of(real), real[: len(features)]
    return {
        "fd": bootstrap(
            lambda drawn: frechet(Gaussian.of(features[drawn]), target), len(features), resamples=resamples
        ),
        "precision": share_of(covered(features, beside)),
        "recall": share_of(covered(beside, features)),
    }


def by_class(reading: Reading, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of the samples that is read as each class, and the mean confidence in those."""
    told = {}
    for label, name in enumerate(classes):
        here = reading.classes == label
        confidence = float(reading.probability[here, label].mean()) if here.any() else 0.0
        told[name] = {"share": float(here.mean()), "confidence": confidence}
    return told


def to_bytes(samples: Tensor) -> NDArray[np.uint8]:
    """Samples in [-1, 1] as 8 bits, as an image file would hold them."""
    levels: NDArray[np.uint8] = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return levels


def from_bytes(levels: NDArray[np.uint8]) -> Tensor:
    """What ``to_bytes`` wrote, in [-1, 1] again."""
    return torch.from_numpy(levels.astype(np.float32)) / 127.5 - 1
