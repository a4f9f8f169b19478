"""``negindex similar``: what is in a collection already, or nearly so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.hamming import NEAR
from negindex.tools.beside import load_clip, takes_clip
from negindex.tools.common import PARTLY, errors_to_exit_codes
from negindex.tools.options import AS_JSON, PIPELINE, SET

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.sampler.clip import Clip
    from negindex.sampler.lookup import Lookup


DISTANCE = click.option(
    "--distance",
    type=click.IntRange(0, 255),
    default=NEAR,
    show_default=True,
    help="Bits of PDQ's 256 that may differ; unrelated images differ in about 128.",
)


@click.command(
    epilog="""\b
Examples:
  negindex similar demo/eights.set demo/digits/8
  negindex similar claims.set notice-17/ --ever --json
  negindex similar claims.set
  negindex similar claims.set found.png --nearest 8 --png near.png
"""
)
@SET
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@DISTANCE
@click.option("--ever", is_flag=True, help="Look among rows that were withdrawn, too.")
@click.option(
    "--nearest",
    metavar="K",
    type=click.IntRange(0, 100),
    default=5,
    show_default=True,
    help="Of one IMAGE, name so many nearest rows by each way of comparing, however far; 0 for none.",
)
@click.option(
    "--png",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the image and its nearest rows, with their distances.",
)
@PIPELINE
@takes_clip
@AS_JSON
@errors_to_exit_codes
def similar(
    set_path: Path,
    sources: tuple[Path, ...],
    distance: int,
    ever: bool,
    nearest: int,
    png: Path | None,
    pipeline: Path | None,
    clip: str | None,
    clip_weights: str | None,
    as_json: bool,
) -> None:
    """Look for the images of SOURCES (files, or folders at any depth) among the rows of SET, and among each other.

    Found are the same file, the same row, and near-copies by PDQ: re-encoded, resized, mirrored or turned.
    An image with too little in it, such as a blank one, is found by its bytes alone. Nothing is changed, and
    finding nothing is no failure. Rows that are views of one image (its tiles, its mirror image) are named once, by the
    nearest. Without SOURCES, rows of SET that are near each other are grouped; there,
    mirrored and turned copies stay apart.

    Of one IMAGE the nearest rows in force are named too, side by side: by PDQ (bits), by embedding (1 - cosine, where
    rows have one and --clip names its model) and in the model's own space (rms over a row's numbers; a set of latents
    needs --pipeline). A row without a picture is drawn itself where it is pixels, else as a blank tile with its key.
    """
    from negindex import Collection

    collection = Collection.open(set_path)
    one = sources[0] if len(sources) == 1 and sources[0].is_file() and nearest else None
    if one is None and (png or clip or pipeline):
        raise click.UsageError("--png, --clip and --pipeline look for one image; name one, and --nearest above 0")
    if sources:
        near = None if one is None else _nearest(collection, one, nearest, pipeline, load_clip(clip, clip_weights))
        _look_up(collection, sources, distance, ever, as_json, near)
        if near is not None and png is not None:
            _draw(near, collection, sources[0], png)
    else:
        _group(collection, distance, ever, as_json)


def _nearest(collection: Collection, file: Path, k: int, pipeline: Path | None, clip: Clip | None) -> Lookup | None:
    """The image's nearest rows; None where it is no image, which the sweep names."""
    from negindex.errors import ImageRefused
    from negindex.sampler.corpus import encoder_for
    from negindex.sampler.encode import PIXELS
    from negindex.sampler.lookup import look_up

    can = len(collection.shape) >= 3 and (collection.space == PIXELS or pipeline is not None)
    encoder = encoder_for(collection, pipeline) if can else None
    try:
        return look_up(collection, file, k, encoder=encoder, clip=clip) if len(collection) else None
    except ImageRefused:
        return None


def _draw(near: Lookup, collection: Collection, file: Path, png: Path) -> None:
    from negindex.errors import NotThere
    from negindex.sampler.tiles import save

    if not png.parent.is_dir():
        raise NotThere(f"{png.parent} is no folder; name a PNG in one that is there")
    save(near.drawn(collection, file.name), png)


def _say_nearest(near: Lookup) -> None:
    """A table with the ways side by side, and on stderr why one is missing."""
    from negindex.sampler.lookup import lines
    from negindex.tools.showing import say, table

    head = ["", *(word for way in near.found for word in (f"by {way}", ""))]
    say(table(head, lines(near)))
    for way, why in near.without.items():
        click.echo(f"not by {way}: {why}", err=True)


def _look_up(
    collection: Collection,
    sources: tuple[Path, ...],
    distance: int,
    ever: bool,
    as_json: bool,
    near: Lookup | None,
) -> None:
    from negindex.sampler.corpus import encoder_for, sources_in
    from negindex.sampler.encode import PIXELS
    from negindex.sampler.sweep import sweep

    inputs = sources_in(sources)
    encoder = encoder_for(collection) if collection.space == PIXELS and len(collection.shape) == 3 else None
    with click.progressbar(length=len(inputs), label="looking", file=sys.stderr) as bar:
        found = sweep(
            collection, inputs, encoder=encoder, distance=distance, ever=ever, progress=lambda _: bar.update(1)
        )
    if as_json:
        in_set = [{"file": key, **alike._asdict()} for key, alike in found.in_set]
        said = {"looked_at": found.looked_at, "in_set": in_set, "among": found.among, "refused": found.refused}
        if near is not None:
            listed = {way: [one._asdict() for one in rows] for way, rows in near.found.items()}
            said |= {"nearest": listed, "nearest_without": near.without}
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        for key, alike in found.in_set:
            how = "the same" if alike.by == "bytes" else f"{alike.distance:g} bits apart"
            state = "" if alike.in_force else ", not in force"
            click.echo(f"{key}: row {alike.row} {alike.source_key} ({how}{state})")
        for group in found.among:
            click.echo(f"near each other: {', '.join(group)}")
        if near is not None:
            _say_nearest(near)
    for name, why in found.refused:
        click.echo(f"refused: {name}: {why}", err=True)
    of = len({key for key, _ in found.in_set})
    click.echo(f"{found.looked_at} images looked at, {of} of them in {collection.path} or nearly so", err=True)
    if found.looked_at < len(inputs):
        sys.exit(PARTLY)


def _group(collection: Collection, distance: int, ever: bool, as_json: bool) -> None:
    from negindex.geometry import first_views, item_of

    groups = collection.alike_among(distance=distance, ever=ever)
    if collection.geometry.is_many:
        groups = [dict(first_views(group.items(), lambda row: item_of(row[1]))) for group in groups]
    if as_json:
        listed = [[{"row": row, "source_key": key} for row, key in group.items()] for group in groups]
        click.echo(json.dumps({"rows_in_force": len(collection), "groups": listed}, ensure_ascii=False))
    else:
        for group in groups:
            click.echo(f"near each other: {', '.join(group.values())}")
    click.echo(f"{len(collection)} rows in force looked at, {len(groups)} groups of near-copies", err=True)
