"""``negindex train-world``: the command that made the miniature text-to-image model and its judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes, quiet_diffusers

if TYPE_CHECKING:
    from negindex.sampler.evaluation.fashion import Fashion
    from negindex.sampler.evaluation.judge import Judge
    from negindex.sampler.evaluation.training import Progress

_FASHION = "/usr/share/datasets/fashion-mnist"


@click.command(
    "train-world",
    epilog="""\b
Example:
  negindex train-world demo/fashion-world --checkpoints demo/checkpoints
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), default=6000, show_default=True, help="Steps of the denoiser.")
@click.option("--vae-steps", type=click.IntRange(1), default=1500, show_default=True, help="Steps of the VAE.")
@click.option("--judge-steps", type=click.IntRange(1), default=1000, show_default=True, help="Steps of the judge.")
@click.option("--seed", default=0, show_default=True, help="Seed of the training.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to go on from when the command was cut off; the same command goes on.",
)
@click.option(
    "--fashion",
    type=click.Path(path_type=Path),
    default=_FASHION,
    show_default=True,
    help="Folder with the files of Debian's dataset-fashion-mnist.",
)
@errors_to_exit_codes
def train_world(
    folder: Path,
    steps: int,
    vae_steps: int,
    judge_steps: int,
    seed: int,
    threads: int,
    checkpoints: Path | None,
    fashion: Path,
) -> None:
    """Train a small Stable Diffusion on Fashion-MNIST with captions, and a classifier to judge it.

    Writes a diffusers pipeline with float16 weights to FOLDER, and FOLDER/judge/model.safetensors, which is trained on
    images that the pipeline never saw. Takes about forty minutes on one core.
    """
    import torch

    from negindex.sampler.evaluation.fashion import load
    from negindex.sampler.evaluation.fashion_stage import JUDGE
    from negindex.sampler.evaluation.training import Plan, train_denoiser, train_vae
    from negindex.sampler.evaluation.world import assemble, save

    quiet_diffusers()
    torch.set_num_threads(threads)
    parts, plan = load(fashion), Plan(vae_steps=vae_steps, steps=steps, seed=seed)
    files = {name: checkpoints and checkpoints / f"{name}.safetensors" for name in ("vae", "denoiser")}
    vae = train_vae(parts.world, plan, _told(vae_steps), files["vae"])
    text_encoder, tokenizer, unet = train_denoiser(parts.world, vae, plan, _told(steps), files["denoiser"])
    save(assemble(vae, text_encoder, tokenizer, unet), folder)
    judge = _judge(parts, judge_steps, seed, checkpoints and checkpoints / "judge.safetensors")
    judge.save(folder / JUDGE)
    right = judge.read(parts.test.rows()).classes == parts.test.classes
    click.echo(f"{folder}: the judge reads {right.mean():.1%} of the {len(right)} test images right")


def _judge(parts: Fashion, steps: int, seed: int, file: Path | None) -> Judge:
    """The judge, or the one that an earlier run of the command had finished."""
    from negindex.sampler.evaluation.judge import Judge, train_judge

    if file is not None and file.exists():
        return Judge.load(file)
    told = _told(steps)
    judge = train_judge(parts.judge, steps, seed, lambda step, loss: told("judge", step + 1, loss))
    if file is not None:
        judge.save(file)
    return judge


def _told(steps: int) -> Progress:
    def progress(stage: str, step: int, loss: float) -> None:
        if step % 100 == 0:
            click.echo(f"{stage}: step {step} of {steps}, loss {loss:.4f}", err=True)

    return progress
