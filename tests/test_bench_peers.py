"""Vector searches to stand beside: each finds what the plain sum of squares finds; the bench prints them all."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from negindex.tools.bench_peers import OURS, SHARES
from negindex.tools.peers import PEERS

WIDTH, ROWS, K = 24, 2000, 10


@pytest.mark.parametrize("kind", PEERS, ids=lambda kind: kind.name)
def test_its_most_careful_setting_finds_nearly_all_of_the_nearest_and_the_hastiest_no_more(kind, tmp_path):
    pytest.importorskip(kind.needs, reason=f"{kind.needs} is not installed")
    draw = np.random.default_rng(0)
    rows, queries = (draw.normal(size=(n, WIDTH)).astype(np.float32) for n in (ROWS, 40))
    nearest = np.square(queries[:, None] - rows).sum(2).argsort(1)[:, :K]
    peer = kind()
    peer.build(rows, tmp_path)

    def recall(setting):
        found = [peer.search(query, K, setting) for query in queries]
        assert all(len(set(some)) == len(some) <= K for some in found)
        return np.mean([len(set(some) & set(true)) / K for some, true in zip(found, nearest.tolist(), strict=True)])

    assert recall(kind.settings[-1]) >= 0.95
    assert recall(kind.settings[0]) <= recall(kind.settings[-1])


def test_the_benchmark_prints_machine_sizes_and_a_curve_of_each_and_draws_it(tmp_path):
    words = ["--rows", "2000", "--shape", "4,8,8", "--queries", "12", "--k", "5", "--plot", tmp_path / "peers.png"]
    command = [sys.executable, "-m", "negindex.tools", "bench", "peers", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    installed = [kind for kind in PEERS if _found(kind.needs)]
    assert "torch" in done.stdout
    assert "2000 rows of 4,8,8" in done.stdout
    assert all(name in done.stdout for name in (OURS, *(kind.name for kind in installed)))
    assert all(f"{kind.needs} is not installed" in done.stderr for kind in PEERS if kind not in installed)
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_recall_is_counted_against_the_nearest_of_all_rows():
    words = ["--rows", "2000", "--shape", "4,8,8", "--queries", "12", "--k", "5", "--json"]
    command = [sys.executable, "-m", "negindex.tools", "bench", "peers", *words]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    curves = {curve["name"]: curve["points"] for curve in told["curves"]}
    assert [point["setting"] for point in curves[OURS]] == [2000 // share for share in SHARES]
    assert curves["FAISS Flat"][0]["recall"] >= 0.98  # float32 may order near-equal distances otherwise
    assert all(
        0 <= point["recall"] <= 1 and point["ms"] <= point["p99"] for curve in curves.values() for point in curve
    )
    assert curves[OURS][0]["recall"] < curves[OURS][-1]["recall"]


def _found(module):
    return importlib.util.find_spec(module) is not None
