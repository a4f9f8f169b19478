"""Images encoded together where that is faster, and where each image still has the row that it has alone."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negindex.errors import ImageRefused
from negindex.sampler.encode import Encoder

Row = NDArray[np.float32]
ALONE = 8  # images that are encoded one by one before more are tried: a short run has nothing to gain
GAIN = 1.1  # as many times as fast it must be, for twice as many together
MOST = {"cpu": 4, "cuda": 64}  # that are tried together, by the kind of device


@runtime_checkable
class Together(Encoder, Protocol):
    """An encoder that can take several images at a time."""

    @property
    def device(self) -> str:
        """The kind of device that it computes on, such as "cpu" or "cuda"."""

    def pixels(self, image: Image.Image, name: str) -> Row:
        """One image as the model takes it (C, H, W); raises ImageRefused."""

    def rows(self, pixels: Row) -> Row:
        """(B, C, H, W) to rows (B, *S); NaN or Inf where an image has none."""


class Slot:
    """A row that is there when it is asked for."""

    def __init__(self, batches: Batches, name: str, made: Row | None = None) -> None:
        self._batches, self._name, self.made = batches, name, made

    def row(self) -> Row:
        """Raises ImageRefused for what becomes NaN or Inf."""
        if self.made is None:
            self._batches.finish()
        if self.made is None or not np.isfinite(self.made).all():
            raise ImageRefused(f"{self._name} becomes NaN or Inf in the VAE; leave it out")
        return self.made


class Batches:
    """Images on their way through an encoder, ``size`` of them at a time.

    size: None finds it: from one on, twice as many as long as that is at least a tenth faster, the device's memory
    holds them, and every image's row stays the same to the bit. Rows are compared by their bytes, so an image must
    not have another row in other company. A size that is named is taken as it is.
    """

    def __init__(self, encoder: Encoder, size: int | None = None, most: int | None = None) -> None:
        """most: that are tried where the size is not named; by the kind of device when None."""
        self._encoder, self.size = encoder, size or 1
        together = encoder if isinstance(encoder, Together) else None
        self._together = together
        self._most = 1 if together is None else MOST.get(together.device, 1) if most is None else most
        self._open = size is None and self._most > 1  # whether more may be tried
        self._seen, self._speed = 0, 0.0  # images, and how many a second
        self._waiting: list[tuple[Slot, Row]] = []

    def put(self, image: Image.Image, name: str) -> Slot:
        """Have an image encoded with those that follow; raises ImageRefused for one that cannot be."""
        if self._together is None:
            return Slot(self, name, self._encoder.row(image, name))
        slot = Slot(self, name)
        self._waiting.append((slot, self._together.pixels(image, name)))
        if len(self._waiting) >= (2 * self.size if self._open and self._seen >= ALONE else self.size):
            self.finish()
        return slot

    def finish(self) -> None:
        """Encode what is waiting; fewer than ``size`` go one by one, so that no row depends on where a run ends."""
        waiting, self._waiting = self._waiting, []
        if self._together is None or not waiting:
            return
        pixels = np.stack([one for _, one in waiting])
        if self._open and self._seen >= ALONE and len(waiting) == 2 * self.size:
            rows = self._try(self._together, pixels)
        else:
            step = self.size if len(waiting) == self.size else 1
            rows = self._timed(self._together, pixels, step)[0]
        self._seen += len(waiting)
        for (slot, _), row in zip(waiting, rows, strict=True):
            slot.made = row

    def _try(self, encoder: Together, pixels: Row) -> Row:
        """The rows, by the size so far; and twice the size from now on, where that is as good and faster."""
        rows, alone = self._timed(encoder, pixels, self.size)
        try:
            wider, together = self._timed(encoder, pixels, len(pixels))
        except (MemoryError, RuntimeError) as error:
            if not _is_of_memory(error):
                raise
            self._open = False
            return rows
        is_same = wider.tobytes() == rows.tobytes()
        if is_same and together >= GAIN * alone:
            self.size = len(pixels)
            self._open = 2 * self.size <= self._most
        else:
            self._open = False
        return rows

    def _timed(self, encoder: Together, pixels: Row, step: int) -> tuple[Row, float]:
        """Rows, ``step`` at a time, and images a second."""
        began = time.perf_counter()
        rows = np.concatenate([encoder.rows(pixels[i : i + step]) for i in range(0, len(pixels), step)])
        return rows, len(pixels) / max(time.perf_counter() - began, 1e-9)


def _is_of_memory(error: Exception) -> bool:
    """Whether it says that there is not enough: torch raises plain RuntimeErrors on the CPU."""
    return isinstance(error, MemoryError) or "memory" in str(error).lower()
