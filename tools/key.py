"""``negindex key``: make and show the keys that sign checkpoints and receipts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes

if TYPE_CHECKING:
    from negindex.keys import Key

PASSPHRASE = "NEGINDEX_KEY_PASSPHRASE"


@click.group()
def key() -> None:
    """Make and show the keys that sign checkpoints and receipts.

    The secret key stays where it was made; its .pub file goes to everybody who checks.
    """


@key.command(
    epilog=f"""\b
Examples:
  negindex key new operator.key
  negindex key new operator.key --passphrase

With --passphrase the passphrase is asked for, or taken from {PASSPHRASE}."""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--passphrase", "lock", is_flag=True, help="Lock the file with a passphrase.")
@errors_to_exit_codes
def new(file: Path, lock: bool) -> None:
    """Make a key: FILE for its owner alone, FILE.pub for those who check; prints the key's id."""
    from negindex.errors import NotAllowed
    from negindex.keys import Key

    beside = file.with_name(file.name + ".pub")
    if beside.exists():
        raise NotAllowed(f"{beside} exists, and no key is overwritten; give another name, or move it away")
    made = Key.new()
    made.save(file, _passphrase(f"Passphrase for {file}", new=True) if lock else None)
    made.public.save(beside)
    click.echo(made.public.id)


@key.command(epilog="\b\nExamples:\n  negindex key show operator.key\n  negindex key show operator.key.pub --json")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@errors_to_exit_codes
def show(file: Path, as_json: bool) -> None:
    """Print the id and the public half of a key, from its FILE or its FILE.pub; never the secret."""
    from negindex.keys import PublicKey

    public = PublicKey.load(file) if file.suffix == ".pub" else open_key(file).public
    if as_json:
        click.echo(json.dumps({"id": public.id, "public": public.text}))
    else:
        click.echo(f"{public.id}\n{public.text}")


def open_key(file: Path) -> Key:
    """The key in a file; a locked one's passphrase is asked for, or taken from the environment."""
    from negindex.keys import Key

    return Key.load(file, passphrase_of(file))


def passphrase_of(file: Path) -> str | None:
    """The passphrase of a locked key's file, asked for or from the environment; None where it has none."""
    from negindex.keys import is_locked

    return _passphrase(f"Passphrase of {file}") if is_locked(file) else None


def _passphrase(asked: str, new: bool = False) -> str:
    """Never an argument: every user of the machine can read the arguments of a running command."""
    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return given
    said: str = click.prompt(asked, hide_input=True, confirmation_prompt=new, err=True)
    return said
