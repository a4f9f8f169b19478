"""Figures to draw in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from negindex.errors import InvalidInput, NotThere


def blank(width: float, height: float) -> Any:
    """An empty figure of so many inches. Raises NotThere without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotThere(f"{error.name} is not installed; `pip install negindex[eval]` brings it") from error
    return Figure(figsize=(width, height), layout="constrained")


def can_be_written(path: Path) -> None:
    """Raise before minutes are spent on what is to be drawn: NotThere, InvalidInput for what is no picture's name."""
    known = blank(1, 1).canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        listed = ", ".join(f".{ending}" for ending in known)
        raise InvalidInput(f"{path} is no picture that can be drawn; end its name in .png, or in one of {listed}")
    if not path.parent.is_dir():
        raise NotThere(f"{path.parent} is no folder, so {path.name} cannot be written there; make it first")
