"""``negindex build`` and ``negindex add``: images into a collection."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from negindex.tools.common import PARTLY, errors_to_exit_codes

_SOURCES = click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
_SET = click.argument("set_path", metavar="SET", type=click.Path(path_type=Path))
_LABEL = click.option("--label", help="A label for all rows of this run, to look them up and withdraw them by.")
_REASON = click.option("--reason", default="", help="Why, for the record.")


@click.command(
    epilog="""\b
Example:
  negindex build demo/eights.set demo/digits/8 --space pixels --size 8
"""
)
@_SET
@_SOURCES
@click.option("--space", type=click.Choice(["pixels"]), default="pixels", show_default=True, help="What the rows are.")
@click.option(
    "--size", required=True, metavar="N|HxW", help="Height and width of the model's samples, such as 8 or 480x640."
)
@click.option("--channels", type=click.IntRange(1, 3), help="1 or 3; default: 1 when every image of a new set is grey.")
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="Stored type."
)
@_LABEL
@_REASON
@errors_to_exit_codes
def build(
    set_path: Path,
    sources: tuple[Path, ...],
    space: str,
    size: str,
    channels: int | None,
    dtype: str,
    label: str | None,
    reason: str,
) -> None:
    """Put the images of SOURCES (files, or folders at any depth) into the collection SET.

    SET is made when it is not there. Run again, it adds what is new and changes nothing else. A file that
    cannot become a row is named, stops nothing, and makes the exit code 3.
    """
    from negindex import Collection
    from negindex.errors import ShapeMismatch
    from negindex.sampler.corpus import pixel_encoder, sources_in

    height, width = _height_width(size)
    inputs = sources_in(sources)
    if set_path.exists():
        collection = Collection.open(set_path)
        asked = (channels or collection.shape[0], height, width)
        if asked != collection.shape:
            raise ShapeMismatch(
                f"{set_path} holds rows of shape {collection.shape}, --size asks for {asked}; build another set"
            )
    else:
        encoder = pixel_encoder([file for _, file in inputs], height, width, channels)
        collection = Collection.create(set_path, encoder.shape, space, dtype=dtype)
    _ingest(collection, inputs, label, reason)


@click.command(
    epilog="""\b
Example:
  negindex add demo/eights.set demo/digits/3 --label threes
"""
)
@_SET
@_SOURCES
@_LABEL
@_REASON
@errors_to_exit_codes
def add(set_path: Path, sources: tuple[Path, ...], label: str | None, reason: str) -> None:
    """Put more images in force in a collection that exists.

    When the command returns they are on the disk, and every sampler that follows the set obeys them from
    its next image on.
    """
    from negindex import Collection
    from negindex.sampler.corpus import sources_in

    _ingest(Collection.open(set_path), sources_in(sources), label, reason)


def _ingest(collection, inputs, label: str | None, reason: str) -> None:  # type: ignore[no-untyped-def]
    from negindex.sampler.corpus import encoder_for, ingest

    with click.progressbar(length=len(inputs), label="encoding", file=sys.stderr) as bar:
        report = ingest(
            collection, inputs, encoder_for(collection), label=label, reason=reason, progress=lambda _: bar.update(1)
        )
    for name, why in report.refused:
        click.echo(f"refused: {name}: {why}", err=True)
    click.echo(
        f"{collection.path}: version {report.version}, {len(collection)} rows in force "
        f"({report.added} added, {report.unchanged} already there, {len(report.refused)} refused)"
    )
    if report.refused:
        sys.exit(PARTLY)


def _height_width(size: str) -> tuple[int, int]:
    parts = size.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f"{size!r}; give a number of pixels such as 64, or height x width such as 480x640", param_hint="--size"
        )
    return int(parts[0]), int(parts[-1])
