"""Backups on schedule: made when they are due, by one service, gone through, the last few kept; failures are alarms."""

import datetime as dt
import errno
import http.server
import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from forked import PROCESSES
from serving import figure, processes, serving
from small_sets import SHAPE, rows

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.disk import Disk, writer_lock
from negindex.errors import InvalidInput, NotThere
from negindex.service.alarms import Bell
from negindex.service.janitor import go_round
from negindex.service.metrics import Metrics
from negindex.service.run import check
from negindex.service.scheduled import AGAIN, Backups, Stoppable
from negindex.service.settings import Settings, read_settings
from negindex.testing import FailingDisk, FaultyDisk, KillingDisk, points

DAY = dt.timedelta(days=1)
LEVEL = NoiseLevel(0.7, 0.7)
X = torch.ones(2, *SHAPE)
CANARY = "canary-canary-canary-canary-canary"


@pytest.fixture
def root(tmp_path):
    """Two sets, and a place for their backups."""
    for name in ("a.set", "b.set"):
        (tmp_path / "sets").mkdir(exist_ok=True)
        with Collection.create(tmp_path / "sets" / name, SHAPE, "pixels") as made:
            made.add(rows(3), ["a", "b", CANARY])
    (tmp_path / "to").mkdir()
    return tmp_path / "sets"


def settings_of(root, keep=2):
    return Settings(root=root, backup_every="24h", backup_to=root.parent / "to", backup_keep=keep)


def backups_of(root, keep=2, disk=None):
    return Backups(settings_of(root, keep), Metrics(), disk)


def today():
    return dt.datetime.now(dt.UTC)


def there(root, name="a.set"):
    """What lies in a set's folder of backups but for the lock."""
    folder = root.parent / "to" / name
    return sorted(one.name for one in folder.iterdir() if one.name != "writer.lock") if folder.is_dir() else []


def on_record(root, name="a.set"):
    with Collection.open(root / name) as made:
        return [Path(one.path).name for one in made.backups()]


def test_each_set_is_backed_up_when_it_is_due_and_the_last_few_are_kept(root):
    backups, start = backups_of(root, keep=3), today()
    assert backups.go_round(start) == 2
    assert backups.go_round(start + DAY / 2) == 0
    for day in range(1, 6):
        with Collection.open(root / "a.set") as made:
            made.add(rows(1, seed=100 + day), [f"day-{day}"])
            before = made.newest().version
        assert backups.go_round(start + day * (DAY + dt.timedelta(minutes=1))) == 2
        for name in ("a.set", "b.set"):
            assert len(there(root, name)) == min(day + 1, 3)
            assert there(root, name) == on_record(root, name)
        with Collection.open(root / "a.set") as made:
            assert made.newest().version == before  # no version changes by it
    newest = root.parent / "to" / "a.set" / there(root)[-1]
    with Collection.restore(newest, root.parent / "back") as back, Collection.open(root / "a.set") as made:
        assert back.source_keys() == made.source_keys()
        assert torch.equal(back.posterior(X, LEVEL).mean, made.posterior(X, LEVEL).mean)


def test_a_restarted_service_goes_on_with_the_schedule(root):
    assert backups_of(root).go_round() == 2
    assert backups_of(root).go_round() == 0
    assert backups_of(root).go_round(today() + DAY) == 2


def test_a_backup_that_somebody_made_by_hand_is_left_alone(root):
    backups, start = backups_of(root, keep=1), today()
    backups.go_round(start)
    with Collection.open(root / "a.set") as made:
        made.backup(root.parent / "to" / "a.set" / "before the move")
        made.backup(root.parent / "elsewhere")
    for day in (2, 4):
        backups.go_round(start + day * DAY)
    assert len(there(root)) == 2
    assert "before the move" in there(root)
    assert (root.parent / "elsewhere").is_dir()


def test_an_erasure_leaves_every_backup_that_is_kept(root):
    backups, start = backups_of(root, keep=2), today()
    for day in (0, 2, 4):
        backups.go_round(start + day * DAY)
    files = [path for path in (root.parent / "to" / "a.set").rglob("*") if path.is_file()]
    assert any(CANARY.encode() in path.read_bytes() for path in files)
    with Collection.open(root / "a.set") as made:
        made.erase([CANARY], "asked for")
        assert made.outstanding() == []
    for path in (root.parent / "to" / "a.set").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_a_deleted_backup_owes_nothing_any_more(root):
    backups, start = backups_of(root, keep=1), today()
    backups.go_round(start)
    old = root.parent / "to" / "a.set" / there(root)[0]
    with Collection.open(root / "a.set") as made, writer_lock(old):  # somebody reads it: nothing can be taken out
        made.erase([CANARY], "asked for")
        assert [one.name for one in made.outstanding()] == [str(old)]
    backups.go_round(start + 2 * DAY)
    with Collection.open(root / "a.set") as made:
        assert made.outstanding() == []
    assert not old.exists()


# -- what fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
def test_a_disk_that_fails_at_any_call_is_an_alarm_and_costs_no_older_backup(root, step):
    shutil.rmtree(root / "b.set")
    start = today()
    backups_of(root, keep=1).go_round(start)
    rehearsal = FaultyDisk()
    origin = root.parent / "origin"
    for name in ("to", "sets"):
        shutil.copytree(root.parent / name, origin / name)
    backups_of(root, keep=1, disk=rehearsal).go_round(start + 2 * DAY)
    assert {"copy_database", "write", "rename", "commit"} <= set(rehearsal.calls)
    failed, chosen = 0, points(rehearsal.calls)[::step]
    for number, (at, when) in enumerate(chosen):
        for name in ("to", "sets"):
            shutil.rmtree(root.parent / name)
            shutil.copytree(origin / name, root.parent / name)
        error, metrics = (errno.ENOSPC, errno.EIO)[number % 2], Metrics()
        backups = Backups(settings_of(root, keep=1), metrics, FailingDisk(at, when, error))
        backups.go_round(start + 2 * DAY)
        assert there(root)
        found = backups.alarms()
        failed += len(found)
        assert len(found) == figure(metrics.text().decode(), "negindex_backup_failures_total")
        assert {one.error for one in found} <= {f"OSError {errno.errorcode[error]}"}
        assert all(one.last_good is not None for one in found)
        if found:
            assert backups.go_round(start + 2 * DAY + AGAIN / 2) == 0  # not before some time
            assert backups.go_round(start + 2 * DAY + AGAIN) == 1
        assert backups.alarms() == []
        assert there(root) == on_record(root)
        assert len(there(root)) == 1
    assert failed > len(chosen) / 2


def test_a_damaged_set_is_an_alarm_and_the_others_have_their_turn(root):
    backups, start = backups_of(root, keep=1), today()
    backups.go_round(start)
    kept = there(root)
    (file,) = (root / "a.set" / "segments").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert backups.go_round(start + 2 * DAY) == 1
    ((name, error, *_),) = backups.alarms()
    assert (name, error) == ("a.set", "Damaged")
    assert there(root) == kept
    assert there(root, "b.set") != kept


class Rotting(Disk):
    """Flips a bit of the copied rows when the backup gets its name: after the copy was checked."""

    rots = True

    def rename(self, aside, path):
        super().rename(aside, path)
        if self.rots and path.parent.name == "a.set" and path.is_dir():
            (file,) = (path / "segments").iterdir()
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)


def test_a_backup_that_is_not_what_was_written_is_no_backup(root):
    disk = Rotting()
    backups, start = backups_of(root, keep=1, disk=disk), today()
    assert backups.go_round(start) == 1
    assert [(one.set, one.error, one.last_good) for one in backups.alarms()] == [("a.set", "Damaged", None)]
    assert there(root) == on_record(root) == []
    disk.rots = False
    assert backups.go_round(start + AGAIN) == 1
    assert backups.alarms() == []


def test_a_disk_that_is_not_mounted_is_an_alarm_and_nothing_is_written_in_its_place(root):
    backups, start = backups_of(root), today()
    backups.go_round(start)
    (root.parent / "to").rename(root.parent / "unplugged")
    (root.parent / "to").mkdir()
    assert backups.go_round(start + 2 * DAY) == 0
    assert {one.error for one in backups.alarms()} == {"NotThere"}
    assert list((root.parent / "to").iterdir()) == []
    (root.parent / "to").rmdir()
    (root.parent / "unplugged").rename(root.parent / "to")
    assert backups.go_round(start + 2 * DAY + AGAIN) == 2
    assert backups.alarms() == []


def killed(root, at, when):
    backups_of(root, keep=1, disk=KillingDisk(at, when)).go_round(today() + 2 * DAY)


@pytest.mark.parametrize("at", range(1, 60, 7))
def test_a_kill_leaves_nothing_half_and_the_next_round_makes_it(root, at):
    backups_of(root, keep=1).go_round()
    process = PROCESSES.Process(target=killed, args=(root, at, "after"))
    process.start()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    for hours in (0, 24):  # what was made before the kill counts
        backups_of(root, keep=1).go_round(today() + 3 * DAY + dt.timedelta(hours=hours))
    for name in ("a.set", "b.set"):
        assert len(there(root, name)) == 1
        assert there(root, name) == on_record(root, name)


def test_only_one_of_two_services_makes_it(root):
    made, start, begin = [], today(), threading.Barrier(2)

    def work():
        mine = backups_of(root)
        begin.wait()
        for _ in range(5):
            made.append(mine.go_round(start))
            time.sleep(0.02)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) == 2
    assert [len(there(root, name)) for name in ("a.set", "b.set")] == [1, 1]


def test_a_service_that_stops_takes_back_what_it_has_begun(root):
    stop = threading.Event()
    stop.set()
    backups = backups_of(root, disk=Stoppable(stop))
    assert backups.go_round() == 0
    assert backups.alarms() == []
    assert there(root) == on_record(root) == []


# -- who is told ---------------------------------------------------------------------------


def test_ages_and_failures_are_figures(root):
    metrics = Metrics()
    backups = Backups(settings_of(root), metrics)
    (root.parent / "to" / "b.set").touch()  # no directory
    now = today()
    backups.go_round(now)
    backups.tell(now + DAY)
    text = metrics.text().decode()
    ages = {name: figure(text, rf'negindex_backup_age_seconds{{set="{name}"}}') for name in ("a.set", "b.set")}
    assert 0 < DAY.total_seconds() - ages["a.set"] < 60
    assert ages["b.set"] == math.inf
    assert 'negindex_backup_failures_total{set="a.set"} 0.0' in text
    assert 'negindex_backup_failures_total{set="b.set"} 1.0' in text


def test_a_failure_rings_the_bell_once_until_it_is_over(root):
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    backups, start = backups_of(root), today()
    backups.go_round(start)
    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        bell = Bell(root, f"http://127.0.0.1:{server.server_port}/hook")

        def later(days):
            backups.go_round(start + days * DAY)
            go_round(settings_of(root), Metrics(), bell, backups.alarms())

        (root.parent / "to").rename(root.parent / "unplugged")
        later(2)
        later(3)
        assert [(one["event"], one["set"], one["error"]) for one in got] == [
            ("backup-alarm", "a.set", "NotThere"),
            ("backup-alarm", "b.set", "NotThere"),
        ]
        (root.parent / "unplugged").rename(root.parent / "to")
        later(4)
        (root.parent / "to").rename(root.parent / "unplugged")
        later(6)
        server.shutdown()
        thread.join()
    assert len(got) == 4


def test_the_service_backs_up_and_serves_on_when_it_cannot(root):
    words = ("--workers", 2, "--upkeep-seconds", 0.2, "--backup-every", "1h", "--backup-to", root.parent / "to")
    with processes(root, *words) as (url, service):

        def text():
            return httpx.get(f"{url}/metrics").text

        end = time.monotonic() + 60
        while not (there(root, "b.set") and 'backup_age_seconds{set="b.set"}' in text()):
            assert time.monotonic() < end, service.lines
            time.sleep(0.1)
        assert [len(there(root, name)) for name in ("a.set", "b.set")] == [1, 1]
        assert figure(text(), 'negindex_backup_age_seconds{set="a.set"}') < 3600
        with Collection.create(root / "c.set", SHAPE, "pixels") as made:
            made.add(rows(1), ["a"])
        os.rename(root.parent / "to", root.parent / "unplugged")
        with Collection.create(root / "d.set", SHAPE, "pixels") as made:
            made.add(rows(1), ["a"])
        while not figure(text(), 'negindex_backup_failures_total{set="d.set"}'):
            assert time.monotonic() < end, service.lines
            time.sleep(0.1)
        assert httpx.get(f"{url}/health/ready").json() == {"status": "ready"}
        with RemoteNegatives(url, "d.set") as remote:
            assert remote.posterior(X, LEVEL).count == 1
        while not any('"backup-alarm"' in line for line in service.lines):
            assert time.monotonic() < end, service.lines
            time.sleep(0.1)
    assert not any(str(root) in line for line in service.lines)  # no place stands in the log


# -- settings ------------------------------------------------------------------------------


def test_backups_need_a_length_of_time_and_a_place_of_their_own(root, monkeypatch):
    with pytest.raises(InvalidInput, match="give both"):
        check(Settings(root=root, backup_every="24h"))
    with pytest.raises(InvalidInput, match="give both"):
        check(Settings(root=root, backup_to=root.parent / "to"))
    with pytest.raises(NotThere, match="mount the disk"):
        check(Settings(root=root, backup_every="24h", backup_to=root.parent / "none"))
    for within in (root, root / "a.set"):
        with pytest.raises(InvalidInput, match="name a place elsewhere"):
            check(Settings(root=root, backup_every="24h", backup_to=within))
    for wrong in ("soon", "24", "0h", "-1d", "1w"):
        with pytest.raises(InvalidInput, match="backup_every"):
            read_settings({"backup_every": wrong})
    monkeypatch.setenv("NEGINDEX_BACKUP_EVERY", "30min")
    settings, origins = read_settings({"backup_to": root.parent / "to"})
    assert (settings.backup_every, settings.backup_keep) == ("30min", 7)
    assert origins["backup_every"] == "environment NEGINDEX_BACKUP_EVERY"
    assert check(settings) is True


def test_answers_go_on_while_a_backup_is_made(root):
    with serving(root) as url, RemoteNegatives(url, "a.set") as remote:
        before, end = remote.posterior(X, LEVEL), threading.Event()
        told = []

        def ask():
            while not end.is_set():
                told.append(remote.posterior(X, LEVEL))

        thread = threading.Thread(target=ask)
        thread.start()
        backups_of(root).go_round()
        end.set()
        thread.join()
    assert told
    assert all(torch.equal(one.mean, before.mean) for one in told)
