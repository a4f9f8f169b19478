"""``negindex gates``: how often a set's gates speak up, and of whom, before anybody relies on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, PIPELINE, SET, open_set

if TYPE_CHECKING:
    from torch import Tensor

    from negindex import Collection
    from negindex.sampler.heard import Heard

_HALF = 0.5


@click.command(
    epilog="""\b
Examples:
  negindex gates claims.set --reference benign.set
  negindex generate model --prompt "a photo of a dog" --count 100 --unguarded --out plain
  negindex gates claims.set --reference benign.set --prior 0.2 --images plain --images asked-for
"""
)
@SET
@click.option(
    "--reference", metavar="SET", type=click.Path(path_type=Path), required=True, help="Benign rows to compare with."
)
@click.option(
    "--prior",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of the ratio gate.  [default: the largest that is cautious]",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the trigger gate: what share of the set's own rows it is to hear.",
)
@click.option(
    "--images",
    "folders",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Images to ask about too, such as a model made; again for more.",
)
@PIPELINE
@click.option(
    "--rows", type=click.IntRange(8), default=128, show_default=True, help="Held out of each set; images at most."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@AS_JSON
@errors_to_exit_codes
def gates(
    set_path: Path,
    reference: Path,
    prior: float | None,
    share: float,
    folders: Sequence[Path],
    pipeline: Path | None,
    rows: int,
    seed: int,
    as_json: bool,
) -> None:
    """Noise samples that no set holds, and say for what share of them each gate speaks up, per noise level.

    Asked about are rows held out of both sets (with their near-duplicates), noised copies of rows that stay in, and
    images of your own. ratio: the sample looks rather unsafe than not under the prior. trigger: it looks as much like
    the set as that share of its own rows. copy: it is a near-copy of one row. A cautious prior is the largest under
    which at most 1 % of the held-out reference rows speak up at any level. Nothing is changed.
    """
    from negindex.sampler.heard import heard

    collection = open_set(set_path)
    images = {folder.name: _samples(collection, folder, pipeline, rows) for folder in folders}
    told = heard(
        collection.snapshot(),
        open_set(reference).snapshot(),
        generated=images,
        prior=prior,
        share=share,
        rows=rows,
        seed=seed,
    )
    if as_json:
        click.echo(json.dumps(_facts(told)))
        return
    for line in (*_table(told), "", *_words(told, cautious=prior is None)):
        click.echo(line)


def _samples(collection: Collection, folder: Path, pipeline: Path | None, most: int) -> Tensor:
    """Images of a folder, evenly spread, as rows of the set's space (n, *S)."""
    import numpy as np
    import torch

    from negindex.errors import NotThere
    from negindex.sampler.corpus import encoder_for
    from negindex.sampler.encode import images_in

    files = images_in(folder)
    if not files:
        raise NotThere(f"{folder} has no images; name a folder of .png, .jpg, .webp or .bmp files")
    encoder = encoder_for(collection, pipeline)
    return torch.from_numpy(np.stack([encoder.encode(path) for path in files[:: -(-len(files) // most)]]))


def _facts(told: Heard) -> dict[str, object]:
    names = ("prior", "share", "radius", "copies_until", "reach", "reach_until", "rows")
    levels = [{"s": s, **{kind: told.shares[s, kind] for kind in told.kinds}} for s in told.levels]
    return {name: getattr(told, name) for name in names} | {"levels": levels}


def _table(told: Heard) -> Iterator[str]:
    from negindex.sampler.heard import COPY, RATIO, TRIGGER

    kinds = [kind[:11] for kind in told.kinds]
    wide = 12 * len(kinds)
    yield f"{'':8}" + "".join(f"{gate:^{wide}}" for gate in (RATIO, TRIGGER, COPY))
    yield f"{'s':>8}" + "".join(f"{kind:>12}" for kind in kinds) * 3
    for s in told.levels:
        shares = [told.shares[s, kind][gate] for gate in (RATIO, TRIGGER, COPY) for kind in told.kinds]
        yield f"{s:>8.3g}" + "".join(f"{share:>12.1%}" for share in shares)


def _words(told: Heard, *, cautious: bool) -> Iterator[str]:
    """What it means."""
    from negindex.sampler.heard import FALSE, HELD_OUT, RATIO, REFERENCE, TRIGGER

    chosen = f"the largest under which at most {FALSE:.0%} of {told.rows} reference rows look unsafe at any level"
    yield f"prior {told.prior:.3g}" + (f": {chosen}" if cautious else "")
    heard = [s for s in told.levels if told.shares[s, HELD_OUT][RATIO] >= _HALF]
    yield (
        f"the ratio gate hears at least half of the set's own kind up to s = {max(heard):.3g}; at higher noise it "
        "leaves samples alone, because nothing can be told there under this prior"
        if heard
        else "the ratio gate hears less than half of the set's own kind at every level under this prior"
    )
    quiet = [s for s in told.levels if told.shares[s, REFERENCE][TRIGGER] <= 10 * FALSE]
    yield (
        f"a trigger share of {told.share:g} speaks up for at most 10% of harmless rows up to s = {max(quiet):.3g}: "
        "hear it there alone (--window noise:0-S)"
        if quiet
        else f"a trigger share of {told.share:g} speaks up for more than 10% of harmless rows at every level: give a "
        "reference and use the ratio gate"
    )
    yield (
        f"the copy gate looks up to s = {told.copies_until:.3g} for rows within {told.radius:.3g}, and up to s = "
        f"{told.reach_until:.3g} for rows within {told.reach:.3g} where no other row explains the sample"
    )
