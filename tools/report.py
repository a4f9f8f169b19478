"""``negindex report``: statements of reasons, and what became of claims in a month."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET
from negindex.tools.showing import table

if TYPE_CHECKING:
    from negindex.reports import Late, Summary

_DAY = click.DateTime(["%Y-%m-%d"])


@click.group()
def report() -> None:
    """Write statements of reasons and monthly summaries; neither holds personal data."""


@report.command(
    epilog="""\b
Examples:
  negindex report statement demo/eights.set 17
  negindex report statement demo/eights.set 17 --out statement-17.json
"""
)
@SET
@click.argument("claim", type=int)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this new file instead.")
@errors_to_exit_codes
def statement(set_path: Path, claim: int, out: Path | None) -> None:
    """Write a DSA claim's statement of reasons (article 17) as JSON.

    What the decider wrote is printed as it stands: write no names in it. A text that repeats what the claimant
    told (a name, an e-mail address) is refused.
    """
    from negindex import Collection
    from negindex.reports import statement_of_reasons

    said = json.dumps(statement_of_reasons(Collection.open(set_path), claim), indent=2, ensure_ascii=False)
    if out is None:
        click.echo(said)
        return
    _write_new(out, said + "\n")
    click.echo(f"wrote {out}", err=True)


@report.command(
    epilog="""\b
Examples:
  negindex report summary demo/eights.set --month 2026-11
  negindex report summary demo/eights.set --month 2026-11 --zone Europe/Brussels --json
  negindex report summary demo/eights.set --from 2026-07-01 --to 2026-09-30 --csv
"""
)
@SET
@click.option("--month", help="A calendar month, such as 2026-11.")
@click.option("--from", "first", type=_DAY, help="The first day, such as 2026-07-01.")
@click.option("--to", "last", type=_DAY, help="The last day, itself included.")
@click.option("--zone", default="UTC", show_default=True, help="The time zone in which days begin and end.")
@AS_JSON
@click.option("--csv", "as_csv", is_flag=True, help="The table alone, for a spreadsheet.")
@errors_to_exit_codes
def summary(
    set_path: Path,
    month: str | None,
    first: datetime | None,
    last: datetime | None,
    zone: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Count what was received, came into force and left it, how fast, and which clocks were missed.

    Told from the log, so erased claims count too. What an own `add` or `withdraw` did stands apart as in-house.
    """
    from negindex import Collection
    from negindex.reports import Period
    from negindex.reports import summary as summarise

    if as_json and as_csv:
        raise click.UsageError("give --json or --csv, not both")
    if month is not None and not (first or last):
        period = Period.month(month, zone)
    elif month is None and first and last:
        period = Period.days(first.date(), last.date(), zone)
    else:
        raise click.UsageError("give --month, or --from and --to")
    found = summarise(Collection.open(set_path), period)
    if as_json:
        click.echo(found.to_json())
    elif as_csv:
        click.echo(_csv(found.table()), nl=False)
    else:
        click.echo("\n".join(_lines(found)))


def _write_new(path: Path, text: str) -> None:
    from negindex.errors import NotAllowed, NotThere

    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise NotAllowed(f"{path} exists, and no statement is overwritten; name a new file") from error
    except FileNotFoundError as error:
        raise NotThere(f"{path.parent} is no folder; make it first") from error


def _csv(table: list[list[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(table)
    return written.getvalue()


def _lines(found: Summary) -> list[str]:
    rows = found.rows
    so_far = "" if found.until == found.end else f", so far: told at {found.until}"
    at = "no version yet" if found.version is None else f"the log up to version {found.version}, root {found.root}"
    pending = [f"  erasure of version {version}: {what}" for version, what in found.outstanding]
    return [
        f"set {found.set_id}",
        f"from {found.first} up to {found.end} ({found.zone}){so_far}",
        at,
        "",
        *table(*_turned(found.table())),
        "",
        f"rows in force: {rows.at_start} at the start, {rows.entered} entered, {rows.left} left, "
        f"{rows.at_end} at the end; {rows.erased} erased",
        *_listed("clocks missed", [_late(one) for one in found.missed]),
        *_listed("clocks past due at the end", [_late(one) for one in found.overdue]),
        *_listed("erasures outstanding now", pending),
    ]


def _turned(lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A heading of regimes, and a line for each thing that is counted."""
    (_, *regimes), *counted = [list(line) for line in zip(*lines, strict=True)]
    return ["", *regimes], [[name.replace("_", " "), *(cell or "-" for cell in cells)] for name, *cells in counted]


def _listed(title: str, lines: list[str]) -> list[str]:
    return [f"{title}: {len(lines) or 'none'}", *lines]


def _late(one: Late) -> str:
    ended = f"ended {one.ended}" if one.ended else "runs still"
    return f"  claim {one.claim} ({one.regime}): {one.clock}, due {one.due}, {ended}, {one.hours} hours late"
