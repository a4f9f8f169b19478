"""Which kernel a set calls for: known where the population is, and never worse than the literal one by much."""

import functools
import math

import pytest
import torch
from mixtures import noised, off, rms
from worlds import seeded

import negindex.calibration
import negindex.held_out
from negindex import LITERAL, Exact, Kernel, Mixture, NoiseLevel
from negindex.calibration import FEWEST_ROWS, calibrate
from negindex.errors import OutOfRange, ShapeMismatch, SpaceMismatch
from negindex.head import Effort
from negindex.projection import principal_directions
from negindex.tools.digits import load

D = 96
SCALE = torch.arange(1, D + 1, dtype=torch.float64).pow(-0.7)  # of a normal population, direction by direction
LEVELS = (0.1, 0.3, 0.6, 1.5)
WIDTHS = (4, 8, 16)


def population(count, seed=0):
    return (torch.randn(count, D, generator=seeded(seed), dtype=torch.float64) * SCALE).float()


def posterior_mean(y, s):
    """E[x_0 | y] of the population, known in closed form."""
    return y * SCALE.square() / (SCALE.square() + s * s)


def true_error(given, kernel, s):
    """Root mean square of the kernel mean's distance from the true posterior mean, over fresh samples."""
    y = noised(population(100, seed=50), s, seed=51)
    told = Exact(given).posterior(y, NoiseLevel(1.0, s), kernel=kernel)
    return float((told.mean - posterior_mean(y, s)).square().sum(1).mean().sqrt())


def scatter(s):
    """Mean square distance of x_0 from its posterior mean: what no kernel can know."""
    return float((SCALE.square() * s**2 / (SCALE.square() + s**2)).sum())


@functools.cache
def calibration():
    return calibrate(Exact(population(3000)), levels=LEVELS, dimensions=WIDTHS)


def test_the_chosen_kernel_is_nearly_the_best_and_the_literal_one_is_not():
    """As predictions of x_0, against every candidate at every temperature; and against the true posterior mean."""
    given, learned = population(3000), calibration()
    flat = given - given.mean(0)
    directions = principal_directions(flat, torch.full((3000,), 1 / 3000), max(WIDTHS), 0)
    for level in learned.levels:
        s = level.s
        kernels = [Kernel([(s, 2.0**p)], directions[:w]) for w in WIDTHS for p in range(7)]
        kernels += [Kernel([(s, 2.0**p)]) for p in range(7)]
        best = min(true_error(given, kernel, s) for kernel in kernels)
        chosen = true_error(given, learned.kernel, s)
        assert math.hypot(chosen, scatter(s) ** 0.5) <= 1.04 * math.hypot(best, scatter(s) ** 0.5), s
        if s < 0.5:
            assert true_error(given, LITERAL, s) >= 1.3 * chosen, s


def test_temperatures_are_the_best_for_their_projection():
    """To one step of 2: errors about the best temperature are flat."""
    given, learned = population(3000), calibration()
    for level in learned.levels:
        errors = {
            p: true_error(given, Kernel([(level.s, 2.0**p)], learned.kernel.projection), level.s) for p in range(10)
        }
        best = min(errors, key=errors.get)
        assert abs(best - math.log2(level.tau)) <= 1, (level, errors)


def test_errors_told_are_the_true_ones_and_what_no_kernel_could_know():
    """The held-out row itself scatters about the posterior mean: squared, that much comes on top."""
    given, learned = population(3000), calibration()
    for level in learned.levels:
        for told, kernel in ((level.chosen, learned.kernel), (level.literal, LITERAL)):
            expected = math.sqrt(true_error(given, kernel, level.s) ** 2 + scatter(level.s)) / rms(given)
            assert told == pytest.approx(expected, rel=0.12)
        assert level.mean == pytest.approx(1, rel=0.12)
        assert 1 <= level.effective <= 3000
    assert (learned.rows, learned.reference_rows) == (3000, 0)
    assert learned.rms == pytest.approx(rms(given), rel=1e-3)


def test_fewer_rows_call_for_a_higher_temperature():
    few = calibrate(Exact(population(300)), levels=LEVELS, dimensions=WIDTHS[1:2])
    many = calibrate(Exact(population(3000)), levels=LEVELS, dimensions=WIDTHS[1:2])
    pairs = [(one.tau, other.tau) for one, other in zip(few.levels, many.levels, strict=True)]
    assert all(one >= other for one, other in pairs)
    assert any(one > other for one, other in pairs)


def test_in_a_large_set_projections_compete_over_some_rows_and_temperatures_are_of_all(monkeypatch):
    given = Exact(population(3000))
    monkeypatch.setattr(negindex.calibration, "_TRIED", 300)
    large = calibrate(given, levels=LEVELS, dimensions=WIDTHS)
    assert (large.kernel, large.levels) == (calibration().kernel, calibration().levels)
    few = calibrate(Exact(population(300)), levels=LEVELS, dimensions=WIDTHS[-1:])
    assert [one.tau for one in few.levels] != [one.tau for one in large.levels]


def test_near_duplicates_do_not_shrink_the_temperature(monkeypatch):
    """Every row three times, nearly: they predict each other too well, unless they are held out together."""
    once = population(1000)
    nearly = 0.02 * rms(once) / math.sqrt(D)
    thrice = torch.cat([once, *(once + nearly * population(1000, seed=i) / SCALE.float() for i in (1, 2))])
    options = {"levels": LEVELS[:2], "dimensions": (16,)}
    alone, planted = (calibrate(Exact(given), **options).levels for given in (once, thrice))
    for one, other in zip(alone, planted, strict=True):
        assert 0.5 <= other.tau / one.tau <= 2
    monkeypatch.setattr(negindex.held_out, "NEAR_DUPLICATE", 1e-3)  # only the row itself
    fooled = calibrate(Exact(thrice), **options).levels
    assert all(other.tau <= one.tau / 2 for one, other in zip(alone, fooled, strict=True))
    assert all(other.chosen < 0.6 * one.chosen for one, other in zip(alone, fooled, strict=True))


def two_sets(other_scale):
    """300 negatives that vary in directions 0 to 3, 3,000 reference rows that vary in 4 to 7."""
    white = 0.05 * torch.randn(3300, D, generator=seeded(3), dtype=torch.float64)
    white[:300, :4] += torch.randn(300, 4, generator=seeded(4), dtype=torch.float64)
    white[300:, 4:8] += other_scale * torch.randn(3000, 4, generator=seeded(5), dtype=torch.float64)
    return Exact(white[:300].float()), Exact(white[300:].float())


def test_the_projection_sees_what_tells_the_two_sets_apart():
    negatives, reference = two_sets(1.0)
    learned = calibrate(negatives, reference, levels=(0.3, 1.0), dimensions=(2, 4, 8))
    inside = learned.kernel.projection
    assert len(inside) == 8
    assert inside[:, :8].square().sum() > 7.8  # of 8 directions, the very ones in which the sets vary
    torch.testing.assert_close(inside @ inside.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-9)
    alone = calibrate(negatives, levels=(0.3, 1.0), dimensions=(2, 4, 8)).kernel.projection
    assert len(alone) == 4
    assert alone[:, :4].square().sum() > 3.9
    assert (learned.rows, learned.reference_rows) == (300, 3000)


def test_both_sets_count_alike_whatever_their_sizes(monkeypatch):
    """By number of rows the reference would have the leading directions; by set, the negatives vary more."""
    monkeypatch.setattr("negindex.calibration._WHOLE", 0)
    inside = calibrate(*two_sets(0.7), levels=(0.3,), dimensions=(4,)).kernel.projection
    assert inside[:, :4].square().sum() > 3.9


def test_the_kernel_has_the_temperatures_of_the_table():
    learned = calibration()
    for level in learned.levels:
        assert learned.kernel.variance(NoiseLevel(1.0, level.s)).item() == pytest.approx(level.tau * level.s**2)
    lowest, highest = learned.levels[0], learned.levels[-1]
    below, above = learned.kernel.variance(NoiseLevel(1.0, torch.tensor([lowest.s / 10, highest.s * 2]))).tolist()
    assert below == pytest.approx(lowest.tau * lowest.s**2)
    assert above == pytest.approx(4 * highest.s**2)
    table = learned.table()
    assert table[0].split() == ["s", "tau", "error", "literal", "mean", "effective", "rows"]
    assert [float(line.split()[0]) for line in table[1:]] == list(LEVELS)
    assert learned.fingerprint == learned.kernel.fingerprint


def test_the_same_seed_calibrates_the_same_whatever_else_is_random():
    given = Exact(population(400))
    torch.manual_seed(1)
    one = calibrate(given, levels=LEVELS[:2], dimensions=(4, 8), seed=3)
    torch.rand(5)
    two = calibrate(given, levels=LEVELS[:2], dimensions=(4, 8), seed=3)
    assert (one.kernel, one.levels) == (two.kernel, two.levels)
    assert calibrate(given, levels=LEVELS[:2], dimensions=(4, 8), seed=4).levels != one.levels


def test_all_dimensions_compete_where_the_set_is_small(monkeypatch):
    """White rows lie in no subspace: a projection would lose most of what there is to predict."""
    white = torch.randn(12, 24, generator=seeded(5)).repeat_interleave(40, 0)  # twelve places
    white = white + 0.4 * torch.randn(480, 24, generator=seeded(6))
    learned = calibrate(Exact(white), levels=(0.5, 1.0), dimensions=(2, 4))
    assert learned.kernel.projection is None
    monkeypatch.setattr("negindex.calibration._WHOLE", 10)
    assert len(calibrate(Exact(white), levels=(0.5, 1.0), dimensions=(2, 4)).kernel.projection) == 4


# -- real images -------------------------------------------------------------------------------


@functools.cache
def digits():
    training, held = load()
    levels = (0.3, 1.0, 2.0, 4.0, 8.0)
    return training.rows, held.rows, calibrate(Exact(training.rows), levels=levels, dimensions=(16, 32))


def test_digits_are_denoised_better_than_by_the_literal_kernel():
    """Held-out digits, which the calibration has never seen, at every level."""
    given, fresh, learned = digits()
    for level in learned.levels:
        y = noised(fresh, level.s, seed=7)
        wrong = [
            float(
                (Exact(given).posterior(y, NoiseLevel(1.0, level.s), kernel=kernel).mean - fresh)
                .square()
                .sum((1, 2, 3))
                .mean()
            )
            for kernel in (learned.kernel, LITERAL)
        ]
        assert math.sqrt(wrong[0]) <= 1.02 * math.sqrt(wrong[1])
        assert math.sqrt(wrong[0]) / learned.rms == pytest.approx(level.chosen, rel=0.15)
    assert learned.levels[0].chosen < 0.9 * learned.levels[0].literal


def test_a_mixture_of_digits_keeps_to_what_it_states():
    given, fresh, learned = digits()
    mixture = Mixture.build(Exact(given), learned.kernel, efforts=[Effort(300, 32)], scan_elements=0)
    holds, times = [], []
    for s in (0.3, 1.0, 4.0, 8.0):
        y, level = noised(fresh[:100], s, seed=8), NoiseLevel(1.0, s)
        told = mixture.posterior(y, level, kernel=learned.kernel)
        wrong = off(told, Exact(given).posterior(y, level, kernel=learned.kernel), rms(given))
        holds.append(told.error >= wrong)
        times.append(told.error / wrong.clamp_min(1e-3))
        assert wrong.mean() < 0.05, s
    assert torch.cat(holds).double().mean() >= 0.95
    assert torch.cat(times).median() <= 5
    assert max(float(one.median()) for one in times) <= 10  # a few clusters of many kinds of digit, at the worst level


# -- what it refuses ---------------------------------------------------------------------------

GIVEN = population(FEWEST_ROWS)
REFUSED = {
    "too few rows": (OutOfRange, "use the literal kernel with the copy gate", [GIVEN[1:]], {}),
    "too small a reference": (OutOfRange, "199 rows are too few", [GIVEN, GIVEN[1:]], {}),
    "rows all alike": (OutOfRange, "only near-duplicates beside it", [GIVEN[:1].repeat(300, 1)], {}),
    "another shape": (ShapeMismatch, "give sets of one shape", [GIVEN, GIVEN[:, 1:]], {}),
    "no levels": (OutOfRange, "give noise levels", [GIVEN], {"levels": ()}),
    "a level of nought": (OutOfRange, "positive and finite", [GIVEN], {"levels": (0.0, 1.0)}),
    "no dimension": (OutOfRange, r"dimensions = \[0\]", [GIVEN], {"dimensions": (0,)}),
    "no queries": (OutOfRange, "queries = 0", [GIVEN], {"queries": 0}),
}


@pytest.mark.parametrize(("error", "words", "sets", "options"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_calibrated_on_is_refused(error, words, sets, options):
    with pytest.raises(error, match=words):
        calibrate(*map(Exact, sets), **options)


def test_sets_of_two_spaces_are_refused():
    with pytest.raises(SpaceMismatch, match="give sets of one space"):
        calibrate(Exact(GIVEN), Exact(GIVEN, space="vae 1"))
