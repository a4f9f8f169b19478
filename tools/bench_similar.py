"""``negindex bench similar``: how often the same picture in another hand is found, by each way of comparing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from negindex.tools.beside import load_clip, takes_clip
from negindex.tools.common import errors_to_exit_codes, machine
from negindex.tools.options import AS_JSON, PIPELINE, SET


@click.command(
    epilog="""\b
Example:
  negindex build google.set google --size 32
  negindex bench similar google.set twitter
"""
)
@SET
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(1), help="Look up so many images at most, evenly spread.")
@PIPELINE
@takes_clip
@AS_JSON
@errors_to_exit_codes
def similar(
    set_path: Path,
    folder: Path,
    limit: int | None,
    pipeline: Path | None,
    clip: str | None,
    clip_weights: str | None,
    as_json: bool,
) -> None:
    """Look every image of FOLDER up in SET, and say how often the row of the same file name is the nearest.

    Counted are images whose file name is that of exactly one row's source key: the same things drawn, photographed or
    encoded by others. Printed is, for each way of `negindex similar`, the share whose namesake is the nearest row, and
    among the five nearest. Nothing is changed.
    """
    from negindex import Collection
    from negindex.errors import SpaceMismatch
    from negindex.sampler.corpus import encoder_for
    from negindex.sampler.encode import PIXELS, images_in
    from negindex.sampler.found_again import found_again

    collection, model = Collection.open(set_path), load_clip(clip, clip_weights)
    if model is not None and model.fingerprint != collection.embedded_by:
        raise SpaceMismatch(f"the set's embeddings are by {collection.embedded_by}, not {model.fingerprint}")
    can = len(collection.shape) >= 3 and (collection.space == PIXELS or pipeline is not None)
    files = images_in(folder)
    files = files if limit is None else files[:: max(1, len(files) // limit)][:limit]
    began = time.perf_counter()
    with click.progressbar(length=len(files), label="looking", file=sys.stderr) as bar:
        encoder = encoder_for(collection, pipeline) if can else None
        told = found_again(
            collection, files, 5, encoder=encoder, clip=model, progress=lambda done: bar.update(done - bar.pos)
        )
    seconds = time.perf_counter() - began
    rates = {way: {f"at_{k}": told.rate(way, k) for k in (1, 5)} for way in told.ranks}
    if as_json:
        shape, rows = list(collection.shape), len(collection)
        click.echo(json.dumps({"rows": rows, "shape": shape, "asked": told.asked, "rates": rates, "seconds": seconds}))
        return
    click.echo(f"{told.asked} images looked up among {len(collection)} rows of shape {collection.shape}")
    for way, rate in rates.items():
        click.echo(f"  {way:10} nearest {rate['at_1']:6.1%}   among the five nearest {rate['at_5']:6.1%}")
    click.echo(f"{seconds / told.asked * 1000:.0f} ms an image; {machine()}", err=True)
