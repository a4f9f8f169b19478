"""What a takedown costs: the benchmark prints it with machine and sizes; its figures are held to only at length."""

import re
import subprocess
import sys

import pytest


def bench(*words):
    """What the benchmark printed: all of it, and {size: its figures}, and how many times as long at the largest."""
    command = [sys.executable, "-m", "negindex.tools", "bench", "takedown", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # apart, since it sets torch's threads
    assert done.returncode == 0, done.stderr
    table = {
        int(size): list(map(float, rest.split()))
        for size, rest in re.findall(r"^ +(\d+)((?: +\d+\.\d+){6})$", done.stdout, re.M)
    }
    return done.stdout, table, [float(times) for times in re.findall(r"× (\d+\.\d+)", done.stdout)]


def test_the_benchmark_of_a_takedown_names_its_machine_sizes_and_parts():
    said, table, times = bench("--rows", 5, "--rows", 40, "--changes", 3, "--seen", 6, "--watchers", 2)
    assert re.match(r"measured on .*torch .*\nrows of 16 numbers; median ms of 3 changes.* 2 others", said)
    assert list(table) == [5, 40]
    assert all(figure > 0 for figures in table.values() for figure in figures[:4])
    assert all(late >= middle for *_, middle, late in table.values())
    assert len(times) == 2


@pytest.mark.long
def test_case_6_the_time_to_withdraw_does_not_grow_with_the_set():
    said, table, times = bench("--rows", 1000, "--rows", 100_000)
    print(said)
    assert max(times) <= 2, said
    assert max(late for *_, late in table.values()) < 1000, said  # a change is seen within a second
