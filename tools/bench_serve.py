"""``negindex bench serve``: what asking over HTTP costs beside asking in the process, alone and by many at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import click

from negindex.tools.bench_takedown import NOTICE
from negindex.tools.bench_times import Spent
from negindex.tools.common import errors_to_exit_codes, machine

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.collection import Collection
    from negindex.negatives import Negatives

NAME, SHAPE = "bench", (4, 64, 64)
PROCESSES = get_context("spawn")
PIN_EVERY = 20  # questions that a sampler asks of one version
START = 180.0  # seconds within which the service must be up


class Asked(NamedTuple):
    """What some samplers saw together."""

    seconds: list[float]  # of each answer
    errors: int
    versions: int  # that answers came from
    lasted: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.lasted


@click.command(
    epilog="""\b
Example:
  negindex bench serve --rows 60 --workers 1
"""
)
@click.option("--rows", type=click.IntRange(1), default=60, show_default=True, help="Rows of 4 × 64 × 64, scanned.")
@click.option("--calibrated", is_flag=True, help="Calibrate the set first (from 200 rows on), so that it has an index.")
@click.option("--asks", type=click.IntRange(1), default=300, show_default=True, help="Questions of one sampler.")
@click.option("--samplers", type=click.IntRange(1), default=64, show_default=True, help="Samplers at once.")
@click.option("--clients", type=click.IntRange(1), default=2, show_default=True, help="Processes that they are in.")
@click.option("--seconds", type=click.FloatRange(0.5), default=10.0, show_default=True, help="How long they ask.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="The service's workers.")
@click.option("--changes", type=click.IntRange(1), default=50, show_default=True, help="Versions whose way is timed.")
@errors_to_exit_codes
def serve(
    rows: int, calibrated: bool, asks: int, samplers: int, clients: int, seconds: float, workers: int, changes: int
) -> None:
    """Ask a service on this machine, one sample of 4 × 64 × 64 at a time, and the same set in the process.

    Latency: questions take turns, the one in the process and the one over HTTP. At once: samplers ask without a pause
    and pin anew every 20 questions; in the process they are threads of one. With claims: one is opened, accepted and
    withdrawn each second meanwhile. Killed: one of several workers gets SIGKILL in the midst of that, while claims are
    opened on the pages too. Clients and service share this machine's processors. Torch has one thread.
    """
    import torch

    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="negindex-bench-") as folder:
        made = _made(Path(folder), rows, calibrated)
        with serving(Path(folder), workers) as (url, log):
            click.echo(machine())
            click.echo(f"{rows} rows of 4 × 64 × 64, kernel {made.default_kernel.name}, {workers} workers")
            _latency(made, url, asks)
            _together(made, url, samplers, clients, seconds)
            _seen(made, url, workers, changes, log)
            if workers > 1:
                _killed(made, url, samplers, clients, seconds, workers, log)


def _latency(made: Collection, url: str, asks: int) -> None:
    from negindex import RemoteNegatives

    here: list[float] = []
    there: list[float] = []
    with RemoteNegatives(url, NAME) as remote:
        sets: list[tuple[Negatives, list[float]]] = [(made.pin(), here), (remote.pin(), there)]
        for x in _samples(asks + 5):
            for negatives, spent in sets:
                spent.append(_one(negatives, x))
    one, other = Spent.of(here[5:]), Spent.of(there[5:])  # the first few warm up
    click.echo(f"{'ms, batch 1':32}{'p50':>9}{'p99':>9}")
    for name, told in (("in the process", one), ("over HTTP", other)):
        click.echo(f"  {name:30}{told.middle:9.2f}{told.late:9.2f}")
    click.echo(f"  {'HTTP costs':30}{other.middle - one.middle:9.2f}")


def _together(made: Collection, url: str, samplers: int, clients: int, seconds: float) -> None:
    here = _at_once([made] * samplers, seconds)
    with ProcessPoolExecutor(clients, PROCESSES) as pool:
        list(pool.map(_warm, range(clients)))
        there = _remote(pool, url, samplers, clients, seconds)
        with _claims(made) as count:
            changed = _remote(pool, url, samplers, clients, seconds)
    click.echo(f"{f'{samplers} samplers at once':32}{'p50':>9}{'p99':>9}{'answers/s':>11}{'errors':>8}{'versions':>10}")
    for name, told in (("in the process", here), ("over HTTP", there), ("over HTTP, with claims", changed)):
        spent = Spent.of(told.seconds)
        figures = f"{spent.middle:9.1f}{spent.late:9.1f}{told.rate:11.1f}{told.errors:8}{told.versions:10}"
        click.echo(f"  {name:30}{figures}")
    shares = f"{there.rate / here.rate:.0%} of what the process does, {changed.rate / here.rate:.0%}"
    click.echo(f"  HTTP answers {shares} while {count[0]} claims come and go")


def _seen(made: Collection, url: str, workers: int, changes: int, log: Path) -> None:
    """From a change's acknowledgement until connections to all workers have named its version."""
    from negindex import RemoteNegatives

    remotes = [RemoteNegatives(url, NAME) for _ in range(8 * workers)]
    spent = []
    for i in range(changes):
        made.add(_rows(1, seed=1000 + i), [f"seen-{i}"])
        version, began = made.newest().version, time.perf_counter()
        left = list(remotes)
        while left:
            left = [remote for remote in left if remote.pin().version < version]
        spent.append(time.perf_counter() - began)
    for remote in remotes:
        remote.close()
    seen = {json.loads(line)["process"] for line in log.read_text().splitlines() if '"/v1/sets/{name}"' in line}
    told = Spent.of(spent)
    click.echo(f"{'a new version, ms':32}{'p50':>9}{'p99':>9}")
    click.echo(f"  {f'seen by {len(seen)} of {workers} workers':30}{told.middle:9.1f}{told.late:9.1f}")


def _killed(made: Collection, url: str, samplers: int, clients: int, seconds: float, workers: int, log: Path) -> None:
    """Kill a worker while samplers ask and claims are opened over HTTP."""
    from negindex.service.access import create_key
    from negindex.tools.bench_kill import Claimant, Victim

    root = made.path.parent
    sampler, curator = (create_key(root, [role])[0] for role in ("sampler", "curator"))
    with ProcessPoolExecutor(clients, PROCESSES) as pool:
        list(pool.map(_warm, range(clients)))
        with Claimant(url, NAME, curator) as claimant, Victim(log, after=seconds / 4) as victim:
            told = _remote(pool, url, samplers, clients, seconds, sampler)
            back = victim.back(START)
    spent, lost = Spent.of(told.seconds), claimant.lost(made)
    click.echo(
        f"{f'one of {workers} workers killed':32}{'p50':>9}{'p99':>9}{'answers/s':>11}{'errors':>8}{'longest':>10}"
    )
    figures = f"{spent.middle:9.1f}{spent.late:9.1f}{told.rate:11.1f}{told.errors:8}{1000 * max(told.seconds):10.1f}"
    click.echo(f"  {'over HTTP, with claims':30}{figures}")
    claims = (
        f"{len(claimant.acknowledged)} claims acknowledged, {lost} of them lost, {claimant.unanswered} not answered"
    )
    click.echo(f"  the worker is back after {back:.1f} s; {claims}")


# -- who asks ------------------------------------------------------------------------------


def _one(negatives: Negatives, x: Tensor) -> float:
    from negindex.noise import NoiseLevel

    began = time.perf_counter()
    negatives.posterior(x, NoiseLevel(0.7, 0.7))
    return time.perf_counter() - began


def _at_once(sets: Sequence[Negatives], seconds: float) -> Asked:
    """Each set asked by a thread of its own."""
    from negindex.errors import NegindexError

    spent: list[float] = []
    errors: list[str] = []
    versions: set[int] = set()
    begin = threading.Barrier(len(sets) + 1)
    end = threading.Event()

    def ask(negatives: Negatives, number: int) -> None:
        x = _samples(1, number)[0]
        begin.wait()
        while not end.is_set():
            try:
                pinned = negatives.pin()
                versions.add(pinned.origins[0].version)
                for _ in range(PIN_EVERY):
                    spent.append(_one(pinned, x))
                    if end.is_set():
                        break
            except NegindexError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(one, i)) for i, one in enumerate(sets)]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    end.set()
    for thread in threads:
        thread.join()
    if errors:
        click.echo(f"  the first error: {errors[0]}", err=True)
    return Asked(spent, len(errors), len(versions), time.perf_counter() - began)


def _remote(
    pool: ProcessPoolExecutor, url: str, samplers: int, clients: int, seconds: float, key: str | None = None
) -> Asked:
    shares = [samplers // clients + (i < samplers % clients) for i in range(clients)]
    told = list(pool.map(_client, [url] * clients, shares, [seconds] * clients, [key] * clients))
    spent = [second for one in told for second in one.seconds]
    errors, lasted = sum(one.errors for one in told), max(one.lasted for one in told)
    return Asked(spent, errors, max(one.versions for one in told), lasted)


def _client(url: str, samplers: int, seconds: float, key: str | None) -> Asked:
    from negindex import RemoteNegatives

    remotes = [RemoteNegatives(url, NAME, key) for _ in range(samplers)]
    told = _at_once(remotes, seconds)
    for remote in remotes:
        remote.close()
    return told


def _warm(_: int) -> None:
    import torch

    torch.set_num_threads(1)
    time.sleep(0.5)  # so that each process gets one


# -- what is asked -------------------------------------------------------------------------


def _rows(count: int, seed: int) -> Tensor:
    import torch

    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def _samples(count: int, seed: int = 0) -> list[Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *SHAPE, generator=generator) for _ in range(count)]


def _made(folder: Path, rows: int, calibrated: bool) -> Collection:
    from negindex import Collection

    made = Collection.create(folder / NAME, SHAPE, "pixels")
    made.add(_rows(rows, seed=1), [str(i) for i in range(rows)])
    if calibrated:
        made.calibrate()
    return made


@contextmanager
def _claims(made: Collection) -> Iterator[list[int]]:
    """A claim opened, accepted and withdrawn each second; gives how many it were so far."""
    count, end = [0], threading.Event()

    def work() -> None:
        while not end.wait(1.0):
            rows = _rows(1, seed=5000 + count[0])
            key = [f"claimed-{count[0]}"]
            claim = made.claims.open("dmca", NOTICE, rows=rows, source_keys=key, by="bench")
            made.claims.accept(claim.number, by="bench")
            made.claims.withdraw(claim.number, by="bench", reason="measured")
            count[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield count
    finally:
        end.set()
        thread.join()


@contextmanager
def serving(root: Path, workers: int) -> Iterator[tuple[str, Path]]:
    """A service in processes of its own; gives its address and its log."""
    from negindex.errors import Unreachable

    command = [sys.executable, "-m", "negindex.tools", "serve", str(root), "--port", "0", "--workers", str(workers)]
    log = root / "service.log"
    with open(log, "wb") as file:
        service = subprocess.Popen([*command, "--rate", "1000000", "--burst", "1000000"], stderr=file)
    try:
        end = time.monotonic() + START
        while '"listening"' not in log.read_text():
            if service.poll() is not None or time.monotonic() > end:
                raise Unreachable(f"the service did not come up: {log.read_text()[-500:]}")
            time.sleep(0.05)
        said = next(json.loads(line) for line in log.read_text().splitlines() if '"listening"' in line)
        yield f"http://127.0.0.1:{said['port']}", log
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(START)
