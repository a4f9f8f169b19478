"""``negindex claim show | list | due | regimes``: what changes nothing."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.claim_rules import DOCUMENTS, STATES
from negindex.tools.claim_fields import form
from negindex.tools.claim_print import claim_as_json, claim_lines, clock_as_json, clock_line, clock_status
from negindex.tools.common import PARTLY, errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET
from negindex.tools.showing import one_line, say, table

if TYPE_CHECKING:
    from negindex.claims import Due

NUMBER = click.argument("number", metavar="CLAIM", type=click.IntRange(1))


@click.command(
    epilog="""\b
Examples:
  negindex claim show demo/eights.set 1
  negindex claim show claims.set 17 --claimant
"""
)
@SET
@NUMBER
@click.option("--claimant", is_flag=True, help="Show also what the claim tells of persons; nothing else ever does.")
@AS_JSON
@errors_to_exit_codes
def show(set_path: Path, number: int, claimant: bool, as_json: bool) -> None:
    """Show one claim: state, rows, what it tells, what is missing, clocks, history."""
    from negindex import Collection

    claims = Collection.open(set_path).claims
    claim = claims.show(number)
    rules = claims.regime(claim.regime)
    person = claims.claimant(number) if claimant else {}
    if claimant:
        click.echo(f"personal data of claim {number} follows: for those who need it, and for no log", err=True)
    if as_json:
        said = claim_as_json(claim, rules) | ({"claimant": person} if claimant else {})
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    say(claim_lines(claim, rules))
    if claimant:
        told = [f"  {name}: {one_line(value)}" for name, value in person.items()]
        say(["claimant:", *(told or ["  nothing is held"])])


@click.command(
    "list",
    epilog="""\b
Examples:
  negindex claim list demo/eights.set
  negindex claim list claims.set --state disputed --regime dmca --json
""",
)
@SET
@click.option("--state", type=click.Choice(STATES), help="Those in this state.")
@click.option("--regime", metavar="NAME", help="Those under this regime.")
@AS_JSON
@errors_to_exit_codes
def list_claims(set_path: Path, state: str | None, regime: str | None, as_json: bool) -> None:
    """List the claims: regime, state, hold, and the clock that is due next."""
    from negindex import Collection

    claims, now = Collection.open(set_path).claims, datetime.now(UTC)
    if regime is not None:
        claims.regime(regime)
    found = claims.every(state, regime)
    next_due: dict[int, Due] = {}
    for due in claims.due(now=now):
        next_due.setdefault(due.claim, due)
    if as_json:
        said = [claim._asdict() | {"next_due": _due_as_json(next_due.get(claim.claim), now)} for claim in found]
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    rows = [(*claim, _due_text(next_due.get(claim.claim), now)) for claim in found]
    say(table(("claim", "regime", "state", "hold", "next"), rows))


@click.command(
    epilog="""\b
Examples:
  negindex claim due demo/eights.set
  negindex claim due claims.set --within 48h --check
"""
)
@SET
@click.option("--within", metavar="TIME", help="Only what is due within this time, such as 48h or 2d, or overdue.")
@click.option("--check", is_flag=True, help="Exit with 3 when a clock that is shown is overdue, or its alarm has come.")
@AS_JSON
@errors_to_exit_codes
def due(set_path: Path, within: str | None, check: bool, as_json: bool) -> None:
    """List the clocks that run on claims, the most urgent first.

    Exit code 0; with --check 3 when somebody has to act: for a mail from cron, say.
    """
    from negindex import Collection
    from negindex.clocks import length

    limit, now = None if within is None else length(within), datetime.now(UTC)
    found = Collection.open(set_path).claims.due(limit, now)
    if as_json:
        click.echo(json.dumps([_due_as_json(one, now) for one in found], ensure_ascii=False))
    else:
        rows = [(one.claim, one.regime, one.state, one.clock.name, clock_line(one.clock, now)) for one in found]
        say(table(("claim", "regime", "state", "clock", "due"), rows))
    if check and any(clock_status(one.clock, now) != "running" for one in found):
        sys.exit(PARTLY)


@click.command(
    epilog="""\b
Examples:
  negindex claim regimes
  negindex claim regimes dmca --document notice > notice.toml
  negindex claim regimes my-own --set claims.set
"""
)
@click.argument("name", required=False)
@click.option("--set", "set_path", metavar="SET", type=click.Path(path_type=Path), help="With this set's own regimes.")
@click.option(
    "--document",
    type=click.Choice(DOCUMENTS),
    help="Only the fields of this document.",
)
@errors_to_exit_codes
def regimes(name: str | None, set_path: Path | None, document: str | None) -> None:
    """List the regimes; or print the fields of one as a TOML file to fill in and give to --fields.

    A set's own regimes are the TOML files in its folder regimes. Counsel decides which law binds.
    """
    from negindex.regimes import regime
    from negindex.regimes import regimes as names

    folder = None if set_path is None else _own_regimes(set_path)
    if name is not None:
        say(form(regime(name, folder), document))
        return
    found = [regime(one, folder) for one in names(folder)]
    say(table(("regime", "stores", "title"), [(one.name, one.storage, one.title) for one in found]))


def _own_regimes(set_path: Path) -> Path | None:
    from negindex import Collection

    own = Collection.open(set_path).path / "regimes"
    return own if own.is_dir() else None


def _due_as_json(due: Due | None, now: datetime) -> dict[str, Any] | None:
    return None if due is None else due._asdict() | {"clock": clock_as_json(due.clock, now)}


def _due_text(due: Due | None, now: datetime) -> str | None:
    return None if due is None else f"{due.clock.name}: {clock_line(due.clock, now)}"
