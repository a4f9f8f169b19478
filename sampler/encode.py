"""From image files to rows in a model's own space."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from negindex.errors import ImageRefused, OutOfRange, SpaceMismatch
from negindex.sampler.effort import refuse_costly

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever a file's name says; no other decoder is run
MAX_PIXELS = 100_000_000  # refused by the header, before anything is decoded; decoding takes up to 12 bytes a pixel
PIXELS = "pixels"


_NORMALISATION = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_OTHER_DECODERS = ("vqvae", "movq", "vqgan")


def space_of(pipe: Any) -> str:
    """What a pipeline's samples are: "pixels", or its VAE's fingerprint and normalisation.

    The fingerprint is of the weights rounded to float16, so that one stored VAE has one space whether it is
    loaded as float32, as float16, or as the bfloat16 it was stored in. Float32 weights that were loaded as
    bfloat16 are other weights, and another space: load such a VAE as float32.
    Raises SpaceMismatch for a pipeline whose latents are neither, such as those of a VQ model.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None:
        others = [name for name in _OTHER_DECODERS if getattr(pipe, name, None) is not None]
        if others:
            raise SpaceMismatch(
                f"{type(pipe).__name__}'s samples are latents of its {others[0]}, for which rows cannot be made; "
                "use a pipeline with a VAE, or one that samples pixels"
            )
        return PIXELS
    digest = hashlib.sha256()
    for name, weight in sorted(vae.state_dict().items()):
        values = weight.detach().half() if weight.is_floating_point() else weight.detach()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
        digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    norms = {key: vae.config.get(key) for key in _NORMALISATION}
    stated = " ".join(f"{key}={json.dumps(value)}" for key, value in norms.items() if value is not None)
    return f"vae {digest.hexdigest()[:16]} {stated}".strip()


def images_in(source: Path) -> list[Path]:
    """The image files of a folder, at any depth, in the order of their names; or the one file itself."""
    if source.is_file():
        return [source]
    return sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)


def read_image(file: Path | bytes, name: str = "the image", *, max_pixels: int | None = None) -> Image.Image:
    """Decode a file to 8 bits, mode "L" where it holds grey and "RGB" otherwise, upright, alpha over white.

    file: a path, or the bytes of one, whose refusals call it ``name``. Of an animation, its first picture.
    max_pixels: MAX_PIXELS when None. CMYK and 16 bits go to 8 bits of grey or colour by Pillow's plain conversion.
    Raises ImageRefused with the reason: no image, truncated, too many pixels, too costly to decode, or pixels without a
    scale.
    """
    name = file.name if isinstance(file, Path) else name
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with _refusals(name, limit), _opened(file) as image:
        width, height = image.size
        if width * height > limit:
            raise ImageRefused(
                f"{name} says {width} × {height} pixels; the limit is {limit:,}, so make it smaller (--max-pixels)"
            )
        with _silent():
            refuse_costly(image, name)
            image.load()
            return flattened(ImageOps.exif_transpose(image), name)


_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(struct.error, zlib.error),
)


@contextmanager
def _refusals(name: str, limit: int) -> Iterator[None]:
    """What Pillow's decoders raise at damaged files, in one class that names the file."""
    try:
        yield
    except ImageRefused:
        raise
    except UnidentifiedImageError:
        raise ImageRefused(f"{name} is no image that can be read; give {', '.join(IMAGE_SUFFIXES)}") from None
    except Image.DecompressionBombError as error:
        raise ImageRefused(f"{name}: {error}; the limit is {limit:,}, so make it smaller") from None
    except _DAMAGE as error:
        raise ImageRefused(f"{name} is damaged ({error}); replace the file") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Pillow warns of many pixels, which the limit refuses sooner, and of odd metadata, which no row holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(file: Path | bytes | BinaryIO) -> Image.Image:
    """Read the header alone."""
    with _silent():
        return Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)


def flattened(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ImageRefused(f"{name} has grey values outside 0 to 65,535; save it with 8 or 16 bits")
        return Image.fromarray((grey // 257).astype(np.uint8))
    if image.mode == "F":
        raise ImageRefused(f"{name} has floating-point pixels without a scale; save it with 8 or 16 bits")
    grey_mode = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if grey_mode else "RGB")


def has_colour(file: Path | bytes) -> bool:
    """Whether a file's header says that it holds colour; False for what cannot be read."""
    try:
        with _opened(file) as image:
            return image.mode not in ("1", "L", "LA", "La") and not image.mode.startswith("I")
    except (*_DAMAGE, Image.DecompressionBombError):
        return False


def size_of(file: Path | BinaryIO) -> tuple[int, int] | None:
    """(width, height) as a file's header says, before it is turned; None for what cannot be read."""
    try:
        with _opened(file) as image:
            return image.size
    except (*_DAMAGE, Image.DecompressionBombError):
        return None


class Encoder(Protocol):
    """Images to rows of one shape, in one space; the same image always gives the same row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One row's shape S."""

    @property
    def space(self) -> str:
        """What the rows are, as ``space_of`` says it."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""

    def encode(self, path: Path) -> NDArray[np.float32]:
        """One file to one row; raises ImageRefused, which names the file."""

    def row(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """One decoded image to one row; ``name`` is what a refusal calls it."""


@dataclass(frozen=True)
class PixelEncoder:
    """Images to pixel rows (C, H, W) in [-1, 1]: scaled to cover, centre cropped, x = v / 127.5 - 1."""

    height: int
    width: int
    channels: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.channels not in (1, 3):
            raise OutOfRange(
                f"{self.channels} channels of {self.height} × {self.width}; give 1 or 3 channels and at least one pixel"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)

    @property
    def space(self) -> str:
        return PIXELS

    @property
    def size(self) -> tuple[int, int]:
        return (self.height, self.width)

    def encode(self, path: Path) -> NDArray[np.float32]:
        """One file to one row; raises ImageRefused."""
        return self.row(read_image(path), path.name)

    def row(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """One image to one row; raises ImageRefused. Colour is never dropped in silence."""
        if image.mode not in ("L", "RGB"):
            image = flattened(image, name)
        if self.channels == 1 and image.mode == "RGB":
            red, green, blue = image.split()
            if not red.tobytes() == green.tobytes() == blue.tobytes():
                raise ImageRefused(f"{name} has colour, and the set holds grey rows; build a set with 3 channels")
            image = red
        elif self.channels == 3:
            image = image.convert("RGB")
        if image.size != (self.width, self.height):
            image = ImageOps.fit(image, (self.width, self.height), Image.Resampling.LANCZOS)
        pixels = np.asarray(image, np.float32).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)


def to_images(samples: torch.Tensor) -> list[Image.Image]:
    """Pixel samples (B, C, H, W) in [-1, 1] to 8-bit images; values beyond are clipped."""
    levels = ((samples.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(x.permute(1, 2, 0).squeeze(-1).numpy()) for x in levels]
