"""What a regime asks of a claim: its states and the ways between them, its fields, its clocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from negindex.clocks import Clock, ClockRule
from negindex.errors import InvalidInput

STATES = ("received", "incomplete", "accepted", "in_force", "disputed", "stayed", "withdrawn", "erased")
LIVE = ("accepted", "in_force", "disputed", "stayed")  # states in which a claim keeps its rows in force
FIRST, FINAL = "received", "erased"
STORAGE = ("rows", "hash-only")
DOCUMENTS = ("notice", "counter-notice", "decision")

_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_date(value: object) -> bool:
    if isinstance(value, date):
        return True
    try:
        return isinstance(value, str) and bool(date.fromisoformat(value))
    except ValueError:
        return False


CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {  # name: (what the value must be, the check)
    "affirmed": ('affirmed: true or "yes"', lambda value: value is True or value == "yes"),
    "date": ("a date like 2026-05-19", _is_date),
    "email": ("an e-mail address", lambda value: isinstance(value, str) and bool(_EMAIL.fullmatch(value))),
    "sha256": ("64 hex digits in lower case", lambda value: isinstance(value, str) and bool(_SHA256.fullmatch(value))),
}


@dataclass(frozen=True)
class Field:
    """One thing that a notice, a counter-notice or a decision states."""

    name: str
    help: str
    document: str  # of DOCUMENTS
    required_for: tuple[str, ...] = ()  # states that a claim cannot enter without it
    personal: bool = True  # of the claimant or another person: kept apart, in no log and no report
    check: str | None = None  # of CHECKS
    choices: tuple[str, ...] = ()  # the only values, where there are any

    def fault(self, value: object) -> str | None:
        """What is wrong with a value, to be read after the field's name; None when it will do.

        A list is good when it has an item and all its items are.
        """
        if isinstance(value, list | tuple):
            faults = [self.fault(item) for item in value] or ["is absent"]
            return next((fault for fault in faults if fault), None)
        if value is None:
            return "is absent"
        if not isinstance(value, str | bool | int | date):
            return f"is a {type(value).__name__}, no text"
        if isinstance(value, str) and not value.strip():
            return "is blank"
        if self.choices and value not in self.choices:
            return f"is none of {', '.join(self.choices)}"
        if self.check and not CHECKS[self.check][1](value):
            return f"is not {CHECKS[self.check][0]}"
        return None


@dataclass(frozen=True)
class Regime:
    """The rules that a claim is handled under. They are data; counsel decides which law binds whom."""

    name: str
    title: str
    law: str
    counsel: str  # what counsel has to decide
    storage: str  # "rows", or "hash-only": nothing of an image but hashes may be kept
    sweep: bool  # whether near-duplicates are looked for with every claim
    timezone: str
    fields: tuple[Field, ...]
    clock_rules: tuple[ClockRule, ...]
    transitions: Mapping[str, tuple[str, ...]]
    digest: str  # sha256 of the file that says all this

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which days end."""
        return ZoneInfo(self.timezone)

    @property
    def states(self) -> tuple[str, ...]:
        """The states that a claim can come into, in their usual order."""
        return tuple(state for state in STATES if state in reachable(self.transitions))

    def allows(self, from_state: str, to_state: str) -> bool:
        """Whether a claim may go from the one state to the other. Raises InvalidInput for an unknown state."""
        return _known(to_state) in self.transitions.get(_known(from_state), ())

    def missing(self, fields: Mapping[str, object], stage: str) -> list[Field]:
        """The fields that keep a claim from entering the state ``stage``: absent, blank or failing their check.

        ``field.fault(fields.get(field.name))`` says which. Raises InvalidInput for an unknown state.
        """
        required = [field for field in self.fields if _known(stage) in field.required_for]
        return [field for field in required if field.fault(fields.get(field.name))]

    def apart(self, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields that may stand in records, and those of persons. Raises InvalidInput for an unknown one."""
        personal = {field.name: field.personal for field in self.fields}
        if unknown := sorted(fields.keys() - personal.keys()):
            raise InvalidInput(f"regime {self.name} has no fields {unknown}; it has {sorted(personal)}")
        words = {name: value for name, value in fields.items() if not personal[name]}
        return words, {name: value for name, value in fields.items() if personal[name]}

    def clocks(self, history: Sequence[tuple[str, datetime]]) -> list[Clock]:
        """Every clock that ran or runs, by the time it started.

        history: (state entered, when), in the order it happened; aware datetimes. Times come out in UTC.
        Raises InvalidInput for an unknown state or a time without a zone.
        """
        entered = [(_known(state), at) for state, at in history]
        clocks = [clock for rule in self.clock_rules for clock in rule.runs(entered, self.zone)]
        return sorted(clocks, key=lambda clock: clock.started)


def reachable(transitions: Mapping[str, Sequence[str]], start: str = FIRST) -> set[str]:
    """``start`` and every state that can be come to from it."""
    found, left = {start}, [start]
    while left:
        new = set(transitions.get(left.pop(), ())) - found
        found |= new
        left += new
    return found


def _known(state: str) -> str:
    if state not in STATES:
        raise InvalidInput(f"{state!r} is no state of a claim; the states are {', '.join(STATES)}")
    return state
