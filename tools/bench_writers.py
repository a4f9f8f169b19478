"""``negindex bench writers``: several writers of one set, by themselves and through one service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

import click

from negindex.errors import Damaged
from negindex.tools.bench_options import folder_of
from negindex.tools.bench_takedown import PROCESSES
from negindex.tools.bench_times import Spent
from negindex.tools.common import errors_to_exit_codes, machine

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event

    from negindex.collection import Collection

NAME = "bench"
WIDTH = 16  # numbers in a row
START = 120.0  # seconds within which the service must answer
SYNCS = 200  # of the disk alone
BLOCK = 4096  # bytes


class Wrote(NamedTuple):
    """What one writer did."""

    seconds: list[float]  # of each change that was acknowledged
    failures: list[str]
    left: list[str]  # what it was told is in force, or open, at the end


Changing = Callable[[int], tuple[list[str], list[str]]]  # of a turn: what came into force, and what went out of it


class Way(NamedTuple):
    """One way of writing, and how what it leaves is read."""

    name: str
    made: Callable[[Path], AbstractContextManager[None]]  # the place, for as long as it is written to
    writer: Callable[[Path, int], AbstractContextManager[Changing]]  # by a writer's number, in its own process
    left: Callable[[Path], set[str]]


@click.command(
    epilog="""\b
Example:
  negindex bench writers --writers 1 --writers 8 --seconds 5
"""
)
@click.option(
    "--writers", "counts", multiple=True, type=click.IntRange(1), default=(1, 2, 4, 8), show_default=True,
    help="How many write at once.",
)  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="How long they write.")
@click.option("--batch", type=click.IntRange(2), default=100, show_default=True, help="Rows of a batch.")
@click.option("--only", multiple=True, metavar="WORD", help="Only ways of writing with this word in their name.")
@click.option("--postgres", metavar="DSN", help="Write the catalogue's transaction to this PostgreSQL too (psycopg).")
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Where the sets are made (default: temporary)."
)
@errors_to_exit_codes
def writers(
    counts: tuple[int, ...], seconds: float, batch: int, only: tuple[str, ...], postgres: str | None, keep: Path | None
) -> None:
    """Changes a second, and how long one takes until it is on the disk, by how many write at once.

    Writers are processes; each makes one change after the other without a pause. Rows are added and withdrawn, one at
    a time or in batches, by processes that open the set themselves; claims are opened by hash, by such processes and on
    the pages of one `negindex serve`. The catalogue alone: the same rows of the same tables in one transaction a
    change, without segments, in SQLite as sets have it, and in PostgreSQL where one is named. The disk alone: 4 KiB
    appended and synced, again and again. Afterwards each set holds what its writers were told.
    """
    from negindex.tools.bench_writers_sql import postgres_way, sqlite_way

    with folder_of(keep) as folder:
        click.echo(machine())
        click.echo(f"sets in {_file_system(folder)}; rows of {WIDTH} numbers, batches of {batch}, {seconds:g} s each")
        click.echo(f"the disk alone: {_line(_synced(folder))}")
        ways = [rows_way(1), rows_way(batch), claims_way(), pages_way(), sqlite_way()]
        ways += [] if postgres is None else [postgres_way(postgres)]
        ways = [way for way in ways if not only or any(word in way.name for word in only)]
        click.echo(f"{'':30}{'writers':>8}{'changes/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'worst ms':>10}{'failures':>10}")
        for way in ways:
            for count in counts:
                with TemporaryDirectory(prefix="writers-", dir=folder) as place:
                    told, lasted = _wrote(way, Path(place), count, seconds)
                    _report(way, Path(place), told, lasted)


def _report(way: Way, place: Path, told: Sequence[Wrote], lasted: float) -> None:
    spent = [took for one in told for took in one.seconds]
    failures = [failure for one in told for failure in one.failures]
    middle, late = Spent.of(spent)
    worst = 1000 * max(spent)
    figures = f"{len(told):8}{len(spent) / lasted:11.1f}{middle:9.1f}{late:9.1f}{worst:10.1f}{len(failures):10}"
    click.echo(f"{way.name:30}{figures}")
    expected, found = {key for one in told for key in one.left}, way.left(place)
    if failures or expected != found:
        raise click.ClickException(
            f"{way.name}: {len(expected - found)} changes lost, {len(found - expected)} not told of, "
            f"{len(failures)} failures, such as {failures[:1]}; see to the disk, or report it"
        )


# -- writers -----------------------------------------------------------------------------------


def _wrote(way: Way, place: Path, count: int, seconds: float) -> tuple[list[Wrote], float]:
    """What ``count`` processes did together, and how long it took them."""
    PROCESSES.set_forkserver_preload(["negindex.collection"])
    with way.made(place):
        go, pipes = PROCESSES.Event(), [PROCESSES.Pipe(duplex=False) for _ in range(count)]
        started = [
            PROCESSES.Process(target=_work, args=(way.writer, place, number, seconds, go, theirs), daemon=True)
            for number, (_, theirs) in enumerate(pipes)
        ]
        for process in started:
            process.start()
        for ours, theirs in pipes:
            theirs.close()
            ours.recv()  # it is ready
        began = time.perf_counter()
        go.set()
        told = [ours.recv() for ours, _ in pipes]
        lasted = time.perf_counter() - began
        for process in started:
            process.join()
    return told, lasted


def _work(
    writer: Callable[[Path, int], AbstractContextManager[Changing]],
    place: Path,
    number: int,
    seconds: float,
    go: Event,
    told: Connection,
) -> None:
    """In a process of its own: one change after the other."""
    with writer(place, number) as one:
        spent: list[float] = []
        failures: list[str] = []
        left: dict[str, None] = {}
        told.send("ready")
        go.wait()
        end, turn = time.perf_counter() + seconds, 0
        while (began := time.perf_counter()) < end:
            try:
                came, went = one(turn)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
            else:
                spent.append(time.perf_counter() - began)
                left |= dict.fromkeys(came)
                for key in went:
                    del left[key]
            turn += 1
        told.send(Wrote(spent, failures, list(left)))


# -- ways --------------------------------------------------------------------------------------


def rows_way(size: int) -> Way:
    """Rows, so many at a time, by processes that open the set themselves."""
    what = "one row" if size == 1 else f"{size} rows"
    return Way(f"{what} in or out, direct", _made, partial(_rows, size), _in_force)


def claims_way() -> Way:
    """Claims by hash, by processes that open the set themselves."""
    return Way("a claim opened, direct", _made, _claims, _claimed)


def pages_way() -> Way:
    """Claims by hash, on the pages of one service."""
    return Way("a claim opened, by a service", _served, _pages, _claimed)


@contextmanager
def _made(place: Path) -> Iterator[None]:
    from negindex.collection import Collection

    Collection.create(place / NAME, (WIDTH,), "pixels").close()
    yield


@contextmanager
def _opened(place: Path) -> Iterator[Collection]:
    import torch

    from negindex.collection import Collection

    torch.set_num_threads(1)
    with Collection.open(place / NAME) as collection:
        yield collection


@contextmanager
def _rows(size: int, place: Path, number: int) -> Iterator[Changing]:
    """In turn: rows that come, and the same rows that go, but for every tenth time."""
    import numpy as np

    random, standing = np.random.default_rng(number), list[str]()
    with _opened(place) as collection:

        def change(turn: int) -> tuple[list[str], list[str]]:
            if standing:
                gone = standing.copy()
                collection.withdraw(gone, "benchmark")
                standing.clear()
                return [], gone
            came = [f"{number}-{turn}-{i}" for i in range(size)]
            collection.add(random.normal(size=(size, WIDTH)).astype(np.float16), came)
            standing.extend(came if turn % 20 else [])
            return came, []

        yield change


@contextmanager
def _claims(place: Path, number: int) -> Iterator[Changing]:
    with _opened(place) as collection:

        def change(turn: int) -> tuple[list[str], list[str]]:
            claim = collection.claims.open("hash-only", hashes=[f"sha256:{_hashed(number, turn):064x}"])
            return [str(claim.number)], []

        yield change


@contextmanager
def _served(place: Path) -> Iterator[None]:
    from negindex.service.access import create_key
    from negindex.tools.bench_serve import serving

    with _made(place), serving(place, 1) as (url, _):
        key, _ = create_key(place, ["curator"])
        (place / "service").write_text(f"{url}\n{key}")
        _wait_for(url, key)
        yield


def _wait_for(url: str, key: str) -> None:
    """Until the service has begun to answer."""
    from negindex.tools.bench_kill import Claimant

    end = time.monotonic() + START
    while True:
        try:
            return Claimant(url, NAME, key).log_in()
        except OSError:
            if time.monotonic() > end:
                raise


@contextmanager
def _pages(place: Path, number: int) -> Iterator[Changing]:
    from negindex.tools.bench_kill import Claimant

    url, key = (place / "service").read_text().splitlines()
    claimant = Claimant(url, NAME, key)
    claimant.log_in()
    yield lambda turn: ([str(claimant.open_claim(_hashed(number, turn)))], [])


def _hashed(number: int, turn: int) -> int:
    """What no other change claims."""
    return (number << 32) + turn + 1


def _in_force(place: Path) -> set[str]:
    with _opened(place) as collection:
        if collection.verify():
            raise Damaged(f"{collection.path} was damaged by its writers; see `negindex verify`")
        return set(collection.source_keys())


def _claimed(place: Path) -> set[str]:
    with _opened(place) as collection:
        return {str(one.claim) for one in collection.claims.every()}


# -- the disk ----------------------------------------------------------------------------------


def _synced(folder: Path) -> list[float]:
    """Seconds of each append of a block that is synced to the disk."""
    spent = []
    with TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(bytes(BLOCK))
            os.fdatasync(file.fileno())
            spent.append(time.perf_counter() - began)
    return spent


def _line(seconds: list[float]) -> str:
    middle, late = Spent.of(seconds)
    return f"p50 {middle:.2f} ms, p99 {late:.2f} ms a sync of {BLOCK} bytes, {len(seconds) / sum(seconds):.0f} a second"


def _file_system(folder: Path) -> str:
    """The folder's file system, by the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at)]
    return max(above)[1]
