"""What asking over HTTP costs: the benchmark prints machine and sizes; its figures are held to only at length."""

import re
import subprocess
import sys

import pytest


def bench(*words):
    command = [sys.executable, "-m", "negindex.tools", "bench", "serve", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_benchmark_of_the_service_names_its_machine_sizes_and_parts():
    few = ("--asks", 5, "--samplers", 3, "--clients", 1, "--seconds", 2, "--workers", 2, "--changes", 2)
    said = bench("--rows", 3, *few)
    assert re.match(r"measured on .*torch .*\n3 rows of 4 × 64 × 64, kernel literal, 2 workers\n", said)
    for name in ("in the process", "over HTTP", "HTTP costs", "over HTTP, with claims", r"seen by \d of 2 workers"):
        assert re.search(rf"^  {name} +-?\d", said, re.M), said
    assert re.search(r"HTTP answers \d+% of what the process does, \d+% while \d+ claims", said)
    assert re.search(r"^one of 2 workers killed .*\n  over HTTP, with claims +\S+ +\S+ +\S+ +0 ", said, re.M), said
    assert re.search(r"back after \S+ s; \d+ claims acknowledged, 0 of them lost, \d+ not answered", said), said


@pytest.mark.long
def test_a_service_costs_at_most_three_milliseconds_and_every_worker_sees_a_version_within_a_second():
    said = bench("--rows", 60)
    print(said)
    assert float(re.search(r"HTTP costs +(\S+)", said)[1]) <= 3
    _, late = map(float, re.search(r"seen by 2 of 2 workers +(\S+) +(\S+)", said).groups())
    assert late < 1000
    assert {int(errors) for errors in re.findall(r"over HTTP\S*(?: with claims)? +\S+ +\S+ +\S+ +(\d+)", said)} == {0}
