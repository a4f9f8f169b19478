"""Head and tail: what a mixture says of a large set is what a scan says, to within the error that it states."""

import functools
import math
import os
import subprocess
import sys
from functools import reduce

import pytest
import torch
from mixtures import LEVELS, SHAPE, fresh, kernel, many, noised, off, rms, rows, scanned
from worlds import seeded

from negindex import LITERAL, Collection, Exact, Kernel, Mixture, NoiseLevel, Partial
from negindex.clusters import Clusters
from negindex.errors import KernelMismatch, OutOfRange
from negindex.head import Effort
from negindex.kmeans import assign, kmeans
from negindex.projection import Space
from negindex.testing import NegativesTests
from negindex.testing.contract import kernels
from negindex.tools.bench_times import resident
from negindex.trust import FLOOR

EFFORTS = (Effort(250, 16), Effort(500, 32), Effort(1000, 64))


@functools.cache
def mixture():
    return Mixture.build(Exact(many()), kernel(many()), efforts=EFFORTS, scan_elements=0)


def ask(negatives, x, s, **options):
    return negatives.posterior(x, NoiseLevel(1.0, s), kernel=kernel(many()), **options)


# -- the contract ------------------------------------------------------------------------------


class TestMixture(NegativesTests):
    """The literal kernel, all clusters opened and all rows read: exact to the float32 of what memory holds."""

    tolerance = 1e-5
    kernel = LITERAL

    def make(self, rows):
        return Mixture.build(Exact(rows), self.kernel, scan_elements=0)


class TestProjectedMixture(TestMixture):
    """A projection that is neither orthogonal nor of unit length."""

    kernel = kernels()[3]


class TestMixtureOfASnapshot(TestMixture):
    stored = torch.float16
    tolerance = 1e-3  # of float16 rows' own distances

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path_factory):
        self.place = tmp_path_factory

    def make(self, rows):
        made = Collection.create(self.place.mktemp("set") / "set", rows.shape[1:], "pixels")
        for some in torch.arange(len(rows)).tensor_split(3):
            made.add(rows[some].numpy(), [f"row-{int(i)}" for i in some])
        return Mixture.build(made.snapshot(), self.kernel, scan_elements=0)


# -- how good it is ----------------------------------------------------------------------------


@pytest.mark.parametrize("effort", range(len(EFFORTS)))
def test_the_stated_error_is_at_least_the_true_one_and_not_much_more(monkeypatch, effort):
    """In 95 % of fresh queries; and at most 5 times it in the median, errors below a thousandth aside."""
    monkeypatch.setattr("negindex.mixture.USUAL", effort)
    radius, holds = rms(many()), []
    for s in LEVELS:
        x = noised(fresh(), s, seed=3)
        told, true = ask(mixture(), x, s), scanned(many(), x, s, kernel(many()))
        wrong = off(told, true, radius)
        holds.append(told.error >= wrong)
        assert (told.error / wrong.clamp_min(1e-3)).median() <= 5, s
        assert (told.log_norm - true.log_norm).abs().mean() <= 0.05, s
        assert wrong.mean() <= 0.05, s
        assert told.captured.min() < 1  # the law has no content where everything was read
    assert torch.cat(holds).double().mean() >= 0.95


GATHER = """
import sys, torch
from negindex import Collection, Kernel
from negindex.clusters import Clusters
from negindex.projection import Space
from negindex.tools.bench_times import resident
rows = Collection.open(sys.argv[1]).snapshot()
elements = 4 * 64 * 64
space = Space.of(Kernel([(1.0, 2.0)], torch.eye(8, elements, dtype=torch.float64)), torch.zeros(elements))
before = resident()
Clusters.gather(rows, space, torch.zeros(len(rows), 8), torch.zeros(len(rows), 64), torch.arange(len(rows)) % 32, 32)
print((resident() - before) / (8 * len(rows) * elements))
"""


@pytest.mark.skipif(not resident(), reason="the system does not say what memory a process holds")
def test_gathering_many_large_rows_leaves_no_memory_taken(tmp_path):
    """Blocks of rows come and go in the heap: were anything small of each kept, it would grow by their size."""
    made = Collection.create(tmp_path / "set", (4, 64, 64), "pixels")
    made.add(torch.randn(4096, 4, 64, 64, generator=seeded(6)).half().numpy(), [str(i) for i in range(4096)])
    command = [sys.executable, "-c", GATHER, str(made.path)]
    heap = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "OMP_NUM_THREADS": "1"}  # as it is after some work
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=heap)
    assert float(said.stdout) < 0.5, said.stdout  # of the rows in float64


def test_more_effort_errs_less():
    radius = rms(many())
    for s in (1.0, 10.0):
        x = noised(fresh(), s, seed=4)
        true, wrong = scanned(many(), x, s, kernel(many())), []
        for effort in (Effort(200, 16), Effort(800, 64), Effort(3200, 512)):
            less = Mixture(mixture().source, mixture().clusters, mixture().trust, efforts=[effort], scan_elements=0)
            wrong.append(off(ask(less, x, s), true, radius).mean())
        assert wrong[0] > 1.2 * wrong[1] > 2 * wrong[2]


def test_all_clusters_opened_and_all_rows_read_is_the_scan():
    every = Effort(len(many()), len(many()))
    whole = Mixture(mixture().source, mixture().clusters, mixture().trust, efforts=[every], scan_elements=0)
    for s in LEVELS:
        x = noised(fresh()[:8], s, seed=5)
        told, true = ask(whole, x, s), scanned(many(), x, s, kernel(many()))
        assert off(told, true, rms(many())).max() < 1e-5
        assert told.error.max() < 1e-5
        assert told.captured.min() > 1 - 1e-5
        torch.testing.assert_close(told.log_norm, true.log_norm, rtol=1e-6, atol=1e-5)
        assert torch.equal(told.heaviest.ids, true.heaviest.ids)


@pytest.mark.parametrize("target", [0.1, 0.04, 1e-9])
def test_an_error_that_is_asked_for_is_reached(target):
    for s in (1.0, 10.0):
        told = ask(mixture(), noised(fresh()[:8], s, seed=6), s, error=target)
        assert told.error.max() <= target
    assert bool((told.error == 0).all()) == (target == 1e-9)  # nothing but a scan reaches that


def test_k_limits_what_is_read_and_the_error_says_so():
    x = noised(fresh()[:8], 0.2, seed=6)
    few, more = (ask(mixture(), x, 0.2, k=k, error=1e-9) for k in (1, 200))
    assert (few.heaviest.ids.shape[1], more.heaviest.ids.shape[1]) == (1, 200)
    assert (few.error > 1.2 * more.error).all()
    assert (few.log_unread > more.log_unread).all()
    assert torch.equal(few.log_tail, more.log_tail)
    torch.testing.assert_close(few.log_norm, more.log_norm)


def test_where_the_kernel_is_narrow_the_nearest_rows_are_found():
    """No temperature, at a level where one row has all the weight and normal clusters misjudge theirs."""
    narrow = Kernel(projection=kernel(many()).projection)
    negatives = Mixture.build(Exact(many()), narrow, efforts=EFFORTS[1:2], scan_elements=0)
    x, level = noised(rows(100, seed=1), 0.05, seed=7), NoiseLevel(1.0, 0.05)
    told, true = negatives.posterior(x, level, kernel=narrow), Exact(many()).posterior(x, level, kernel=narrow)
    assert torch.equal(told.heaviest.ids[:, 0], true.heaviest.ids[:, 0])
    assert (told.error >= off(told, true, rms(many()))).double().mean() >= 0.95


def test_parts_merge_to_the_whole_within_what_they_state():
    given = many()
    parts = [
        Mixture.build(Exact(given[some], some), kernel(given), efforts=EFFORTS[1:2], scan_elements=0)
        for some in torch.arange(len(given)).tensor_split(2)
    ]
    for s in LEVELS:
        x = noised(fresh()[:8], s, seed=8)
        told, true = reduce(Partial.merge, (ask(p, x, s) for p in parts)), scanned(given, x, s, kernel(given))
        assert (off(told, true, rms(given)) <= 1.5 * told.error + FLOOR).double().mean() >= 0.75
        assert off(told, true, rms(given)).mean() <= 0.03
        assert told.count == len(given)


def test_pure_noise_and_samples_in_one_batch():
    x = noised(fresh()[:3], 1.0, seed=9)
    level = NoiseLevel(torch.tensor([1.0, 0.0, 1.0]), 1.0)
    told = mixture().posterior(x, level, kernel=mixture().kernel)
    assert told.log_norm[1].item() == pytest.approx(torch.tensor(4000.0).log().item(), abs=1e-6)
    torch.testing.assert_close(told.mean[1], many().double().mean(0), rtol=0, atol=1e-12)
    assert (told.error[1], told.captured[1]) == (0, 1)
    alone = ask(mixture(), x[2:], 1.0)
    torch.testing.assert_close(told.mean[2:], alone.mean, rtol=0, atol=1e-6)
    assert told.error[2] > 0


# -- which kernel ------------------------------------------------------------------------------


def test_another_kernel_is_answered_by_a_scan_and_never_merges():
    x = noised(fresh()[:2], 1.0, seed=10)
    told = mixture().posterior(x, NoiseLevel(1.0, 1.0))
    true = Exact(many()).posterior(x, NoiseLevel(1.0, 1.0))
    assert torch.equal(told.mean, true.mean)
    assert (told.error.tolist(), told.kernel) == ([0.0, 0.0], LITERAL)
    with pytest.raises(KernelMismatch):
        told.merge(ask(mixture(), x, 1.0))


def test_a_small_set_is_scanned():
    small = Mixture.build(Exact(many()[:500]), kernel(many()), efforts=[Effort(10, 1)])
    x = noised(fresh()[:2], 1.0, seed=11)
    assert torch.equal(ask(small, x, 1.0).mean, scanned(many()[:500], x, 1.0, kernel(many())).mean)


# -- withdrawals -------------------------------------------------------------------------------


def test_withdrawn_rows_never_answer():
    """Not as heaviest rows, not in the sums of their clusters: the stated error still holds over the survivors."""
    gone = torch.randperm(4000, generator=seeded(12))[:1500]
    digests = mixture().digests()
    rest = mixture().without([digests[int(i)] for i in gone])
    kept = torch.ones(4000, dtype=torch.bool).index_fill(0, gone, False)
    survivors = many()[kept]
    assert len(rest) == len(survivors) == rest.moments().count
    assert rest.moments().rms == pytest.approx(rms(survivors))
    holds = []
    for s in LEVELS:
        x = noised(torch.cat([fresh()[:20], many()[gone[:20]]]), s, seed=13)
        told, true = ask(rest, x, s), scanned(survivors, x, s, kernel(many()))
        holds.append(told.error >= off(told, true, rms(survivors)))
        assert not torch.isin(told.heaviest.ids, gone).any()
        assert told.count == len(survivors)
    assert torch.cat(holds).double().mean() >= 0.95
    assert len(rest.without(list(digests.values()))) == 0


@pytest.mark.parametrize("part", [0.0003, 0.1, 0.9, 1.0])
def test_moments_after_withdrawals_are_those_built_afresh_over_the_survivors(part):
    clusters, source = mixture().clusters, mixture().source
    gone = torch.rand(4000, generator=seeded(14)) < part
    gone |= clusters.of_rows() == 3  # a whole cluster too
    left = clusters.without(gone, source)
    kept = (~gone)[clusters.places.argsort()]  # in the source's order
    cluster, order = clusters.of_rows()[clusters.places.argsort()], clusters.places.argsort()
    afresh = Clusters.gather(
        Exact(many()[kept], torch.arange(4000)[kept]),
        clusters.space,
        clusters.reduced[order][kept],
        clusters.sketch[order][kept],
        cluster[kept],
        len(clusters.counts),
    )
    for name in ("ids", "places", "reduced", "sketch", "offsets"):
        assert torch.equal(getattr(left, name), getattr(afresh, name)), name
    for one, other in zip(left.gaussians, afresh.gaussians, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(left.whole.sums, afresh.whole.sums)
    torch.testing.assert_close(left.whole.squares, afresh.whole.squares, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(left.outside, afresh.outside, rtol=0, atol=1e-6)
    assert left.counts[3] == 0


def test_places_are_the_sources_own():
    """Rows by place are the rows of the blocks, in memory and on disk, before and after a withdrawal."""
    given = rows(30)
    source = Exact(given, torch.arange(30) * 7)
    some = torch.tensor([4, 0, 29, 4])
    assert torch.equal(source.take(some).ids, some * 7)
    assert torch.equal(source.take(some).rows, given.flatten(1)[some])
    with pytest.raises(OutOfRange, match="places 4 to 30 in a set of 30 rows"):
        source.take(torch.tensor([4, 30]))


def test_rows_of_a_snapshot_by_place_are_those_of_its_blocks(tmp_path):
    made = Collection.create(tmp_path / "set", SHAPE, "pixels")
    given = rows(30)
    for start in (0, 10, 20):
        made.add(given[start : start + 10].numpy(), [f"row-{i}" for i in range(start, start + 10)])
    made.withdraw(["row-0", "row-12", "row-13"], "elsewhere")
    snapshot = made.snapshot()
    ids, blocks = (torch.cat(part) for part in zip(*snapshot.blocks(4), strict=True))
    some = torch.tensor([26, 3, 0, 3, 11, 25])
    assert torch.equal(snapshot.take(some).ids, ids[some])
    assert torch.equal(snapshot.take(some).rows, blocks[some])
    assert snapshot.take(some[:0]).rows.shape == (0, 64)
    with pytest.raises(OutOfRange, match="a set of 27 rows"):
        snapshot.take(torch.tensor([27]))


# -- clusters ----------------------------------------------------------------------------------


def means(told):
    """Of the only cluster, as each sample sees it: (B, d)."""
    return torch.stack([told.about(b).centre(torch.ones(1, dtype=torch.float64)) for b in range(len(told.query))])


def test_the_closed_form_of_a_normal_cluster_is_its_posterior():
    """One cluster of 20,000 normal rows, of which 8 axes are kept: mass and mean in closed form."""
    scale = torch.cat([torch.linspace(3, 1, 8), torch.full((16,), 0.5)]).double()
    given = torch.randn(20_000, 24, generator=seeded(15), dtype=torch.float64) * scale
    clusters = Clusters.build(Exact(given), Space.of(LITERAL, torch.zeros(24)), count=1)
    x = torch.randn(6, 24, generator=seeded(16), dtype=torch.float64) * (scale.square() + 4).sqrt()
    told = clusters.gaussians.seen_from(x, torch.full((6,), 4.0, dtype=torch.float64))
    wide = scale.square() + 4  # the kernel's integral over a normal distribution, Gaussian by Gaussian
    log_mass = math.log(20_000) - 0.5 * (x.square() / wide).sum(1) - 0.5 * (wide / 4).log().sum()
    torch.testing.assert_close(told.log_mass[:, 0], log_mass, rtol=0, atol=0.1)
    torch.testing.assert_close(means(told), x * scale.square() / wide, rtol=0, atol=0.1)

    torch.testing.assert_close(told.spread[:, 0], (4 * scale.square() / wide).sum().expand(6), rtol=0.02, atol=0)
    assert (told.log_most >= told.log_mass).all()


def test_a_cluster_of_two_widths_is_weighed_as_both():
    """Far from its mean nearly all weight is of the wide rows: one normal distribution would misjudge it."""
    width = torch.tensor([0.5, 0.5, 2.0]).sqrt().repeat(20_000)[:, None]
    given = torch.randn(60_000, 24, generator=seeded(17)) * width
    clusters = Clusters.build(Exact(given), Space.of(LITERAL, torch.zeros(24)), count=1)
    x = torch.randn(6, 24, generator=seeded(18), dtype=torch.float64) * 1.5
    told = clusters.gaussians.seen_from(x, torch.full((6,), 4.0, dtype=torch.float64))
    near = torch.cdist(x, given.double()).square() / -8
    log_mass = near.logsumexp(1)
    torch.testing.assert_close(told.log_mass[:, 0], log_mass, rtol=0, atol=0.05)
    mean = near.softmax(1) @ given.double()
    torch.testing.assert_close(means(told), mean, rtol=0, atol=0.05)
    c = given.double().square().mean() + 4
    one = math.log(60_000) - 0.5 * x.square().sum(1) / c - 12 * math.log(c / 4)
    assert (one - log_mass).abs().max() > 0.5


def test_every_row_has_the_nearest_centre_and_no_centre_is_without_rows():
    points = torch.cat([torch.randn(500, 3, generator=seeded(17)) + 10 * i for i in range(4)])
    centres = kmeans(points, 8, seed=0)
    nearest, distance = assign(points, centres)
    true = torch.cdist(points, centres).square()
    torch.testing.assert_close(distance, true.amin(1), rtol=1e-3, atol=1e-2)
    assert nearest.bincount(minlength=8).min() > 0
    assert (points - centres[nearest]).norm(dim=1).mean() < 1.6
    assert torch.equal(kmeans(points, 8, seed=0), centres)


def test_a_row_is_what_the_kernel_sees_of_it_and_the_rest():
    space = Space.of(Kernel(projection=kernels()[2].projection), torch.ones(6), seed=1, sketch=4000)
    given = torch.randn(5, 6, generator=seeded(18))
    inside, marks = space.see(given)
    outside = space.outside(given - 1)
    torch.testing.assert_close(space.raised(inside) + outside, given - 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(marks.norm(dim=1), outside.norm(dim=1), rtol=0.1, atol=0)
    torch.testing.assert_close(space.see(1 + outside)[0], torch.zeros(5, 4), rtol=0, atol=1e-5)


def test_the_same_seed_builds_the_same_mixture_whatever_else_is_random():
    torch.manual_seed(1)
    one = Mixture.build(Exact(many()[:800]), kernel(many()), efforts=[Effort(100, 8)], scan_elements=0, seed=5)
    torch.rand(3)
    two = Mixture.build(Exact(many()[:800]), kernel(many()), efforts=[Effort(100, 8)], scan_elements=0, seed=5)
    assert torch.equal(one.clusters.reduced, two.clusters.reduced)
    assert torch.equal(one.trust.factors, two.trust.factors)
    x = noised(fresh()[:2], 1.0, seed=19)
    assert torch.equal(ask(one, x, 1.0).mean, ask(two, x, 1.0).mean)
