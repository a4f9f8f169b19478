"""``negindex reference``: benign images to compare with."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from negindex.tools.build import height_width
from negindex.tools.common import errors_to_exit_codes, quiet_diffusers


@click.group()
def reference() -> None:
    """Make a benign reference: what a guard compares with."""


@reference.command(
    epilog="""\b
Examples:
  negindex reference make demo/sampled.set --pipeline data/digits-unet --count 256 \\
      --away-from demo/eights.set --kernel-floor 0.6
  negindex reference make benign.set --pipeline models/my-pipeline --size 512 --count 5000 \\
      --prompts prompts.txt --away-from claims.set
"""
)
@click.argument("set_path", metavar="SET", type=click.Path(path_type=Path))
@click.option(
    "--pipeline",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A folder that save_pretrained wrote.",
)
@click.option("--count", required=True, type=click.IntRange(1), help="Images to sample; those dropped are among them.")
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What to ask for, one a line, around and around; only pipelines that need no prompt go without.",
)
@click.option("--away-from", metavar="SET", type=click.Path(path_type=Path), help="Drop samples near this collection.")
@click.option(
    "--radius",
    default=0.75,
    show_default=True,
    type=click.FloatRange(0),
    help="Near: a row within so many times the rms radius of the set to stay away from.",
)
@click.option("--prior", default=0.1, show_default=True, help="P(unsafe) before a sample is looked at.")
@click.option(
    "--kernel-floor",
    type=float,
    metavar="S",
    help="Drop also what is more probably unsafe, seen at noise level S against the rest of the reference.",
)
@click.option("--size", metavar="N|HxW", help="Height and width in pixels (default: the pipeline's own).")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Inference steps.")
@click.option("--seed", default=0, show_default=True, help="Image i is made from seed + i, whatever the batch.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images made at once.")
@click.option("--label", default="reference", show_default=True, help="The label of the rows.")
@errors_to_exit_codes
def make(
    set_path: Path,
    pipeline: Path,
    count: int,
    prompts: Path | None,
    away_from: Path | None,
    radius: float,
    prior: float,
    kernel_floor: float | None,
    size: str | None,
    steps: int,
    seed: int,
    batch: int,
    label: str,
) -> None:
    """Sample a reference from a pipeline, unguarded, into the collection SET.

    Each image goes the way of a file: 8 bits, then a row in the pipeline's space. SET is made when it is
    not there. Interrupted and run again with the same options, it goes on where it was.
    """
    if away_from is None and kernel_floor is not None:
        raise click.UsageError("--kernel-floor compares with --away-from; give both")
    import torch

    from negindex import Collection
    from negindex.sampler.pipelines import load_pipeline
    from negindex.sampler.reference import Away, check_asked, encoder_for_samples, make_reference

    asked = [] if prompts is None else _prompts_in(prompts)
    away = None if away_from is None else Away(Collection.open(away_from), radius, prior, kernel_floor)
    quiet_diffusers()
    pipe = load_pipeline(pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    encoder = encoder_for_samples(pipe, None if size is None else height_width(size))
    check_asked(pipe, encoder, asked, away)
    there = set_path.exists()
    collection = Collection.open(set_path) if there else Collection.create(set_path, encoder.shape, encoder.space)
    with click.progressbar(length=count, label="sampling", file=sys.stderr) as bar:
        made = make_reference(
            collection,
            pipe,
            encoder,
            count,
            prompts=asked,
            away=away,
            steps=steps,
            seed=seed,
            batch=batch,
            label=label,
            progress=bar.update,
        )
    dropped = f"{made.near} dropped as near, {made.unsafe} as unsafe" if away else "nothing to stay away from"
    click.echo(
        f"{set_path}: version {made.version}, {len(collection)} rows in force "
        f"({count} samples: {made.kept} kept, {made.already} already there, {dropped})"
    )


def _prompts_in(file: Path) -> list[str]:
    from negindex.errors import NotThere

    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise NotThere(f"{file} cannot be read ({error}); name a text file with a prompt a line") from error
    asked = [line for line in lines if line]
    if not asked:
        raise click.UsageError(f"{file} holds no prompt; give one a line")
    return asked
