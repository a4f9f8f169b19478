"""Gates turn an answer into odds, rules turn odds into a change of x0, and a correction puts them together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import World, always, exact_gate, log_beta, never, random_world, seeded, truth

from negindex import Exact, Kernel, NoiseLevel, Union
from negindex.errors import (
    EmptySet,
    KernelMismatch,
    NotFinite,
    NothingToCompareWith,
    OutOfRange,
    ShapeMismatch,
    SpaceMismatch,
)
from negindex.sampler import Constant, Correction, Ratio, SafeDenoising, Threshold, View, paired
from negindex.sampler.gates import log_ratio

INF, NAN = float("inf"), float("nan")
LEVEL = NoiseLevel(0.8, 0.6)


def asked(world, batch=3, seed=1):
    """x_t at LEVEL, from safe and unsafe rows."""
    rows = world.rows[torch.linspace(0, len(world.rows) - 1, batch).long()]
    return 0.8 * rows + 0.6 * torch.randn(rows.shape, generator=seeded(seed), dtype=torch.float64)


# -- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [1e-9, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_the_ratio_is_eq_5_in_closed_form(prior):
    """logit(prior) + log p_u - log p_s, each a mean kernel value over its own set."""
    world = random_world(safe=9, unsafe=5)
    x = asked(world)
    log_odds = Ratio(Exact(world.safe), prior)(x, LEVEL, Exact(world.unsafe).posterior(x, LEVEL))
    expected = log_beta(world, x, 0.8, 0.6) - math.log(5 / 9) + math.log(prior / (1 - prior))
    np.testing.assert_allclose(log_odds.numpy(), expected.astype(float), rtol=1e-9, atol=1e-9)


def test_at_pure_noise_the_ratio_is_the_prior():
    world = random_world()
    x = asked(world)
    level = NoiseLevel(0.0, 1.0)
    log_odds = Ratio(Exact(world.safe), 0.3)(x, level, Exact(world.unsafe).posterior(x, level))
    assert torch.sigmoid(log_odds).tolist() == pytest.approx([0.3] * 3, abs=1e-14)


@pytest.mark.parametrize("copies", [2, 7])
def test_duplicating_either_set_changes_no_ratio(copies):
    world = random_world()
    x = asked(world)
    once = Ratio(Exact(world.safe), 0.2)(x, LEVEL, Exact(world.unsafe).posterior(x, LEVEL))
    safe, unsafe = (Exact(rows.repeat(copies, 1, 1, 1)) for rows in (world.safe, world.unsafe))
    torch.testing.assert_close(Ratio(safe, 0.2)(x, LEVEL, unsafe.posterior(x, LEVEL)), once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 1.1, NAN])
def test_a_prior_that_is_certain_is_refused(prior):
    with pytest.raises(OutOfRange, match="between 0 and 1, both excluded"):
        Ratio(Exact(torch.zeros(1, 2)), prior)
    with pytest.raises(OutOfRange):
        Correction(Exact(torch.zeros(1, 2)), Exact(torch.ones(1, 2)), prior)


def test_the_ratio_sees_both_sets_through_one_kernel():
    world, kernel = random_world(), Kernel([(2.0, 9.0)])
    x = asked(world)
    unsafe = Exact(world.unsafe).posterior(x, LEVEL, kernel=kernel)
    log_odds = Ratio(Exact(world.safe), 0.5)(x, LEVEL, unsafe)
    assert torch.equal(log_odds, log_ratio(unsafe, Exact(world.safe).posterior(x, LEVEL, kernel=kernel), 0.5))
    with pytest.raises(KernelMismatch):
        log_ratio(unsafe, Exact(world.safe).posterior(x, LEVEL), 0.5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 5.0])
def test_constant_odds_are_the_same_everywhere(beta):
    x = asked(random_world())
    log_odds = Constant(beta)(x, LEVEL, Exact(random_world().unsafe).posterior(x, LEVEL))
    assert log_odds.dtype == torch.float64
    assert log_odds.exp().tolist() == pytest.approx([beta] * 3)


@pytest.mark.parametrize("beta", [-0.1, INF, NAN])
def test_a_constant_that_is_no_strength_is_refused(beta):
    with pytest.raises(OutOfRange):
        Constant(beta)


def test_threshold_is_the_mean_kernel_value_in_logs_and_none_below():
    world = random_world()
    x = asked(world)
    told = Exact(world.unsafe).posterior(x, LEVEL)
    value = truth(world.unsafe, x, 0.8, 0.6).log_norm.astype(float) - math.log(5) + 16 / 2
    at = float(np.sort(value)[1])
    log_odds = Threshold(at - 1e-9, eta=0.3)(x, LEVEL, told).numpy()
    assert (log_odds == -INF).tolist() == (value < at - 1e-9).tolist()
    assert 0 < np.isfinite(log_odds).sum() < 3
    np.testing.assert_allclose(log_odds[value >= at], value[value >= at] + math.log(0.3), rtol=1e-9)


@settings(deadline=None)
@given(copies=st.integers(1, 30), at=st.floats(-20, 20))
def test_a_threshold_survives_growth_of_the_set(copies, at):
    world = random_world(safe=1, unsafe=3)
    x = asked(world)
    once = Threshold(at)(x, LEVEL, Exact(world.unsafe).posterior(x, LEVEL))
    grown = Threshold(at)(x, LEVEL, Union([Exact(world.unsafe)] * copies).posterior(x, LEVEL))
    torch.testing.assert_close(grown, once, rtol=1e-9, atol=1e-9)


def test_a_noised_copy_scores_about_minus_log_n_at_every_level():
    """So one threshold serves all levels, and dimensions where the kernel itself is zero in float64."""
    rows = torch.randn(10, 4, 32, 32, generator=seeded(2), dtype=torch.float64)
    for s in (0.05, 0.2, 1.0, 5.0):
        x = rows + s * torch.randn(rows.shape, generator=seeded(3), dtype=torch.float64)
        score = Threshold(-1e9)(x, NoiseLevel(1.0, s), Exact(rows).posterior(x, NoiseLevel(1.0, s)))
        assert (score + math.log(10)).abs().max() < 4 * math.sqrt(4096 / 2)


def test_a_threshold_counts_the_dimensions_that_the_kernel_weighs():
    world, kernel = random_world(), Kernel(projection=torch.eye(16)[:3])
    x = asked(world)
    told = Exact(world.unsafe).posterior(x, LEVEL, kernel=kernel)
    expected = told.log_norm - math.log(5) + 3 / 2
    torch.testing.assert_close(Threshold(-1e9)(x, LEVEL, told), expected)


@pytest.mark.parametrize("eta", [0.0, -1.0, INF, NAN])
def test_a_strength_that_is_not_positive_is_refused(eta):
    with pytest.raises(OutOfRange):
        Threshold(0.0, eta)


# -- rules -------------------------------------------------------------------------------------


def view(world, log_odds, with_reference=True):
    x = asked(world)
    unsafe = Exact(world.unsafe).posterior(x, LEVEL)
    reference = Exact(world.safe).posterior(x, LEVEL) if with_reference else None
    odds = torch.tensor(log_odds, dtype=torch.float64)
    return View(x, unsafe, reference, odds, x, LEVEL.expand(3), Exact(world.unsafe))


def test_safe_denoising_is_eq_4_up_to_its_cap():
    seen = view(random_world(), [math.log(0.5), math.log(3.0), -INF])
    for cap, beta in ((1.0, [0.5, 1.0, 0.0]), (2.0, [0.5, 2.0, 0.0]), (INF, [0.5, 3.0, 0.0])):
        expected = torch.tensor(beta, dtype=torch.float64).reshape(3, 1, 1, 1) * (seen.x0 - seen.unsafe.mean)
        torch.testing.assert_close(SafeDenoising(cap)(seen), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("cap", [0.0, -1.0, NAN])
def test_a_cap_that_is_not_positive_is_refused(cap):
    with pytest.raises(OutOfRange):
        SafeDenoising(cap)


def test_paired_moves_by_the_share_of_the_odds_towards_the_reference():
    seen = view(random_world(), [math.log(3.0), INF, -INF])
    pi = torch.tensor([0.75, 1.0, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    torch.testing.assert_close(paired(seen), pi * (seen.reference.mean - seen.unsafe.mean), rtol=1e-14, atol=0)


def test_paired_needs_a_reference():
    with pytest.raises(NothingToCompareWith, match="give reference="):
        paired(view(random_world(), [0.0] * 3, with_reference=False))


# -- the correction ----------------------------------------------------------------------------

UNSAFE, SAFE = Exact(torch.zeros(2, 1, 4, 4)), Exact(torch.ones(3, 1, 4, 4))


def test_with_neither_reference_nor_gate_the_three_remedies_are_named():
    with pytest.raises(NothingToCompareWith, match=r"reference=(.|\n)*calibrate(.|\n)*gate=Threshold"):
        Correction(UNSAFE)


def test_a_reference_makes_it_paired_behind_the_ratio_and_a_gate_alone_eq_4():
    with_reference = Correction(UNSAFE, SAFE, 0.3)
    assert (with_reference.rule, with_reference.gate) == (paired, Ratio(SAFE, 0.3))
    assert Correction(UNSAFE, gate=Constant(1.0)).rule == SafeDenoising(1.0)
    assert Correction(UNSAFE, gate=Ratio(SAFE, 0.3)).reference is SAFE


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ShapeMismatch, match="images of one size"):
        Correction(UNSAFE, Exact(torch.zeros(1, 1, 8, 8)))
    with pytest.raises(SpaceMismatch, match="encode both alike"):
        Correction(UNSAFE, Exact(torch.zeros(1, 1, 4, 4), space="vae 1"))
    with pytest.raises(ShapeMismatch):
        Correction(UNSAFE, gate=Ratio(Exact(torch.zeros(1, 1, 8, 8))))


GATES = {
    "a gate that returns one number": (ShapeMismatch, lambda x, level, told: torch.tensor(0.0)),
    "a gate that returns an image": (ShapeMismatch, lambda x, level, told: x),
    "a gate that returns NaN": (NotFinite, lambda x, level, told: told.log_norm * NAN),
}


@pytest.mark.parametrize(("error", "gate"), GATES.values(), ids=GATES.keys())
def test_odds_that_are_none_are_refused(error, gate):
    x = asked(random_world())
    with pytest.raises(error, match="the gate returned"):
        Correction(UNSAFE, gate=gate).look(x, x, LEVEL)


def test_a_rule_that_diverges_is_refused():
    x = asked(random_world())
    with pytest.raises(NotFinite, match="no image was changed"):
        Correction(UNSAFE, gate=always, rule=SafeDenoising(INF)).look(x, x, LEVEL)


def test_sure_safety_changes_nothing_under_any_rule():
    world = random_world()
    x = asked(world)
    for rule in (paired, SafeDenoising(), SafeDenoising(INF)):
        look = Correction(Exact(world.unsafe), Exact(world.safe), gate=never, rule=rule).look(x, x, LEVEL)
        assert not look.delta.any()


def test_the_correction_of_a_batch_is_that_of_its_samples():
    world = random_world()
    x = asked(world, batch=4)
    level = NoiseLevel(0.8, torch.tensor([0.3, 0.6, 0.9, 2.0]))
    for correction in (
        Correction(Exact(world.unsafe), Exact(world.safe)),
        Correction(Exact(world.unsafe), gate=exact_gate(world)),
    ):
        whole = correction.look(x, x / 2, level).delta
        alone = [correction.look(x[i : i + 1], x[i : i + 1] / 2, NoiseLevel(0.8, level.sigma[i])) for i in range(4)]
        torch.testing.assert_close(whole, torch.cat([look.delta for look in alone]), rtol=1e-9, atol=1e-12)
        assert whole.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize(
    ("rule", "reads"), [(paired, 0), (SafeDenoising(), 1), (lambda view: view.x0 - view.x0 + view.x0, 1)]
)
def test_x0_is_worked_out_once_and_only_for_a_rule_that_reads_it(rule, reads):
    world, made = random_world(), []
    x = asked(world)
    correction = Correction(Exact(world.unsafe), Exact(world.safe), rule=rule)
    look = correction.look(x, lambda: made.append(x.float() / 2) or made[-1], LEVEL)
    assert len(made) == reads
    assert torch.equal(look.delta, correction.look(x, x.float() / 2, LEVEL).delta)


@pytest.mark.parametrize("wrong", [NAN, INF, -INF, 1e200])
def test_a_correction_that_no_length_can_be_given_of_is_refused(wrong):
    """Also in one element of one sample, whatever the others are."""
    x = asked(random_world())

    def rule(view):
        delta = torch.zeros_like(view.x0)
        delta[1, 0, 2, 3] = wrong
        return delta

    with pytest.raises(NotFinite, match="beyond float64"):
        Correction(UNSAFE, SAFE, rule=rule).look(x, x, LEVEL)


# -- a takedown wins over the reference --------------------------------------------------------


def test_rows_that_are_negatives_too_do_not_vouch_as_a_reference():
    world = random_world()
    x = asked(world)
    tainted = Exact(torch.cat([world.safe, world.unsafe[:2]]))
    clean = Correction(Exact(world.unsafe), Exact(world.safe), 0.3).pin()
    for correction in (
        Correction(Exact(world.unsafe), tainted, 0.3),
        Correction(Exact(world.unsafe), Union([Exact(world.safe), Exact(world.unsafe[:2])]), 0.3),
        Correction(Exact(world.unsafe), gate=Ratio(tainted, 0.3), rule=paired),
    ):
        pinned = correction.pin()
        assert len(pinned.reference) == 9
        torch.testing.assert_close(
            pinned.look(x, x, LEVEL).delta, clean.look(x, x, LEVEL).delta, rtol=1e-12, atol=1e-12
        )


def test_a_row_that_differs_in_one_bit_stays_in_the_reference():
    world = random_world()
    nudged = torch.nextafter(world.unsafe, torch.tensor(INF, dtype=torch.float64))
    assert len(Correction(Exact(world.unsafe), Exact(torch.cat([world.safe, nudged]))).pin().reference) == 9 + 5


def test_a_reference_of_negatives_alone_has_nothing_left_to_compare_with():
    world = World(torch.zeros(0, 1, 4, 4, dtype=torch.float64), random_world().unsafe)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    pinned = Correction(Exact(world.unsafe), Exact(world.unsafe)).pin()
    with pytest.raises(EmptySet):
        pinned.look(x, x, LEVEL)


def test_pinning_twice_gives_the_same_while_nothing_changes():
    correction = Correction(UNSAFE, SAFE)
    assert correction.pin() is correction.pin()
