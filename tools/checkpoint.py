"""``negindex checkpoint``: the log's root at a version, to keep elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.key import open_key
from negindex.tools.options import SET

_FILE = click.Path(path_type=Path)


@click.command(
    epilog="""\b
Examples:
  negindex checkpoint demo/eights.set
  negindex checkpoint demo/eights.set --key holder.key --out eights-3-May.json
"""
)
@SET
@click.option("--at", type=int, metavar="VERSION", help="Of this version (default: the newest).")
@click.option("--out", type=_FILE, help="Write it to this new file too.")
@click.option("--key", type=_FILE, metavar="FILE", help="Sign it, where nobody has (`negindex key new`).")
@errors_to_exit_codes
def checkpoint(set_path: Path, at: int | None, out: Path | None, key: Path | None) -> None:
    """Export what the log of SET was at a version, in one hash; the set itself is left as it is.

    Keep it where nobody who can write to SET can reach it: only against a checkpoint of then does `negindex prove`
    show that a whole set was put back, or the end of its log cut off.
    """
    from negindex import Collection

    with Collection.open(set_path) as collection:
        found = collection.checkpoint(at)
    if key is not None and found.signature:
        click.echo("it was signed when its version was made, and stays as it is", err=True)
    elif key is not None:
        found = found.signed(open_key(key))
    if out is not None:
        found.save(out)
    click.echo(found.to_json())
    if not found.signature:
        click.echo("nobody signed it: whoever keeps it vouches for it; --key signs it", err=True)
