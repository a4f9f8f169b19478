"""``negindex status``: what a collection holds and what is in force."""

from __future__ import annotations

import json
from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes


@click.command(
    epilog="""\b
Examples:
  negindex status demo/eights.set
  negindex status demo/eights.set --json
"""
)
@click.argument("set_path", metavar="SET", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--keys", is_flag=True, help="List the source keys in force instead.")
@errors_to_exit_codes
def status(set_path: Path, as_json: bool, keys: bool) -> None:
    """Say what is in force: version, rows, shape, space, files."""
    from negindex import Collection

    collection = Collection.open(set_path)
    if keys:
        listed = collection.source_keys()
        click.echo(json.dumps(listed, ensure_ascii=False) if as_json else "\n".join(listed))
        return
    newest, files = collection.newest(), collection.segments()
    stored = sum(file.rows for file in files)
    said = {
        "set": str(set_path),
        "set_id": collection.set_id,
        "version": newest.version,
        "changed_at": newest.at,
        "rows_in_force": newest.in_force,
        "rows_withdrawn": stored - newest.in_force,
        "shape": list(collection.shape),
        "space": collection.space,
        "dtype": collection.dtype,
        "segments": len(files),
        "bytes": sum(file.bytes for file in files),
    }
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        width = max(map(len, said))
        for name, value in said.items():
            click.echo(f"{name.replace('_', ' '):{width}}  {value}")
    if not newest.in_force:
        click.echo("the set is empty: a guard over it raises until rows are added", err=True)
