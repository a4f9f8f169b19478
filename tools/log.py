"""``negindex log``: what changed, version by version."""

from __future__ import annotations

from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import SET
from negindex.tools.showing import say, table


@click.command(
    epilog="""\b
Examples:
  negindex log demo/eights.set
  negindex log claims.set --since 120 --json > log.jsonl
"""
)
@SET
@click.option("--since", metavar="VERSION", type=click.IntRange(0), default=0, help="From this version on.")
@click.option("--until", metavar="VERSION", type=click.IntRange(0), help="Up to this version, with it.")
@click.option("--json", "as_json", is_flag=True, help="The records themselves, one a line: the log that proofs need.")
@errors_to_exit_codes
def log(set_path: Path, since: int, until: int | None, as_json: bool) -> None:
    """List every change: version, time, what happened, under which claim, rows in and out, who and why.

    Nothing of a claimant is in it. Reasons and names of staff lie beside the records, and are not in --json.
    """
    from negindex import Collection
    from negindex.log import count

    collection = Collection.open(set_path)
    records = collection.log(since, None if until is None else until + 1)
    if as_json:
        say(record.to_json() for record in records)
        return
    said = {version.version: version for version in collection.versions()}
    rows = [
        (
            *(record.version, record.at, record.action, record.claim, record.state),
            *(count(record.entered), count(record.left), record.in_force),
            *(said[record.version].by, said[record.version].reason),
        )
        for record in records
    ]
    say(table(("version", "at", "action", "claim", "state", "in", "out", "in force", "by", "reason"), rows))
