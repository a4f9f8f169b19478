"""``negindex rows``: where a collection's rows lie."""

from __future__ import annotations

import re
from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import SET, open_set
from negindex.tools.showing import outstanding, outstanding_lines, say

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


class _Bytes(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", str(value).strip().lower())
        if isinstance(value, int):
            return value
        if found is None or found[2] not in _UNITS:
            self.fail(f"{value!r} is no size; give bytes, or one such as 500MB or 4GiB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


@click.group()
def rows() -> None:
    """Say where a collection's rows lie: in its own directory, or elsewhere."""


@rows.command(
    epilog="""\b
Examples:
  negindex rows move claims.set s3://bucket/negindex
  negindex rows move claims.set s3://bucket/negindex --cache-bytes 20GiB
  negindex rows move claims.set --back
"""
)
@SET
@click.argument("url", required=False)
@click.option("--back", is_flag=True, help="Bring the rows back into the collection's own directory.")
@click.option(
    "--cache-bytes",
    type=_Bytes(),
    metavar="SIZE",
    help="What rows that were read from there may take on this disk, such as 500MB; 4GiB where not said, 0 for none.",
)
@errors_to_exit_codes
def move(set_path: Path, url: str | None, back: bool, cache_bytes: int | None) -> None:
    """Have the rows of SET lie under URL, any address that fsspec knows: s3://, gs://, sftp://, file://.

    Every file is copied and read back there, then one transaction names them all; until then nothing has changed.
    The record stays in SET: who has it finds the rows. Samplers go on meanwhile, nobody else changes SET. The address
    holds no credentials: fsspec finds them in its own configuration or environment. With the URL where the rows are
    already, --cache-bytes alone is changed. See docs/rows-elsewhere.md.
    """
    if back == (url is not None) or (back and cache_bytes is not None):
        raise click.UsageError("give a URL, or --back")
    collection = open_set(set_path)
    moved = collection.move_rows(url, cache_bytes=cache_bytes)
    where = collection.rows_at or collection.path
    size = sum(file.bytes for file in collection.segments())
    click.echo(
        f"{set_path}: {moved} files moved; {collection.newest().in_force} rows in force, {size} bytes at {where}"
    )
    say(outstanding_lines(outstanding(collection)), err=True)
