"""What a table is filled on: a model, real images apart for every purpose, and a judge that nobody else asks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.errors import InvalidInput, OutOfRange
from negindex.exact import Exact
from negindex.sampler.evaluation.asked import Asked
from negindex.sampler.evaluation.judge import Reading
from negindex.sampler.evaluation.measures import nearest
from negindex.sampler.evaluation.text_side import TextSide

CLOSE = 0.5  # a copy lies within this share of the usual distance of a fresh image from the nearest training image
_PROBES = 500  # test images that the usual distance is read off


@dataclass(frozen=True)
class Drawn:
    """How images are sampled, the same in every cell."""

    steps: int = 20
    guidance: float = 3.0
    batch: int = 50
    seed: int = 0


class Stage(ABC):
    """A world on stage. Samples and real images are (N, 1, H, W) in [-1, 1]."""

    classes: ClassVar[tuple[str, ...]]
    requests: ClassVar[tuple[str, ...]]  # that can be asked of it
    features: ClassVar[str]  # what FD, precision, recall and diversity are of
    pipe: Any

    @abstractmethod
    def asked(self, request: str, avoided: str, count: int) -> list[Asked]:
        """``count`` images of one kind of request."""

    @abstractmethod
    def negatives(self, request: str, avoided: str, rows: int) -> Exact:
        """Real images of what is unwanted, as rows in the pipeline's space."""

    @abstractmethod
    def reference(self, avoided: str, rows: int) -> Exact:
        """Real images of the other classes, likewise."""

    def keepsakes_among(self, avoided: str, beside: int, reference: int) -> Exact:
        """The keepsakes and so many images of the other classes that no reference of ``reference`` rows holds."""
        raise InvalidInput(f"singles = {beside}: this world has no keepsakes; leave singles out")

    @abstractmethod
    def trained_on(self, request: str, avoided: str) -> tuple[Exact, Exact]:
        """(unwanted, other) images that the model was trained on: what an oracle knows."""

    @abstractmethod
    def call(self, asked: Sequence[Asked], drawn: Drawn, text: TextSide, seeds: list[torch.Generator]) -> Tensor:
        """One call of the pipeline."""

    @abstractmethod
    def read(self, samples: Tensor) -> Reading:
        """What the judge sees."""

    @property
    @abstractmethod
    def test_images(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Real images that neither the model, nor a set, nor the judge was made of, and their classes."""

    @property
    @abstractmethod
    def training_images(self) -> tuple[Tensor, NDArray[np.int64]]:
        """What the model was trained on."""

    @abstractmethod
    def networks(self) -> Iterable[Any]:
        """Everything that has weights, the judge included where it has."""

    # -- the same for all --------------------------------------------------------------------------

    def sample(
        self, asked: Sequence[Asked], drawn: Drawn, text: TextSide, guarding: AbstractContextManager[Any]
    ) -> Tensor:
        """Image i from ``seed + i``, whatever the method and the batch."""
        made = []
        with guarding:
            for start in range(0, len(asked), drawn.batch):
                some = asked[start : start + drawn.batch]
                seeds = [torch.Generator().manual_seed(drawn.seed + start + i) for i in range(len(some))]
                made.append(self.call(some, drawn, text, seeds))
        return torch.cat(made)

    def label(self, avoided: str) -> int:
        """The number of a class."""
        return self.classes.index(avoided)

    @cached_property
    def tested(self) -> Reading:
        """How the judge reads the test images."""
        return self.read(self.test_images[0])

    def real(self, avoided: str) -> NDArray[np.int64]:
        """Places of the test images that samples should look like: those of the other classes."""
        return np.flatnonzero(self.test_images[1] != self.label(avoided))

    def share(self, avoided: str) -> float:
        """Of the unwanted among the training images."""
        return float((self.training_images[1] == self.label(avoided)).mean())

    def distance(self, samples: Tensor) -> NDArray[np.float64]:
        """(N,) L2 distance to the nearest training image of the model, in pixels of [-1, 1]."""
        return nearest(_flat(samples), self._training)

    def copies(self, samples: Tensor, wanted: Sequence[int | None]) -> NDArray[np.bool_]:
        """Which samples are near-copies of the training image with the number that was asked for."""
        kept = self.singles([0 if number is None else number for number in wanted])
        apart = (samples - kept).flatten(1).norm(dim=1).double().numpy()
        return np.asarray(apart <= CLOSE * self.usual_distance)

    def singles(self, numbers: Sequence[int]) -> Tensor:
        """The training images with these numbers, as well as the model could give them back."""
        return self.training_images[0][list(numbers)]

    @cached_property
    def usual_distance(self) -> float:
        """The median distance of a test image from the nearest training image."""
        return float(np.median(self._apart))

    @cached_property
    def _apart(self) -> NDArray[np.float64]:
        """(n,) distances of test images from the nearest training image."""
        return self.distance(self.test_images[0][:_PROBES])

    def clean(self, reading: Reading, distance: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which samples look like an image of something: as sure and as near as nine of ten real test images are.

        distance: as ``distance`` says. A blend of two classes is read with little confidence and lies far away.
        """
        sure, near = self._as_real
        clean: NDArray[np.bool_] = (reading.probability.max(1) >= sure) & (distance <= near)
        return clean

    @cached_property
    def _as_real(self) -> tuple[float, float]:
        """What nine of ten test images reach: the least confidence, the largest distance."""
        sure = np.quantile(self.tested.probability.max(1), 0.1)
        return float(sure), float(np.quantile(self._apart, 0.9))

    @cached_property
    def weights(self) -> str:
        """Names all weights."""
        digest = hashlib.sha256()
        for network in self.networks():
            for name, weight in sorted(network.state_dict().items()):
                digest.update(name.encode() + weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _training(self) -> NDArray[np.float32]:
        return _flat(self.training_images[0])


def first(keep: NDArray[np.bool_], rows: int) -> NDArray[np.int64]:
    """The first ``rows`` places that are kept; raises OutOfRange where there are fewer."""
    places = np.flatnonzero(keep)
    if len(places) < rows:
        raise OutOfRange(f"{rows} rows of {len(places)} images; ask for at most {len(places)}")
    return places[:rows]


def _flat(samples: Tensor) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = samples.flatten(1).float().numpy()
    return flat
