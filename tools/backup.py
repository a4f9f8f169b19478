"""``negindex backup`` and ``negindex restore``: copies of a collection, and a collection from a copy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import PARTLY, errors_to_exit_codes
from negindex.tools.options import AS_JSON, BY, KEY, REASON, SET, open_key_if_any, open_set

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.log import Record

_PATH = click.Path(path_type=Path)


@click.command(
    epilog="""\b
Examples:
  negindex backup claims.set /mnt/disk/claims-2026-05-19
  negindex backup claims.set --list
  negindex backup claims.set --gone /mnt/disk/claims-2026-05-19 --by "A. Operator" --reason "disk shredded"
"""
)
@SET
@click.argument("to", required=False, type=_PATH)
@click.option("--list", "listed", is_flag=True, help="List the backups on record: where they are, what they owe.")
@click.option("--gone", metavar="PATH", type=_PATH, help="Record that a backup is gone; nothing is owed to it then.")
@BY
@REASON
@AS_JSON
@errors_to_exit_codes
def backup(
    set_path: Path, to: Path | None, listed: bool, gone: Path | None, by: str, reason: str, as_json: bool
) -> None:
    """Copy the collection SET to the new directory TO while it is in use.

    What is erased from SET later is erased from its backups too, as soon as they can be reached; until then
    `negindex backup SET --list` names them, and the exit code is 3. A backup is no live set: `negindex restore`
    brings it back.
    """
    if (to is not None) + listed + (gone is not None) != 1:
        raise click.UsageError("give a place for the backup, --list, or --gone PATH")
    collection = open_set(set_path)
    if to is not None:
        made = collection.backup(to)
        said = made._asdict()
        click.echo(json.dumps(said) if as_json else f"{made.path}: version {made.version} of {set_path}")
    elif gone is not None:
        version = collection.forget_backup(gone, by=by, reason=reason)
        click.echo(json.dumps({"version": version}) if as_json else f"{set_path}: version {version}, {gone} is gone")
    else:
        _list(collection, as_json)


def _list(collection: Collection, as_json: bool) -> None:
    collection.settle()
    kept = collection.backups()
    if as_json:
        click.echo(json.dumps([one._asdict() for one in kept], ensure_ascii=False))
    for one in kept if not as_json else ():
        owed = f"; owes the erasures of versions {', '.join(map(str, one.owed))}" if one.owed else ""
        click.echo(f"{one.path}: version {one.version}, {one.at or 'not finished'}; {one.found}{owed}")
    if any(one.owed for one in kept):
        click.echo("erased bytes are still in backups: bring them within reach, or say --gone PATH", err=True)
        sys.exit(PARTLY)


@click.command(
    epilog="""\b
Examples:
  negindex log claims.set --json > /elsewhere/claims.log
  negindex restore /mnt/disk/claims-2026-05-19 claims.set --log /elsewhere/claims.log --reason "disk failed"
"""
)
@click.argument("backup_path", metavar="BACKUP", type=_PATH)
@SET
@click.option(
    "--log",
    metavar="FILE",
    type=_PATH,
    help="The log from after the backup: what `negindex log SET --json` printed, or the old set's directory.",
)
@KEY
@BY
@REASON
@AS_JSON
@errors_to_exit_codes
def restore(
    backup_path: Path, set_path: Path, log: Path | None, key_file: Path | None, by: str, reason: str, as_json: bool
) -> None:
    """Make the collection SET, which must not exist, from a BACKUP: whole or not at all.

    With the log from after the backup, the withdrawals, erasures, claims and holds in it are applied again. Images
    that were added after the backup are lost: their rows are out of force, and claims on nothing else are named.
    """
    from negindex import Collection

    key = open_key_if_any(key_file)
    collection = Collection.restore(backup_path, set_path, log=log, key=key, by=by, reason=reason)
    newest, bare = collection.log(collection.newest().version)[0], _bare(collection)
    said = {
        "set": str(set_path),
        "version": newest.version,
        "rows_in_force": newest.in_force,
        "rows_lost": newest.dropped,
        "rows_erased": newest.erased,
        "claims_without_content": bare,
        "outstanding": [one._asdict() for one in collection.outstanding()],
    }
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        click.echo(f"{set_path}: version {newest.version}, {newest.in_force} rows in force")
    _warn(collection, newest, bare, with_log=log is not None)


def _bare(collection: Collection) -> list[int]:
    """Claims that are open and name nothing any more, or nothing yet."""
    from negindex.schema import CLOSED

    shown = [collection.claims.show(one.claim) for one in collection.claims.every() if one.state not in CLOSED]
    return [one.number for one in shown if not one.rows and not one.hashes]


def _warn(collection: Collection, newest: Record, bare: list[int], *, with_log: bool) -> None:
    """What the set lacks after it was restored with the record ``newest``."""
    if not with_log:
        at = collection.version(newest.version - 1).at
        click.echo(
            f"without the log, nothing is known of what was withdrawn, erased or claimed after {at}; where you have "
            "it (`negindex log SET --json`), move this set away and restore again with --log FILE",
            err=True,
        )
    if newest.dropped:
        runs = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in newest.dropped)
        click.echo(f"rows {runs} came after the backup: their bytes are lost, and they are not in force", err=True)
    if bare:
        click.echo(f"claims {', '.join(map(str, bare))} name nothing now; attach their images again", err=True)
    for one in collection.outstanding():
        click.echo(f"outstanding: {one.what} {one.name} holds erased bytes, or may", err=True)
