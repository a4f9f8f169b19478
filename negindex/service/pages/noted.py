"""Who looked at what: one JSON line a reveal in ``DIR/reveals.jsonl``, on the disk before the picture leaves.

It holds keys' ids, sets, and numbers of rows and claims: no names, no source keys, nothing of claimants.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from negindex.errors import Damaged

REVEALS = "reveals.jsonl"
_TAIL = 1 << 20  # bytes of the file's end that are shown


class Reveal(NamedTuple):
    """Somebody saw something that is kept from sight."""

    at: str  # ISO 8601, UTC
    key: str  # id
    what: str  # "row", or "claimant" for what a claim tells of persons
    set: str
    number: int  # of the row, or of the claim


def note_reveal(root: Path, key: str, what: str, name: str, number: int) -> Reveal:
    """Write a reveal down. When this returns it is on the disk; several processes may write."""
    made = Reveal(datetime.now(UTC).isoformat(timespec="milliseconds"), key, what, name, number)
    line = json.dumps(made._asdict()).encode() + b"\n"
    handle = os.open(root / REVEALS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(handle, line) != len(line):
            raise OSError(f"{root / REVEALS} took a part of a line")
        os.fsync(handle)
    finally:
        os.close(handle)
    return made


def reveals(root: Path, most: int = 500) -> list[Reveal]:
    """The last ones, newest first. Raises Damaged where a line cannot be read."""
    try:
        with open(root / REVEALS, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL)
            file.seek(start)
            lines = file.read().splitlines()[1 if start else 0 :]
        return [Reveal(**json.loads(line)) for line in reversed(lines[-most:])]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"{root / REVEALS} has a line that is no reveal ({error}); move it away, and keep it") from error
