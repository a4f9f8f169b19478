"""The views of an image that become rows: the whole of it covered or contained, its tiles, their mirror images."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from negindex.errors import ImageRefused
from negindex.geometry import VIEW, Geometry
from negindex.sampler.encode import Encoder

MOST_TILES = 1024  # of one image

Row = NDArray[np.float32]


def rows_of(encoder: Encoder, geometry: Geometry, image: Image.Image, name: str) -> list[tuple[str, Row]]:
    """(what its source key ends in, the row (*S)) of each view; the first has the image's own key.

    Raises ImageRefused for what cannot become a row, and for more than MOST_TILES tiles.
    """
    return [(suffix, encoder.row(view, name)) for suffix, view in views(image, geometry, encoder.size, name)]


def views(
    image: Image.Image, geometry: Geometry, size: tuple[int, int], name: str
) -> Iterator[tuple[str, Image.Image]]:
    """(what its source key ends in, the image) of each view, of ``size`` (height, width) but where it is covered."""
    for part, view in _parts(image, geometry.fit, size, name):
        yield f"{VIEW}{part}" if part else "", view
        if geometry.flip:
            yield VIEW + ".".join([*([part] if part else []), "flip"]), ImageOps.mirror(view)


def _parts(image: Image.Image, fit: str, size: tuple[int, int], name: str) -> Iterator[tuple[str, Image.Image]]:
    height, width = size
    if fit == "contain":
        yield "", contained(image, height, width)
    elif fit == "tile" and (image.width > width or image.height > height):
        yield from _tiles(image, height, width, name)
    else:
        yield "", image  # the encoder itself scales to cover, and crops


def contained(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled to lie inside, in the middle, with white around it; a side keeps at least one pixel."""
    scale = min(height / image.height, width / image.width)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if inner == (width, height):
        return image if image.size == inner else image.resize(inner, Image.Resampling.LANCZOS)
    whole = Image.new(image.mode, (width, height), "white")
    small = image.resize(inner, Image.Resampling.LANCZOS)
    whole.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return whole


def _tiles(image: Image.Image, height: int, width: int, name: str) -> Iterator[tuple[str, Image.Image]]:
    """As few as cover it, evenly laid and overlapping; scaled up first where one side is too short."""
    whole, down, across = laid(image.size, (height, width))
    if down * across > MOST_TILES:
        raise ImageRefused(
            f"{name} would be {down * across:,} tiles of {height} × {width}, the limit is {MOST_TILES:,}; make it "
            "smaller, or build a set with --fit cover or contain"
        )
    if whole != image.size:
        image = image.resize(whole, Image.Resampling.LANCZOS)
    for row, top in enumerate(_starts(whole[1], height, down)):
        for column, left in enumerate(_starts(whole[0], width, across)):
            part = f"{row}.{column}" if row or column else ""
            yield part, image.crop((left, top, left + width, top + height))


def laid(image: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    """(width, height) of an image as it is cut, and how many tiles down and across. size: a tile's height and width.

    >>> laid((100, 40), (40, 40))
    ((100, 40), 1, 3)
    """
    height, width = size
    scale = max(1.0, height / image[1], width / image[0])
    whole = (max(width, round(image[0] * scale)), max(height, round(image[1] * scale)))
    return whole, ceil(whole[1] / height), ceil(whole[0] / width)


def _starts(whole: int, side: int, count: int) -> list[int]:
    """Where tiles begin along an edge.

    >>> _starts(100, 40, 3)
    [0, 30, 60]
    """
    return [round(i * (whole - side) / max(1, count - 1)) for i in range(count)]
