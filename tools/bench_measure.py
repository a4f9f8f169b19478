"""What the bench of look-ups measures: times, what was looked at, and errors against the exact sums."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negindex.tools.common import machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from negindex.calibration import Calibration
    from negindex.kernel import Kernel
    from negindex.mixture import Mixture
    from negindex.partial import Partial
    from negindex.snapshot import Snapshot
    from negindex.tools.bench_sets import Say, Stored
    from negindex.tools.bench_times import Asking
    from negindex.tools.bench_truth import Truth

CALIBRATED, LITERAL = "calibrated", "literal"
BATCH = 4
COLD = 10  # queries of each kind at each level that are asked with a cold page cache, at most
NOUGHT = 1e-3  # of the rms radius: how many times as much is stated is not asked of smaller errors
ROUNDING = 1e-6  # of the rms radius: how far the exact sums may be off themselves
REFERENCE = 4  # negatives for one row of the benign reference


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rows: int
    shape: Sequence[int]
    levels: Sequence[float]  # ascending
    kernels: Sequence[str]
    k: int | None
    error: float | None
    queries: int  # of each kind at each level
    seed: int


@dataclass(frozen=True, eq=False)
class Engine:
    """One set and what answers for it."""

    stored: Stored
    snapshot: Snapshot
    mixture: Mixture
    built: float  # seconds
    memory: int  # bytes of its tensors


def measured(plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Everything that is printed, by name."""
    from negindex.calibration import calibrate
    from negindex.kernel import LITERAL as LITERAL_KERNEL
    from negindex.negatives import row_elements
    from negindex.tools import bench_sets
    from negindex.tools.bench_times import bandwidth, resident, timed
    from negindex.tools.latents import Latents

    needed = 2 * row_elements(tuple(plan.shape)) * (plan.rows + plan.rows // REFERENCE)
    say(f"{needed / 1e9:.2f} GB of rows in {folder}")
    bench_sets.check_disk(folder, 0 if (folder / "negatives").exists() else needed)
    population = Latents(tuple(plan.shape), seed=plan.seed)
    negatives = bench_sets.stored(folder / "negatives", population, "rows", plan.rows, say)
    benign = bench_sets.stored(folder / "benign", population, "benign", plan.rows // REFERENCE, say)
    say("calibrating")
    sets, known = [one.collection.snapshot() for one in (negatives, benign)], negatives.collection.calibration()
    spent, calibration = (0.0, known) if known else timed(lambda: calibrate(*sets, seed=plan.seed))
    say("building the index of each set")
    unsafe, reference = (_engine(one, calibration) for one in (negatives, benign))
    say("making queries")
    asked = bench_sets.queries(population, plan.levels, plan.queries)
    told: dict[str, Any] = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "rows": plan.rows,
        "reference_rows": plan.rows // REFERENCE,
        "shape": list(plan.shape),
        "seed": plan.seed,
        "queries": plan.queries,
        "k": plan.k,
        "error": plan.error,
        "bytes_of_rows": 2 * plan.rows * row_elements(tuple(plan.shape)),
        "bytes_on_disk": bench_sets.bytes_of(folder / "negatives"),
        "seconds_made": negatives.made,
        "seconds_added": negatives.added,
        "seconds_calibrated": spent,
        "calibration": calibration.table(),
        "kernel": calibration.kernel.name,
        "seconds_built": unsafe.built,
        "bytes_of_index": unsafe.memory,
        "bytes_resident": resident(),
        "clusters": len(unsafe.mixture.clusters.counts),
        **_of_the_set(unsafe, calibration, asked),
        "bandwidth": bandwidth(),
    }
    kernels = {CALIBRATED: calibration.kernel, LITERAL: LITERAL_KERNEL}
    told["cells"] = [
        cell for name in plan.kernels for cell in _cells(plan, name, kernels[name], unsafe, reference, asked, say)
    ]
    return {**told, "load_after": os.getloadavg()[0]}


def _engine(stored: Stored, calibration: Calibration) -> Engine:
    """A set that answers by the calibration; its index is mapped where it stands already."""
    from negindex.errors import OutOfRange
    from negindex.tools.bench_times import timed

    built, known = 0.0, stored.collection.calibration()
    if known is None or known.fingerprint != calibration.fingerprint:
        built, _ = timed(lambda: stored.collection.adopt(calibration))
    snapshot = stored.collection.snapshot()
    split = snapshot.split(calibration.kernel)
    if split is None:
        raise OutOfRange(f"{len(snapshot)} rows of {snapshot.shape} are scanned; ask for more, or larger, rows")
    return Engine(stored, snapshot, split.mixture, built, _tensor_bytes(split.mixture.clusters))


def _tensor_bytes(part: object) -> int:
    """Bytes of all tensors that a part of an index holds, its kernel's aside."""
    import torch

    if isinstance(part, torch.Tensor):
        return part.nbytes
    parts = part if isinstance(part, tuple) else vars(part).values() if is_dataclass(part) else ()
    return sum(map(_tensor_bytes, parts))


def _of_the_set(unsafe: Engine, calibration: Calibration, asked: dict[str, Tensor]) -> dict[str, float]:
    """Opening, one scan, one row added and withdrawn, and the index without a row."""
    from negindex.collection import Collection
    from negindex.tools.bench_sets import HELD_OUT
    from negindex.tools.bench_times import Asking, timed

    collection, row = unsafe.stored.collection, asked[HELD_OUT][0, :1]
    scan = Asking(unsafe.mixture.source, calibration.kernel, None, None)
    scan(row, 1.0)
    key = [f"added-{collection.newest().version}"]
    return {
        "seconds_opened": timed(lambda: Collection.open(collection.path).snapshot().split(calibration.kernel))[0],
        "seconds_scanned": timed(lambda: scan(row, 1.0))[0],
        "seconds_to_add": timed(lambda: collection.add(row.half().numpy(), key))[0],
        "seconds_to_withdraw": timed(lambda: collection.withdraw(key, "benchmark"))[0],
        "seconds_to_leave_out": timed(lambda: unsafe.mixture.over(unsafe.snapshot, [1]))[0],
    }


def _cells(
    plan: Plan, name: str, kernel: Kernel, unsafe: Engine, reference: Engine, asked: dict[str, Tensor], say: Say
) -> Iterator[dict[str, Any]]:
    """What is printed of each level and kind of query under one kernel."""
    from negindex.tools.bench_times import Asking

    say(f"{name}: exact sums over all rows")
    truths = [_exact(one, kernel, plan.levels, asked) for one in (unsafe, reference)]
    ask, compare = (Asking(one.snapshot, kernel, plan.k, plan.error) for one in (unsafe, reference))
    for at, s in enumerate(plan.levels):
        say(f"{name}: s = {s:g}")
        for number, (kind, x) in enumerate(asked.items()):
            true, beside = (_part(truth, (number * len(plan.levels) + at), plan.queries) for truth in truths)
            times, told = _times(ask, x[at], s, unsafe)
            difference = [compare(some, s) for some in x[at].split(BATCH)]
            errors = _errors(told, true, difference, beside, unsafe.mixture.clusters.rms)
            yield {"kernel": name, "s": s, "kind": kind, **times, **errors}


def _exact(one: Engine, kernel: Kernel, levels: Sequence[float], asked: dict[str, Tensor]) -> Truth:
    import torch

    from negindex.tools.bench_truth import exact

    x = torch.cat([kind.flatten(0, 1).flatten(1) for kind in asked.values()])
    each = torch.tensor(levels, dtype=torch.float64).repeat_interleave(len(x) // (len(levels) * len(asked)))
    return exact(one.snapshot, kernel, x, each.repeat(len(asked)))


def _part(truth: Truth, number: int, count: int) -> Truth:
    here = slice(number * count, (number + 1) * count)
    return type(truth)(truth.log_norm[here], truth.mean[here])


def _times(ask: Asking, x: Tensor, s: float, unsafe: Engine) -> tuple[dict[str, Any], list[Partial]]:
    """Times of one kind of query at one level, what was looked at, and the answers one by one."""
    from negindex.tools.bench_times import cold, warm

    alone, busy, told = warm(ask, x, s, 1)
    together, busy_together, _ = warm(ask, x, s, BATCH)
    without, came = cold(ask, x[:COLD], s, unsafe.snapshot)
    return {
        "ms": alone,
        "ms_busy": busy,
        "ms_batch": together,
        "ms_batch_busy": busy_together,
        "ms_cold": without,
        "bytes_cold": came,
        **_looked_at(ask, x, s, unsafe.mixture),
    }, told


def _looked_at(ask: Asking, x: Tensor, s: float, mixture: Mixture) -> dict[str, float]:
    """Means over samples (B, *S): rows weighed, clusters opened, rows read."""
    from negindex.negatives import Query
    from negindex.noise import NoiseLevel

    every: dict[str, float] = {"weighed": len(mixture), "opened": len(mixture.clusters.counts)}
    if not mixture.models(ask.kernel):
        return {**every, "read": len(mixture)}
    query = Query(x, NoiseLevel(1.0, s).expand(len(x)), ask.kernel, ask.k, ask.error)
    if ask.kernel != mixture.kernel:
        return {**every, "read": sum(one.read for one in mixture.readings(query)) / len(x)}
    heads = [head for head, _ in mixture.heads(query)]
    weighed = sum(int(mixture.clusters.counts[head.opened].sum()) for head in heads)
    opened, read = (sum(map(len, part)) for part in zip(*((h.opened, h.reading.rows) for h in heads), strict=True))
    return {"weighed": weighed / len(x), "opened": opened / len(x), "read": read / len(x)}


def _errors(
    told: Sequence[Partial], true: Truth, compared: Sequence[Partial], beside: Truth, rms: float
) -> dict[str, float]:
    """How far answers are from the exact ones, and from what they state."""
    import torch

    def whole(parts: Sequence[Partial], name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    mean, other = (whole(parts, "mean").flatten(1) for parts in (told, compared))
    log_norm, stated = whole(told, "log_norm"), whole(told, "error")
    wrong = (mean - true.mean).norm(dim=1) / rms
    tail = (whole(told, "log_tail") - log_norm).exp()
    apart, exactly = other - mean, beside.mean - true.mean
    return {
        "captured": float(whole(told, "captured").mean()),
        "tail": float(tail.mean()),
        "true_tail": float((1 - (log_norm + torch.log1p(-tail) - true.log_norm).exp()).clamp_min(0).mean()),
        "stated": float(stated.mean()),
        "error_of_mean": float(wrong.mean()),
        "worst": float(wrong.max()),
        "times": float((stated / wrong.clamp_min(NOUGHT)).median()),
        "holds": float((stated >= wrong - ROUNDING).double().mean()),
        "log_norm": float((log_norm - true.log_norm).abs().mean()),
        "difference": float(((apart - exactly).norm(dim=1) / exactly.norm(dim=1)).mean()),
    }
