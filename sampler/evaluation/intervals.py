"""Intervals: of a share, of a mean, of any statistic of samples."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.errors import NotFinite, OutOfRange

Z95 = 1.959963984540054
RESAMPLES = 200


class Figure(NamedTuple):
    """A number and its 95 % interval, for that number alone."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def wilson(share: float, count: int, z: float) -> tuple[float, float]:
    """Wilson interval of a share of ``count`` trials, z standard deviations wide each way."""
    centre = share + z * z / (2 * count)
    width = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - width) / (1 + z * z / count), (centre + width) / (1 + z * z / count)


def share_of(hits: NDArray[np.bool_]) -> Figure:
    """The share of (N,) trials that hit."""
    _check(len(hits), 1)
    share = float(np.mean(hits))
    low, high = wilson(share, len(hits), Z95)
    return Figure(share, min(max(low, 0.0), share), max(min(high, 1.0), share))


def mean_of(values: NDArray[np.floating]) -> Figure:
    """The mean of (N,) numbers, by its standard error."""
    _check(len(values), 2)
    mean = float(np.mean(values))
    if not isfinite(mean):
        raise NotFinite(f"the mean of {len(values)} numbers is {mean}; leave out samples that are NaN or Inf")
    error = float(np.std(values, ddof=1)) / sqrt(len(values))
    return Figure(mean, mean - Z95 * error, mean + Z95 * error)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], count: int, seed: int = 0, resamples: int = RESAMPLES
) -> Figure:
    """A statistic of ``count`` samples, less its bias, with its pivotal bootstrap interval.

    statistic: of the places of the samples that are drawn, (count,) int64, some of them more than once.
    A resample is as far from the sample as the sample is from where it came from. So with t of the sample and t* of the
    resamples the value is 2 t - mean of t*, the interval 2 t - quantiles of t*: most of the bias that a distance
    between sets, or a diversity, has in finite samples is gone. The same under the same seed; ``resamples`` calls.
    """
    _check(count, 2)
    chance = np.random.default_rng(seed)
    twice = 2 * statistic(np.arange(count))
    drawn = [statistic(chance.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(float(twice - np.mean(drawn)), float(twice - high), float(twice - low))


def paired_difference(first: NDArray[np.floating], second: NDArray[np.floating]) -> Figure:
    """The mean of ``second - first``, both (N,) of the same seeds in the same order."""
    if first.shape != second.shape:
        raise OutOfRange(f"{len(first)} samples beside {len(second)}; compare cells of the same seeds")
    return mean_of(second.astype(np.float64) - first.astype(np.float64))


def _check(count: int, fewest: int) -> None:
    if count < fewest:
        raise OutOfRange(f"an interval of {count} samples; give at least {fewest}")
