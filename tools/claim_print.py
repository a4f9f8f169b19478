"""A claim for people and for machines. Nothing of the claimant is in what these functions are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from negindex.clocks import span
from negindex.tools.showing import key_text, moment, one_line, table

if TYPE_CHECKING:
    from negindex.claims import Claim
    from negindex.clocks import Clock
    from negindex.regimes import Regime


def clock_status(clock: Clock, now: datetime) -> str:
    """running, alarm, overdue, met or late."""
    if clock.ended is not None:
        return "late" if clock.missed(now) else "met"
    return "overdue" if clock.missed(now) else "alarm" if clock.near(now) else "running"


def clock_as_json(clock: Clock, now: datetime) -> dict[str, Any]:
    """Times as ISO 8601, UTC."""
    times = {name: at.isoformat() if isinstance(at, datetime) else at for name, at in asdict(clock).items()}
    return times | {"status": clock_status(clock, now)}


def clock_line(clock: Clock, now: datetime) -> str:
    """When it is due, and how long that is."""
    status = clock_status(clock, now)
    if clock.ended is not None:
        return f"ended {moment(clock.ended)}, {'in time' if status == 'met' else f'LATE: due {moment(clock.due)}'}"
    left = f"OVERDUE by {span(now - clock.due)}" if status == "overdue" else f"in {span(clock.due - now)}"
    early = f", not before {moment(clock.not_before)}" if clock.not_before and clock.too_early(now) else ""
    return f"due {moment(clock.due)}, {left}{early}{', ALARM' if status == 'alarm' else ''}"


def claim_as_json(claim: Claim, rules: Regime) -> dict[str, Any]:
    """Everything that ``claim show`` says."""
    now, helps = datetime.now(UTC), {field.name: field.help for field in rules.fields}
    return {
        "claim": claim.number,
        "regime": claim.regime,
        "state": claim.state,
        "hold": claim.hold,
        "first_in_force": claim.first_in_force,
        "last_in_force": claim.last_in_force,
        "rows": [{"id": row_id, "source_key": key} for row_id, key in claim.rows.items()],
        "hashes": [f"{kind}:{digest}" for kind, digest in claim.hashes],
        "fields": claim.fields,
        "missing": {name: {"why": why, "help": helps[name]} for name, why in claim.missing.items()},
        "clocks": [clock_as_json(clock, now) for clock in claim.clocks],
        "history": [event._asdict() for event in claim.history],
    }


def claim_lines(claim: Claim, rules: Regime) -> Iterator[str]:
    """The whole claim."""
    yield f"claim {claim.number}, {claim.regime}: {rules.title}"
    yield f"state: {claim.state}{_in_force(claim)}"
    yield f"legal hold: {claim.hold or 'none'}"
    yield from _block("rows", [f"{row_id}  {key_text(key)}" for row_id, key in claim.rows.items()])
    yield from _block("hashes", [f"{kind}:{digest}" for kind, digest in claim.hashes])
    yield from _block("fields", [f"{name}: {one_line(value)}" for name, value in claim.fields.items()])
    yield from missing_lines(claim, rules)
    yield from clock_lines(claim, running=False)
    history = [(e.version, e.at, e.action, e.state, e.by, e.reason) for e in claim.history]
    yield from _block("history", table(("version", "at", "action", "state", "by", "reason"), history))


def missing_lines(claim: Claim, rules: Regime) -> Iterator[str]:
    """What keeps it from being accepted, with each field's help."""
    yield from named_faults("missing before it can be accepted", claim.missing, rules)


def named_faults(title: str, faults: dict[str, str], rules: Regime) -> Iterator[str]:
    """Fields that will not do, why, and what belongs there."""
    helps = {field.name: field.help for field in rules.fields}
    yield from _block(title, [f"{name} {why} ({one_line(helps[name])})" for name, why in faults.items()])


def clock_lines(claim: Claim, *, running: bool) -> Iterator[str]:
    """Its clocks, or those that run."""
    now = datetime.now(UTC)
    clocks = [clock for clock in claim.clocks if not running or clock.ended is None]
    yield from _block("clocks", [f"{clock.name}: {clock_line(clock, now)}" for clock in clocks])


def _in_force(claim: Claim) -> str:
    first, last = claim.first_in_force, claim.last_in_force
    if first is None:
        return ""
    return f", in force since version {first}" if last is None else f", was in force from version {first} to {last}"


def _block(title: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines under a title, or nothing."""
    for place, line in enumerate(lines):
        if not place:
            yield f"{title}:"
        yield f"  {line}"
