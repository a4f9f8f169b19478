"""``negindex erase``: rows' bytes and names, for good."""

from __future__ import annotations

from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import BY, KEY, SET, YES, ask_first, open_set
from negindex.tools.showing import exit_if_pending, one_line


@click.command(
    epilog="""\b
Examples:
  negindex erase demo/eights.set 8/0008.png --reason "request of 3 May" --dry-run
  negindex erase claims.set notice-17.png --reason "request of 3 May" --keep-out --by ben --yes
"""
)
@SET
@click.argument("keys", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why, for the record: nobody's name in it.")
@BY
@click.option("--keep-out", is_flag=True, help="Keep a keyed fingerprint that refuses the same bytes later.")
@KEY
@YES
@click.option("--dry-run", is_flag=True, help="Say which rows would be erased, and change nothing.")
@errors_to_exit_codes
def erase(
    set_path: Path,
    keys: tuple[str, ...],
    reason: str,
    by: str,
    keep_out: bool,
    key_file: Path | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Erase every row that ever had one of these source keys: its bytes, its name, and its traces in the record.

    Versions that held the rows can no longer be opened; receipts and the log go on verifying. Without --keep-out the
    same image may be added again. Refused while a claim, other than in-house ones, or a legal hold stands.
    Exit code 3 while a process holds erased bytes still: it is named, and the erasure is pending.
    """
    collection = open_set(set_path, key_file)
    keys = tuple(collection.family(keys, ever=True))
    found = collection.ids_under(keys)
    many = sum(map(len, found.values()))
    if dry_run:
        for key in dict.fromkeys(keys):
            click.echo(f"{one_line(key)}  {', '.join(map(str, found.get(key, []))) or 'no row'}")
        click.echo(f"{set_path}: {many} rows would be erased; nothing was changed", err=True)
        return
    if found:
        ask_first(f"Erase {many} rows from {set_path} for good?", yes)
    calibrated = collection.derived()
    version = collection.erase(list(dict.fromkeys(keys)), reason, by=by, keep_out=keep_out)
    kept = "their fingerprints are kept out" if keep_out else "no fingerprint is kept"
    click.echo(f"{set_path}: version {version}, {len(collection)} rows in force ({many} erased, {kept})")
    if any(one.kind == "calibration" for one in set(calibrated) - set(collection.derived())):
        click.echo(f"{set_path}: its calibration saw the rows and is gone too; run `negindex calibrate`", err=True)
    exit_if_pending(collection)
