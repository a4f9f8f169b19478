"""The demo's contact sheet: the same seeds, before beside after; what is still read as an 8 is framed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from negindex.sampler.encode import to_images

_TILE, _FRAME, _GAP, _MARGIN, _COLUMNS, _TEXT = 44, 3, 3, 28, 10, 17
_PAPER, _INK, _MARK = "#ffffff", "#1c1c1c", "#e8590c"


class Panel(NamedTuple):
    """Samples (N, 1, 8, 8) and which of them are framed (N,)."""

    title: str
    samples: torch.Tensor
    framed: NDArray[np.bool_]


def contact_sheet(rows: Sequence[tuple[Panel, Panel]], path: Path, note: str) -> None:
    """Write rows of (before, after) panels as one PNG."""
    font, small = ImageFont.load_default(_TEXT), ImageFont.load_default(_TEXT - 3)
    grids = [(_grid(before), _grid(after)) for before, after in rows]
    wide, high = grids[0][0].size
    step = high + _TEXT + _MARGIN
    sheet = Image.new("RGB", (2 * wide + 3 * _MARGIN, step * len(rows) + _MARGIN + _TEXT), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN // 2), note, _INK, small)
    for i, (panels, pair) in enumerate(zip(rows, grids, strict=True)):
        top = _MARGIN + _TEXT + i * step
        for left, panel, grid in zip((_MARGIN, 2 * _MARGIN + wide), panels, pair, strict=True):
            draw.text((left, top), panel.title, _INK, font)
            sheet.paste(grid, (left, top + _TEXT + 7))
    sheet.save(path, optimize=True)


def _grid(panel: Panel) -> Image.Image:
    cell = _TILE + 2 * _FRAME + _GAP
    rows = -(-len(panel.samples) // _COLUMNS)
    grid = Image.new("RGB", (cell * _COLUMNS - _GAP, cell * rows - _GAP), _PAPER)
    for i, (image, framed) in enumerate(zip(to_images(panel.samples), panel.framed, strict=True)):
        tile = Image.new("RGB", (_TILE + 2 * _FRAME,) * 2, _MARK if framed else _PAPER)
        tile.paste(image.resize((_TILE, _TILE), Image.Resampling.BICUBIC).convert("RGB"), (_FRAME, _FRAME))
        grid.paste(tile, (cell * (i % _COLUMNS), cell * (i // _COLUMNS)))
    return grid
