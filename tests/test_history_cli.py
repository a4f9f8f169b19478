"""What was in force when, what changed, what is erased and what it still takes: status, log, diff, erase, compact."""

import json
import os
import re
from datetime import UTC, datetime, timedelta

import pytest
from small_sets import rows
from test_claim_cli import CANARY, NOT_ALLOWED, NOT_THERE, NOTICE, PENDING, USAGE, picture, run

from negindex import Collection
from negindex.keys import Key
from negindex.log import Record
from negindex.states import ClaimRecord


@pytest.fixture
def set_path(three):
    """Version 1: a, b, c. 2: d. 3: b withdrawn. 4, 5: a claim on e, in force. 6: a erased."""
    three.add(rows(1, seed=4), ["d"], by="ann", reason="a list")
    three.withdraw(["b"], "a mistake", by="ben")
    three.claims.open("dmca", {**NOTICE, "signature": CANARY}, rows=rows(1, seed=5), source_keys=["e"], by="ann")
    three.claims.accept(3)
    three.erase(["a"], "asked for")
    three.close()
    return three.path


def test_status_at_a_version_says_what_was_in_force_then(set_path):
    said = json.loads(run("status", set_path, "--at", 2, "--json").stdout)
    assert (said["version"], said["rows_in_force"], said["action"]) == (2, 4, "add")
    assert said["open_claims"] == {"in_force": 2}
    assert "erased at version" in said["cannot_be_opened"]
    assert run("status", set_path, "--at", 2, "--keys").stdout.split() == ["b", "c", "d", "(erased)"]
    assert json.loads(run("status", set_path, "--at", 3, "--keys", "--json").stdout) == ["c", "d", None]
    shown = run("status", set_path, "--at", 2).stdout
    assert re.search(r"rows in force +4\n", shown)
    assert run("status", set_path, "--at", 99).exit_code == NOT_THERE
    assert json.loads(run("status", set_path, "--at", "0", "--json").stdout)["rows_in_force"] == 0


def test_status_at_a_time_is_the_version_of_that_time(set_path):
    collection = Collection.open(set_path)
    for version in collection.versions():
        said = json.loads(run("status", set_path, "--at", version.at, "--json").stdout)
        last_of_that_moment = [v.version for v in collection.versions() if v.at == version.at][-1]
        assert said["version"] == last_of_that_moment
        assert said["until"] is None or said["until"] > version.at
    early = datetime.now(UTC) - timedelta(days=1)
    assert run("status", set_path, "--at", early.isoformat()).exit_code == NOT_THERE
    assert run("status", set_path, "--at", "in May").exit_code == USAGE


def test_a_time_without_a_zone_is_the_machine_s_and_that_is_said(set_path):
    local = datetime.now().replace(microsecond=0) + timedelta(seconds=1)
    done = run("status", set_path, "--at", local.isoformat(), "--json")
    assert json.loads(done.stdout)["version"] == 7
    assert f"taken as this machine's, {local.astimezone().isoformat()}" in done.stderr
    assert "taken as" not in run("status", set_path, "--at", local.astimezone().isoformat()).stderr


def test_log_lists_every_change_with_who_and_why(set_path):
    head, *lines = run("log", set_path).stdout.splitlines()
    assert head.split()[:4] == ["version", "at", "action", "claim"]
    assert [line.split()[2] for line in lines] == [
        *("create", "add", "add", "withdraw", "open", "accept", "force", "erase")
    ]
    assert lines[2].endswith("ann  a list")
    assert lines[3].split()[-2:] == ["a", "mistake"]
    assert len(run("log", set_path, "--since", 2, "--until", 4).stdout.splitlines()) == 4


def test_the_exported_log_is_the_records_themselves(set_path):
    lines = run("log", set_path, "--json").stdout.splitlines()
    assert [Record.from_json(line) for line in lines] == Collection.open(set_path).log()
    assert "a mistake" not in "".join(lines)


def test_diff_says_what_entered_and_left_in_either_order(set_path):
    forth = json.loads(run("diff", set_path, 1, 7, "--json").stdout)
    back = json.loads(run("diff", set_path, 7, 1, "--json").stdout)
    assert [row["source_key"] for row in forth["entered"]] == ["d", "e"]
    assert [row["source_key"] for row in forth["left"]] == [None, "b"]
    assert (back["entered"], back["left"]) == (forth["left"], forth["entered"])
    states = [(claim["before"] or {"state": None})["state"] for claim in forth["claims"]]
    assert states == [None, None]
    assert [claim["after"]["state"] for claim in forth["claims"]] == ["in_force", "in_force"]
    shown = run("diff", set_path, 1, 7).stdout.splitlines()
    assert "- 1  (erased)" in shown
    assert "claim 3: not there -> in_force (dmca)" in shown
    assert run("diff", set_path, 1, 99).exit_code == NOT_THERE


def test_claims_at_a_version_are_as_they_were_listed_then(three):
    then = {}

    def remember():
        then[three.newest().version] = {claim.claim: claim for claim in three.claims.every()}

    three.add(rows(2, seed=1), ["d", "e"])
    remember()
    three.withdraw(["a", "d"], "parts of two in-house claims")
    remember()
    three.withdraw(["b", "c", "e"], "the rest of both: neither has a record of its own")
    remember()
    number = three.claims.open("dmca", NOTICE, rows=rows(1, seed=5), source_keys=["x"]).number
    remember()
    three.claims.accept(number)
    remember()
    for person in ("ann", "ben"):
        three.claims.hold(number, by=person)
        remember()
    for person in ("ben", "ann"):
        three.claims.release(number, by=person)
    three.claims.withdraw(number)
    remember()
    three.erase(["x"], "takes the claim with it, without a record of the claim")
    remember()
    three.claims.open("hash-only", {"source": "a list"}, hashes=["sha256:" + "ab" * 32])
    remember()
    assert {version: three.claims_at(version) for version in then} == then
    assert three.claims_at(0) == {}
    newest = three.newest().version
    assert three.diff(newest, newest - 1).claims == [(ClaimRecord(4, "hash-only", "received", None), None)]


def test_status_shows_dead_rows_what_can_be_reclaimed_and_the_next_clock(set_path):
    collection = Collection.open(set_path)
    collection.claims.open("dmca", NOTICE, rows=rows(1, seed=6), source_keys=["f"])
    said = json.loads(run("status", set_path, "--json").stdout)
    assert (said["rows_in_force"], said["rows_proposed"], said["rows_withdrawn"]) == (3, 1, 1)
    assert said["bytes_to_reclaim"] == 12
    assert said["segments"] == len(collection.segments())
    assert said["open_claims"] == {"in_force": 3, "received": 1}
    assert (said["next_due"]["claim"], said["next_due"]["overdue"]) == (4, False)
    assert re.search(r"next due +claim 4: take down, ", run("status", set_path).stdout)


def test_compact_gives_up_what_it_said_and_closes_the_versions_that_read_it(set_path):
    versions = Collection.open(set_path).versions()
    dry = run("compact", set_path, "--forget-before", 4, "--dry-run")
    assert dry.stdout.split() == ["1", "rows,", "12", "bytes"]
    assert Collection.open(set_path).versions() == versions
    done = run("compact", set_path, "--forget-before", 4, "--by", "ann", "--reason", "tidy")
    assert done.exit_code == 0
    assert "version 8, 3 rows in force (1 dead rows given up" in done.stdout
    collection = Collection.open(set_path)
    assert collection.dead().rows == 0
    assert (collection.newest().by, collection.newest().reason) == ("ann", "tidy")
    at = json.loads(run("status", set_path, "--at", 2, "--json").stdout)
    assert at["cannot_be_opened"]
    assert run("compact", set_path, "--forget-before", 99).exit_code == NOT_THERE


def test_compact_alone_changes_no_version(set_path):
    before = Collection.open(set_path).versions()
    assert run("compact", set_path).exit_code == 0
    assert Collection.open(set_path).versions() == before


def test_erase_takes_rows_by_key_and_keeps_them_out_where_asked(set_path):
    words = ["erase", set_path, "b", "d", "--reason", "asked for"]
    before = Collection.open(set_path).versions()
    assert run(*words).exit_code == USAGE, "nobody can be asked here"
    dry = run(*words, "--dry-run")
    assert dry.stdout.splitlines() == ["b  2", "d  4"]
    assert Collection.open(set_path).versions() == before
    done = run(*words, "--keep-out", "--by", "ben", "--yes")
    assert done.exit_code == 0
    assert "version 8, 2 rows in force (2 erased, their fingerprints are kept out)" in done.stdout
    assert run(*words, "--yes").exit_code == NOT_THERE
    assert run("erase", set_path, "e", "--reason", "r", "--yes").exit_code == NOT_ALLOWED


def test_an_erasure_is_pending_while_its_bytes_are_held(set_path):
    held = Collection.open(set_path).snapshot()
    done = run("erase", set_path, "c", "--reason", "r", "--yes")
    assert done.exit_code == PENDING
    assert "version 8" in done.stdout
    assert f"held by process {os.getpid()}" in done.stderr
    del held


def test_withdraw_names_who_did_it(set_path):
    assert run("withdraw", set_path, "d", "--reason", "r", env={"NEGINDEX_BY": "ann"}).exit_code == 0
    assert Collection.open(set_path).newest().by == "ann"
    assert run("withdraw", set_path, "c", "--reason", "r", "--by", "ben").exit_code == 0
    assert Collection.open(set_path).newest().by == "ben"


def test_text_in_the_log_is_one_line_for_a_terminal(set_path):
    run("withdraw", set_path, "d", "--reason", "a\nb\x1b[2J")
    last = run("log", set_path).stdout.splitlines()[-1]
    assert last.endswith("a b [2J")


def test_nothing_of_a_claimant_is_in_the_history(set_path):
    for words in (["log"], ["log", "--json"], ["diff", "0", "7"], ["status"], ["status", "--at", "5"], ["compact"]):
        assert CANARY not in run(words[0], set_path, *words[1:]).output


def test_the_key_signs_what_build_and_add_put_in(tmp_path):
    key = Key.new()
    key.save(tmp_path / "k")
    for i, command in enumerate((["build", "--size", 16], ["add"])):
        file = picture(tmp_path / f"{i}.png", seed=i)
        done = run(command[0], tmp_path / "a.set", file, *command[1:], "--key", tmp_path / "k")
        assert done.exit_code == 0, done.output
        assert Collection.open(tmp_path / "a.set").checkpoint(i + 1).is_signed_by(key.public)
