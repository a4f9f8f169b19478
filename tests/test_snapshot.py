"""Reading a collection: a snapshot never changes, a collection follows, a withdrawn row never answers."""

import shutil

import numpy as np
import pytest
import torch
from forked import PROCESSES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from negindex import Collection, Exact, NoiseLevel, Union
from negindex.errors import DuplicateKey, EmptySet, UnknownKey, UnknownVersion

SHAPE = (3,)
LEVEL = NoiseLevel(0.8, 0.6)


def row(number):
    return np.random.default_rng(number).normal(size=SHAPE).astype(np.float16)


def rows(*numbers):
    return np.stack([row(n) for n in numbers])


def says(negatives, *expected):
    """The set answers as the rows of these numbers do, and as no others."""
    assert len(negatives) == len(expected)
    if not expected:
        with pytest.raises(EmptySet):
            negatives.posterior(torch.zeros(1, *SHAPE), LEVEL)
        return
    x_t = torch.from_numpy(rows(*range(4))).double()
    told, true = negatives.posterior(x_t, LEVEL), Exact(rows(*expected)).posterior(x_t, LEVEL)
    assert torch.allclose(told.log_norm, true.log_norm, rtol=1e-12, atol=1e-12)
    assert torch.allclose(told.mean, true.mean, rtol=1e-12, atol=1e-12)
    assert torch.allclose(told.heaviest.log_weight, true.heaviest.log_weight, rtol=1e-12, atol=1e-12)


@pytest.fixture
def col(tmp_path):
    """Rows 0 to 5 under keys a to f: a and b labelled x, c labelled y."""
    made = Collection.create(tmp_path / "set", SHAPE, "pixels")
    made.add(rows(0, 1), ["a", "b"], label="x")
    made.add(rows(2, 3, 4, 5), ["c", "d", "e", "f"], label=["y", None, None, None])
    return made


def test_a_withdrawn_row_never_answers_again(col):
    col.withdraw(["b"], "mistaken")
    col.add(rows(9), ["g"])
    for snapshot in (col, col.snapshot(), col.snapshot(3), Collection.open(col.path).pin()):
        told = snapshot.posterior(torch.from_numpy(rows(1)), NoiseLevel(1.0, 1e-3))  # asked at the row itself
        assert 2 not in told.heaviest.ids
        assert not np.allclose(told.mean[0], row(1), atol=1e-2)
    says(col, 0, 2, 3, 4, 5, 9)


def test_a_snapshot_never_changes(col):
    held, earlier = col.snapshot(), col.snapshot(1)
    col.withdraw(["a", "c"], "mistaken")
    col.add(rows(7), ["a"])
    for snapshot in (held, col.snapshot(2), Collection.open(col.path).snapshot(2)):
        says(snapshot, 0, 1, 2, 3, 4, 5)
        assert snapshot.origins == held.origins
    says(earlier, 0, 1)
    says(col.snapshot(0))


def test_a_snapshot_answers_after_its_collection_is_closed(col):
    snapshot = col.snapshot()
    col.close()
    says(snapshot, 0, 1, 2, 3, 4, 5)


def test_a_snapshot_answers_after_its_files_are_gone(col):
    snapshot = col.snapshot()
    shutil.rmtree(col.path)
    says(snapshot, 0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("version", [-1, 3, 10**9])
def test_a_version_that_never_was_is_named(col, version):
    with pytest.raises(UnknownVersion, match=rf"version {version}; the collection has versions 0 to 2"):
        col.snapshot(version)


def test_versions_only_grow(col):
    numbers = [col.newest().version, col.withdraw(["a"], "1"), col.add(rows(0), ["a"]), col.add(rows(0), ["a"])]
    assert numbers == [2, 3, 4, 4]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_sets_answer_or_say_that_they_are_empty(tmp_path, count):
    col = Collection.create(tmp_path / "set", SHAPE, "pixels")
    for i in range(count):
        col.add(rows(i), [str(i)])
    says(col, *range(count))


def test_withdrawing_everything_leaves_a_named_state(col):
    col.withdraw(list("abcdef"), "all of them")
    says(col)


# -- labels, digests -----------------------------------------------------------------------


def test_a_label_is_a_set_of_its_own(col):
    snapshot = col.snapshot()
    says(snapshot.where(label="x"), 0, 1)
    says(snapshot.where(label="y"), 2)
    says(snapshot.where(label="none has it"))
    assert (col.source_keys("x"), col.source_keys("z")) == (["a", "b"], [])


def test_labels_keep_to_the_snapshots_version(col):
    held = col.snapshot()
    col.withdraw(["a"], "mistaken")
    col.add(rows(8), ["g"], label="x")
    says(held.where(label="x"), 0, 1)
    says(col.snapshot().where(label="x"), 1, 8)


def test_digests_of_rows_withdrawn_or_yet_to_come_are_not_held(col):
    held, gone = col.snapshot(), set(col.snapshot(1).digests().values())
    col.withdraw(["a", "b"], "mistaken")
    col.add(rows(0), ["back"])
    assert held.holds(gone) == gone
    assert len(col.holds(gone)) == 1
    says(col.without(gone), 2, 3, 4, 5)
    says(held.without(gone), 2, 3, 4, 5)


def test_two_rows_of_the_same_bytes_both_weigh_and_both_go(col):
    col.add(rows(0), ["again"])
    says(col, 0, 0, 1, 2, 3, 4, 5)
    says(col.without([col.digests()[1]]), 1, 2, 3, 4, 5)


# -- following -----------------------------------------------------------------------------


def add_row(path, number, key):
    Collection.open(path).add(rows(number), [key])


def test_a_collection_follows_another_process(col):
    pinned = col.pin()
    assert col.pin() is pinned  # nothing changed
    other = PROCESSES.Process(target=add_row, args=(col.path, 6, "g"))
    other.start()
    other.join()
    assert other.exitcode == 0
    says(col, 0, 1, 2, 3, 4, 5, 6)
    assert col.origins == ((col.set_id, 3),)
    says(pinned, 0, 1, 2, 3, 4, 5)


def test_two_handles_are_one_collection(col):
    other = Collection.open(col.path)
    other.withdraw(["a"], "from the other side")
    says(col, 1, 2, 3, 4, 5)
    col.add(rows(0), ["a"])
    says(other, 0, 1, 2, 3, 4, 5)


def test_a_pinned_union_stays(col):
    union = Union([col, Exact(rows(7, 8))])
    pinned = union.pin()
    col.withdraw(["a", "b"], "mistaken")
    says(pinned, 0, 1, 2, 3, 4, 5, 7, 8)
    says(union, 2, 3, 4, 5, 7, 8)


# -- against a model -----------------------------------------------------------------------

KEYS = st.sampled_from("abcdefgh")
NUMBERS = st.integers(0, 20)


class AgainstADictionary(RuleBasedStateMachine):
    """Any order of changes and reopenings: every version is what a dictionary would have held."""

    place = None  # set by the test

    @initialize()
    def start(self):
        shutil.rmtree(self.place / "set", ignore_errors=True)
        self.col = Collection.create(self.place / "set", SHAPE, "pixels")
        self.now, self.history, self.held, self.ids = {}, [{}], [], set()

    @rule(given=st.dictionaries(KEYS, NUMBERS, min_size=1, max_size=4))
    def add(self, given):
        if any(self.now.get(key, number) != number for key, number in given.items()):
            with pytest.raises(DuplicateKey):
                self.col.add(rows(*given.values()), list(given))
            return
        fresh = given.keys() - self.now.keys()
        assert self.col.add(rows(*given.values()), list(given)) == len(self.history) - (not fresh)
        self.changed_to(self.now | given)

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3, unique=True))
    def withdraw(self, keys):
        if not self.now.keys() >= set(keys):
            with pytest.raises(UnknownKey):
                self.col.withdraw(keys, "model")
            return
        assert self.col.withdraw(keys, "model") == len(self.history)
        self.changed_to({key: number for key, number in self.now.items() if key not in keys})

    def changed_to(self, now):
        if now != self.now:
            self.now = now
            self.history.append(now)

    @rule()
    def reopen(self):
        self.col.close()
        self.col = Collection.open(self.place / "set")

    @rule(part=st.floats(0, 1))
    def hold_a_version(self, part):
        version = int(part * (len(self.history) - 1))
        self.held.append((Collection.open(self.col.path).snapshot(version), self.history[version]))

    @precondition(lambda self: self.held)
    @rule()
    def held_versions_are_as_they_were(self):
        for snapshot, model in self.held:
            says(snapshot, *model.values())

    @invariant()
    def the_newest_is_the_model(self):
        says(self.col, *self.now.values())
        assert self.col.source_keys() == sorted(self.now)
        assert self.col.newest().version == len(self.history) - 1


def test_any_order_of_changes_gives_what_a_dictionary_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(AgainstADictionary, "place", tmp_path)
    AgainstADictionary.TestCase.settings = settings(
        max_examples=20,
        stateful_step_count=100,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    AgainstADictionary.TestCase("runTest").runTest()
