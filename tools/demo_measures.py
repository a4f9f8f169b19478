"""What the demo measures of its samples, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from negindex.sampler.evaluation.intervals import wilson
from negindex.tools.digits import CLASSES, Digits

AVOIDED = 8
OTHERS = tuple(c for c in CLASSES if c != AVOIDED)


class Judge:
    """An independent reader of digits, and the distance to the nearest training image.

    The classifier is a support vector machine on the training digits with calibrated probabilities; no
    guard ever asks it.
    """

    def __init__(self, training: Digits, held_out: Digits) -> None:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        self._training = training.rows.flatten(1)
        self._classifier: Any = CalibratedClassifierCV(SVC(gamma=0.01, C=10), ensemble=False, cv=5)
        self._classifier.fit(self._training.numpy(), training.classes)
        self.accuracy = float((self.read(held_out.rows)[0] == held_out.classes).mean())
        self.held_out_distance = float(self.distance(held_out.rows).mean())

    def read(self, samples: torch.Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Class and confidence of each sample (N, 1, 8, 8)."""
        probability = self.probabilities(samples)
        return self._classifier.classes_[probability.argmax(1)], probability.max(1)

    def probabilities(self, samples: torch.Tensor) -> NDArray[np.float64]:
        """(N, 10) of each class for each sample (N, 1, 8, 8)."""
        told: NDArray[np.float64] = self._classifier.predict_proba(samples.flatten(1).numpy())
        return told

    def distance(self, samples: torch.Tensor) -> NDArray[np.float32]:
        """L2 distance of each sample to the nearest training image, in [-1, 1]^64."""
        nearest: NDArray[np.float32] = torch.cdist(samples.flatten(1), self._training).amin(1).numpy()
        return nearest


@dataclass(frozen=True)
class Measured:
    """One cell of the table: samples of one kind, guarded or not."""

    read: NDArray[np.int64]  # (N,) the class that each sample is read as
    shares: list[float]  # (10,) share read as each class
    right: dict[int, float]  # {class asked for: share read as it}; empty when nothing was asked for
    confidence: float
    distance: float
    seconds: float  # an image

    @property
    def count(self) -> int:
        return len(self.read)

    @property
    def accuracy(self) -> float:
        return float(np.mean(list(self.right.values())))


def measure(judge: Judge, samples: torch.Tensor, asked: list[int | None], seconds: float) -> Measured:
    """Read the samples of one cell."""
    read, confidence = judge.read(samples)
    wanted = np.array([-1 if label is None else label for label in asked])
    return Measured(
        read=read,
        shares=(np.bincount(read, minlength=len(CLASSES)) / len(samples)).tolist(),
        right={int(c): float((read[wanted == c] == c).mean()) for c in np.unique(wanted[wanted >= 0])},
        confidence=float(confidence.mean()),
        distance=float(judge.distance(samples).mean()),
        seconds=seconds / len(samples),
    )


class Verdict(NamedTuple):
    """One thing that must hold: a figure within its bounds."""

    what: str
    figure: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return bool(self.low <= self.figure <= self.high)


def expected_without(free: Measured, guarded: Measured) -> dict[int, tuple[float, float]]:
    """{class: (share, half width)} that the other classes would have without the avoided one.

    The share is ``u_c / (1 - u_8)``, u the unguarded shares; the interval counts the sampling error of both
    runs and holds for the nine classes at once (95 %, Bonferroni).
    """
    z, left = _normal_bound(len(OTHERS)), 1 - free.shares[AVOIDED]
    shares = {c: free.shares[c] / left for c in OTHERS}
    errors = 1 / (free.count * left) + 1 / guarded.count
    return {c: (share, z * sqrt(share * (1 - share) * errors)) for c, share in shares.items()}


def unconditional(free: Measured, guarded: Measured, held_out_distance: float) -> Iterator[Verdict]:
    """The avoided class is gone, the others stand as they would without it, and nothing is copied."""
    yield Verdict(f"share of {AVOIDED}s, at most a third", guarded.shares[AVOIDED], 0, free.shares[AVOIDED] / 3)
    for c, (share, width) in expected_without(free, guarded).items():
        yield Verdict(f"share of {c}s, as expected without {AVOIDED}s", guarded.shares[c], share - width, share + width)
    yield Verdict("distance to the training images", guarded.distance, 0.9 * held_out_distance, 1.05 * free.distance)


def asked_for_avoided(free: Measured, guarded: Measured) -> Iterator[Verdict]:
    """Asked for the avoided class, at most half of the samples still show it, and they are no worse images."""
    yield Verdict(f"share read as {AVOIDED}, at most half", guarded.shares[AVOIDED], 0, free.shares[AVOIDED] / 2)
    yield Verdict("distance to the training images", guarded.distance, 0, 1.1 * free.distance)


def asked_for_others(free: Measured, guarded: Measured) -> Iterator[Verdict]:
    """Asked for another class, the guarded model obeys as the unguarded one does.

    The bounds are the Wilson interval of the unguarded accuracy: 95 % over all classes together, and
    simultaneous (Bonferroni) for each class alone. Being better is no failure.
    """
    low, _ = wilson(free.accuracy, free.count, _normal_bound(1))
    yield Verdict("accuracy over the other classes", guarded.accuracy, low, 1)
    for c in OTHERS:
        low, _ = wilson(free.right[c], free.count // len(OTHERS), _normal_bound(len(OTHERS)))
        yield Verdict(f"accuracy when asked for {c}", guarded.right[c], low, 1)


def _normal_bound(comparisons: int) -> float:
    """z of a two-sided 95 % interval that holds for so many comparisons at once."""
    return NormalDist().inv_cdf(1 - 0.05 / (2 * comparisons))
