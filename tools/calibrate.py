"""``negindex calibrate``: learn which kernel denoises a set best, and answer by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, BY, KEY, REASON, SET, engines_ahead, open_set

if TYPE_CHECKING:
    from negindex import Calibration, Collection


@click.command(
    epilog="""\b
Examples:
  negindex calibrate claims.set --reference benign.set --plot calibration.png
  negindex calibrate benign.set --like claims.set
"""
)
@SET
@click.option(
    "--reference", metavar="SET", type=click.Path(path_type=Path), help="Benign rows, which count alike (recommended)."
)
@click.option(
    "--like",
    metavar="SET",
    type=click.Path(path_type=Path),
    help="Learn nothing; take over that set's calibration, as for the reference that it was calibrated with.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--plot", metavar="FILE.png", type=click.Path(path_type=Path, dir_okay=False), help="Draw what it prints, too."
)
@BY
@REASON
@KEY
@AS_JSON
@errors_to_exit_codes
def calibrate(
    set_path: Path,
    reference: Path | None,
    like: Path | None,
    seed: int,
    plot: Path | None,
    by: str,
    reason: str,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Learn, by leaving rows out, a projection and a temperature for each noise level, and answer by them from now on.

    It is a version of its own. A large set gets an index, so that it answers in milliseconds with a stated error.
    Prints, per noise level, the error of the chosen kernel, the literal one and the plain mean, over the rms radius.
    Calibrate again when the set has doubled, and after an erasure that took the calibration (`negindex status`).
    The set's engines (`negindex engine`) have the index before look-ups ask it.
    """
    if reference is not None and like is not None:
        raise click.UsageError("--like takes over what another set learned; leave out --reference")
    if plot is not None:
        from negindex.tools.figures import can_be_written

        can_be_written(plot)
    collection = open_set(set_path, key_file)
    ahead = engines_ahead(collection)
    ahead.check()
    if like is None:
        other = None if reference is None else open_set(reference)
        made = collection.calibrate(other, seed=seed, by=by, reason=reason, ahead=ahead)
    else:
        made = _of(like)
        collection.adopt(made, by=by, reason=reason, ahead=ahead)
    _say(collection, made, as_json)
    if plot is not None:
        from negindex.tools.calibration_plot import plot as draw

        draw(made, plot)


def _of(path: Path) -> Calibration:
    from negindex.errors import NotThere

    found = open_set(path).calibration()
    if found is None:
        raise NotThere(f"{path} is not calibrated; run `negindex calibrate {path}` first")
    return found


def _say(collection: Collection, made: Calibration, as_json: bool) -> None:
    version, indexed = collection.newest().version, collection.unindexed() is not None
    if as_json:
        levels = [level._asdict() for level in made.levels]
        said = {"version": version, "kernel": made.kernel.name, "fingerprint": made.fingerprint, "indexed": indexed}
        counts = {"rows": made.rows, "reference_rows": made.reference_rows, "rms": made.rms, "seed": made.seed}
        click.echo(json.dumps(said | counts | {"levels": levels}))
        return
    for line in made.table():
        click.echo(line)
    how = "answers by an index" if indexed else "is small enough to be scanned"
    click.echo(f"{collection.path}: version {version}, kernel {made.kernel.name}; the set {how}", err=True)
