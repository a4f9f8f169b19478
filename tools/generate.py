"""``negindex generate``: a pipeline from a local folder, guarded; images and receipts."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes, quiet_diffusers

if TYPE_CHECKING:
    from PIL.Image import Image

    from negindex.receipts import Receipt


@click.command(
    epilog="""\b
Examples:
  negindex generate data/digits-unet --negatives demo/eights.set --reference demo/others.set \\
      --kernel-floor 0.6 --prior 0.3 --count 16 --out demo/images
  negindex generate data/digits-unet --unguarded --class-label 8 --count 4 --out demo/unguarded
"""
)
@click.argument("pipeline", type=click.Path(path_type=Path))
@click.option("--negatives", type=click.Path(path_type=Path), help="The collection to stay away from.")
@click.option("--reference", type=click.Path(path_type=Path), help="A collection of benign images to compare with.")
@click.option("--unguarded", is_flag=True, help="Sample without a guard, to compare with.")
@click.option("--prior", default=0.1, show_default=True, help="P(unsafe) before the sample is looked at.")
@click.option(
    "--kernel-floor",
    type=float,
    metavar="S",
    help="Below noise level S keep the kernel as wide as at S (default: literal).",
)
@click.option("--prompt", help="For text-to-image pipelines.")
@click.option("--class-label", type=int, help="For class-conditional pipelines.")
@click.option("--guidance", type=float, help="Scale of classifier-free guidance (default: the pipeline's own).")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Inference steps.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Images to make.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images made at once.")
@click.option("--seed", default=0, show_default=True, help="Image i is made from seed + i, whatever the batch.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for images and receipts."
)
@errors_to_exit_codes
def generate(
    pipeline: Path,
    negatives: Path | None,
    reference: Path | None,
    unguarded: bool,
    prior: float,
    kernel_floor: float | None,
    prompt: str | None,
    class_label: int | None,
    guidance: float | None,
    steps: int,
    count: int,
    batch: int,
    seed: int,
    out: Path,
) -> None:
    """Sample images from PIPELINE, a folder that diffusers' save_pretrained wrote, away from a collection.

    Writes OUT/00000.png … with its receipt inside, bound to the image's pixels, and once more beside it,
    OUT/00000.json. Nothing is fetched.
    """
    if unguarded == (negatives is not None):
        raise click.UsageError("give --negatives, or --unguarded, and not both")
    import torch

    from negindex import LITERAL, Collection, Kernel
    from negindex.sampler import guard
    from negindex.sampler.pipelines import load_pipeline

    quiet_diffusers()
    pipe = load_pipeline(pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    guarding = None
    if negatives is not None:
        kernel = LITERAL if kernel_floor is None else Kernel(temperatures=[(kernel_floor, 1.0)])
        benign = None if reference is None else Collection.open(reference)
        guarding = guard(pipe, Collection.open(negatives), benign, prior, kernel=kernel)
    out.mkdir(parents=True, exist_ok=True)
    with click.progressbar(length=count, label="sampling", file=sys.stderr) as bar:
        for start in range(0, count, batch):
            numbers = range(start, min(start + batch, count))
            asked = _arguments(pipe, len(numbers), prompt, class_label, guidance)
            generators = [torch.Generator().manual_seed(seed + i) for i in numbers]
            images = pipe(**asked, num_inference_steps=steps, generator=generators).images
            receipts = [None] * len(numbers) if guarding is None else guarding.receipts
            for i, image, receipt in zip(numbers, images, receipts, strict=True):
                _save(out / f"{i:05d}.png", image, receipt)
            bar.update(len(numbers))
    click.echo(f"{out}: {count} images{'' if guarding is None else ', each with its receipt'}")


def _save(path: Path, image: Image, receipt: Receipt | None) -> None:
    """An image with its receipt inside and beside it, or alone where nothing guarded it."""
    from negindex.sampler.png import save_image

    if receipt is None:
        image.save(path)
    else:
        save_image(image, receipt, path).save(path.with_suffix(".json"))


def _arguments(
    pipe: Any, images: int, prompt: str | None, class_label: int | None, guidance: float | None
) -> dict[str, Any]:
    """The pipeline's own arguments for so many images; what it does not take is a usage error."""
    takes = inspect.signature(pipe.__call__).parameters
    asked: dict[str, Any] = {}
    if prompt is not None:
        asked["prompt"] = [prompt] * images
    elif "class_labels" in takes:
        asked["class_labels"] = [class_label] * images
    elif class_label is not None:
        raise click.UsageError(f"{type(pipe).__name__} takes no --class-label")
    elif "batch_size" in takes:
        asked["batch_size"] = images
    elif "prompt" in takes:
        raise click.UsageError(f"{type(pipe).__name__} needs a --prompt")
    if guidance is not None:
        asked["guidance_scale"] = guidance
    unknown = [name for name in asked if name not in takes]
    if unknown:
        raise click.UsageError(f"{type(pipe).__name__} does not take {', '.join(unknown)}")
    return asked
