"""``negindex verify``: whether a collection still is what was written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET

_FILE = click.Path(path_type=Path)


@click.command(
    epilog="""\b
Examples:
  negindex verify demo/eights.set
  negindex verify demo/eights.set --checkpoint eights-3-May.json --json

Prints one fault a line and leaves with 13 where there are any."""
)
@SET
@click.option("--checkpoint", "checkpoints", type=_FILE, multiple=True, help="One kept elsewhere; again for more.")
@AS_JSON
@errors_to_exit_codes
def verify(set_path: Path, checkpoints: tuple[Path, ...], as_json: bool) -> None:
    """Check the log, every table and every byte of the files of SET, or of a backup, and name what is not as written.

    Changes nothing, and sweeps nothing. Others may read and write meanwhile.
    """
    from negindex.checkpoint import Checkpoint
    from negindex.errors import Damaged
    from negindex.verify import UNTOLD
    from negindex.verify import verify as check

    found = check(set_path, [Checkpoint.load(file) for file in checkpoints])
    read = {"versions": found.versions, "rows": found.rows, "files": found.files, "bytes": found.bytes}
    if as_json:
        faults = [fault._asdict() for fault in found.faults]
        said = {"set": str(set_path), **read, "checkpoints": len(checkpoints), "faults": faults}
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        for fault in found.faults:
            click.echo(str(fault))
    gone_through = ", ".join(f"{number} {name}" for name, number in read.items())
    if not checkpoints:
        click.echo(f"{set_path}: {UNTOLD}", err=True)
    if found.faults:
        raise Damaged(f"{set_path}: {len(found.faults)} faults in {gone_through}; restore the set from a backup")
    if not as_json:
        held = f"{len(checkpoints)} checkpoints kept elsewhere" if checkpoints else "its own log alone"
        click.echo(f"{set_path}: as it was written, held against {held}: {gone_through}")
