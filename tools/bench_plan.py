"""What the bench of look-ups is asked to measure, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from negindex.mixture import Mixture
    from negindex.negatives import Negatives
    from negindex.snapshot import Snapshot
    from negindex.tools.bench_sets import Stored

CALIBRATED, LITERAL = "calibrated", "literal"
BATCH = 4
COLD = 10  # queries of each kind at each level that are asked with a cold page cache, at most
REFERENCE = 4  # simulated negatives for one benign row
NOUGHT = 1e-3  # of the rms radius: how many times as much is stated is not asked of smaller errors
ROUNDING = 1e-6  # of the rms radius: how far the exact sums may be off themselves


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rows: int
    reference: int  # rows beside them
    levels: Sequence[float]  # ascending
    kernels: Sequence[str]
    k: int | None
    error: float | None
    queries: int  # of each kind at each level
    weigh: int | None  # rows, in an index of its own; None takes the set's
    seed: int


@dataclass(frozen=True, eq=False)
class Engine:
    """One set and what answers for it."""

    stored: Stored
    snapshot: Snapshot
    answering: Negatives
    mixture: Mixture
    built: float  # seconds
    memory: int  # bytes of its tensors
