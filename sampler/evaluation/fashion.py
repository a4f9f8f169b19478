"""Real images: Fashion-MNIST from Debian's package, in four parts that share no image."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from negindex.errors import Damaged, NotThere

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE = 32  # 28 pixels and a border of ground
_OF_WORLD, _OF_SETS = 30_000, 15_000  # of the 60,000 training images; the judge has the rest


@dataclass(frozen=True)
class Pictures:
    """Images (N, 28, 28) uint8 and their classes (N,)."""

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.classes)

    def only(self, keep: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Pictures:
        return Pictures(self.pixels[keep], self.classes[keep])

    def rows(self) -> torch.Tensor:
        """(N, 1, 32, 32) float32 in [-1, 1]."""
        edge = (SIDE - self.pixels.shape[1]) // 2
        framed = np.pad(self.pixels, ((0, 0), (edge, edge), (edge, edge)))
        return torch.from_numpy(framed.astype(np.float32))[:, None] / 127.5 - 1


class Fashion(NamedTuple):
    """Who may see which images: nobody sees another's."""

    world: Pictures  # what the model is trained on
    sets: Pictures  # what negation sets and references are made of
    judge: Pictures  # what the classifier is trained on
    test: Pictures  # what samples are compared with


def load(folder: Path = FOLDER) -> Fashion:
    """The data set in parts, in its own order; raises NotThere without it and Damaged for other files."""
    training, test = _read(folder, "train"), _read(folder, "t10k")
    until = _OF_WORLD + _OF_SETS
    return Fashion(
        world=training.only(slice(_OF_WORLD)),
        sets=training.only(slice(_OF_WORLD, until)),
        judge=training.only(slice(until, None)),
        test=test,
    )


def _read(folder: Path, part: str) -> Pictures:
    images, labels = (folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    if not images.is_file():
        raise NotThere(
            f"{images} is missing; install Debian's package dataset-fashion-mnist, or name the folder that holds its "
            "four files"
        )
    try:
        pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        classes = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(f"{folder} holds no Fashion-MNIST ({error}); install dataset-fashion-mnist again") from error
    if len(pixels) != len(classes):
        raise Damaged(f"{folder} has {len(pixels)} images and {len(classes)} labels; install it again")
    return Pictures(pixels, classes.astype(np.int64))
