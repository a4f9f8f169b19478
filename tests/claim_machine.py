"""One collection and its model, taken through operations that a source of random numbers chooses.

Every operation is made of the model's state and the numbers alone, so that the same seed gives the same operations in
another process, or on the model alone.
"""

import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from claim_model import CLOSED, IN_HOUSE, SHAPE, Model, Refuses, content, filled, row

from negindex import Collection, Exact, NoiseLevel, merkle
from negindex.errors import EmptySet, Erased, UnknownVersion
from negindex.regimes import LIVE
from negindex.states import Provenance

LEVEL = NoiseLevel(0.8, 0.6)
KEYS = [f"key-{i:02d}" for i in range(60)]
REGIMES = ["dmca", "dsa", "take-it-down", "gdpr-erasure", IN_HOUSE, "hash-only"]
STEPS = {"dispute": "disputed", "stay": "stayed", "uphold": "in_force", "withdraw": "withdrawn"}
PEOPLE = ["ann", "Ann", "ben", "cat"]
EVERY = 25  # operations between two looks at everything
WEIGHTS = {  # operation: how often
    "add": 14, "withdraw": 8, "erase": 2, "open": 12, "amend": 3, "attach": 4, "accept": 14, "decide": 18,
    "erase_claim": 4, "hold": 4, "compact": 1, "forget": 1, "reopen": 1, "keep": 2, "let_go": 1, "look_back": 2,
    "backup": 0.15, "restore": 0.2, "move": 0.1,
}  # fmt: skip


def rows(numbers):
    return np.stack([row(n) for n in numbers])


def says(negatives, numbers):
    """The set answers as these rows do, and as no others."""
    assert len(negatives) == len(numbers)
    if not numbers:
        with pytest.raises(EmptySet):
            negatives.posterior(torch.zeros(1, *SHAPE), LEVEL)
        return
    x_t = torch.from_numpy(rows(range(3))).double()
    told, true = negatives.posterior(x_t, LEVEL), Exact(rows(numbers)).posterior(x_t, LEVEL)
    assert torch.allclose(told.log_norm, true.log_norm, rtol=1e-11, atol=1e-11)
    assert torch.allclose(told.mean, true.mean, rtol=1e-11, atol=1e-11)


class Machine:
    """A new collection and its model; without a collection (None) the operations happen on the model alone."""

    def __init__(self, col, disk=None):
        self.col, self.model, self.disk = col, Model(), disk
        self.tree, self.last = merkle.Tree(), ""  # of the log as it was read, version by version
        self.kept, self.round = [], Counter()  # snapshots and what they held; {key: how often its content was barred}
        self.backups = []  # where, and how many rows had ever been stored
        self.done, self.refused = Counter(), Counter()
        self.trail = []

    @property
    def shrinks(self):
        """Whether more goes out than comes in, as by turns it does."""
        return len(self.trail) // 100 % 2

    def step(self, chance):
        getattr(self, chance.choices(list(WEIGHTS), WEIGHTS.values())[0])(chance)

    # -- operations ------------------------------------------------------------------------

    def add(self, chance):
        given = self._given(chance)
        self._both("add", lambda: self.col.add(*self._rows(given), sources=_sources(given)), given)

    def withdraw(self, chance):
        keys = self._keys(chance)
        self._both("withdraw", lambda: self.col.withdraw(keys, "model"), keys)

    def erase(self, chance):
        cases = [case for case in self.model.claims.values() if case.hold in ("held", "release-asked")]
        held = [i for case in cases for i in sorted(case.ever)]
        keys = [self.model.rows[chance.choice(held)].key] if held and chance.random() < 0.2 else self._keys(chance)
        keep_out = chance.random() < 0.3
        found = self._both("erase", lambda: self.col.erase(keys, "model", keep_out=keep_out), keys, keep_out)
        self.round.update(keys if found and keep_out else ())

    def open(self, chance):
        name = chance.choice(REGIMES)
        told = filled(name, "accepted", "in_force") if chance.random() < 0.8 else {}
        given, keys, hashes = {}, [], []
        by_hash = name == "hash-only" or chance.random() < 0.25
        if by_hash and chance.random() < 0.95:
            number = chance.randrange(200, 206) if name == "hash-only" else self._number(chance.choice(KEYS))
            hashes = [next(digest for digest in reversed(content(number)) if digest)]
        elif chance.random() < 0.5:
            keys = self._keys(chance)
        else:
            given = self._given(chance)
        handed = {"rows": rows(given.values()), "sources": _sources(given)} if given else {}
        named = [f"sha256:{digest}" for digest in hashes]
        self._both(
            "open",
            lambda: self.col.claims.open(name, told, source_keys=list(given) or keys, hashes=named, **handed),
            *(name, told, given, keys, hashes),
            claim=len(self.model.claims) + 1,
        )

    def amend(self, chance):
        number, case = self._claim(chance)
        told = filled(case.regime, "accepted", "in_force")
        self._both("amend", lambda: self.col.claims.amend(number, told), number, told, claim=number)

    def attach(self, chance):
        number, _ = self._claim(chance)
        given = self._given(chance)
        call = lambda: self.col.claims.attach(number, *self._rows(given), sources=_sources(given))  # noqa: E731
        self._both("attach", call, number, given, claim=number)

    def accept(self, chance):
        number, case = self._claim(chance, "received", "incomplete")
        told = self._told(chance, case, "accepted", "in_force")
        self._both("accept", lambda: self.col.claims.accept(number, fields=told), number, told, claim=number)

    def decide(self, chance):
        action = chance.choice(["dispute", "stay", "uphold", *["withdraw"] * (8 if self.shrinks else 2)])
        near = {"dispute": ["in_force"], "stay": ["disputed", "in_force"], "uphold": ["disputed", "stayed"]}
        number, case = self._claim(chance, *near.get(action, []))
        told = self._told(chance, case, STEPS[action])
        options = {"early": chance.random() < 0.5} if action == "withdraw" else {}
        call = lambda: getattr(self.col.claims, action)(number, fields=told, **options)  # noqa: E731
        self._both("decide", call, number, action, STEPS[action], told, *options.values(), claim=number)

    def erase_claim(self, chance):
        number, case = self._claim(chance, "withdrawn")
        told, keep_out = self._told(chance, case, "erased"), chance.choice([None, None, False, True])
        keys = [self.model.rows[i].key for i in sorted(case.ever)]
        call = lambda: self.col.claims.erase(number, fields=told, keep_out=keep_out)  # noqa: E731
        found = self._both("erase_claim", call, number, told, keep_out, claim=number)
        self.round.update(keys if found and (keep_out or told.get("fingerprint") == "kept") else ())

    def hold(self, chance):
        held = [number for number, case in self.model.claims.items() if case.hold]
        number = chance.choice(held) if held and chance.random() < 0.8 else self._claim(chance, "withdrawn")[0]
        action, by = chance.choice(["hold", "hold", "release"]), chance.choice(PEOPLE)
        call = lambda: getattr(self.col.claims, action)(number, by=by)  # noqa: E731
        self._both("two_people", call, number, action, by, claim=number)

    def compact(self, chance):
        self._both("compact", lambda: self.col.compact())

    def forget(self, chance):
        version = self._version(chance, 2)
        self._both("compact", lambda: self.col.compact(version), version)

    def reopen(self, chance):
        if self.col is not None:
            self.col.close()
            self.col = Collection.open(self.col.path, disk=self.disk)

    def keep(self, chance):
        """Hold a version open: it must answer the same for as long as it is held, whatever becomes of the set."""
        version = self._version(chance, 0.2)
        if self.model.readable(version) and len(self.kept) < 6:
            self.kept.append((self.col.snapshot(version), self.model.history[version]))

    def let_go(self, chance):
        if self.kept:
            self.kept.pop(chance.randrange(len(self.kept)))

    def look_back(self, chance):
        version = chance.randrange(len(self.model.history) + 1)
        if version == len(self.model.history):
            with pytest.raises(UnknownVersion):
                self.col.snapshot(version)
        elif self.model.readable(version):
            says(self.col.snapshot(version), self.model.history[version].values())
        else:
            with pytest.raises(Erased):
                self.col.snapshot(version)
            assert self.col.in_force(version) == self.model.keys(version)

    # -- backups: each is told of what is erased later, and brings back what the log says ------

    def backup(self, chance):
        if len(self.backups) < 2:
            self._back_up()

    def restore(self, chance):
        """Of a backup and the log: what is in force now, but for rows that were stored since; and nothing erased."""
        if not self.backups:
            return
        path, stored = chance.choice(self.backups)
        restored = Collection.restore(path, self.col.path.with_name("restored"), log=self.col.path)
        self.done["restore"] += 1
        kept = {i: number for i, number in self.model.now.items() if i <= stored}
        says(restored, kept.values())
        assert restored.in_force() == {i: self.model.rows[i].key for i in kept}
        log, *rest = restored.log()[: len(self.model.history)], restored.newest().action
        assert (log, rest) == (self.col.log(), ["restore"])
        held = restored.source_keys()
        assert not {key for key in held if self.model.held.get(key) not in kept}
        restored.close()
        shutil.rmtree(restored.path)

    def move(self, chance):
        """Go on with a set that was restored from a backup made now."""
        path = self._back_up()
        place = self.col.path.with_name(f"set-{len(self.model.history)}")
        restored = Collection.restore(path, place, log=self.col.path)
        self.col.close()
        self.col = restored
        self.model.note("restore")
        self.done["move"] += 1
        if len(self.backups) > 2:
            gone, _ = self.backups.pop(0)
            shutil.rmtree(gone)
            self.col.forget_backup(gone, by="ann")
            self.model.note("backup-gone")

    def _back_up(self):
        path = self.col.path.with_name(f"backup-{len(self.trail)}-{self.done['backup']}")
        made = self.col.backup(path)
        assert made.version == len(self.model.history) - 1
        self.backups.append((path, len(self.model.rows)))
        self.done["backup"] += 1
        return path

    # -- what must be so -------------------------------------------------------------------

    def check(self):
        """After every operation: the version, what is in force, and the record that says so."""
        if self._check_log():
            assert self.col.in_force() == self.model.keys()

    def check_all(self):
        """Now and then: every answer, every claim, every snapshot that is held, and none of it only in memory."""
        fresh = Collection.open(self.col.path)
        says(self.col, self.model.now.values())
        for one in (self.col, fresh):
            self._check_each_row(one)
        claims = [(c, case.regime, case.state, case.hold) for c, case in self.model.claims.items()]
        assert [tuple(claim) for claim in fresh.claims.every()] == claims
        live = [number for number, _, state, _ in claims if state in LIVE]
        assert all(fresh.claims.show(number).rows.keys() <= self.model.now.keys() for number in live[-10:])
        self.kept = [*self.kept[1:], *self.kept[:1]]  # each in its turn
        for snapshot, numbers in self.kept[:2]:
            says(snapshot, numbers.values())
        fresh.close()

    def _check_each_row(self, negatives):
        """Every row in force finds itself, and a row that is not never answers."""
        past = [one.number for one in self.model.rows.values()][-100:]
        numbers = sorted({*self.model.now.values(), *past})
        if not self.model.now:
            return
        near = negatives.near(torch.from_numpy(rows(numbers)), radius=0.0)
        for number, ids, found in zip(numbers, near.ids.tolist(), near.found.tolist(), strict=True):
            told = {i for i, here in zip(ids, found, strict=True) if here}
            assert told == {i for i, n in self.model.now.items() if n == number}

    def _check_log(self):
        """Versions grow, one record each, chained, and the record says what entered and what left. Whether any came."""
        model, start, newest = self.model, self.tree.size, self.col.newest()
        assert (newest.version, newest.in_force) == (len(model.history) - 1, len(model.now))
        if newest.version < start:
            return False
        for record in self.col.log(start):
            assert (record.version, record.previous, record.action) == (
                *(self.tree.size, self.last),
                model.actions[self.tree.size],
            )
            before = model.history[record.version - 1] if record.version else {}
            now = model.history[record.version]
            assert (_ids(record.entered), _ids(record.left)) == (now.keys() - before.keys(), before.keys() - now.keys())
            assert record.in_force == len(now)
            self.last = record.digest
            self.tree.append(record.to_json().encode())
        assert self.col.checkpoint().root == self.tree.root().hex()
        return True

    def check_history(self):
        """At the end: no old record, no old version has changed."""
        leaves = [record.to_json().encode() for record in self.col.log()]
        assert merkle.root(leaves) == self.tree.root()
        for version in range(0, len(self.model.history), 1 + len(self.model.history) // 50):
            assert self.col.in_force(version) == self.model.keys(version)

    # -- inside ----------------------------------------------------------------------------

    def _both(self, name, call, *args, claim=None):
        """The same operation on both: the same outcome. Whether it was allowed."""
        self.trail.append((name, *args))
        refusal = self._modelled(name, args)
        if refusal is None:
            self.done[name] += 1
            if self.col is not None:
                call()
                self._check_claim(claim)
            return True
        self.refused[name, refusal.__name__] += 1
        if self.col is not None:
            with pytest.raises(refusal) as refused:
                call()
            assert type(refused.value) is refusal
        return False

    def _modelled(self, name, args):
        """The error that the collection should raise, if any; and the operation on the model."""
        before = len(self.model.history)
        try:
            getattr(self.model, name)(*args)
        except Refuses as expected:
            assert len(self.model.history) == before
            return expected.kind
        return None

    def _check_claim(self, number):
        if number is None:
            return
        case, told = self.model.claims[number], self.col.claims.show(number)
        assert (told.regime, told.state, told.hold) == (case.regime, case.state, case.hold)
        assert told.rows == {i: None if self.model.rows[i].erased else self.model.rows[i].key for i in case.rows}
        assert {digest for _, digest in told.hashes} == case.hashes
        assert told.fields.keys() | self.col.claims.claimant(number).keys() == case.told.keys()

    def _claim(self, chance, *near):
        """A claim, most often one in a state that the operation asks for."""
        of = [n for n, case in self.model.claims.items() if case.state in near and case.regime != IN_HOUSE]
        if not of or chance.random() < 0.15:
            of = [n for n, case in self.model.claims.items() if case.state not in CLOSED]
        if not of or chance.random() < 0.05:
            of = list(self.model.claims) or [self._some_claim()]
        number = chance.choice(of)
        return number, self.model.claims[number]

    def _some_claim(self):
        given = {KEYS[0]: 0}
        self._both("add", lambda: self.col.add(*self._rows(given)), given)
        return 1

    def _version(self, chance, lean):
        """One that there is: a late one where lean < 1."""
        return min(int(len(self.model.history) * chance.random() ** lean), len(self.model.history) - 1)

    def _told(self, chance, case, *states):
        return filled(case.regime, *states) if chance.random() < 0.85 else {}

    def _keys(self, chance):
        held, of = self.model.held, self.model.claims
        free = [key for key, i in held.items() if all(of[c].regime == IN_HOUSE for c in self.model.rows[i].claims)]
        some = chance.choice([list(held), free, free]) or KEYS
        some = KEYS if chance.random() < 0.05 else some
        return chance.sample(some, min(len(some), chance.randint(1, 2)))

    def _given(self, chance):
        keys = chance.sample(KEYS, chance.randint(1, 3))
        return {key: self._number(key) if chance.random() < 0.97 else chance.randrange(200, 206) for key in keys}

    def _number(self, key):
        return KEYS.index(key) + 1000 * self.round[key]

    def _rows(self, given):
        return rows(given.values()), list(given)


def _sources(given):
    return [Provenance(image_sha256=content(number)[1]) for number in given.values()]


def _ids(ranges):
    return {i for first, last in ranges for i in range(first, last + 1)}


def run(place, seed, operations):
    machine, chance = Machine(Collection.create(place / "set", SHAPE, "pixels")), random.Random(seed)
    for i in range(operations):
        try:
            machine.step(chance)
            machine.check()
            if i % EVERY == 0:
                machine.check_all()
        except BaseException as error:
            error.add_note(f"seed {seed}, operation {i}; the last ones:")
            for one in machine.trail[-12:]:
                error.add_note(repr(one))
            raise
    machine.check_all()
    machine.check_history()
    return machine
