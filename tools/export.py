"""``negindex export``: a collection's rows in one file, for somebody else's collection."""

from __future__ import annotations

import json
from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET


@click.command(
    epilog="""\b
Examples:
  negindex export claims.set claims.tar
  negindex build other.set claims.tar
"""
)
@SET
@click.argument("file", type=click.Path(path_type=Path))
@AS_JSON
@errors_to_exit_codes
def export(set_path: Path, file: Path, as_json: bool) -> None:
    """Write the rows in force in SET to the new FILE (.tar), which `negindex build` and `add` take in elsewhere.

    With the rows go their source keys, labels, hashes of their source images (sha256, PDQ) and embeddings. Images,
    thumbnails, claims, the log, and what was withdrawn or erased stay here. The same version makes the same bytes.

    No erasure in SET reaches FILE. The sha256 that is printed is the file's: tell it to whom you hand the file to by
    another way, so that they know it is yours.
    """
    from negindex import Collection
    from negindex.sampler.bundles import export as write

    made = write(Collection.open(set_path), file)
    if as_json:
        click.echo(json.dumps(made._asdict()))
        return
    click.echo(f"{made.path}: {made.rows} rows, version {made.version} of {set_path}")
    click.echo(f"sha256 {made.sha256}, {made.bytes} bytes; no erasure reaches it", err=True)
