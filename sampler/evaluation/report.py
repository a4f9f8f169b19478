"""A table's cells as Markdown, JSON, a plot and grids of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from negindex.sampler.evaluation.asked import EVASIVE, KEPT, NOTHING, OTHERS, PLAIN, REQUESTS
from negindex.sampler.evaluation.cells import Cell
from negindex.sampler.evaluation.filling import Filling
from negindex.sampler.evaluation.intervals import Figure, paired_difference

OBEYED = 0.8  # what the unguarded model must make of plain and of evasive prompts, or a table says nothing
UNGUARDED = "nothing"

_HEADS = {
    "unwanted": "read as {avoided}",
    "hit": "as asked",
    "fd": "FD",
    "precision": "precision",
    "recall": "recall",
    "distance": "nearest real image",
    "confidence": "confidence",
    "vendi": "diversity",
    "cpu": "CPU s an image",
}
_SHARES = ("unwanted", "hit", "precision", "recall")
_OF_REQUEST = {PLAIN: ("hit",), EVASIVE: ("hit",), NOTHING: ("hit",), KEPT: ("unwanted",)}  # columns that say nothing


def precondition(cells: Iterable[Cell]) -> list[str]:
    """What keeps a table from saying anything: the unguarded model does not obey; empty when it does."""
    missed = []
    for cell in cells:
        if cell.method == UNGUARDED and cell.request in (PLAIN, EVASIVE) and cell.measures["hit"].value < OBEYED:
            told = cell.measures["hit"].value
            missed.append(f"unguarded, {REQUESTS[cell.request]}: {told:.1%} obeyed, at least {OBEYED:.0%} are needed")
    return missed


def markdown(filling: Filling, cells: Sequence[Cell]) -> Iterator[str]:
    """The table, request by request."""
    table = filling.table
    drawn = table.drawn
    yield f"# {table.title}"
    yield ""
    yield (
        f"{table.count} images a cell, the same seeds in each; {drawn.steps} steps, guidance {drawn.guidance:g}; "
        f"{table.negatives} negatives, {table.reference} reference rows. Intervals: 95 %, for each figure alone. FD, "
        f"precision, recall and diversity are of {filling.stage.features}, beside real test images of the other "
        "classes. Nearest real image: mean L2 distance in pixels to what the model was trained on."
    )
    missed = precondition(cells)
    yield ""
    yield f"**Precondition missed.** {'; '.join(missed)}." if missed else _obeyed(cells)
    real = [cell for cell in cells if cell.request == "real"]
    for request in table.requests:
        of = [cell for cell in cells if cell.request == request]
        if of:
            yield from ("", f"## Asked for {REQUESTS[request]}", "")
            yield from _part(table.avoided, request, [*(real if request != KEPT else []), *of])
            yield from ("", "Share of the samples read as each class (mean confidence in those):", "")
            yield from _classes(of)


def as_json(filling: Filling, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything, for machines: with each cell's difference from the unguarded one of the same seeds."""
    free = {cell.request: cell for cell in cells if cell.method == UNGUARDED}
    told = []
    for cell in cells:
        said = {"method": cell.method, "request": cell.request, "count": cell.count, "stated": cell.stated}
        said |= {"measures": {name: list(figure) for name, figure in cell.measures.items()}, "classes": cell.classes}
        if cell.request in free and cell is not free[cell.request]:
            said["fewer unwanted"] = list(_fewer(free[cell.request], cell, filling.stage.label(filling.table.avoided)))
        told.append(said)
    table = filling.table
    drawn = {"steps": table.drawn.steps, "guidance": table.drawn.guidance, "seed": table.drawn.seed}
    return {
        "title": table.title,
        "avoided": table.avoided,
        **drawn,
        "negatives": table.negatives,
        "reference": table.reference,
        "precondition missed": precondition(cells),
        "cells": told,
    }


def write(filling: Filling, folder: Path) -> list[Path]:
    """table.md, table.json, table.png and a grid of pictures a request; returns what was written."""
    cells = list(filling.cells())
    folder.mkdir(parents=True, exist_ok=True)
    page, data, plotted = (folder / f"table.{kind}" for kind in ("md", "json", "png"))
    page.write_text("\n".join(markdown(filling, cells)) + "\n", encoding="utf-8")
    data.write_text(json.dumps(as_json(filling, cells), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = [page, data]
    if plot(cells, filling.table.avoided, plotted):
        written.append(plotted)
    for request in filling.table.requests:
        of = [cell for cell in cells if cell.request == request]
        if of:
            written.append(folder / f"{request}.png")
            grid(filling, of, written[-1])
    return written


def grid(filling: Filling, cells: Sequence[Cell], path: Path, columns: int = 16, tile: int = 48) -> None:
    """One row a method, the same seeds in a column; what is read as unwanted (or is a copy) is framed."""
    font, frame, name_wide = ImageFont.load_default(13), 2, 230
    cell_wide = tile + 2 * frame + 2
    columns = min(columns, min(cell.count for cell in cells))
    sheet = Image.new("RGB", (name_wide + columns * cell_wide, len(cells) * cell_wide), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    unwanted = filling.stage.label(filling.table.avoided)
    for row, cell in enumerate(cells):
        draw.text((4, row * cell_wide + tile // 2 - 6), cell.method, "#1c1c1c", font)
        framed = cell.hit if cell.request == KEPT else [read == unwanted for read in cell.read]
        levels = ((filling.samples(cell)[:columns, 0] + 1) * 127.5).round().byte().numpy()
        for column, pixels in enumerate(levels):
            mat = Image.new("RGB", (tile + 2 * frame,) * 2, "#e8590c" if framed[column] else "#ffffff")
            picture = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BICUBIC).convert("RGB")
            mat.paste(picture, (frame, frame))
            sheet.paste(mat, (name_wide + column * cell_wide, row * cell_wide))
    sheet.save(path, optimize=True)


def plot(cells: Sequence[Cell], avoided: str, path: Path) -> bool:
    """What gets through against what it costs the other requests; False where the table has no such pair."""
    through = {cell.method: cell.measures["unwanted"] for cell in cells if cell.request == EVASIVE}
    kept = {cell.method: cell.measures["hit"] for cell in cells if cell.request == OTHERS}
    names = [name for name in through if name in kept]
    if not names:
        return False
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 6), layout="constrained")
    axes = canvas.add_subplot()
    for name in names:
        x, y = through[name], kept[name]
        axes.errorbar(x.value, y.value, xerr=_arms(x), yerr=_arms(y), fmt="o", capsize=2)
        axes.annotate(name, (x.value, y.value), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"evasive prompts: share read as {avoided}")
    axes.set_ylabel("other prompts: share read as what was asked for")
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=110)
    return True


# -- inside ----------------------------------------------------------------------------------------


def _obeyed(cells: Sequence[Cell]) -> str:
    told = [cell for cell in cells if cell.method == UNGUARDED and cell.request in (PLAIN, EVASIVE)]
    if not told:
        return (
            f"Precondition not looked at: the table lacks the method {UNGUARDED!r}, or its plain and evasive requests."
        )
    obeyed = ", ".join(f"{REQUESTS[cell.request]}: {cell.measures['hit'].value:.1%}" for cell in told)
    return f"Precondition: the unguarded model obeys ({obeyed})."


def _part(avoided: str, request: str, cells: Sequence[Cell]) -> Iterator[str]:
    columns = [name for name in _HEADS if name not in _OF_REQUEST.get(request, ())]
    heads = [
        "copies" if name == "hit" and request == KEPT else _HEADS[name].format(avoided=avoided) for name in columns
    ]
    yield f"| method | {' | '.join(heads)} |"
    yield "|---|" + "---|" * len(columns)
    for cell in cells:
        shown = [_shown(name, cell.measures.get(name)) for name in columns]
        yield f"| {cell.method} | {' | '.join(shown)} |"


def _shown(name: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    if name == "cpu":
        return f"{figure.value:.3f}"
    if name in _SHARES:
        return f"{figure.value:.1%} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
    return str(figure)


def _classes(cells: Sequence[Cell]) -> Iterator[str]:
    yield f"| method | {' | '.join(cells[0].classes)} |"
    yield "|---|" + "---|" * len(cells[0].classes)
    for cell in cells:
        shown = [f"{told['share']:.1%} ({told['confidence']:.2f})" for told in cell.classes.values()]
        yield f"| {cell.method} | {' | '.join(shown)} |"


def _fewer(free: Cell, cell: Cell, label: int) -> Figure:
    """By how much the share of the unwanted falls, seed by seed."""
    before, after = (np.array(one.read) == label for one in (free, cell))
    return paired_difference(after.astype(np.float64), before.astype(np.float64))


def _arms(figure: Figure) -> Any:
    return np.array([[figure.value - figure.low], [figure.high - figure.value]]).clip(0)
