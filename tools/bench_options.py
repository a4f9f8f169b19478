"""What the benches of look-ups are asked alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

SHAPE = click.option("--shape", default="4,32,32", show_default=True, help="One row's shape: channels, height, width.")
THREADS = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use."
)
KEEP = click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Leave the sets there, and take those that lie there already, another bench's too; else a temporary folder "
    "goes away.",
)


def numbers_in(text: str, kind: Callable[[str], Any], option: str) -> tuple[Any, ...]:
    """The numbers between commas."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if not all(0 < number < float("inf") for number in numbers):
        raise click.BadParameter(f"{text!r}; give positive numbers with commas between them", param_hint=option)
    return numbers


@contextmanager
def folder_of(keep: Path | None) -> Iterator[Path]:
    """Where the sets lie: the folder named, or a temporary one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with TemporaryDirectory(prefix="negindex-bench-") as folder:
        yield Path(folder)
