"""``negindex dedup``: near-duplicates of a set, and one row an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, BY, KEY, SET, open_set
from negindex.tools.similar import DISTANCE

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.dedup import Member


@click.command(
    epilog="""\b
Examples:
  negindex dedup claims.set
  negindex dedup claims.set --keep-one --dry-run
  negindex dedup claims.set --keep-one --reason "the same images twice" --by ann
"""
)
@SET
@DISTANCE
@click.option("--keep-one", is_flag=True, help="Withdraw the rows that the set can do without.")
@click.option("--dry-run", is_flag=True, help="With --keep-one: say what would be withdrawn, and change nothing.")
@click.option("--reason", help="Why, for the record; needed with --keep-one.")
@BY
@KEY
@AS_JSON
@errors_to_exit_codes
def dedup(
    set_path: Path,
    distance: int,
    keep_one: bool,
    dry_run: bool,
    reason: str | None,
    by: str,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Group the rows of SET that are the same image or nearly so, by bytes and by PDQ; --keep-one keeps one of each.

    A row goes only where one that stays, under the same label, is itself within --distance of it, or has the same
    bytes. Rows that a claim keeps in force stay, then the oldest. Withdrawn rows answer nothing from the next version
    on; older versions stay as they were. Blank images are near nothing but their own copies. Mirrored and turned copies
    stay apart: `negindex build --refuse-near` and `negindex similar` find them before they go in.
    Finding nothing is no failure.
    """
    if dry_run and not keep_one:
        raise click.UsageError("--dry-run goes with --keep-one; without it nothing is changed anyway")
    changes = keep_one and not dry_run
    if changes and not reason:
        raise click.UsageError("--keep-one needs a --reason, for the record")
    collection = open_set(set_path, key_file if changes else None)
    before = len(collection)
    if changes:
        version, groups = collection.dedup(reason or "", distance=distance, by=by)
    else:
        version, groups = collection.newest().version, collection.duplicates(distance=distance)
    told = _told(collection, before, version, groups)
    if as_json:
        click.echo(json.dumps(told | {"withdrawn": told["spare"] if changes else 0}, ensure_ascii=False))
        return
    for group in groups:
        click.echo(f"near each other: {', '.join(map(_text, group))}")
    _sum_up(set_path, told, keep_one, dry_run)


def _told(collection: Collection, before: int, version: int, groups: list[list[Member]]) -> dict[str, Any]:
    spare = sum(not one.stays for group in groups for one in group)
    return {
        "set": str(collection.path),
        "version": version,
        "rows_looked_at": before,
        "rows_in_force": len(collection),
        "spare": spare,
        "groups": [[one._asdict() for one in group] for group in groups],
    }


def _text(one: Member) -> str:
    from negindex.tools.showing import one_line

    if one.stays:
        return f"{one_line(one.source_key)} (stays{', a claim' if one.claimed else ''})"
    how = "the same" if not one.distance else f"{one.distance} bits from"
    return f"{one_line(one.source_key)} ({how} row {one.near})"


def _sum_up(set_path: Path, told: dict[str, Any], keep_one: bool, dry_run: bool) -> None:
    found = f"{told['rows_looked_at']} rows looked at, {len(told['groups'])} groups of near-duplicates"
    spare = f"{told['spare']} rows that the set can do without"
    if not keep_one:
        click.echo(f"{set_path}: {found}, {spare}; --keep-one withdraws them", err=True)
    elif dry_run:
        click.echo(f"{set_path}: {found}; {told['spare']} rows would be withdrawn, nothing was changed", err=True)
    else:
        click.echo(f"{found}", err=True)
        click.echo(
            f"{set_path}: version {told['version']}, {told['rows_in_force']} rows in force ({told['spare']} withdrawn)"
        )
