"""What the bench of look-ups asks, and whom: a set and a benign reference on disk, and three kinds of query."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from negindex.errors import NotAllowed, OutOfRange

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.collection import Collection

HELD_OUT, BENIGN, TRAJECTORY = "held out", "benign", "trajectory"
KINDS = (HELD_OUT, BENIGN, TRAJECTORY)
APART = 1 << 20  # number of the first block that no set is made of
_AT_ONCE = 1 << 28  # bytes of float16 rows in one file
_SPARE = 1 << 30  # bytes of disk to leave free
_SEEN = 2000  # images that the simulated model has learned
_STEPS = 40  # of its sampler, from the noisiest level down
_NOISIEST = 80.0

Say = Callable[[str], None]


class Population(Protocol):
    """Where rows come from."""

    shape: tuple[int, ...]
    space: str
    seed: int

    def block(self, kind: str, number: int, rows: int = ...) -> Tensor:
        """Rows of a kind, (n, *S) float32, always the same: BLOCK at a time, n the number asked for where there are
        as many. Those of the numbers from APART on are in no set: first what is asked, then what a model has learned.
        """


@dataclass(frozen=True)
class Stored:
    """A set on disk and what it cost, in seconds; 0 where it was there already."""

    collection: Collection
    made: float  # by the generator
    added: float  # to the disk, with the record


def check_disk(folder: Path, needed: int) -> None:
    """Raise OutOfRange unless so many bytes, and some to spare, are free where the sets will lie."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise OutOfRange(
            f"{needed / 1e9:.1f} GB of rows, and {free / 1e9:.1f} GB are free in {folder}; "
            "take fewer or smaller rows, or name another place with --keep"
        )


def both(folder: Path, population: Population, rows: int, reference: int, say: Say) -> tuple[Stored, Stored]:
    """So many negatives, and benign rows beside them, in two collections of a folder; see ``stored``."""
    from negindex.negatives import row_elements

    needed = 2 * row_elements(population.shape) * (rows + reference)
    say(f"{needed / 1e9:.2f} GB of rows in {folder}")
    check_disk(folder, 0 if (folder / "negatives").exists() else needed)
    negatives = stored(folder / "negatives", population, "rows", rows, say)
    return negatives, stored(folder / "benign", population, "benign", reference, say)


def stored(path: Path, population: Population, kind: str, rows: int, say: Say) -> Stored:
    """The first rows of a kind in a collection at ``path``; opened where it stands already.

    Raises NotAllowed where a set of other rows stands there.
    """
    from negindex.collection import Collection

    if path.exists():
        found = Collection.open(path)
        if (len(found), found.shape, found.space) != (rows, population.shape, population.space):
            raise NotAllowed(
                f"{path} has {len(found)} rows of {found.shape}, {found.space!r}, not {rows} of {population.shape}, "
                f"{population.space!r}; name another folder with --keep"
            )
        return Stored(found, 0.0, 0.0)
    made = Collection.create(path, population.shape, population.space)
    spent, began, done = 0.0, time.perf_counter(), 0
    for some, seconds in _files(population, kind, rows):
        made.add(some.numpy(), [f"row-{i}" for i in range(done, done + len(some))])
        spent, done = spent + seconds, done + len(some)
        say(f"{path.name}: {done} of {rows} rows")
    return Stored(made, spent, time.perf_counter() - began - spent)


def _files(population: Population, kind: str, rows: int) -> Iterator[tuple[Tensor, float]]:
    """Rows in float16, as many as a file holds, and the seconds that they took to make."""
    import torch

    from negindex.negatives import row_elements
    from negindex.tools.latents import BLOCK

    most = max(1, _AT_ONCE // (2 * BLOCK * row_elements(population.shape)))
    blocks, began = [], time.perf_counter()
    for number, start in enumerate(range(0, rows, BLOCK)):
        blocks.append(population.block(kind, number)[: rows - start].half())
        if len(blocks) == most or start + BLOCK >= rows:
            yield torch.cat(blocks), time.perf_counter() - began
            blocks, began = [], time.perf_counter()


def queries(population: Population, levels: Sequence[float], count: int) -> dict[str, Tensor]:
    """{kind: (L, count, *S) float32}: noisy samples in clean scale at each of the levels, none of them of a row.

    Held-out negatives and benign images, noised anew at each level; and what a sampler sees on its way down.
    """
    asked = {
        kind: _noised(population.block(family, APART, count), levels, population.seed + i)
        for i, (kind, family) in enumerate(((HELD_OUT, "held out"), (BENIGN, "benign")))
    }
    return {**asked, TRAJECTORY: _trajectories(population, levels, count)}


def _noised(clean: Tensor, levels: Sequence[float], seed: int) -> Tensor:
    import torch

    random = torch.Generator().manual_seed(seed)
    return torch.stack([clean + s * torch.randn(clean.shape, generator=random) for s in levels])


def _trajectories(population: Population, levels: Sequence[float], count: int) -> Tensor:
    """x_t of a simulated model at the levels: Euler steps of its probability flow (Karras et al. 2022, Alg. 1).

    The model has learned fresh rows and fresh benign images, 1,000 of each at most, and denoises in closed form by the
    kernel that predicts held-out ones of them best.
    """
    import torch

    from negindex import Exact, NoiseLevel, calibrate

    learned = torch.cat([population.block(kind, APART + 1, _SEEN // 2) for kind in ("rows", "benign")])
    model = Exact(learned, space=population.space)
    kernel = calibrate(model, seed=population.seed).kernel
    random = torch.Generator().manual_seed(population.seed + len(KINDS))
    steps = _steps(levels)
    x, seen = steps[0] * torch.randn(count, *population.shape, generator=random).double(), {}
    for s, following in zip(steps, [*steps[1:], None], strict=True):
        if s in levels:
            seen[s] = x.float()
        if following is not None:
            denoised = model.posterior(x, NoiseLevel(1.0, s), kernel=kernel).mean
            x = x + (following - s) / s * (x - denoised)
    return torch.stack([seen[s] for s in levels])


def _steps(levels: Sequence[float]) -> list[float]:
    """Falling noise levels, evenly spaced in their logarithm, with the asked ones among them."""
    import numpy as np

    low, high = min(levels), max(_NOISIEST, *levels)
    return sorted({*np.geomspace(low, high, _STEPS).tolist()[1:-1], high, *levels}, reverse=True)


def bytes_of(path: Path) -> int:
    """Bytes of all files under a folder."""
    return sum((Path(at) / name).stat().st_size for at, _, names in os.walk(path) for name in names)
