"""TriggerShare: the share that it was asked for triggers it, and it says of which kernel and set it knows."""

import math

import pytest
import torch
from worlds import seeded

from negindex import LITERAL, Collection, Exact, Kernel, Mixture, NoiseLevel, Union
from negindex.errors import InvalidInput, KernelMismatch, OutOfRange
from negindex.held_out import HeldOut
from negindex.sampler import Correction, SafeDenoising, TriggerShare
from negindex.tools import digits

LEVELS = (0.3, 1.0, 3.0)


def clustered(rows, seed, centres=20, dimensions=24):
    """Rows around the same centres, whatever the seed; no two are near-duplicates."""
    where = 1.5 * torch.randn(centres, dimensions, generator=seeded(0), dtype=torch.float64)
    random = seeded(seed)
    which = torch.randint(centres, (rows,), generator=random)
    return where[which] + 0.5 * torch.randn(rows, dimensions, generator=random, dtype=torch.float64)


def noised(x, s, seed):
    return x + s * torch.randn(x.shape, generator=seeded(seed), dtype=x.dtype), NoiseLevel(1.0, s)


def fired(gate, negatives, x, s, kernel=LITERAL):
    x_t, level = noised(x, s, 5)
    odds = gate(x_t, level, negatives.posterior(x_t, level, kernel=kernel))
    return (odds > -math.inf).double().mean().item()


PROJECTED = Kernel([(0.3, 4.0), (3.0, 1.0)], torch.linalg.qr(torch.randn(24, 6, generator=seeded(9)))[0].T)


@pytest.mark.parametrize("kernel", [LITERAL, Kernel.floored(1.0), PROJECTED], ids=lambda k: k.name.split("-")[0])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_so_many_fresh_rows_of_the_population_trigger_it(kernel, share):
    negatives = Exact(clustered(1_500, 1))
    gate = TriggerShare.learned(negatives, share, kernel, queries=600)
    for s in (0.25, 0.5, 1.0, 1.7, 3.0, 5.0, 60.0):
        assert fired(gate, negatives, clustered(600, 2), s, kernel) == pytest.approx(share, abs=0.06)


def test_at_low_noise_other_images_do_not_and_at_high_noise_they_do():
    negatives, others = Exact(clustered(1_500, 1)), 1.6 * torch.randn(400, 24, generator=seeded(3), dtype=torch.float64)
    gate = TriggerShare.learned(negatives, 0.95, levels=(0.3, 50.0))
    assert fired(gate, negatives, others, 0.3) == 0
    assert fired(gate, negatives, others, 50.0) > 0.8


def test_on_real_digits():
    training, held_out = digits.load()
    negatives = Exact(training.rows)
    gate = TriggerShare.learned(negatives, 0.9, levels=(0.5, 1.0))
    for s in (0.5, 1.0):
        assert fired(gate, negatives, held_out.rows, s) == pytest.approx(0.9, abs=0.07)
    assert fired(gate, negatives, torch.rand(200, 1, 8, 8, generator=seeded(1)) * 2 - 1, 0.5) < 0.02


@pytest.mark.parametrize("width", [None, 6])
def test_held_out_values_are_those_of_the_rows_that_are_left(width):
    rows = clustered(300, 4)
    order = torch.randperm(300, generator=seeded(3))
    place, copies = order[:40], order[[0, 50, 60]]  # the first that is held out, and two that are not
    rows[copies] = rows[place[0]].clone()
    inside = PROJECTED.projection
    held = HeldOut.of(Exact(rows), rows.mean(0).float(), inside, 40, seed=3)
    told = held.log_means(0.7, width, 0.9)
    seen = rows if width is None else rows @ inside.T
    query = held.x.double() + 0.7 * held.e.double()
    if width is None:
        noise = torch.randn(40, 24, generator=_after_permutation()).double()
        query = rows[place] + 0.7 * noise
    else:
        query = query + rows.mean(0) @ inside.T
    for q in range(40):
        left = held.kept[q]
        values = -(query[q] - seen[left]).square().sum(1) / (2 * 0.9)
        assert told[q].item() == pytest.approx(values.logsumexp(0).item() - math.log(int(left.sum())), abs=1e-3)
    assert not held.kept[0, copies].any(), "near-duplicates are left out together"
    assert held.kept[1:, copies[1:]].all()


def _after_permutation():
    random = seeded(3)
    torch.randperm(300, generator=random)
    return random


def test_pure_noise_triggers_it():
    negatives = Exact(clustered(300, 1))
    gate = TriggerShare.learned(negatives, 0.5, levels=LEVELS)
    x_t, level = torch.zeros(1, 24), NoiseLevel(0.0, 1.0)
    assert gate(x_t, level, negatives.posterior(x_t, level)).item() == 0


def test_thresholds_are_those_of_one_kernel():
    negatives = Exact(clustered(300, 1))
    gate = TriggerShare.learned(negatives, 0.9, levels=LEVELS)
    x_t, level = noised(clustered(2, 2), 1.0, 1)
    with pytest.raises(KernelMismatch, match="learn them for that kernel"):
        gate(x_t, level, negatives.posterior(x_t, level, kernel=PROJECTED))


def test_it_is_learned_from_what_is_in_force_whatever_holds_the_rows(tmp_path):
    rows = clustered(260, 1).float()
    col = Collection.create(tmp_path / "a.set", (24,), "pixels", dtype="float32")
    col.add(rows[:250], [f"row-{i}" for i in range(250)], label="all")
    col.add(rows[250:], [f"gone-{i}" for i in range(10)])
    col.withdraw([f"gone-{i}" for i in range(10)], "a mistake")
    same = [Exact(rows[:250]), col, col.snapshot(), col.where(label="all"), Mixture.build(Exact(rows[:250]), LITERAL)]
    gates = [TriggerShare.learned(one, 0.9, levels=LEVELS, queries=50) for one in same]
    assert all(gate == gates[0] for gate in gates)


def test_what_it_cannot_be_learned_from_is_refused():
    few, many = Exact(clustered(199, 1)), Exact(clustered(300, 1))
    with pytest.raises(OutOfRange, match="199 rows are too few"):
        TriggerShare.learned(few, 0.9)
    with pytest.raises(InvalidInput, match="learn thresholds from one set"):
        TriggerShare.learned(Union([many, few]), 0.9)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(OutOfRange, match="give a share"):
            TriggerShare(share, ((1.0, 0.0), (2.0, 0.0)), LITERAL)
    with pytest.raises(OutOfRange, match="positive finite strength"):
        TriggerShare(0.9, ((1.0, 0.0), (2.0, 0.0)), LITERAL, eta=0.0)
    for levels in ((), ((1.0, 0.0),), ((2.0, 0.0), (1.0, 0.0)), ((0.0, 0.0), (1.0, 0.0))):
        with pytest.raises(OutOfRange, match="ascending"):
            TriggerShare(0.9, levels, LITERAL)


def test_a_correction_needs_no_reference_beside_it():
    negatives = Exact(clustered(400, 1))
    gate = TriggerShare.learned(negatives, 0.9, levels=LEVELS, eta=0.5)
    near, level = noised(negatives.posterior(clustered(1, 2), NoiseLevel(1.0, 0.3)).mean, 0.3, 1)
    x_t = torch.cat([near, near + 40])
    look = Correction(negatives, gate=gate, rule=SafeDenoising()).look(x_t, x_t, level)
    assert look.log_odds.tolist() == [math.log(0.5), -math.inf]
    assert look.correction[0] > 0
    assert look.correction[1] == 0
    assert str(gate) == "trigger share 0.9, eta 0.5, without a reference"
