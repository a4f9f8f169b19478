"""``negindex bench``: what things cost, with the machine and the sizes printed."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import click

from negindex.tools.bench_build import build
from negindex.tools.bench_copies import copies
from negindex.tools.bench_engine import engine
from negindex.tools.bench_peers import peers
from negindex.tools.bench_placement import placement
from negindex.tools.bench_posterior import posterior
from negindex.tools.bench_serve import serve
from negindex.tools.bench_similar import similar
from negindex.tools.bench_takedown import takedown
from negindex.tools.bench_writers import writers
from negindex.tools.common import errors_to_exit_codes, machine, quiet_diffusers

NETWORK, SCHEDULER, LOOK_UPS = "network", "scheduler's own step", "look-ups (every row read)"
GUARD = "the guard itself"


@click.group()
def bench() -> None:
    """Measure what things cost on this machine."""


bench.add_command(build)
bench.add_command(copies)
bench.add_command(engine)
bench.add_command(peers)
bench.add_command(placement)
bench.add_command(posterior)
bench.add_command(serve)
bench.add_command(similar)
bench.add_command(takedown)
bench.add_command(writers)


@bench.command(
    epilog="""\b
Example:
  negindex bench guard --batch 4 --shape 4,64,64 --rows 64
"""
)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Images made at once.")
@click.option("--shape", default="4,64,64", show_default=True, help="One row's shape: channels, height, width.")
@click.option(
    "--rows", type=click.IntRange(1), default=64, show_default=True, help="Negatives, and as many references."
)
@click.option("--steps", type=click.IntRange(2), default=30, show_default=True, help="Inference steps that are timed.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use.")
@errors_to_exit_codes
def guard(batch: int, shape: str, rows: int, steps: int, threads: int) -> None:
    """What the guard itself costs a step, apart from looking the sets up.

    A randomly initialised U-Net of 9.7 M parameters is the network, far smaller than those in use; DDIM is
    the scheduler; the guard is the default one with a reference, copy gate included. Medians over the steps of
    one guarded run after a run to warm up, of what each step took less its look-ups and the scheduler's own step.
    """
    import torch

    size = tuple(int(part) for part in shape.split(",") if part.strip().isdecimal())
    if len(size) != 3 or size[1] != size[2] or size[1] % 8:
        raise click.BadParameter(f"{shape!r}; give channels,size,size with a size that 8 divides", param_hint="--shape")
    quiet_diffusers()
    torch.set_num_threads(threads)
    spent = _guarded_run(batch, size, rows, steps)
    click.echo(machine())
    click.echo(f"batch {batch} × {shape}, {rows} negatives and {rows} reference rows, {steps} steps; median ms a step:")
    for name in (NETWORK, SCHEDULER, LOOK_UPS, GUARD):
        click.echo(f"  {name:28}{1000 * spent[name]:10.3f}")
    click.echo(f"the guard itself is {spent[GUARD] / spent[NETWORK]:.1%} of the network's time")


def _guarded_run(batch: int, size: tuple[int, ...], rows: int, steps: int) -> dict[str, float]:
    """{part: median seconds a step}: the network, the scheduler's step, the look-ups, the guard itself."""
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    from negindex import Exact
    from negindex.sampler import guard as attach
    from negindex.sampler.pipelines import ClassConditionalPipeline

    unet = UNet2DModel(
        sample_size=size[1],
        in_channels=size[0],
        out_channels=size[0],
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
        num_class_embeds=2,
    ).eval()
    pipe = ClassConditionalPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    spent = _Spent()

    class Timed(Exact):
        answer = spent.timed(LOOK_UPS, Exact.answer)
        nearest = spent.timed(LOOK_UPS, Exact.nearest)

    negatives, reference = Timed(torch.randn(rows, *size)), Timed(torch.randn(rows, *size))
    plain = DDIMScheduler.step
    unet.forward = spent.timed(NETWORK, unet.forward)
    try:
        DDIMScheduler.step = spent.timed(SCHEDULER, plain)  # beneath the guard, which takes its class from here
        with attach(pipe, negatives, reference):
            kind = type(pipe.scheduler)
            kind.step = spent.step(kind.step)
            for many in (3, steps):
                spent.steps.clear()
                pipe([0] * batch, num_inference_steps=many, output_type="pt")
    finally:
        DDIMScheduler.step = plain
    return {name: median(step[name] for step in spent.steps) for name in spent.steps[0]}


class _Spent:
    """Seconds by part, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its seconds counted to a part of the step."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self._now[part] += time.perf_counter() - began
            return result

        return timed

    def step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that ends a step; what no part of it took is the guard's own."""
        whole = self.timed(GUARD, function)

        @functools.wraps(function)
        def step(*args: Any, **kwargs: Any) -> Any:
            result = whole(*args, **kwargs)
            self._now[GUARD] -= self._now[SCHEDULER] + self._now[LOOK_UPS]
            self.steps.append(self._now)
            self._now = defaultdict(float)
            return result

        return step
