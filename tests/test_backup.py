"""A backup is one version, whole; what is erased later leaves it too; a restore brings back what the log says."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forked import PROCESSES
from small_sets import SHAPE, rows, state

from negindex import Collection, Exact, NoiseLevel, merkle
from negindex.errors import Damaged, InvalidInput, NotAllowed, NotThere, OnHold, UnknownKey
from negindex.keys import Key
from negindex.log import ranges
from negindex.states import Provenance
from negindex.testing import FailingDisk, FaultyDisk, KillingDisk, ShortDisk, points
from negindex.tools.cli import main

MARK = b"canary-canary-canary-canary-canary-canary-canary-canary-canary!!"
TEXT = MARK.decode()
LEVEL = NoiseLevel(1.0, 1.0)
HASH = "sha256:" + "ab" * 32


def holding(folder, *marks):
    """Files below a folder that hold one of the marks."""
    return [p.name for p in folder.rglob("*") if p.is_file() and any(m in p.read_bytes() for m in marks)]


def answers(col, expected):
    """What the set says is what these rows say."""
    told = col.posterior(torch.zeros(1, *SHAPE), LEVEL)
    true = Exact(np.concatenate(expected)).posterior(torch.zeros(1, *SHAPE), LEVEL)
    assert len(col) == told.count == true.count
    assert torch.allclose(told.log_norm, true.log_norm)
    assert torch.allclose(told.mean, true.mean)


def export(col, path, stop=None):
    """As `negindex log SET --json` prints it."""
    path.write_text("".join(record.to_json() + "\n" for record in col.log(stop=stop)), encoding="utf-8")
    return path


def plant(col):
    """A claim in force, with marks in every place that holds words or bytes; returns claim and marks."""
    marked = rows(1, seed=77)
    fields = dict.fromkeys(("good_faith", "accuracy", "authority"), "yes") | {"material": "m", "contact": "c"}
    claim = col.claims.open(
        "dmca",
        fields | {"work": f"work {TEXT}", "signature": f"name {TEXT}"},
        rows=marked,
        source_keys=[f"key {TEXT}"],
        label=f"label {TEXT}",
        sources=[Provenance(thumbnail=b"\x89PNG" + MARK)],
        embeddings=rows(1, seed=78).reshape(1, -1),
        reason=f"note {TEXT}",
    )
    col.claims.accept(claim.number)
    return claim.number, (MARK, marked.tobytes(), rows(1, seed=78).tobytes())


@pytest.fixture
def planted(col):
    """Forty plain rows and one with marks, at version 5."""
    col.add(rows(40), [f"row-{i}" for i in range(40)])
    claim, marks = plant(col)
    col.withdraw(["row-3"], "another change")
    return col, claim, marks


# -- a backup ------------------------------------------------------------------------------


def test_a_restored_backup_answers_as_the_version_it_names(three, tmp_path):
    three.withdraw(["b"], "mistaken")
    made = three.backup(tmp_path / "backup")
    three.add(rows(2, seed=5), ["later", "still later"])
    assert (made.version, made.path) == (2, str(tmp_path / "backup"))
    assert [(b.id, b.version, b.found, b.owed) for b in three.backups()] == [(made.id, 2, "there", ())]
    back = Collection.restore(tmp_path / "backup", tmp_path / "back", reason="the disk died", by="ops")
    assert back.set_id == three.set_id
    assert back.log()[:3] == three.log()[:3]
    assert (back.newest().action, back.newest().reason, back.newest().by) == ("restore", "the disk died", "ops")
    answers(back, [rows(3)[[0, 2]]])
    answers(back.snapshot(1), [rows(3)])
    assert back.add(rows(1, seed=9), ["new"]) == 4
    assert len(three) == 4


def test_a_backup_is_no_live_set_and_says_what_brings_it_back(three, tmp_path):
    three.backup(tmp_path / "backup")
    with pytest.raises(NotAllowed, match=r"is a backup; `negindex restore` brings it back"):
        Collection.open(tmp_path / "backup")
    with pytest.raises(NotThere, match="is no backup"):
        Collection.restore(three.path, tmp_path / "back")
    with pytest.raises(NotAllowed, match="exists; move it away"):
        Collection.restore(tmp_path / "backup", three.path)


def test_a_place_that_is_taken_or_missing_is_refused(three, tmp_path):
    three.backup(tmp_path / "backup")
    with pytest.raises(NotAllowed, match="exists; name a place"):
        three.backup(tmp_path / "backup")
    shutil.rmtree(tmp_path / "backup")
    with pytest.raises(NotAllowed, match="it is not there; bring it back, say that it is gone"):
        three.backup(tmp_path / "backup")
    with pytest.raises(NotThere, match="make it, or mount"):
        three.backup(tmp_path / "nowhere" / "backup")
    assert len(three.backups()) == 1


def test_damaged_bytes_are_not_backed_up_and_the_file_is_named(three, tmp_path):
    (file,) = (three.path / "segments").iterdir()
    bytes_ = bytearray(file.read_bytes())
    bytes_[-1] ^= 1
    file.write_bytes(bytes_)
    with pytest.raises(Damaged, match=f"{file.name} is not what the record says"):
        three.backup(tmp_path / "backup")
    file.unlink()
    with pytest.raises(Damaged, match=f"{file.name} is missing"):
        three.backup(tmp_path / "backup")
    assert three.backups() == []
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_damaged_backup_is_not_restored_and_the_file_is_named(three, tmp_path):
    three.backup(tmp_path / "backup")
    (file,) = (tmp_path / "backup" / "segments").iterdir()
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(Damaged, match=f"{file.name} is not what the record says"):
        Collection.restore(tmp_path / "backup", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backup", "set"]


def test_regimes_of_ones_own_and_the_rights_go_along(three, tmp_path):
    (three.path / "regimes").mkdir()
    law = "from negindex"
    (three.path / "regimes" / "own.toml").write_text(law)
    three.path.chmod(0o750)
    three.backup(tmp_path / "backup")
    back = Collection.restore(tmp_path / "backup", tmp_path / "back")
    assert (back.path / "regimes" / "own.toml").read_text() == law
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / "backup", back.path)] == [0o750, 0o750]


def busy(path, ack):
    """Adds, withdraws, erases and compacts until it is killed."""
    col = Collection.open(path)
    for i in range(100_000):
        col.add(rows(1, seed=i), [f"row-{i}"])
        if i % 3 == 0:
            col.withdraw([f"row-{i}"], "every third")
        if i % 5 == 4:
            col.erase([f"row-{i - 2}"], "some")
        if i % 17 == 0:
            col.compact()
        ack.send(i)


@pytest.fixture
def busy_set(col):
    """A set that another process changes all the while."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=busy, args=(col.path, theirs))
    process.start()
    theirs.close()
    while ours.recv() < 20:
        pass
    yield col
    process.kill()
    process.join()


def test_each_backup_of_a_set_in_use_is_exactly_the_version_it_names(busy_set, tmp_path):
    made = []
    for i in range(6):
        before = busy_set.newest().version
        made.append(busy_set.backup(tmp_path / f"backup-{i}"))
        assert before <= made[-1].version <= busy_set.newest().version
        held = busy_set.pin()  # a reader goes on
        answers(held, [rows(1, seed=i - 1) for i in held.digests()])
        del held
        time.sleep(0.1)
    assert made[-1].version > made[0].version
    while busy_set.outstanding():  # the writer's own old files
        busy_set.settle()
    for i, one in enumerate(made):
        taken = {int(name) for what, name in noted(tmp_path / f"backup-{i}") if what == "row"}
        back = Collection.restore(tmp_path / f"backup-{i}", tmp_path / f"back-{i}")
        then = busy_set.in_force(one.version)
        assert {i for i, key in then.items() if key is None} & taken == taken & then.keys()
        answers(back, [rows(1, seed=i - 1) for i in then if i not in taken])
        assert back.log()[: one.version + 1] == busy_set.log(stop=one.version + 1)


def noted(backup):
    with closing(sqlite3.connect(backup / "catalogue.sqlite")) as db:
        return db.execute("SELECT what, name FROM outstanding").fetchall()


# -- erasures ------------------------------------------------------------------------------


def test_erased_bytes_are_in_no_file_of_set_backup_or_restored_set(planted, tmp_path):
    col, claim, marks = planted
    col.backup(tmp_path / "backup")
    assert all(holding(tmp_path / "backup", mark) for mark in marks)
    col.claims.withdraw(claim)
    col.claims.erase(claim, keep_out=True)
    assert col.outstanding() == []
    assert holding(tmp_path, *marks) == []
    back = Collection.restore(tmp_path / "backup", tmp_path / "back")
    assert holding(tmp_path, *marks) == []
    assert back.claims.show(claim).state == "erased"
    assert back.claims.claimant(claim) == {}
    assert len(back) == 39
    assert back.log()[-1].erased == ((41, 41),)
    assert sorted(back.source_keys()) == sorted(f"row-{i}" for i in range(40) if i != 3)
    with pytest.raises(NotAllowed, match="kept out"):
        back.add(rows(1, seed=77), ["again"])


def test_only_backups_that_hold_the_row_owe_its_erasure(three, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    three.backup(disk / "early")
    three.add(rows(1, seed=7), ["d"])
    three.backup(disk / "late")
    disk.rename(tmp_path / "away")
    version = three.erase(["d"], "asked for")
    assert [(o.what, o.name, o.version) for o in three.outstanding()] == [("backup", str(disk / "late"), version)]
    assert [b.owed for b in three.backups()] == [(), (version,)]


def test_the_words_of_a_claim_without_rows_leave_a_backup_too(col, tmp_path):
    col.claims.open("hash-only", {}, hashes=[HASH], reason=f"note {TEXT}")
    col.backup(tmp_path / "backup")
    col.claims.withdraw(1)
    col.claims.erase(1)
    assert holding(tmp_path, MARK, b"ab" * 32) == []
    back = Collection.restore(tmp_path / "backup", tmp_path / "back")
    assert (back.claims.show(1).state, back.claims.show(1).hashes) == ("erased", [])


def test_a_claim_on_hold_is_not_erased_even_without_rows(col):
    col.claims.open("hash-only", {}, hashes=[HASH])
    col.claims.hold(1, by="one")
    col.claims.hold(1, by="another")
    col.claims.withdraw(1)
    with pytest.raises(OnHold):
        col.claims.erase(1)


def test_an_erasure_is_pending_while_a_backup_is_out_of_reach_and_done_when_it_comes_back(planted, tmp_path):
    col, claim, marks = planted
    (tmp_path / "disk").mkdir()
    col.backup(tmp_path / "disk" / "backup")
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    col.claims.withdraw(claim)
    col.claims.erase(claim)
    (left,) = col.outstanding()
    assert (left.what, left.name) == ("backup", str(tmp_path / "disk" / "backup"))
    assert "out of reach, as it looks" in col.backups()[0].found
    (tmp_path / "disk").mkdir()
    assert "is empty, as when nothing is mounted there" in col.backups()[0].found
    (tmp_path / "disk" / "another").touch()
    assert "deleted, as it looks" in col.backups()[0].found
    assert col.settle() == [left]
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "unplugged").rename(tmp_path / "disk")
    assert holding(tmp_path / "disk", *marks) != []
    Collection.open(col.path).close()
    assert col.outstanding() == []
    assert holding(tmp_path, *marks) == []
    assert col.backups()[0].found == "there"


def test_a_backup_is_off_the_list_only_when_somebody_says_that_it_is_gone(three, tmp_path):
    three.backup(tmp_path / "backup")
    with pytest.raises(NotAllowed, match="is there; delete it first"):
        three.forget_backup(tmp_path / "backup", by="ops")
    shutil.rmtree(tmp_path / "backup")
    three.erase(["a"], "asked for")
    assert [one.what for one in three.settle()] == ["backup"]
    with pytest.raises(InvalidInput, match="say who"):
        three.forget_backup(tmp_path / "backup", by=" ")
    version = three.forget_backup(tmp_path / "backup", by="ops", reason="the disk was shredded")
    assert three.outstanding() == three.backups() == []
    said = three.newest()
    assert (said.version, said.action, said.by, said.reason) == (version, "backup-gone", "ops", "the disk was shredded")
    with pytest.raises(NotThere, match="on record"):
        three.forget_backup(tmp_path / "backup", by="ops")


def test_something_else_at_the_backups_place_is_left_alone(three, tmp_path):
    three.backup(tmp_path / "backup")
    shutil.rmtree(tmp_path / "backup")
    with Collection.create(tmp_path / "other", SHAPE, "pixels") as other:
        other.add(rows(3), ["a", "b", "c"])
        other.backup(tmp_path / "backup")
        before = sorted((p, p.read_bytes()) for p in (tmp_path / "backup").rglob("*") if p.is_file())
        three.erase(["a"], "asked for")
    assert [one.what for one in three.outstanding()] == ["backup"]
    assert "is not the backup that was made there" in three.backups()[0].found
    assert sorted((p, p.read_bytes()) for p in (tmp_path / "backup").rglob("*") if p.is_file()) == before


class Meanwhile(FaultyDisk):
    """Has something happen just before its call of a name."""

    def __init__(self, name, happens):
        super().__init__()
        self.name, self.happens = name, happens

    def fault(self):
        self.at = 0
        self.happens()

    def _call(self, name):
        if name == self.name and self.happens:
            self.at, self.name = len(self.calls) + 1, ""
        return super()._call(name)


@pytest.mark.parametrize("call", ["copy_database", "write", "rename"])
def test_an_erasure_while_a_backup_is_made_reaches_it(planted, tmp_path, call):
    col, claim, marks = planted
    col.claims.withdraw(claim)

    def erase():
        with Collection.open(col.path) as other:
            other.claims.erase(claim)

    Collection.open(col.path, disk=Meanwhile(call, erase)).backup(tmp_path / "backup")
    assert col.settle() == []
    assert holding(tmp_path, *marks) == []
    assert len(Collection.restore(tmp_path / "backup", tmp_path / "back")) == 39


# -- restoring with a later log ------------------------------------------------------------


@pytest.fixture
def moved_on(planted, tmp_path):
    """Backed up at version 5 in a place that goes out of reach; then everything that a log can tell happens."""
    col, claim, marks = planted
    col.backup(tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", tmp_path / "kept")  # as on a tape: no erasure reaches it
    col.add(rows(3, seed=5), ["late-0", "late-1", "late-2"])
    col.withdraw(["row-7", "late-1"], "counter-notice")
    col.claims.withdraw(claim)
    col.claims.erase(claim)
    col.claims.open("dsa", {}, rows=rows(1, seed=6), source_keys=["proposed"])
    col.claims.open("dsa", {}, source_keys=["row-8"])
    col.claims.hold(5, by="one")
    col.claims.hold(5, by="another")
    col.add(rows(1, seed=8), ["row-3"])
    col.erase(["late-2"], "asked for")
    shutil.rmtree(tmp_path / "backup")
    shutil.move(tmp_path / "kept", tmp_path / "backup")
    return col, claim, marks


@pytest.mark.parametrize("given", ["file", "directory"])
def test_a_later_log_re_applies_withdrawals_claims_and_erasures(moved_on, tmp_path, given):
    col, claim, marks = moved_on
    assert holding(tmp_path / "backup", *marks) != []
    log = export(col, tmp_path / "log.jsonl") if given == "file" else col.path
    back = Collection.restore(tmp_path / "backup", tmp_path / "back", log=log, reason="the disk died")
    expected = [i for i in range(40) if i not in (3, 7)]
    assert back.source_keys() == sorted(f"row-{i}" for i in expected)
    answers(back, [rows(40)[[i]] for i in expected])
    assert holding(tmp_path, *marks) == []  # nor in the backup that it came from
    assert back.outstanding() == []
    for number in (claim, 5):
        told, was = back.claims.show(number), col.claims.show(number)
        assert (told.state, told.hold, told.rows) == (was.state, was.hold, was.rows)
    with pytest.raises(OnHold):
        back.erase(["row-8"], "held")
    with pytest.raises(UnknownKey):
        back.withdraw(["late-0"], "lost")


def test_rows_stored_later_are_lost_not_in_force_and_named(moved_on, tmp_path):
    col, _, _ = moved_on
    back = Collection.restore(tmp_path / "backup", tmp_path / "back", log=export(col, tmp_path / "log.jsonl"))
    late = [i for i, key in col.in_force().items() if key in ("late-0", "row-3")]
    proposed = back.claims.show(4)
    assert proposed.rows == {}
    assert back.log()[-1].left == ranges(late)
    assert back.log()[-1].dropped == ranges([*late, 43, 45])  # late-1 was withdrawn, 45 only proposed
    assert set(back.in_force()).isdisjoint(late)
    back.claims.attach(4, rows(1, seed=6), ["proposed"])  # the images come again: so does the claim
    assert list(back.claims.show(4).rows.values()) == ["proposed"]
    back.add(rows(1, seed=5), ["late-0"])
    assert max(back.in_force()) > max(late)


def test_the_chain_extends_every_earlier_checkpoint(moved_on, tmp_path):
    col, _, _ = moved_on
    roots = [col.checkpoint(v.version).root for v in col.versions()]
    key = Key.new()
    back = Collection.restore(tmp_path / "backup", tmp_path / "back", log=col.path, key=key)
    assert back.log()[:-1] == col.log()
    assert [back.checkpoint(v).root for v in range(len(roots))] == roots
    leaves = [record.to_json().encode() for record in back.log()]
    assert merkle.root(leaves).hex() == back.checkpoint().root
    assert back.checkpoint().is_signed_by(key.public)
    assert [(v.version, v.action, v.changed, v.in_force) for v in back.versions()[:-1]] == [
        (v.version, v.action, v.changed, v.in_force) for v in col.versions()
    ]


def test_a_restored_set_can_be_backed_up_and_restored_with_its_log(moved_on, tmp_path):
    col, _, marks = moved_on
    back = Collection.restore(tmp_path / "backup", tmp_path / "back", log=col.path)
    back.backup(tmp_path / "second")
    back.add(rows(1, seed=30), ["after"])
    shutil.rmtree(col.path)
    third = Collection.restore(tmp_path / "second", tmp_path / "third", log=export(back, tmp_path / "log.jsonl"))
    assert third.source_keys() == [key for key in back.source_keys() if key != "after"]
    again = Collection.restore(tmp_path / "backup", tmp_path / "again", log=export(third, tmp_path / "log.jsonl"))
    assert again.source_keys() == third.source_keys()
    assert again.log()[:-1] == third.log()
    assert holding(tmp_path, *marks) == []


def test_a_restored_set_still_owes_erasures_to_other_backups(planted, tmp_path):
    col, claim, marks = planted
    (tmp_path / "disk").mkdir()
    col.backup(tmp_path / "disk" / "first")
    (tmp_path / "disk").rename(tmp_path / "away")
    col.claims.withdraw(claim)
    col.claims.erase(claim)
    col.backup(tmp_path / "second")
    back = Collection.restore(tmp_path / "second", tmp_path / "back")
    assert [(o.what, o.name) for o in back.outstanding()] == [("backup", str(tmp_path / "disk" / "first"))]
    (tmp_path / "away").rename(tmp_path / "disk")
    assert back.settle() == []
    assert holding(tmp_path, *marks) == []


def test_what_is_erased_in_a_restored_set_leaves_its_moved_backup_too(three, tmp_path):
    three.backup(tmp_path / "backup")
    (tmp_path / "backup").rename(tmp_path / "moved")
    back = Collection.restore(tmp_path / "moved", tmp_path / "back")
    shutil.rmtree(three.path)
    back.erase(["a"], "asked for")
    assert back.outstanding() == []
    assert holding(tmp_path, rows(3)[0].tobytes()) == []


def test_a_backup_of_another_history_is_not_purged_by_guess(three, tmp_path):
    """Restored without the log, the set goes another way: numbers of rows mean other rows."""
    three.backup(tmp_path / "first")
    back = Collection.restore(tmp_path / "first", tmp_path / "back")
    three.add(rows(1, seed=5), ["theirs"])
    three.backup(tmp_path / "second")
    back.add(rows(1, seed=6), ["ours"])
    with closing(sqlite3.connect(back.path / "catalogue.sqlite")) as db, db:
        said = json.loads((tmp_path / "second" / "BACKUP.json").read_text())
        told = (said["backup"], str(tmp_path / "second"), 2, said["at"])
        db.execute("INSERT INTO backups VALUES (?, ?, ?, ?)", told)
    back.erase(["ours", "a"], "asked for")
    assert [one.name for one in back.outstanding()] == [str(tmp_path / "second")]
    assert "of a history that this set does not have" in next(b for b in back.backups() if b.owed).found
    assert len(Collection.restore(tmp_path / "second", tmp_path / "other")) == 4


def test_a_log_of_another_history_is_refused_and_the_version_named(three, tmp_path):
    three.withdraw(["a"], "mistaken")
    three.backup(tmp_path / "backup")
    fork = Collection.restore(tmp_path / "backup", tmp_path / "fork")
    three.withdraw(["b"], "mistaken")

    def refused(log, match, error=NotAllowed):
        with pytest.raises(error, match=match):
            Collection.restore(tmp_path / "backup", tmp_path / "back", log=log)
        assert not (tmp_path / "back").exists()
        assert not (tmp_path / "back.new").exists()

    with Collection.create(tmp_path / "other", SHAPE, "pixels") as other:
        refused(export(other, tmp_path / "log"), "version 0 differs")
    lines = export(three, tmp_path / "log").read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(lines[:2] + lines[3:]))
    Collection.restore(tmp_path / "backup", tmp_path / "sound", log=tmp_path / "log")  # what the backup has need not be
    (tmp_path / "log").write_text("".join(lines).replace("withdraw", "overturn"))
    refused(tmp_path / "log", "version 2 differs")
    fork.withdraw(["b"], "another way")
    three.withdraw(["c"], "mistaken")
    ours = export(three, tmp_path / "log").read_text().splitlines(keepends=True)
    theirs = [record.to_json() + "\n" for record in fork.log()]
    (tmp_path / "log").write_text("".join([*theirs[:4], ours[4]]))
    refused(tmp_path / "log", "version 4 does not follow version 3")
    (tmp_path / "log").write_text(ours[4])
    refused(tmp_path / "log", "version 4 does not follow version 2")
    (tmp_path / "log").write_text("".join([*ours[:3], "no record\n"]))
    refused(tmp_path / "log", "line 4", Damaged)
    refused(tmp_path / "nowhere", "is not there", NotThere)


# -- disks that fail -----------------------------------------------------------------------


def copy_place(origin, place):
    """The same in another place, where the record has the backup there."""
    shutil.copytree(origin, place)
    with closing(sqlite3.connect(place / "set" / "catalogue.sqlite")) as db, db:
        db.execute("UPDATE backups SET path = ?", (str(place / "backup"),))
        db.execute("UPDATE outstanding SET name = ? WHERE what = 'backup'", (str(place / "backup"),))
    return place


def calls(origin, act):
    """What an operation asks of the disk, counted on an honest one."""
    disk = FaultyDisk()
    act(copy_place(origin, origin.with_name("rehearsal")), disk)
    shutil.rmtree(origin.with_name("rehearsal"))
    return disk.calls


def take_backup(place, disk):
    with Collection.open(place / "set", disk=disk) as col:
        col.backup(place / "backup")


def take_out(place, disk):
    with Collection.open(place / "set", disk=disk) as col:
        col.settle()


def bring_back(place, disk):
    Collection.restore(place / "backup", place / "back", log=place / "log", disk=disk).close()


def make_place(folder, act):
    """A set with an erased row; what ``act`` needs beside it."""
    folder.mkdir()
    col = Collection.create(folder / "set", SHAPE, "pixels")
    col.add(rows(3), ["a", "b", "c"])
    claim, marks = plant(col)
    if act is not take_backup:
        col.backup(folder / "backup")
        (folder / "backup").rename(folder / "aside")
    col.add(rows(1, seed=4), ["d"])
    col.claims.withdraw(claim)
    col.claims.erase(claim)
    if act is not take_backup:
        (folder / "aside").rename(folder / "backup")
        export(col, folder / "log")
    col.close()
    return marks


KEEP = {("rename", "after"), ("commit", "after"), ("copy_database", "half")}  # what the quick run has beside "before"
ACTS = {"backup": take_backup, "purge": take_out, "restore": bring_back}


def check_after(place, name, marks):
    """Whatever failed: the set is as it was, nothing half is there that opens, and a second try succeeds."""
    with Collection.open(place / "set") as col:
        answers(col, [rows(3), rows(1, seed=4)])
        if name == "backup":
            whole = (place / "backup").exists()
            assert [b.found for b in col.backups()] == ["there"] * whole
            assert list(place.glob("backup.new/*/*.h5")) == list(place.glob("backup.new/*.sqlite")) == []
            if not whole:
                col.backup(place / "backup")
        col.settle()
        assert col.outstanding() == []
    if name == "restore" and not (place / "back").exists():
        if (place / "back.new" / "BACKUP.json").exists() or not (place / "back.new" / "catalogue.sqlite").exists():
            with pytest.raises((NotAllowed, NotThere)):
                Collection.open(place / "back.new")
        else:  # only its name is missing
            answers(Collection.open(place / "back.new"), [rows(3)])
        bring_back(place, None)
    if name != "restore":
        Collection.restore(place / "backup", place / "back", log=place / "log" if name == "purge" else None).close()
    with Collection.open(place / "back") as back:
        assert back.newest().action == "restore"
        answers(back, [rows(3), rows(1, seed=4)] if name == "backup" else [rows(3)])
        assert back.outstanding() == []
    assert holding(place, *marks) == []


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("whens", [("before",), pytest.param(("half", "after"), marks=pytest.mark.long)])
def test_a_disk_that_fails_at_any_call_leaves_the_set_and_nothing_half(tmp_path, name, whens):
    act = ACTS[name]
    marks = make_place(tmp_path / "origin", act)
    made = calls(tmp_path / "origin", act)
    chosen = [(at, w) for at, w in points(made) if w in whens or (made[at - 1], w) in KEEP]
    for number, (at, when) in enumerate(chosen):
        error = (errno.ENOSPC, errno.EIO)[number % 2]
        place = copy_place(tmp_path / "origin", tmp_path / f"{at}-{when}")
        told = failing(act, place, FailingDisk(at, when, error))
        assert told == error or (told is None and name != "backup")  # a purge that fails stays owed, with the reason
        assert name != "backup" or not (place / "backup").exists()
        assert name != "restore" or told == error or (place / "back").exists()
        check_after(place, name, marks)
        shutil.rmtree(place)


def failing(act, place, disk):
    """The error number that the caller was told."""
    try:
        act(place, disk)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("name", ["backup", "restore"])
def test_bytes_that_the_disk_did_not_keep_are_noticed(tmp_path, name):
    act = ACTS[name]
    marks = make_place(tmp_path / "origin", act)
    made = calls(tmp_path / "origin", act)
    for at in [at for at, when in points(made) if when == "half"]:
        place = tmp_path / f"short-{at}"
        copy_place(tmp_path / "origin", place)
        with pytest.raises(OSError, match="did not keep what was written"):
            act(place, ShortDisk(at))
        check_after(place, name, marks)
        shutil.rmtree(place)


def killed(act, place, at, when):
    act(place, KillingDisk(at, when))


def kill(tmp_path, name, at, when, marks):
    place = tmp_path / f"{name}-{at}-{when}"
    copy_place(tmp_path / "origin", place)
    process = PROCESSES.Process(target=killed, args=(ACTS[name], place, at, when))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    check_after(place, name, marks)
    shutil.rmtree(place)


SOME = {  # of the last call of each name
    "backup": {"copy_database": "half", "rename": "after"},
    "purge": {"commit": "after", "scrub": "before"},
    "restore": {"commit": "before", "rename": "after"},
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, some in SOME.items() for call in some])
def test_a_kill_leaves_the_old_or_the_new(tmp_path, name, call):
    marks = make_place(tmp_path / "origin", ACTS[name])
    made = calls(tmp_path / "origin", ACTS[name])
    kill(tmp_path, name, len(made) - made[::-1].index(call), SOME[name][call], marks)


@pytest.mark.long
@pytest.mark.parametrize("name", ACTS)
def test_a_kill_at_any_point_leaves_the_old_or_the_new(tmp_path, name):
    marks = make_place(tmp_path / "origin", ACTS[name])
    for at, when in points(calls(tmp_path / "origin", ACTS[name])):
        kill(tmp_path, name, at, when, marks)


def test_a_refused_restore_leaves_backup_and_set_alone(three, tmp_path):
    three.backup(tmp_path / "backup")
    before = state(three)
    (tmp_path / "log").write_text("no log\n")
    with pytest.raises(Damaged):
        Collection.restore(tmp_path / "backup", tmp_path / "back", log=tmp_path / "log")
    assert state(three) == before
    assert len(Collection.restore(tmp_path / "backup", tmp_path / "back")) == 3


# -- the command line ----------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_commands_back_up_list_restore_and_say_what_is_lost(planted, tmp_path):
    col, claim, marks = planted
    made = run("backup", col.path, tmp_path / "backup")
    assert (made.exit_code, made.stdout) == (0, f"{tmp_path / 'backup'}: version 5 of {col.path}\n")
    col.add(rows(1, seed=5), ["late"])
    col.claims.withdraw(claim)
    (tmp_path / "backup").rename(tmp_path / "away")
    col.claims.erase(claim)
    listed = run("backup", col.path, "--list")
    assert listed.exit_code == 3
    assert f"{tmp_path / 'backup'}: version 5" in listed.stdout
    assert "deleted, as it looks" in listed.stdout
    assert "owes the erasures of versions 8" in listed.stdout
    export(col, tmp_path / "log")
    back = run("restore", tmp_path / "away", tmp_path / "back", "--log", tmp_path / "log", "--reason", "disk failed")
    assert back.exit_code == 0
    assert back.stdout == f"{tmp_path / 'back'}: version 9, 39 rows in force\n"
    assert "rows 42 came after the backup: their bytes are lost" in back.stderr
    plain = run("restore", tmp_path / "away", tmp_path / "plain", "--json")
    assert "without the log, nothing is known" in plain.stderr
    assert json.loads(plain.stdout)["rows_erased"] == [[41, 41]]  # the restore before it took them out of the backup
    assert run("backup", col.path, "--gone", tmp_path / "backup").exit_code == 2  # nobody says so
    assert run("backup", col.path, "--gone", tmp_path / "backup", "--by", "ops").exit_code == 0
    assert run("backup", col.path, "--list", "--json").stdout == "[]\n"
    assert run("backup", col.path).exit_code == 2
    assert run("status", tmp_path / "away").exit_code == 12
    assert holding(tmp_path, *marks) == []
