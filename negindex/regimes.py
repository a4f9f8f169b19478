"""Regimes from TOML files: those that come with negindex, and an operator's own, which go before them.

A file NAME.toml has these keys, those in brackets when wanted:

    name title law counsel storage timezone [sweep]    as in Regime
    [transitions]  STATE = [STATE...]                  from "received"; every way ends at "erased", which is final
    [[fields]]     name help document personal [required_for check choices]                    as in Field
    [[clocks]]     name basis starts ends due alarm [not_before calendar]                      as in ClockRule

Reading is strict, since a mistyped key would be a rule that nobody follows: InvalidInput names the file,
the key and what to write instead.

>>> regimes()
['dmca', 'dsa', 'gdpr-erasure', 'hash-only', 'in-house', 'take-it-down']
>>> regime("dmca").allows("in_force", "disputed")
True
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from negindex.claim_rules import CHECKS, DOCUMENTS, FINAL, FIRST, LIVE, STATES, STORAGE, Field, Regime, reachable
from negindex.clocks import ClockRule, Span, holidays_of, zone_named
from negindex.errors import Damaged, InvalidInput, NotThere
from negindex.tables import Table

__all__ = ["LIVE", "STATES", "Field", "Regime", "regime", "regimes"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SHIPPED = Path(str(files("negindex"))) / "laws"


def regime(name: str, folder: Path | str | None = None) -> Regime:
    """The regime of this name: ``folder``'s own NAME.toml if there is one, else the one that comes with negindex.

    Raises NotThere for an unknown name, Damaged for a file that is no TOML, InvalidInput for one that says
    what no regime can say.
    """
    places = [place / f"{name}.toml" for place in _places(folder)] if _NAME.fullmatch(name) else []
    for path in places:
        if path.exists():
            return _read(path)
    raise NotThere(f"no regime is called {name!r}; there are {', '.join(regimes(folder))}")


def regimes(folder: Path | str | None = None) -> list[str]:
    """The names of all regimes, sorted."""
    return sorted({path.stem for place in _places(folder) for path in place.glob("*.toml")})


def _places(folder: Path | str | None) -> list[Path]:
    if folder is None:
        return [_SHIPPED]
    if not Path(folder).is_dir():
        raise NotThere(f"{folder} is no folder; give the one that holds your regimes' TOML files")
    return [Path(folder), _SHIPPED]


def _read(path: Path) -> Regime:
    return _parsed(path, path.read_bytes())


@lru_cache(maxsize=64)  # by content: a file that is changed is read anew
def _parsed(path: Path, content: bytes) -> Regime:
    try:
        table = tomllib.loads(content.decode())
    except ValueError as error:
        raise Damaged(f"{path} is no TOML ({error}); correct it there, or take a copy that can be read") from error
    found = _regime(Table(table, f"{path}"), hashlib.sha256(content).hexdigest())
    if found.name != path.stem:
        raise InvalidInput(f"{path}: name is {found.name!r}; a regime has its file's name, {path.stem!r}")
    return found


def _regime(table: Table, digest: str) -> Regime:
    transitions = _transitions(Table(table.take("transitions", dict), f"{table.where}: transitions"))
    states = [state for state in STATES if state in reachable(transitions)]
    found = Regime(
        name=table.take("name", str),
        title=table.take("title", str),
        law=table.take("law", str),
        counsel=table.take("counsel", str),
        storage=table.one_of("storage", STORAGE),
        sweep=table.take("sweep", bool, False),
        timezone=table.parsed("timezone", _zone),
        fields=tuple(_field(inner, states) for inner in table.tables("fields")),
        clock_rules=tuple(_clock(inner, states) for inner in table.tables("clocks")),
        transitions=transitions,
        digest=digest,
    )
    table.end()
    return found


def _transitions(table: Table) -> dict[str, tuple[str, ...]]:
    found = {state: table.texts(state, STATES, ()) for state in STATES}
    table.end()
    if found[FINAL]:
        raise InvalidInput(f"{table.where}: {FINAL} leads to {found[FINAL]}; it is final, so take that out")
    for state in STATES:
        if state in found[state]:
            raise InvalidInput(f"{table.where}: {state} leads to itself; take that out")
        come_to = state in reachable(found)
        if found[state] and not come_to:
            raise InvalidInput(f"{table.where}: no way leads to {state}; add it to another state's list")
        if come_to and FINAL not in reachable(found, state):
            raise InvalidInput(f"{table.where}: no way leads from {state} to {FINAL}; add one, such as withdrawn")
    return {state: ways for state, ways in found.items() if ways}


def _field(table: Table, states: list[str]) -> Field:
    found = Field(
        name=table.take("name", str),
        help=table.take("help", str),
        document=table.one_of("document", DOCUMENTS),
        required_for=table.texts("required_for", states, ()),
        personal=table.take("personal", bool),
        check=table.one_of("check", CHECKS, None),
        choices=table.texts("choices", None, ()),
    )
    if FIRST in found.required_for:
        raise InvalidInput(f"{table.where}: required_for has {FIRST}; every claim is taken in, so name a later state")
    table.end()
    return found


def _clock(table: Table, states: list[str]) -> ClockRule:
    found = ClockRule(
        name=table.take("name", str),
        basis=table.take("basis", str),
        starts=table.texts("starts", states),
        ends=table.texts("ends", states),
        due=table.parsed("due", Span.parse),
        alarm=table.parsed("alarm", Span.parse),
        not_before=table.parsed("not_before", Span.parse, None),
        calendar=table.parsed("calendar", _country, None),
    )
    table.end()
    spans = [span for span in (found.due, found.not_before) if span]
    for key, amiss, remedy in (
        ("starts", not found.starts, "is empty; name a state that starts the clock"),
        ("ends", not found.ends, "is empty; name a state that stops the clock"),
        ("alarm", found.alarm.unit != "hour", f"is {found.alarm}; give it in hours before the due time"),
        ("not_before", len({s.unit for s in spans}) > 1, f"is in another unit than due; give it in {found.due.unit}s"),
        ("not_before", spans[-1].count > spans[0].count, "is later than due; give it the smaller number"),
        ("calendar", found.due.unit == "business day" and not found.calendar, 'is missing; add one, such as "US"'),
    ):
        if amiss:
            raise InvalidInput(f"{table.where}: {key} {remedy}")
    return found


def _zone(name: str) -> str:
    return zone_named(name).key


def _country(code: str) -> str:
    holidays_of(code)
    return code
