"""``negindex status``: what a collection holds, and what is or was in force."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET, version_asked
from negindex.tools.showing import key_text, outstanding, outstanding_lines, say

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.states import ClaimRecord


@click.command(
    epilog="""\b
Examples:
  negindex status demo/eights.set
  negindex status demo/eights.set --json
  negindex status claims.set --at 2026-05-19T09:30+02:00 --keys
"""
)
@SET
@click.option(
    "--at", metavar="VERSION|TIME", help="What was in force then; a time is ISO 8601, this machine's without a zone."
)
@AS_JSON
@click.option("--keys", is_flag=True, help="List the source keys in force instead.")
@errors_to_exit_codes
def status(set_path: Path, at: str | None, as_json: bool, keys: bool) -> None:
    """Say what is in force: version, rows, shape, space, files, claims, and what erasures still owe.

    With --at what was in force at an earlier version, also at one that can no longer be opened.
    """
    from negindex import Collection

    collection = Collection.open(set_path)
    version = collection.newest() if at is None else version_asked(collection, at)
    if keys:
        listed = collection.source_keys() if at is None else _keys_at(collection, version.version)
        click.echo(json.dumps(listed, ensure_ascii=False)) if as_json else say(map(key_text, listed))
        return
    said = {"set": str(set_path), "set_id": collection.set_id}
    said |= _now(collection) if at is None else _then(collection, version.version)
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        _say(said)
    if not version.in_force:
        click.echo(_EMPTY if at is None else "the set was empty", err=True)


_EMPTY = "the set is empty: a guard over it raises until rows are added"


def _now(collection: Collection) -> dict[str, Any]:
    newest, files, dead = collection.newest(), collection.segments(), collection.dead()
    due = next(iter(collection.claims.due()), None)
    return {
        "version": newest.version,
        "changed_at": newest.at,
        "rows_in_force": newest.in_force,
        "rows_proposed": sum(file.rows for file in files) - newest.in_force - dead.rows,
        "rows_withdrawn": dead.rows,
        "shape": list(collection.shape),
        "space": collection.space,
        "images": str(collection.geometry),
        "dtype": collection.dtype,
        "embedded_by": collection.embedded_by,
        "segments": len(files),
        "bytes": sum(file.bytes for file in files),
        "bytes_to_reclaim": dead.bytes,
        **_place(collection),
        **_kernel(collection),
        "open_claims": _open(collection.claims.every()),
        "next_due": None if due is None else _next(due.claim, due.clock.name, due.clock.due),
        "outstanding": outstanding(collection),
    }


def _then(collection: Collection, number: int) -> dict[str, Any]:
    from negindex.errors import Erased

    version, newest = collection.version(number), collection.newest().version
    try:
        collection.check_readable(number)
        why = None
    except Erased as erased:
        why = str(erased)
    return {
        "version": number,
        "changed_at": version.at,
        "until": collection.version(number + 1).at if number < newest else None,
        "action": version.action,
        "rows_in_force": version.in_force,
        "open_claims": _open(collection.claims_at(number).values()),
        "cannot_be_opened": why,
    }


def _place(collection: Collection) -> dict[str, Any]:
    """Where rows lie, and what is kept here of those that lie elsewhere; nothing for a set that holds its own."""
    if collection.rows_at is None:
        return {}
    kept, limit = collection.rows_kept
    return {"rows_at": collection.rows_at, "bytes_kept_here": kept, "cache_bytes": limit}


def _kernel(collection: Collection) -> dict[str, Any]:
    """The kernel in force, since when, and which rows its index holds; whether it is time to calibrate again."""
    found = next((one for one in reversed(collection.derived()) if one.kind == "calibration"), None)
    last = max((version.version for version in collection.versions() if version.action == "calibrate"), default=None)
    calibration, left = collection.calibration(), collection.unindexed()
    rows, since = collection.newest().in_force, None if found is None else found.since
    again = None
    if last != since:
        again = f"the calibration of version {last} saw rows that were erased; run `negindex calibrate`"
    elif calibration is not None and rows >= 2 * max(calibration.rows, 1):
        again = f"the set has grown from {calibration.rows} rows to {rows}; run `negindex calibrate`"
    return {
        "kernel": "literal" if calibration is None else calibration.kernel.name,
        "calibrated_at": since,
        "calibrate_again": again,
        "rows_indexed": 0 if left is None else rows - left,
        "rows_not_indexed": rows if left is None else left,
    }


def _open(claims: Iterable[ClaimRecord]) -> dict[str, int]:
    """{state: claims that are neither withdrawn nor erased}."""
    from negindex.schema import CLOSED

    return dict(sorted(Counter(claim.state for claim in claims if claim.state not in CLOSED).items()))


def _next(claim: int, clock: str, due: datetime) -> dict[str, Any]:
    return {"claim": claim, "clock": clock, "due": due.isoformat(), "overdue": due < datetime.now(UTC)}


def _keys_at(collection: Collection, number: int) -> list[str | None]:
    return sorted(collection.in_force(number).values(), key=lambda key: (key is None, key or ""))


def _say(said: dict[str, Any]) -> None:
    width = max(map(len, said))
    for name, value in said.items():
        if name != "outstanding":
            click.echo(f"{name.replace('_', ' '):{width}}  {_text(name, value)}")
    say(outstanding_lines(said.get("outstanding", [])))


def _text(name: str, value: Any) -> str:
    if name == "until" and value is None:
        return "now"
    if name == "next_due" and value is not None:
        return f"claim {value['claim']}: {value['clock']}, {value['due']}{', OVERDUE' if value['overdue'] else ''}"
    if name == "open_claims":
        return ", ".join(f"{many} {state}" for state, many in value.items()) or "none"
    return "none" if value is None else str(value)
