"""What a collection should say after any order of changes, worked out by dictionaries alone.

Every method either raises ``Refuses``, which names the error that the collection should raise, and changes nothing,
or changes the model and adds one entry to ``history`` for each version that the collection should make.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from negindex.errors import ClaimLive, ContentRefused, DuplicateKey, InvalidInput, NotAllowed, OnHold, UnknownKey
from negindex.regimes import LIVE, regime

SHAPE = (4,)
CLOSED = ("withdrawn", "erased")
IN_HOUSE = "in-house"
VALUES = {"affirmed": "yes", "email": "ann@example.org", "date": "2026-05-19", "sha256": "ab" * 32}


class Refuses(Exception):
    """The collection should raise ``kind``, and stay as it is."""

    def __init__(self, kind):
        super().__init__(kind.__name__)
        self.kind = kind


@cache
def row(number):
    return np.random.default_rng(number).normal(size=SHAPE).astype(np.float16)


@cache
def content(number):
    """(sha256 of the row's bytes, sha256 of the image that it came from, which every second row has)."""
    return hashlib.sha256(row(number).tobytes()).hexdigest(), f"{number:064x}" if number % 2 else None


def digests(number):
    return {digest for digest in content(number) if digest}


@cache
def rules(name):
    return regime(name)


def filled(name, *states):
    """A good value for every field that a regime requires in one of the states."""
    wanted = [one for one in rules(name).fields if set(states) & set(one.required_for)]
    return {one.name: one.choices[0] if one.choices else VALUES.get(one.check, "told") for one in wanted}


@dataclass
class Row:
    key: str
    number: int
    added: int | None = None
    withdrawn: int | None = None
    erased: bool = False
    gone: bool = False  # its bytes
    claims: set = field(default_factory=set)  # that name it
    ever: set = field(default_factory=set)  # that name it, or did


@dataclass
class Case:
    regime: str
    state: str
    hashes: set
    told: dict
    hold: str | None = None
    asked: str = ""  # who asked last for a hold or its release
    rows: set = field(default_factory=set)
    ever: set = field(default_factory=set)


class Model:
    """A collection as dictionaries. ``history``: for each version, {id: number} of the rows in force."""

    def __init__(self):
        self.rows, self.claims, self.history, self.actions = {}, {}, [{}], ["create"]
        self.now, self.held = {}, {}  # {id: number} in force; {key: id}, proposed ones too
        self.blocked, self.hashed = set(), []  # digests kept out by erasures; claims that name content by hash

    # -- the set ---------------------------------------------------------------------------

    def add(self, given):
        self._check(given)
        ids = self._take_in(given)
        new = [i for i in ids if not any(self.claims[c].regime == IN_HOUSE for c in self._live_on(i))]
        if new:
            self._link(self._open_case(Case(IN_HOUSE, "in_force", set(), {})), new)
            self._reckon(new)
            self._version("add")
            self._match(new)

    def withdraw(self, keys):
        ids = [self.held[key] for key in keys if self.held.get(key) in self.now]
        if len(ids) < len(keys):
            raise Refuses(UnknownKey)
        self._check_unclaimed(ids)
        for number, case in self._in_house_on(ids):
            self._unlink(number, case.rows & set(ids))
            case.state = case.state if case.rows else "withdrawn"
        self._reckon(ids)
        self._version("withdraw")

    def erase(self, keys, keep_out):
        ids = {key: [i for i, one in self.rows.items() if one.key == key and not one.erased] for key in keys}
        if not all(ids.values()):
            raise Refuses(UnknownKey)
        self._erase([i for some in ids.values() for i in some], keep_out)

    def compact(self, forget_before=None):
        if forget_before is not None:
            old = [r for r in self.rows.values() if r.added and not r.gone and (r.withdrawn or 1e9) <= forget_before]
            if self._drop(old):
                self._version("forget")
        self._drop([r for r in self.rows.values() if r.added is None and r.withdrawn and not r.gone])

    def note(self, action):
        """A version that changes nothing, such as a restore from a backup of the newest one."""
        self._version(action)

    # -- claims ----------------------------------------------------------------------------

    def open(self, name, told, given=None, keys=(), hashes=()):
        if rules(name).storage == "hash-only" and (given or keys):
            raise Refuses(NotAllowed)
        self._check(given or {})
        if any(key not in self.held for key in keys):
            raise Refuses(UnknownKey)
        ids = self._take_in(given) if given else [self.held[key] for key in keys]
        number = self._open_case(Case(name, "", set(hashes), dict(told)))
        self.claims[number].state = self._taken_in(self.claims[number])
        self._link(number, [*ids, *(i for i in self.held.values() if digests(self.rows[i].number) & set(hashes))])
        self._version("open")
        self._match(ids)

    def amend(self, number, told):
        case = self._open(number)
        case.told |= told
        case.state = self._taken_in(case) if case.state in ("received", "incomplete") else case.state
        self._version("amend")

    def attach(self, number, given):
        case = self._open(number)
        if rules(case.regime).storage == "hash-only":
            raise Refuses(NotAllowed)
        self._check(given)
        ids = self._take_in(given)
        case.state = "in_force" if case.state == "accepted" else case.state
        self._link(number, ids)
        self._reckon(ids)
        self._version("attach")
        self._match(ids)

    def accept(self, number, told):
        case = self._check_step(number, "accepted", told)
        out = sorted(i for i in case.rows if self.rows[i].withdrawn is not None)
        brought_again = {self.rows[i].key for i in case.rows if self.rows[i].withdrawn is None}
        if any(self.rows[i].gone and self.rows[i].key not in brought_again for i in out):
            raise Refuses(NotAllowed)
        there = [i for i in out if not self.rows[i].gone]
        back = {self.rows[i].key: self.rows[i].number for i in there}
        if any(back[self.rows[i].key] != self.rows[i].number for i in there):
            raise Refuses(DuplicateKey)
        self._check(back)
        self._enter(case, "accepted", told)
        ids = self._take_in(back)
        self._unlink(number, out)
        self._link(number, ids)
        self._reckon(case.rows)
        self._version("accept")
        if case.rows or rules(case.regime).storage == "hash-only":
            case.state = "in_force"
            self._version("force")
        self._match(ids)

    def decide(self, number, action, state, told, early=False):
        """dispute, stay, uphold or withdraw."""
        case = self.claims[number]
        if action == "withdraw" and (case.regime, case.state) == ("dmca", "disputed") and not early:
            raise Refuses(NotAllowed)  # ten business days have not gone by since the test began
        if action == "uphold" and case.state not in LIVE:
            raise Refuses(NotAllowed)
        self._enter(self._check_step(number, state, told), state, told)
        self._reckon(case.rows)
        self._version(action)

    def erase_claim(self, number, told, keep_out=None):
        case = self._check_step(number, "erased", told)
        kept = told.get("fingerprint") == "kept" if keep_out is None else keep_out
        self._erase([i for i in case.ever if not self.rows[i].erased], kept, number)
        case.told = rules(case.regime).apart(told)[0]  # why it was erased stays on record

    def two_people(self, number, action, by):
        ways = {"hold": {None: "asked", "asked": "held"}}
        ways["release"] = {"asked": None, "held": "release-asked", "release-asked": None}
        case = self.claims[number]
        if case.hold not in ways[action]:
            raise Refuses(NotAllowed)
        if (action, case.hold) in (("hold", "asked"), ("release", "release-asked")) and case.asked == by.casefold():
            raise Refuses(NotAllowed)
        case.hold, case.asked = ways[action][case.hold], by.casefold()
        self._version(action)

    # -- what it holds ---------------------------------------------------------------------

    def keys(self, version=-1):
        """{id: source key} in force at a version; None for a row that was erased since."""
        return {i: None if self.rows[i].erased else self.rows[i].key for i in self.history[version]}

    def readable(self, version):
        return not any(self.rows[i].gone for i in self.history[version])

    # -- inside ----------------------------------------------------------------------------

    def _version(self, action):
        self.history.append(dict(self.now))
        self.actions.append(action)

    def _check(self, given):
        hashed = [self.claims[number] for number in self.hashed if self.claims[number].state not in CLOSED]
        barred = self.blocked.union(*(c.hashes for c in hashed if rules(c.regime).storage == "hash-only"))
        if any(digests(number) & barred for number in given.values()):
            raise Refuses(ContentRefused)
        if any(key in self.held and self.rows[self.held[key]].number != number for key, number in given.items()):
            raise Refuses(DuplicateKey)

    def _take_in(self, given):
        for key, number in given.items():
            if key not in self.held:
                self.held[key] = len(self.rows) + 1
                self.rows[self.held[key]] = Row(key, number)
        return [self.held[key] for key in given]

    def _open_case(self, case):
        number = len(self.claims) + 1
        self.claims[number] = case
        self.hashed += [number] if case.hashes else []
        return number

    def _link(self, number, ids):
        for i in ids:
            self.rows[i].claims.add(number)
            self.rows[i].ever.add(number)
        self.claims[number].rows |= set(ids)
        self.claims[number].ever |= set(ids)

    def _unlink(self, number, ids):
        self.claims[number].rows -= set(ids)
        for i in ids:
            self.rows[i].claims.discard(number)

    def _match(self, ids):
        """Claims by hash name the content that came in, one version a claim."""
        for number in self.hashed:
            case = self.claims[number]
            rows = {i for i in ids if digests(self.rows[i].number) & case.hashes} - case.rows
            if case.state not in CLOSED and rows:
                case.state = "in_force" if case.state == "accepted" else case.state
                self._link(number, rows)
                self._reckon(rows)
                self._version("match")

    def _live_on(self, i):
        return [c for c in self.rows[i].claims if self.claims[c].state in LIVE]

    def _in_house_on(self, ids):
        numbers = sorted(set().union(*(self.rows[i].claims for i in ids)))
        return [(n, self.claims[n]) for n in numbers if self.claims[n].regime == IN_HOUSE]

    def _reckon(self, ids):
        for i in sorted(ids):
            one = self.rows[i]
            if one.withdrawn is None and one.added is None and self._live_on(i):
                one.added, self.now[i] = len(self.history), one.number
            elif not self._live_on(i) and (one.added or all(self.claims[c].state in CLOSED for c in one.claims)):
                self._leave(i)

    def _leave(self, i):
        one = self.rows[i]
        if one.withdrawn is None:
            one.withdrawn = len(self.history)
            self.now.pop(i, None)
            del self.held[one.key]

    def _erase(self, ids, keep_out, claim=None):
        self._check_unclaimed(ids, claim)
        affected = set().union(*(self.rows[i].ever for i in ids)) | ({claim} if claim else set())
        if any(self.claims[number].hold in ("held", "release-asked") for number in affected):
            raise Refuses(OnHold)
        for i in ids:
            one = self.rows[i]
            self.blocked |= digests(one.number) if keep_out else set()
            self._leave(i)
            one.erased = one.gone = True
            for number in list(one.claims):
                self._unlink(number, [i])
        for number in affected:
            case = self.claims[number]
            if all(self.rows[i].erased for i in case.ever):
                case.state, case.hold, case.hashes, case.told = "erased", None, set(), {}
        self._version("erase")

    def _drop(self, rows):
        """Give up bytes, but not those that a legal hold keeps."""
        held = ("held", "release-asked")
        free = [one for one in rows if not any(self.claims[c].hold in held for c in one.ever)]
        for one in free:
            one.gone = True
        return free

    def _check_unclaimed(self, ids, but=None):
        if any(self.claims[c].regime != IN_HOUSE and c != but for i in ids for c in self._live_on(i)):
            raise Refuses(ClaimLive)

    def _open(self, number):
        if self.claims[number].state in CLOSED:
            raise Refuses(NotAllowed)
        return self.claims[number]

    def _taken_in(self, case):
        asked = rules(case.regime)
        short = asked.missing(case.told, "accepted") and asked.allows("received", "incomplete")
        return "incomplete" if short else "received"

    def _check_step(self, number, state, told):
        case = self.claims[number]
        if not rules(case.regime).allows(case.state, state):
            raise Refuses(NotAllowed)
        if rules(case.regime).missing({**case.told, **told}, state):
            raise Refuses(InvalidInput)
        return case

    def _enter(self, case, state, told):
        case.state, case.told = state, {**case.told, **told}
