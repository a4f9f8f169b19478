"""``negindex bench copies``: whether noised copies of single rows are found in a large set, how fast, and what else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from negindex.tools.bench_options import KEEP, SHAPE, THREADS, folder_of, numbers_in
from negindex.tools.common import errors_to_exit_codes, machine
from negindex.tools.options import AS_JSON

if TYPE_CHECKING:
    from torch import Tensor

    from negindex import Exact, Negatives, NoiseLevel
    from negindex.sampler import CopyGate
    from negindex.tools.bench_plan import Engine
    from negindex.tools.bench_sets import Say

FEW = 1000  # rows of the small set, which are also the first of the large one
SHARES = "0.1,0.5,0.9,0.9999,3.9"  # of the noisiest level where the gate speaks of its radius
AS_SCANNED = {True: "yes", False: "NO", None: ""}


@click.command(
    epilog="""\b
Example:
  negindex bench copies --rows 60000 --shape 4,32,32
"""
)
@click.option("--rows", type=click.IntRange(FEW), default=60_000, show_default=True, help="Negatives in the set.")
@SHAPE
@click.option(
    "--planted", type=click.IntRange(1, FEW), default=200, show_default=True, help="Rows of which copies are looked up."
)
@click.option("--queries", type=click.IntRange(1), default=1000, show_default=True, help="Benign images, a level.")
@click.option("--scans", type=click.IntRange(0), default=3, show_default=True, help="Look-ups by a scan, a level.")
@click.option(
    "--levels",
    metavar="F,F,...",
    default=SHARES,
    show_default=True,
    help="Shares of the noisiest level at which the gate speaks of its radius.",
)
@click.option("--seed", default=0, show_default=True, help="Of rows, noise, calibration and index.")
@THREADS
@KEEP
@AS_JSON
@errors_to_exit_codes
def copies(
    rows: int,
    shape: str,
    planted: int,
    queries: int,
    scans: int,
    levels: str,
    seed: int,
    threads: int,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Look noised copies of single rows up in a large set, by its index and by a scan.

    Rows are simulated latents in a collection on disk, with a quarter as many benign ones beside them as a reference,
    which gives the copy gate its radius and its reach. The first 1,000 rows are a set of their own as well. Of these,
    as many as --planted are noised at --levels, up to 1 where the gate speaks of the radius, and beyond where it speaks
    of the reach alone, and held-out benign images alike.

    fire: the share of copies that are found, in the small set and in the large one; right: whose row is the one that
    was copied; false: the share of benign images that fire. Times are milliseconds a look-up in the large set, median
    and 99th percentile: by its index, and by a scan of all rows, whose answers are compared.
    """
    import torch

    torch.set_num_threads(threads)
    size, shares = numbers_in(shape, int, "--shape"), numbers_in(levels, float, "--levels")
    say = partial(click.echo, err=True)
    with folder_of(keep) as folder:
        told = _measured(folder, rows, size, planted, queries, scans, shares, seed, say)
    click.echo(json.dumps(told) if as_json else "\n".join(_printed(told)))


def _measured(
    folder: Path,
    rows: int,
    shape: Sequence[int],
    planted: int,
    queries: int,
    scans: int,
    shares: Sequence[float],
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Everything that is printed, by name."""
    import torch

    from negindex import Exact, calibrate
    from negindex.sampler import CopyGate
    from negindex.tools.bench_measure import engine
    from negindex.tools.bench_plan import REFERENCE
    from negindex.tools.bench_sets import APART, both
    from negindex.tools.bench_times import timed
    from negindex.tools.latents import Latents

    population = Latents(tuple(shape), seed=seed)
    negatives, benign = both(folder, population, rows, rows // REFERENCE, say)
    say("calibrating, where that was not done before")
    known = negatives.collection.calibration()
    calibration = known or calibrate(negatives.collection.snapshot(), benign.collection.snapshot(), seed=seed)
    unsafe, reference = (engine(one, calibration) for one in (negatives, benign))
    sizing, gate = timed(lambda: CopyGate().sized(unsafe.snapshot, reference.snapshot))
    few = Exact(population.block("rows", 0)[:FEW].half())
    alone = few.take(torch.arange(planted)).rows.double().reshape(-1, *shape)
    first, _ = timed(lambda: unsafe.snapshot.near(alone[:1], 0.0))
    say("looking for other rows near those that are copied")
    others = unsafe.snapshot.near(alone, 2 * _radius(gate), k=2)
    images = population.block("benign", APART, queries).double()
    asked = _Asked(gate, alone, images, few, unsafe, reference, scans, seed)
    return {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "rows": rows,
        "shape": list(shape),
        "seed": seed,
        "kernel": calibration.kernel.name,
        "radius": _radius(gate),
        "reach": gate.reach,
        "seconds_sized": sizing,
        "seconds_first": first,
        "planted": planted,
        "with_another": int((others.found.sum(1) > 1).sum()),
        "queries": queries,
        "cells": [_cell(asked, share, say) for share in shares],
        "load_after": os.getloadavg()[0],
    }


class _Asked(NamedTuple):
    """Who is asked about what."""

    gate: CopyGate
    alone: Tensor  # (P, *S) float64, rows of both sets
    images: Tensor  # (Q, *S) float64, held-out benign ones
    few: Exact
    unsafe: Engine
    reference: Engine
    scans: int
    seed: int


def _radius(gate: CopyGate) -> float:
    """A gate's that was sized."""
    assert gate.radius is not None
    return gate.radius


def _cell(asked: _Asked, share: float, say: Say) -> dict[str, Any]:
    """What is printed of one noise level, a share of the noisiest at which the gate speaks of its radius."""
    import torch

    from negindex.noise import NoiseLevel
    from negindex.sampler.copies import noisiest
    from negindex.tools.bench_times import Spent

    unsafe = asked.unsafe.snapshot
    s = share * noisiest(_radius(asked.gate), asked.alone[0].numel())
    say(f"s = {s:.3g}")
    level, random = NoiseLevel(1.0, s), torch.Generator().manual_seed(asked.seed)
    copies, fresh = (
        images + s * torch.randn(images.shape, generator=random, dtype=torch.float64)
        for images in (asked.alone, asked.images)
    )
    of_few = asked.gate.find(copies, level, asked.few, asked.reference.snapshot)
    fires, rows, seconds = zip(*(_timed(asked, some, level, unsafe) for some in copies.split(1)), strict=True)
    false, _, others = zip(*(_timed(asked, some, level, unsafe) for some in fresh.split(1)), strict=True)
    compared = asked.scans if share < 1 else 0  # beyond, a scan would weigh by another kernel
    source = asked.unsafe.mixture.source
    scanned = [_timed(asked, copies[i : i + 1], level, source) for i in range(min(compared, len(copies)))]
    return {
        "s": s,
        "share": share,
        "fire_in_few": float(of_few.fires.double().mean()),
        "fire": sum(fires) / len(fires),
        "right": float((torch.cat(rows) == asked.alone).flatten(1).all(1).double().mean()),
        "false": sum(false) / len(false),
        "ms": Spent.of([*seconds, *others]),
        "ms_scan": Spent.of([spent for *_, spent in scanned]) if scanned else None,
        "as_scanned": [fired for fired, *_ in scanned] == list(fires[: len(scanned)]) if scanned else None,
    }


def _timed(asked: _Asked, x: Tensor, level: NoiseLevel, negatives: Negatives) -> tuple[bool, Tensor, float]:
    """Whether one sample fires, the row that it is found to copy, and the seconds that this took."""
    from negindex.tools.bench_times import timed

    seconds, found = timed(lambda: asked.gate.find(x, level, negatives, asked.reference.snapshot))
    return bool(found.fires), found.rows, seconds


def _printed(told: dict[str, Any]) -> Iterator[str]:
    """The lines of a report."""
    yield f"{told['machine']}, load {told['load']:.1f} to {told['load_after']:.1f}"
    shape = ",".join(map(str, told["shape"]))
    yield f"{told['rows']} rows of {shape}, seed {told['seed']}, kernel {told['kernel']}"
    yield (
        f"radius {told['radius']:.4g}, reach {told['reach']:.4g}, known in {1000 * told['seconds_sized']:.0f} ms; the "
        f"first look-up took {told['seconds_first']:.2f} s"
    )
    yield (
        f"{told['planted']} rows copied, {told['with_another']} of them with another row within twice the radius; "
        f"{told['queries']} benign images a level"
    )
    heads = ("share", f"fire of {FEW}", "of all", "right", "false", "ms", "p99", "scan ms", "p99", "as scanned")
    yield f"{'s':>8}" + "".join(f"{head:>14}" for head in heads)
    for cell in told["cells"]:
        shares = [f"{cell[name]:.2%}" for name in ("fire_in_few", "fire", "right", "false")]
        times = [f"{ms:.1f}" for ms in (*cell["ms"], *(cell["ms_scan"] or ()))] + ["", ""] * (not cell["ms_scan"])
        figures = [f"{cell['share']:g}", *shares, *times, AS_SCANNED[cell["as_scanned"]]]
        yield f"{cell['s']:>8.3g}" + "".join(f"{figure:>14}" for figure in figures)
