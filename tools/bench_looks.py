"""What look-ups look at, and what they cost a whole image."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from negindex.tools.bench_plan import COLD

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.head import Head
    from negindex.kernel import Kernel
    from negindex.mixture import Mixture
    from negindex.negatives import Query
    from negindex.tools.bench_plan import Engine, Plan
    from negindex.tools.bench_sets import Say
    from negindex.tools.bench_times import Asking


def looked_at(ask: Asking, x: Tensor, s: float, mixture: Mixture) -> dict[str, float]:
    """Means over samples (B, *S): rows weighed, clusters opened, rows read."""
    every: dict[str, float] = {"weighed": len(mixture), "opened": len(mixture.clusters.counts)}
    if not mixture.models(ask.kernel):
        return {**every, "read": len(mixture)}
    if ask.kernel != mixture.kernel:
        return {**every, "read": sum(one.read for one in mixture.readings(_query(ask, x, s))) / len(x)}
    heads = _heads(ask, x, s, mixture)
    weighed = sum(int(mixture.clusters.counts[head.opened].sum()) for head in heads)
    opened, read = (sum(map(len, part)) for part in zip(*((h.opened, h.reading.rows) for h in heads), strict=True))
    return {"weighed": weighed / len(x), "opened": opened / len(x), "read": read / len(x)}


def image(
    plan: Plan, name: str, kernel: Kernel, unsafe: Engine, reference: Engine, x: Tensor, say: Say
) -> dict[str, Any]:
    """What the look-ups of whole images cost: at every level of a trajectory (L, n, *S) both sets are asked.

    With the files out of the page cache before the image, and once more straight afterwards; and how many of the rows
    that a step reads were read by the step before.
    """
    from negindex.tools.bench_times import Asking, Spent, forget, timed

    say(f"{name}: whole images")
    asks = [Asking(one.answering, kernel, plan.k, plan.error) for one in (unsafe, reference)]
    down = sorted(enumerate(plan.levels), key=lambda level: -level[1])
    cold: list[float] = []
    warm: list[float] = []
    again: list[float] = []
    for b in range(min(COLD, x.shape[1])):
        for one in (unsafe, reference):
            forget(one.snapshot)
        for seconds in (cold, warm):
            seconds.append(sum(timed(partial(ask, x[at, b : b + 1], s))[0] for at, s in down for ask in asks))
        read = [_read(asks[0], x[at, b : b + 1], s, unsafe.mixture) for at, s in down]
        again += [len(one & two) / max(len(two), 1) for one, two in pairwise(read)]
    return {
        "kernel": name,
        "steps": len(down),
        "ms_cold": Spent.of(cold),
        "ms": Spent.of(warm),
        "read_again": sum(again) / max(len(again), 1),
    }


def _read(ask: Asking, x: Tensor, s: float, mixture: Mixture) -> set[int]:
    """The rows that a look-up reads in full, by their number in the index; none where all are scanned."""
    return set() if ask.kernel != mixture.kernel else set(_heads(ask, x, s, mixture)[0].reading.rows.tolist())


def _heads(ask: Asking, x: Tensor, s: float, mixture: Mixture) -> list[Head]:
    """What memory says of samples (B, *S)."""
    return [head for head, _ in mixture.heads(_query(ask, x, s))]


def _query(ask: Asking, x: Tensor, s: float) -> Query:
    from negindex.negatives import Query
    from negindex.noise import NoiseLevel

    return Query(x, NoiseLevel(1.0, s).expand(len(x)), ask.kernel, ask.k, ask.error)
