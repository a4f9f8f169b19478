"""``negindex similar``: what is in a collection already, or nearly so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.hamming import NEAR
from negindex.tools.common import PARTLY, errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET

if TYPE_CHECKING:
    from negindex import Collection


@click.command(
    epilog="""\b
Examples:
  negindex similar demo/eights.set demo/digits/8
  negindex similar claims.set notice-17/ --ever --json
  negindex similar claims.set
"""
)
@SET
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--distance",
    type=click.IntRange(0, 255),
    default=NEAR,
    show_default=True,
    help="Bits of PDQ's 256 that may differ; unrelated images differ in about 128.",
)
@click.option("--ever", is_flag=True, help="Look among rows that were withdrawn, too.")
@AS_JSON
@errors_to_exit_codes
def similar(set_path: Path, sources: tuple[Path, ...], distance: int, ever: bool, as_json: bool) -> None:
    """Look for the images of SOURCES (files, or folders at any depth) among the rows of SET, and among each other.

    Found are the same file, the same row, and near-copies by PDQ: re-encoded, resized, mirrored or turned.
    An image with too little in it, such as a blank one, is found by its bytes alone. Nothing is changed, and
    finding nothing is no failure. Without SOURCES, rows of SET that are near each other are grouped; there,
    mirrored and turned copies stay apart.
    """
    from negindex import Collection

    collection = Collection.open(set_path)
    if sources:
        _look_up(collection, sources, distance, ever, as_json)
    else:
        _group(collection, distance, ever, as_json)


def _look_up(collection: Collection, sources: tuple[Path, ...], distance: int, ever: bool, as_json: bool) -> None:
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
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        for key, alike in found.in_set:
            how = "the same" if alike.by == "bytes" else f"{alike.distance:g} bits apart"
            state = "" if alike.in_force else ", not in force"
            click.echo(f"{key}: row {alike.row} {alike.source_key} ({how}{state})")
        for group in found.among:
            click.echo(f"near each other: {', '.join(group)}")
    for name, why in found.refused:
        click.echo(f"refused: {name}: {why}", err=True)
    of = len({key for key, _ in found.in_set})
    click.echo(f"{found.looked_at} images looked at, {of} of them in {collection.path} or nearly so", err=True)
    if found.looked_at < len(inputs):
        sys.exit(PARTLY)


def _group(collection: Collection, distance: int, ever: bool, as_json: bool) -> None:
    groups = collection.alike_among(distance=distance, ever=ever)
    if as_json:
        listed = [[{"row": row, "source_key": key} for row, key in group.items()] for group in groups]
        click.echo(json.dumps({"rows_in_force": len(collection), "groups": listed}, ensure_ascii=False))
    else:
        for group in groups:
            click.echo(f"near each other: {', '.join(group.values())}")
    click.echo(f"{len(collection)} rows in force looked at, {len(groups)} groups of near-copies", err=True)
