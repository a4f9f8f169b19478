"""``negindex bench engine``: one set asked from this machine's memory and through an engine, in one run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.bench_options import KEEP, SHAPE, THREADS, folder_of, numbers_in
from negindex.tools.common import errors_to_exit_codes, machine
from negindex.tools.options import AS_JSON

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.engines.address import Address
    from negindex.negatives import Negatives
    from negindex.tools.bench_sets import Say, Stored

MEMORY, ENGINE, AGAIN = "memory", "engine", "engine, remembered"
_RADIUS = 0.1  # of near rows, over the rms radius


@click.command(
    epilog="""\b
Example:
  negindex bench engine milvus://127.0.0.1:19530/bench --rows 200000 --shape 4,32,32
"""
)
@click.argument("address")
@click.option("--rows", type=click.IntRange(1000), default=200_000, show_default=True, help="Negatives in the set.")
@SHAPE
@click.option("--levels", default="0.2,1.21,7.28,24.1,80", show_default=True, help="Noise levels s, with commas.")
@click.option("--queries", type=click.IntRange(1), default=8, show_default=True, help="Look-ups a level.")
@click.option("--seed", default=0, show_default=True, help="Of rows, noise and calibration.")
@THREADS
@KEEP
@AS_JSON
@errors_to_exit_codes
def engine(
    address: str,
    rows: int,
    shape: str,
    levels: str,
    queries: int,
    seed: int,
    threads: int,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Push a set's index to the engine at ADDRESS, ask it and this machine's memory the same, and drop it again.

    Rows are simulated latents, calibrated against a quarter as many benign ones. Look-ups are of held-out negatives,
    noised, one by one: from memory; through the engine, with nothing remembered; and through it again, when it
    remembers what was fetched. Then the rows within a tenth of the rms radius, as a near look-up finds them.
    Milliseconds a look-up, median and slowest; and the largest difference of the two means, over the rms radius.
    """
    import torch

    from negindex.engines.address import Address
    from negindex.tools.latents import Latents

    place, size = Address.of(address), numbers_in(shape, int, "--shape")
    torch.set_num_threads(threads)
    say = _quiet if as_json else _say
    with folder_of(keep) as folder:
        told = measured(
            place, Latents(size, seed=seed), rows, numbers_in(levels, float, "--levels"), queries, folder, say
        )
    click.echo(json.dumps(told) if as_json else "\n".join(_lines(told)))


def measured(
    address: Address, population: Any, rows: int, levels: Sequence[float], queries: int, folder: Path, say: Say
) -> dict[str, Any]:
    """Everything that is printed, by name."""
    from negindex.engines import push
    from negindex.engines.milvus import MilvusNegatives
    from negindex.index import is_small
    from negindex.tools import bench_sets
    from negindex.tools.bench_times import resident, timed

    negatives, benign = bench_sets.both(folder, population, rows, max(rows // 4, 200), say)
    collection = negatives.collection
    if collection.index() is None:
        say("calibrating, and building the index")
        _calibrated(negatives, benign, force=is_small(collection.snapshot()))
    say("pushing")
    pushed, found = timed(lambda: push.push(collection, address, say))
    compared, _ = timed(lambda: push.check(collection, address, say=say))
    through = MilvusNegatives(collection, address, timeout=60.0)
    forgetful = MilvusNegatives(collection, address, timeout=60.0, cache_rows=0)
    asked = bench_sets.queries(population, levels, queries)[bench_sets.HELD_OUT]
    memory, radius = collection.pin(), collection.pin().moments().rms
    cells = []
    for s, x in zip(levels, asked, strict=True):
        say(f"asking at s = {s:g}")
        cells.append(_cell(s, x, {MEMORY: memory, ENGINE: forgetful, AGAIN: through}, radius))
    near = {name: _near(one, asked[0], _RADIUS * radius) for name, one in ((MEMORY, memory), (ENGINE, forgetful))}
    index = collection.index()
    push.drop(collection, address)
    return {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "engine": _version(address),
        "rows": rows,
        "shape": list(population.shape),
        "sent": found.missing,
        "seconds_pushed": pushed,
        "seconds_compared": compared,
        "kernel": memory.default_kernel.name,
        "clusters": 0 if index is None else len(index.clusters.counts),
        "bytes_resident": resident(),
        "queries": queries,
        "cells": cells,
        "near": near,
    }


def _calibrated(negatives: Stored, benign: Stored, force: bool) -> None:
    from negindex.errors import OutOfRange

    if force:
        raise OutOfRange("the set is so small that it is scanned, and has no index; ask for more, or larger, rows")
    negatives.collection.calibrate(benign.collection)


def _cell(s: float, x: Tensor, sets: dict[str, Negatives], radius: float) -> dict[str, Any]:
    from negindex import NoiseLevel
    from negindex.tools.bench_times import timed

    told: dict[str, Any] = {"s": s}
    answers = {}
    for name, one in sets.items():
        if name != ENGINE:
            for sample in x.split(1):  # so that memory is warm, and what was fetched is remembered
                one.posterior(sample, NoiseLevel(1.0, s))
        times, means = [], []
        for sample in x.split(1):
            spent, answer = timed(lambda one=one, sample=sample: one.posterior(sample, NoiseLevel(1.0, s)))  # type: ignore[misc]
            times.append(1000 * spent)
            means.append(answer.mean)
        told[name] = [median(times), max(times)]
        answers[name] = means
    told["apart"] = max(
        float((one - other).norm()) / radius for one, other in zip(answers[MEMORY], answers[ENGINE], strict=True)
    )
    return told


def _near(negatives: Negatives, x: Tensor, radius: float) -> list[float]:
    from negindex.tools.bench_times import timed

    negatives.near(x[:1], radius)
    times = [1000 * timed(lambda sample=sample: negatives.near(sample, radius))[0] for sample in x.split(1)]  # type: ignore[misc]
    return [median(times), max(times)]


def _version(address: Address) -> str:
    from negindex.engines.link import Link

    link = Link(address)
    try:
        return link.version()
    finally:
        link.close()


def _lines(told: dict[str, Any]) -> list[str]:
    shape = ",".join(map(str, told["shape"]))
    lines = [
        told["machine"],
        f"{told['engine']}; {told['rows']} rows × {shape}, kernel {told['kernel']}, {told['clusters']} clusters; "
        f"load {told['load']:.1f}",
        f"pushed in {told['seconds_pushed']:.1f} s, compared row by row in {told['seconds_compared']:.1f} s",
        f"ms a look-up, median (slowest) of {told['queries']}:",
        f"{'s':>8} {MEMORY:>16} {ENGINE:>18} {AGAIN:>20} {'apart':>9}",
    ]
    for cell in told["cells"]:
        each = [f"{middle:.0f} ({most:.0f})" for middle, most in (cell[name] for name in (MEMORY, ENGINE, AGAIN))]
        lines.append(f"{cell['s']:>8g} {each[0]:>16} {each[1]:>18} {each[2]:>20} {cell['apart']:>9.1e}")
    near = [f"{middle:.0f} ({most:.0f})" for middle, most in (told["near"][name] for name in (MEMORY, ENGINE))]
    return [*lines, f"{'near':>8} {near[0]:>16} {near[1]:>18}"]


def _say(said: str) -> None:
    click.echo(said, err=True)


def _quiet(said: str) -> None:
    """Nothing on the way."""
