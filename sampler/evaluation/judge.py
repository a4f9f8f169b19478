"""The judge: a classifier that saw none of the model's images, and whose features measure distances between sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from negindex.errors import NotThere
from negindex.sampler.evaluation.fashion import CLASSES, Pictures

FEATURES = 64
_AT_ONCE = 500


class Reading(NamedTuple):
    """What the judge sees in N samples."""

    classes: NDArray[np.int64]  # (N,)
    probability: NDArray[np.float64]  # (N, 10)
    features: NDArray[np.float64]  # (N, 64)


class Judge(nn.Module):
    """Samples (N, 1, 32, 32) in [-1, 1] to classes, confidences and features."""

    def __init__(self, width: int = 24, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(1, width),
            *_block(width, 2 * width),
            *_block(2 * width, 2 * width),
            nn.Flatten(),
            nn.Linear(2 * width * 16, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, samples: Tensor) -> Tensor:
        """(N, 10) logits."""
        logits: Tensor = self.head(self.trunk(samples))
        return logits

    @torch.no_grad()
    def read(self, samples: Tensor) -> Reading:
        """Classes, their probabilities, and the features before the last layer."""
        self.eval()
        features = torch.cat([self.trunk(some) for some in samples.float().split(_AT_ONCE)])
        probability = self.head(features).softmax(1).double().numpy()
        return Reading(probability.argmax(1), probability, features.double().numpy())

    def save(self, path: Path) -> None:
        """Weights as float16."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.half().contiguous() for name, weight in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> Judge:
        """A judge that ``save`` wrote; raises NotThere."""
        if not path.is_file():
            raise NotThere(f"{path} is missing; make it with `negindex train-world`")
        weights = load_file(path)
        judge = cls(width=weights["trunk.0.weight"].shape[0], classes=weights["head.weight"].shape[0])
        judge.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return judge.eval()


def train_judge(
    pictures: Pictures, steps: int, seed: int, progress: Callable[[int, float], None], width: int = 24
) -> Judge:
    """Train on images that are shifted by up to two pixels and mirrored by chance; the same under the same seed."""
    torch.manual_seed(seed)
    rows, classes = pictures.rows(), torch.from_numpy(pictures.classes)
    judge = Judge(width).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        batch = torch.randint(len(rows), (128,))
        loss = nn.functional.cross_entropy(judge(_moved(rows[batch])), classes[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        progress(step, loss.item())
    return judge.eval()


def _block(channels: int, out: int) -> list[nn.Module]:
    """Half the size, ``out`` channels."""
    return [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU(), nn.MaxPool2d(2)]


def _moved(rows: Tensor) -> Tensor:
    """A batch shifted by up to two pixels each way, and mirrored half of the time."""
    across, down = (int(n) for n in torch.randint(-2, 3, (2,)))
    shifted = rows.roll((down, across), (2, 3))
    return shifted.flip(3) if torch.rand(()) < 0.5 else shifted
