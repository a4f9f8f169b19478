"""Reports: a statement of reasons (DSA, article 17), and what became of claims in a month.

Neither holds personal data: nothing of claimants, no names of staff, no source keys, no file names, no hashes of
content. A summary is told from the log alone, so erased claims count, and a month that is over is told the same
way ever after (but for the regimes' own files, whose clocks it goes by).
"""

from __future__ import annotations

import json
from calendar import monthrange
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from negindex.claims import Claim
from negindex.clocks import in_utc, zone_named
from negindex.collection import Collection
from negindex.errors import InvalidInput, NotAllowed
from negindex.log import Record, count, ids
from negindex.regimes import Regime
from negindex.schema import CLOSED, IN_HOUSE, LIVE
from negindex.text import comparable

__all__ = ["REASONS", "Counts", "Late", "Period", "RowCounts", "Summary", "statement_of_reasons", "summary"]

DSA = "dsa"
REASONS = (  # what article 17(3) asks for, (a) to (f)
    *("restriction", "territory", "duration", "facts", "origin", "automated_detection", "automated_decision"),
    *("ground", "ground_reference", "ground_explanation", "redress"),
)
WAITING = ("received", "incomplete")
ENTERED = ("incomplete", "accepted", "disputed", "stayed", "refused", "withdrawn", "erased")
SHORTEST = 4  # characters of a claimant's detail from which on it is looked for in the decider's text


# -- statement of reasons ----------------------------------------------------------------------


def statement_of_reasons(collection: Collection, claim: int) -> dict[str, Any]:
    """What the person whose content is kept away from is told, as values that JSON holds.

    What the decider wrote is printed as it was told; it is refused where it repeats a claimant's detail of four
    characters or more. Raises NotAllowed for a claim of another regime, one that restricts nothing yet, and an erased
    one; InvalidInput for reasons that are missing or amiss, by name; UnknownClaim.
    Source: Regulation (EU) 2022/2065, articles 17(3) and 24(5).
    """
    found = collection.claims.show(claim)
    _check_stated(found)
    rules = collection.claims.regime(DSA)
    faults = _faults(rules, found.fields) or _repeated(rules, found.fields, collection.claims.claimant(claim))
    if faults:
        raise InvalidInput(
            f"claim {claim} has no statement of reasons yet: {'; '.join(faults)}; `negindex claim amend` it"
        )
    first, last = _first_in_force(found), found.last_in_force
    return {
        "schema": "negindex.statement-of-reasons",
        "schema_version": 1,
        "id": f"{collection.set_id}-{claim}",  # no claim's number is used again
        "set_id": collection.set_id,
        "claim": claim,
        "law": "Regulation (EU) 2022/2065, article 17(3)",
        "state": found.state,
        "received_at": found.history[0].at,
        "decided_at": next(event.at for event in found.history if event.state in LIVE),
        "in_force_from": {"version": first, "at": _at(found, first)},
        "in_force_until": None if last is None else {"version": last, "ended_at": _at(found, last + 1)},
        "reasons": {name: found.fields[name] for name in REASONS},
    }


def _check_stated(claim: Claim) -> None:
    """Raise NotAllowed for a claim that no statement of reasons can be about."""
    if claim.regime != DSA:
        raise NotAllowed(f"claim {claim.number} is under {claim.regime}; statements of reasons are for {DSA} alone")
    if claim.state == "erased":
        raise NotAllowed(f"claim {claim.number} was erased, and its reasons with it; keep statements that were given")
    if not any(event.state == "in_force" for event in claim.history):
        raise NotAllowed(
            f"claim {claim.number} is {claim.state} and never restricted anything; accept it first, with the decision"
        )


def _faults(rules: Regime, told: Mapping[str, Any]) -> list[str]:
    known = {field.name: field for field in rules.fields if not field.personal}
    if unknown := [name for name in REASONS if name not in known]:
        return [f"{name} is no public field of the set's own regime {rules.name}" for name in unknown]
    faults = {name: known[name].fault(told.get(name)) for name in REASONS}
    return [f"{name} {fault}" for name, fault in faults.items() if fault]


def _repeated(rules: Regime, told: Mapping[str, Any], person: Mapping[str, Any]) -> list[str]:
    """Where a claimant's detail stands in the decider's own text; the fields are named, the detail is not."""
    free = {field.name for field in rules.fields if not field.choices}
    details = [(name, detail) for name in person for detail in _texts(person[name]) if len(detail) >= SHORTEST]
    return [
        f"{name} repeats what the claimant told as {source}"
        for name in REASONS
        if name in free
        for source, detail in details
        if any(detail in text for text in _texts(told[name]))
    ]


def _texts(value: Any) -> list[str]:
    """A value's texts, made comparable."""
    return [comparable(str(item)) for item in (value if isinstance(value, list | tuple) else [value])]


def _first_in_force(claim: Claim) -> int:
    """The version at which a claim first kept something away: a claim that waits for content does not."""
    i = next(i for i, event in enumerate(claim.history) if event.state == "in_force")
    return claim.history[i - 1 if claim.history[i].action == "force" else i].version


def _at(claim: Claim, version: int) -> str:
    return next(event.at for event in claim.history if event.version == version)


# -- summary -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Period:
    """From ``first`` up to ``end``, which is left out; aware times, in the zone that is named."""

    first: datetime
    end: datetime
    zone: str

    def __post_init__(self) -> None:
        """Raises InvalidInput for times without a zone, an end that does not follow, an unknown zone."""
        zone_named(self.zone)
        if in_utc(self.end) <= in_utc(self.first):
            raise InvalidInput(f"a period from {self.first} up to {self.end}; give the earlier time first")

    def __contains__(self, at: datetime) -> bool:
        return self.first <= at < self.end

    def told(self, at: datetime) -> str:
        """A time as reports state it: ISO 8601, in the period's zone."""
        return at.astimezone(zone_named(self.zone)).isoformat(timespec="seconds")

    @classmethod
    def days(cls, first: date, last: date, zone: str = "UTC") -> Period:
        """From the beginning of one day to the end of another. Raises InvalidInput."""
        known = zone_named(zone)
        try:
            begin, end = (in_utc(datetime.combine(day, time(), known)) for day in (first, last + timedelta(days=1)))
        except OverflowError as error:
            raise InvalidInput(f"a period from {first} to {last}; give days between the years 2 and 9998") from error
        return cls(begin, end, zone)

    @classmethod
    def month(cls, text: str, zone: str = "UTC") -> Period:
        """A calendar month of the zone, such as "2026-11". Raises InvalidInput."""
        try:
            first = date.fromisoformat(f"{text}-01")
        except ValueError as error:
            raise InvalidInput(f"{text!r} is no month; give one like 2026-11") from error
        return cls.days(first, first.replace(day=monthrange(first.year, first.month)[1]), zone)


class Late(NamedTuple):
    """A clock whose due time passed."""

    claim: int
    regime: str
    clock: str
    due: str
    ended: str | None  # None while it runs
    hours: float  # by how much; up to the report's end where it runs


@dataclass(frozen=True)
class Counts:
    """What became of some claims in a period. An entry counts once, in the period that it lies in."""

    received: int = 0  # claims that were opened
    incomplete: int = 0  # from here on to erased: entries into the state
    accepted: int = 0
    in_force: int = 0  # claims that came into force for the first time
    disputed: int = 0
    stayed: int = 0
    refused: int = 0  # withdrawn before they were accepted
    withdrawn: int = 0
    erased: int = 0
    waiting_at_end: int = 0  # claims received or incomplete
    live_at_end: int = 0  # claims accepted, in_force, disputed or stayed
    median_hours: float | None = None  # from opened to in force, of those that came into force
    worst_hours: float | None = None
    clocks_missed: int = 0  # clocks that were due in the period, and ended later or run still
    clocks_overdue: int = 0  # clocks that run past due at the end, whenever they were due


class RowCounts(NamedTuple):
    """Rows of the set in a period: at_start + entered - left = at_end."""

    at_start: int
    entered: int
    left: int
    at_end: int
    erased: int


@dataclass(frozen=True)
class Summary:
    """What ``summary`` says. Times are in the zone that is named; in-house claims stand apart."""

    set_id: str
    zone: str
    first: str
    end: str  # left out
    until: str  # the end, or the moment of the report where the end is still to come
    version: int | None  # the log's last within the period; None before the first
    root: str  # of the log at that version
    rules: dict[str, str]  # regime: digest of the file whose clocks were gone by
    regimes: dict[str, Counts]
    total: Counts  # of these regimes
    in_house: Counts
    rows: RowCounts
    missed: list[Late]
    overdue: list[Late]
    outstanding: list[tuple[int, str]]  # (version of an erasure, file | journal | backup): when the report was made
    schema: str = "negindex.claims-summary"
    schema_version: int = 1

    def to_json(self) -> str:
        """One line, keys in order."""
        said = asdict(self) | {"rows": self.rows._asdict()}
        said |= {name: [one._asdict() for one in said[name]] for name in ("missed", "overdue")}
        said["outstanding"] = [{"version": version, "what": what} for version, what in self.outstanding]
        return json.dumps(said, ensure_ascii=False)

    def table(self) -> list[list[str]]:
        """A heading and a line a regime, then all of them, then in-house."""
        names = [column.name for column in fields(Counts)]
        lines = {**self.regimes, "all but in-house": self.total, IN_HOUSE: self.in_house}
        cells = [[name, *(getattr(counts, column) for column in names)] for name, counts in lines.items()]
        return [["regime", *names], *(["" if cell is None else str(cell) for cell in line] for line in cells)]


def summary(collection: Collection, period: Period, now: datetime | None = None) -> Summary:
    """What was received, came into force, left it, and how fast, told from the log's records in a period.

    Hours run from a claim's opening to the first time in force, also where it was incomplete for a while.
    Raises InvalidInput for a period that has not begun, NotThere for a regime whose own file is gone.
    """
    now = in_utc(now or datetime.now(UTC))
    if period.first > now:
        raise InvalidInput(f"the period begins at {period.first.isoformat()}, which is to come; give an earlier one")
    records = [record for record in collection.log() if _when(record) < period.end]
    until = min(period.end, now)
    lives = _lives(records)
    names = sorted({life.regime for life in lives})
    rules = {name: collection.claims.regime(name) for name in names}
    late = [one for life in lives for one in _late(rules[life.regime], life, period, until)]
    missed, overdue = ([one for one, flags in late if flags[i]] for i in (0, 1))

    def counts(*of: str) -> Counts:
        return _counts([life for life in lives if life.regime in of], period, missed, overdue)

    version = records[-1].version if records else None
    erasures = {record.version for record in records if record.action == "erase" or record.erased}
    outside = [name for name in names if name != IN_HOUSE]
    return Summary(
        set_id=collection.set_id,
        zone=period.zone,
        first=period.told(period.first),
        end=period.told(period.end),
        until=period.told(until),
        version=version,
        root="" if version is None else collection.checkpoint(version).root,
        rules={name: rules[name].digest for name in names},
        regimes={name: counts(name) for name in outside},
        total=counts(*outside),
        in_house=counts(IN_HOUSE),
        rows=_rows(records, period),
        missed=missed,
        overdue=overdue,
        outstanding=[(one.version, one.what) for one in collection.outstanding() if one.version in erasures],
    )


@dataclass
class _Life:
    """A claim as the log tells it."""

    number: int
    regime: str
    steps: list[tuple[str, datetime]] = field(default_factory=list)  # the state after each of its records
    linked: set[int] = field(default_factory=set)
    ever: set[int] = field(default_factory=set)

    @property
    def state(self) -> str:
        return self.steps[-1][0]

    def entries(self, period: Period) -> list[str]:
        """The states that it came into within a period; withdrawn is refused where it had not been accepted."""
        steps = [("", self.steps[0][1]), *self.steps]
        came = [(before, state) for (before, _), (state, at) in pairwise(steps) if state != before and at in period]
        return ["refused" if state == "withdrawn" and before in WAITING else state for before, state in came]

    def came_into_force(self) -> datetime | None:
        return next((at for state, at in self.steps if state == "in_force"), None)


def _lives(records: Sequence[Record]) -> list[_Life]:
    """Every claim, by number, with the steps that its own records tell, and those that others' do."""
    lives: dict[int, _Life] = {}
    gone: set[int] = set()
    for record in records:
        at, unlinked, erased = _when(record), set(ids(record.unlinked)), set(ids(record.erased))
        gone |= erased
        if record.claim is not None:
            life = lives.setdefault(record.claim, _Life(record.claim, str(record.regime)))
            life.steps.append((str(record.state), at))
            life.linked = (life.linked.union(ids(record.linked))) - unlinked
            life.ever |= life.linked
        elif unlinked:  # a withdrawal that closes several in-house claims
            for life in lives.values():
                if life.regime == IN_HOUSE and life.linked & unlinked:
                    life.linked -= unlinked
                    life.steps += [] if life.linked else [("withdrawn", at)]
        for life in lives.values() if erased else ():
            if life.ever & erased and life.ever <= gone:
                life.steps.append(("erased", at))
    return [lives[number] for number in sorted(lives)]


def _late(rules: Regime, life: _Life, period: Period, until: datetime) -> list[tuple[Late, tuple[bool, bool]]]:
    """The claim's clocks that passed their due time; (missed in the period, running at its end)."""
    closed = next(at for state, at in life.steps if state in CLOSED) if life.state in CLOSED else None
    found = []
    for clock in rules.clocks(life.steps):
        ended = clock.ended or closed  # nobody waits for a claim that is over
        over = (ended or until) - clock.due
        if over > timedelta(0):
            end = period.told(ended) if ended else None
            late = Late(life.number, life.regime, clock.name, period.told(clock.due), end, _hours(over))
            found.append((late, (clock.due in period, ended is None)))
    return found


def _counts(lives: Sequence[_Life], period: Period, missed: Sequence[Late], overdue: Sequence[Late]) -> Counts:
    entered = Counter(state for life in lives for state in life.entries(period))
    forced = [(life.steps[0][1], at) for life in lives if (at := life.came_into_force()) and at in period]
    hours = [_hours(at - opened) for opened, at in forced]
    numbers, states = {life.number for life in lives}, Counter(life.state for life in lives)
    return Counts(
        received=sum(life.steps[0][1] in period for life in lives),
        in_force=len(forced),
        **{state: entered[state] for state in ENTERED},
        waiting_at_end=sum(states[state] for state in WAITING),
        live_at_end=sum(states[state] for state in LIVE),
        median_hours=round(median(hours), 2) if hours else None,
        worst_hours=max(hours, default=None),
        clocks_missed=sum(one.claim in numbers for one in missed),
        clocks_overdue=sum(one.claim in numbers for one in overdue),
    )


def _rows(records: Sequence[Record], period: Period) -> RowCounts:
    before = [record.in_force for record in records if _when(record) < period.first]
    within = [record for record in records if _when(record) in period]
    moved = (sum(count(getattr(record, name)) for record in within) for name in ("entered", "left", "erased"))
    entered, left, erased = moved
    start = before[-1] if before else 0
    return RowCounts(start, entered, left, records[-1].in_force if records else 0, erased)


def _when(record: Record) -> datetime:
    return datetime.fromisoformat(record.at)


def _hours(span: timedelta) -> float:
    return round(span / timedelta(hours=1), 2)
