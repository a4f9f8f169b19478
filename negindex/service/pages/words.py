"""How pages say things: lengths of time, clocks, states."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from negindex.claims import Due
from negindex.clocks import Clock, span


class Said(NamedTuple):
    """A clock in words, and what kind of haste that is: running, alarm, overdue, met, late, or early."""

    kind: str
    words: str
    due: str  # ISO 8601, UTC


def clock_said(clock: Clock, now: datetime) -> Said:
    """When a clock is due, and how long that is."""
    due = moment(clock.due)
    if clock.ended is not None:
        late = clock.missed(now)
        return Said("late" if late else "met", f"ended {moment(clock.ended)}, {'LATE' if late else 'in time'}", due)
    if clock.missed(now):
        return Said("overdue", f"OVERDUE by {span(now - clock.due)}", due)
    words = f"{span(clock.due - now)} left"
    if clock.too_early(now) and clock.not_before is not None:
        words += f", not before {moment(clock.not_before)}"
    return Said("alarm" if clock.near(now) else "running", words, due)


def most_urgent(due: Iterable[Due]) -> dict[int, Due]:
    """{claim: the clock of it that is due first}, in the order of time left."""
    found: dict[int, Due] = {}
    for one in due:
        found.setdefault(one.claim, one)
    return found


def moment(at: datetime | str) -> str:
    """To the minute, UTC."""
    known = datetime.fromisoformat(at) if isinstance(at, str) else at
    return known.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def size(count: int) -> str:
    """Bytes for people.

    >>> size(512), size(3 << 20)
    ('512 bytes', '3.0 MiB')
    """
    value, units = float(count), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "bytes"
    while value >= 1024 and (wider := next(units, None)):
        value, unit = value / 1024, wider
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def shown(value: Any) -> str:
    """What a claim tells, as text."""
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def plain(state: str | None) -> str:
    """A state in words."""
    return "none" if state is None else state.replace("_", " ").replace("-", " ")
