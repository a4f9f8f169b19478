"""Noise levels and kernels: what is refused, how the bandwidth follows the level, and what float64 must bear."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import EPS, gap, seeded, truth

from negindex import LITERAL, Exact, Kernel, NoiseLevel
from negindex.errors import InvalidNoiseLevel, NotFinite, OutOfRange, ShapeMismatch
from negindex.kernel import squared_distances

INF, NAN = float("inf"), float("nan")
TEMPERATURES = [(0.5, 16.0), (2.0, 4.0), (8.0, 2.0)]


# -- noise levels ------------------------------------------------------------------------------

IMPOSSIBLE = [(1.0, 0.0), (1.0, -0.5), (1.0, NAN), (1.0, INF), (-0.1, 1.0), (NAN, 1.0), (INF, 1.0), (0.0, 0.0)]


@pytest.mark.parametrize(("alpha", "sigma"), IMPOSSIBLE)
def test_a_level_that_describes_no_noisy_sample_is_refused(alpha, sigma):
    with pytest.raises(InvalidNoiseLevel):
        NoiseLevel(alpha, sigma)
    with pytest.raises(InvalidNoiseLevel):
        NoiseLevel(torch.tensor([1.0, alpha]), torch.tensor([1.0, sigma]))


def test_a_clean_sample_is_refused_with_the_remedy():
    with pytest.raises(InvalidNoiseLevel, match="stop the look-ups one step earlier"):
        NoiseLevel(1.0, 0.0)


def test_levels_are_a_number_or_one_a_sample():
    with pytest.raises(ShapeMismatch, match=r"shape \(B,\)"):
        NoiseLevel(torch.ones(2, 2), 1.0)
    with pytest.raises(ShapeMismatch, match="3 noise levels for a batch of 2"):
        NoiseLevel(torch.ones(3), 1.0).expand(2)
    with pytest.raises(ShapeMismatch, match="noise levels for a batch"):
        Exact(torch.zeros(1, 2)).posterior(torch.zeros(2, 2), NoiseLevel(torch.ones(3), 1.0))
    assert NoiseLevel(torch.ones(1), 2.0).expand(3).sigma.tolist() == [2.0] * 3


def test_a_level_is_kept_in_float64_and_off_the_graph():
    level = NoiseLevel(torch.tensor(0.5, requires_grad=True), torch.tensor([1.0], dtype=torch.float16))
    assert (level.alpha.dtype, level.sigma.dtype) == (torch.float64, torch.float64)
    assert not level.alpha.requires_grad


def test_pure_noise_has_infinite_s():
    assert NoiseLevel(0.0, 1.0).s.item() == INF


def test_at_pure_noise_the_answer_is_the_plain_mean_whatever_is_asked():
    rows = torch.randn(7, 2, 3, generator=seeded(0), dtype=torch.float64)
    x = 1e3 * torch.randn(4, 2, 3, generator=seeded(1), dtype=torch.float64)
    for kernel in (LITERAL, Kernel(TEMPERATURES), Kernel(projection=torch.eye(6)[:2])):
        told = Exact(rows).posterior(x, NoiseLevel(0.0, 1.0), kernel=kernel)
        torch.testing.assert_close(told.mean, rows.mean(0).expand(4, -1, -1), rtol=0, atol=1e-15)
        assert told.log_norm.tolist() == pytest.approx([math.log(7)] * 4, abs=1e-15)
    mixed = Exact(rows).posterior(x[:2], NoiseLevel(torch.tensor([0.0, 1.0]), 1.0))
    assert mixed.log_norm[0].item() == pytest.approx(math.log(7), abs=1e-15)
    assert mixed.log_norm[1].item() < -1e3


# -- kernels -----------------------------------------------------------------------------------


@given(s=st.floats(1e-4, 1e4))
def test_the_literal_kernel_has_temperature_1(s):
    assert LITERAL.variance(NoiseLevel(1.0, s)).item() == pytest.approx(s * s, rel=1e-14)
    assert (LITERAL.name, LITERAL) == ("literal", Kernel())


@given(s=st.floats(0.5, 8.0))
def test_between_levels_the_log_variance_is_linear_in_log_s(s):
    variance = Kernel(TEMPERATURES).variance(NoiseLevel(1.0, s)).item()
    (low, tau_low), (high, tau_high) = TEMPERATURES[:2] if s <= 2 else TEMPERATURES[1:]
    share = math.log(s / low) / math.log(high / low)
    expected = (tau_low * low**2) ** (1 - share) * (tau_high * high**2) ** share
    assert variance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("s", "tau"), TEMPERATURES)
def test_at_a_level_the_temperature_is_the_given_one(s, tau):
    assert Kernel(TEMPERATURES).variance(NoiseLevel(1.0, s)).item() == pytest.approx(tau * s * s, rel=1e-14)


@given(s=st.floats(1e-6, 0.5))
def test_below_the_lowest_level_the_bandwidth_stays(s):
    assert Kernel(TEMPERATURES).variance(NoiseLevel(1.0, s)).item() == pytest.approx(16 * 0.5**2, rel=1e-12)


@given(s=st.floats(8.0, 1e6, exclude_min=True))
def test_above_the_highest_level_the_temperature_is_1(s):
    assert Kernel(TEMPERATURES).variance(NoiseLevel(1.0, s)).item() == pytest.approx(s * s, rel=1e-14)


def test_a_variance_depends_on_the_ratio_alone_and_is_one_a_sample():
    level = NoiseLevel(torch.tensor([1.0, 0.5, 0.25, 0.0]), torch.tensor([2.0, 1.0, 0.5, 1.0]))
    assert Kernel(TEMPERATURES).variance(level).tolist() == pytest.approx([16.0, 16.0, 16.0, INF])


def test_a_projection_weighs_by_what_it_keeps():
    """Rows that differ only where the projection looks away share the weight; the mean stays full-size."""
    projection = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 100.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5, -7.0]], dtype=torch.float64)
    told = Exact(rows).posterior(x, NoiseLevel(1.0, 1.0), kernel=Kernel(projection=projection))
    true = truth(rows[:, :2], x[:, :2], 1, 1)
    assert told.log_norm.item() == pytest.approx(float(true.log_norm[0]), abs=1e-12)
    weight = np.exp(true.log_weight - true.log_norm[:, None]).astype(float)
    np.testing.assert_allclose(told.mean.numpy(), weight @ rows.numpy(), atol=1e-12)


def test_a_projection_for_other_rows_is_refused():
    with pytest.raises(ShapeMismatch, match="a projection of 4 dimensions for rows of 3"):
        Exact(torch.zeros(1, 3)).posterior(
            torch.zeros(1, 3), NoiseLevel(1.0, 1.0), kernel=Kernel(projection=torch.eye(4))
        )


def test_kernels_are_equal_exactly_when_they_weigh_alike():
    projection = torch.randn(2, 4, generator=seeded(2), dtype=torch.float64)
    nudged = projection.clone()
    nudged[1, 3] = torch.nextafter(nudged[1, 3], torch.tensor(INF, dtype=torch.float64))
    made = [
        Kernel(),
        Kernel([(1.0, 2.0)]),
        Kernel([(1.0, 2.0 + 1e-15)]),
        Kernel([(2.0, 1.0)]),
        Kernel([(1.0, 2.0), (2.0, 1.0)]),
        Kernel(projection=projection),
        Kernel(projection=nudged),
        Kernel(projection=projection.reshape(4, 2)),
        Kernel([(1.0, 2.0)], projection),
    ]
    assert len(set(made)) == len({kernel.fingerprint for kernel in made}) == len({k.name for k in made}) == len(made)
    assert Kernel([(2.0, 1.0), (1.0, 2.0)], projection) == Kernel([(1.0, 2.0), (2.0, 1.0)], projection.clone())
    assert Kernel(projection=projection.T.contiguous().T) == Kernel(projection=projection)
    assert Kernel() != "literal"


REFUSED = {
    "tau = 0": (OutOfRange, [(1.0, 0.0)], None),
    "tau < 0": (OutOfRange, [(1.0, -1.0)], None),
    "tau = NaN": (OutOfRange, [(1.0, NAN)], None),
    "tau = inf": (OutOfRange, [(1.0, INF)], None),
    "s = 0": (OutOfRange, [(0.0, 1.0)], None),
    "s = NaN": (OutOfRange, [(NAN, 1.0)], None),
    "a projection that is a vector": (ShapeMismatch, [], torch.ones(3)),
    "a projection with NaN": (NotFinite, [], torch.tensor([[NAN, 1.0]])),
}


@pytest.mark.parametrize(("error", "temperatures", "projection"), REFUSED.values(), ids=REFUSED.keys())
def test_a_kernel_that_cannot_weigh_is_refused(error, temperatures, projection):
    with pytest.raises(error):
        Kernel(temperatures, projection)


# -- what float64 must bear --------------------------------------------------------------------


@pytest.mark.parametrize("s", [2.0, 1.0, 0.1, 0.01, 1e-4])
def test_no_underflow_where_the_linear_sum_is_zero(s):
    """4 × 64 × 64 unit-normal rows: the kernels of Eq. 6 are all zero in float64, their log-sum is not."""
    rows = torch.randn(20, 4, 64, 64, generator=seeded(3), dtype=torch.float64)
    x = rows[:2] + s * torch.randn(2, 4, 64, 64, generator=seeded(4), dtype=torch.float64)
    true = truth(rows, x, 1, s)
    assert (np.exp(true.log_weight.astype(float)) == 0).all()
    assert true.log_norm.max() < -1500
    told = Exact(rows).posterior(x, NoiseLevel(1.0, s))
    np.testing.assert_allclose(told.log_norm.numpy(), true.log_norm.astype(float), rtol=1e-12)
    assert (gap(told.mean, true.mean) <= 1e-9 * np.linalg.norm(true.mean.astype(float), axis=1)).all()


def test_no_underflow_for_a_sample_that_is_near_nothing():
    rows = torch.randn(20, 4, 64, 64, generator=seeded(5), dtype=torch.float64)
    x = torch.full((1, 4, 64, 64), 50.0, dtype=torch.float64)
    told, true = Exact(rows).posterior(x, NoiseLevel(1.0, 1e-3)), truth(rows, x, 1, 1e-3)
    assert told.log_norm.item() < -1e13
    assert told.log_norm.item() == pytest.approx(float(true.log_norm[0]), rel=1e-12)
    assert gap(told.mean, true.mean)[0] <= 1e-9 * float(rows[0].norm())


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
def test_no_cancellation_between_rows_that_differ_in_the_third_decimal(offset):
    """float32 rows 1e-3 apart at s = 0.03 weigh as they do in longdouble; ||y||² - 2 y z + ||z||² would not."""
    d = 4096
    base = offset + torch.randn(1, d, generator=seeded(6))
    rows = (base + 1e-3 * torch.randn(16, d, generator=seeded(7))).float()
    x = (rows[:3].double() + 0.03 * torch.randn(3, d, generator=seeded(8), dtype=torch.float64)).float()
    told, true = Exact(rows).posterior(x, NoiseLevel(1.0, 0.03), k=16), truth(rows, x, 1, 0.03)
    weight = np.sort(np.exp(true.log_weight - true.log_norm[:, None]).astype(float), axis=1)[:, ::-1]
    got = (told.heaviest.log_weight - told.log_norm[:, None]).exp().numpy()
    assert weight[:, 4].min() > 1e-3  # the law has no content where one row has all the weight
    np.testing.assert_allclose(got, weight, rtol=4 * EPS * true.largest + 1e-12)
    spread = float((rows.double() - rows.double().mean(0)).norm(dim=1).mean())
    assert (gap(told.mean, true.mean) <= 1e-9 * spread + 4 * EPS * float(rows[0].double().norm())).all()


@given(st.integers(1, 200), st.integers(0, 100))
def test_distances_are_those_of_direct_subtraction(d, seed):
    a, b = torch.randn(2, 3, d, generator=seeded(seed), dtype=torch.float64)
    expected = (a[:, None] - b[None]).square().sum(2)
    torch.testing.assert_close(squared_distances(a, b), expected, rtol=1e-13, atol=0)
    assert squared_distances(a, a).diagonal().tolist() == [0.0] * 3


def test_a_floored_kernel_is_literal_down_to_its_floor_and_no_narrower():
    levels = NoiseLevel(1.0, torch.tensor([0.01, 0.6, 0.7, 5.0]))
    assert Kernel.floored(0.6) == Kernel(temperatures=[(0.6, 1.0)])
    assert Kernel.floored(None) == LITERAL
    torch.testing.assert_close(
        Kernel.floored(0.6).variance(levels), torch.tensor([0.36, 0.36, 0.49, 25.0], dtype=torch.float64)
    )
    with pytest.raises(OutOfRange, match="positive and finite"):
        Kernel.floored(0.0)
