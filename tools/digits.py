"""The demo's real images and its small model: handwritten digits, 8 × 8, from scikit-learn's wheel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

CLASSES = tuple(range(10))
NO_CLASS = 10


@dataclass(frozen=True)
class Digits:
    """Images (N, 8, 8) uint8, their classes (N,) and their places in the data set."""

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]
    places: NDArray[np.int64]

    def only(self, keep: NDArray[np.bool_]) -> Digits:
        return Digits(self.pixels[keep], self.classes[keep], self.places[keep])

    def every_second(self) -> Digits:
        """Half of each class: the first, the third and so on, in the order of the data set."""
        keep = np.zeros(len(self.classes), bool)
        for label in CLASSES:
            keep[np.flatnonzero(self.classes == label)[::2]] = True
        return self.only(keep)

    @property
    def rows(self) -> torch.Tensor:
        """(N, 1, 8, 8) float32 in [-1, 1], as ``PixelEncoder`` makes them from the files."""
        return torch.from_numpy(self.pixels.astype(np.float32))[:, None] / 127.5 - 1


def load() -> tuple[Digits, Digits]:
    """(training, held out): 80 % and 20 % of the 1,797 digits, each class in the same proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    everything = Digits(pixels, data.target.astype(np.int64), np.arange(len(pixels)))
    training, _ = train_test_split(everything.places, test_size=0.2, random_state=0, stratify=data.target)
    member = np.isin(everything.places, training)
    return everything.only(member), everything.only(~member)


def write_images(digits: Digits, folder: Path) -> None:
    """One PNG a digit, in a folder a class: folder/8/0023.png."""
    for pixels, label, place in zip(digits.pixels, digits.classes, digits.places, strict=True):
        path = folder / str(label) / f"{place:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def new_unet() -> Any:
    """The demo's network before training: 0.92 M parameters."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=len(CLASSES) + 1,
    )


def train(digits: Digits, steps: int, seed: int, progress: Callable[[int, float], None]) -> Any:
    """Train the network on noise prediction (DDPM, linear betas); returns its moving average.

    One label in five is dropped, for classifier-free guidance. progress(step, loss) is called each step.
    """
    from diffusers import DDPMScheduler

    torch.manual_seed(seed)
    images, labels = digits.rows, torch.from_numpy(digits.classes)
    unet = new_unet()
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1.5e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.05)
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    for step in range(steps):
        batch = torch.randint(len(images), (128,))
        asked = torch.where(torch.rand(128) < 0.2, NO_CLASS, labels[batch])
        t, noise = torch.randint(1000, (128,)), torch.randn(128, *images.shape[1:])
        predicted = unet(noising.add_noise(images[batch], noise, t), t, class_labels=asked).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        keep = min(0.999, (step + 1) / (step + 10))
        for slow, fast in zip(average.parameters(), unet.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - keep)
        progress(step, loss.item())
    return average.eval()
