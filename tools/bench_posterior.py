"""``negindex bench posterior``: how fast look-ups in a large set are, and how near to the exact sums of all rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.bench_measure import measured
from negindex.tools.bench_options import KEEP, SHAPE, THREADS, folder_of, numbers_in
from negindex.tools.bench_plan import BATCH, CALIBRATED, LITERAL, REFERENCE, Plan
from negindex.tools.bench_table import printed
from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON

if TYPE_CHECKING:
    from negindex.tools.bench_sets import Population


@click.command(
    epilog="""\b
Example:
  negindex bench posterior --rows 60000 --shape 4,32,32
"""
)
@click.option("--rows", type=click.IntRange(800), default=60_000, show_default=True, help="Negatives in the set.")
@SHAPE
@click.option(
    "--levels", metavar="S,S,...", help="Noise levels s = sigma / alpha.  [default: the 11 that calibration uses]"
)
@click.option(
    "--kernel",
    "kernels",
    type=click.Choice([CALIBRATED, LITERAL]),
    multiple=True,
    default=[CALIBRATED],
    show_default=True,
    help="Whose answers; give it twice for both.",
)
@click.option("--k", type=click.IntRange(1), help="Rows to read in full, at most.")
@click.option("--error", type=click.FloatRange(0, min_open=True), help="Stated error to reach.")
@click.option(
    "--weigh",
    metavar="N",
    type=click.IntRange(16),
    help="Weigh so many rows one by one, by an index in memory, however small the set.",
)
@click.option("--of", "own", metavar="SET", type=click.Path(path_type=Path), help="Measure with this set's rows.")
@click.option("--reference", metavar="SET", type=click.Path(path_type=Path), help="Benign rows beside those of --of.")
@click.option("--queries", type=click.IntRange(BATCH), default=50, show_default=True, help="Of each kind, a level.")
@click.option("--seed", default=0, show_default=True, help="Of rows, queries, calibration and index.")
@THREADS
@KEEP
@AS_JSON
@errors_to_exit_codes
def posterior(
    rows: int,
    shape: str,
    levels: str | None,
    kernels: Sequence[str],
    k: int | None,
    error: float | None,
    weigh: int | None,
    own: Path | None,
    reference: Path | None,
    queries: int,
    seed: int,
    threads: int,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Time look-ups in a large set, and hold them against the exact sums over all rows.

    Rows are simulated latents in a collection on disk, with a quarter as many benign ones beside them as a reference;
    or copies of your own sets' rows, less some that are held out. Asked are held-out negatives, benign images, and
    what a simulated model sees on a sampler's way down.

    Times are milliseconds, median and 99th percentile: alone, four at once, and alone with the files dropped from
    the page cache; but for those, each was asked once before. cpu: what the processor spent, median; MB: what came
    from the disk. Errors are of the posterior mean in the full space, over the rms radius. holds: how often the
    stated one is at least the true one; times: how many times, in the median, errors below 0.001 aside; diff: the
    error of E_ref - E_unsafe, over its norm. Exact sums are of the same kernel in the same run: float64 weights,
    float32 products summed in float64.
    """
    import torch

    from negindex.calibration import LEVELS

    torch.set_num_threads(threads)
    at = LEVELS if levels is None else numbers_in(levels, float, "--levels")
    if (own is None) != (reference is None):
        raise click.UsageError("--of and --reference go together: a set, and benign rows to compare with")
    if own is not None and keep is not None:
        raise click.UsageError("--keep is for simulated rows; copies of a set's rows are not kept")
    with folder_of(keep) as folder:
        if own is None or reference is None:
            population, negatives, benign = _simulated(rows, numbers_in(shape, int, "--shape"), seed)
        else:
            population, negatives, benign = _taken(own, reference, queries, seed)
        plan = Plan(negatives, benign, sorted(at), tuple(kernels), k, error, queries, weigh, seed)
        told = measured(plan, population, folder, lambda said: click.echo(said, err=True))
    click.echo(json.dumps(told) if as_json else "\n".join(printed(told)))


def _simulated(rows: int, shape: tuple[int, ...], seed: int) -> tuple[Population, int, int]:
    """Rows from a generator, and how many negatives and benign ones."""
    from negindex.tools.latents import Latents

    return Latents(shape, seed=seed), rows, rows // REFERENCE


def _taken(own: Path, reference: Path, queries: int, seed: int) -> tuple[Population, int, int]:
    """Rows of two sets, and how many of each are searched."""
    from negindex import Collection
    from negindex.tools.bench_taken import Taken

    population = Taken(Collection.open(own).snapshot(), Collection.open(reference).snapshot(), queries, seed)
    return population, population.count("rows"), population.count("benign")
