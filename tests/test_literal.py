"""The literal kernel over a large set: what is said without reading every row is what a scan says, as stated."""

import functools
import math
from functools import reduce

import pytest
import torch
from mixtures import indexed, off, principal, rms
from worlds import seeded

import negindex.mixture
from negindex import LITERAL, Calibration, Collection, Exact, Kernel, Mixture, NoiseLevel, Partial
from negindex.errors import KernelMismatch
from negindex.head import Effort
from negindex.index import FORMAT
from negindex.unread import Unread, shares, stated

COUNT, D, WIDTH, WHITE = 3000, 256, 12, 0.35
SHAPE = (1, 16, 16)
WINDOW = tuple(s * D**0.5 / 128 for s in (5.0, 8.0, 11.0, 15.0))  # 5 to 15 at 16,384 dimensions
LEVELS = (0.1, *WINDOW, 5.0, 40.0)


@pytest.fixture(autouse=True)
def every_set_is_large(monkeypatch):
    monkeypatch.setattr("negindex.index.SCAN_ELEMENTS", 0)
    monkeypatch.setattr("negindex.mixture.READ_ROWS", 0)
    monkeypatch.setattr("negindex.snapshot.READ_ROWS", 0)
    monkeypatch.setattr("negindex.literal._FIRST", 16)
    monkeypatch.setattr("negindex.literal._SINGLE", 400)


def rows(count, seed, population=0):
    """(count, *SHAPE) float16: curved, heavy-tailed groups in few smooth directions, and white noise in all."""
    shape, random = seeded(100 + population), seeded(seed)
    spectrum = torch.arange(1, 17).float().pow(-0.6)
    fields = torch.linalg.qr(torch.randn(D, 16, generator=shape)).Q.T
    centres, bend = torch.randn(2, 20, 16, generator=shape) * spectrum
    ways = 0.35 * torch.randn(20, 4, 16, generator=shape) * spectrum
    group = torch.multinomial(torch.rand(20, generator=shape) + 0.1, count, replacement=True, generator=random)
    along = 0.7 * torch.randn(count, 4, generator=random) / torch.rand(count, 1, generator=random).add(0.1).sqrt()
    weights = centres[group] + torch.einsum("nl,nlk->nk", along, ways[group])
    weights += 0.25 * (along[:, :1].square() - 1) * bend[group]
    smooth = weights * (0.5 * D**0.5 / spectrum.norm()) @ fields
    return (smooth + WHITE * torch.randn(count, D, generator=random)).half().reshape(-1, *SHAPE)


@functools.cache
def many(population=0):
    return rows(COUNT, 0, population)


def projected(given):
    return Kernel([(1.0, 2.0)], principal(given, WIDTH))


@functools.cache
def mixture(population=0):
    given = many(population)
    return Mixture.build(Exact(given), projected(given), efforts=[Effort(COUNT, 64)], scan_elements=0)


def asked(count, s, population=0, seed=5):
    clean = rows(count, 1, population).double()
    return clean + s * torch.randn(clean.shape, generator=seeded(seed), dtype=torch.float64)


def ask(negatives, x, s, **options):
    return negatives.posterior(x, NoiseLevel(1.0, s), kernel=LITERAL, **options)


# -- rows whose weight is known but for a normal error -----------------------------------------


@pytest.mark.parametrize(
    ("log_share", "deviation"), [(-3.0, 0.1), (-6.0, 2.0), (-30.0, 9.0), (1.0, 3.0), (-900.0, 300.0)]
)
def test_an_unread_row_counts_as_on_average_and_never_for_more_than_the_whole(log_share, deviation):
    one = torch.ones(1, dtype=torch.float64)
    share, light = shares(Unread(log_share * one, deviation * one, 5 * one, one))
    drawn = log_share + deviation * torch.linspace(-9, 9, 400_001, dtype=torch.float64)
    density = torch.linspace(-9, 9, 400_001, dtype=torch.float64).square().div(-2).softmax(0)
    assert float(share) == pytest.approx(5 * float(density @ drawn.clamp_max(0).exp()), rel=1e-2)
    assert float(light) == pytest.approx(5 * float(density @ torch.where(drawn < 0, drawn, -math.inf).exp()), rel=1e-2)


@pytest.mark.parametrize("deviation", [1e8, 1e10, 1e13, 1e30])
def test_however_wide_the_error_unread_rows_count_for_no_more_than_their_number(deviation):
    one = torch.ones(1, dtype=torch.float64)
    unread = Unread(-3 * one, deviation * one, 5 * one, one)
    share, light = shares(unread)
    assert 2.4 <= float(share) <= 5
    assert 0 <= float(light) <= float(share)
    assert math.isfinite(stated(unread))


@pytest.mark.parametrize("deviation", [0.2, 2.0, 9.0])
@pytest.mark.parametrize("level", [-9.0, -25.0])
def test_what_unread_rows_are_off_keeps_to_what_is_stated(level, deviation):
    """Two hundred rows in random directions, drawn many times: in 95 of 100 the sum is off by no more."""
    random, count = seeded(3), 200
    log_share = level + torch.randn(count, generator=random, dtype=torch.float64)
    away = torch.randn(count, 30, generator=random, dtype=torch.float64)
    unread = Unread(log_share, torch.full_like(log_share, deviation), torch.ones_like(log_share), away.square().sum(1))
    drawn = log_share + deviation * torch.randn(400, count, generator=random, dtype=torch.float64)
    weight = drawn.clamp_max(50).exp()
    wrong = ((weight / (1 + weight.sum(1, keepdim=True)) - shares(unread)[0]) @ away).norm(dim=1)
    assert (wrong <= stated(unread)).double().mean() >= 0.95


# -- how good it is ----------------------------------------------------------------------------


@pytest.mark.parametrize("population", [0, 1, 2])
def test_the_stated_error_is_at_least_the_true_one(population):
    """In 95 % of fresh queries, whether few rows are read or many, at every level.

    Where few of the rows that could weigh most are read, most true errors are nought and few are large.
    """
    radius, holds = rms(many(population)), []
    for s in LEVELS:
        x = asked(12, s, population)
        true = ask(Exact(many(population)), x, s)
        for k in (48, 200):
            told = ask(mixture(population), x, s, k=k, error=1e-6)
            wrong = off(told, true, radius)
            holds.append(told.error >= wrong)
            assert (told.kernel, told.count) == (LITERAL, COUNT)
            assert (told.error / wrong.clamp_min(1e-2)).median() <= 16, (s, k)
    assert torch.cat(holds).double().mean() >= 0.95


def test_more_rows_read_err_less():
    radius = rms(many())
    for s in WINDOW[2:]:
        x, wrong = asked(24, s), []
        true = ask(Exact(many()), x, s)
        for k in (16, 128, 1024):
            told = ask(mixture(), x, s, k=k, error=1e-6)
            wrong.append(off(told, true, radius).mean())
            assert (told.log_norm - true.log_norm).abs().mean() <= 0.5
        assert wrong[0] > 1.2 * wrong[1] > 2 * wrong[2]


def test_a_tenth_of_the_rows_tells_the_mean_to_five_percent_in_the_window():
    for s in WINDOW:
        x = asked(16, s)
        told, true = ask(mixture(), x, s, k=COUNT // 10), ask(Exact(many()), x, s)
        assert off(told, true, rms(many())).mean() <= 0.05


def test_all_rows_read_is_the_scan():
    for s in LEVELS:
        x = asked(6, s)
        told, true = ask(mixture(), x, s, k=COUNT, error=1e-9), ask(Exact(many()), x, s)
        assert off(told, true, rms(many())).max() < 1e-5
        torch.testing.assert_close(told.log_norm, true.log_norm, rtol=1e-6, atol=1e-4)
        assert torch.equal(told.heaviest.ids[:, :8], true.heaviest.ids[:, :8])
        torch.testing.assert_close(told.heaviest.log_weight[:, :8], true.heaviest.log_weight[:, :8])


def test_no_more_is_read_than_the_noise_level_asks_for():
    narrow, wide = (
        mixture().readings(mixture()._validated(asked(4, s), NoiseLevel(1.0, s), None, None, LITERAL))
        for s in (0.1, WINDOW[-1])
    )
    assert max(one.read for one in narrow) <= 64 < min(one.read for one in wide)


def test_an_error_that_is_asked_for_is_reached():
    for s in (0.1, WINDOW[1], 5.0):
        x = asked(4, s)
        assert ask(mixture(), x, s, error=0.05).error.max() <= 0.05
        assert ask(mixture(), x, s, error=1e-9).error.max() == 0  # nothing but a scan reaches that


def test_parts_merge_to_the_whole_within_what_they_state():
    parts = [
        Mixture.build(Exact(many()[some], some), projected(many()), efforts=[Effort(COUNT, 64)], scan_elements=0)
        for some in torch.arange(COUNT).tensor_split(2)
    ]
    holds = []
    for s in LEVELS:
        x = asked(8, s)
        told = reduce(Partial.merge, (ask(part, x, s, k=200) for part in parts))
        holds.append(off(told, ask(Exact(many()), x, s), rms(many())) <= 1.2 * told.error + 1e-5)
        assert told.count == COUNT
    assert torch.cat(holds).double().mean() >= 0.9
    with pytest.raises(KernelMismatch):
        told.merge(mixture().posterior(x, NoiseLevel(1.0, 1.0), kernel=mixture().kernel))


def test_a_row_finds_itself_and_a_copy_of_a_sample_is_found():
    x = many()[:6].double()
    told, true = ask(mixture(), x, 0.05, k=16), ask(Exact(many()), x, 0.05)
    assert told.heaviest.ids[:, 0].tolist() == list(range(6))
    assert off(told, true, rms(many())).max() < 1e-3
    torch.testing.assert_close(told.log_norm, true.log_norm, rtol=0, atol=1e-3)


@pytest.mark.parametrize("s", [1e-3, 1e-4, 1e-6])
def test_a_level_too_narrow_for_float32_is_answered_as_closely_as_stated(s):
    copies = many()[:6].double() + s * torch.randn(6, *SHAPE, generator=seeded(4), dtype=torch.float64)
    x = torch.cat([copies, asked(20, s)])
    told, true = ask(mixture(), x, s), ask(Exact(many()), x, s)
    assert (off(told, true, rms(many())) <= told.error + 1e-5).all()
    assert told.error.max() <= 0.02
    torch.testing.assert_close(told.log_norm, true.log_norm, rtol=0, atol=0.02)


@pytest.mark.parametrize("s", [0.01, 0.1, 1.0])
def test_rows_that_the_projection_sees_whole_do_not_upset_the_others(s):
    """Beyond it they lie elsewhere than their cluster's mean, whatever the length of what they have there says."""
    clusters = indexed(many(), projected(many())).clusters
    whole = clusters.space.centre + clusters.space.raised(clusters.reduced[:8])
    given = torch.cat([many().float().flatten(1), whole]).reshape(-1, *SHAPE)
    x = torch.cat([whole[:3], given[:3].flatten(1)]).reshape(-1, *SHAPE)
    x = x + s * torch.randn(x.shape, generator=seeded(4))
    told, true = ask(indexed(given, projected(many())), x, s), ask(Exact(given), x, s)
    assert (off(told, true, rms(given)) <= told.error + 1e-5).all()
    assert told.error.max() <= 0.02
    torch.testing.assert_close(told.log_norm, true.log_norm, rtol=0, atol=1e-2)


def test_pure_noise_and_samples_in_one_batch():
    level = NoiseLevel(torch.tensor([1.0, 0.0]), 1.0)
    told = mixture().posterior(asked(2, 1.0), level, kernel=LITERAL)
    assert told.log_norm[1].item() == pytest.approx(math.log(COUNT))
    torch.testing.assert_close(told.mean[1], many().double().mean(0), rtol=0, atol=1e-9)
    assert (told.kernel, told.error[1].item()) == (LITERAL, 0.0)


# -- withdrawals -------------------------------------------------------------------------------


def test_withdrawn_rows_never_answer():
    gone = torch.randperm(COUNT, generator=seeded(12))[:1000]
    digests = mixture().digests()
    rest = mixture().without([digests[int(i)] for i in gone])
    kept = torch.ones(COUNT, dtype=torch.bool).index_fill(0, gone, False)
    survivors, holds = many()[kept], []
    for s in LEVELS:
        x = torch.cat([asked(6, s), many()[gone[:6]].double() + s * torch.randn(6, *SHAPE, generator=seeded(2))])
        told, true = ask(rest, x, s, k=200), ask(Exact(survivors), x, s)
        holds.append(told.error >= off(told, true, rms(survivors)))
        assert not torch.isin(told.heaviest.ids, gone).any()
        assert told.count == len(survivors)
    assert torch.cat(holds).double().mean() >= 0.95


# -- a collection ------------------------------------------------------------------------------


@pytest.fixture
def col(tmp_path):
    made = Collection.create(tmp_path / "set", SHAPE, "pixels")
    made.add(many().numpy(), [f"row-{i}" for i in range(COUNT)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("negindex.mixture.usual_efforts", lambda count: [Effort(COUNT, 64)])
        made.adopt(Calibration(projected(many()), (), rms(many()), COUNT, 0, 0))
    return made


def check(collection, modelled=True):
    ids, found = (torch.cat(part) for part in zip(*collection.snapshot().blocks(1000), strict=True))
    everything, holds, errors = Exact(found.reshape(-1, *SHAPE), ids), [], []
    for s in LEVELS:
        x = asked(6, s)
        told, true = ask(collection, x, s, k=200), ask(everything, x, s)
        assert (told.count, told.origins, told.kernel) == (len(everything), collection.origins, LITERAL)
        assert torch.isin(told.heaviest.ids, ids).all()
        holds.append(told.error >= off(told, true, rms(found.reshape(-1, *SHAPE))) - 1e-12)
        errors.append(told.error)
    assert torch.cat(holds).double().mean() >= 0.95
    assert bool((torch.cat(errors) > 0).any()) == modelled


def test_a_calibrated_set_answers_the_literal_kernel_by_its_index_over_changes(col):
    check(col)
    col.withdraw([f"row-{i}" for i in range(300)], "no longer")
    col.add(rows(40, 9).numpy(), [f"new-{i}" for i in range(40)])
    check(col)
    check(Collection.open(col.path))


def test_an_index_of_other_bytes_or_of_an_older_format_is_never_loaded(col, monkeypatch):
    (file,) = [col.path / "derived" / one.file for one in col.derived() if one.kind == "index"]
    monkeypatch.setattr("negindex.index.FORMAT", FORMAT + 1)
    monkeypatch.setattr("negindex.mixture.usual_efforts", lambda count: [Effort(COUNT, 64)])
    check(Collection.open(col.path))  # by one that is built in memory
    again = Collection.open(col.path)
    again.compact()
    assert not file.exists()
    monkeypatch.setattr("negindex.index.Index.build", None)
    check(Collection.open(col.path))


def test_without_its_calibration_a_set_is_scanned_by_the_literal_kernel(col):
    (file,) = [col.path / "derived" / one.file for one in col.derived() if one.kind == "calibration"]
    file.write_bytes(file.read_bytes()[:-1])
    check(Collection.open(col.path), modelled=False)


# -- what is scanned ---------------------------------------------------------------------------


def test_small_sets_and_projections_that_keep_no_lengths_are_scanned(monkeypatch):
    x = asked(2, 1.0)
    true = ask(Exact(many()), x, 1.0)
    bent = Mixture.build(
        Exact(many()), Kernel(projection=2 * projected(many()).projection), efforts=[Effort(COUNT, 1)], scan_elements=0
    )
    monkeypatch.setattr(negindex.mixture, "READ_ROWS", COUNT + 1)
    for negatives in (bent, mixture()):
        told = ask(negatives, x, 1.0)
        assert torch.equal(told.mean, true.mean)
        assert told.error.tolist() == [0.0, 0.0]
