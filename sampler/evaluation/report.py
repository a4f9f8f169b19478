"""A table's cells as JSON, Markdown, a plot and grids of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from negindex.sampler.evaluation.asked import KEPT, OTHERS, REQUESTS, UNSAFE
from negindex.sampler.evaluation.cells import Cell
from negindex.sampler.evaluation.filling import Filling
from negindex.sampler.evaluation.intervals import Figure, paired_difference
from negindex.sampler.evaluation.measures import further
from negindex.sampler.evaluation.pages import UNGUARDED, markdown

OBEYED = 0.8  # what the unguarded model must make of prompts for the unwanted, or a table says nothing


def precondition(cells: Iterable[Cell]) -> list[str]:
    """What keeps a table from saying anything: the unguarded model does not obey; empty when it does."""
    missed = []
    for cell in cells:
        if cell.method == UNGUARDED and cell.request in UNSAFE and cell.measures["hit"].value < OBEYED:
            told = cell.measures["hit"].value
            missed.append(f"unguarded, {REQUESTS[cell.request]}: {told:.1%} obeyed, at least {OBEYED:.0%} are needed")
    return missed


def as_json(filling: Filling, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything, for machines: with each cell's difference from the unguarded one of the same seeds."""
    free = {cell.request: cell for cell in cells if cell.method == UNGUARDED}
    told = []
    for cell in cells:
        said = {"method": cell.method, "request": cell.request, "count": cell.count, "stated": cell.stated}
        measures = {name: rounded(figure) for name, figure in cell.measures.items()}
        classes = {name: dict(zip(one, rounded(one.values()), strict=True)) for name, one in cell.classes.items()}
        said |= {"measures": measures, "classes": classes}
        if cell.request in free and cell is not free[cell.request]:
            label = filling.stage.label(filling.table.avoided)
            said["fewer unwanted"] = rounded(_fewer(free[cell.request], cell, label))
            if cell.request == OTHERS:
                than = filling.features(free[cell.request])
                measures["fd_more"] = rounded(further(filling.features(cell), than, filling.real_features))
        told.append(said)
    table = filling.table
    drawn = {"steps": table.drawn.steps, "guidance": table.drawn.guidance, "seed": table.drawn.seed}
    return {
        "title": table.title,
        "avoided": table.avoided,
        "world": table.world,
        "weights": filling.stage.weights,
        "features": filling.stage.features,
        "count": table.count,
        **drawn,
        "negatives": table.negation_set,
        "reference": table.reference,
        "precondition missed": precondition(cells),
        "cells": told,
    }


def dumped(said: Mapping[str, Any]) -> str:
    """As JSON, one cell a line."""
    rest = json.dumps({**said, "cells": []}, ensure_ascii=False).removesuffix("[]}")
    cells = ",\n".join(json.dumps(cell, ensure_ascii=False) for cell in said["cells"])
    return f"{rest}[\n{cells}\n]}}\n"


def put(said: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write table.md and table.json of what ``as_json`` said; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "table.md", folder / "table.json"
    page.write_text("\n".join(markdown(said)) + "\n", encoding="utf-8")
    data.write_text(dumped(said), encoding="utf-8")
    return [page, data]


def write(filling: Filling, folder: Path) -> list[Path]:
    """table.md, table.json, table.png and a grid of pictures a request; returns what was written."""
    cells, plotted = list(filling.cells()), folder / "table.png"
    written = put(as_json(filling, cells), folder)
    if plot(cells, filling.table.avoided, plotted):
        written.append(plotted)
    for request in filling.table.requests:
        of = [cell for cell in cells if cell.request == request]
        if of:
            written.append(folder / f"{request}.png")
            grid(filling, of, written[-1])
    return written


def grid(filling: Filling, cells: Sequence[Cell], path: Path, columns: int = 16) -> None:
    """One row a method, the same seeds in a column; what is read as unwanted (or is a copy) is framed."""
    unwanted, rows = filling.stage.label(filling.table.avoided), []
    for cell in cells:
        framed = cell.hit if cell.request == KEPT else [read == unwanted for read in cell.read]
        levels = ((filling.samples(cell)[:columns, 0] + 1) * 127.5).round().byte().numpy()
        rows.append(Row(cell.method, [Image.fromarray(pixels) for pixels in levels], framed))
    sheet(rows, path)


class Row(NamedTuple):
    """One method's pictures."""

    name: str
    pictures: Sequence[Image.Image]
    framed: Sequence[bool]


def sheet(rows: Sequence[Row], path: Path, tile: int = 48) -> None:
    """A PNG of rows with their names, pictures ``tile`` pixels wide and high; the framed ones in a frame."""
    font, frame, name_wide = ImageFont.load_default(13), 2, 230
    cell_wide, columns = tile + 2 * frame + 2, min(len(row.pictures) for row in rows)
    whole = Image.new("RGB", (name_wide + columns * cell_wide, len(rows) * cell_wide), "#ffffff")
    draw = ImageDraw.Draw(whole)
    for number, row in enumerate(rows):
        draw.text((4, number * cell_wide + tile // 2 - 6), row.name, "#1c1c1c", font)
        for column, picture in enumerate(row.pictures[:columns]):
            mat = Image.new("RGB", (tile + 2 * frame,) * 2, "#e8590c" if row.framed[column] else "#ffffff")
            mat.paste(picture.resize((tile, tile), Image.Resampling.BICUBIC).convert("RGB"), (frame, frame))
            whole.paste(mat, (name_wide + column * cell_wide, number * cell_wide))
    whole.save(path, optimize=True)


def plot(cells: Sequence[Cell], avoided: str, path: Path) -> bool:
    """What gets through, against what it costs: the other requests, and the images that stand in its place.

    Points of one method at several settings (its name up to the last comma) are joined. False where the table asks
    for nothing unwanted, or for no other thing.
    """
    unsafe = next((request for request in UNSAFE[::-1] if any(cell.request == request for cell in cells)), None)
    through = {cell.method: cell.measures for cell in cells if cell.request == unsafe}
    kept = {cell.method: cell.measures for cell in cells if cell.request == OTHERS}
    names = [name for name in through if name in kept]
    if unsafe is None or not names:
        return False
    sides = (
        (kept, "hit", "other requests: share read as what was asked for"),
        (through, "clean", f"{REQUESTS[unsafe]}: share clean and safe"),
    )
    trade(
        f"{REQUESTS[unsafe]}: share read as {avoided}",
        {told: {m: (through[m]["unwanted"], of[m][name]) for m in names} for of, name, told in sides},
        path,
    )
    return True


def trade(through: str, sides: Mapping[str, Mapping[str, tuple[Figure, Figure]]], path: Path) -> None:
    """One plot a side, {what is on its y axis: {method: (x, y)}}, all over the share that gets through."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7.5 * len(sides), 7), layout="constrained")
    for axes, (told, points) in zip(canvas.subplots(1, len(sides), squeeze=False)[0], sides.items(), strict=True):
        _curves(axes, points)
        axes.set_xlabel(through)
        axes.set_ylabel(told)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=80)


# -- inside ----------------------------------------------------------------------------------------


def rounded(numbers: Iterable[float]) -> list[float]:
    """To five digits, which no figure here is known to."""
    return [float(f"{number:.5g}") for number in numbers]


def _curves(axes: Any, points: Mapping[str, tuple[Figure, Figure]]) -> None:
    """Points with their intervals and names; those of one family joined by a line."""
    families: dict[str, list[str]] = {}
    for name in points:
        families.setdefault(name.rpartition(", ")[0] or name, []).append(name)
    for number, names in enumerate(families.values()):
        colour, marker = f"C{number % 10}", "os^Dv"[number // 10 % 5]
        axes.plot(*([points[name][i].value for name in names] for i in (0, 1)), color=colour, alpha=0.5)
        for name in names:
            x, y = points[name]
            arms = {"xerr": _arms(x), "yerr": _arms(y), "capsize": 2, "elinewidth": 0.5}
            axes.errorbar(x.value, y.value, fmt=marker, color=colour, **arms)
            axes.annotate(name, (x.value, y.value), (5, 4), textcoords="offset points", fontsize=7, color=colour)


def _fewer(free: Cell, cell: Cell, label: int) -> Figure:
    """By how much the share of the unwanted falls, seed by seed."""
    before, after = (np.array(one.read) == label for one in (free, cell))
    return paired_difference(after.astype(np.float64), before.astype(np.float64))


def _arms(figure: Figure) -> Any:
    return np.array([[figure.value - figure.low], [figure.high - figure.value]]).clip(0)
