"""A set with an index finds the rows that a scan finds: the same ones, as far, in the same order."""

import functools
import math

import numpy as np
import pytest
import torch
from mixtures import SHAPE, D, fresh, indexed, kernel, many, noised, principal, rows, wide, wide_indexed
from scipy.stats import chi2, ncx2
from test_calibrated_set import COUNT, Index, col, every_set_is_large, keys, learned, template  # noqa: F401
from test_near import same
from worlds import seeded

from negindex import LITERAL, Collection, Exact, Kernel, Union
from negindex.head import Stretches
from negindex.projection import Space
from negindex.spheres import MISSED, Sample, Spheres, _about, _limit


def kernels(given):
    skewed = torch.randn(9, D, generator=seeded(4), dtype=torch.float64) * torch.linspace(0.1, 3, 9)[:, None]
    return [kernel(given), LITERAL, Kernel(projection=skewed), Kernel(projection=torch.zeros(3, D).double())]


@functools.cache
def by_index(which):
    return indexed(many(), kernels(many())[which])


@pytest.fixture
def no_scan(monkeypatch):
    """From here on nothing is scanned."""
    monkeypatch.setattr(Exact, "nearest", None)


# -- the scan's answer -------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("seed", range(3))
def test_any_look_up_finds_what_the_scan_finds(which, seed):
    x = torch.cat([fresh()[:3].double(), many()[seed : seed + 3].double(), 100 * fresh()[3:4].double()])
    x = x + 0.3 * torch.randn(x.shape, generator=seeded(seed), dtype=torch.float64)
    whole = Exact(many())
    apart = whole.near(x, k=60).distances
    edges = apart[torch.arange(len(x)), torch.randint(60, (len(x),), generator=seeded(seed))]  # a row lies just there
    for radius in (edges, edges * (1 - 1e-12), 0.0, 3.0, float(apart.max()), None):
        for k in (1, 5, None):
            if radius is not None or k is not None:
                same(by_index(which).near(x, radius, k), whole.near(x, radius, k))


def test_a_radius_reads_few_rows_and_scans_none(no_scan, monkeypatch):
    read, take = [], Exact.take
    monkeypatch.setattr(Exact, "take", lambda self, places: read.append(len(places)) or take(self, places))
    for radius in (0.0, 0.5, 1.5):
        near = by_index(0).near(many()[::100].double(), radius)
        assert near.found[:, 0].all()
        assert near.distances[:, 0].eq(0).all()
    assert sum(read) < 3 * 40 * len(many()) / 50


def test_a_sample_that_everything_is_near_to_is_scanned_and_the_others_are_not(monkeypatch):
    scanned, scan = [], Exact.nearest
    monkeypatch.setattr(Exact, "nearest", lambda self, reach: scanned.append(len(reach.x)) or scan(self, reach))
    x, radius = many()[:3].double(), torch.tensor([0.1, 1e3, 0.2])
    told = by_index(0).near(x, radius, 4)
    assert scanned == [1]
    same(told, Exact(many()).near(x, radius, 4))


def adversarial(name):
    """Rows and samples on which float32, expanded squares or ties could go wrong."""
    given, random = many()[:600].double(), seeded(9)
    if name == "outliers":
        given[::50] *= 1e7 / given[::50].flatten(1).norm(dim=1)[:, None, None, None]
    elif name == "far from the origin":
        given = given + 1e6
    elif name == "one point":
        given = given[:1].expand(600, *SHAPE).clone()
    elif name == "two points apart by float32's last place":
        given = given[:1].float().double().expand(600, *SHAPE).clone()
        given[::2] = given[::2].float().nextafter(torch.tensor(math.inf)).double()
    elif name == "duplicates":
        given = given[torch.randint(40, (600,), generator=random)]
    elif name == "a line":
        given = given[:1] + torch.linspace(-5, 5, 600, dtype=torch.float64)[:, None, None, None]
    return given


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    "name",
    [
        "outliers",
        "far from the origin",
        "one point",
        "two points apart by float32's last place",
        "duplicates",
        "a line",
    ],
)
def test_no_geometry_hides_a_row(name, which):
    given = adversarial(name)
    ids = torch.randperm(600, generator=seeded(3))
    whole = Exact(given, ids)
    centre = given[20:40].flatten(1).mean(0)
    told = indexed(whole, kernels(many())[which], centre)
    x = torch.cat([given[:12], given[50:52] + 1e-3, fresh()[:2].double()])
    for radius in (0.0, 1e-4, 2.0, 1e4, 3e7):
        same(told.near(x, radius, 3), whole.near(x, radius, 3))
    same(told.near(x, k=2), whole.near(x, k=2))
    near = whole.near(x, k=4).distances
    for place in range(4):
        same(told.near(x, near[:, place]), whole.near(x, near[:, place]))


@pytest.mark.parametrize("seed", range(3))
def test_no_row_within_the_radius_lies_beyond_the_limit_in_memory(seed):
    """The law that all else rests on, row by row: float32 vectors in memory, rows long and short, any kernel."""
    random = seeded(seed)
    given = torch.randn(200, D, generator=random, dtype=torch.float64)
    given *= 10 ** (8 * torch.rand(200, 1, generator=random, dtype=torch.float64) - 2)
    for of in kernels(many()):
        space = Space.of(of, given[:3].mean(0))
        reduced, _ = space.see(given)
        for z, memory in zip(given, reduced, strict=True):
            x = z + float(z.norm()) * 1e-3 * torch.randn(D, generator=random, dtype=torch.float64)
            q = space.place(x[None])[0]
            sample = Sample(q.float(), float((x - space.centre).norm()), float(q.norm()), None)
            apart = float((q.float().double() - memory.double()).norm())
            assert apart <= _limit(space, sample, float((x - z).norm()), 0.0, math.inf)


def test_spheres_hold_all_rows():
    made = by_index(0).clusters
    spheres = Spheres.around(made)
    away = (made.reduced - spheres.centre[made.of_rows()]).double().norm(dim=1)
    assert (away <= spheres.radius[made.of_rows()] * (1 + 1e-5)).all()
    assert torch.equal(spheres.rows, made.reduced[:, spheres.leading])


# -- with noise --------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", [1, 10, 100, 4000, 16_256])
def test_noise_hides_a_row_less_than_once_in_a_million(unseen):
    """What is left for the dimensions that a kernel sees, against the law of the noise in the others."""
    least = unseen - 2 * math.sqrt(unseen * MISSED)
    assert chi2.cdf(least, unseen) < 1e-6


def test_with_noise_the_rows_within_the_radius_are_found():
    """Copies, near ones, and images between two rows, at the edge of the radius and far inside it."""
    given, missed, found = wide(600), 0, 0
    whole, told_by = Exact(given), wide_indexed(600)
    for seed in range(4):
        for s in (0.05, 0.15, 0.4):
            random = seeded(seed)
            off = torch.randn(40, *given.shape[1:], generator=random) * torch.rand(40, 1, 1, 1, generator=random) / 8
            x = noised(given[seed : seed + 40].double() + off, s, seed)
            for slack in (0.0, 2.0, 6.0):
                radius = math.sqrt(s * s * (1024 + slack * math.sqrt(2048)) + 4.0)
                told, true = told_by.near(x, radius, k=1, noise=s), whole.near(x, radius, k=1)
                missed += int((told.found.sum(1) != true.found.sum(1)).sum())
                found += int(true.found.sum())
                if true.ids.shape[1] and told.ids.shape[1]:
                    both = told.found[:, 0]
                    assert torch.equal(told.ids[both], true.ids[both]), "never another row than the scan's"
    assert missed == 0
    assert 400 < found < 1440, "the law has no content where all are found, or none"


def test_noise_lets_a_look_up_read_fewer_rows(monkeypatch):
    read, take = [0, 0], Exact.take

    def counted(self, places):
        read[-1] += len(places)
        return take(self, places)

    told_by = wide_indexed(600)
    monkeypatch.setattr(Exact, "take", counted)
    x = noised(wide(600)[:20], 0.5, 1)
    radius = math.sqrt(0.25 * (1024 + 3 * math.sqrt(2048)) + 4.0)
    told_by.near(x, radius, 1, noise=0.5)
    read.append(0)
    told_by.near(x, radius, 1)
    assert 20 <= read[1] < read[2] / 2


@pytest.mark.parametrize("seen", [1, 12, 128, 1024])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 10.0, 1000.0])
def test_noise_takes_a_row_near_the_image_out_of_sight_less_than_once_in_a_million(seen, share):
    """The limit of what the kernel sees, against the law of a row at just the image's radius, all of it seen."""
    space = Space.of(Kernel(projection=torch.eye(seen, 1100).double()), torch.zeros(1100))
    limit = _about(space, share * 0.5, 0.5)
    assert ncx2.sf((limit / 0.5) ** 2, seen, share**2) < 1e-6
    assert limit <= 0.5 * (share + math.sqrt(seen) + 12), "and no farther than that asks for"


def test_a_kernel_that_lengthens_some_directions_lengthens_their_noise():
    skewed = torch.randn(9, D, generator=seeded(4), dtype=torch.float64) * torch.linspace(0.1, 3, 9)[:, None]
    space = Space.of(Kernel(projection=skewed), torch.zeros(D))
    longest = torch.linalg.svd(skewed).Vh[0]
    x = 2.0 * longest + 0.5 * torch.randn(100_000, D, generator=seeded(1), dtype=torch.float64)
    seen = (x @ skewed.T).norm(dim=1)
    limit = _about(space, 2.0, 0.5)
    assert limit / 2 < float(seen.max()) < limit
    assert _about(space, 2.0, 0.0) == pytest.approx(2.0 * float(torch.linalg.matrix_norm(skewed, 2)), rel=1e-6)


def test_rows_near_the_image_are_found_and_fewer_are_read(monkeypatch):
    """At the noisiest level at which a radius of 2 is seen: copies, and images that lie up to 2 from a row."""
    read, take = [], Exact.take

    def counted(self, places):
        read[-1] += len(places)
        return take(self, places)

    given = wide(1000) / 5
    told_by = indexed(given, Kernel(projection=principal(given, 12)))
    for seed in range(4):
        off = torch.nn.functional.normalize(torch.randn(40, 1024, generator=seeded(seed)), dim=1)
        off *= torch.linspace(0, 2, 40)[:, None]
        s = math.sqrt(4.0 / (3 * math.sqrt(2048)))
        x = noised(given[40 * seed : 40 * seed + 40].double() + off.reshape(40, *given.shape[1:]), s, seed)
        radius = math.sqrt(s * s * (1024 + 6 * math.sqrt(2048)) + 4.0)
        whole = Exact(given).near(x, radius, k=1, noise=s)
        with monkeypatch.context() as patch:
            patch.setattr(Exact, "take", counted)
            read.append(0)
            less = told_by.near(x, radius, k=1, noise=s, image_radius=2.0)
            read.append(0)
            told_by.near(x, radius, k=1, noise=s)
        assert whole.found.all()
        assert less.ids[:, 0].tolist() == list(range(40 * seed, 40 * seed + 40))
        assert torch.equal(less.distances, whole.distances)
        assert 40 <= read[-2] < read[-1] / 2


def test_an_image_radius_without_noise_is_the_sample_s_own():
    given = many()
    x = given[:5].double() + 0.1
    apart = by_index(0).near(x, 3.0, 4, image_radius=1.0)
    true = Exact(given).near(x, 3.0, 4)
    inside = true.distances <= 1.0
    assert inside.any()
    for told, wanted in zip(apart.ids, (ids[kept] for ids, kept in zip(true.ids, inside, strict=True)), strict=True):
        assert set(wanted.tolist()) <= set(told.tolist())
    same(by_index(0).near(x, k=4, image_radius=0.0), Exact(given).near(x, k=4))


def test_of_stretches_the_chosen_ones_are_told_by_number():
    offsets = torch.tensor([0, 3, 3, 7, 8, 12])
    stretches = Stretches(offsets, torch.tensor([0, 2, 4]))
    which = torch.tensor([True, False, True, False, True, True, False, False, True, False, True])
    assert torch.equal(stretches.chosen(which), stretches.numbers[which])
    assert stretches.numbers[which].tolist() == [0, 2, 4, 5, 9, 11]
    numbers = torch.arange(12).float() * 2
    assert torch.equal(stretches.slices_of(numbers), stretches.of(numbers))


def test_with_noise_a_batch_is_answered_as_each_of_its_samples():
    x, noise = noised(wide(600)[:12], 0.5, 1), torch.linspace(0.1, 2, 12)
    together = wide_indexed(600).near(x, 17.0, 3, noise=noise)
    for b in range(len(x)):
        alone = wide_indexed(600).near(x[b : b + 1], 17.0, 3, noise=noise[b])
        assert torch.equal(alone.ids[alone.found], together.ids[b][together.found[b]])


# -- a collection ------------------------------------------------------------------------------


def check(negatives):
    """Its answers are those of its own rows in memory, in the order in which they lie."""
    ids, found = (torch.cat(part) for part in zip(*negatives.pin().blocks(1000), strict=True))
    whole = Exact(found.reshape(-1, *SHAPE), ids)
    x = torch.cat([rows(COUNT)[::150].double(), rows(70, seed=5)[:3].double(), noised(fresh()[:4], 0.3, 2)])
    edge = whole.near(x, k=3).distances[:, 2]
    for radius, k in ((edge, None), (1.0, 2), (0.0, 1), (None, 1)):
        told, true = negatives.near(x, radius, k), whole.near(x, radius, k)
        assert told.origins == negatives.origins
        same(told._replace(origins=true.origins), true)
    scanned = whole.moments()
    assert negatives.moments().count == scanned.count
    assert negatives.moments().rms == pytest.approx(scanned.rms, rel=1e-9)
    torch.testing.assert_close(negatives.moments().mean, scanned.mean, rtol=1e-12, atol=1e-12)


def test_over_changes_views_and_labels(col):  # noqa: F811
    held = col.snapshot()
    check(held)
    col.add(rows(70, seed=5).numpy(), keys(COUNT, COUNT + 70), label="later")
    check(col)
    for gone in (keys(0, 3), keys(100, 180), keys(COUNT, COUNT + 2)):
        col.withdraw(gone, "no longer")
        check(col)
    digests = col.digests()
    check(col.snapshot().where(label="first"))
    check(col.snapshot().where(label="later"))
    check(col.snapshot().without([digests[i] for i in (4, 800, COUNT + 5)]))
    check(Union([col.snapshot()]).members[0])
    check(Collection.open(col.path))
    col.compact()
    check(col)
    check(held)
    assert not torch.isin(col.near(rows(COUNT)[100:104].double(), 0.0).ids, torch.arange(101, 105)).any()


def test_a_look_up_of_near_rows_builds_no_index_and_reads_no_calibration_that_is_damaged(col, monkeypatch):  # noqa: F811
    (index,) = [col.path / "derived" / one.file for one in col.derived() if one.kind == "index"]
    index.write_bytes(b"")
    monkeypatch.setattr(Index, "build", None)
    check(Collection.open(col.path))
    (kept,) = [col.path / "derived" / one.file for one in col.derived() if one.kind == "calibration"]
    kept.write_bytes(b"")
    check(Collection.open(col.path))


def test_the_index_answers_near_without_a_scan(col, monkeypatch):  # noqa: F811
    snapshot = col.snapshot()
    snapshot.split(learned().kernel)
    monkeypatch.setattr(type(snapshot), "blocks", None)
    near = snapshot.near(rows(COUNT)[::100].double(), 0.5, 1)
    assert near.ids[:, 0].tolist() == list(range(1, COUNT + 1, 100))


def test_a_snapshot_finds_near_rows_after_its_collection_was_closed(col):  # noqa: F811
    asked, unasked = col.snapshot(), Collection.open(col.path).snapshot()
    x = rows(COUNT)[:3].double()
    before = asked.near(x, 0.5)
    col.close()
    same(asked.near(x, 0.5), before)
    assert np.array_equal(unasked.near(x, 0.5).ids, before.ids)


def test_principal_kernels_lengthen_nothing():
    space = Space.of(Kernel(projection=principal(many(), 12)), torch.zeros(D))
    assert space.stretch[0] == pytest.approx(1.0, abs=1e-6)
    assert Space.of(LITERAL, torch.zeros(D)).stretch == (1.0, 1.0)
    assert Space.of(Kernel(projection=torch.full((1, 4), -2.0)), torch.zeros(4)).stretch == pytest.approx((4.0, 4.0))
