"""Tampering is named: any record, any table's column, any byte of a file or of a page that holds live data."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from small_sets import SHAPE, rows
from test_claims import COUNTER, NOTICE

from negindex import Calibration, Collection, Kernel
from negindex.audit import lossless, matched
from negindex.checkpoint import Checkpoint
from negindex.disk import sha256_of, writer_lock
from negindex.errors import Damaged, NewerFormat, NoCollection
from negindex.keys import Key
from negindex.log import Record, canonical
from negindex.merkle import Tree
from negindex.schema import SCHEMA
from negindex.states import Provenance
from negindex.tools.cli import main
from negindex.verify import UNTOLD, verify


def source(i):
    return Provenance(f"{i:064x}", bytes([i]) * 32, 50 + i, b"\x89PNG" + bytes([i]) * 40)


def tell_a_long_story(col):
    """Rows added, claimed, disputed, refused, withdrawn, erased, given up, moved; every table has something in it."""
    keys, labels = list("abcdef"), ["one", "one", "two", None, "two", None]
    wide = rows(6, seed=1).reshape(6, -1)
    col.add(rows(6), keys, label=labels, sources=list(map(source, range(6))), embeddings=wide, reason="first", by="ann")
    digests = ["sha256:" + "ab" * 32, "pdq:" + "cd" * 32]
    new = {"rows": rows(2, seed=9), "source_keys": ["y", "z"], "label": "claimed", "sources": [source(7), None]}
    claims = col.claims
    disputed = claims.open("dmca", NOTICE, hashes=digests, by="ann", reason="because", **new).number
    claims.accept(disputed, by="ben")
    claims.dispute(disputed, fields=COUNTER)
    claims.stay(disputed, fields={"suit": "docket 7"})
    claims.hold(disputed, by="ann")
    refused = claims.open("dmca", NOTICE, rows=rows(1, seed=10), source_keys=["p"]).number
    claims.withdraw(refused, reason="not theirs")
    again = claims.open("dmca", NOTICE, source_keys=["b"]).number
    col.withdraw(["b"], "a mistake")
    claims.accept(again)
    late = claims.open("dmca", NOTICE, hashes=["sha256:" + "ef" * 32]).number
    claims.accept(late)
    col.add(rows(1, seed=30), ["late"], sources=[Provenance(image_sha256="ef" * 32)])
    col.erase(["c"], "asked for", keep_out=True)
    asked = dict.fromkeys(("subject", "contact", "material"), "told") | {"identity": "yes"}
    gone = claims.open("gdpr-erasure", asked, rows=rows(1, seed=11), source_keys=["q"], sources=[source(8)]).number
    claims.hold(gone, by="ann")
    claims.release(gone, by="ben")
    claims.accept(gone)
    claims.erase(gone, keep_out=True, fields={"ground": "a", "fingerprint": "kept"})
    col.withdraw(["d"], "no longer")
    col.compact(forget_before=col.newest().version, reason="kept long enough")
    for i in range(16):
        col.add(rows(1, seed=100 + i), [f"k{i}"], label="many")
    col.withdraw(["k1", "k2"], "of two claims at once")
    col.compact()
    claims.open("dsa", {}, rows=rows(1, seed=12), source_keys=["proposed"])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The directory of a closed, signed set with a long history, and a reader that keeps an erasure from its end."""
    path = tmp_path_factory.mktemp("told") / "set"
    with Collection.create(path, SHAPE, "pixels", key=Key.new()) as col:
        tell_a_long_story(col)
        held = Collection.open(path).snapshot()
        col.erase(["a"], "asked for")
        assert [one.what for one in col.outstanding()] == ["file"]
        col.adopt(Calibration(Kernel.floored(0.5), (), 1.0, 200, 0, 0), reason="learned elsewhere")
    with closing(sqlite3.connect(path / "catalogue.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    yield path
    del held


@pytest.fixture
def place(told, tmp_path):
    """A copy of it to tamper with."""
    return shutil.copytree(told, tmp_path / "set")


def record(path):
    return closing(sqlite3.connect(path / "catalogue.sqlite", isolation_level=None))


def named(path, checkpoints=()):
    return [str(fault) for fault in verify(path, checkpoints).faults]


def tamper(path, *statements):
    with record(path) as db:
        for sql, *values in (s if isinstance(s, tuple) else (s,) for s in statements):
            assert db.execute(sql, values).rowcount, sql


# -- what was not touched ------------------------------------------------------------------


def test_a_long_history_is_as_it_was_written_and_all_of_it_was_gone_through(told):
    with Collection.open(told) as col:
        kept = [col.checkpoint(version.version) for version in col.versions()]
        assert col.verify(kept) == []
        files = [told / "segments" / file.file for file in col.segments()]
        files += [told / "derived" / file.file for file in col.derived()]
    found = verify(told, kept)
    assert found.faults == []
    assert (found.versions, found.files) == (len(kept), len(files))
    assert found.bytes == sum(file.stat().st_size for file in files)
    with record(told) as db:
        count = {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for (table,) in tables(db)}
    assert [table for table, there in count.items() if not there] == ["backups"]
    assert found.rows == count["rows"]


def test_every_step_of_the_history_is_sound(tmp_path, monkeypatch):
    with Collection.create(tmp_path / "set", SHAPE, "pixels") as col:
        change, steps = col._catalogue.change, []

        def checked(*args):
            steps.append(verify(col.path).faults if len(steps) % 2 else [])
            return change(*args)

        monkeypatch.setattr(col._catalogue, "change", checked)
        tell_a_long_story(col)
        assert len(steps) > 40
        assert [step for step in steps if step] == []


def test_a_set_of_nothing_is_sound(tmp_path):
    with Collection.create(tmp_path / "set", SHAPE, "pixels") as col:
        assert col.verify([col.checkpoint()]) == []


def test_what_is_no_collection_is_refused_as_opening_it_is(place, tmp_path):
    with pytest.raises(NoCollection):
        verify(tmp_path)
    with record(place) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(NewerFormat):
        verify(place)


# -- every column of every table -----------------------------------------------------------

UNBOUND = {
    ("backups", "backup"): "where this program put copies is no part of the set, and no version says it",
    ("backups", "path"): "likewise",
    ("backups", "version"): "likewise",
    ("backups", "at"): "likewise",
    ("sqlite_sequence", "seq"): "files' numbers may be skipped, by a compaction that failed; see the test of numbers",
}
NAMED_AS = {  # table: how the fault of a change in it begins
    "meta": ("meta", "record"),
    "versions": ("record",),
    "tree": ("tree",),
    "notes": ("note",),
    "persons": ("person",),
    "checkpoints": ("checkpoint",),
    "segments": ("segment",),
    "derived": ("derived",),
    "rows": ("row",),
    "thumbnails": ("row",),
    "claims": ("claim",),
    "claim_rows": ("claim",),
    "claim_hashes": ("claim",),
    "blocked": ("blocked",),
    "outstanding": ("owed", "stray"),
    "sqlite_sequence": ("catalogue sqlite_sequence",),
}


def tables(db):
    return db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()


def columns():
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        found = [(t, c[1]) for (t,) in tables(db) for c in db.execute(f"PRAGMA table_info({t})")]
    return [one for one in found if one not in UNBOUND]


def changes(value):
    """Other values for one, of the kind that STRICT lets in."""
    if isinstance(value, int):
        return [value + 1, 10**6 + value]
    if isinstance(value, bytes):
        return [bytes([value[0] ^ 1]) + value[1:], value[:-1], value + b"\0"]
    if isinstance(value, str):
        return [value + "x", value[:-1], "A" + value[1:], "é"]
    return []


@pytest.mark.parametrize(("table", "column"), columns(), ids=map(".".join, columns()))
def test_a_change_in_any_column_of_any_table_is_named(place, table, column):
    """The least value, and none or the greatest, as other values and as none at all."""
    with record(place) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        keys = [c[1] for c in db.execute(f"PRAGMA table_info({table})") if c[5]] or ["rowid"]
        found = db.execute(f"SELECT {', '.join(keys)}, {column} FROM {table} ORDER BY {column} IS NULL, 1").fetchall()
        told = 0
        for *key, value in [found[0], found[-1]]:
            where = " AND ".join(f"{k} = ?" for k in keys)
            new = changes(value) if value is not None else [1, "x", b"x"]
            for other in [*new, None]:
                db.execute("BEGIN")
                try:
                    changed = db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (other, *key)).rowcount
                except sqlite3.IntegrityError:  # STRICT, NOT NULL or UNIQUE keeps it out
                    changed = 0
                if not changed or other == value:
                    db.execute("ROLLBACK")
                    continue
                db.execute("COMMIT")
                try:
                    faults = named(place)
                except Damaged:
                    assert table == "meta"
                else:
                    assert any(fault.startswith(NAMED_AS[table]) for fault in faults), (key, value, other, faults)
                told += 1
                back = [other if k == column else v for k, v in zip(keys, key, strict=True)]
                db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value, *back))
        assert told
    assert named(place) == []


def test_numbers_that_would_be_given_twice_are_named(place):
    with record(place) as db:
        for name, steps in {"rows": (-1, 1), "claims": (-1, 1), "segments": (-1,)}.items():
            for step in steps:
                db.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ?", (step, name))
                assert any(fault.startswith(f"catalogue sqlite_sequence '{name}'") for fault in named(place))
                db.execute("UPDATE sqlite_sequence SET seq = seq - ? WHERE name = ?", (step, name))
    assert named(place) == []


def test_rows_put_into_a_table_or_taken_out_are_named(place):
    """But for signatures: a set may be opened without a key at any version, so that one less is no fault."""
    with record(place) as db:
        for (table,) in tables(db):
            if table in ("backups", "checkpoints"):
                continue
            kept = db.execute(f"SELECT * FROM {table}").fetchall()
            key = next((c[1] for c in db.execute(f"PRAGMA table_info({table})") if c[5]), "name")
            db.execute(f"DELETE FROM {table} WHERE {key} = (SELECT max({key}) FROM {table})")
            try:
                assert any(fault.startswith(NAMED_AS[table]) for fault in named(place)), table
            except Damaged:
                assert table == "meta"
            db.execute(f"DELETE FROM {table}")
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(kept[0]))})", kept)
    assert named(place) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("INSERT INTO blocked VALUES ('" + "ab" * 32 + "', 3)", "blocked fingerprints of version 3"),
        ("INSERT INTO claim_hashes VALUES (2, 'sha256', '" + "12" * 32 + "')", "claim 2: does not name the hashes"),
        ("INSERT INTO notes SELECT 0, salt, body FROM notes WHERE version = 1", "note version 0: is there, and"),
        ("INSERT INTO claims VALUES (90, 'dmca', 'received', NULL)", "claim 90"),
        ("INSERT INTO claim_rows VALUES (1, 2, 3, NULL)", "claim 2: names row 1"),
        ("INSERT INTO thumbnails SELECT 2, png FROM thumbnails LIMIT 1", "row 2"),
        ("INSERT INTO rows (id, commitment) VALUES (90, 'x')", "row 90: is there, and no version stored it"),
        ("INSERT INTO tree SELECT 0, 900, hash FROM tree LIMIT 1", "tree node 900 of level 0"),
        ("DROP INDEX key_held", "catalogue 'key_held'"),
        ("CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM rows; END", "catalogue 't'"),
        ("UPDATE rows SET withdrawn = NULL WHERE source_key = 'd'", "is withdrawn at None, and by the log at"),
    ],
)
def test_what_nobody_recorded_is_named(place, change, said):
    with record(place) as db:
        db.execute("DELETE FROM thumbnails WHERE row = 2") if "thumbnails" in change else None
        db.execute(change)
    assert any(said in fault for fault in named(place))


def test_the_words_of_an_erased_claim_may_not_come_back(place):
    with Collection.open(place) as col:
        claim = col.claims.every("erased")[-1].claim
        version = col.claims.show(claim).history[0].version
    tamper(place, ("INSERT INTO notes VALUES (?, zeroblob(16), '{}')", version))
    assert [f for f in named(place) if f.startswith(f"note version {version}: is there, and claim {claim} was erased")]


def test_neighbours_of_which_the_same_is_said_are_one_line(place):
    tamper(place, "UPDATE rows SET label = 'x' WHERE label = 'many'")
    (fault,) = [fault for fault in named(place) if "another key, label" in fault]
    first, last = fault.split(":")[0].removeprefix("row ").split(" to ")
    assert int(last) - int(first) == 15


# -- records -------------------------------------------------------------------------------


def test_an_edited_record_is_named(place):
    """Its action changed, its column with it; or its text, by as little as a space."""
    edit = "UPDATE versions SET record = ?, action = ? WHERE version = ?"
    with record(place) as db:
        found = db.execute("SELECT version, record, action FROM versions").fetchall()
        for version, text, action in found[::4] + found[-1:]:
            edited = canonical(json.loads(text) | {"action": action + "s"})
            others = (text + " ", text[:-1], "", text.replace("2", "3", 1)) if version % 12 == 0 else ()
            for other in (edited, *others):
                db.execute(edit, (other, action + "s" if other is edited else action, version))
                said = [fault for fault in named(place) if fault.startswith("record version")]
                assert any(f" {version}:" in fault or f" {version} to" in fault for fault in said)
                db.execute(edit, (text, action, version))


@pytest.mark.parametrize("first", [0, 7, -1])
def test_a_deleted_record_is_named(place, first):
    last = newest(place)
    version = first % (last + 1)
    tamper(place, ("DELETE FROM versions WHERE version = ?", version))
    faults = named(place)
    assert any(fault.startswith(f"record version {version}: is missing") for fault in faults)


def test_records_that_changed_places_are_named(place):
    with record(place) as db:
        (seven,), (eight,) = db.execute("SELECT record FROM versions WHERE version IN (7, 8)").fetchall()
        db.execute("UPDATE versions SET record = ? WHERE version = 7", (eight,))
        db.execute("UPDATE versions SET record = ? WHERE version = 8", (seven,))
    faults = named(place)
    assert "record version 7: holds the record of version 8" in faults
    assert "record version 8: holds the record of version 7" in faults


def test_a_record_put_in_between_is_named(place):
    last = newest(place)
    with record(place) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        for version in range(last, 6, -1):
            db.execute("UPDATE versions SET version = version + 1 WHERE version = ?", (version,))
        columns = "at, action, claim, changed, in_force, record, root"
        db.execute(f"INSERT INTO versions SELECT 7, {columns} FROM versions WHERE version = 6")
    assert "record version 7: holds the record of version 6" in named(place)


@pytest.mark.parametrize(
    "odd",
    [
        {"stored": [[1, 10**15]]},
        {"entered": [[5, 2]]},
        {"entered": [[-(10**30), 10**30]]},
        {"linked": [[1, 1], [1, 1]]},
        {"claim": 10**30},
        {"claim": "seven"},
        {"in_force": -1},
    ],
    ids=str,
)
def test_a_record_of_nonsense_is_named_and_read_in_little_memory(place, odd):
    with record(place) as db:
        (text,) = db.execute("SELECT record FROM versions WHERE version = 8").fetchone()
        db.execute("UPDATE versions SET record = ? WHERE version = 8", (canonical(json.loads(text) | odd),))
    assert any(fault.startswith("record version 8:") for fault in named(place))


def newest(path):
    with record(path) as db:
        return db.execute("SELECT max(version) FROM versions").fetchone()[0]


def forge(path, edit):
    """Rewrite the log, with all that hangs on it: chain, columns, roots and tree; signatures go."""
    with record(path) as db:
        db.execute("DELETE FROM checkpoints")
        db.execute("DELETE FROM tree")
        tree, previous = Tree(), ""
        for version, text in db.execute("SELECT version, record FROM versions ORDER BY version").fetchall():
            said = {**edit(json.loads(text)), "previous": previous}
            root = tree.append(canonical(said).encode()).hex()
            previous = Record.from_json(canonical(said)).digest
            sql = "UPDATE versions SET record = ?, root = ?, at = ? WHERE version = ?"
            db.execute(sql, (canonical(said), root, said["at"], version))
        db.executemany("INSERT INTO tree VALUES (?, ?, ?)", [(*at, node) for at, node in tree.nodes.items()])


def test_a_log_rewritten_with_all_that_hangs_on_it_shows_against_a_checkpoint_alone(place):
    with Collection.open(place) as col:
        kept = [col.checkpoint(version) for version in (3, 12, newest(place))]
    forge(place, lambda said: said | {"at": said["at"].replace("20", "19", 1)} if said["version"] >= 5 else said)
    silent = [fault for fault in named(place) if "earlier time" not in fault]
    assert silent == []
    faults = named(place, kept)
    said = "the log up to that version is not the one that it was made of"
    assert [f"checkpoint kept elsewhere, of version {c.version}: {said}" in faults for c in kept] == [False, True, True]


def test_a_roll_back_of_the_whole_set_shows_against_a_checkpoint_alone(told, tmp_path):
    place, sets = tmp_path / "set", tmp_path / "earlier"
    with Collection.create(place, SHAPE, "pixels", key=Key.new()) as col:
        for i in range(6):
            col.add(rows(1, seed=i), [f"row-{i}"])
    shutil.copytree(place, sets)
    with Collection.open(place) as col:
        for i in range(3):
            col.withdraw([f"row-{i}"], "mistaken")
        kept = Checkpoint.from_json(col.checkpoint().to_json())
        assert col.verify([kept]) == []
    assert named(sets) == []
    said = "rolled back or cut short: the checkpoint names version 9, the log ends at 6"
    assert named(sets, [kept]) == [f"checkpoint kept elsewhere, of version 9: {said}"]
    with Collection.open(sets) as col:  # and when it has grown past that version again
        for i in range(4):
            col.withdraw([f"row-{i}"], "mistaken")
    assert named(sets) == []
    (fault,) = named(sets, [kept])
    assert fault.endswith("the log up to that version is not the one that it was made of")
    (fault,) = named(told, [kept])
    assert "is of the set" in fault


def test_a_checkpoint_with_a_false_signature_is_named(told):
    with Collection.open(told) as col:
        kept = col.checkpoint(5)
    false = replace(kept, public_key=Key.new().public.text)
    assert named(told, [replace(kept, signature="", public_key="")]) == []
    for one in (false, replace(kept, signature=kept.signature[:-4] + "AAA="), replace(kept, public_key="none")):
        assert named(told, [one]) == ["checkpoint kept elsewhere, of version 5: is not signed by the key that it names"]


# -- bytes ---------------------------------------------------------------------------------


def flip(path, at, bit=0):
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << bit]), at)


def segments(path):
    with record(path) as db:
        return [path / "segments" / name for (name,) in db.execute("SELECT file FROM segments")]


def every_byte_is_named(place, step):
    for file in segments(place):
        for at in range(0, file.stat().st_size, step):
            flip(file, at, at % 8)
            assert any(file.name in fault for fault in named(place)), (file, at)
            flip(file, at, at % 8)
    assert named(place) == []


def test_a_flipped_byte_of_a_segment_is_named(place):
    every_byte_is_named(place, 1499)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_every_flipped_byte_of_every_segment_is_named(place):
    every_byte_is_named(place, 13)


def test_a_byte_of_a_row_flipped_with_its_files_checksum_is_still_named(place):
    file = segments(place)[-1]
    with h5py.File(file, "r+") as h5:
        ids = h5["ids"][:].tolist()
        h5["rows"][0] += 1
    with record(place) as db:
        db.execute("UPDATE segments SET sha256 = ? WHERE file = ?", (sha256_of(file), file.name))
    assert named(place) == [f"row {ids[0]}: has other bytes in {file.name!r} than were stored"]


def test_files_cut_short_grown_lost_or_not_on_record_are_named(place):
    one, two, three, *_ = files = segments(place)
    os.truncate(one, one.stat().st_size - 1)
    with open(two, "ab") as file:
        file.write(b"!")
    three.unlink()
    (place / "segments" / "more.h5").write_bytes(b"more")
    faults = named(place)
    assert len(files) >= 3
    for file in (one, two, three):
        assert any(fault.startswith(f"segment {file.name}:") for fault in faults)
    assert any(fault.startswith("stray more.h5:") for fault in faults)
    assert (place / "segments" / "more.h5").exists()
    with writer_lock(place):  # somebody is writing: it may be theirs
        assert not any(fault.startswith("stray") for fault in named(place))


def content(path):
    with record(path) as db:
        db.text_factory = lossless
        return {table: db.execute(f"SELECT * FROM {table}").fetchall() for (table,) in tables(db)}


def every_page_is_guarded(place, positions):
    """A flipped byte is named, or makes no difference to anything that the catalogue says."""
    catalogue, sound = place / "catalogue.sqlite", content(place)
    (page,), (pages,) = (one for one in pragmas(place, "page_size", "page_count"))
    silent = 0
    for at in (page * number + at for number in range(pages) for at in positions(number, page)):
        flip(catalogue, at, at % 8)
        try:
            faults = named(place)
        except (Damaged, NoCollection):
            faults = ["refused"]
        if not faults:
            silent += 1
            assert content(place) == sound, f"byte {at} says something else, and nobody noticed"
        flip(catalogue, at, at % 8)
    assert named(place) == []
    return silent, pages


def pragmas(path, *names):
    with record(path) as db:
        return [db.execute(f"PRAGMA {name}").fetchone() for name in names]


@pytest.fixture
def small(tmp_path):
    """A set with something in every kind of page, small enough to be gone through again and again."""
    with Collection.create(tmp_path / "small", SHAPE, "pixels") as col:
        col.add(rows(4), list("abcd"), label="one", sources=list(map(source, range(4))))
        claim = col.claims.open("dmca", NOTICE, source_keys=["a"], hashes=["sha256:" + "ab" * 32]).number
        col.claims.accept(claim)
        col.erase(["d"], "asked for", keep_out=True)
        col.withdraw(["c"], "a mistake")
    with record(tmp_path / "small") as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return tmp_path / "small"


def test_a_flipped_byte_of_a_page_with_live_data_is_named(small):
    """At the head of each page, where cells are pointed to, and near its end, where they lie."""
    random = np.random.default_rng(5)
    _, pages = every_page_is_guarded(small, lambda number, page: [3, 9, *(page - random.integers(1, 400, 4))])
    assert pages > 30


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_every_flipped_byte_of_every_page_is_named_or_says_nothing(small):
    silent, pages = every_page_is_guarded(small, lambda number, page: range(number % 37, page, 37))
    assert silent < pages * 4096 // 37


# -- backups -------------------------------------------------------------------------------


def test_a_backup_that_an_erasure_went_through_and_the_sets_restored_from_it_are_sound(tmp_path):
    with Collection.create(tmp_path / "set", SHAPE, "pixels", key=Key.new()) as col:
        tell_a_long_story(col)
        made = col.backup(tmp_path / "backup")
        kept = col.checkpoint()
        col.add(rows(2, seed=500), ["late-1", "late-2"], sources=[source(40), None])
        digests = ["sha256:" + "98" * 32]
        claim = col.claims.open("dmca", NOTICE, rows=rows(1, seed=501), source_keys=["r"], hashes=digests)
        col.erase(["a", "late-1"], "asked for", keep_out=True)
        col.claims.withdraw(claim.number, reason="not theirs")
        later = col.checkpoint()
        assert col.verify([kept, later]) == []
    assert made.version == kept.version
    assert named(tmp_path / "backup", [kept]) == []
    with Collection.open(tmp_path / "set") as col:
        (tmp_path / "log.jsonl").write_text("".join(record.to_json() + "\n" for record in col.log()))
    for name, log, checkpoints in (
        ("alone", None, [kept]),
        ("by log", tmp_path / "log.jsonl", [kept, later]),
        ("by set", tmp_path / "set", [kept, later]),
    ):
        with Collection.restore(tmp_path / "backup", tmp_path / name, log=log, by="ann") as back:
            assert back.verify(checkpoints) == [], name
            back.add(rows(3, seed=600), ["x", "y-2", "z-2"])
            back.erase(["x"], "asked for", keep_out=True)
            assert back.verify(checkpoints) == [], name
        tamper(tmp_path / name, "UPDATE rows SET label = 'x' WHERE source_key = 'k3'")
        assert len(named(tmp_path / name)) == 1


# -- while others write --------------------------------------------------------------------


def test_a_writer_at_work_raises_no_false_alarm(tmp_path, monkeypatch):
    """A change between any two files that are checked: rows are added, withdrawn, erased, and files merged."""
    with Collection.create(tmp_path / "set", SHAPE, "pixels") as col:
        for i in range(12):
            col.add(rows(1, seed=i), [f"row-{i}"])
        keys = [f"row-{i}" for i in range(12)]

        def meanwhile(path):
            if len(keys) < 60:
                col.add(rows(1, seed=len(keys)), [f"row-{len(keys)}"])
                keys.append(f"row-{len(keys)}")
                change = col.withdraw if len(keys) % 2 else col.erase
                change([keys[len(keys) - 10]], "asked for")
                col.compact()
            return sha256_of(path)

        monkeypatch.setattr("negindex.verify.sha256_of", meanwhile)
        assert verify(col.path).faults == []
        assert len(keys) > 15


# -- the command ---------------------------------------------------------------------------


def run(*args):
    return CliRunner().invoke(main, ["verify", *map(str, args)])


def test_the_command_says_what_it_went_through_and_what_it_cannot_tell(told, tmp_path):
    alone = run(told)
    assert alone.exit_code == 0
    assert "as it was written, held against its own log alone" in alone.stdout
    assert UNTOLD in alone.stderr
    with Collection.open(told) as col:
        col.checkpoint().save(tmp_path / "kept.json")
    held = run(told, "--checkpoint", tmp_path / "kept.json")
    assert held.exit_code == 0
    assert "held against 1 checkpoints kept elsewhere" in held.stdout
    assert held.stderr == ""


def test_the_command_names_faults_one_a_line_and_leaves_with_13(place):
    tamper(place, "UPDATE rows SET label = 'x' WHERE id = 2", "UPDATE claims SET state = 'disputed' WHERE claim = 1")
    found = run(place)
    assert found.exit_code == 13
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == ["row 2", "claim 1"]
    assert "2 faults" in found.stderr
    said = json.loads(run(place, "--json").stdout)
    assert [(fault["what"], fault["where"]) for fault in said["faults"]] == [("row", "2"), ("claim", "1")]


def test_the_command_names_a_catalogue_that_cannot_be_opened(place):
    os.truncate(place / "catalogue.sqlite", 700)
    found = run(place)
    assert found.exit_code == 13
    assert "catalogue.sqlite" in found.stderr


def test_two_streams_are_matched_whatever_stands_in_their_keys():
    found = list(matched([(1, "a"), (2, "b")], [(None, "x"), (2, "b"), (b"3", "c")]))
    assert (2, ("b",), ("b",)) in found
    assert len(found) == 4
