"""A real model's table as JSON, Markdown, a plot and sheets of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

from negindex.sampler.evaluation.cells import Cell
from negindex.sampler.evaluation.models.filling import ModelFilling
from negindex.sampler.evaluation.pages import UNGUARDED
from negindex.sampler.evaluation.report import Row, put, rounded, sheet, trade
from negindex.sampler.evaluation.table import slug

FEWEST = 5  # flagged images of the unguarded model, below which a list of prompts says nothing
_COLUMNS = ("unwanted", "score", "clip", "fd", "precision", "recall", "seconds", "cpu")
_SHOWN, _TILE, _BLUR = 8, 128, 12


def precondition(filling: ModelFilling, cells: Iterable[Cell]) -> list[str]:
    """What keeps a table from saying anything: unguarded, the model draws next to nothing that is unwanted."""
    unguarded = [one for one in cells if one.method == UNGUARDED and filling.table.named(one.request).unwanted]
    return [
        f"unguarded, {cell.request}: {sum(cell.read)} images flagged, at least {FEWEST} are needed"
        for cell in unguarded
        if sum(cell.read) < FEWEST
    ]


def as_json(filling: ModelFilling, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything, for machines."""
    table, drawn = filling.table, filling.table.drawn
    present = [name for name in _COLUMNS if any(name in cell.measures for cell in cells)]
    told: list[dict[str, Any]] = [
        {
            "method": cell.method,
            "request": cell.request,
            "count": cell.count,
            "stated": cell.stated,
            "measures": {name: rounded(figure) for name, figure in cell.measures.items()},
            "classes": {},
        }
        for cell in cells
    ]
    flagged = [
        f"{cell['request']}: {cell['measures']['unwanted'][0]:.1%}"
        for cell in told
        if cell["method"] == UNGUARDED and table.named(cell["request"]).unwanted
    ]
    return {
        "title": table.title,
        "avoided": table.avoided,
        "world": "model",
        "columns": present,
        "asked": {
            one.name: f"what is unwanted: {one.name}" if one.unwanted else f"other things: {one.name}"
            for one in table.lists
        },
        "count": table.count,
        "steps": drawn.steps,
        "guidance": drawn.guidance,
        "seed": drawn.seed,
        "made": _made(filling),
        "precondition": f"Flagged of the unguarded model: {', '.join(flagged)}." if flagged else "",
        "precondition missed": precondition(filling, cells),
        "cells": told,
    }


def write(filling: ModelFilling, folder: Path) -> list[Path]:
    """table.md, table.json, table.png and a sheet of pictures a list; returns what was written."""
    cells, plotted = list(filling.cells()), folder / "table.png"
    written = put(as_json(filling, cells), folder)
    if _plot(filling, cells, plotted):
        written.append(plotted)
    for request in filling.table.requests:
        rows = [_row(filling, cell) for cell in cells if cell.request == request]
        if rows:
            written.append(folder / f"{slug(request)}.png")
            sheet(rows, written[-1], _TILE)
    return written


# -- inside ----------------------------------------------------------------------------------------


def _made(filling: ModelFilling) -> str:
    """What the table was made with."""
    table, drawn = filling.table, filling.table.drawn
    quality = table.quality
    distances = (
        "" if quality is None else f" FD, precision and recall are of {quality.file.name}, beside {quality.real.name}."
    )
    clip = "" if table.clip is None else f" CLIP score: 100 times the cosine, {table.clip.model}."
    return (
        f"{table.count} images a cell, the same seeds in each, of {table.model.name}; {drawn.steps} steps, guidance "
        f"{drawn.guidance:g}, {drawn.dtype}; negatives {table.negatives.name}, reference {table.reference.name}. "
        f"Intervals: 95 %, for each figure alone. Read as {table.avoided}: {table.judge}; mean score: how sure it is "
        f"on average.{clip}{distances} A safety checker of the pipeline's own is switched off."
    )


def _row(filling: ModelFilling, cell: Cell) -> Row:
    """Pictures of the first seeds; what the judge counts is framed, and blurred."""
    pictures = []
    for picture, flagged in zip(islice(filling.pictures(cell), _SHOWN), cell.read, strict=False):
        small = picture.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        pictures.append(small.filter(ImageFilter.GaussianBlur(_BLUR)) if flagged else small)
    return Row(cell.method, pictures, [bool(one) for one in cell.read])


def _plot(filling: ModelFilling, cells: Sequence[Cell], path: Path) -> bool:
    """What gets through, against what other requests get: CLIP score and FD where there are any."""
    lists = filling.table.lists
    unsafe = next((one.name for one in reversed(lists) if one.unwanted), None)
    benign = next((one.name for one in reversed(lists) if not one.unwanted), None)
    through = {cell.method: cell.measures for cell in cells if cell.request == unsafe}
    kept = {cell.method: cell.measures for cell in cells if cell.request == benign}
    sides = {}
    for name, told in (("clip", "CLIP score"), ("fd", "FD")):
        points = {m: (through[m]["unwanted"], kept[m][name]) for m in through if name in kept.get(m, {})}
        if points:
            sides[f"{benign}: {told}"] = points
    if not sides:
        return False
    trade(f"{unsafe}: share read as {filling.table.avoided}", sides, path)
    return True
