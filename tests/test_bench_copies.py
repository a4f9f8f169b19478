"""The benchmark of the copy gate: copies fire alike in a small and a large set, and its sets are the other bench's."""

import json

import pytest
from click.testing import CliRunner

from negindex.sampler.copies import CERTAIN, REACH
from negindex.tools.cli import main

pytestmark = pytest.mark.usefixtures("few_probes")


def bench(*words):
    return CliRunner().invoke(main, ["bench", *map(str, words)])


def test_copies_fire_alike_in_both_sets_and_nothing_else_does(tmp_path):
    asked = ("copies", "--rows", 17_000, "--shape", "1,8,8", "--planted", 20, "--queries", 30, "--scans", 2)
    done = bench(*asked, "--json", "--keep", tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [cell["share"] for cell in told["cells"]] == [0.1, 0.5, 0.9, 0.9999, 3.9]
    assert told["reach"] == pytest.approx(REACH / CERTAIN * told["radius"])
    *near, beyond = told["cells"]
    assert all(cell["fire"] == cell["fire_in_few"] >= 0.95 for cell in near)
    assert min(beyond["fire"], beyond["fire_in_few"]) > 0.1
    assert [cell["as_scanned"] for cell in told["cells"]] == [True, True, True, True, None]
    for cell in told["cells"]:
        assert cell["ms"][0] <= cell["ms"][1]
    again = bench(*asked[:-1], 0, "--levels", "0.1,0.9", "--keep", tmp_path)
    assert again.exit_code == 0, again.output
    assert "yes" not in again.stdout
    assert [line.split()[1] for line in again.stdout.splitlines()[-2:]] == ["0.1", "0.9"]
    assert f"radius {told['radius']:.4g}" in again.stdout


def test_what_cannot_be_measured_is_a_usage_error():
    for words in (("--rows", "10"), ("--shape", "4,x"), ("--planted", "2000"), ("--levels", "half")):
        assert bench("copies", *words).exit_code == 2
