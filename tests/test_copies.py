"""The copy gate: a noised near-copy of one row fires, whatever else is in the set; a fresh image does not."""

import pytest
import torch
from diffusers import DDIMScheduler
from mixtures import indexed, principal, wide, wide_indexed
from worlds import ClosedForm, always, diffusers_on_numpy_2, never, random_world, seeded

from negindex import LITERAL, Collection, Exact, Kernel, NoiseLevel
from negindex.errors import NotFinite, OutOfRange
from negindex.sampler import CopyGate, Correction, Fraction, Ratio, SafeDenoising, Spell, guard, paired
from negindex.sampler.copies import CERTAIN, REACH, SHARE
from negindex.sampler.copies import noisiest as highest
from negindex.tools import digits

pytestmark = diffusers_on_numpy_2

INF, NAN = float("inf"), float("nan")
SETS = {64: (1, 1_000, 30_000), 16_384: (1, 100)}
COPIES = 12


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def noised(x, s, seed=3, alpha=0.7):
    """x_t and its level, at sigma / alpha = s."""
    return alpha * (x + s * normal(*x.shape, seed=seed)), NoiseLevel(alpha, alpha * s)


# -- what fires --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "rows"), [(d, n) for d, sizes in SETS.items() for n in sizes])
def test_copies_fire_and_fresh_images_do_not_however_large_the_set(dimensions, rows):
    kept = normal(rows, dimensions)
    negatives, gate = Exact(kept), CopyGate(SHARE * dimensions**0.5)
    copied, fresh = kept[:: max(1, rows // COPIES)][:COPIES], normal(COPIES, dimensions, seed=1)
    duplicate = copied + 0.5 * gate.radius / dimensions**0.5 * normal(*copied.shape, seed=2)
    for share in (1e-3, 0.3, 0.7, 0.9999):
        s = share * highest(gate.radius, dimensions)
        for images in (copied, duplicate):
            found = gate.find(*noised(images, s), negatives)
            assert found.fires.all(), s
            assert torch.equal(found.rows, copied)
        silent = gate.find(*noised(fresh, s), negatives)
        assert not silent.fires.any(), s
        assert not silent.rows.any()


def test_by_an_index_copies_fire_as_they_do_by_a_scan_however_large_the_set():
    """Fifty rows, each alone of its kind: their copies at the levels where the gate speaks, and fresh images."""
    few, fired, false = Exact(wide(1_000)), {}, {}
    gate = CopyGate().sized(few, None)
    assert CopyGate().sized(wide_indexed(1_000), None).radius == pytest.approx(gate.radius, rel=1e-9)
    planted, fresh = wide(50).double(), wide(50, seed=1).double()  # the first of either set
    for count in (1_000, 20_000):
        fired[count], false[count] = [], []
        for share in (0.01, 0.3, 0.7, 0.9999):
            s = share * highest(gate.radius, 1024)
            for seed in range(2):
                found = gate.find(*noised(planted, s, seed), wide_indexed(count))
                fired[count].append(found.fires)
                assert torch.equal(found.rows[found.fires], planted[found.fires])
            false[count].append(gate.find(*noised(fresh, s), wide_indexed(count)).fires)
            if count == 1_000:
                assert torch.equal(found.fires, gate.find(*noised(planted, s, 1), few).fires)
    small, large = (torch.cat(fired[count]) for count in fired)
    assert torch.equal(small, large)
    assert small.double().mean() >= 0.99
    assert not torch.cat([*false[1_000], *false[20_000]]).any()


def test_on_real_digits_copies_fire_and_at_most_one_fresh_digit_in_a_thousand():
    """The default: all training digits in force, then the 8s alone with the others as a reference."""
    training, held_out = digits.load()
    eights = training.only(training.classes == 8).rows
    reference = Exact(training.only(training.classes != 8).rows)
    for rows, benign, radius in ((training.rows, None, 0.65), (eights, reference, 0.35)):
        negatives = Exact(rows)
        gate = CopyGate().sized(negatives, benign)
        assert gate.radius == pytest.approx(radius, abs=0.01)
        assert gate.reach == pytest.approx(0 if benign is None else 1.531, abs=0.01)
        for share in (0.1, 0.5, 0.9999):
            s = share * highest(gate.radius, 64)
            fired = [gate.find(*noised(held_out.rows, s, seed), negatives, benign).fires for seed in range(6)]
            assert torch.cat(fired).double().mean() <= 0.001
            copies = gate.find(*noised(rows.double(), s), negatives, benign)
            assert copies.fires.all()
        if benign is not None:
            others = training.only(training.classes != 8).rows
            for s in (0.1, 0.5 * highest(gate.reach, 64), 0.9999 * highest(gate.reach, 64)):
                assert not gate.find(*noised(others, s), negatives, benign).fires.any()


def test_with_the_ratio_alone_the_same_copy_drowns():
    """A kernel wide enough to generalise: P(unsafe) of one noised copy, in sets that grow."""
    kernel, reference, copy = Kernel([(4.0, 1.0)]), Exact(normal(2_000, 64, seed=5)), normal(1, 64, seed=6)
    x_t, level = noised(copy, 0.05)
    alone, beside = [], []
    for rows in SETS[64]:
        negatives = Exact(torch.cat([copy, normal(rows - 1, 64, seed=7)]))
        for said, copies in ((alone, None), (beside, CopyGate(1.2))):
            look = Correction(negatives, reference, 0.1, kernel=kernel, copies=copies).look(x_t, x_t, level)
            said.append(torch.sigmoid(look.log_odds).item())
    assert alone[0] > 0.8
    assert alone == sorted(alone, reverse=True)
    assert alone[-1] == pytest.approx(0.1, abs=0.01), "the prior: it has drowned"
    assert beside == [1.0, 1.0, 1.0]


def test_it_speaks_where_noise_leaves_the_radius_to_be_seen(monkeypatch):
    gate = CopyGate(1.2)
    s = highest(1.2, 64)
    level = NoiseLevel(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.1 * s, 0.999 * s, 1.001 * s, 1.0]))
    assert gate.speaks(level, 64).tolist() == [True, True, False, False]
    rows = normal(4, 64)
    assert gate.find(level.alpha[:, None] * rows, level, Exact(rows)).fires.tolist() == [True, True, False, False]
    monkeypatch.setattr(Exact, "near", None)  # above it the set is not even asked
    assert not gate.find(rows, NoiseLevel(1.0, 1.001 * s), Exact(rows)).fires.any()


@pytest.mark.parametrize("radius", [-1.0, INF, NAN])
def test_a_radius_that_is_no_distance_is_refused(radius):
    with pytest.raises(OutOfRange, match="or None to take it from the data"):
        CopyGate(radius)


@pytest.mark.parametrize("reach", [-1.0, INF, NAN])
def test_a_reach_that_is_no_distance_or_has_no_radius_is_refused(reach):
    with pytest.raises(OutOfRange, match="reach"):
        CopyGate(1.0, reach)
    with pytest.raises(OutOfRange, match="a radius with it"):
        CopyGate(reach=1.0)


# -- beyond the radius -------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9999])
def test_beyond_the_radius_an_index_hears_what_a_scan_hears(share):
    """Images that lie up to the reach from a row, with other rows as near."""
    given = wide(1_000) / 5
    told_by = indexed(given, Kernel(projection=principal(given, 12)))
    gate, seeds = CopyGate(0.2, 2.0), range(3)
    fired = []
    for seed in seeds:
        off = torch.nn.functional.normalize(normal(40, 1024, seed=seed), dim=1) * torch.linspace(0, 2, 40)[:, None]
        x_t, level = noised(given[:40].double() + off.reshape(40, 1, 32, 32), share * highest(2.0, 1024), seed)
        told, true = (gate.find(x_t, level, negatives, kernel=LITERAL) for negatives in (told_by, Exact(given)))
        assert torch.equal(told.fires, true.fires)
        assert torch.equal(told.rows, true.rows)
        fired.append(told.fires)
    assert 0 < torch.cat(fired).double().mean() < 1


def crowd(count, seed):
    """Images that vary in 6 of 64 numbers, and hardly in the others: all lie near some row."""
    return torch.cat([normal(count, 6, seed=seed), 0.05 * normal(count, 58, seed=seed + 1)], 1)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def test_in_a_crowd_copies_that_are_less_exact_than_fresh_images_are_near_fire_and_these_do_not():
    kept, benign, fresh = crowd(2_000, 1), Exact(crowd(2_000, 3)), crowd(2_000, 5)
    negatives = Exact(kept)
    gate = CopyGate().sized(negatives, benign)
    off = normal(300, 64, seed=7)
    off[:, :6] = 0  # a decoder's loss, away from where images vary
    overshot = kept[:300] - benign.posterior(kept[:300], NoiseLevel(1.0, gate.reach)).mean  # as guidance does
    off = unit(unit(off) + unit(overshot))
    copied = kept[:300] + 0.8 * gate.reach * off
    level = NoiseLevel(1.0, 0.02)
    assert CopyGate(gate.reach).find(fresh, level, negatives).fires.double().mean() > 0.02
    assert not CopyGate(gate.radius).find(copied, level, negatives).fires.any()
    assert gate.find(copied, level, negatives, benign).fires.double().mean() > 0.8
    found = gate.find(fresh, level, negatives, benign)
    assert found.fires.double().mean() <= 0.001
    assert not found.rows[~found.fires].any()


def test_within_the_reach_a_row_with_nothing_near_it_fires():
    benign, row = Exact(normal(500, 64, seed=1)), torch.full((1, 64), 5.0, dtype=torch.float64)
    gate = CopyGate().sized(Exact(row), benign)
    near = row + 0.9 * gate.reach * unit(normal(20, 64, seed=2))
    assert gate.find(near, NoiseLevel(1.0, 0.01), Exact(row), benign).fires.all()


def test_what_explains_a_sample_is_seen_through_the_kernel_that_the_guard_weighs_by():
    """A row alone of its kind, and a sample between it and the middle of all: only a wide kernel sees that middle."""
    benign, row = Exact(normal(500, 64, seed=1)), torch.full((1, 64), 5.0, dtype=torch.float64)
    gate, level = CopyGate().sized(Exact(row), benign), NoiseLevel(1.0, 0.01)
    near = row * (1 - 0.8 * gate.reach / row.norm())
    everything = Kernel([(0.01, 1e6)])
    for kernel, fires in ((None, True), (everything, False)):
        assert gate.find(near, level, Exact(row), benign, kernel=kernel).fires.all() == fires
        assert gate.begin().find(near, level, Exact(row), benign, kernel).fires.all() == fires
        call = Correction(Exact(row), benign, 0.1, paired, kernel=kernel, copies=gate).begin()
        assert call.look(near, near, level).copied.all() == fires


def test_a_reference_that_holds_near_copies_of_rows_does_not_vouch_for_them():
    rows = normal(200, 64)
    gate = CopyGate().sized(Exact(rows), Exact(normal(500, 64, seed=1)))
    tainted = Exact(torch.cat([normal(500, 64, seed=1), rows + 0.5 * gate.radius / 8 * normal(200, 64, seed=2)]))
    for share in (0.1, 0.9):
        s = share * highest(gate.radius, 64)
        assert gate.find(*noised(rows, s), Exact(rows), tainted).fires.all()


def test_in_one_call_a_sample_that_copied_a_row_is_held_to_its_reach_and_a_new_call_forgets():
    kept, benign = crowd(500, 1), Exact(crowd(500, 3))
    gate = CopyGate().sized(Exact(kept), benign)
    level = NoiseLevel(1.0, 0.02)
    towards = benign.posterior(kept, NoiseLevel(1.0, gate.reach)).mean - kept
    turned = kept + 0.6 * gate.reach * unit(towards)
    of_itself = Exact(kept).near(turned, k=1).ids[:, 0] == torch.arange(len(kept))
    some = (of_itself & ~gate.find(turned, level, Exact(kept), benign).fires).nonzero()[:8, 0]
    z, turned, call = kept[some], turned[some], gate.begin()
    assert len(z) == 8
    assert not call.find(turned, level, Exact(kept), benign).fires.any()
    assert call.find(z, level, Exact(kept), benign).fires.all()
    held = call.find(turned, level, Exact(kept), benign)
    assert held.fires.all()
    assert torch.equal(held.rows, z)
    other = call.find(turned.roll(1, 0), level, Exact(kept), benign)  # near a row, and not the one that it copied
    assert not other.fires.any()
    assert call.find(turned, level, Exact(kept), benign).fires.all()
    assert not gate.begin().find(turned, level, Exact(kept), benign).fires.any()
    assert not call.find(turned[:3], level, Exact(kept), benign).fires.any(), "another batch"


# -- its radius --------------------------------------------------------------------------------


def test_the_radius_is_a_share_of_how_far_images_scatter():
    rows, benign = normal(50, 6), 3 * normal(40, 6, seed=1)
    rms = [float((x - x.mean(0)).square().sum(1).mean().sqrt()) for x in (rows, benign)]
    alone, beside = CopyGate().sized(Exact(rows), None), CopyGate().sized(Exact(rows), Exact(benign))
    assert (alone.radius, alone.reach) == (pytest.approx(SHARE * rms[0]), 0)
    assert (beside.radius, beside.reach) == (pytest.approx(CERTAIN * rms[1]), pytest.approx(REACH * rms[1]))
    assert CopyGate(0.3).sized(Exact(rows), Exact(benign)) == CopyGate(0.3)


def test_one_takedown_alone_is_found_by_its_own_contrast():
    """A set of one, without a reference, on real digits: its noised copies fire, other digits do not."""
    training, held_out = digits.load()
    for row in training.rows[:5]:
        flat = row.double() - row.double().mean()
        for alone in (Exact(row[None]), Exact(torch.stack([row] * 3)), Exact(torch.stack([row, row + 1e-3]))):
            gate = CopyGate().sized(alone, None)
            assert gate.radius == pytest.approx(SHARE * float(flat.norm()), rel=1e-3)
            s = 0.9 * highest(gate.radius, 64)
            assert gate.find(*noised(row.double()[None].expand(20, -1, -1, -1), s), alone).fires.all()
            assert not gate.find(*noised(held_out.rows, s), alone).fires.any()


def test_contrast_is_counted_channel_by_channel():
    image = torch.zeros(2, 4, 4, dtype=torch.float64)
    image[1] = 5.0  # two channels, each flat
    assert CopyGate().sized(Exact(image[None]), None).radius == 0
    image[0, 0, 0] = 4.0
    assert CopyGate().sized(Exact(image[None]), None).radius == pytest.approx(SHARE * 15**0.5)


def test_a_flat_image_alone_has_no_scale_and_a_radius_that_is_named_is_heard():
    row = Exact(torch.full((1, 64), 0.5, dtype=torch.float64))
    x_t, level = noised(torch.full((1, 64), 0.5), 0.01)
    assert not CopyGate().sized(row, None).find(x_t, level, row).fires.any()
    assert CopyGate().sized(row, Exact(normal(30, 64, seed=1))).find(x_t, level, row).fires.all()
    assert CopyGate(0.5).find(x_t, level, row).fires.all()
    with pytest.raises(OutOfRange, match="sized"):
        CopyGate().find(x_t, level, row)


# -- in a correction ---------------------------------------------------------------------------

ROWS, BENIGN = normal(9, 1, 8, 8), normal(20, 1, 8, 8, seed=1)
X = torch.cat([ROWS[4:5], BENIGN[:1], ROWS[7:8]])
X_T, LEVEL = noised(X, 0.05)


def look(rule=None, gate=None, **options):
    return Correction(Exact(ROWS), Exact(BENIGN), gate=gate, rule=rule, **options).look(X_T, X, LEVEL)


def test_the_rule_sees_the_copied_row_and_certainty():
    seen = []
    told = look(rule=lambda view: seen.append(view) or view.x0, gate=never, copies=CopyGate(1.2))
    (view,) = seen
    assert told.copied.tolist() == [True, False, True]
    assert told.log_odds.tolist() == view.log_odds.tolist() == [INF, -INF, INF]
    assert torch.equal(view.unsafe.mean[[0, 2]], ROWS[[4, 7]])
    plain = Exact(ROWS).posterior(X_T, LEVEL)
    assert torch.equal(view.unsafe.mean[1], plain.mean[1])
    assert torch.equal(told.unsafe.mean, plain.mean)
    assert (view.unsafe.captured == 1).all()


def test_what_is_no_copy_is_treated_as_without_the_gate():
    for rule in (paired, SafeDenoising()):
        with_gate, without = look(rule, copies=CopyGate(1.2)), look(rule)
        assert torch.equal(with_gate.delta[1], without.delta[1])
        assert with_gate.log_odds[1] == without.log_odds[1]
        assert not without.copied.any()


def test_paired_swaps_the_copy_for_the_reference_and_eq_4_keeps_its_cap():
    told = look(paired, never, copies=CopyGate(1.2))
    reference = Exact(BENIGN).posterior(X_T, LEVEL).mean
    torch.testing.assert_close(told.delta[0], reference[0] - ROWS[4])
    x0 = X + 0.1
    capped = Correction(Exact(ROWS), gate=never, rule=SafeDenoising(2.0), copies=CopyGate(1.2)).look(X_T, x0, LEVEL)
    torch.testing.assert_close(capped.delta[2], 2.0 * (x0[2] - ROWS[7]))
    with pytest.raises(NotFinite, match="no image was changed"):
        look(SafeDenoising(INF), never, copies=CopyGate(1.2))


def test_it_is_heard_outside_the_window_too():
    """The window limits the concept gate; a takedown does not wait for it."""
    told = look(paired, always, window=lambda moment: moment.level.s > 1, copies=CopyGate(1.2))
    assert told.log_odds.tolist() == [INF, -INF, INF]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_takedown_fires_from_its_version_on_and_a_withdrawn_row_never(tmp_path, dtype):
    row = ROWS[:1].to(dtype)
    x_t, level = noised(row.double(), 0.02)
    with Collection.create(tmp_path / "set", (1, 8, 8), "pixels", dtype=str(dtype).removeprefix("torch.")) as negatives:
        negatives.add(ROWS[1:], list("bcdefghi"))
        correction, fired = Correction(negatives, Exact(BENIGN), copies=CopyGate()), []
        for change in (lambda: None, lambda: negatives.add(row, ["a"]), lambda: negatives.withdraw(["a"], "notice")):
            change()
            fired.append(correction.pin().look(x_t.to(dtype), x_t, level).copied.item())
    assert fired == [False, True, False]


# -- in a guard --------------------------------------------------------------------------------

WORLD = random_world(safe=9, unsafe=5)


def run(**options):
    """A guarded run of a model that knows one negative row and nothing else; the receipts too."""
    pipe = ClosedForm(WORLD.unsafe[:1], DDIMScheduler(clip_sample=False))
    with guard(pipe, Exact(WORLD.unsafe), Exact(WORLD.safe), **options) as guarded:
        sample = pipe(batch=2, steps=8)
    return (sample - WORLD.unsafe[0]).flatten(1).norm(dim=1), guarded.receipts


def test_a_guard_has_it_on_and_its_receipts_say_so():
    away, receipts = run(gate=never)
    still, without = run(gate=never, copies=None)
    assert (still < 0.05).all()
    assert (away > 1).all()
    for receipt in receipts:
        copied = [step.copied for step in receipt.steps]
        assert any(copied)
        assert not copied[0]
        assert [step.log_odds == INF for step in receipt.steps] == copied
        rms = Exact(WORLD.safe).moments().rms
        assert receipt.copies == str(CopyGate(CERTAIN * rms, REACH * rms))
        assert receipt.copies.startswith(f"within {CERTAIN * rms:g}, or {REACH * rms:g} where")
    assert {(receipt.copies, any(step.copied for step in receipt.steps)) for receipt in without} == {("none", False)}


def test_spell_takes_a_copy_out_of_its_ball_though_the_window_has_closed():
    away, receipts = run(gate=never, rule=Spell(2.0), window=Fraction(0.0, 0.25), copies=CopyGate(1.0))
    assert all(any(step.copied for step in receipt.steps) for receipt in receipts)
    assert (away > 1).all()


def test_a_ratio_that_was_sure_of_the_contrary_is_overruled():
    x_t, level = noised(WORLD.unsafe[:1], 0.01)
    gate = Ratio(Exact(WORLD.safe), 1e-300)
    look = Correction(Exact(WORLD.unsafe), gate=gate, rule=paired, copies=CopyGate()).pin().look(x_t, x_t, level)
    assert look.copied.all()
