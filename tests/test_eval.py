"""A table is filled once, says what it measured, and refuses what it does not know."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import stage

from negindex import Exact, Kernel, NoiseLevel
from negindex.errors import Damaged, InvalidInput, NotThere, OutOfRange
from negindex.sampler import Correction, Ratio
from negindex.sampler.evaluation.ablations import NearestOnly, PlainMeans
from negindex.sampler.evaluation.asked import EVASIVE, KEPT, NOTHING, OTHERS, PLAIN
from negindex.sampler.evaluation.cells import Cell
from negindex.sampler.evaluation.filling import REAL, Filling
from negindex.sampler.evaluation.intervals import Figure
from negindex.sampler.evaluation.methods import Given, ImageSide, Method, Oracle
from negindex.sampler.evaluation.pages import markdown, refreshed
from negindex.sampler.evaluation.report import as_json, precondition, write
from negindex.sampler.evaluation.table import Table

SAID = {
    "title": "A tiny table",
    "avoided": "bag",
    "count": 20,
    "negatives": 30,
    "reference": 60,
    "requests": [EVASIVE, OTHERS],
    "drawn": {"steps": 2, "batch": 10},
    "methods": [
        {"name": "nothing"},
        {"name": "switched off", "image": {"rule": "off", "kernel": "literal"}},
        {"name": "paired", "image": {"kernel": "literal", "prior": 0.5}},
    ],
}


@pytest.fixture(scope="module")
def world():
    return stage()


@pytest.fixture(scope="module")
def filled(world, tmp_path_factory):
    filling = Filling(Table.of(SAID), world, tmp_path_factory.mktemp("table"))
    filling.run(lambda done: None)
    return filling


def test_every_cell_is_there_once_and_is_not_made_again(filled):
    told = list(filled.cells())
    assert [(cell.request, cell.method) for cell in told] == [
        ("real", REAL),
        *((request, method["name"]) for request in SAID["requests"] for method in SAID["methods"]),
    ]
    said = []
    filled.run(said.append)
    assert len(said) == 6
    assert all("there already" in line for line in said)


def test_a_run_that_was_cut_off_makes_what_is_missing(filled):
    path = filled.path(OTHERS, "paired")
    before, kept = Cell.load(path), filled.path(OTHERS, "nothing").stat().st_mtime_ns
    path.unlink()
    assert len(list(filled.cells())) == 6
    filled.run(lambda done: None)
    after = Cell.load(path)
    assert after.read == before.read
    assert {n: f for n, f in after.measures.items() if n not in ("cpu", "seconds")} == {
        n: f for n, f in before.measures.items() if n not in ("cpu", "seconds")
    }
    assert filled.path(OTHERS, "nothing").stat().st_mtime_ns == kept


def test_a_cell_of_other_numbers_is_not_taken_for_this_ones(filled, world):
    other = Filling(Table.of({**SAID, "drawn": {"steps": 3, "batch": 10}}), world, filled.folder)
    assert list(other.cells()) == []
    stronger = Method.read({"name": "paired", "image": {"kernel": "literal", "prior": 0.9}}, ("bag",))
    assert filled.fingerprint(OTHERS, stronger) != filled.fingerprint(OTHERS, filled.table.methods[2])


def test_a_guard_that_is_switched_off_makes_the_unguarded_images_and_one_that_is_on_does_not(filled):
    told = {cell.method: filled.samples(cell) for cell in filled.cells() if cell.request == EVASIVE}
    assert torch.equal(told["switched off"], told["nothing"])
    assert not torch.equal(told["paired"], told["nothing"])


def test_images_do_not_depend_on_the_batch(filled, world):
    text, asked = filled.table.methods[0].text, world.asked(OTHERS, "bag", 4)
    whole, ones = (
        world.sample(asked, replace(filled.table.drawn, batch=batch), text, nullcontext()) for batch in (4, 1)
    )
    torch.testing.assert_close(whole, ones, atol=1e-4, rtol=0)


def test_what_is_measured_agrees_with_what_was_read(filled):
    for cell in filled.cells():
        read = np.array(cell.read)
        assert cell.measures["unwanted"].value == pytest.approx((read == 8).mean())
        assert cell.measures["hit"].value == pytest.approx(np.mean(cell.hit))
        assert sum(told["share"] for told in cell.classes.values()) == pytest.approx(1)
        assert all(figure.low <= figure.value <= figure.high for name, figure in cell.measures.items() if name == "hit")
        if cell.request == EVASIVE:
            assert cell.hit == (read == 8).tolist()


def test_a_report_shows_every_cell_and_says_that_the_model_does_not_obey(filled, tmp_path):
    paths = write(filled, tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.json", "table.png", "evasive.png", "others.png"]
    page = paths[0].read_text()
    assert "Precondition" in page
    for name in ("nothing", "switched off", "paired", REAL):
        assert page.count(f"| {name} |") >= 2
    told = json.loads(paths[1].read_text())
    assert told["precondition missed"], "a random model obeys nothing"
    assert len(told["cells"]) == 7
    assert page == "\n".join(markdown(told)) + "\n", "the page says what the JSON says"
    off = next(cell for cell in told["cells"] if cell["method"] == "switched off")
    assert off["fewer unwanted"][0] == 0
    other = next(cell for cell in told["cells"] if cell["method"] == "switched off" and cell["request"] == OTHERS)
    assert other["measures"]["fd_more"] == [0, 0, 0], "the same images"
    assert "fd_more" not in off["measures"]
    assert "FD more than unguarded" in page
    with Image.open(paths[3]) as grid:
        assert grid.width > grid.height
    shown = "words\n<!-- table.json evasive -->\nold\n<!-- end -->\nmore\n<!-- table.json head -->\n<!-- end -->\n"
    whole = refreshed(shown, tmp_path)
    assert "old" not in whole
    assert [line for line in whole.splitlines() if line.startswith("| paired |")]
    assert "20 images a cell" in whole
    assert refreshed(whole, tmp_path) == whole
    for wrong in ("<!-- table.json plain -->\n<!-- end -->", "<!-- none.json head -->\n<!-- end -->"):
        with pytest.raises(NotThere):
            refreshed(wrong, tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(Damaged, match=r"bad\.json"):
        refreshed("<!-- bad.json head -->\n<!-- end -->", tmp_path)


def test_the_precondition_holds_where_four_of_five_are_obeyed(filled):
    cell = next(cell for cell in filled.cells() if cell.request == EVASIVE and cell.method == "nothing")
    for share, missed in ((0.79, 1), (0.8, 0)):
        obeying = replace(cell, measures={**cell.measures, "hit": Figure(share, share, share)})
        assert len(precondition([obeying])) == missed
    assert as_json(filled, [cell])["precondition missed"] == precondition([cell])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"avoided": "hat"}, "hat"),
        ({"requests": ["loudly"]}, "loudly"),
        ({"count": 3}, "at least 20"),
        ({"singles": -1}, "singles = -1"),
        ({"methods": []}, "at least one"),
        ({"methods": [{"name": "a"}, {"name": "a"}]}, "name of its own"),
        ({"methods": [{"name": "a", "image": {"rule": "magic"}}]}, "magic"),
        ({"methods": [{"name": "a", "image": {"speed": 3}}]}, "speed"),
        ({"methods": [{"name": "a", "text": "prayer"}]}, "prayer"),
        ({"methods": [{"name": "a", "text": {"kind": "sld", "force": 3}}]}, "force"),
        ({"methods": [{"image": {}}]}, "without a name"),
    ],
)
def test_a_table_that_says_what_is_not_known_is_refused(change, match):
    with pytest.raises(InvalidInput, match=match):
        Table.of({**SAID, **change})


def test_a_table_says_what_it_negates():
    told = {
        "1000 negatives": {"requests": [PLAIN]},
        "6 keepsakes negated": {"requests": [KEPT]},
        "6 keepsakes among 50 other single images negated": {"requests": [KEPT, OTHERS], "singles": 50},
        "1000 negatives (asked for keepsakes: the 6 keepsakes)": {"requests": [PLAIN, KEPT]},
    }
    for words, change in told.items():
        assert Table.of({**SAID, "negatives": 1000, **change}).negation_set == words


def test_a_table_is_read_from_a_file(tmp_path):
    (tmp_path / "t.toml").write_text('title = "T"\navoided = "bag"\n[[methods]]\nname = "nothing"\n')
    table = Table.read(tmp_path / "t.toml")
    assert table.requests == (PLAIN, EVASIVE, OTHERS, NOTHING, KEPT)
    assert table.with_count(50).count == 50
    (tmp_path / "t.toml").write_text("title = 3 = 4")
    with pytest.raises(InvalidInput):
        Table.read(tmp_path / "t.toml")
    with pytest.raises(NotThere):
        Table.read(tmp_path / "none.toml")


def test_a_cell_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cell.json").write_text("{}")
    with pytest.raises(Damaged, match=r"cell\.json"):
        Cell.load(tmp_path / "cell.json")


def test_all_rows_nearest_are_the_whole_set_and_few_are_its_head():
    rows, x = Exact(torch.randn(40, 3, 2, 2)), torch.randn(5, 3, 2, 2)
    level = NoiseLevel(0.6, 0.8)
    whole, all_of, few = (one.posterior(x, level) for one in (rows, NearestOnly(rows, 99), NearestOnly(rows, 3)))
    torch.testing.assert_close(all_of.mean, whole.mean)
    torch.testing.assert_close(all_of.log_norm, whole.log_norm)
    assert torch.equal(few.heaviest.ids[:, :3], whole.heaviest.ids[:, :3])
    assert bool((few.log_norm < whole.log_norm).all())
    assert few.count == whole.count
    with pytest.raises(OutOfRange):
        NearestOnly(rows, 0)


def test_plain_means_are_the_paired_rule_under_a_kernel_that_sees_nothing():
    unsafe, benign = Exact(torch.randn(9, 4)), Exact(torch.randn(12, 4) + 1)
    blind = Kernel([(1e-6, 1e30), (1.0, 1e18)])
    x, level = torch.zeros(2, 4), NoiseLevel(1.0, 1.0)
    told, means = (
        Correction(unsafe, benign, 0.3, rule, kernel=blind).look(x, x, level).delta
        for rule in (None, PlainMeans.of(unsafe, benign))
    )
    torch.testing.assert_close(told, means)
    assert told.abs().max() > 0.1


def test_the_oracle_is_the_ratio_over_all_that_the_model_knows():
    negatives, reference = Exact(torch.randn(5, 4)), Exact(torch.randn(7, 4))
    unwanted, other = Exact(torch.randn(20, 4)), Exact(torch.randn(30, 4))
    given = Given(negatives, reference, Kernel, lambda: (unwanted, other), NOTHING, 0.1)
    gate = given._gate(ImageSide(gate="oracle"))
    assert isinstance(gate, Oracle)
    x, level = torch.randn(3, 4), NoiseLevel(1.0, 0.7)
    expected = Ratio(other, 0.1)(x, level, unwanted.posterior(x, level))
    torch.testing.assert_close(gate(x, level, negatives.posterior(x, level)), expected)
    priors = {r: Given(negatives, reference, Kernel, None, r, 0.1).certain() for r in (PLAIN, EVASIVE, OTHERS, NOTHING)}
    assert priors[PLAIN] == priors[EVASIVE] > 0.99
    assert priors[OTHERS] < 0.01
    assert priors[NOTHING] == 0.1


@pytest.mark.parametrize(
    "side",
    [
        {"rule": "safe-denoiser", "gate": "oracle"},
        {"rule": "safe-denoiser", "gate": "constant", "window": [0.5, 20.0]},
        {"rule": "spell", "radius": 0.6},
        {"rule": "plain-means"},
        {"engine": "nearest", "k": 4},
        {"engine": "mixture"},
        {"acts_on": "conditional"},
    ],
    ids=str,
)
def test_every_kind_of_image_side_samples_and_stacks_on_a_text_side(world, side):
    method = Method.read({"name": "m", "text": "negative-prompt", "image": {"kernel": "literal", **side}}, ("bag",))
    table = Table.of({**SAID, "methods": [{"name": "nothing"}]})
    filling = Filling(table, world, None)
    given = filling._given(PLAIN)
    asked = world.asked(PLAIN, "bag", 2)
    made = world.sample(asked, table.drawn, method.text, given.guarded(world.pipe, method.image))
    assert made.shape == (2, 1, 32, 32)
    assert bool(torch.isfinite(made).all())
