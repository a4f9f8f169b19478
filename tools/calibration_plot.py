"""A calibration as a picture: how well each kernel denoises at each noise level, and how wide the chosen one is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from negindex.tools.figures import blank

if TYPE_CHECKING:
    from negindex import Calibration

LINES = (("literal", "literal kernel", "C3"), ("mean", "the set's plain mean", "C7"), ("chosen", "chosen kernel", "C0"))


def plot(calibration: Calibration, path: Path) -> None:
    """Write a PNG, or what else the file's ending names. Raises NotThere without matplotlib, OSError."""
    figure = blank(7, 6)
    errors, widths = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    s = [level.s for level in calibration.levels]
    for name, label, colour in LINES:
        errors.plot(s, [getattr(level, name) for level in calibration.levels], "o-", label=label, color=colour)
    errors.set(xscale="log", ylim=(0, None), ylabel="error / rms radius")
    errors.set_title(f"Left-out rows denoised by the others: {calibration.kernel.name}")
    errors.legend()
    widths.plot(s, [level.tau**0.5 * level.s for level in calibration.levels], "o-", color="C0", label="chosen: h")
    widths.plot(s, s, "--", color="C3", label="literal: h = s")
    widths.set(xscale="log", yscale="log", xlabel="noise level s = sigma / alpha", ylabel="bandwidth h")
    widths.legend()
    figure.savefig(path, dpi=120)
