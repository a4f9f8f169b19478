"""How things are shown to people: tables, times, and text that others wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import PARTLY

if TYPE_CHECKING:
    from negindex import Collection


def one_line(text: object) -> str:
    """Text from elsewhere as one line that a terminal takes for nothing but text."""
    said = "; ".join(map(str, text)) if isinstance(text, list | tuple) else str(text)
    return "".join(c if c.isprintable() else " " for c in said)


def key_text(key: str | None) -> str:
    """A source key; an erased row has none."""
    return "(erased)" if key is None else one_line(key)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines with columns that stand under each other; None is shown as -."""
    lines = [list(head), *(["-" if cell is None else one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def moment(at: datetime) -> str:
    """To the second, UTC."""
    return at.isoformat(timespec="seconds")


def outstanding(collection: Collection) -> list[dict[str, Any]]:
    """What holds erased bytes still, with the processes that keep it."""
    return [
        one._asdict() | {"holders": [holder._asdict() for holder in collection.holders(one)]}
        for one in collection.outstanding()
    ]


def outstanding_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """The same for people, with what to do."""
    lines = []
    for one in found:
        lines.append(f"outstanding: {one['what']} {one['name']}, {_since(one['version'])}")
        lines += [f"  held by process {h['pid']}: {one_line(h['program']) or '?'}" for h in one["holders"]]
    if found:
        lines.append(
            "not finished: end what holds a file, or have it open the set anew, and bring a backup or an engine within "
            "reach; then `negindex status` finishes it"
        )
    return lines


def exit_if_pending(collection: Collection) -> None:
    """After an erasure: exit code 3, and what holds it up, while something does."""
    if left := outstanding(collection):
        say(outstanding_lines(left), err=True)
        sys.exit(PARTLY)


def _since(version: int) -> str:
    return f"erased or given up at version {version}" if version else "replaced by a compaction"


def say(lines: Iterable[str], *, err: bool = False) -> None:
    """Print lines."""
    for line in lines:
        click.echo(line, err=err)
