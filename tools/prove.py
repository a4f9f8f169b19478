"""``negindex prove``: what stands of a receipt, offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.common import errors_to_exit_codes

if TYPE_CHECKING:
    from negindex.log import Record
    from negindex.receipts import Receipt

_FILE = click.Path(path_type=Path)
_PNG = b"\x89PNG"


def _print_script(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        import inspect

        from negindex import offline

        click.echo(inspect.getsource(offline), nl=False)
        context.exit()


@click.command(
    epilog="""\b
Examples:
  negindex prove demo/images/00000.png --set demo/eights.set
  negindex log demo/eights.set --json > log.jsonl
  negindex prove demo/images/00000.json --image demo/images/00000.png --log log.jsonl --row 5 --json
  negindex prove --script > offline.py

Exit codes: 0 all of it holds, 3 nothing is false and something cannot be told, 13 something is false."""
)
@click.argument("receipt", type=_FILE)
@click.option("--set", "sets", type=_FILE, multiple=True, help="A set that the receipt names; again for more.")
@click.option("--log", "logs", type=_FILE, multiple=True, help="Its log instead, as `negindex log SET --json` prints.")
@click.option("--image", type=_FILE, help="The image (default: RECEIPT, where that is a PNG).")
@click.option("--checkpoint", "checkpoints", type=_FILE, multiple=True, help="One that was kept elsewhere.")
@click.option("--public", type=_FILE, multiple=True, help="The .pub file of a holder or sampler whom you know.")
@click.option("--row", "rows", type=int, multiple=True, metavar="ID", help="Was this row in force?")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option(
    "--script",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_script,
    help="Print the script that does these checks without negindex.",
)
@errors_to_exit_codes
def prove(
    receipt: Path,
    sets: tuple[Path, ...],
    logs: tuple[Path, ...],
    image: Path | None,
    checkpoints: tuple[Path, ...],
    public: tuple[Path, ...],
    rows: tuple[int, ...],
    as_json: bool,
) -> None:
    """Say line by line what stands of RECEIPT, a JSON file or a PNG that holds one, and what cannot be told.

    Were its rows in force at the versions that it names; is the image the one that it speaks of; does today's log go
    on from the log of then; who signed. A set that was put back as a whole, or whose log was cut off, shows only
    against a checkpoint that was kept elsewhere (`negindex checkpoint`).
    """
    from negindex import proof
    from negindex.offline import told

    known: list[list[Record] | Path] = [*logs, *map(_log_of, sets)]
    given, held = _open(receipt)
    found = proof.prove(given, known, checkpoints=checkpoints, public=public, image=image or held, rows=rows)
    text, code = told(found)
    click.echo(json.dumps([dict(zip(("verdict", "said"), one, strict=True)) for one in found]) if as_json else text)
    sys.exit(code)


def _log_of(path: Path) -> list[Record]:
    from negindex import Collection

    with Collection.open(path) as collection:
        return collection.log()


def _open(path: Path) -> tuple[Receipt | Path, Path | None]:
    """The receipt, and the image that held it."""
    from negindex.errors import NotThere
    from negindex.sampler.png import read_receipt

    if not path.is_file():
        raise NotThere(f"{path} is no file; name a receipt, or a PNG that was saved with one")
    with path.open("rb") as file:
        return (read_receipt(path), path) if file.read(len(_PNG)) == _PNG else (path, None)
