"""The demo's cells: two schedulers, three things asked for, unguarded and guarded from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from negindex.collection import Collection
from negindex.kernel import Kernel
from negindex.sampler.guard import Guard, guard
from negindex.tools.demo_measures import (
    AVOIDED,
    OTHERS,
    Judge,
    Measured,
    Verdict,
    asked_for_avoided,
    asked_for_others,
    expected_without,
    measure,
    unconditional,
)
from negindex.tools.demo_sheet import Panel
from negindex.tools.digits import CLASSES

PRIOR, KERNEL_FLOOR, GUIDANCE = 0.3, 0.6, 2.0
SCHEDULERS = (("DDIM", 20), ("DPM-Solver++", 12))  # inference steps
BATCH, SHOWN = 250, 40

NOTHING, AVOIDED_CLASS, OTHER_CLASSES = "asked for nothing", f"asked for {AVOIDED}", "asked for the others"


def labels_of(images: int) -> dict[str, list[int | None]]:
    """The labels that each cell samples: ``images`` of none, and a fifth as many of each class."""
    return {
        NOTHING: [None] * images,
        AVOIDED_CLASS: [AVOIDED] * (images // 5),
        OTHER_CLASSES: [c for c in OTHERS for _ in range(images // 5)],
    }


@dataclass(frozen=True)
class Setting:
    """One pipeline and one guard: the same rule, prior and kernel in every cell."""

    pipe: Any
    negatives: Collection
    reference: Collection

    def guarded(self) -> Guard:
        kernel = Kernel.floored(KERNEL_FLOOR)
        return guard(self.pipe, self.negatives, self.reference, PRIOR, kernel=kernel)

    def __str__(self) -> str:
        return (
            f"rule: paired; gate: ratio, prior {PRIOR:g}; kernel: Gaussian over all 64 dimensions, below noise level "
            f"{KERNEL_FLOOR:g} as wide as there; guidance {GUIDANCE:g}; {len(self.negatives)} negatives, "
            f"{len(self.reference)} reference rows"
        )


@dataclass(frozen=True)
class Compared:
    """One scheduler's cells: {what was asked: (unguarded, guarded)}."""

    title: str
    samples: dict[str, tuple[torch.Tensor, torch.Tensor]]
    measured: dict[str, tuple[Measured, Measured]]
    held_out_distance: float

    def table(self) -> Iterator[str]:
        yield (
            f"{self.title:36}{'n':>5}"
            + "".join(f"{f'{c}s':>7}" for c in CLASSES)
            + f"{'right':>8}{'confidence':>12}{'distance':>10}{'s/image':>9}"
        )
        for asked, (free, kept) in self.measured.items():
            for name, cell in (("unguarded", free), ("guarded", kept)):
                right = f"{cell.accuracy:8.1%}" if asked == OTHER_CLASSES else " " * 8
                yield (
                    f"{asked:24}{name:12}{cell.count:5}"
                    + "".join(f"{share:7.1%}" for share in cell.shares)
                    + f"{right}{cell.confidence:12.3f}{cell.distance:10.3f}{cell.seconds:9.4f}"
                )
            if asked == NOTHING:
                yield from self._expected(free, kept)

    def _expected(self, free: Measured, kept: Measured) -> Iterator[str]:
        expected = expected_without(free, kept)
        for name, part in ((f"expected without {AVOIDED}s", 0), ("± (95 %, all at once)", 1)):
            cells = (f"{expected[c][part]:7.1%}" if c in expected else " " * 7 for c in CLASSES)
            yield f"  {name:39}" + "".join(cells)

    def verdicts(self) -> Iterator[Verdict]:
        found = [
            *unconditional(*self.measured[NOTHING], self.held_out_distance),
            *asked_for_avoided(*self.measured[AVOIDED_CLASS]),
            *asked_for_others(*self.measured[OTHER_CLASSES]),
        ]
        return (verdict._replace(what=f"{self.title}: {verdict.what}") for verdict in found)

    def panels(self) -> Iterator[tuple[Panel, Panel]]:
        """What the contact sheet shows."""
        for asked in (NOTHING, AVOIDED_CLASS):
            free, kept = (
                Panel(f"{self.title}, {asked}: {name}", samples[:SHOWN], measured.read[:SHOWN] == AVOIDED)
                for name, samples, measured in zip(
                    ("unguarded", "guarded"), self.samples[asked], self.measured[asked], strict=True
                )
            )
            yield free, kept


def compare(setting: Setting, judge: Judge, images: int, progress: Callable[[str], None]) -> list[Compared]:
    """Sample and measure every cell; the first of them has ``images`` images."""
    sample(setting.pipe, [None] * BATCH, steps=2, seed=0)  # the first calls pay for warming up
    compared = []
    for name, steps in SCHEDULERS:
        setting.pipe.scheduler = _scheduler(name, setting.pipe.scheduler)
        title = f"{name}, {steps} steps"
        samples, measured = {}, {}
        for asked, labels in labels_of(images).items():
            cells = []
            for kind, guarding in (("unguarded", nullcontext), ("guarded", setting.guarded)):
                cells.append(_timed(setting.pipe, guarding(), labels, steps))
                progress(f"{title}, {asked}, {kind}: {len(labels)} images in {cells[-1][1]:.1f} s")
            samples[asked] = (cells[0][0], cells[1][0])
            measured[asked] = (
                measure(judge, cells[0][0], labels, cells[0][1]),
                measure(judge, cells[1][0], labels, cells[1][1]),
            )
        compared.append(Compared(title, samples, measured, judge.held_out_distance))
    return compared


def sample(pipe: Any, labels: Sequence[int | None], steps: int, seed: int) -> torch.Tensor:
    """Samples (N, 1, 8, 8), in batches that depend on nothing but the labels and the seed."""
    made = []
    for start in range(0, len(labels), BATCH):
        some = labels[start : start + BATCH]
        generator = torch.Generator().manual_seed(seed + start)
        made.append(
            pipe(some, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generator, output_type="pt").images
        )
    return torch.cat(made)


def _timed(
    pipe: Any, guarding: AbstractContextManager[Any], labels: Sequence[int | None], steps: int
) -> tuple[torch.Tensor, float]:
    began = time.perf_counter()
    with guarding:
        samples = sample(pipe, labels, steps, seed=0)
    return samples, time.perf_counter() - began


def _scheduler(name: str, like: Any) -> Any:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    kind = {"DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler}[name]
    return kind.from_config(like.config)
