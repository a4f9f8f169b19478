"""How long look-ups take: warm and cold, alone and in batches; and what the machine itself can do."""

from __future__ import annotations

import gc
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from negindex.noise import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.kernel import Kernel
    from negindex.negatives import Negatives
    from negindex.partial import Partial
    from negindex.snapshot import Snapshot

T = TypeVar("T")

_COUNTED = 1 << 28  # bytes that the memory's bandwidth is measured on
_TRIES = 5


class Spent(NamedTuple):
    """Milliseconds."""

    middle: float  # the median
    late: float  # the 99th percentile

    @classmethod
    def of(cls, seconds: list[float]) -> Spent:
        """Of some look-ups."""
        ordered = sorted(seconds)
        return cls(*(1000 * ordered[ceil(share * len(ordered)) - 1] for share in (0.5, 0.99)))

    def __str__(self) -> str:
        return f"{self.middle:7.1f}{self.late:7.1f}"


@dataclass(frozen=True)
class Asking:
    """How a set is asked."""

    negatives: Negatives
    kernel: Kernel
    k: int | None
    error: float | None

    def __call__(self, x: Tensor, s: float) -> Partial:
        """The answer to samples (B, *S) at one level."""
        return self.negatives.posterior(x, NoiseLevel(1.0, s), k=self.k, error=self.error, kernel=self.kernel)


def timed(ask: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what was returned."""
    began = time.perf_counter()
    told = ask()
    return time.perf_counter() - began, told


def warm(asking: Asking, x: Tensor, s: float, batch: int) -> tuple[Spent, float, list[Partial]]:
    """Of samples (B, *S), ``batch`` at a time, after each batch was asked once before; the answers come last.

    Between them the median of what the processor spent on it, in milliseconds: other programs count for less in it.
    """
    seconds, busy, told = [], [], []
    for some in x.split(batch):
        if len(some) == batch:
            asking(some, s)
            began = time.process_time()
            spent, answer = timed(partial(asking, some, s))
            busy.append(time.process_time() - began)
            seconds.append(spent)
            told.append(answer)
    return Spent.of(seconds), Spent.of(busy).middle, told


def cold(asking: Asking, x: Tensor, s: float, stored: Snapshot) -> tuple[Spent, float]:
    """One by one, each after the files have left the page cache; and the mean of bytes that came from the disk."""
    seconds, came = [], bytes_read()
    for some in x.split(1):
        forget(stored)
        seconds.append(timed(partial(asking, some, s))[0])
    return Spent.of(seconds), (bytes_read() - came) / len(x)


def forget(stored: Snapshot) -> None:
    """Drop a set's files from the page cache, as far as nobody else has them mapped."""
    for segment, _ in stored.parts.values():
        if isinstance(segment.rows.base, mmap.mmap):
            segment.rows.base.madvise(mmap.MADV_DONTNEED)  # a page that is mapped stays
        handle = os.open(segment.path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def bytes_read() -> int:
    """Bytes that this process has had from disks; 0 where the system does not tell."""
    return _told("/proc/self/io", "read_bytes")


def resident() -> int:
    """Bytes of memory that this process holds beyond the page cache; 0 where the system does not tell."""
    gc.collect()
    return 1024 * _told("/proc/self/status", "RssAnon")


def _told(path: str, name: str) -> int:
    file = Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def bandwidth() -> float:
    """Bytes a second that one pass over memory reads, with the threads that torch has: the best of some tries."""
    import torch

    numbers = torch.ones(_COUNTED // 4)
    return _COUNTED / min(timed(numbers.sum)[0] for _ in range(_TRIES))
