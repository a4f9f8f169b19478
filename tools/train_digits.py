"""``negindex train-digits``: the command that made the demo's weights."""

from __future__ import annotations

from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes


@click.command(
    "train-digits",
    epilog="""\b
Example:
  negindex train-digits demo/digits-unet --steps 3500
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=3500, show_default=True, help="Training steps, batch 128.")
@click.option("--seed", default=0, show_default=True, help="Seed of the training.")
@errors_to_exit_codes
def train_digits(folder: Path, steps: int, seed: int) -> None:
    """Train the demo's small class-conditional model on scikit-learn's digits.

    Writes a diffusers pipeline with float16 weights to FOLDER. Takes about seven minutes on two cores.
    """
    import torch
    from diffusers import DDIMScheduler

    from negindex.sampler.pipelines import ClassConditionalPipeline
    from negindex.tools import digits

    training, _ = digits.load()

    def progress(step: int, loss: float) -> None:
        if (step + 1) % 100 == 0:
            click.echo(f"step {step + 1} of {steps}, loss {loss:.4f}", err=True)

    unet = digits.train(training, steps, seed, progress)
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    ClassConditionalPipeline(unet.to(torch.float16), scheduler).save_pretrained(folder)
    click.echo(str(folder))
