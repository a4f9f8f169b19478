"""Several writers of one set: the benchmark holds what is left against what each was told, and names its parts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
DIRECT = ("one row in or out, direct", "2 rows in or out, direct", "a claim opened, direct")


def bench(*words):
    """What the benchmark printed, and {way: its figures, a line for each number of writers}."""
    command = [sys.executable, "-m", "negindex.tools", "bench", "writers", "--batch", "2", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(\S.*?\S) +(\d+) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d) +(\d+)$", done.stdout, re.M)
    table = {}
    for way, *figures in lines:
        table.setdefault(way, []).append(list(map(float, figures)))
    return done.stdout, table


def none_failed(table, count):
    for lines in table.values():
        for writers, rate, middle, late, worst, failures in lines:
            assert (writers, failures) == (count, 0)
            assert rate > 0
            assert 0 < middle <= late <= worst


def test_the_benchmark_of_writers_names_its_machine_its_disk_and_its_ways(tmp_path):
    words = ["--only", "direct", "--only", "SQLite"]
    said, table = bench("--writers", 2, "--seconds", 0.1, "--keep", tmp_path, *words)
    assert re.match(r"measured on .*\nsets in \w+; .*\nthe disk alone: p50 \d+\.\d\d ms, p99 ", said)
    assert tuple(table) == (*DIRECT, "catalogue alone, SQLite")
    none_failed(table, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long  # a start of `negindex serve`
def test_writers_through_a_service_are_measured_too(tmp_path):
    _, table = bench("--writers", 1, "--seconds", 0.3, "--keep", tmp_path, "--only", "by a service")
    assert tuple(table) == ("a claim opened, by a service",)
    none_failed(table, 1)


@pytest.mark.services
@pytest.mark.skipif(POSTGRES is None, reason="needs Debian's postgresql")
def test_the_same_transaction_is_written_to_a_real_postgresql(tmp_path):
    pytest.importorskip("psycopg", reason="needs psycopg")
    data, user = tmp_path / "data", ["runuser", "-u", "postgres", "--"]
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    shutil.chown(tmp_path, "postgres")
    options = f"-p 54398 -k {tmp_path} -c listen_addresses=''"
    subprocess.run([*user, POSTGRES / "initdb", "-D", data, "-A", "trust"], check=True, capture_output=True)
    control = [*user, POSTGRES / "pg_ctl", "-D", data]
    subprocess.run([*control, "-o", options, "-l", tmp_path / "log", "-w", "start"], check=True)
    try:
        dsn = f"host={tmp_path} port=54398 user=postgres dbname=postgres"
        _, table = bench("--writers", 2, "--seconds", 0.5, "--postgres", dsn)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True)
    assert table["catalogue alone, PostgreSQL"][0][-1] == 0
