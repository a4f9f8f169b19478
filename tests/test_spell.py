"""Rules that repel and need no gate: SPELL, and the gradient of the maximum mean discrepancy."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import ClosedForm, always, diffusers_on_numpy_2, never, random_world, seeded

from negindex import Exact, NoiseLevel, Union
from negindex.errors import NothingToCompareWith, OutOfRange
from negindex.sampler import Between, Correction, MeanDiscrepancy, Spell, View, guard

pytestmark = diffusers_on_numpy_2

INF, NAN = float("inf"), float("nan")
LEVEL = NoiseLevel(0.8, 0.6)
ROWS = torch.randn(12, 2, 3, generator=seeded(0), dtype=torch.float64)
X0 = torch.randn(5, 2, 3, generator=seeded(1), dtype=torch.float64)
NOISE = torch.randn(5, 2, 3, generator=seeded(2), dtype=torch.float64)


def view(x0, rows, noise=None, log_odds=INF):
    """What a rule sees of x0 at LEVEL, when its sample is alpha x0 + sigma noise."""
    x_t = 0.8 * x0 + 0.6 * (torch.zeros_like(x0) if noise is None else noise)
    negatives = rows if not isinstance(rows, torch.Tensor) else Exact(rows)
    odds = torch.full((len(x0),), log_odds, dtype=torch.float64)
    level = LEVEL.expand(len(x0))
    return View(x0, negatives.posterior(x_t, level), None, odds, x_t, level, negatives)


def distance(a, b):
    return (a - b).flatten(1).norm(dim=1)


# -- SPELL -------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("overcompensation", [1.0, 1.6])
def test_spell_is_the_sum_over_the_rows_within_reach(radius, overcompensation):
    expected = torch.zeros_like(X0)
    for b, x in enumerate(X0):
        for z in ROWS:
            expected[b] += overcompensation * max(radius / float((x - z).norm()) - 1, 0) * (x - z)
    torch.testing.assert_close(Spell(radius, overcompensation)(view(X0, ROWS)), expected, rtol=1e-12, atol=1e-12)
    assert expected.any() == (radius > 1)


@pytest.mark.parametrize("inside", [0.999, 0.5, 1e-3, 1e-6])
def test_one_push_takes_a_sample_out_of_the_ball(inside):
    """With lambda = 1 onto its surface, with 1.6 beyond it, straight away from the row."""
    x0 = ROWS[:5] + 2.0 * inside * NOISE / NOISE.flatten(1).norm(dim=1).reshape(5, 1, 1)
    for row, x in zip(ROWS, x0, strict=False):
        for overcompensation, after in ((1.0, 2.0), (1.6, 2.0 * (inside + 1.6 * (1 - inside)))):
            moved = x[None] + Spell(2.0, overcompensation)(view(x[None], row[None]))
            assert distance(moved, row[None]).item() == pytest.approx(after, rel=1e-6)
            cosine = torch.cosine_similarity((moved - row).flatten(), (x - row).flatten(), dim=0)
            assert cosine.item() == pytest.approx(1.0, abs=1e-6)


def test_a_sample_on_a_row_leaves_along_its_own_noise():
    delta = Spell(2.0)(view(ROWS[:5], ROWS[:5] * 1.0, NOISE))
    alone = Spell(2.0)(view(ROWS[:1], ROWS[:1], NOISE[:1]))
    assert torch.isfinite(delta).all()
    assert alone.norm().item() == pytest.approx(1.6 * 2.0)
    assert torch.cosine_similarity(alone.flatten(), NOISE[0].flatten(), dim=0).item() == pytest.approx(1.0)
    twice = Spell(2.0)(view(ROWS[:1], ROWS[:1].repeat(2, 1, 1), NOISE[:1]))
    torch.testing.assert_close(twice, 2 * alone)


def test_a_sample_on_a_row_and_without_noise_stays_and_is_never_nan():
    assert not Spell(2.0)(view(ROWS[:1], ROWS[:1])).any()
    near_nothing = ROWS[:1] + 1e-200
    assert torch.isfinite(Spell(2.0)(view(near_nothing, ROWS[:1]))).all()


def test_the_push_is_as_long_on_a_row_as_just_beside_it():
    beside = Spell(2.0)(view(ROWS[:1] + 1e-9, ROWS[:1], NOISE[:1]))
    on = Spell(2.0)(view(ROWS[:1], ROWS[:1], NOISE[:1]))
    assert on.norm().item() == pytest.approx(beside.norm().item(), rel=1e-6)


def test_spell_moves_only_what_is_within_reach():
    x0 = torch.cat([ROWS[:1] + 0.1, ROWS[:1] + 100])
    delta = Spell(1.0)(view(x0, ROWS))
    assert delta[0].any()
    assert not delta[1].any()


@pytest.mark.parametrize("radius", [0.0, -1.0, INF, NAN])
def test_a_radius_that_is_no_ball_is_refused(radius):
    with pytest.raises(OutOfRange, match="give a positive finite distance"):
        Spell(radius)
    with pytest.raises(OutOfRange, match="give a positive finite distance"):
        MeanDiscrepancy(radius)
    with pytest.raises(OutOfRange, match="give a positive finite number"):
        Spell(1.0, overcompensation=radius)
    with pytest.raises(OutOfRange, match="give a positive finite number"):
        MeanDiscrepancy(1.0, strength=radius)


# -- maximum mean discrepancy ------------------------------------------------------------------


def similarity(x, rows, h):
    """m(x) = (1/N) sum_n exp(-||x - z_n||² / (2 h²)): what the discrepancy subtracts."""
    squares = (x.flatten(1)[:, None] - rows.flatten(1)[None]).square().sum(2)
    return torch.exp(-squares / (2 * h * h)).mean(1)


@pytest.mark.parametrize("h", [0.7, 2.0, 10.0])
def test_the_push_is_against_the_gradient_of_the_kernel_mean(h):
    x = X0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(similarity(x, ROWS, h).sum(), x)
    torch.testing.assert_close(MeanDiscrepancy(h, 0.5)(view(X0, ROWS)), -0.5 * h * h * gradient, rtol=1e-9, atol=1e-15)


@settings(deadline=None)
@given(h=st.floats(0.5, 20), strength=st.floats(0.05, 1.9), seed=st.integers(0, 50))
def test_a_step_lowers_the_similarity_and_the_opposite_sign_would_raise_it(h, strength, seed):
    x0 = torch.randn(4, 2, 3, generator=seeded(seed), dtype=torch.float64)
    before, delta = similarity(x0, ROWS, h), MeanDiscrepancy(h, strength)(view(x0, ROWS))
    assert (similarity(x0 + delta, ROWS, h) <= before * (1 + 1e-12)).all()
    if strength <= 1:
        assert (similarity(x0 - delta, ROWS, h) >= before * (1 - 1e-12)).all()
    moved = delta.flatten(1).norm(dim=1) > 1e-4 * h
    assert (similarity(x0 + delta, ROWS, h) < before)[moved].all()


def test_a_discrepancy_does_not_know_how_often_the_set_was_said():
    once, thrice = (MeanDiscrepancy(2.0)(view(X0, Union([Exact(ROWS)] * n))) for n in (1, 3))
    torch.testing.assert_close(thrice, once, rtol=1e-12, atol=0)


def test_a_kernel_that_sees_nothing_moves_nothing():
    far = MeanDiscrepancy(0.01)(view(X0 + 50, ROWS))
    assert torch.equal(far, torch.zeros_like(far))


# -- without a gate ----------------------------------------------------------------------------

each_rule = pytest.mark.parametrize("rule", [Spell(4.0), MeanDiscrepancy(2.0)], ids=["spell", "discrepancy"])


@each_rule
def test_it_needs_neither_reference_nor_gate_and_obeys_its_window(rule):
    level = NoiseLevel(1.0, torch.tensor([0.2, 0.7, 3.0, 4.0, 5.0]))
    look = Correction(Exact(ROWS), rule=rule, window=Between(0.5, 3.5)).look(X0, X0, level)
    assert look.log_odds.tolist() == [-INF, INF, INF, -INF, -INF]
    assert (look.correction > 0).tolist() == [False, True, True, False, False]
    torch.testing.assert_close(look.delta[1:3], rule(view(X0[1:3], ROWS)))


@each_rule
def test_a_gate_is_heard_where_there_is_one(rule):
    def look(gate):
        return Correction(Exact(ROWS), rule=rule, gate=gate).look(X0, X0, LEVEL).delta

    assert not look(never).any()
    torch.testing.assert_close(look(lambda x, level, told: told.log_norm * 0 + math.log(3)), 0.75 * look(always))


def test_a_rule_that_says_nothing_of_odds_needs_them():
    with pytest.raises(NothingToCompareWith):
        Correction(Exact(ROWS), rule=lambda view: view.x0)


@each_rule
def test_a_guard_by_it_alone_repels_and_says_so(rule):
    world = random_world(safe=1, unsafe=2)
    pipe = ClosedForm(world.unsafe, DDIMScheduler(clip_sample=False))  # knows nothing but what it must not make
    plain = pipe(batch=3, steps=8)
    with guard(pipe, Exact(world.unsafe), rule=rule, copies=None) as guarded:
        kept = pipe(batch=3, steps=8)
    assert (closest(plain, world.unsafe) < 0.05).all()
    if isinstance(rule, Spell):
        assert (closest(kept, world.unsafe) > 0.9 * rule.radius).all()
    else:
        assert (closest(kept, world.unsafe) > closest(plain, world.unsafe)).all()
    receipt = guarded.receipts[0]
    assert (receipt.gate, receipt.rule) == ("none", str(rule))
    assert all(step.log_odds == INF for step in receipt.steps)


def closest(samples, rows):
    return torch.cdist(samples.flatten(1).double(), rows.flatten(1)).amin(1)


def test_a_guard_by_spell_with_nothing_within_reach_is_bit_identical():
    world = random_world()
    pipe = ClosedForm(world.safe, DDIMScheduler(clip_sample=False))
    plain = pipe(batch=2, steps=5)
    with guard(pipe, Exact(world.unsafe + 100), rule=Spell(0.5)):
        assert torch.equal(pipe(batch=2, steps=5), plain)
