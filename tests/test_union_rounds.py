"""A union of calibrated sets shares out ``k`` and ``error`` over its members, and the error that it states holds."""

import functools
from dataclasses import replace

import pytest
import torch
from mixtures import SHAPE, fresh, kernel, noised, off, rms, rows, scanned

from negindex import Exact, Mixture, NoiseLevel, Union, trust
from negindex.head import Effort
from negindex.negatives import Query
from negindex.rounds import Rounds

EFFORTS = (Effort(40, 8), Effort(150, 16), Effort(400, 64))
NOISE = (0.2, 1.0, 10.0)
SHARDS = 4


@functools.cache
def every():
    return rows(2400, seed=3)


@functools.cache
def asking():
    return fresh()[:12]


@functools.cache
def mixture(start, stop):
    """Rows of one side of the set: a shard by topic, as far from the others as they come."""
    flat = every().flatten(1).double()
    order = (flat @ flat[0]).argsort()[start:stop]
    with pytest.MonkeyPatch.context() as patch:  # to learn less takes less time
        patch.setattr(trust, "LEVELS", NOISE)
        patch.setattr(trust, "_HELD_OUT", 24)
        return Mixture.build(Exact(every()[order]), kernel(every()), efforts=EFFORTS, scan_elements=0)


def shards():
    size = len(every()) // SHARDS
    return [mixture(start, start + size) for start in range(0, len(every()), size)]


@pytest.fixture
def opened(monkeypatch):
    """How many rows were weighed from memory, read in full, and scanned."""
    seen = {"weighed": 0, "read": 0, "scanned": 0}
    import negindex.mixture as module

    weigh, answer = module.weigh, Exact.answer

    def weighing(clusters, query, variance, told, effort, named, lean):
        head = weigh(clusters, query, variance, told, effort, named, lean)
        seen["weighed"] += int(clusters.counts[head.opened].sum())
        seen["read"] += len(head.reading.rows)
        return head

    def scanning(self, query):
        seen["scanned"] += len(self) * len(query.x_t)
        return answer(self, query)

    monkeypatch.setattr(module, "weigh", weighing)
    monkeypatch.setattr(Exact, "answer", scanning)
    return seen


def asked(negatives, opened, s, **limits):
    """The answer, and what was opened for it."""
    opened.update(dict.fromkeys(opened, 0))
    told = negatives.posterior(noised(asking(), s, 5), NoiseLevel(1.0, s), kernel=kernel(every()), **limits)
    return told, dict(opened)


def test_an_error_is_reached_by_the_whole_without_the_scans_that_each_would_make(opened):
    several, cost = Union(shards()), {"several": 0, "each": 0}
    scans = cost.copy()

    def count(who, work):
        cost[who] += work["weighed"] + work["scanned"]
        scans[who] += work["scanned"]

    for s in NOISE:
        true, radius = scanned(every(), noised(asking(), s, 5), s, kernel(every())), rms(every())
        told, work = asked(several, opened, s, error=0.2)
        count("several", work)
        assert (told.error <= 0.2).all()
        assert float((off(told, true, radius) <= told.error + 1e-6).double().mean()) >= 0.95
        for shard in shards():  # every member for itself, as if it were the whole
            count("each", asked(shard, opened, s, error=0.2)[1])
    assert cost["several"] < 0.75 * cost["each"]
    assert scans["several"] < 0.25 * scans["each"]


@pytest.mark.parametrize("limits", [{}, {"k": 32, "error": 0.1}])
def test_what_a_union_states_holds(limits):
    both, radius = Union(shards()), rms(every())
    for s in NOISE:
        x = noised(asking(), s, 5)
        told = both.posterior(x, NoiseLevel(1.0, s), kernel=kernel(every()), **limits)
        wrong = off(told, scanned(every(), x, s, kernel(every())), radius)
        assert float((wrong <= told.error + 1e-6).double().mean()) >= 0.95, s


@pytest.mark.parametrize("k", [1, 16])
def test_k_rows_are_read_of_the_whole_and_the_heaviest_are_named(opened, k):
    several = Union(shards())
    for s in NOISE:
        told, work = asked(several, opened, s, k=k)
        assert work["read"] <= len(asking()) * (1.75 * k + SHARDS)
        x, level = noised(asking(), s, 5), NoiseLevel(1.0, s)
        each = [shard.posterior(x, level, kernel=kernel(every()), k=k) for shard in shards()]
        best = torch.cat([part.heaviest.log_weight for part in each], 1).topk(k, dim=1).values
        assert torch.allclose(told.heaviest.log_weight, best, atol=1e-9)


def test_exact_members_answer_in_one_round():
    query = Query(asking().double(), NoiseLevel(1.0, 1.0).expand(12), kernel(every()), 8, 0.1)
    parts = [Exact(some) for some in every()[:400].split(100)]
    rounds = Rounds(query, [100] * 4)
    rounds.told({place: part.answer(rounds.first) for place, part in enumerate(parts)})
    assert not rounds.need_scales
    assert rounds.further() == {}
    whole = Exact(every()[:400]).answer(query)
    told = rounds.merged(())
    assert torch.allclose(told.mean, whole.mean, atol=1e-12)
    assert torch.allclose(told.heaviest.log_weight, whole.heaviest.log_weight)
    assert not told.error.any()


def test_errors_of_sets_of_different_size_count_on_one_scale():
    """A small tight set beside a wide one: its error is small in the radius of both."""
    tight, wide = Exact(every()[:50] * 0.01), Exact(every()[:50])
    query = Query(torch.zeros(1, *SHAPE).double(), NoiseLevel(1.0, 3.0).expand(1), kernel(every()), None, None)
    rounds = Rounds(query, [50, 50])
    said = [replace(one.answer(query), error=torch.full((1,), 0.5, dtype=torch.float64)) for one in (tight, wide)]
    rounds.told(dict(enumerate(said)))
    rounds.scaled({0: tight.moments(), 1: wide.moments()})
    told, whole = rounds.merged(()), tight.moments().merge(wide.moments()).rms
    shares = torch.stack([part.log_norm for part in said]).softmax(0)[:, 0]
    apart = [float((part.mean - told.mean).norm()) for part in said]
    expected = sum(w * 0.5 * (one.moments().rms + d) for w, one, d in zip(shares, (tight, wide), apart, strict=True))
    assert float(told.error[0]) == pytest.approx(float(expected) / whole)
