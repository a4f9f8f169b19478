"""``negindex compact``: small files merged, and what old versions hold given up."""

from __future__ import annotations

from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import BY, KEY, REASON, SET, engines_ahead, open_set
from negindex.tools.showing import outstanding, outstanding_lines, say


@click.command(
    epilog="""\b
Examples:
  negindex compact demo/eights.set
  negindex compact claims.set --forget-before 120 --dry-run
"""
)
@SET
@click.option(
    "--forget-before",
    metavar="VERSION",
    type=click.IntRange(0),
    help="Give up the bytes of rows that only versions before this one read; these can no longer be opened.",
)
@BY
@REASON
@KEY
@click.option("--dry-run", is_flag=True, help="Say what would be given up, and change nothing.")
@errors_to_exit_codes
def compact(
    set_path: Path, forget_before: int | None, by: str, reason: str, key_file: Path | None, dry_run: bool
) -> None:
    """Merge small files, and part withdrawn rows from those in force. Samplers may go on meanwhile.

    It changes no version and no answer. With --forget-before it is a version of its own, and on record. An index that
    is made anew is pushed to the set's engines (`negindex engine`) before look-ups ask it.
    """
    collection = open_set(set_path, key_file)
    dead = collection.dead(forget_before or 0)
    if dry_run:
        click.echo(f"{dead.rows} rows, {dead.bytes} bytes")
        click.echo(f"{set_path}: so much would be given up; nothing was changed", err=True)
        return
    before = collection.segments()
    rewritten = collection.compact(forget_before, reason=reason, by=by, ahead=engines_ahead(collection))
    after, newest = collection.segments(), collection.newest()
    click.echo(
        f"{set_path}: version {newest.version}, {newest.in_force} rows in force ({dead.rows} dead rows given up, "
        f"{rewritten} files merged, {len(before)} files before, {len(after)} now, "
        f"{sum(file.bytes for file in before)} bytes before, {sum(file.bytes for file in after)} now)"
    )
    say(outstanding_lines(outstanding(collection)), err=True)
