"""The theorem (Kim et al. 2025, Eq. 4): the closed form over all rows, corrected, is the one over the safe rows.

Errors are relative to the norm of the truth or the rms radius of the rows, whichever is larger.
"""

import numpy as np
import pytest
import torch
from worlds import EPS, World, exact_gate, gap, like, log_beta, random_world, seeded, truth

from negindex import Exact
from negindex.errors import NotFinite
from negindex.sampler import PairedDenoiser, Ratio, SafeDenoiser

LEVELS = (0.01, 0.1, 0.5, 1.0, 5.0, 25.0, 100.0)
SHAPES = ((2,), (3, 5), (3, 8, 8), (4, 64, 64))  # D = 2, 15, 192, 16,384


def closed_form(world):
    """The denoiser E[x_0 | x] over all rows, summed in longdouble and rounded once."""

    def denoise(x, sigma):
        return like(truth(world.rows, x, 1, sigma).mean, x.double())

    return denoise


def noised(world, batch, s, seed):
    """Samples at noise level s, the first from a safe row, the last of several from an unsafe one."""
    start = torch.linspace(0, len(world.rows) - 1, batch).long() if batch > 1 else torch.tensor([0])
    rows = world.rows[start]
    return (rows + s * torch.randn(rows.shape, generator=seeded(seed), dtype=torch.float64)).to(rows.dtype)


def relative(got, world, x, s):
    """(B,) distance from the mean over the safe rows, and the largest |log-weight| that matters."""
    safe, unsafe = truth(world.safe, x, 1, s), truth(world.unsafe, x, 1, s)
    scale = np.maximum(np.linalg.norm(safe.mean.astype(float), axis=1), world.rms)
    return gap(got, safe.mean) / scale, max(safe.largest, unsafe.largest)


def safe_share(world, x, s):
    """(B,) 1 - pi."""
    return np.exp(-np.logaddexp(0, log_beta(world, x, 1, s))).astype(float)


def check_safe_denoiser(world, x, s, gate):
    s = torch.as_tensor(s, dtype=torch.float64).expand(len(x))
    defined = safe_share(world, x, s) > 1e-6
    assert defined[0]
    x, s = x[defined], s[defined]
    got = SafeDenoiser(closed_form(world), Exact(world.unsafe), gate, beta_max=float("inf"))(x, s)
    error, largest = relative(got, world, x, s)
    limit = 1e-9 + 4 * EPS * largest / safe_share(world, x, s)
    assert (error <= limit).all(), (error, limit)


def check_paired_denoiser(world, x, s):
    got = PairedDenoiser(closed_form(world), Exact(world.unsafe), Exact(world.safe), prior=world.prior)(x, s)
    error, largest = relative(got, world, x, s)
    assert (error <= 1e-9 + 4 * EPS * largest).all(), error


def spread_world(shape, s, dtype=torch.float64):
    """Rows as far apart as images are: at low noise one row has all the weight."""
    world = random_world(shape, safe=11, unsafe=6, seed=1)
    return World(world.safe.to(dtype), world.unsafe.to(dtype))


def close_world(shape, s, dtype=torch.float64):
    """Rows within a few s of each other: at every level several safe and unsafe ones share the weight."""
    world = random_world(shape, safe=11, unsafe=6, scale=2 * s / np.prod(shape) ** 0.5, seed=2)
    return World(world.safe.to(dtype), world.unsafe.to(dtype))


def near_copy_world(shape, s, dtype=torch.float64):
    """Each unsafe row lies within s of a safe one, and the rows far apart: pi stays away from 0 and 1."""
    world = spread_world(shape, s)
    nudge = close_world(shape, s).unsafe
    return World(world.safe.to(dtype), (world.safe[: len(nudge)] + nudge).to(dtype))


WORLDS = (spread_world, close_world, near_copy_world)


@pytest.mark.parametrize("make", WORLDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("s", LEVELS)
def test_safe_denoiser_is_the_closed_form_over_the_safe_rows(make, shape, s):
    world = make(shape, s)
    x = noised(world, 3, s, seed=3)
    check_safe_denoiser(world, x, s, exact_gate(world))


@pytest.mark.parametrize("make", WORLDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("s", LEVELS)
def test_paired_denoiser_is_the_closed_form_over_the_safe_rows_at_every_pi(make, shape, s):
    world = make(shape, s)
    x = noised(world, 3, s, seed=4)
    check_paired_denoiser(world, x, s)


@pytest.mark.parametrize("s", LEVELS)
def test_the_ratio_gate_with_the_true_prior_is_the_exact_gate(s):
    world = near_copy_world((3, 8, 8), s)
    x = noised(world, 4, s, seed=5)
    check_safe_denoiser(world, x, s, Ratio(Exact(world.safe), world.prior))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_theorem_holds_at_every_batch_size_and_with_a_level_a_sample(batch):
    world = random_world((3, 8, 8), safe=11, unsafe=6, seed=6)
    s = torch.logspace(-1, 1.5, batch, dtype=torch.float64)
    x = noised(world, batch, s.reshape(-1, 1, 1, 1), seed=7)
    check_safe_denoiser(world, x, s, exact_gate(world))
    check_paired_denoiser(world, x, s)


@pytest.mark.parametrize("make", WORLDS)
@pytest.mark.parametrize("s", [0.01, 0.5, 5.0, 100.0])
def test_float32_is_widened_before_it_is_subtracted(make, s):
    world = make((4, 32, 32), s, torch.float32)
    x = noised(world, 3, s, seed=8)
    assert x.dtype == world.safe.dtype == torch.float32
    check_safe_denoiser(world, x, s, exact_gate(world))
    check_paired_denoiser(world, x, s)


@pytest.mark.parametrize("s", LEVELS)
def test_paired_moves_all_the_way_where_the_sample_is_surely_unsafe(s):
    world = World(torch.full((3, 2), 1000.0 * s), torch.tensor([[0.0, 0.0], [s, 0.0]]))
    x = noised(World(world.unsafe, world.safe), 1, s, seed=9).double()
    assert safe_share(world, x, s)[0] == 0
    check_paired_denoiser(world, x, s)


def test_eq_4_without_a_cap_raises_where_it_divides_by_zero():
    world = World(torch.full((3, 2), 1000.0), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    denoise = SafeDenoiser(closed_form(world), Exact(world.unsafe), exact_gate(world), beta_max=float("inf"))
    with pytest.raises(NotFinite, match="divided by zero"):
        denoise(torch.zeros(1, 2), 1.0)


def test_stacked_corrections_take_both_sets_away():
    """Negating A, then B from what is left, is negating both: corrected denoisers are denoisers."""
    world = random_world((6,), safe=9, unsafe=6, seed=10)
    first, second = Exact(world.unsafe[:3]), Exact(world.unsafe[3:])
    left = World(world.safe, world.unsafe[3:])
    x = noised(world, 4, 3.0, seed=11)
    inner = PairedDenoiser(closed_form(world), first, Exact(left.rows), prior=3 / 15)
    outer = PairedDenoiser(inner, second, Exact(world.safe), prior=3 / 12)
    error, largest = relative(outer(x, 3.0), world, x, 3.0)
    assert (error <= 1e-9 + 8 * EPS * largest).all()


def test_the_answer_has_the_dtype_of_the_denoiser():
    world = random_world((6,), seed=12)
    x = noised(world, 2, 1.0, seed=13)
    half = SafeDenoiser(lambda x, sigma: closed_form(world)(x, sigma).half(), Exact(world.unsafe), exact_gate(world))
    assert half(x, 1.0).dtype == torch.float16
