"""``negindex withdraw``: rows out of force."""

from __future__ import annotations

from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import BY, KEY, SET, open_set


@click.command(
    epilog="""\b
Examples:
  negindex withdraw demo/eights.set 8/0008.png --reason "counter-notice of 3 May"
  negindex withdraw demo/eights.set --label threes --reason "filed in error" --dry-run
"""
)
@SET
@click.argument("keys", nargs=-1)
@click.option("--label", help="Withdraw every row in force under this label.")
@click.option("--reason", required=True, help="Why, for the record.")
@BY
@KEY
@click.option("--dry-run", is_flag=True, help="Say what would be withdrawn, and change nothing.")
@errors_to_exit_codes
def withdraw(
    set_path: Path,
    keys: tuple[str, ...],
    label: str | None,
    reason: str,
    by: str,
    key_file: Path | None,
    dry_run: bool,
) -> None:
    """Take rows out of force, by source key or by label, as one new version.

    From the next version on they answer nothing; older versions stay as they were. Refused for a row that a claim
    keeps in force, other than in-house ones: `negindex claim withdraw` closes that.
    """
    from negindex.errors import UnknownKey

    if bool(keys) == (label is not None):
        raise click.UsageError("give source keys, or --label, and not both")
    collection = open_set(set_path, key_file)
    chosen = list(keys) if label is None else collection.source_keys(label)
    if label is not None and not chosen:
        raise UnknownKey(
            f"no row is in force under the label {label!r}; `negindex status {set_path} --keys` lists what is"
        )
    chosen = collection.family(chosen)
    if dry_run:
        for key in chosen:
            click.echo(key)
        click.echo(f"{set_path}: {len(chosen)} rows would be withdrawn; nothing was changed", err=True)
        return
    version = collection.withdraw(chosen, reason, by=by)
    click.echo(f"{set_path}: version {version}, {len(collection)} rows in force ({len(chosen)} withdrawn)")
