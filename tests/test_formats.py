"""A record of an older format: read as it is, and brought to the newest by the set's first opening."""

import hashlib
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from small_sets import SHAPE, rows, state

from negindex import Collection
from negindex.disk import writer_lock
from negindex.errors import NotAllowed
from negindex.schema import FORMAT, schema_of
from negindex.testing import FailingDisk, points
from negindex.verify import verify

OLD = 4
ALIKE = 9261, 16930  # of numbered rows, whose digests begin with the same eight digits


def numbered(number):
    """A row of small whole numbers."""
    row = np.zeros(8, np.float16)
    row[:2] = number % 1000 + 1, number // 1000
    return row


def digest(row):
    return hashlib.sha256(row.tobytes()).hexdigest()


def record(place):
    return closing(sqlite3.connect(place / "catalogue.sqlite", isolation_level=None))


def format_of(place):
    with record(place) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def age(place):
    """Have the record be as format 4 wrote it."""
    (index,) = [line for line in schema_of(OLD).split(";") if "INDEX row_digest " in line]
    with record(place) as db:
        db.executescript(f"BEGIN; DROP INDEX row_digest; {index}; PRAGMA user_version = {OLD}; COMMIT")


@pytest.fixture
def old(tmp_path):
    """The directory of a set of format 4: rows a, b and a copy of a, of which b was withdrawn."""
    with Collection.create(tmp_path / "set", SHAPE, "pixels") as col:
        given = rows(2)
        col.add(np.stack([*given, given[0]]), ["a", "b", "copy of a"])
        col.withdraw(["b"], "mistaken")
        expected = state(col)
    age(tmp_path / "set")
    return tmp_path / "set", expected


def test_an_old_set_says_the_same_after_its_first_opening_and_is_of_the_newest_format(old):
    place, expected = old
    with Collection.open(place) as col:
        assert state(col) == expected
        assert [[row.source_key for row in group] for group in col.duplicates()] == [["a", "copy of a"]]
        assert col.add(rows(1, seed=1), ["c"]) == 3
    assert format_of(place) == FORMAT
    assert not verify(place).faults


def test_an_old_set_is_verified_as_it_is(old):
    place, _ = old
    assert not verify(place).faults
    assert format_of(place) == OLD
    with record(place) as db:
        db.execute("DROP INDEX row_digest")
    assert [fault.where for fault in verify(place).faults] == ["'row_digest'"]


def test_an_old_set_that_another_writer_holds_is_read_and_left_as_it_is(old):
    place, expected = old
    with writer_lock(place), Collection.open(place) as col:
        assert state(col) == expected
        assert [[row.source_key for row in group] for group in col.duplicates()] == [["a", "copy of a"]]
    assert format_of(place) == OLD


@pytest.mark.parametrize(("at", "when"), points(["commit"]))
def test_a_renewal_that_is_cut_short_is_done_whole_or_not_at_all(old, at, when):
    place, expected = old
    with pytest.raises(OSError, match="No space left"):
        Collection.open(place, disk=FailingDisk(at, when))
    assert format_of(place) == (OLD if when == "before" else FORMAT)
    assert not verify(place).faults
    with Collection.open(place) as col:
        assert state(col) == expected


def test_a_backup_of_an_old_set_comes_back_as_one_of_the_newest_format(old, tmp_path):
    place, expected = old
    with Collection.open(place) as col:
        col.backup(tmp_path / "backup")
    age(tmp_path / "backup")
    Collection.restore(tmp_path / "backup", tmp_path / "back").close()
    with Collection.open(tmp_path / "back") as col:
        assert col.digests() == expected[2]
    assert format_of(tmp_path / "back") == FORMAT


def test_a_set_from_before_the_oldest_format_is_refused(old):
    place, _ = old
    with record(place) as db:
        db.execute(f"PRAGMA user_version = {OLD - 1}")
    with pytest.raises(NotAllowed, match=f"has format 3, .* reads {OLD} to {FORMAT}; build the set again"):
        Collection.open(place)


def test_rows_whose_digests_begin_alike_are_told_apart(tmp_path):
    one, other = map(numbered, ALIKE)
    assert digest(one)[:8] == digest(other)[:8]
    with Collection.create(tmp_path / "set", (8,), "pixels") as col:
        col.add(np.stack([one, other, other]), ["one", "other", "other again"])
        found = col._catalogue.with_content([digest(other), digest(numbered(1))])
        assert found == {digest(other): [2, 3]}
        assert [[row.source_key for row in group] for group in col.duplicates()] == [["other", "other again"]]
