"""Views by label: a set of negatives of its own that follows, with a prior of its own in nested guards."""

import tempfile
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from worlds import diffusers_on_numpy_2, seeded

import negindex.data
from negindex import Collection, Exact, Kernel, NoiseLevel, Union
from negindex.errors import EmptySet
from negindex.labelled import Labelled
from negindex.sampler import Correction, guard
from negindex.sampler.pipelines import load_pipeline
from negindex.testing import NegativesTests
from negindex.tools import digits
from negindex.tools.demo_measures import Judge

pytestmark = diffusers_on_numpy_2
STRONG, WEAK = 0.95, 0.001
IMAGES, STEPS = 96, 12


class TestLabelled(NegativesTests):
    """Among rows of another label and rows that were withdrawn."""

    stored = torch.float16

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.place = tmp_path

    def make(self, rows):
        made = Collection.create(tempfile.mkdtemp(dir=self.place) + "/set", rows.shape[1:], "pixels")
        made.add(torch.zeros(2, *rows.shape[1:]), ["x", "y"], label="other")
        made.add(torch.ones(1, *rows.shape[1:]), ["gone"], label="wanted")
        made.withdraw(["gone"], "only the rows given are in force")
        for some in np.array_split(np.arange(len(rows)), 2):
            made.add(rows[some], [f"row-{i}" for i in some], label="wanted")
        return Labelled(made, "wanted")


# -- a view follows ----------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Rows a1 and a2 under "a", b1 under "b", n under no label."""
    made = Collection.create(tmp_path / "set", (1, 8, 8), "pixels", dtype="float32")
    rows = torch.randn(4, 1, 8, 8, generator=seeded(0))
    made.add(rows, ["a1", "a2", "b1", "n"], label=["a", "a", "b", None])
    return made


def keys(view):
    return sorted(view.source_keys(list(view.digests())).values())


def test_a_view_follows_and_a_pinned_one_does_not(two):
    view = Labelled(two, "a")
    pinned = view.pin()
    assert view.pin() is pinned, "nothing changed"
    assert (keys(view), view.origins[0]) == (["a1", "a2"], (f"{two.set_id}#a", 1))
    two.add(torch.ones(1, 1, 8, 8), ["a3"], label="a")
    two.withdraw(["a1"], "counter-notice")
    assert (keys(view), view.origins[0].version, len(view)) == (["a2", "a3"], 3, 2)
    assert (keys(pinned), pinned.origins[0].version, pinned.pin()) == (["a1", "a2"], 1, pinned)


def test_views_of_one_set_stay_apart_in_a_union(two):
    union = Union([Labelled(two, "a"), Labelled(two, "b")])
    told = union.posterior(torch.zeros(1, 1, 8, 8), NoiseLevel(1.0, 1.0))
    assert [origin.set_id for origin in told.origins] == [f"{two.set_id}#a", f"{two.set_id}#b"]
    assert told.count == 3
    (near,) = {near.origins for near in [union.near(torch.zeros(1, 1, 8, 8), k=3)]}
    assert near == told.origins


def test_an_empty_label_never_means_nothing_near(two):
    x, level = torch.zeros(1, 1, 8, 8), NoiseLevel(1.0, 1.0)
    view = Labelled(two, "b")
    two.withdraw(["b1"], "counter-notice")
    for ask in (
        lambda: view.posterior(x, level),
        lambda: view.near(x, k=1),
        lambda: view.pin().posterior(x, level),
        lambda: Correction(view, Exact(torch.ones(2, 1, 8, 8))).pin().look(x, x, level),
        lambda: Labelled(two, "a misspelt one").posterior(x, level),
    ):
        with pytest.raises(EmptySet, match=r"label '(b|a misspelt one)' has no row in force.*add rows under it"):
            ask()
    assert Union([Labelled(two, "a"), view]).posterior(x, level).count == 2, "beside others it says nothing"


# -- a prior for each label, on the digit model ------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    loaded = load_pipeline(negindex.data.__path__[0] + "/digits-unet")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def training():
    return digits.load()[0]


@pytest.fixture(scope="module")
def judge():
    return Judge(*digits.load())


@pytest.fixture
def claims(training, tmp_path):
    """One set: eights under "eight", threes under "three"."""
    made = Collection.create(tmp_path / "claims", (1, 8, 8), "pixels", dtype="float32")
    for label, wanted in (("eight", 8), ("three", 3)):
        rows = training.only(training.classes == wanted).rows
        made.add(rows, [f"{label}/{i}" for i in range(len(rows))], label=label)
    return made


@pytest.fixture(scope="module")
def benign(training):
    return Exact(training.only(~np.isin(training.classes, [3, 8])).rows)


def sampled(pipe, claims, benign, priors, images=IMAGES, **options):
    """The images (N, 1, 8, 8) under one guard a label, and each guard's receipts by label."""
    with ExitStack() as stack:
        guards = {
            label: stack.enter_context(
                guard(pipe, Labelled(claims, label), benign, prior, kernel=Kernel.floored(0.6), **options)
            )
            for label, prior in priors.items()
        }
        made = asked_for_both(pipe, images)
        return made, {label: one.receipts for label, one in guards.items()}


def asked_for_both(pipe, images):
    """As many eights as threes are asked for."""
    return pipe([8, 3] * (images // 2), STEPS, generator=seeded(7), output_type="pt").images


def moved(receipts):
    """Mean over images of the summed lengths of the corrections."""
    return float(np.mean([sum(step.correction for step in receipt.steps) for receipt in receipts]))


def test_each_label_is_kept_away_as_its_own_prior_says(pipe, claims, benign, judge):
    plain = judge.read(asked_for_both(pipe, IMAGES))[0]
    by_prior = {}
    for priors in ({"eight": STRONG, "three": WEAK}, {"eight": WEAK, "three": STRONG}):
        images, receipts = sampled(pipe, claims, benign, priors)
        read = judge.read(images)[0]
        for label, digit in (("eight", 8), ("three", 3)):
            by_prior[label, priors[label]] = (float((read == digit).mean()), moved(receipts[label]))
    for label, digit in (("eight", 8), ("three", 3)):
        (strong, far), (weak, near) = by_prior[label, STRONG], by_prior[label, WEAK]
        assert far > 5 * near > 0, (label, by_prior)
        assert strong < weak / 3 < 0.2 < float((plain == digit).mean()), (label, by_prior)


def test_each_guard_has_receipts_of_its_own_rule_and_view(pipe, claims, benign):
    _, receipts = sampled(pipe, claims, benign, {"eight": STRONG, "three": WEAK}, images=2)
    for label, prior in (("eight", STRONG), ("three", WEAK)):
        assert len(receipts[label]) == 2
        for receipt in receipts[label]:
            (stated,) = receipt.sets
            assert (stated.set_id, stated.rows) == (f"{claims.set_id}#{label}", len(claims.source_keys(label)))
            assert (receipt.rule, receipt.gate) == ("paired", f"ratio, prior {prior:g}")
            heaviest = [row for step in receipt.steps for row in step.heaviest]
            assert {row.set_id for row in heaviest} == {stated.set_id}
            assert {str(row.source_key).split("/")[0] for row in heaviest} == {label}


def test_takedowns_under_a_label_are_followed(pipe, claims, benign, training):
    ones = training.only(training.classes == 1).rows
    priors = {"eight": STRONG, "ones": STRONG}
    claims.add(ones[:40], [f"ones/{i}" for i in range(40)], label="ones")
    before, _ = sampled(pipe, claims, benign, priors, images=4)
    claims.add(ones[40:], [f"ones/{i}" for i in range(40, len(ones))], label="ones")
    claims.withdraw([f"ones/{i}" for i in range(39)], "counter-notice")
    after, receipts = sampled(pipe, claims, benign, priors, images=4)
    in_force = {f"ones/{i}" for i in range(39, len(ones))}
    for receipt in receipts["ones"]:
        assert [(stated.version, stated.rows) for stated in receipt.sets] == [(5, len(ones) - 39)]
        assert {row.source_key for step in receipt.steps for row in step.heaviest} <= in_force
    assert [receipt.sets[0].rows for receipt in receipts["eight"]] == [len(claims.source_keys("eight"))] * 4
    assert not torch.equal(before, after)


def test_a_guard_whose_label_was_emptied_stops_and_keeps_no_withdrawn_row(pipe, claims, benign):
    """Also where a guard may go on with the last good versions: an emptied label can be read well."""
    for on_error in ("raise", "last-good"):
        claims.add(torch.zeros(1, 1, 8, 8), [f"once-{on_error}"], label=on_error)
        with guard(pipe, Labelled(claims, on_error), benign, on_error=on_error):
            pipe([None], 2)
            claims.withdraw([f"once-{on_error}"], "counter-notice")
            with pytest.raises(EmptySet, match=f"label '{on_error}' has no row in force"):
                pipe([None], 2)
