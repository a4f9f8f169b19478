"""A calibration as SVG: how well each kernel denoises at each noise level. Drawn here, coloured by the page's sheet."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10

from markupsafe import Markup, escape

from negindex.calibration import Calibration

WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 44
_LINES = (("literal", "literal kernel"), ("mean", "the set's plain mean"), ("chosen", "chosen kernel"))

Point = tuple[float, float]


def calibration_svg(calibration: Calibration) -> Markup:
    """Errors of held-out rows over the rms radius, by noise level, the latter on a log scale."""
    levels = calibration.levels
    x = [log10(level.s) for level in levels]
    top = max(ceil(10 * max(getattr(level, name) for level in levels for name, _ in _LINES)) / 10, 0.1)
    parts = [*_axes(x, top)]
    for name, label in _LINES:
        points = [_at(x, top, at, getattr(level, name)) for at, level in zip(x, levels, strict=True)]
        parts.append(_line(name, label, points))
    title = escape(f"Error of held-out rows by noise level, for {calibration.kernel.name}")
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        WIDTH, HEIGHT, title, title, Markup("").join(parts)
    )


def _at(x: Sequence[float], top: float, at: float, value: float) -> Point:
    wide = max(x[-1] - x[0], 1e-9)
    across = _LEFT + (at - x[0]) / wide * (WIDTH - _LEFT - _RIGHT)
    return across, HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)


def _line(name: str, label: str, points: Sequence[Point]) -> Markup:
    dots = Markup("").join(
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(name, *point) for point in points
    )
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return Markup('<g><title>{}</title><polyline class="{}" points="{}"/>{}</g>').format(label, name, path, dots)


def _axes(x: Sequence[float], top: float) -> list[Markup]:
    floor, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(_LEFT, _TOP, floor, right)]
    for step in range(5):
        value = top * step / 4
        _, down = _at(x, top, x[0], value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, down, right))
        parts.append(_word(_LEFT - 6, down + 4, f"{value:.2f}", "end"))
    for power in range(ceil(x[0]), int(x[-1] // 1) + 1):
        across, _ = _at(x, top, power, 0)
        parts.append(_word(across, floor + 16, f"{10.0**power:g}", "middle"))
    parts.append(_word((_LEFT + right) / 2, HEIGHT - 8, "noise level s = sigma / alpha", "middle"))
    return parts


def _word(across: float, down: float, words: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(across, down, anchor, words)
