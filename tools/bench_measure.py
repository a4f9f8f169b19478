"""What the bench of look-ups measures: times, what was looked at, and errors against the exact sums."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negindex.tools.bench_looks import image, looked_at
from negindex.tools.bench_plan import BATCH, CALIBRATED, COLD, LITERAL, NOUGHT, ROUNDING, Engine, Plan
from negindex.tools.common import machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from negindex.calibration import Calibration
    from negindex.kernel import Kernel
    from negindex.partial import Partial
    from negindex.tools.bench_sets import Population, Say, Stored
    from negindex.tools.bench_times import Asking
    from negindex.tools.bench_truth import Truth


def measured(plan: Plan, population: Population, folder: Path, say: Say) -> dict[str, Any]:
    """Everything that is printed, by name."""
    from negindex.calibration import calibrate
    from negindex.errors import OutOfRange
    from negindex.index import is_small
    from negindex.kernel import LITERAL as LITERAL_KERNEL
    from negindex.negatives import row_elements
    from negindex.tools import bench_sets
    from negindex.tools.bench_times import bandwidth, resident, timed

    negatives, benign = bench_sets.both(folder, population, plan.rows, plan.reference, say)
    if plan.weigh is None and is_small(negatives.collection.snapshot()):
        raise OutOfRange(
            f"{plan.rows} rows of {population.shape} are scanned; ask for more, or larger, rows, or force an index "
            "with --weigh"
        )
    say("calibrating")
    sets, known = [one.collection.snapshot() for one in (negatives, benign)], negatives.collection.calibration()
    spent, calibration = (0.0, known) if known else timed(lambda: calibrate(*sets, seed=plan.seed))
    say("building the index of each set")
    unsafe, reference = (engine(one, calibration, plan.weigh, plan.seed) for one in (negatives, benign))
    say("making queries")
    asked = bench_sets.queries(population, plan.levels, plan.queries)
    told: dict[str, Any] = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "rows": plan.rows,
        "reference_rows": plan.reference,
        "shape": list(population.shape),
        "space": population.space,
        "seed": plan.seed,
        "queries": plan.queries,
        "k": plan.k,
        "error": plan.error,
        "weigh": plan.weigh,
        "bytes_of_rows": 2 * plan.rows * row_elements(population.shape),
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
    trajectories = asked[bench_sets.TRAJECTORY]
    told["images"] = [image(plan, name, kernels[name], unsafe, reference, trajectories, say) for name in plan.kernels]
    return {**told, "load_after": os.getloadavg()[0]}


def engine(stored: Stored, calibration: Calibration, weigh: int | None = None, seed: int = 0) -> Engine:
    """A set that answers by the calibration; its index is mapped where it stands already."""
    from negindex.mixture import Mixture, efforts_about
    from negindex.tools.bench_times import timed

    built, known = 0.0, stored.collection.calibration()
    if known is None or known.fingerprint != calibration.fingerprint:
        built, _ = timed(lambda: stored.collection.adopt(calibration))
    snapshot, kernel = stored.collection.snapshot(), calibration.kernel
    if weigh is not None:
        efforts = efforts_about(weigh)
        built, own = timed(lambda: Mixture.build(snapshot, kernel, efforts=efforts, scan_elements=0, seed=seed))
        return Engine(stored, snapshot, own, own, built, _tensor_bytes(own.clusters))
    split = snapshot.split(kernel)
    assert split is not None  # an index was adopted, or is made in memory
    return Engine(stored, snapshot, snapshot, split.mixture, built, _tensor_bytes(split.mixture.clusters))


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
    ask, compare = (Asking(one.answering, kernel, plan.k, plan.error) for one in (unsafe, reference))
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
        **looked_at(ask, x, s, unsafe.mixture),
    }, told


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
