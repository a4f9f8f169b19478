"""``negindex build`` and ``negindex add``: images into a collection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import PARTLY, errors_to_exit_codes
from negindex.tools.options import BY, KEY, SET, open_key_if_any, open_set

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.sampler.encode import Encoder

_SOURCES = click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
_LABEL = click.option("--label", help="A label for all rows of this run, to look them up and withdraw them by.")
_PIPELINE = click.option(
    "--pipeline",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Make rows in the space of this pipeline, a folder that save_pretrained wrote; only its VAE is loaded.",
)
_REASON = click.option("--reason", default="", help="Why, for the record.")


@click.command(
    epilog="""\b
Examples:
  negindex build demo/eights.set demo/digits/8 --space pixels --size 8
  negindex build claims.set claims/ --pipeline models/my-pipeline --size 512
"""
)
@SET
@_SOURCES
@click.option("--space", type=click.Choice(["pixels"]), help="What the rows are; pixels unless --pipeline says.")
@_PIPELINE
@click.option(
    "--size", required=True, metavar="N|HxW", help="Height and width of the model's images, such as 8 or 480x640."
)
@click.option(
    "--channels", type=click.IntRange(1, 3), help="Of pixels: 1 or 3; default: 1 when every image of a new set is grey."
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="Stored type."
)
@_LABEL
@_REASON
@BY
@KEY
@errors_to_exit_codes
def build(
    set_path: Path,
    sources: tuple[Path, ...],
    space: str | None,
    pipeline: Path | None,
    size: str,
    channels: int | None,
    dtype: str,
    label: str | None,
    reason: str,
    by: str,
    key_file: Path | None,
) -> None:
    """Put the images of SOURCES (files, or folders at any depth) into the collection SET.

    SET is made when it is not there. Run again, it adds what is new and changes nothing else. A file that
    cannot become a row is named, stops nothing, and makes the exit code 3.
    """
    if pipeline is not None and (space or channels):
        raise click.UsageError("--pipeline says what the rows are; leave out --space and --channels")
    from negindex import Collection
    from negindex.sampler.corpus import encoder_asked, sources_in

    height, width = height_width(size)
    inputs = sources_in(sources)
    key = open_key_if_any(key_file)
    collection = Collection.open(set_path, key=key) if set_path.exists() else None
    encoder = encoder_asked(
        collection, [file for _, file in inputs], height, width, channels=channels, pipeline=pipeline
    )
    if collection is None:
        collection = Collection.create(set_path, encoder.shape, encoder.space, dtype=dtype, key=key)
    _ingest(collection, inputs, encoder, label, reason, by)


@click.command(
    epilog="""\b
Examples:
  negindex add demo/eights.set demo/digits/3 --label threes
  negindex add claims.set notice-17.png --pipeline models/my-pipeline --label claim-17
"""
)
@SET
@_SOURCES
@_PIPELINE
@_LABEL
@_REASON
@BY
@KEY
@errors_to_exit_codes
def add(
    set_path: Path,
    sources: tuple[Path, ...],
    pipeline: Path | None,
    label: str | None,
    reason: str,
    by: str,
    key_file: Path | None,
) -> None:
    """Put more images in force in a collection that exists.

    A set in a pipeline's latent space needs that pipeline's folder again (--pipeline); another one is refused.
    When the command returns they are on the disk, and every sampler that follows the set obeys them from
    its next image on.
    """
    from negindex.sampler.corpus import encoder_for, sources_in

    collection = open_set(set_path, key_file)
    inputs = sources_in(sources)
    _ingest(collection, inputs, encoder_for(collection, pipeline), label, reason, by)


def _ingest(
    collection: Collection, inputs: list[tuple[str, Path]], encoder: Encoder, label: str | None, reason: str, by: str
) -> None:
    from negindex.sampler.corpus import ingest

    with click.progressbar(length=len(inputs), label="encoding", file=sys.stderr) as bar:
        report = ingest(
            collection, inputs, encoder, label=label, reason=reason, by=by, progress=lambda _: bar.update(1)
        )
    for name, why in report.refused:
        click.echo(f"refused: {name}: {why}", err=True)
    click.echo(
        f"{collection.path}: version {report.version}, {len(collection)} rows in force "
        f"({report.added} added, {report.unchanged} already there, {len(report.refused)} refused)"
    )
    if report.refused:
        sys.exit(PARTLY)


def height_width(size: str) -> tuple[int, int]:
    """--size as numbers; a usage error where it is none."""
    parts = size.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f"{size!r}; give a number of pixels such as 64, or height x width such as 480x640", param_hint="--size"
        )
    return int(parts[0]), int(parts[-1])
