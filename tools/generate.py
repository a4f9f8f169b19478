"""``negindex generate``: a pipeline from a local folder, guarded; images and receipts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes, quiet_diffusers
from negindex.tools.guarding import Asked, guard_options

if TYPE_CHECKING:
    from PIL.Image import Image

    from negindex.receipts import Receipt


@click.command(
    epilog="""\b
Examples:
  negindex generate data/digits-unet --negatives demo/eights.set --reference demo/others.set \\
      --kernel-floor 0.6 --prior 0.3 --count 16 --out demo/images
  negindex generate data/digits-unet --negatives demo/eights.set --rule spell --radius 4 \\
      --window timesteps:0-780 --copies none --out demo/spell
  # when `negindex add demo/eights.set demo/digits/3 --label threes` has put some in force:
  negindex generate data/digits-unet --negatives demo/eights.set --label threes=0.9 \\
      --reference demo/others.set --on-error last-good --out demo/no-threes
  negindex generate data/digits-unet --unguarded --class-label 8 --count 4 --out demo/unguarded
"""
)
@click.argument("pipeline", type=click.Path(path_type=Path))
@guard_options
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
    prompt: str | None,
    class_label: int | None,
    guidance: float | None,
    steps: int,
    count: int,
    batch: int,
    seed: int,
    out: Path,
    **guarding: Any,
) -> None:
    """Sample images from PIPELINE, a folder that diffusers' save_pretrained wrote, away from a collection.

    Writes OUT/00000.png … with its receipt inside, bound to the image's pixels, and once more beside it,
    OUT/00000.json. With several labels each has a guard and a receipt: the first label's as above, the second's
    in OUT/00000.2.json, and so on. Nothing is fetched.
    """
    guard = Asked.read(guarding)
    import torch

    from negindex.sampler.pipelines import arguments_for, load_pipeline

    quiet_diffusers()
    pipe = load_pipeline(pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with ExitStack() as stack:
        guards = [] if guard is None else guard.attach(pipe, stack)
        out.mkdir(parents=True, exist_ok=True)
        bar = stack.enter_context(click.progressbar(length=count, label="sampling", file=sys.stderr))
        for start in range(0, count, batch):
            numbers = range(start, min(start + batch, count))
            prompts = [] if prompt is None else [prompt] * len(numbers)
            asked = arguments_for(pipe, len(numbers), prompts, class_label=class_label, guidance=guidance)
            generators = [torch.Generator().manual_seed(seed + i) for i in numbers]
            images = pipe(**asked, num_inference_steps=steps, generator=generators).images
            of_each_guard = [one.receipts for one in guards]
            for place, (i, image) in enumerate(zip(numbers, images, strict=True)):
                _save(out / f"{i:05d}.png", image, [receipts[place] for receipts in of_each_guard])
            bar.update(len(numbers))
    click.echo(f"{out}: {count} images{', each with its receipt' if guards else ''}")


def _save(path: Path, image: Image, receipts: Sequence[Receipt]) -> None:
    """An image with its first receipt inside and every one beside it, or alone where nothing guarded it."""
    from negindex.sampler.png import save_image

    if not receipts:
        image.save(path)
        return
    save_image(image, receipts[0], path).save(path.with_suffix(".json"))
    for number, receipt in enumerate(receipts[1:], 2):
        receipt.bind(image).save(path.with_suffix(f".{number}.json"))
