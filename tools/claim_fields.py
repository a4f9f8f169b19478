"""What a claim tells, from a file or the command line; and the form to fill in."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from negindex.regimes import Field, Regime

FIELDS = click.option(
    "--fields",
    "fields_file",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="A form to read fields from, TOML or JSON (`negindex claim regimes NAME` prints one); - for stdin.",
)
FIELD = click.option(
    "--field", "pairs", metavar="NAME=VALUE", multiple=True, help="One field; again for a list. Not for personal ones."
)


def told(rules: Regime, fields_file: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """{field: value} of the file and of the command line, which goes before it; what is left empty is not told.

    Raises InvalidInput for unknown fields, for values that are no text, and for personal ones on the command line.
    """
    said = {} if fields_file is None else _in_file(fields_file)
    given = _in_pairs(pairs)
    rules.apart(said | given)
    _refuse_personal(rules, given)
    return {name: value for name, value in (said | given).items() if value != ""}


def faults(rules: Regime, fields: dict[str, Any]) -> dict[str, str]:
    """{field: what is wrong} of those that are told."""
    found = {field.name: field.fault(fields[field.name]) for field in rules.fields if field.name in fields}
    return {name: fault for name, fault in found.items() if fault}


def form(rules: Regime, document: str | None = None) -> Iterator[str]:
    """The lines of a TOML file to fill in: every field, or those of one document, each with its help."""
    yield f"# {rules.title}"
    yield from _comment(rules.law)
    yield from _comment(f"For counsel: {rules.counsel}")
    yield "# What is left empty counts as not told. Fields marked personal are kept apart, and shown only on request;"
    yield "# remove this file when it was read."
    for field in rules.fields:
        if document in (None, field.document):
            yield ""
            yield from _comment(f"{field.document}: {field.help}")
            yield from _comment("; ".join(_notes(field)))
            yield f'{_toml_key(field.name)} = ""'


def _notes(field: Field) -> Iterator[str]:
    from negindex.claim_rules import CHECKS

    yield f"needed before: {', '.join(field.required_for)}" if field.required_for else "not required"
    if field.choices:
        yield f"one of: {', '.join(field.choices)}"
    if field.check:
        yield CHECKS[field.check][0]
    if field.personal:
        yield "personal"


def _comment(text: str) -> Iterator[str]:
    yield from (f"# {line}" for line in text.splitlines())


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _in_file(file: Path) -> dict[str, Any]:
    from negindex.errors import InvalidInput, NotThere

    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
        said = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise NotThere(f"{file} cannot be read ({error.strerror}); name a file of fields, or - for stdin") from error
    except ValueError as error:
        raise InvalidInput(f"{file} is neither TOML nor JSON ({error}); correct it there") from error
    return {name: _plain(file, name, value) for name, value in said.items()}


def _plain(file: Path, name: str, value: Any) -> Any:
    from negindex.errors import InvalidInput

    if isinstance(value, list):
        return [_plain(file, name, item) for item in value]
    if isinstance(value, date):  # and datetime
        return value.isoformat()
    if not isinstance(value, str | bool | int):
        raise InvalidInput(f"{file}: {name} is a {type(value).__name__}; give a text, a list of texts, or true")
    return value.strip() if isinstance(value, str) else value


def _in_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    from negindex.text import is_unicode

    found: dict[str, list[str]] = {}
    for pair in pairs:
        if not is_unicode(pair):
            raise click.BadParameter("it is no text in this machine's encoding; give UTF-8", param_hint="--field")
        name, sign, value = pair.partition("=")
        if not (sign and name.strip()):
            raise click.BadParameter("give it as name=value", param_hint="--field")
        found.setdefault(name.strip(), []).append(value.strip())
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _refuse_personal(rules: Regime, given: dict[str, Any]) -> None:
    from negindex.errors import InvalidInput

    _, personal = rules.apart(given)
    if personal:
        raise InvalidInput(
            f"{', '.join(sorted(personal))} is personal under {rules.name}, and every user of this machine can read a "
            "command's arguments; put it into a file, and give that with --fields (- for stdin)"
        )
