"""``negindex diff``: what changed between two versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET, version_asked
from negindex.tools.showing import key_text

if TYPE_CHECKING:
    from negindex.states import ClaimRecord


@click.command(
    epilog="""\b
Examples:
  negindex diff demo/eights.set 0 1
  negindex diff claims.set 2026-05-01 2026-06-01T00:00Z --json
"""
)
@SET
@click.argument("before", metavar="VERSION|TIME")
@click.argument("after", metavar="VERSION|TIME")
@AS_JSON
@errors_to_exit_codes
def diff(set_path: Path, before: str, after: str, as_json: bool) -> None:
    """Say which rows entered (+) and left (-), and which claims changed, from one version to another.

    Either may be the older, and either may be a version that can no longer be opened: erased rows have no key.
    """
    from negindex import Collection

    collection = Collection.open(set_path)
    old, new = (version_asked(collection, text).version for text in (before, after))
    found = collection.diff(old, new)
    if as_json:
        said = {
            "from": old,
            "to": new,
            "entered": _rows(found.entered),
            "left": _rows(found.left),
            "claims": [_claims(*pair) for pair in found.claims],
        }
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    for sign, rows in (("+", found.entered), ("-", found.left)):
        for row_id, key in rows.items():
            click.echo(f"{sign} {row_id}  {key_text(key)}")
    for one, other in found.claims:
        known = one or other
        click.echo(f"claim {known.claim if known else ''}: {_standing(one)} -> {_standing(other)}")
    click.echo(
        f"{set_path}: version {old} to {new}: {len(found.entered)} rows entered, {len(found.left)} left, "
        f"{len(found.claims)} claims changed",
        err=True,
    )


def _rows(rows: Mapping[int, str | None]) -> list[dict[str, Any]]:
    return [{"id": row_id, "source_key": key} for row_id, key in rows.items()]


def _claims(one: ClaimRecord | None, other: ClaimRecord | None) -> dict[str, Any]:
    return {"before": one._asdict() if one else None, "after": other._asdict() if other else None}


def _standing(claim: ClaimRecord | None) -> str:
    if claim is None:
        return "not there"
    return f"{claim.state}{f', legal hold {claim.hold}' if claim.hold else ''} ({claim.regime})"
