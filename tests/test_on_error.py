"""When the newest version cannot be read: raise, or go on with the last that could, and say so."""

import pytest
import torch
from diffusers import DDIMScheduler
from worlds import ClosedForm, diffusers_on_numpy_2, random_world

from negindex import Collection, Exact
from negindex.errors import Damaged, InvalidInput
from negindex.sampler import guard

pytestmark = diffusers_on_numpy_2


@pytest.fixture
def world():
    return random_world(seed=41)


@pytest.fixture
def collection(world, tmp_path):
    made = Collection.create(tmp_path / "a.set", world.rows.shape[1:], "pixels", dtype="float32")
    made.add(world.unsafe, [str(i) for i in range(len(world.unsafe))])
    return made


def lose_the_newest_version(collection, world):
    """One more version, whose file then vanishes."""
    collection.add(world.safe[:1] + 1, ["lost"])
    (collection.path / "segments" / collection.segments()[-1].file).unlink()


def test_by_default_a_version_that_cannot_be_read_stops_the_call(world, collection):
    pipe = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    with guard(pipe, collection, Exact(world.safe)):
        pipe(steps=3)
        lose_the_newest_version(collection, world)
        with pytest.raises(Damaged):
            pipe(steps=3)


def test_going_on_uses_the_last_good_version_and_counts_each_step(world, collection):
    pipe = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    with guard(pipe, collection, Exact(world.safe), on_error="last-good") as g:
        before = pipe(steps=3)
        assert [r.degraded_steps for r in g.receipts] == [0]
        lose_the_newest_version(collection, world)
        after = pipe(steps=3)
        receipt = g.receipts[0]
    assert torch.equal(before, after)
    assert (receipt.degraded_steps, len(receipt.steps), receipt.sets[0].version) == (3, 3, 1)


def test_without_a_good_version_there_is_nothing_to_go_on_with(world, collection):
    pipe = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    collection.close()
    path = next((collection.path / "segments").iterdir())
    path.unlink()
    blind = guard(pipe, Collection.open(collection.path), Exact(world.safe), on_error="last-good")
    with blind, pytest.raises(Damaged):
        pipe(steps=3)


def test_an_emptied_set_is_no_fault_to_go_on_from(world, collection):
    pipe = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    with guard(pipe, collection, Exact(world.safe), on_error="last-good"):
        pipe(steps=3)
        collection.withdraw(collection.source_keys(), "all")
        with pytest.raises(LookupError, match="no row in force"):
            pipe(steps=3)


def test_an_unknown_policy_is_refused_before_anything_is_attached(world, collection):
    pipe = ClosedForm(world.rows, DDIMScheduler())
    with pytest.raises(InvalidInput, match=r"'ignore'.*raise, last-good"):
        guard(pipe, collection, Exact(world.safe), on_error="ignore")
    assert type(pipe) is ClosedForm
