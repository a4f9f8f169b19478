"""``negindex engine``: a set's index in Milvus, pushed, counted, compared, dropped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, SET, YES, ask_first, open_set

if TYPE_CHECKING:
    from negindex.collection import Collection
    from negindex.engines.address import Address
    from negindex.engines.push import Compared

INTEGRITY = 13
BEHIND = 3
_ADDRESS = click.argument("address", required=False)


@click.group()
def engine() -> None:
    """Keep a set's index in Milvus, beyond this machine's memory.

    ADDRESS is milvus://HOST:PORT/NAME, milvus+tls://HOST:PORT/NAME, or milvus:///PATH/FILE.db/NAME for Milvus Lite;
    where a set has one engine it may be left out. A token is taken from NEGINDEX_MILVUS_TOKEN.
    """


@engine.command(
    epilog="""\b
Examples:
  negindex engine push claims.set milvus://127.0.0.1:19530/claims
  negindex engine push claims.set
"""
)
@SET
@_ADDRESS
@AS_JSON
@errors_to_exit_codes
def push(set_path: Path, address: str | None, as_json: bool) -> None:
    """Have an engine hold what the set's index holds, in whatever state it was.

    Needed once: `negindex calibrate`, `negindex compact` and a service's upkeep push an index that they make anew
    before look-ups ask it. Later it sends only what is missing, and notes what was withdrawn.
    """
    from negindex.engines import push as engines

    collection = open_set(set_path)
    place = _asked(collection, address)
    _told(place, engines.push(collection, place, _say), as_json, "sent")


@engine.command(
    epilog="""\b
Example:
  negindex engine status claims.set
"""
)
@SET
@AS_JSON
@errors_to_exit_codes
def status(set_path: Path, as_json: bool) -> None:
    """What each engine of the set holds, by number. Exit code 3 where one could not answer for the newest version."""
    from negindex.engines.push import status as standing

    collection = open_set(set_path)
    found = standing(collection)
    owed = {one.name for one in collection.outstanding() if one.what == "engine"}
    if as_json:
        click.echo(json.dumps([{**one._asdict(), "erasures_outstanding": one.address in owed} for one in found]))
    for one in [] if as_json else found:
        said = one.trouble or ("no index to hold" if not one.table else f"{one.held} of {one.rows} rows")
        older = f", {len(one.older)} older tables" if one.older else ""
        click.echo(f"{one.address}: {said}{older}{', erasures outstanding' if one.address in owed else ''}")
    if not found:
        click.echo(f"{set_path}: no engine; `negindex engine push` makes one", err=True)
    if not all(one.is_whole for one in found):
        sys.exit(BEHIND)


@engine.command(
    epilog="""\b
Examples:
  negindex engine check claims.set
  negindex engine check claims.set milvus://127.0.0.1:19530/claims --repair
"""
)
@SET
@_ADDRESS
@click.option("--repair", is_flag=True, help="Put right what differs.")
@AS_JSON
@errors_to_exit_codes
def check(set_path: Path, address: str | None, repair: bool, as_json: bool) -> None:
    """Compare every row that an engine holds, in every field, with the set's index. Exit code 13 where they differ."""
    from negindex.engines import push as engines

    collection = open_set(set_path)
    place = _asked(collection, address)
    found = engines.check(collection, place, repair=repair, say=_say)
    _told(place, found, as_json, "put right" if repair else "wrong")
    if found.wrong and not repair:
        sys.exit(INTEGRITY)


@engine.command(
    epilog="""\b
Examples:
  negindex engine drop claims.set milvus://127.0.0.1:19530/claims
  negindex engine drop claims.set --gone --yes
"""
)
@SET
@_ADDRESS
@click.option("--gone", is_flag=True, help="Only forget it: it is no more, and erasures owe it nothing.")
@YES
@errors_to_exit_codes
def drop(set_path: Path, address: str | None, gone: bool, yes: bool) -> None:
    """Take what the set has in an engine out of it, and forget the engine. The set itself loses nothing."""
    from negindex.engines import push as engines

    collection = open_set(set_path)
    place = _asked(collection, address)
    if gone:
        ask_first(f"Is {place.text} gone for good, with every row of {set_path} in it?", yes)
    tables = engines.drop(collection, place, gone=gone)
    click.echo(f"{set_path}: {place.text} {'forgotten' if gone else f'dropped, {tables} tables'}")


def _asked(collection: Collection, address: str | None) -> Address:
    """The one named, or the set's only one."""
    from negindex.engines.address import FORMS, Address

    if address is not None:
        return Address.of(address)
    known = collection.engines.known()
    if len(known) != 1:
        names = ", ".join(one.text for one in known) or "none so far"
        raise click.UsageError(f"which engine? The set's: {names}. Give {FORMS}")
    return known[0]


def _say(said: str) -> None:
    click.echo(said, err=True)


def _told(place: Address, found: Compared, as_json: bool, done: str) -> None:
    if as_json:
        click.echo(json.dumps({"address": place.text, **found._asdict()}))
        return
    click.echo(
        f"{place.text}: {found.rows} rows, {found.wrong} {done} ({found.missing} missing, {found.different} different, "
        f"{found.alien} of no row)"
    )
