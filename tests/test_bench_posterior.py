"""The benchmark of look-ups: what it holds answers against is exact, and what it asks is no row of the set."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mixtures import fresh, kernel, many, noised, rms, scanned
from sklearn.datasets import load_digits

from negindex import LITERAL, Collection, Exact
from negindex.errors import NotAllowed, OutOfRange, SpaceMismatch
from negindex.tools.bench_sets import APART, KINDS, check_disk, queries, stored
from negindex.tools.bench_taken import Taken
from negindex.tools.bench_times import forget
from negindex.tools.bench_truth import exact
from negindex.tools.cli import main
from negindex.tools.latents import BLOCK, Latents

pytestmark = pytest.mark.usefixtures("few_probes")
SHAPE = (1, 8, 8)


def bench(*words):
    return CliRunner().invoke(main, ["bench", "posterior", *map(str, words)])


@pytest.mark.parametrize("literal", [True, False])
def test_the_exact_sums_are_the_scans(monkeypatch, literal):
    monkeypatch.setattr("negindex.tools.bench_truth._BLOCK", 1 << 15)
    given = many()
    one = LITERAL if literal else kernel(given)
    levels, clean = (0.05, 0.5, 5.0, 80.0), fresh()[:6]
    x = torch.stack([noised(clean, s, 1) for s in levels])
    each = torch.tensor(levels, dtype=torch.float64).repeat_interleave(len(clean))
    found = exact(Exact(given), one, x.flatten(0, 1).flatten(1), each)
    for i, s in enumerate(levels):
        true, here = scanned(given, x[i], s, one), slice(i * len(clean), (i + 1) * len(clean))
        wrong = (found.mean[here] - true.mean.flatten(1)).norm(dim=1) / rms(given)
        assert wrong.max() < 1e-5
        torch.testing.assert_close(found.log_norm[here], true.log_norm, rtol=1e-9, atol=1e-6)


def test_a_run_prints_each_level_and_kind_and_what_is_stated_holds(tmp_path):
    asked = ("--rows", 17_000, "--shape", "1,8,8", "--queries", 8, "--levels", "0.5,20")
    done = bench(*asked, "--json", "--keep", tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [(cell["s"], cell["kind"]) for cell in told["cells"]] == [(s, kind) for s in (0.5, 20.0) for kind in KINDS]
    for cell in told["cells"]:
        assert cell["ms"][0] <= cell["ms"][1]
        assert 0 < cell["read"] <= 256
        assert cell["holds"] >= 0.75
        assert cell["error_of_mean"] <= 0.02
        assert cell["log_norm"] < 1e-4  # all clusters are opened
    (image,) = told["images"]
    assert image["steps"] == 2
    assert 0 <= image["read_again"] <= 1
    assert told["seconds_added"] > 0
    again = bench(*asked, "--keep", tmp_path)
    assert again.exit_code == 0, again.output
    assert "rows made in 0 s, added in 0 s" in again.stdout
    assert again.stdout.count("trajectory") == 5
    assert "one image, 2 steps" in again.stdout


def test_no_query_is_noised_from_a_row_of_a_set():
    population, levels = Latents(SHAPE), (1e-6, 1.0)
    asked = queries(population, levels, 8)
    assert list(asked) == list(KINDS)
    assert APART * BLOCK > 1 << 30  # rows of a set that would meet what is asked
    for x in asked.values():
        assert x.shape == (2, 8, *SHAPE)
        for kind in ("rows", "benign"):
            apart = torch.cdist(x[0].flatten(1), population.some(kind, 4096).flatten(1))
            assert apart.min() > 0.1


def test_a_set_that_was_kept_is_taken_again_and_no_other(tmp_path):
    population, said = Latents(SHAPE), []
    made = stored(tmp_path / "set", population, "rows", 5000, said.append)
    assert len(made.collection) == 5000
    assert said[-1] == "set: 5000 of 5000 rows"
    again = stored(tmp_path / "set", population, "rows", 5000, said.append)
    assert again.collection.set_id == made.collection.set_id
    assert (again.made, again.added) == (0, 0)
    with pytest.raises(NotAllowed, match=r"has 5000 rows .* not 4000"):
        stored(tmp_path / "set", population, "rows", 4000, said.append)
    snapshot = again.collection.snapshot()
    before = snapshot.take(torch.tensor([7, 4999])).rows
    forget(snapshot)
    assert torch.equal(snapshot.take(torch.tensor([7, 4999])).rows, before)
    assert torch.equal(before[0].reshape(SHAPE), population.block("rows", 0)[7].half())


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(OutOfRange, match=r"1000000\.0 GB of rows"):
        check_disk(tmp_path, 10**15)


@pytest.mark.parametrize("words", [("--levels", "1,0"), ("--shape", "4,x"), ("--rows", "10")])
def test_what_cannot_be_measured_is_a_usage_error(words):
    assert bench(*words).exit_code == 2


def test_rows_of_ones_own_sets_are_measured_and_what_is_asked_is_held_out(tmp_path):
    digits = {name: Collection.create(tmp_path / f"{name}.set", SHAPE, "pixels") for name in ("eights", "others")}
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels.reshape(-1, *SHAPE) / 8 - 1).astype(np.float32)
    for name, chosen in (("eights", labels >= 5), ("others", labels < 5)):
        digits[name].add(pixels[chosen], [f"{name}-{i}" for i in range(int(chosen.sum()))])
    own = ("--of", tmp_path / "eights.set", "--reference", tmp_path / "others.set")
    done = bench(*own, "--weigh", 64, "--queries", 8, "--levels", "0.5,20", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert 700 < told["rows"] < len(digits["eights"]) - 8
    assert told["space"] == "pixels"
    for cell in told["cells"]:
        assert 16 < cell["weighed"] <= 128
        assert 0 < cell["error_of_mean"] < 0.2
        assert cell["holds"] >= 0.5
    assert bench("--of", tmp_path / "eights.set").exit_code == 2
    assert bench(*own, "--keep", tmp_path / "kept").exit_code == 2
    assert "scanned" in bench(*own, "--queries", 4, "--levels", "1").stderr


def test_parts_of_a_set_share_no_row():
    rows = torch.arange(2000.0).reshape(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()
    population = Taken(Exact(rows, space="a"), Exact(-1 - rows, space="a"), 50, seed=3)
    assert population.count("rows") == population.count("benign") == 2000 - 50 - 200
    parts = [
        population.block(kind, number, rows=many)
        for kind in ("rows", "benign")
        for number, many in ((0, 4096), (APART, 50), (APART + 1, 200))
    ]
    assert torch.cat(parts)[:, 0, 0, 0].unique().numel() == 4000
    assert torch.equal(parts[1], population.block("held out", APART, rows=50))
    with pytest.raises(OutOfRange, match="2000 rows in force; measuring takes 2001"):
        Taken(Exact(rows), Exact(rows), 1201, seed=0)
    with pytest.raises(SpaceMismatch, match="built alike"):
        Taken(Exact(rows, space="a"), Exact(rows, space="b"), 5, seed=0)
