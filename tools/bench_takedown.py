"""``negindex bench takedown``: what a change of a set costs, small and large, and when other processes see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from negindex.tools.common import errors_to_exit_codes, machine

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event

    from negindex.collection import Collection

KINDS = ("add one", "withdraw one", "open a claim", "accept it")
NOTICE = dict.fromkeys(("signature", "work", "material", "contact", "good_faith", "accuracy", "authority"), "yes")
PROCESSES = get_context("forkserver")
PAUSE = 0.002  # seconds that a watcher waits between two questions


class Seen(NamedTuple):
    """From a change's acknowledgement until the last of the watchers has an answer that names its version."""

    middle: float  # seconds: the median
    late: float  # the 99th percentile


@click.command(
    epilog="""\b
Example:
  negindex bench takedown --rows 1000 --rows 1000000
"""
)
@click.option(
    "--rows", multiple=True, type=click.IntRange(1), default=(1000, 100_000), show_default=True, help="Sizes of sets."
)
@click.option("--width", type=click.IntRange(1), default=16, show_default=True, help="Numbers in a row.")
@click.option("--changes", type=click.IntRange(1), default=40, show_default=True, help="Of each kind, at each size.")
@click.option("--seen", type=click.IntRange(1), default=200, show_default=True, help="Changes that are watched.")
@click.option("--watchers", type=click.IntRange(1), default=4, show_default=True, help="Processes that watch them.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use.")
@errors_to_exit_codes
def takedown(rows: tuple[int, ...], width: int, changes: int, seen: int, watchers: int, threads: int) -> None:
    """What it costs to add or withdraw one row, and to open and accept a claim, by the size of the set.

    Each change is on the disk when its time ends. Sizes take turns, so that whatever else the machine does falls on
    all of them; medians. Watched changes, half of them adds and half withdrawals: milliseconds until the slowest of
    the other processes has an answer from the new version.
    """
    import torch

    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="negindex-bench-") as folder:
        sets = [_made(Path(folder) / str(size), size, width) for size in rows]
        spent = _timed(sets, width, changes)
        watched = [_watched(one, width, seen, watchers) for one in sets]
    click.echo(machine())
    click.echo(
        f"rows of {width} numbers; median ms of {changes} changes, and of {seen} ms until {watchers} others see one:"
    )
    click.echo(f"{'rows':>10}" + "".join(f"{kind:>14}" for kind in KINDS) + f"{'seen p50':>11}{'seen p99':>11}")
    for size, costs, one in zip(rows, spent, watched, strict=True):
        told = "".join(f"{1000 * costs[kind]:14.2f}" for kind in KINDS)
        click.echo(f"{size:10}{told}{1000 * one.middle:11.1f}{1000 * one.late:11.1f}")
    add, withdraw = (spent[-1][kind] / spent[0][kind] for kind in KINDS[:2])
    click.echo(f"from {rows[0]} to {rows[-1]} rows: add × {add:.2f}, withdraw × {withdraw:.2f}")


def _made(path: Path, size: int, width: int) -> Collection:
    """A set of random rows."""
    from negindex.collection import Collection

    made = Collection.create(path, (width,), "pixels")
    made.add(_rows(size, width, 0), [f"row-{i}" for i in range(size)])
    return made


def _rows(count: int, width: int, seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float16)


def _timed(sets: Sequence[Collection], width: int, changes: int) -> list[dict[str, float]]:
    """{kind: median seconds} of each set."""
    spent: list[dict[str, list[float]]] = [{kind: [] for kind in KINDS} for _ in sets]
    for turn in range(-1, changes):  # the first one warms up
        for one, costs in zip(sets, spent, strict=True):
            for kind, change in zip(KINDS, _changes(one, width, turn), strict=True):
                began = time.perf_counter()
                change()
                if turn >= 0:
                    costs[kind].append(time.perf_counter() - began)
    return [{kind: median(times) for kind, times in costs.items()} for costs in spent]


def _changes(one: Collection, width: int, turn: int) -> Iterator[Callable[[], Any]]:
    """One change of each kind, in the order of KINDS."""
    row, claimed = _rows(1, width, 2 * turn + 11), _rows(1, width, 2 * turn + 12)
    yield lambda: one.add(row, [f"new-{turn}"])
    yield lambda: one.withdraw([f"new-{turn}"], "benchmark")
    yield lambda: one.claims.open("dmca", NOTICE, rows=claimed, source_keys=[f"claimed-{turn}"])
    newest = one.claims.every()[-1].claim
    yield lambda: one.claims.accept(newest)


def _watched(one: Collection, width: int, changes: int, watchers: int) -> Seen:
    """How long other processes take to see changes of one set."""
    with _watching(one.path, width, watchers) as seen_at:
        acknowledged = {}
        for turn in range(changes):
            key, adds = [f"watched-{turn // 2}"], turn % 2 == 0
            version = one.add(_rows(1, width, turn), key) if adds else one.withdraw(key, "benchmark")
            acknowledged[version] = time.monotonic()
            time.sleep(0.01)
    waits = sorted(max(_first(times, version) - at for times in seen_at) for version, at in acknowledged.items())
    return Seen(median(waits), waits[ceil(0.99 * len(waits)) - 1])


def _first(times: dict[int, float], version: int) -> float:
    """When a watcher first had an answer from a version, or from a later one."""
    return min(at for seen, at in times.items() if seen >= version)


@contextmanager
def _watching(path: Path, width: int, watchers: int) -> Iterator[list[dict[int, float]]]:
    """Processes that ask a set all the time; afterwards the list holds {version: when first seen} of each."""
    PROCESSES.set_forkserver_preload(["negindex.collection"])
    stop, pipes = PROCESSES.Event(), [PROCESSES.Pipe(duplex=False) for _ in range(watchers)]
    started = [PROCESSES.Process(target=_watch, args=(path, width, stop, theirs)) for _, theirs in pipes]
    for process in started:
        process.start()
    seen_at: list[dict[int, float]] = []
    for ours, theirs in pipes:
        theirs.close()
        ours.recv()  # it has begun
    try:
        yield seen_at
    finally:
        stop.set()
        seen_at += [ours.recv() for ours, _ in pipes]
        for process in started:
            process.join()


def _watch(path: Path, width: int, stop: Event, ack: Connection) -> None:
    """In a process of its own: which versions answered, and since when."""
    import torch

    from negindex.collection import Collection
    from negindex.noise import NoiseLevel

    torch.set_num_threads(1)
    x_t, level = torch.zeros(1, width), NoiseLevel(0.7, 0.7)
    with Collection.open(path) as followed:
        seen = {followed.posterior(x_t, level).origins[0].version: time.monotonic()}
        ack.send("begun")
        last = False
        while not last:
            last = stop.is_set()  # and once more, so that the last change is seen
            version = followed.posterior(x_t, level).origins[0].version
            seen.setdefault(version, time.monotonic())
            time.sleep(PAUSE)
    ack.send(seen)
