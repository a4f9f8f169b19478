"""PDQ: 256 bits that stay nearly the same when an image is resized, re-encoded or lightly edited.

Source: the paper on TMK and PDQ by Facebook (2019) and its reference code, whose bits these are wherever a
coefficient does not tie with the median (there, the reference's bits are its rounding errors'). Written here
because no release of the reference's bindings (``pdqhash``) has a wheel for Linux, and a compiler is more than a
new machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from negindex.alike import MIN_QUALITY as MIN_QUALITY
from negindex.sampler.encode import flattened, read_image

SIDE = 64  # pixels of the shrunk image
FREQUENCIES = 16  # kept along each axis: 1 to 16, without the constant
MIN_SIDE = 5  # pixels; smaller images have quality 0
AT_ONCE = 1 << 18  # pixels; the luminance of a larger image is worked out strip by strip
KEPT = 1 << 14  # pixels; weights for larger images are not kept from one image to the next
ALL_TOLD = 192  # of 256 coefficients off the median: from here on, quality is the reference's
_LUMA = np.array([0.299, 0.587, 0.114])
_COSINES = np.sqrt(2 / SIDE) * np.cos(
    np.pi / (2 * SIDE) * np.outer(np.arange(1, FREQUENCIES + 1), 2 * np.arange(SIDE) + 1)
)  # (16, 64)


class Pdq(NamedTuple):
    """An image's hash; ``bits.hex()`` is the form in which PDQ hashes are exchanged."""

    bits: bytes  # 32
    quality: int  # 0 (nothing in the image) to 100; below MIN_QUALITY the bits say nothing


_NOTHING = Pdq(bytes(FREQUENCIES**2 // 8), 0)


def pdq_of(image: Image.Image, name: str = "the image") -> Pdq:
    """The hash of an image of any mode, laid out as a row's pixels are: upright, alpha over white, 8 bits.

    Quality is the reference's but where few bits are left to tell images apart, and it is lowered below
    MIN_QUALITY: with two axes of symmetry, or stripes, most coefficients tie at the median; of fewer than 96
    pixels, such as 8 × 8, the coefficients follow from each other (at 8 × 8, one pair of Fashion-MNIST's images in
    a thousand is near; at 28 × 28, of 8 million pairs none).
    name: what a refusal calls it.
    Cost: one pass over the pixels; memory beyond the image's own is about a 64th of it, or up to 10 MB.
    Raises ImageRefused where its pixels have no scale.
    """
    image = _decoded(image, name)
    return _NOTHING if min(image.size) < MIN_SIDE else _hashed(next(_shrunk(image)), image.size)


def forms_of(image: Image.Image, name: str = "the image") -> list[Pdq]:
    """The hashes of an image, of its mirror image, and of both turned by 90, 180 and 270°: eight, its own first.

    Each is the hash that ``pdq_of`` gives the turned image: where a window has an even number of pixels it looks
    ahead, so that the signs of one image's coefficients do not tell the bits of the others.
    Cost: twice the passes over the pixels. Raises ImageRefused as ``pdq_of`` does.
    """
    image = _decoded(image, name)
    if min(image.size) < MIN_SIDE:
        return [_NOTHING]
    return [_hashed(form, image.size) for small in _shrunk(image) for form in (small, small.T)]


def pdq_of_file(path: Path) -> Pdq:
    """The hash of an image file, read as it is for a row; raises ImageRefused, which names the file."""
    return pdq_of(read_image(path), path.name)


def _decoded(image: Image.Image, name: str) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    return image if plain else flattened(image, name)


def _hashed(small: NDArray[np.float64], size: tuple[int, int]) -> Pdq:
    waves = _settled(_COSINES @ small @ _COSINES.T)
    median = np.sort(waves, axis=None)[waves.size // 2 - 1]  # the lower one
    free = min(size[0], FREQUENCIES) * min(size[1], FREQUENCIES)  # what an image of so few pixels can tell
    told = 100 * min(free, int(np.count_nonzero(waves != median))) // ALL_TOLD
    return Pdq(np.packbits((waves > median).ravel()[::-1]).tobytes(), min(_quality(small), told))


def _shrunk(image: Image.Image) -> Iterator[NDArray[np.float64]]:
    """The luminance, (64, 64): blurred by a tent as wide as two of the new pixels, then sampled.

    Of the image, and then of it turned over along one axis, the other, and both. The longer axis goes first, in
    strips, so that no step holds more than a strip and 64 lines of the shorter.
    """
    wide = image.width > image.height
    strip = _strips(image, wide)
    for turned in (False, True):
        half = np.stack([w @ strip(start, len(w)) for start, w in _tents(max(image.size), turned)])  # (64, shorter)
        for over in (False, True):
            across = _tents(min(image.size), over)
            small = np.stack([half[:, start : start + len(w)] @ w for start, w in across], axis=1)
            yield small.T if wide else small


def _strips(image: Image.Image, wide: bool) -> Callable[[int, int], NDArray[np.float64]]:
    """What gives the luminance (length, shorter side) of a strip across the longer axis, from ``start`` on."""
    if image.width * image.height <= AT_ONCE:
        whole = _luma(image).T if wide else _luma(image)
        return lambda start, length: whole[start : start + length]

    def strip(start: int, length: int) -> NDArray[np.float64]:
        box = (start, 0, start + length, image.height) if wide else (0, start, image.width, start + length)
        part = _luma(image.crop(box))
        return part.T if wide else part

    return strip


def _luma(image: Image.Image) -> NDArray[np.float64]:
    pixels = np.asarray(image, np.float64)
    return pixels if pixels.ndim == 2 else pixels @ _LUMA


def _tents(size: int, turned: bool) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """For each of 64 pixels, where its window starts and the weights (sum 1) of the ``size`` pixels in it.

    turned: of the image turned over, whose first pixel is this one's last.
    """
    for start, weights in _kept_tents(size) if size <= KEPT else _upright_tents(size):
        yield (size - start - len(weights), weights[::-1]) if turned else (start, weights)


@lru_cache(maxsize=16)
def _kept_tents(size: int) -> list[tuple[int, NDArray[np.float64]]]:
    return list(_upright_tents(size))


def _upright_tents(size: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The weights are two moving averages over ceil(size / 128) pixels, each over what lies inside the image."""
    width = -(-size // (2 * SIDE))
    firsts, lasts = _window((np.arange(SIDE) * 2 + 1) * size // (2 * SIDE), width, size)
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        starts, ends = _window(np.arange(first, last + 1), width, size)
        steps = np.zeros(ends[-1] - starts[0] + 2)
        share = 1 / ((last - first + 1) * (ends - starts + 1))
        np.add.at(steps, starts - starts[0], share)
        np.add.at(steps, ends - starts[0] + 1, -share)
        yield int(starts[0]), np.cumsum(steps)[:-1]


def _window(centre: NDArray[np.int64], width: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last pixel of a moving average; where the width is even, it reaches one further ahead."""
    return np.maximum(centre - (width - 1) // 2, 0), np.minimum(centre + width // 2, size - 1)


def _quality(small: NDArray[np.float64]) -> int:
    """How much changes from pixel to pixel, in whole percents of the range, so that faint noise counts nothing."""
    steps = [np.trunc(_settled(np.abs(np.diff(small, axis=axis)) / 2.55)).sum() for axis in (0, 1)]
    return min(100, int(sum(steps)) // 90)


def _settled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded, so that ties (symmetric and blank images) do not hang on the order in which a machine sums."""
    return np.round(values, 6)
