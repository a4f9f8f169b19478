"""Options of commands that change a set, and how they are taken."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from negindex import Collection, Version
    from negindex.engines.push import EnginesAhead
    from negindex.keys import Key

SET = click.argument("set_path", metavar="SET", type=click.Path(path_type=Path))
BY = click.option(
    "--by", metavar="NAME", envvar="NEGINDEX_BY", show_envvar=True, default="", help="Who does it, for the record."
)
REASON = click.option("--reason", default="", help="Why, for the record: in your own words, nobody else's name in it.")
KEY = click.option(
    "--key",
    "key_file",
    metavar="KEYFILE",
    envvar="NEGINDEX_KEY",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="Sign the checkpoint of what is changed (`negindex key new` makes a key).",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")
YES = click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal to ask on.")
PIPELINE = click.option(
    "--pipeline",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="For a set in a pipeline's latent space: that pipeline's folder; only its VAE is loaded.",
)


def open_set(set_path: Path, key_file: Path | None = None) -> Collection:
    """The collection, opened to be changed."""
    from negindex import Collection

    return Collection.open(set_path, key=open_key_if_any(key_file))


def engines_ahead(collection: Collection) -> EnginesAhead:
    """The set's engines, as they are to hold an index before it is on record."""
    from negindex.engines.push import EnginesAhead

    return EnginesAhead(collection, collection.engines.known(), lambda said: click.echo(said, err=True))


def open_key_if_any(key_file: Path | None) -> Key | None:
    """The key in a file; a locked one's passphrase is asked for."""
    from negindex.tools.key import open_key

    return None if key_file is None else open_key(key_file)


def ask_first(question: str, yes: bool) -> None:
    """Go on if somebody agrees; a usage error where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can be asked here: say --yes if it is meant")
    click.confirm(question, abort=True, err=True)


def version_asked(collection: Collection, text: str) -> Version:
    """The version that a number, or a moment (ISO 8601), names. Raises UnknownVersion, InvalidInput."""
    from negindex.errors import InvalidInput

    if text.isdecimal():
        return collection.version(int(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is neither a version nor a time; give a number, or ISO 8601 such as 2026-05-19T09:30+02:00"
        ) from error
    if at.utcoffset() is None:
        at = at.astimezone()
        click.echo(f"{text} has no time zone: taken as this machine's, {at.isoformat()}", err=True)
    return collection.version_at(at)
