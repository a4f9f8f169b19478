"""Which kernel denoises a set best: a projection and a temperature for each noise level, learned by leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log2, sqrt
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from negindex.disk import Disk
from negindex.errors import Damaged, NotThere, OutOfRange, ShapeMismatch, SpaceMismatch
from negindex.exact import BLOCK_ELEMENTS, Scan
from negindex.held_out import HEAD, HeldOut, Predicted
from negindex.kernel import Kernel
from negindex.negatives import row_elements
from negindex.projection import generator, geometric, principal_directions
from negindex.tensors import read_tensors, write_tensors

LEVELS = tuple(geometric(0.2, 80.0, 11))
DIMENSIONS = (16, 32, 64, 128, 256)
FEWEST_ROWS = 200
FORMAT = 1  # of the file
TIE = 1.02  # a projection that errs at most so many times more than the best does as well
_NUMBERS = ("rms", "rows", "reference_rows", "seed")  # of a calibration; the first is no whole number
_SAMPLE = 20_000  # rows that the projection is learned from
_TRIED = 1 << 15  # rows of each set that projections compete over
_WHOLE = 1 << 25  # numbers up to which all dimensions are a candidate: a mixture keeps all that the kernel sees


class Level(NamedTuple):
    """What was found at one noise level. Errors: root mean square over held-out rows, over the rms radius."""

    s: float
    tau: float
    chosen: float  # error of the chosen kernel
    literal: float  # of the literal one, Kim et al. 2025, Eq. 6
    mean: float  # of the plain mean
    effective: float  # rows that share the weight under the chosen kernel, median of 1 / sum of squared weights


@dataclass(frozen=True, eq=False)
class Calibration:
    """A kernel learned from a set, and its reference where there is one, and how well it denoises them.

    The best temperatures depend on the number of rows: calibrate again when the set has doubled.
    """

    kernel: Kernel
    levels: tuple[Level, ...]  # ascending in s
    rms: float  # rms distance of the negatives from their mean
    rows: int  # negatives
    reference_rows: int  # 0 without a reference
    seed: int

    @property
    def fingerprint(self) -> str:
        """The kernel's."""
        return self.kernel.fingerprint

    def table(self) -> list[str]:
        """A heading and one line a level."""
        lines = [f"{'s':>8} {'tau':>8} {'error':>7} {'literal':>8} {'mean':>6} {'effective rows':>15}"]
        lines += [
            f"{at.s:>8g} {at.tau:>8g} {at.chosen:>7.3f} {at.literal:>8.3f} {at.mean:>6.3f} {at.effective:>15.0f}"
            for at in self.levels
        ]
        return lines

    def save(self, path: Path | str, disk: Disk | None = None) -> None:
        """Write it as a safetensors file, whole or not at all; nothing in it needs unpickling."""
        (disk or Disk()).create(Path(path), self.write)

    @staticmethod
    def load(path: Path | str) -> Calibration:
        """What ``save`` wrote, strictly; raises NotThere, and Damaged for anything else."""
        try:
            with open(path, "rb") as file:
                return Calibration.read(file, Path(path))
        except FileNotFoundError:
            raise NotThere(f"{path} is not there; name a file that a calibration was saved in") from None

    def write(self, file: BinaryIO) -> None:
        """Into an open file, as ``read`` takes it."""
        projection = self.kernel.projection
        said = {name: getattr(self, name) for name in _NUMBERS}
        said |= {"format": FORMAT, "kernel": self.fingerprint, "temperatures": self.kernel.temperatures}
        said |= {"levels": [tuple(level) for level in self.levels]}
        nothing = torch.empty(0, 0, dtype=torch.float64)
        write_tensors(file, {"projection": nothing if projection is None else projection}, said)

    @staticmethod
    def read(file: BinaryIO, path: Path) -> Calibration:
        """From an open file; path names it in errors. Raises Damaged."""
        arrays, said = read_tensors(file, path, {"projection": ("F64", 2)})
        try:
            return _calibration(arrays["projection"], said)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"{path} is no calibration that can be read ({error}); restore it, or calibrate") from error


def _calibration(projection: Tensor, said: dict[str, Any]) -> Calibration:
    """What a file says, if it says all of it and nothing else."""
    if said.keys() != {*_NUMBERS, "format", "kernel", "temperatures", "levels"} or said["format"] != FORMAT:
        raise ValueError(f"it says {sorted(said)}, of format {said.get('format')!r}")
    kernel = Kernel([(s, tau) for s, tau in said["temperatures"]], projection.clone() if len(projection) else None)
    if kernel.fingerprint != said["kernel"]:
        raise ValueError(f"it is of kernel {said['kernel']!r}, and holds {kernel.fingerprint!r}")
    levels = tuple(Level(*map(float, level)) for level in said["levels"])
    whole = [said[name] for name in _NUMBERS[1:]]
    if not all(type(number) is int for number in whole) or not 0 <= float(said["rms"]) < inf:
        raise ValueError(f"it says {[said[name] for name in _NUMBERS]} of {', '.join(_NUMBERS)}")
    return Calibration(kernel, levels, float(said["rms"]), *whole)


class _Fit(NamedTuple):
    """The best temperature of one projection at one level."""

    s: float
    tau: float
    error: float
    effective: float


def calibrate(
    negatives: Scan,
    reference: Scan | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    dimensions: Sequence[int] = DIMENSIONS,
    queries: int = 64,
    seed: int = 0,
) -> Calibration:
    """Find the projection and, for each noise level, the temperature that predict held-out rows best.

    ``queries`` held-out rows are noised and predicted from all other rows of their own set, near-duplicates of them
    left out. Negatives and reference count alike, whatever their sizes. The projection is one PCA prefix for all
    levels: the smallest that errs at most 2 % more than the best at every level. Over 32,768 rows of a larger set all
    compete, over all rows the one that won and the next larger one. Where the sets are small, all dimensions compete
    too. Temperatures are powers of 2, at least 1.
    Cost: samples of 20,000 and 32,768 rows, one pass over all rows for 2 d + 192 products each, and some hundred over
    the products. Memory: 2 KB a row of the larger set; before that 80 KB a dimension for the sample. The same under
    the same seed.
    Raises OutOfRange for fewer than 200 rows, for rows that are all alike and for numbers that make no sense.
    """
    sets = [negatives] if reference is None else [negatives, reference]
    _check(sets, levels, dimensions, queries)
    elements, fewest, most = row_elements(negatives.shape), min(map(len, sets)), max(map(len, sets))
    widths = sorted({width for width in dimensions if width < min(elements, fewest)})
    centre, directions = _principal(sets, max(widths, default=1), seed)
    share = max(1, queries // len(sets))
    held = [HeldOut.of(one, centre, directions, share, seed + i, _few(one, seed)) for i, one in enumerate(sets)]
    whole: list[int | None] = [None] if not widths or most * elements <= _WHOLE else []
    width, fits = _best({width: _sweep(held, sorted(levels), width) for width in (*widths, *whole)})
    if most > _TRIED:  # more rows call for as many dimensions, or some more
        left = whole if width is None else [one for one in widths if one >= width][:2]
        leading = directions[: max(HEAD, *(one or 0 for one in left))]
        held = [HeldOut.of(one, centre, leading, share, seed + i) for i, one in enumerate(sets)]
        width, fits = _best({one: _sweep(held, sorted(levels), one) for one in left})
    kernel = Kernel([(fit.s, fit.tau) for fit in fits], None if width is None else directions[:width])
    told = tuple(_level(held, fit) for fit in fits)
    return Calibration(kernel, told, held[0].rms, len(negatives), 0 if reference is None else len(reference), seed)


def _check(sets: Sequence[Scan], levels: Sequence[float], dimensions: Sequence[int], queries: int) -> None:
    if len({one.shape for one in sets}) > 1:
        raise ShapeMismatch(f"rows of shapes {' and '.join(str(one.shape) for one in sets)}; give sets of one shape")
    if len({one.space for one in sets}) > 1:
        raise SpaceMismatch(f"sets in spaces {' and '.join(repr(one.space) for one in sets)}; give sets of one space")
    if min(map(len, sets)) < FEWEST_ROWS:
        raise OutOfRange(
            f"{min(map(len, sets))} rows are too few to calibrate on, which takes {FEWEST_ROWS}; "
            "use the literal kernel with the copy gate, or add rows"
        )
    if not levels or not all(0 < s < inf for s in levels):
        raise OutOfRange(f"levels = {list(levels)}; give noise levels s = sigma / alpha, positive and finite")
    if not all(width >= 1 for width in dimensions):
        raise OutOfRange(f"dimensions = {list(dimensions)}; give numbers of dimensions >= 1")
    if queries < 1:
        raise OutOfRange(f"queries = {queries}; hold out at least 1 row, or better 64")


def _principal(sets: Sequence[Scan], width: int, seed: int) -> tuple[Tensor, Tensor]:
    """The mean (D,) float32 and leading directions (width, D) float64 of a sample in which every set counts alike."""
    parts, weight = [], []
    for i, one in enumerate(sets):
        places = torch.randperm(len(one), generator=generator(seed + i))[: _SAMPLE // len(sets)]
        parts.append(places)
        weight.append(torch.full((len(places),), 1 / (len(places) * len(sets))))
    shares, sample = torch.cat(weight), torch.empty(sum(map(len, parts)), row_elements(sets[0].shape))
    start, at_once = 0, max(1, BLOCK_ELEMENTS // sample.shape[1])
    for one, places in zip(sets, parts, strict=True):
        for some in places.split(at_once):
            sample[start : start + len(some)] = one.take(some).rows.to("cpu", torch.float32)
            start += len(some)
    mean = shares @ sample
    return mean, principal_directions(sample.sub_(mean), shares, width, seed)


def _few(rows: Scan, seed: int) -> Tensor | None:
    """Places of the rows that projections compete over, ascending; None for all."""
    if len(rows) <= _TRIED:
        return None
    return torch.randperm(len(rows), generator=generator(seed))[:_TRIED].sort().values


def _sweep(held: Sequence[HeldOut], levels: Sequence[float], width: int | None) -> list[_Fit]:
    """The best temperature at each level, from the noisiest down: there the bandwidth is near the last one's."""
    fits: list[_Fit] = []
    for s in reversed(levels):
        start = 0 if not fits else max(0, round(log2(fits[-1].tau * (fits[-1].s / s) ** 2)))
        fits.append(_climb(held, s, width, start))
    return fits[::-1]


def _climb(held: Sequence[HeldOut], s: float, width: int | None, start: int) -> _Fit:
    """The power of 2, at least 1, that errs least, found by steps from 2^start while they help."""
    pairs = [(one, one.distances(s, width)) for one in held]

    def fit(power: int) -> _Fit:
        return _fit(s, 2.0**power, [one.predict(near, 2.0**power * s * s) for one, near in pairs])

    best, power = fit(start), start
    for step in (1, -1):
        power = start
        while power + step >= 0 and (tried := fit(power + step)).error < best.error:
            best, power = tried, power + step
        if power != start:
            break
    return best


def _fit(s: float, tau: float, told: Sequence[Predicted]) -> _Fit:
    """Every set counts alike."""
    error, effective = (sum(part) / len(told) for part in zip(*told, strict=True))
    return _Fit(s, tau, sqrt(error), effective)


def _best(found: dict[int | None, list[_Fit]]) -> tuple[int | None, list[_Fit]]:
    """The smallest projection within 2 % of the least error at every level, or else the one that keeps nearest to it.

    None stands for all dimensions and comes last.
    """
    least = [min(fit.error for fit in fits) for fits in zip(*found.values(), strict=True)]
    worst = {
        width: max(fit.error / max(error, 1e-12) for fit, error in zip(fits, least, strict=True))
        for width, fits in found.items()
    }
    width = next(width for width in found if worst[width] <= max(TIE, min(worst.values())))
    return width, found[width]


def _level(held: Sequence[HeldOut], fit: _Fit) -> Level:
    whole = [(one, one.distances(fit.s, None)) for one in held]
    literal = _fit(fit.s, 1.0, [one.predict(near, fit.s**2) for one, near in whole])
    plain = _fit(fit.s, inf, [one.predict(near, inf) for one, near in whole])
    return Level(fit.s, fit.tau, fit.error, literal.error, plain.error, fit.effective)
