"""Measures and intervals against closed forms and known answers."""

import numpy as np
import pytest
from scipy import linalg

from negindex.errors import NotFinite, OutOfRange, ShapeMismatch
from negindex.sampler.evaluation.intervals import Figure, bootstrap, mean_of, paired_difference, share_of
from negindex.sampler.evaluation.measures import Gaussian, covered, frechet, further, nearest, vendi


def normal(count, d=4, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, d)) + shift


def test_the_distance_of_two_gaussians_is_the_closed_form():
    a = Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    b = Gaussian(np.array([3.0, 4.0]), np.diag([9.0, 1.0]))
    assert frechet(a, b) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 1) ** 2)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)


def test_the_distance_agrees_with_the_root_of_the_product_where_covariances_do_not_commute():
    a, b = (Gaussian.of(normal(50, 5, seed) @ normal(5, 5, seed + 9)) for seed in (1, 2))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(expected)
    assert frechet(b, a) == pytest.approx(frechet(a, b))


def test_how_much_further_is_told_more_closely_than_either_distance():
    real, than = normal(2000), normal(300, seed=1, shift=1.0)
    moved = than + 0.1  # the same seeds, a little further off
    apart = further(moved, than, real)
    assert 0 < apart.low < 4 * (1.1**2 - 1) < apart.high
    alone = bootstrap(lambda drawn: frechet(Gaussian.of(moved[drawn]), Gaussian.of(real)), 300)
    assert apart.high - apart.low < (alone.high - alone.low) / 2
    assert further(than, than, real) == Figure(0, 0, 0)
    with pytest.raises(ShapeMismatch, match="same seeds"):
        further(moved[:9], than, real)


def test_the_distance_grows_with_the_shift_and_refuses_other_features():
    here = Gaussian.of(normal(2000))
    near, far = (frechet(here, Gaussian.of(normal(2000, seed=1, shift=shift))) for shift in (0.1, 1.0))
    assert near < far
    assert far == pytest.approx(4, rel=0.1)
    with pytest.raises(ShapeMismatch):
        frechet(here, Gaussian.of(normal(10, 3)))
    with pytest.raises(OutOfRange):
        Gaussian.of(normal(1))


def test_samples_off_the_data_are_not_covered_and_a_lost_mode_is_not_recalled():
    real = np.concatenate([normal(200, seed=1), normal(200, seed=2, shift=20)])
    one_mode = normal(200, seed=3)
    assert covered(one_mode, real).mean() > 0.8
    recall = covered(real, one_mode)
    assert recall[:200].mean() > 0.8
    assert not recall[200:].any()
    assert not covered(normal(50, shift=-20), real).any()
    with pytest.raises(OutOfRange):
        covered(real, real[:3])


def test_cover_reaches_to_the_third_neighbour():
    line = np.arange(5.0)[:, None]
    # from 0 the third neighbour lies at 3, so -3 is covered and -3.01 is not
    assert covered(np.array([[-3.0], [-3.01]]), line).tolist() == [True, False]


def test_nearest_is_the_distance_to_the_nearest():
    points, to = normal(30, seed=4), normal(40, seed=5)
    np.testing.assert_allclose(nearest(points, to), np.linalg.norm(points[:, None] - to, axis=2).min(1))
    assert nearest(to, to).max() == 0


def test_diversity_counts_kinds():
    kinds = np.eye(6)[:3].repeat(10, 0)
    assert vendi(kinds) == pytest.approx(3)
    assert vendi(kinds[:10]) == pytest.approx(1)
    kernel = np.linalg.eigvalsh(kinds @ kinds.T / len(kinds))
    kernel = kernel[kernel > 1e-12]
    assert vendi(kinds) == pytest.approx(np.exp(-(kernel * np.log(kernel)).sum()))
    assert vendi(np.zeros((4, 3))) == 1


def test_a_share_has_the_wilson_interval():
    told = share_of(np.arange(100) < 10)
    assert told.value == pytest.approx(0.1)
    assert (told.low, told.high) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert share_of(np.zeros(50, bool)).low == 0
    assert share_of(np.zeros(50, bool)).high > 0.05
    with pytest.raises(OutOfRange):
        share_of(np.zeros(0, bool))


def test_intervals_hold_the_truth_as_often_as_they_say():
    hit = {"mean": 0, "distance": 0}
    truth = Gaussian(np.zeros(4), np.eye(4))
    for seed in range(200):
        few = normal(60, seed=seed)
        hit["mean"] += inside(mean_of(few[:, 0]), 0.0)
        told = bootstrap(lambda drawn, x=few: frechet(Gaussian.of(x[drawn] + 0.5), truth), 60, resamples=60)
        hit["distance"] += inside(told, 1.0)
    assert 180 <= hit["mean"] <= 199
    assert 170 <= hit["distance"] <= 200


def inside(told: Figure, truth):
    return told.low <= truth <= told.high


def test_a_bootstrap_is_the_same_under_the_same_seed():
    x = normal(40)[:, 0]
    assert bootstrap(lambda drawn: x[drawn].mean(), 40, seed=3) == bootstrap(lambda drawn: x[drawn].mean(), 40, seed=3)
    assert bootstrap(lambda drawn: x[drawn].mean(), 40).value == pytest.approx(x.mean(), abs=0.03)


def test_a_bootstrap_takes_out_the_bias_of_few_samples():
    truth, plain, corrected = Gaussian(np.zeros(4), np.eye(4)), [], []
    for seed in range(30):
        few = normal(60, seed=seed)
        plain.append(frechet(Gaussian.of(few), truth))
        told = bootstrap(lambda drawn, x=few: frechet(Gaussian.of(x[drawn]), truth), 60, resamples=40)
        assert told.low <= told.value <= told.high
        corrected.append(told.value)
    assert np.mean(plain) > 0.1, "the truth is 0"
    assert abs(np.mean(corrected)) < np.mean(plain) / 3


def test_what_is_paired_is_told_by_its_difference():
    before = normal(100)[:, 0]
    told = paired_difference(before, before + 0.5)
    assert told.value == pytest.approx(0.5)
    assert told.high - told.low < 1e-12
    with pytest.raises(OutOfRange):
        paired_difference(before, before[:50])
    with pytest.raises(NotFinite):
        mean_of(np.array([1.0, np.inf]))
