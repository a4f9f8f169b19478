"""Any order of adds, claims, withdrawals, erasures, compactions, reopenings: what dictionaries say, at every step.

The counted runs draw operations from seeded generators, since one example of Hypothesis is too short for thousands of
them; Hypothesis draws shorter runs of the same operations, and shrinks what fails.
"""

import shutil

import pytest
from claim_machine import WEIGHTS, Machine, rows, run
from claim_model import IN_HOUSE, SHAPE, content, filled
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from negindex import Collection
from negindex.errors import Erased, NotAllowed
from negindex.states import Provenance


class Shrinking(RuleBasedStateMachine):
    """The same operations, drawn by Hypothesis."""

    place = None  # set by the test

    @initialize()
    def start(self):
        shutil.rmtree(self.place / "run", ignore_errors=True)
        (self.place / "run").mkdir()
        self.machine = Machine(Collection.create(self.place / "run" / "set", SHAPE, "pixels"))

    @rule(name=st.sampled_from(sorted(WEIGHTS)), chance=st.randoms(use_true_random=False))
    def step(self, name, chance):
        getattr(self.machine, name)(chance)
        self.machine.check()

    def teardown(self):
        self.machine.check_all()


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_operations_gives_what_dictionaries_give(tmp_path, seed):
    run(tmp_path, seed, 2000)


@pytest.mark.long
@pytest.mark.timeout(1800)  # half a minute on a free core
@pytest.mark.parametrize("seed", range(100, 300))
def test_any_order_of_operations_gives_what_dictionaries_give_at_length(tmp_path, seed):
    run(tmp_path, seed, 5000)


def test_an_order_that_fails_can_be_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(Shrinking, "place", tmp_path)
    Shrinking.TestCase.settings = settings(
        max_examples=15,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    Shrinking.TestCase("runTest").runTest()


def test_the_machine_comes_by_every_outcome(tmp_path):
    """So that no rule of the model is there for show."""
    found = run(tmp_path, 7, 1500)
    assert found.done.keys() >= {"add", "withdraw", "erase", "open", "amend", "attach", "accept", "decide"}
    assert {"erase_claim", "two_people", "compact"} <= found.done.keys()
    kinds = {kind for _, kind in found.refused}
    assert {
        "ClaimLive",
        "ContentRefused",
        "DuplicateKey",
        "InvalidInput",
        "NotAllowed",
        "OnHold",
        "UnknownKey",
    } == kinds


# -- what it found, each by itself ---------------------------------------------------------

NOTICE = filled("dmca", "accepted")


@pytest.fixture
def a(tmp_path):
    """Row a under a received claim, 2, and withdrawn since."""
    col = Collection.create(tmp_path / "set", SHAPE, "pixels")
    col.add(rows([1]), ["a"])
    col.claims.open("dmca", NOTICE, source_keys=["a"])
    col.withdraw(["a"], "mistaken")
    return col


def test_two_withdrawn_rows_of_one_key_come_back_as_one(a):
    a.claims.attach(2, rows([1]), ["a"])
    a.add(rows([1]), ["a"])
    a.withdraw(["a"], "mistaken again")
    assert a.claims.accept(2).rows == {3: "a"}
    assert a.in_force() == {3: "a"}


def test_content_that_a_claim_waits_for_is_under_it_whoever_brings_it(a):
    image = content(901)[1]
    a.claims.open("dmca", NOTICE, hashes=[f"sha256:{image}"])
    a.claims.accept(3)
    a.claims.open("dmca", NOTICE, rows=rows([901]), source_keys=["k"], sources=[Provenance(image_sha256=image)])
    assert a.claims.show(3).rows == {2: "k"}
    assert a.source_keys() == ["k"]
    a.claims.withdraw(4)
    assert a.source_keys() == ["k"]


def test_upholding_is_not_a_way_around_accepting(a):
    a.claims.accept(2)
    a.claims.open(IN_HOUSE, source_keys=["a"])
    a.claims.withdraw(2)
    with pytest.raises(NotAllowed):
        a.claims.uphold(3)
    assert a.claims.accept(3).rows == {3: "a"}
    assert a.source_keys() == ["a"]


def test_a_legal_hold_keeps_bytes_from_compaction_too(a):
    a.add(rows([2]), ["b"])
    a.withdraw(["b"], "nobody holds it")
    for person in ("ann", "ben"):
        a.claims.hold(2, by=person)
    a.compact(forget_before=a.newest().version)
    assert len(a.snapshot(1)) == 1
    with pytest.raises(Erased):
        a.snapshot(4)
    assert a.claims.accept(2).rows == {3: "a"}
