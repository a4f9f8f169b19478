"""``negindex bench build``: what a build costs beside its encoder, and beside a copy of the file."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import click

from negindex.tools.common import errors_to_exit_codes, machine

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    from numpy.typing import NDArray

    from negindex.sampler.vae import VaeEncoder

PROCESSES = get_context("spawn")  # each starts with no memory but its own
MIB = 1 << 20


class Cost(NamedTuple):
    """Of one process's work, without its start."""

    seconds: float
    inside: float  # seconds of them in the encoder
    peak: float  # MiB that the process ever held


@click.command(
    epilog="""\b
Example:
  negindex bench build --rows 100000 --shape 4,32,32 --images 24 --size 256
"""
)
@click.option("--rows", type=click.IntRange(1), default=100_000, show_default=True, help="Of an array, float16.")
@click.option("--shape", default="4,32,32", show_default=True, help="One row's shape.")
@click.option("--images", type=click.IntRange(1), default=24, show_default=True, help="JPEGs that are encoded.")
@click.option("--size", type=click.IntRange(32), default=256, show_default=True, help="Their sides, in pixels.")
@click.option("--small", is_flag=True, help="A VAE of a thousandth of Stable Diffusion's weights, to try the command.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of the array; the median is told.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; default: the system's own.")
@errors_to_exit_codes
def build(
    rows: int, shape: str, images: int, size: int, small: bool, runs: int, threads: int, folder: Path | None
) -> None:
    """What `negindex build` costs: images beside their encoder alone, and an array beside a copy of its file.

    The encoder is a randomly initialised VAE of Stable Diffusion's size. What a build takes beside it is told of one
    run: all that is not spent inside the encoder, reading and decoding included. Memory is compared with that of a
    process of its own that reads and encodes the same images and does nothing else.
    The copy is one of the array's file, with fsync. Before each of the two the file is copied once, untimed, so that
    both find the array in memory, and memory at hand to write to, which a virtual machine may have to ask for first.
    """
    row = tuple(int(part) for part in shape.split(",") if part.strip().isdecimal())
    with TemporaryDirectory(prefix="negindex-bench-", dir=folder) as place:
        click.echo(machine())
        copied, built = _array(Path(place), rows, row, runs, threads)
        much = rows * 2 * _product(row) / MIB
        click.echo(f"{rows:,} rows of {shape} in float16, {much:,.0f} MiB; median of {runs}:")
        click.echo(f"  {'copy of the file, with fsync':32}{copied.seconds:10.2f} s {much / copied.seconds:10.0f} MiB/s")
        click.echo(
            f"  {'the set from it':32}{built.seconds:10.2f} s {much / built.seconds:10.0f} MiB/s"
            f"{built.peak:10.0f} MiB held at most"
        )
        click.echo(f"the set goes at {copied.seconds / built.seconds:.2f} of the copy's speed")
        _pictures(Path(place) / "images", images, size)
        alone, whole = (_measured(what, Path(place), size, small, threads) for what in (_encode, _build))
    click.echo(f"{images} JPEGs of {size} × {size} by a VAE:")
    for name, cost in (("the encoder alone", alone), ("the build", whole)):
        click.echo(f"  {name:32}{cost.seconds:10.2f} s{cost.peak:10.0f} MiB held at most")
    click.echo(
        f"of the build, {whole.inside:.2f} s are the encoder's; the rest is {whole.seconds / whole.inside - 1:.1%} of "
        f"that, and its memory {whole.peak / alone.peak - 1:+.1%} of the encoder's alone"
    )


def _product(row: tuple[int, ...]) -> int:
    product = 1
    for side in row:
        product *= side
    return product


def _array(place: Path, rows: int, row: tuple[int, ...], runs: int, threads: int) -> tuple[Cost, Cost]:
    """Medians of copying an array's file and of building a set from it, in turns."""
    import numpy as np
    from numpy.lib.format import open_memmap

    array = open_memmap(place / "rows.npy", "w+", np.float16, (rows, *row))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 1024):
        array[start : start + 1024] = rng.standard_normal(array[start : start + 1024].shape, np.float32)
    array.flush()
    del array
    found = [
        (_measured(_copy, place, 0, False, threads), _measured(_rows, place, 0, False, threads)) for _ in range(runs)
    ]
    return tuple(Cost(*(median(one) for one in zip(*costs, strict=True))) for costs in zip(*found, strict=True))  # type: ignore[return-value]


def _pictures(folder: Path, images: int, size: int) -> None:
    """Smooth noise, which JPEG packs about as well as photographs."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for place in range(images):
        coarse = np.random.default_rng(place).integers(0, 256, (size // 8, size // 8, 3), np.uint8)
        Image.fromarray(coarse).resize((size, size)).save(folder / f"{place:05}.jpg", quality=90)


Work = Callable[[Path, int, bool], tuple[float, float]]  # seconds, and those of them in the encoder


def _measured(work: Work, place: Path, size: int, small: bool, threads: int) -> Cost:
    """The cost of work that says its own seconds, in a process of its own."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_apart, args=(work, place, size, small, threads, theirs))
    process.start()
    theirs.close()
    try:
        cost: Cost = ours.recv()
    except EOFError:
        raise click.ClickException(f"{work.__name__} ended early; its error stands above") from None
    process.join()
    return cost


def _apart(work: Work, place: Path, size: int, small: bool, threads: int, tell: Connection) -> None:
    import torch

    torch.set_num_threads(threads)
    spent = work(place, size, small)
    tell.send(Cost(*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


# -- work ----------------------------------------------------------------------------------------


def _copy(place: Path, size: int, small: bool) -> tuple[float, float]:
    _copied(place)
    return _copied(place), 0.0


def _copied(place: Path) -> float:
    """Seconds."""
    began = time.perf_counter()
    with open(place / "rows.npy", "rb") as source, open(place / "copy.npy", "wb") as target:
        shutil.copyfileobj(source, target, MIB)
        target.flush()
        os.fsync(target.fileno())
    spent = time.perf_counter() - began
    (place / "copy.npy").unlink()
    return spent


def _rows(place: Path, size: int, small: bool) -> tuple[float, float]:
    from negindex import Collection
    from negindex.sampler.arrays import rows_in
    from negindex.sampler.ingest import chosen, ingest
    from negindex.sampler.sources import sources_of

    shape = rows_in(place / "rows.npy").shape[1:]
    _copied(place)
    began = time.perf_counter()
    collection = Collection.create(place / "rows.set", shape, "bench")
    ingest(collection, chosen(sources_of([place / "rows.npy"]), shape), only_refusals=True)
    spent = time.perf_counter() - began
    shutil.rmtree(place / "rows.set")
    return spent, 0.0


def _encode(place: Path, size: int, small: bool) -> tuple[float, float]:
    encoder = _vae(size, small)
    files = sorted((place / "images").iterdir())
    encoder.encode(files[0])
    began = time.perf_counter()
    for file in files:
        encoder.encode(file)
    spent = time.perf_counter() - began
    return spent, spent


def _build(place: Path, size: int, small: bool) -> tuple[float, float]:
    from negindex import Collection
    from negindex.sampler.ingest import chosen, ingest
    from negindex.sampler.sources import sources_of

    encoder = _vae(size, small)
    encoder.encode(min((place / "images").iterdir()))
    rows, inside = encoder.rows, 0.0

    def timed(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal inside
        started = time.perf_counter()
        made = rows(pixels)
        inside += time.perf_counter() - started
        return made

    encoder.rows = timed  # type: ignore[method-assign]
    began = time.perf_counter()
    collection = Collection.create(place / "images.set", encoder.shape, encoder.space)
    ingest(collection, chosen(sources_of([place / "images"]), encoder.shape), encoder)
    return time.perf_counter() - began, inside


def _vae(size: int, small: bool) -> VaeEncoder:
    import torch
    from diffusers import AutoencoderKL

    from negindex.sampler.vae import VaeEncoder

    torch.manual_seed(0)
    wide = (8, 16, 16, 16) if small else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=wide,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if small else 2,
        latent_channels=4,
        norm_num_groups=4 if small else 32,
        scaling_factor=0.18215,
    ).eval()
    return VaeEncoder(vae, size, size)
