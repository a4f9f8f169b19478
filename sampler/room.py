"""What a build needs before it starts: room on the disk, and memory."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from negindex.errors import NotAllowed, OutOfRange
from negindex.sampler.encode import Encoder
from negindex.sampler.ingest import ENCODED_BYTES, READY_BYTES
from negindex.sampler.vae import VaeEncoder, held_at_once

RECORD_BYTES = 1024  # of the record, a row: 350 on the average without an image, 700 with one, and its journal
AT_LEAST = 32 << 20  # bytes of the disk that are asked for whatever goes in
PROGRAM_BYTES = 550 << 20  # of the program with torch, before anything is read,
MODEL_BYTES = 350 << 20  # and of the code of diffusers and what it works with
DECODED = 12  # bytes a pixel of an image while it is decoded


def disk_needed(rows: int, shape: tuple[int, ...], dtype: str, *, shards: int = 1, known: int = 0) -> int:
    """Bytes that rows take, and what is kept beside them.

    rows: that are foreseen (``foreseen.rows_foreseen``). shards: one of so many goes in. known: rows that are in the
    set already.
    """
    row = prod(shape) * np.dtype(dtype).itemsize + RECORD_BYTES
    return max(0, -(-rows // shards) - known) * row + AT_LEAST


def check_disk(folder: Path, need: int) -> None:
    """Raise NotAllowed where a folder's disk has less room than a build needs. The folder need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise NotAllowed(
            f"{folder} needs up to about {_bytes(need)}, and its disk has {_bytes(free)} free; make room, or build it "
            "elsewhere"
        )


def memory_needed(encoder: Encoder | None, max_pixels: int) -> int:
    """Bytes of memory that a build takes at most, one image at a time, by an estimate.

    That is the program, one image as large as is allowed while it is decoded, the rows of two to four versions, and
    the VAE with what it holds of an image. Pages of mapped files are the system's, and are not counted.
    """
    rows = 4 * READY_BYTES if encoder is None else 2 * ENCODED_BYTES
    image = 0 if encoder is None else DECODED * max_pixels
    model = 0
    if isinstance(encoder, VaeEncoder):
        model = MODEL_BYTES + (held_at_once(encoder) if encoder.device == "cpu" else 0)
    return PROGRAM_BYTES + rows + image + model


def check_memory(encoder: Encoder | None, max_pixels: int, most: int | None) -> None:
    """Raise OutOfRange where a build is estimated to take more than ``most`` bytes."""
    need = memory_needed(encoder, max_pixels)
    if most is not None and need > most:
        raise OutOfRange(
            f"a build of this takes about {_bytes(need)} of memory, and the limit is {_bytes(most)}; allow more "
            "(--max-memory), or smaller images (--max-pixels, now "
            f"{max_pixels:,})"
        )


def device_found(asked: str) -> str:
    """The device to encode on: the one that is named, or the fastest there is. Raises OutOfRange where it is not."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OutOfRange(f"device {name!r} cannot be used here ({error}); name another, such as cpu") from error
    return name


def parsed(size: str) -> int:
    """Bytes of "800M", "4G" or a number. Raises OutOfRange.

    >>> parsed("4G"), parsed("800m"), parsed("1024")
    (4294967296, 838860800, 1024)
    """
    number, unit = size[:-1], size[-1:].lower()
    power: Any = {"k": 10, "m": 20, "g": 30, "t": 40}.get(unit)
    digits = size if power is None else number
    if not digits.isdecimal() or int(digits) < 1:
        raise OutOfRange(f"{size!r} is no amount of memory; give bytes, or a number with K, M, G or T, such as 4G")
    return int(digits) << (power or 0)


def _bytes(many: int) -> str:
    return f"{many / 2**30:,.1f} GiB" if many >= 2**30 else f"{many / 2**20:,.0f} MiB"
