"""``negindex bench``: what things cost, with the machine and the sizes printed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click

from negindex.tools.common import errors_to_exit_codes, machine, quiet_diffusers


@click.group()
def bench() -> None:
    """Measure what things cost on this machine."""


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
    the scheduler. Medians over the steps of one guarded run after a run to warm up.
    """
    import torch

    size = tuple(int(part) for part in shape.split(",") if part.strip().isdecimal())
    if len(size) != 3 or size[1] != size[2] or size[1] % 8:
        raise click.BadParameter(f"{shape!r}; give channels,size,size with a size that 8 divides", param_hint="--shape")
    quiet_diffusers()
    torch.set_num_threads(threads)
    spent = _guarded_run(batch, size, rows, steps)
    whole, step, look = spent["guarded step"], spent["scheduler step"], spent["look-ups"]
    click.echo(machine())
    click.echo(f"batch {batch} × {shape}, {rows} negatives and {rows} reference rows, {steps} steps; median ms a step:")
    for name, seconds in (
        ("network", spent["network"]),
        ("scheduler's own step", step),
        ("look-ups (every row read)", look),
        ("the guard itself", whole - step - look),
    ):
        click.echo(f"  {name:28}{1000 * seconds:10.3f}")
    click.echo(f"the guard itself is {(whole - step - look) / spent['network']:.1%} of the network's time")


def _guarded_run(batch: int, size: tuple[int, ...], rows: int, steps: int) -> dict[str, float]:
    """{part: median seconds a step}: the whole guarded step, the scheduler's, the look-ups, the network."""
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
    times: dict[str, list[float]] = {}

    class Timed(Exact):
        answer = _timed(times, "look-ups", Exact.answer)

    negatives, reference = Timed(torch.randn(rows, *size)), Timed(torch.randn(rows, *size))
    plain, network = DDIMScheduler.step, unet.forward
    unet.forward = _timed(times, "network", network)
    try:
        DDIMScheduler.step = _timed(
            times, "scheduler step", plain
        )  # beneath the guard, which takes its class from here
        with attach(pipe, negatives, reference, copies=None):
            kind = type(pipe.scheduler)
            kind.step = _timed(times, "guarded step", kind.step)
            pipe([0] * batch, num_inference_steps=3, output_type="pt")
            times.clear()
            pipe([0] * batch, num_inference_steps=steps, output_type="pt")
    finally:
        DDIMScheduler.step = plain
    a_step = {name: median(taken) for name, taken in times.items()}
    return {**a_step, "look-ups": 2 * a_step["look-ups"]}


def _timed(times: dict[str, list[float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its seconds a call added to ``times[name]``."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        times.setdefault(name, []).append(time.perf_counter() - began)
        return result

    return timed
