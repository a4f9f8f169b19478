"""Rows and images as small tiles with a word under each, and sheets of them as PNG. Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

from negindex.collection import Collection
from negindex.sampler.beside import SIDE, reduced
from negindex.sampler.encode import PIXELS, to_images

WIDTH, HEIGHT = 112, 112  # pixels of a cell: a tile of at most SIDE, and up to three lines of text
LINES, LETTERS = 3, 18
MARGIN = 8
_PAPER, _INK, _FRAME = "white", "black", (170, 170, 170)


class Tile(NamedTuple):
    """An image, or None for a blank one, with what is written under it."""

    image: Image.Image | None
    words: str = ""


class Strip(NamedTuple):
    """A heading and tiles that belong together."""

    heading: str
    tiles: Sequence[Tile]


def drawn(collection: Collection, row: int, side: int = SIDE) -> Image.Image | None:
    """A row as people see it: its thumbnail, or the row itself where it is pixels; None where there is neither.

    side: pixels of the longer side, at most.
    """
    held = collection.stored([row])
    if not len(held):
        return None
    png = held.sources[0].thumbnail
    if png is not None:
        with Image.open(BytesIO(png), formats=("PNG",)) as image:
            return reduced(image.convert("RGB"), side)
    if collection.space != PIXELS or len(collection.shape) != 3 or collection.shape[0] not in (1, 3):
        return None
    return reduced(to_images(torch.from_numpy(held.rows))[0].convert("RGB"), side)


def sheet(strips: Sequence[Strip], columns: int = 8) -> Image.Image:
    """Strips under each other, so many tiles in a line."""
    lines = [-(-len(strip.tiles) // columns) for strip in strips]
    head = 2 * MARGIN + 12
    paper = Image.new("RGB", (columns * WIDTH + 2 * MARGIN, sum(lines) * HEIGHT + len(strips) * head + MARGIN), _PAPER)
    pen = ImageDraw.Draw(paper)
    top = 0
    for strip, many in zip(strips, lines, strict=True):
        pen.text((MARGIN, top + MARGIN), _plain(strip.heading), _INK, _font())
        top += head
        for place, tile in enumerate(strip.tiles):
            _put(paper, pen, tile, MARGIN + place % columns * WIDTH, top + place // columns * HEIGHT)
        top += many * HEIGHT
    return paper


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG."""
    image.save(path, "PNG")


def _put(paper: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    if tile.image is None:
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=_FRAME)
        pen.line((left, top, left + SIDE - 1, top + SIDE - 1), _FRAME)
    else:
        image = reduced(tile.image)
        scale = SIDE // max(image.size)  # rows of a few pixels are shown as squares
        if scale > 1:
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        paper.paste(image, (left, top))
    for number, line in enumerate(_folded(tile.words)):
        pen.text((left, top + SIDE + 2 + 12 * number), line, _INK, _font())


def _folded(words: str) -> list[str]:
    """Up to three lines; a longer text keeps its end, by which keys differ.

    >>> _folded("a/b.png"), _folded("x" * 60)[0]
    (['a/b.png'], '...xxxxxxxxxxxxxxx')
    """
    lines = []
    for part in _plain(words).split("\n"):
        most = LETTERS * max(1, LINES - words.count("\n"))
        part = part if len(part) <= most else "..." + part[3 - most :]
        lines += [part[start : start + LETTERS] for start in range(0, len(part), LETTERS)]
    return lines[:LINES]


def _plain(words: str) -> str:
    """What the built-in font can draw."""
    return "".join(letter if " " <= letter <= "~" or letter == "\n" else "?" for letter in words)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(11)
