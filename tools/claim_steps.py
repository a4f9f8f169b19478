"""``negindex claim`` amend, accept, dispute, stay, uphold, withdraw, erase, hold, release: one step, one version."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.claim_fields import FIELD, FIELDS, faults, told
from negindex.tools.claim_print import claim_as_json, clock_lines, missing_lines, named_faults
from negindex.tools.claim_read import NUMBER
from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, BY, KEY, REASON, SET, YES, ask_first, open_set
from negindex.tools.showing import exit_if_pending, key_text, say

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.claims import Claim

Command = Callable[..., None]
_PROTECTION = {  # what an erasure leaves, by --keep-out
    True: "a keyed fingerprint keeps the same content out",
    False: "the same content may be added again",
    None: "the same content may be added again, unless the claim's fields say otherwise: --keep-out keeps it out",
}


def _a_step(command: Command) -> Command:
    for option in (AS_JSON, KEY, REASON, BY, NUMBER, SET):
        command = option(command)
    return command


def _telling(step: Command) -> Command:
    """A step that may tell fields: it is given the open set, the claim's number, and what is told."""

    @_a_step
    @FIELD
    @FIELDS
    @errors_to_exit_codes
    @wraps(step)
    def run(
        set_path: Path,
        number: int,
        key_file: Path | None,
        fields_file: Path | None,
        pairs: Sequence[str],
        **rest: Any,
    ) -> None:
        collection = open_set(set_path, key_file)
        step(collection, number, _told(collection, number, fields_file, pairs), **rest)

    return run


def _deciding(action: str, does: str, document: str) -> click.Command:
    """A command that brings a claim into another state, with fields where the regime asks for some."""

    @_telling
    def step(collection: Collection, number: int, fields: dict[str, Any], as_json: bool, **words: str) -> None:
        _take(collection, lambda: getattr(collection.claims, action)(number, fields=fields, **words), as_json)

    example = f"negindex claim {action} claims.set 17 --by ann --reason 'complete' {document}".rstrip()
    return click.command(action, help=does, epilog=f"\b\nExample:\n  {example}")(step)


accept = _deciding(
    "accept",
    "Find a claim good: its rows are in force from this version on, in every sampler that follows the set.",
    "",
)
dispute = _deciding(
    "dispute",
    "Take in a counter-notice: the rows stay in force, and the regime's clocks run.",
    "--fields counter-notice.toml",
)
stay = _deciding(
    "stay", "A suit was notified: the rows stay in force until it is decided.", "--field suit='docket 7, N.D. Cal.'"
)
uphold = _deciding("uphold", "Decide a dispute, or a suit, for the claim: in force as before.", "")


@click.command(
    epilog="""\b
Example:
  negindex claim amend claims.set 17 --fields notice.toml --by ann
"""
)
@_telling
def amend(collection: Collection, number: int, fields: dict[str, Any], as_json: bool, **words: str) -> None:
    """Put in what was missing, or correct it. A claim that becomes complete is received."""
    if not fields:
        raise click.UsageError("nothing is told; give --fields, or --field")
    _take(collection, lambda: collection.claims.amend(number, fields, **words), as_json)


@click.command(
    epilog="""\b
Examples:
  negindex claim withdraw claims.set 17 --by ben --reason "no suit was notified"
  negindex claim withdraw claims.set 17 --early --by ben --reason "the claimant took it back"
"""
)
@_telling
@click.option("--early", is_flag=True, help="Although a clock says: not before.")
def withdraw(
    collection: Collection, number: int, fields: dict[str, Any], as_json: bool, early: bool, **words: str
) -> None:
    """Close a claim: rows that no other live claim names answer nothing from the next version on.

    A claim that was not accepted is thereby refused.
    """
    _take(collection, lambda: collection.claims.withdraw(number, fields=fields, early=early, **words), as_json)


@click.command(
    epilog="""\b
Examples:
  negindex claim erase claims.set 17 --dry-run
  negindex claim erase claims.set 17 --keep-out --by ben --reason "request of 3 May" --yes
"""
)
@_telling
@click.option(
    "--keep-out/--no-keep-out",
    default=None,
    help="Keep a keyed fingerprint, or none, that refuses the same content later; else as the claim's fields say.",
)
@YES
@click.option("--dry-run", is_flag=True, help="Say which rows would be erased, and change nothing.")
def erase(
    collection: Collection,
    number: int,
    fields: dict[str, Any],
    as_json: bool,
    keep_out: bool | None,
    yes: bool,
    dry_run: bool,
    **words: str,
) -> None:
    """Erase a claim's rows, what it told, and who told it, for good; versions that held the rows close.

    Exit code 3 while a process holds erased bytes still: it is named, and the erasure is pending.
    """
    rows = collection.claims.show(number).rows
    if dry_run:
        say(f"{row_id}  {key_text(key)}" for row_id, key in rows.items())
        click.echo(f"{collection.path}: {len(rows)} rows would be erased; nothing was changed", err=True)
        return
    what = f"claim {number} and its {len(rows)} rows from {collection.path}"
    ask_first(f"Erase {what} for good ({_PROTECTION[keep_out]})?", yes)
    _take(collection, lambda: collection.claims.erase(number, fields=fields, keep_out=keep_out, **words), as_json)
    exit_if_pending(collection)


def _on_hold(action: str, does: str) -> click.Command:
    @_a_step
    @errors_to_exit_codes
    def step(set_path: Path, number: int, key_file: Path | None, as_json: bool, **words: str) -> None:
        collection = open_set(set_path, key_file)
        _take(collection, lambda: getattr(collection.claims, action)(number, **words), as_json)

    example = f"negindex claim {action} claims.set 17 --by ann --reason 'order of 3 May'"
    return click.command(action, help=does, epilog=f"\b\nExample:\n  {example}")(step)


hold = _on_hold("hold", "Keep a claim's rows from being erased. One person asks, another puts it in force: name both.")
release = _on_hold(
    "release", "Lift a legal hold: one person asks, another lifts it. What was only asked for is taken back by anyone."
)


def _told(collection: Collection, number: int, fields_file: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """The fields of this step; those that will not do are named, and go on record as they came."""
    rules = collection.claims.regime(collection.claims.show(number).regime)
    fields = told(rules, fields_file, pairs)
    say(named_faults("as told, these will not do", faults(rules, fields), rules), err=True)
    return fields


def _take(collection: Collection, step: Callable[[], Claim], as_json: bool) -> None:
    """Take a step and say what came of it."""
    before = collection.newest().version
    claim = step()
    show_step(collection, before, claim, as_json)


def show_step(collection: Collection, before: int, claim: Claim, as_json: bool, **more: Any) -> None:
    """The version that a step made, the claim's state, what its rows do, what is missing, and which clocks run."""
    from negindex.log import count

    rules = collection.claims.regime(claim.regime)
    made = [record for record in collection.log(before + 1) if record.claim == claim.number]
    if as_json:
        said = {"version": made[-1].version, **claim_as_json(claim, rules), **more}
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    entered, left = sum(count(record.entered) for record in made), sum(count(record.left) for record in made)
    hold = f", legal hold {claim.hold}" if claim.hold else ""
    click.echo(
        f"{collection.path}: version {made[-1].version}, claim {claim.number} {claim.state}{hold} ({claim.regime}), "
        f"{made[-1].in_force} rows in force ({entered} in, {left} out)"
    )
    if claim.state == "withdrawn" and claim.first_in_force is not None and left < len(claim.rows):
        click.echo(f"{len(claim.rows) - left} of its {len(claim.rows)} rows stay in force: other claims name them")
    say(missing_lines(claim, rules))
    say(clock_lines(claim, running=True))
