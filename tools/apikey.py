"""``negindex apikey``: who may ask the service, and what."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON

_DIR = click.argument("root", metavar="DIR", type=click.Path(path_type=Path))
_ROLES = ("sampler", "curator", "approver", "auditor", "admin")


@click.group()
def apikey() -> None:
    """Make, list and revoke the keys that the service takes."""


@apikey.command(
    epilog="""\b
Examples:
  negindex apikey create sets/ --role sampler --set nudity.set --days 90
  negindex apikey create sets/ --role auditor --name prometheus
"""
)
@_DIR
@click.option("--role", "roles", multiple=True, required=True, type=click.Choice(_ROLES), help="May be given again.")
@click.option("--set", "sets", multiple=True, metavar="NAME", help="Only for this set; may be given again.")
@click.option("--days", type=float, help="Until when the key lives; without it, until it is revoked.")
@click.option("--name", default="", help="What you call it; no person's name.")
@AS_JSON
@errors_to_exit_codes
def create(
    root: Path, roles: tuple[str, ...], sets: tuple[str, ...], days: float | None, name: str, as_json: bool
) -> None:
    """Make a key for the service over DIR and print it, once: only a hash of it is kept.

    \b
    sampler    posteriors, near rows, digests, source keys for receipts
    curator    the same, and rows by their ids
    approver   the same as curator
    auditor    what sets are, their health, figures; no rows
    admin      everything
    """
    from negindex.service.access import create_key

    text, key = create_key(root, roles, sets, name=name, days=days)
    if as_json:
        click.echo(json.dumps({"key": text, **_shown(asdict(key))}))
        return
    click.echo(text)
    click.echo(f"key {key.id}; it is shown this once: keep it where its user alone can read it", err=True)


@apikey.command(
    name="list",
    epilog="""\b
Example:
  negindex apikey list sets/
""",
)
@_DIR
@AS_JSON
@errors_to_exit_codes
def list_(root: Path, as_json: bool) -> None:
    """List the keys of DIR: id, state, roles, sets, end, name.

    After them the people who came in through a provider: id, state, groups at the last log-in, provider, account.
    """
    from negindex.service.access import load_keys
    from negindex.service.people import load_people

    now = datetime.now(UTC)
    keys, people = load_keys(root), load_people(root)
    if as_json:
        shown = [_shown(asdict(key)) | {"state": key.state(now)} for key in keys]
        click.echo(json.dumps([*shown, *({**asdict(one), "state": one.state} for one in people)]))
        return
    for key in keys:
        sets, end = ",".join(key.sets) or "every set", key.expires or "no end"
        click.echo(f"{key.id}  {key.state(now):7}  {','.join(key.roles)}  {sets}  {end}  {key.name}".rstrip())
    for one in people:
        click.echo(f"{one.id}  {one.state:7}  {','.join(one.groups) or 'no group'}  {one.issuer}  {one.subject}")


@apikey.command(
    epilog="""\b
Example:
  negindex apikey revoke sets/ 4f0c2a9b17d3
"""
)
@_DIR
@click.argument("key_id", metavar="ID")
@errors_to_exit_codes
def revoke(root: Path, key_id: str) -> None:
    """End a key of DIR, or a person's way in, now; services that run take it no more."""
    from negindex.service.access import revoke_key
    from negindex.service.people import SIGN, revoke_person

    if key_id.startswith(SIGN):
        click.echo(f"person {revoke_person(root, key_id).id} is let in no more")
        return
    click.echo(f"key {revoke_key(root, key_id).id} is revoked")


def _shown(key: dict[str, object]) -> dict[str, object]:
    """What is kept, but for the hash."""
    return {name: value for name, value in key.items() if name != "sha256"}
