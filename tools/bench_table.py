"""How the bench of look-ups prints what it measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TIMES = ("ms", "p99", "cpu", "ms, 4", "p99", "cpu", "cold", "p99", "MB", "opened", "weighed", "read")
ERRORS = ("captured", "tail", "true tail", "stated", "true", "worst", "times", "holds", "log norm", "diff")
NAMES = (
    "captured",
    "tail",
    "true_tail",
    "stated",
    "error_of_mean",
    "worst",
    "times",
    "holds",
    "log_norm",
    "difference",
)


def printed(told: dict[str, Any]) -> Iterator[str]:
    """The lines of a report."""
    yield f"{told['machine']}, load {told['load']:.1f} to {told['load_after']:.1f}"
    yield from _set(told)
    yield f"calibrated in {told['seconds_calibrated']:.0f} s: {told['kernel']}"
    yield from told["calibration"]
    for kernel in dict.fromkeys(cell["kernel"] for cell in told["cells"]):
        cells = [cell for cell in told["cells"] if cell["kernel"] == kernel]
        yield f"kernel {kernel}; times"
        yield _line(("s", "query"), TIMES)
        yield from (_line((f"{cell['s']:g}", cell["kind"]), _times(cell)) for cell in cells)
        yield f"kernel {kernel}; errors"
        yield _line(("s", "query"), ERRORS)
        yield from (_line((f"{cell['s']:g}", cell["kind"]), [f"{cell[name]:.3g}" for name in NAMES]) for cell in cells)
    for image in told["images"]:
        yield (
            f"kernel {image['kernel']}: one image, {image['steps']} steps of a trajectory that ask both sets: "
            f"{image['ms'][0]:.0f} ms, {image['ms_cold'][0]:.0f} ms with a cold page cache; "
            f"{image['read_again']:.0%} of the rows that a step reads were read by the step before"
        )


def _set(told: dict[str, Any]) -> Iterator[str]:
    """The set, its index, and the scan of all rows."""
    shape, scanned = ",".join(map(str, told["shape"])), told["bytes_of_rows"] / told["bandwidth"]
    if told["weigh"] is not None:
        yield f"weighed one by one are {told['weigh']} rows a query, by an index of this run's own"
    yield (
        f"{told['rows']} rows of {shape}, {told['space']}, and {told['reference_rows']} benign ones, "
        f"seed {told['seed']}, {told['queries']} queries of each kind; {told['bytes_on_disk'] / 1e9:.2f} GB on disk"
    )
    yield f"rows made in {told['seconds_made']:.0f} s, added in {told['seconds_added']:.0f} s"
    yield (
        f"index of {told['clusters']} clusters built in {told['seconds_built']:.0f} s, "
        f"{told['bytes_of_index'] / 1e6:.0f} MB in memory; the process holds {told['bytes_resident'] / 1e6:.0f} MB "
        "beyond the page cache"
    )
    yield (
        f"set opened in {told['seconds_opened']:.2f} s; one row added in {1000 * told['seconds_to_add']:.0f} ms, "
        f"withdrawn in {1000 * told['seconds_to_withdraw']:.0f} ms, "
        f"out of the index in {1000 * told['seconds_to_leave_out']:.0f} ms"
    )
    yield (
        f"one scan of all rows {told['seconds_scanned']:.2f} s; their bytes at the measured "
        f"{told['bandwidth'] / 1e9:.0f} GB/s {scanned:.2f} s"
    )


def _times(cell: dict[str, Any]) -> list[str]:
    times = [*cell["ms"], cell["ms_busy"], *cell["ms_batch"], cell["ms_batch_busy"], *cell["ms_cold"]]
    spent = [f"{ms:.1f}" for ms in times]
    return [*spent, f"{cell['bytes_cold'] / 1e6:.1f}", *(f"{cell[name]:.0f}" for name in ("opened", "weighed", "read"))]


def _line(names: tuple[str, str], figures: Any) -> str:
    return f"{names[0]:>6} {names[1]:10}" + "".join(f"{figure:>10}" for figure in figures)
