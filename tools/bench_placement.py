"""``negindex bench placement``: where a correction acts under guidance, compared at equal size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from negindex.tools.common import errors_to_exit_codes, machine, quiet_diffusers

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.negatives import Negatives
    from negindex.sampler.branches import ActsOn
    from negindex.sampler.guard import Guard
    from negindex.sampler.rules import Rule
    from negindex.tools.demo_measures import Judge

STEPS = 20
PASSES, CLOSE = 12, 0.005  # runs to find a factor in, and how close the sizes then are
PLACEMENTS: tuple[tuple[str, ActsOn, int], ...] = (
    ("guided", "guided", 1),
    ("conditional", "conditional", 1),
    ("unconditional", "unconditional", 1),
    ("unconditional, sign turned", "unconditional", -1),
)


@click.command(
    epilog="""\b
Example:
  negindex bench placement --count 400
"""
)
@click.option("--count", type=click.IntRange(9), default=200, show_default=True, help="Images a cell.")
@click.option("--guidance", type=click.FloatRange(1, min_open=True), default=2.0, show_default=True, help="w.")
@click.option("--prior", default=0.3, show_default=True, help="P(unsafe) before the sample is looked at.")
@click.option("--seed", default=0, show_default=True, help="All placements start from the same noise.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use.")
@errors_to_exit_codes
def placement(count: int, guidance: float, prior: float, seed: int, threads: int) -> None:
    """Compare a correction of one size on the guided output and on each branch of guidance.

    The digit model that comes with negindex, 8s negated, 20 steps of DDIM, guidance in all cells. Each rule is
    multiplied by a factor that makes the correction, where it arrives, as large as on the guided output: in the
    mean over all steps of the images asked for an 8. Intervals are 95 %, for each figure alone. Apart: mean L2
    distance from the images of the guided output, from the same noise.
    """
    import torch

    from negindex.sampler.rules import SafeDenoising, paired

    quiet_diffusers()
    torch.set_num_threads(threads)
    setting = _setting(Asked(count, guidance, seed), prior)
    click.echo(machine())
    click.echo(f"{count} images a cell, DDIM, {STEPS} steps, guidance {guidance:g}, prior {prior:g}, seed {seed}")
    click.echo(f"{'':28}{'factor':>8}{'size':>7}{'8s, of 8s':>17}{'distance':>14}{'apart':>7}", nl=False)
    click.echo(f"{'8s, of nothing':>17}{'right, of others':>18}")
    free = setting.eights()
    click.echo(f"{'unguarded':28}{'':15}{setting.figures(free.samples, free.samples, nullcontext)}")
    for name, rule in (("paired", paired), ("SafeDenoising", SafeDenoising())):
        click.echo(name)
        for where, line in setting.compared(rule):
            click.echo(f"  {where:26}{line}")


@dataclass(frozen=True)
class Scaled:
    """A rule whose change is multiplied."""

    rule: Rule
    factor: float

    def __call__(self, view: Any) -> Tensor:
        return self.factor * self.rule(view)


class Asked(NamedTuple):
    """What every cell has in common."""

    images: int  # a cell
    guidance: float
    seed: int


class Run(NamedTuple):
    """Images asked for the negated class."""

    samples: Tensor  # (N, 1, 8, 8)
    size: float  # mean L2 norm of the change of x0 where it arrives, over images and steps


@dataclass(frozen=True)
class Setting:
    """One pipeline, one pair of sets, one reader of digits."""

    pipe: Any
    negatives: Negatives
    reference: Negatives
    judge: Judge
    asked: Asked
    prior: float

    def sample(self, labels: Sequence[int | None]) -> Tensor:
        """(N, 1, 8, 8), from the same noise whatever the guard."""
        import torch

        generator = torch.Generator().manual_seed(self.asked.seed)
        options = {"guidance_scale": self.asked.guidance, "generator": generator, "output_type": "pt"}
        made: Tensor = self.pipe(list(labels), num_inference_steps=STEPS, **options).images
        return made

    def guarded(self, rule: Rule, acts_on: ActsOn) -> Guard:
        from negindex.kernel import Kernel
        from negindex.sampler.guard import guard
        from negindex.tools.demo_cells import KERNEL_FLOOR

        kernel = Kernel.floored(KERNEL_FLOOR)
        return guard(self.pipe, self.negatives, self.reference, self.prior, rule=rule, kernel=kernel, acts_on=acts_on)

    def eights(self, guarding: Guard | None = None) -> Run:
        """Images asked for the negated class, under a guard or none, which is taken off."""
        from negindex.tools.demo_measures import AVOIDED

        with nullcontext() if guarding is None else guarding:
            samples = self.sample([AVOIDED] * self.asked.images)
        steps = [] if guarding is None else [step for receipt in guarding.receipts for step in receipt.steps]
        return Run(samples, sum(step.correction for step in steps) / max(len(steps), 1))

    def compared(self, rule: Rule) -> Iterator[tuple[str, str]]:
        """(placement, its figures): each at the size that the rule has on the guided output."""
        plain = self.eights(self.guarded(rule, "guided"))
        for name, acts_on, sign in PLACEMENTS:
            factor, run = self._matched(rule, acts_on, sign, plain.size)
            figures = self.figures(run.samples, plain.samples, partial(self._scaled, rule, factor, acts_on))
            yield name, f"{factor:8.3f}{run.size:7.3f}{figures}"

    def _scaled(self, rule: Rule, factor: float, acts_on: ActsOn) -> Guard:
        return self.guarded(Scaled(rule, factor), acts_on)

    def _matched(self, rule: Rule, acts_on: ActsOn, sign: int, size: float) -> tuple[float, Run]:
        """The factor that gives the size, and the run that has it; where none is found, the last one tried."""
        w = self.asked.guidance
        factor = sign / {"guided": 1.0, "conditional": w, "unconditional": w - 1}[acts_on]
        for _ in range(PASSES):
            run = self.eights(self._scaled(rule, factor, acts_on))
            if abs(run.size / size - 1) < CLOSE:
                break
            factor, tried = factor * (size / run.size) ** 0.7, factor  # damped: the path bends with the factor
        else:
            return tried, run
        return factor, run

    def figures(self, eights: Tensor, beside: Tensor, guarding: Callable[[], AbstractContextManager[Any]]) -> str:
        """One line: of the images asked for an 8, for nothing and for the others; the last two are made here."""
        from negindex.tools.demo_measures import AVOIDED, OTHERS

        others = [c for c in OTHERS for _ in range(self.asked.images // len(OTHERS))]
        with guarding():
            free = self.sample([None] * self.asked.images + [OTHERS[0]])[:-1]  # the last one brings guidance about
            right = self.judge.read(self.sample(others))[0] == others
        distance = self.judge.distance(eights)
        spread = 1.96 * float(distance.std()) / sqrt(len(distance))
        apart = float((eights - beside).flatten(1).norm(dim=1).mean())
        return (
            f"{_share(self.judge.read(eights)[0] == AVOIDED):>17}{f'{distance.mean():.2f} ± {spread:.2f}':>14}"
            f"{apart:7.2f}{_share(self.judge.read(free)[0] == AVOIDED):>17}{_share(right):>18}"
        )


def _setting(asked: Asked, prior: float) -> Setting:
    """The demo's own: the 8s of the training digits, and every second one of the others for a reference."""
    from importlib.resources import as_file, files

    from negindex.exact import Exact
    from negindex.sampler.pipelines import load_pipeline
    from negindex.tools import digits
    from negindex.tools.demo_measures import AVOIDED, Judge

    training, held_out = digits.load()
    with as_file(files("negindex.data") / "digits-unet") as folder:
        pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    eights = training.only(training.classes == AVOIDED)
    rest = training.only(training.classes != AVOIDED).every_second()
    return Setting(pipe, Exact(eights.rows), Exact(rest.rows), Judge(training, held_out), asked, prior)


def _share(hits: Any) -> str:
    """A share with its Wilson interval."""
    from negindex.sampler.evaluation.intervals import wilson

    share = float(hits.mean())
    low, high = wilson(share, len(hits), 1.96)
    return f"{share:.0%} [{100 * max(low, 0):.0f}, {100 * min(high, 1):.0f}]"
