"""A member of a union that fails or is late: a question raises and names it, or is answered without it and says so."""

import logging
import os
import signal
import time

import pytest
import torch
from diffusers import DDIMScheduler
from serving import processes, serving, started
from small_sets import SHAPE, rows
from worlds import ClosedForm, diffusers_on_numpy_2, random_world

from negindex import Collection, Exact, NoiseLevel, RemoteNegatives, Union
from negindex.errors import Damaged, EmptySet, InvalidInput, OutOfRange, ShapeMismatch, Unreachable
from negindex.receipts import MissingSet, Receipt
from negindex.sampler import guard

LEVEL = NoiseLevel(0.7, 0.7)
X = torch.ones(2, *SHAPE)
HERE = rows(5, seed=1)


@pytest.fixture(autouse=True)
def _asked_again_at_once(monkeypatch):
    monkeypatch.setattr("negindex.members.RESTS", 0.0)


@pytest.fixture
def root(tmp_path):
    return tmp_path


@pytest.fixture
def far(root):
    made = Collection.create(root / "far.set", SHAPE, "pixels")
    made.add(rows(3), ["a", "b", "c"])
    return made


class Slow(Exact):
    """Rows in memory that take their time."""

    seconds = 0.0
    running = 0

    def answer(self, query):
        self.running += 1
        time.sleep(self.seconds)
        self.running -= 1
        return super().answer(query)


def same(one, other):
    return torch.equal(one.mean, other.mean) and torch.equal(one.log_norm, other.log_norm) and one.count == other.count


# -- services that go away -----------------------------------------------------------------


def test_a_service_that_went_away_raises_and_is_named(root, far):
    with serving(root) as url:
        remote = RemoteNegatives(url, "far.set", retries=0)
        pinned = Union([Exact(HERE), remote]).pin()
        assert pinned.posterior(X, LEVEL).count == 8
    for ask in (
        lambda: Union([Exact(HERE), remote]).posterior(X, LEVEL),
        lambda: Union([Exact(HERE), remote]).pin(),
        lambda: pinned.posterior(X, LEVEL),
        lambda: pinned.near(X, k=1),
        lambda: pinned.moments(),
        lambda: pinned.digests(),
    ):
        with pytest.raises(Unreachable, match=rf"member 1 \(set 'far.set' at {url}.*cannot be reached"):
            ask()


def test_with_the_policy_the_rest_answer_and_say_who_is_missing(root, far, caplog):
    here = Exact(HERE)
    with serving(root) as url:
        remote = RemoteNegatives(url, "far.set", retries=0)
        union = Union([here, remote], missing="without")
        pinned = union.pin()
        whole = pinned.posterior(X, LEVEL)
        assert (whole.count, whole.missing) == (8, ())
    for ask in (lambda: pinned, lambda: union, union.pin):
        with caplog.at_level(logging.WARNING, "negindex.union"):
            asked = ask()
            told, near = asked.posterior(X, LEVEL), asked.near(X, k=8)
        assert same(told, here.posterior(X, LEVEL))
        assert told.origins == near.origins == here.origins
        assert near.ids.shape[1] == 5
        for said in (told.missing, near.missing):
            assert [(one.set_id, one.error) for one in said] == [(far.set_id, "Unreachable")]
            assert f"member 1 (set 'far.set' at {url}" in said[0].said
        assert "answered without member 1 (set 'far.set'" in caplog.text
        caplog.clear()
    assert (len(union.pin()), len(union)) == (5, 5)
    with serving(root, port=int(url.rpartition(":")[2])):
        assert same(union.posterior(X, LEVEL), whole)
        assert union.posterior(X, LEVEL).missing == union.pin().missing == ()


def test_what_cannot_say_who_is_missing_raises_whatever_the_policy(root, far):
    with serving(root) as url:
        pinned = Union([Exact(HERE), RemoteNegatives(url, "far.set", retries=0)], missing="without").pin()
    for ask in (pinned.moments, pinned.digests, lambda: pinned.holds(["0" * 64]), lambda: pinned.without(["0" * 64])):
        with pytest.raises(Unreachable, match="member 1"):
            ask()


def test_where_no_row_is_left_to_answer_it_raises_whatever_the_policy(root, far):
    with serving(root) as url:
        remote = RemoteNegatives(url, "far.set", retries=0)
    for members in ([remote], [remote, remote]):
        with pytest.raises(Unreachable, match=r"every member is missing.*far\.set"):
            Union(members, missing="without").posterior(X, LEVEL)
    for ask in (lambda u: u.posterior(X, LEVEL), lambda u: u.near(X, k=1)):
        with pytest.raises(Unreachable, match=r"no row is left to answer.*far\.set"):
            ask(Union([remote, Exact(rows(0))], missing="without"))
    with pytest.raises(EmptySet):
        Union([Exact(rows(0))], missing="without").posterior(X, LEVEL)


# -- members that are slow -----------------------------------------------------------------


def test_members_that_wait_are_asked_at_the_same_time():
    slow = [Slow(HERE) for _ in range(4)]
    for one in slow:
        one.seconds = 0.5
    together = Exact(torch.from_numpy(HERE).repeat(4, 1, 1).numpy())
    for limits in ({"timeout": 5.0}, {"threads": 4}):
        began = time.monotonic()
        told = Union(slow, **limits).posterior(X, LEVEL)
        assert time.monotonic() - began < 1.7
        assert torch.allclose(told.mean, together.posterior(X, LEVEL).mean)
        assert told.count == 20


def test_time_outs_are_each_members_own():
    quick, slow = Exact(HERE), Slow(rows(3))
    slow.seconds = 0.4
    assert Union([quick, slow], timeout=[0.1, 5.0]).posterior(X, LEVEL).count == 8
    with pytest.raises(Unreachable, match=r"member 1 .*no answer within 0\.1 s; give it longer \(timeout="):
        Union([quick, slow], timeout=0.1).posterior(X, LEVEL)
    told = Union([quick, slow], timeout=[None, 0.1], missing="without").posterior(X, LEVEL)
    assert (told.count, [one.error for one in told.missing]) == (5, ["Unreachable"])


def test_a_late_member_is_not_asked_again_while_it_is_at_it():
    slow = Slow(rows(3))
    slow.seconds = 0.5
    union = Union([Exact(HERE), slow], timeout=0.05, missing="without").pin()
    for _ in range(20):
        assert union.posterior(X, LEVEL).count == 5
    assert slow.running == 1


def test_a_member_that_failed_rests_for_some_seconds(monkeypatch):
    monkeypatch.setattr("negindex.members.RESTS", 60.0)
    asked = []

    class Broken(Exact):
        def answer(self, query):
            asked.append(1)
            raise Damaged("a file is not what was written")

    union = Union([Exact(HERE), Broken(rows(3))], missing="without")
    for _ in range(3):
        told = union.posterior(X, LEVEL)
        assert (told.count, told.missing[0].error) == (5, "Damaged")
    assert len(asked) == 1
    strict = Union([Exact(HERE), Broken(rows(3))])
    for _ in range(2):
        with pytest.raises(Damaged, match=r"member 1 \(set exact.*a file is not what was written"):
            strict.posterior(X, LEVEL)
    assert len(asked) == 3


def test_a_wrong_question_is_no_missing_member():
    union = Union([Exact(HERE), Exact(rows(3))], missing="without", timeout=5.0)
    with pytest.raises(ShapeMismatch):
        union.posterior(torch.ones(1, 7), LEVEL)
    with pytest.raises(OutOfRange):
        union.posterior(X, LEVEL, k=9)

    class Faulty(Exact):
        def answer(self, query):
            raise RuntimeError("a mistake in the engine")

    for timeout in (None, 5.0):
        with pytest.raises(RuntimeError, match="a mistake in the engine"):
            Union([Exact(HERE), Faulty(rows(3))], missing="without", timeout=timeout).posterior(X, LEVEL)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"missing": "ignore"}, InvalidInput, "'ignore'; give one of raise, without"),
        ({"timeout": 0.0}, OutOfRange, "timeout = 0.0; give seconds > 0"),
        ({"timeout": [1.0, None]}, InvalidInput, "2 time-outs for 1 members"),
        ({"threads": 0}, OutOfRange, "threads = 0; give at least 1"),
    ],
)
def test_what_a_union_cannot_do_is_named(given, error, said):
    with pytest.raises(error, match=said):
        Union([Exact(HERE)], **given)


# -- in receipts ---------------------------------------------------------------------------


@diffusers_on_numpy_2
def test_a_receipt_says_which_set_was_missing_and_at_how_many_steps(tmp_path):
    world = random_world(seed=41)
    made = Collection.create(tmp_path / "far.set", world.rows.shape[1:], "pixels", dtype="float32")
    made.add(world.unsafe[:2], ["a", "b"])
    pipe, here = ClosedForm(world.rows, DDIMScheduler(clip_sample=False)), Exact(world.unsafe[2:])
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "far.set", retries=0)
        attached = guard(pipe, Union([here, remote], missing="without"), Exact(world.safe))
        pipe(steps=3)
        assert (attached.receipts[0].missing, attached.receipts[0].degraded_steps) == ((), 0)
        assert len(attached.receipts[0].sets) == 2
    rest = pipe(steps=3)
    receipt = attached.receipts[0]
    attached.detach()
    assert receipt.missing == (MissingSet(made.set_id, "Unreachable", "negatives", 3),)
    assert (receipt.degraded_steps, [one.set_id for one in receipt.sets]) == (3, [here.origins[0].set_id])
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert url not in receipt.to_json()  # it may travel inside the image
    with guard(pipe, here, Exact(world.safe)):
        assert torch.equal(pipe(steps=3), rest)
    pipe_strict = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    with guard(pipe_strict, Union([here, remote]), Exact(world.safe)), pytest.raises(Unreachable, match="member 1"):
        pipe_strict(steps=3)


# -- a service that is killed --------------------------------------------------------------


def killed(service):
    """SIGKILL to every process of a service, the one that watches the others first."""
    for process in (service.pid, *started(service)):
        os.kill(process, signal.SIGKILL)
    service.wait(30)


@pytest.mark.long  # two starts of `negindex serve`
def test_a_service_killed_between_two_look_ups_raises_or_is_said_to_be_missing_and_is_asked_again(root, far):
    here = Exact(HERE)
    with processes(root) as (url, service):
        remote = RemoteNegatives(url, "far.set", retries=0)
        strict, lenient = Union([here, remote]), Union([here, remote], missing="without")
        whole = strict.posterior(X, LEVEL)
        assert whole.count == 8
        assert same(lenient.posterior(X, LEVEL), whole)
        killed(service)
    with pytest.raises(Unreachable, match=r"member 1 \(set 'far.set' at "):
        strict.posterior(X, LEVEL)
    told = lenient.posterior(X, LEVEL)
    assert same(told, here.posterior(X, LEVEL))
    assert [(one.error, "far.set" in one.said) for one in told.missing] == [("Unreachable", True)]
    with processes(root, "--port", url.rpartition(":")[2]):
        for union in (strict, lenient):
            back = union.posterior(X, LEVEL)
            assert same(back, whole)
            assert back.missing == ()
    remote.close()
