"""Several writers of one set: the benchmark holds what is left against what each was told, and names its parts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
WAYS = (
    "one row in or out, direct",
    "2 rows in or out, direct",
    "a claim opened, direct",
    "a claim opened, by a service",
)


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


def test_the_benchmark_of_writers_names_its_machine_its_disk_and_its_ways(tmp_path):
    said, table = bench("--writers", 2, "--seconds", 0.3, "--keep", tmp_path)
    assert re.match(r"measured on .*\nsets in \w+; .*\nthe disk alone: p50 \d+\.\d\d ms, p99 ", said)
    assert tuple(table) == (*WAYS, "catalogue alone, SQLite")
    for lines in table.values():
        for writers, rate, middle, late, worst, failures in lines:
            assert (writers, failures) == (2, 0)
            assert rate > 0
            assert 0 < middle <= late <= worst
    assert list(tmp_path.iterdir()) == []


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
