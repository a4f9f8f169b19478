"""``negindex bench peers``: finding the nearest rows alone, beside vector searches that do nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.bench_options import SHAPE, numbers_in
from negindex.tools.bench_times import Spent, timed
from negindex.tools.common import errors_to_exit_codes, machine
from negindex.tools.figures import blank
from negindex.tools.options import AS_JSON

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.clusters import Clusters
    from negindex.kernel import Kernel
    from negindex.tools.peers import Peer

    Search = Callable[[Tensor, int], Sequence[int]]  # of one query, at a setting

OURS = "negindex, the whole answer"
SHARES = (64, 32, 16, 4)  # of the rows that are weighed, one in so many


@click.command(
    epilog="""\b
Example:
  negindex bench peers --rows 60000 --plot peers.png
"""
)
@click.option("--rows", type=click.IntRange(800), default=60_000, show_default=True, help="Rows to search.")
@SHAPE
@click.option("--k", type=click.IntRange(1), default=64, show_default=True, help="Nearest rows to find.")
@click.option("--s", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Noise level.")
@click.option("--queries", type=click.IntRange(1), default=200, show_default=True, help="Half of them benign images.")
@click.option("--seed", default=0, show_default=True, help="Of rows, queries, calibration and clusters.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path, dir_okay=False), help="Draw it, too.")
@AS_JSON
@errors_to_exit_codes
def peers(rows: int, shape: str, k: int, s: float, queries: int, seed: int, plot: Path | None, as_json: bool) -> None:
    """Recall against time: which of the k nearest rows are found, in the calibrated kernel's dimensions.

    Rows are the simulated latents of `bench posterior`, reduced by a calibrated projection; queries are noised images
    that are no row. A vector search returns places of rows. negindex weighs whole clusters, and its time is that of
    all that it says of a query but for the full-size rows: weights, closed form of all other clusters, mean. Each on
    one thread, one query at a time; LanceDB reads from disk, with threads of its own. Packages that are not
    installed are named and left out (`pip install negindex[peers]`).
    """
    import torch

    torch.set_num_threads(1)
    size = numbers_in(shape, int, "--shape")
    told = measured(rows, size, k, s, queries, seed, lambda said: click.echo(said, err=True))
    if plot is not None:
        draw(told, plot)
    click.echo(json.dumps(told) if as_json else "\n".join(_printed(told)))


def measured(
    rows: int, shape: tuple[int, ...], k: int, s: float, queries: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that is printed, by name."""
    import torch

    from negindex import Exact, calibrate
    from negindex.mixture import Mixture
    from negindex.tools.bench_sets import BENIGN, HELD_OUT
    from negindex.tools.bench_sets import queries as made
    from negindex.tools.latents import Latents
    from negindex.tools.peers import PEERS

    say("making rows, and calibrating")
    population = Latents(shape, seed=seed)
    source = Exact(population.some("rows", rows).half(), space="simulated")
    kernel = calibrate(source, seed=seed).kernel
    say("clustering")
    seconds, mixture = timed(lambda: Mixture.build(source, kernel, scan_elements=0, seed=seed))
    asked = made(population, [s], -(-queries // 2))
    x = torch.cat([asked[HELD_OUT][0], asked[BENIGN][0]])[:queries]
    points = mixture.clusters.space.place(x.flatten(1).double())
    true = _nearest(mixture.clusters, points, k)
    found = [(OURS, "", seconds, _curve(_ours(mixture.clusters, kernel, s, k), points, true, _weighed(rows)))]
    for peer in (kind() for kind in PEERS):
        if find_spec(peer.needs) is None:
            say(f"{peer.name}: {peer.needs} is not installed")
            continue
        say(peer.name)
        with TemporaryDirectory(prefix="negindex-bench-") as folder:
            spent, search = _built(peer, mixture.clusters, k, Path(folder))
            curve = _curve(search, points, true, peer.settings)
            found.append((peer.name, _version(peer.needs), spent, curve))
    return {
        "machine": machine(),
        "rows": rows,
        "shape": list(shape),
        "dimensions": mixture.clusters.reduced.shape[1],
        "k": k,
        "s": s,
        "queries": queries,
        "seed": seed,
        "curves": [
            {"name": name, "version": number, "seconds_built": spent, "points": curve}
            for name, number, spent, curve in found
        ],
    }


def _version(module: str) -> str:
    """The package that a module came with, and its version."""
    from importlib.metadata import packages_distributions, version

    package = packages_distributions()[module][0]
    return f"{package} {version(package)}"


def _nearest(clusters: Clusters, points: Tensor, k: int) -> list[set[int]]:
    """Places among the clusters' rows of the k nearest to each point, in float64."""
    from negindex.kernel import squared_distances

    rows = clusters.reduced.double()
    return [set(squared_distances(some, rows)[0].topk(k, largest=False).indices.tolist()) for some in points.split(1)]


def _weighed(rows: int) -> list[int]:
    return [rows // share for share in SHARES]


def _ours(clusters: Clusters, kernel: Kernel, s: float, k: int) -> Search:
    from negindex.head import Effort, weigh
    from negindex.noise import NoiseLevel

    variance = kernel.variance(NoiseLevel(1.0, s)).reshape(1)

    def search(point: Tensor, weighed: int) -> Sequence[int]:
        told = clusters.gaussians.seen_from(point[None], variance).about(0)
        named: list[int] = weigh(clusters, point, variance[0], told, Effort(weighed, 1), k).named.tolist()
        return named

    return search


def _built(peer: Peer, clusters: Clusters, k: int, folder: Path) -> tuple[float, Search]:
    """Seconds that the index took, and its search."""
    seconds, _ = timed(lambda: peer.build(clusters.reduced.numpy(), folder))
    return seconds, lambda point, setting: peer.search(point.float().numpy(), k, setting)


def _curve(search: Search, points: Tensor, true: Sequence[set[int]], settings: Sequence[int]) -> list[dict[str, float]]:
    """Of each setting: the share of the nearest that were found, and milliseconds, each query asked once before."""
    curve = []
    for setting in settings:
        seconds, hits = [], 0
        for point, nearest in zip(points, true, strict=True):
            search(point, setting)
            spent, places = timed(partial(search, point, setting))
            seconds.append(spent)
            hits += len(nearest.intersection(places))
        spent_on = Spent.of(seconds)
        recall = hits / sum(map(len, true))
        curve.append({"setting": setting, "recall": recall, "ms": spent_on.middle, "p99": spent_on.late})
    return curve


def _printed(told: dict[str, Any]) -> Iterator[str]:
    shape = ",".join(map(str, told["shape"]))
    yield told["machine"]
    yield (
        f"{told['rows']} rows of {shape} in {told['dimensions']} dimensions, seed {told['seed']}; "
        f"the {told['k']} nearest to {told['queries']} queries at s = {told['s']:g}"
    )
    yield f"{'':28}{'setting':>10}{'recall':>10}{'ms':>10}{'p99':>10}{'built, s':>10}"
    for curve in told["curves"]:
        for number, point in enumerate(curve["points"]):
            built = "" if number else f"{curve['seconds_built']:.1f}"
            figures = f"{point['setting']:>10}{point['recall']:>10.3f}{point['ms']:>10.3f}{point['p99']:>10.3f}"
            yield f"{'' if number else curve['name']:28}{figures}{built:>10}"
    yield "; ".join(sorted({curve["version"] for curve in told["curves"] if curve["version"]}))


def draw(told: dict[str, Any], path: Path) -> None:
    """Write a PNG of the curves. Raises NotThere without matplotlib."""
    figure = blank(8, 5.5)
    axes = figure.subplots()
    for curve in told["curves"]:
        ours = curve["name"] == OURS
        at = [[point[of] for point in curve["points"]] for of in ("ms", "recall")]
        axes.plot(*at, "o-", label=curve["name"], linewidth=3 if ours else 1, color="black" if ours else None)
    axes.set(xscale="log", xlabel="milliseconds a query", ylabel=f"share of the {told['k']} nearest that are found")
    axes.set_title(f"{told['rows']} rows of {told['dimensions']} dimensions, s = {told['s']:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
