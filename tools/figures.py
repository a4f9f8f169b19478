"""Figures to draw in."""

from __future__ import annotations

from typing import Any

from negindex.errors import NotThere


def blank(width: float, height: float) -> Any:
    """An empty figure of so many inches. Raises NotThere without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotThere(f"{error.name} is not installed; `pip install negindex[eval]` brings it") from error
    return Figure(figsize=(width, height), layout="constrained")
