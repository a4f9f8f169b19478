"""Rows that lie elsewhere: the same answers, read by ranges, and nothing of what is erased left in any place."""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from corpora import run
from elsewhere import CHANGES, SHAPE, killed, looked_up, rows, size_of
from forked import PROCESSES
from stores import SECRET, Counted

from negindex import Collection, NoiseLevel, away
from negindex.alike import Likeness
from negindex.errors import Damaged, Erased, Gone, InvalidInput, NotAllowed, Unreachable
from negindex.objects import Objects
from negindex.testing import FaultyDisk, NegativesTests, ShortDisk, points

ROW = 8 << 10
LEVEL = NoiseLevel(0.8, 0.6)
MARK = b"canary-canary-canary-canary-canary-canary-canary-canary-canary!!"


def filled(path, count=40, shape=SHAPE):
    made = Collection.create(path, shape, "pixels")
    made.add(rows(count, shape=shape), [f"row-{i}" for i in range(count)])
    return made


def asked(negatives, shape=SHAPE):
    x_t = torch.from_numpy(rows(3, seed=5, shape=shape)).double()
    return negatives.posterior(x_t, LEVEL), negatives.near(x_t, k=3)


def same(told, expected):
    assert torch.equal(told[0].log_norm, expected[0].log_norm)
    assert torch.equal(told[0].mean, expected[0].mean)
    assert torch.equal(told[0].heaviest.ids, expected[0].heaviest.ids)
    assert torch.equal(told[1].distances, expected[1].distances)
    assert torch.equal(told[1].rows, expected[1].rows)


def holding(mark, *folders):
    return [p for folder in folders for p in folder.rglob("*") if p.is_file() and mark in p.read_bytes()]


@pytest.fixture
def place(tmp_path):
    """A directory that is reached as any other place is."""
    return tmp_path / "elsewhere"


@pytest.fixture
def moved(tmp_path, place):
    made = filled(tmp_path / "set")
    made.move_rows(f"file://{place}")
    return made


class TestElsewhere(NegativesTests):
    """The contract, over rows that lie in memory elsewhere."""

    stored = torch.float16

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.place = tmp_path

    def make(self, rows):
        path = tempfile.mkdtemp(dir=self.place) + "/set"
        made = Collection.create(path, rows.shape[1:], "pixels")
        made.move_rows(f"memory:/{path}")
        for some in np.array_split(np.arange(len(rows)), 2):
            made.add(rows[some], [f"row-{i}" for i in some])
        assert list(made.path.glob("segments/*")) == []
        return made


# -- the same set ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file", "counted"])
def test_the_answers_are_those_of_the_same_set_here_bit_for_bit(tmp_path, kind):
    made = filled(tmp_path / "set", 300)
    made.withdraw([f"row-{i}" for i in range(0, 300, 7)], "some")
    here = asked(made)
    made.move_rows(f"{kind}://{tmp_path}/elsewhere")
    assert made.rows_at == f"{kind}://{tmp_path}/elsewhere/{made.set_id}"
    assert list((made.path / "segments").iterdir()) == []
    for _ in range(2):  # from there, then from the cache
        same(asked(Collection.open(made.path)), here)
    assert made.verify() == []
    assert made.move_rows(None) == 1
    assert (made.rows_at, made.rows_kept) == (None, (0, 0))
    same(asked(made), here)
    assert made.verify() == []
    assert Objects(f"{kind}://{tmp_path}/elsewhere/{made.set_id}").names() == []


def test_a_set_goes_on_changing_where_its_rows_lie(moved, place):
    for i in range(40, 60):  # sixteen files are merged on the way
        moved.add(rows(1, seed=i), [f"row-{i}"])
    moved.withdraw([f"row-{i}" for i in range(20)], "mistaken")
    assert len(moved.segments()) < 10
    assert moved.compact() > 0
    assert moved.outstanding() == []
    assert sorted(path.name for path in place.rglob("*.h5")) == sorted(
        file.file.rpartition("/")[2] for file in moved.segments()
    )
    stored = Collection.create(moved.path.with_name("here"), SHAPE, "pixels")
    for block in moved.stored_at(moved.snapshot(), 7):
        stored.add_incoming(block)
    told, expected = asked(moved)[0], asked(stored)[0]
    assert torch.allclose(told.log_norm, expected.log_norm, rtol=1e-13)
    assert len(moved) == told.count == 40
    assert moved.verify() == []


def test_embeddings_are_found_elsewhere_too(tmp_path):
    made = Collection.create(tmp_path / "set", (4,), "pixels")
    wide = np.eye(8, dtype=np.float16)
    made.add(rows(8, shape=(4,)), list("abcdefgh"), embeddings=wide)
    here = made.alike([Likeness(embedding=wide[3])], cosine=0.9), made.nearest_embedding(wide[5], 2)
    made.move_rows(f"memory:/{tmp_path}")
    assert [one.source_key for one in here[0]] == ["d"]
    assert (made.alike([Likeness(embedding=wide[3])], cosine=0.9), made.nearest_embedding(wide[5], 2)) == here


def test_a_reader_of_an_old_version_follows_rows_that_were_moved_or_merged(moved):
    held = Collection.open(moved.path).snapshot()
    before = asked(held)
    moved.add(rows(8, seed=9), [f"late-{i}" for i in range(8)])
    moved.withdraw([f"row-{i}" for i in range(20)], "half")
    assert moved.compact() > 0
    assert moved.outstanding() == []
    same(asked(held), before)
    moved.move_rows(None)
    same(asked(held), before)


# -- what is read, and what is kept ------------------------------------------------------------


def test_a_single_row_costs_the_bytes_of_that_row(tmp_path):
    made = filled(tmp_path / "set", 400)
    made.move_rows(f"counted:/{tmp_path}")
    held = Collection.open(made.path).snapshot()
    expected = rows(400)
    held.take(torch.tensor([399]))  # where in the file the rows are is read once
    before = Counted.read, Counted.asked
    assert np.array_equal(held.take(torch.tensor([123])).rows.numpy().reshape(SHAPE), expected[123])
    assert (Counted.read - before[0], Counted.asked - before[1]) == (ROW, 1)
    assert len(held.take(torch.tensor([7, 300, 7])).rows) == 3
    assert Counted.read - before[0] == 3 * ROW
    held.take(torch.tensor([123, 7]))
    assert Counted.read - before[0] == 3 * ROW, "rows that were read are kept"


def test_a_set_is_opened_without_reading_its_rows(tmp_path):
    made = filled(tmp_path / "set")
    made.move_rows(f"counted:/{tmp_path}")
    before = Counted.asked
    assert len(Collection.open(made.path).snapshot()) == 40
    assert Counted.asked == before


def test_the_cache_is_never_larger_than_it_may_be_and_is_shared_by_processes(tmp_path):
    made, limit = filled(tmp_path / "set", 300), 10 * ROW
    made.move_rows(f"file://{tmp_path}/elsewhere", cache_bytes=limit)
    started = []
    for seed in range(2):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=looked_up, args=(made.path, seed, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    sizes = [ours.recv() for _, ours in started]
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    assert all(0 < size <= limit for size in sizes), sizes
    assert made.rows_kept == (size_of(made.path / "cache"), limit)


def test_what_is_kept_is_checked_before_it_counts(moved):
    before = asked(moved)
    spans = [path for path in (moved.path / "cache").rglob("*-*") if path.is_file()]
    assert spans
    for path in spans:
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    same(asked(Collection.open(moved.path)), before)


def test_a_cache_that_is_made_smaller_is_smaller_at_once_for_all(moved):
    reader = Collection.open(moved.path)
    asked(reader)
    reader.snapshot().take(torch.arange(0, 40, 3))
    moved.move_rows(moved.rows_at.rpartition("/")[0], cache_bytes=5 * ROW)
    assert moved.rows_kept[0] == size_of(moved.path / "cache") <= 5 * ROW
    reader.snapshot().take(torch.arange(0, 40, 3))
    assert 0 < size_of(moved.path / "cache") <= 5 * ROW


def test_without_a_cache_every_row_comes_from_its_place(tmp_path):
    made = filled(tmp_path / "set", 8)
    made.move_rows(f"counted:/{tmp_path}", cache_bytes=0)
    made.pin().take(torch.tensor([0]))
    before = Counted.read
    for _ in range(2):
        made.pin().take(torch.tensor([3]))
    assert Counted.read - before == 2 * ROW
    assert made.rows_kept == (0, 0)


# -- what is erased ----------------------------------------------------------------------------


@pytest.fixture
def marked(tmp_path, place):
    """A row of 64 marked bytes among others, elsewhere, and read before."""
    made = Collection.create(tmp_path / "set", (32,), "pixels")
    made.add(rows(20, shape=(32,)), [f"row-{i}" for i in range(20)])
    made.move_rows(f"file://{place}")
    made.add(np.frombuffer(MARK, np.float16)[None], ["marked"])
    asked(made, (32,))
    made.snapshot().take(torch.tensor([20]))
    assert len(holding(MARK, place)) == 1
    assert len(holding(MARK, tmp_path / "set" / "cache")) == 1
    return made


def test_erased_bytes_are_in_no_file_of_the_place_and_in_no_cache(marked, place):
    marked.erase(["marked"], "asked for")
    assert marked.outstanding() == []
    assert holding(MARK, place, marked.path) == []
    assert len(asked(marked, (32,))[0].mean) == 3
    assert marked.verify() == []


def test_a_reader_that_kept_an_erased_row_never_answers_with_it(marked, place):
    held = Collection.open(marked.path).snapshot()
    assert held.take(torch.tensor([20])).rows.numpy().tobytes() == MARK
    marked.erase(["marked"], "asked for")
    for ask in (lambda: held.take(torch.tensor([20])), lambda: asked(held, (32,))):
        with pytest.raises(Erased, match="row 21 was erased"):
            ask()
    assert np.array_equal(held.take(torch.tensor([4])).rows.numpy(), rows(20, shape=(32,))[4:5])
    assert holding(MARK, place, marked.path) == []


def test_a_row_that_is_put_in_the_cache_while_it_is_erased_does_not_stay(marked, monkeypatch):
    reader, fetched = Collection.open(marked.path).snapshot(), away._Rows._fetched
    shutil.rmtree(marked.path / "cache")

    def late(self, spans):
        found = fetched(self, spans)
        monkeypatch.undo()
        marked.erase(["marked"], "asked for")
        return found

    monkeypatch.setattr(away._Rows, "_fetched", late)
    assert reader.take(torch.tensor([20])).rows.numpy().tobytes() == MARK, "it was read before it was erased"
    assert holding(MARK, marked.path) == []


def test_a_copy_of_the_record_says_that_rows_are_gone(marked, tmp_path, monkeypatch):
    monkeypatch.setattr("negindex.away.CHECKED", 0.0)
    shutil.copytree(marked.path, tmp_path / "copy")
    copy = Collection.open(tmp_path / "copy")
    held = copy.snapshot()
    assert held.take(torch.tensor([20])).rows.numpy().tobytes() == MARK
    marked.erase(["marked"], "asked for")
    with pytest.raises(Gone, match="is not there"):
        held.take(torch.tensor([20]))
    assert holding(MARK, tmp_path / "copy" / "cache") == []


def test_two_copies_of_a_set_cannot_both_change_its_place(marked, tmp_path):
    shutil.copytree(marked.path, tmp_path / "copy")
    marked.add(rows(1, seed=8, shape=(32,)), ["late"])
    copy = Collection.open(tmp_path / "copy")
    with pytest.raises(NotAllowed, match="changed by another copy of this set"):
        copy.add(rows(1, seed=9, shape=(32,)), ["later"])
    assert len(asked(Collection.open(marked.path), (32,))[1].ids) == 3
    assert marked.verify() == []


def test_two_sets_share_a_bucket(tmp_path):
    sets = [filled(tmp_path / name, 5 + i) for i, name in enumerate("ab")]
    for one in sets:
        one.move_rows(f"memory:/{tmp_path}")
    for one in sets:
        one.compact()
        one.add(rows(1, seed=3), ["late"])
    assert [len(asked(one)[0].mean) for one in sets] == [3, 3]
    assert [one.verify() for one in sets] == [[], []]


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path):
    made = filled(tmp_path / "set")
    made.move_rows(f"counted:/{tmp_path}")
    yield made
    Counted.down = Counted.keeps = False


def test_a_place_that_cannot_be_reached_raises_and_tells_no_secret(counted, caplog):
    Counted.down = True
    reader = Collection.open(counted.path)
    for ask in (lambda: asked(reader), lambda: reader.add(rows(1, seed=3), ["late"]), lambda: reader.verify()):
        with pytest.raises(Unreachable, match=r"counted://.* cannot be reached \(ConnectionError\); check the") as told:
            ask()
        assert SECRET not in str(told.value) + str(told.getrepr(style="long", chain=True)) + caplog.text
    reader.withdraw(["row-1"], "needs no place")
    Counted.down = False
    assert len(asked(reader)[0].mean) == 3
    assert len(reader) == 39
    assert reader.verify() == []


def test_an_erasure_waits_for_a_place_that_cannot_be_reached(counted, tmp_path):
    asked(counted)  # all rows are kept here
    counted.snapshot().take(torch.arange(40))
    before = counted.newest()
    Counted.down = True
    with pytest.raises(Unreachable):
        counted.erase(["row-1"], "asked for")
    assert counted.newest() == before
    Counted.down = False
    counted.erase(["row-1"], "asked for")
    assert counted.outstanding() == []


def test_an_erasure_is_pending_while_the_place_deletes_nothing(counted):
    counted.snapshot().take(torch.tensor([1]))
    (file,) = counted.segments()
    Counted.keeps = True
    counted.erase(["row-1"], "asked for")
    assert [(one.what, one.name) for one in counted.outstanding()] == [("file", file.file)]
    assert not (counted.path / "cache" / file.file.rpartition("/")[2]).exists()
    assert len(counted.settle()) == 1
    Counted.keeps = False
    assert counted.settle() == []
    objects = [held.getvalue() for path, held in Counted.store.items() if counted.set_id in path]
    assert [rows(40)[0].tobytes() in held for held in objects].count(True) == 1
    assert not any(rows(40)[1].tobytes() in held for held in objects)


def test_moving_where_nobody_listens_changes_nothing(tmp_path):
    made = filled(tmp_path / "set")
    before = made.segments()
    with pytest.raises(Unreachable, match=r"ftp://127\.0\.0\.1:1/x/.* cannot be reached"):
        made.move_rows("ftp://127.0.0.1:1/x")
    assert (made.segments(), made.rows_at) == (before, None)
    assert len(asked(made)[0].mean) == 3


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:word@bucket/a",
        "ftp://somebody@host/a",
        "s3://bucket/a?versionId=word",
        "simplecache::s3://bucket",
        "a",
    ],
)
def test_addresses_with_credentials_or_caches_are_refused(tmp_path, url):
    made = filled(tmp_path / "set", 2)
    with pytest.raises(InvalidInput) as told:
        made.move_rows(url)
    assert "word" not in str(told.value)
    assert b"word@" not in (made.path / "catalogue.sqlite").read_bytes()


def test_bytes_that_were_altered_or_cut_are_refused_and_named(moved, place):
    (file,) = place.rglob("*.h5")
    sound = file.read_bytes()
    at = sound.index(rows(40)[11].tobytes())
    file.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    held = moved.snapshot()
    assert np.array_equal(held.take(torch.tensor([10])).rows.numpy().reshape(SHAPE), rows(40)[10])
    for ask in (lambda: held.take(torch.tensor([11])), lambda: asked(moved)):
        with pytest.raises(Damaged, match=r"row 12 in file://.* has other bytes than were stored"):
            ask()
    assert {fault.what for fault in moved.verify()} == {"row", "segment"}
    file.write_bytes(sound[: at + 100])
    with pytest.raises(Damaged, match=r"has \d+ bytes, on record are"):
        asked(Collection.open(moved.path))
    file.write_bytes(b"x" * len(sound))
    with pytest.raises(Damaged, match="cannot be read as a segment"):
        asked(Collection.open(moved.path))
    file.unlink()
    with pytest.raises(Gone, match="is not there"):
        asked(Collection.open(moved.path))
    assert [fault.what for fault in moved.verify()] == ["segment"]


# -- a crash -----------------------------------------------------------------------------------

AFTER = {"add": 2}  # rows that a change brings


def prepared(folder, name):
    made = Collection.create(folder / "set", (8,), "pixels")
    made.add(rows(6, shape=(8,)), list("abcdef"))
    made.withdraw(["a", "b"], "mistaken")
    if name != "move":
        made.move_rows(f"file://{folder}/elsewhere")
    made.close()
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_killed_leaves_the_set_as_it_was_or_as_it_becomes(tmp_path, name):
    disk = FaultyDisk()
    (tmp_path / "calm").mkdir()
    with Collection.open(prepared(tmp_path / "calm", name) / "set", disk=disk) as calm:
        start, before = len(calm), asked(calm, (8,))
        CHANGES[name](calm, tmp_path / "calm" / "elsewhere")
        after = asked(calm, (8,))
    assert {"put_object"} <= set(disk.calls) or name == "back"
    for at, when in points(disk.calls):
        if when == "before" and at > 1:
            continue  # as after the call before
        folder = tmp_path / f"{at}-{when}"
        folder.mkdir()
        process = PROCESSES.Process(target=killed, args=(prepared(folder, name), name, at, when))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        again = Collection.open(folder / "set")
        assert len(again) in (start, start + AFTER.get(name, 0))
        same(asked(again, (8,)), before if len(again) == start else after)
        again.add(rows(1, seed=7, shape=(8,)), ["afterwards"])
        assert again.verify() == []
        again.move_rows(None)
        assert again.outstanding() == []
        assert list(folder.rglob("elsewhere/**/*.h5")) == [], "what was left is swept"
        assert len(again.segments()) == len(list((folder / "set" / "segments").iterdir()))


@pytest.mark.parametrize("name", ["move", "add"])
def test_a_place_that_keeps_half_of_what_it_was_given_is_found_out(tmp_path, name):
    disk = FaultyDisk()
    (tmp_path / "calm").mkdir()
    CHANGES[name](Collection.open(prepared(tmp_path / "calm", name) / "set", disk=disk), tmp_path / "calm/elsewhere")
    at = disk.calls.index("put_object") + 1
    (tmp_path / "short").mkdir()
    short = Collection.open(prepared(tmp_path / "short", name) / "set", disk=ShortDisk(at))
    before = asked(short, (8,))
    with pytest.raises(OSError, match="did not keep what was written"):
        CHANGES[name](short, tmp_path / "short" / "elsewhere")
    again = Collection.open(short.path)
    same(asked(again, (8,)), before)
    CHANGES[name](again, tmp_path / "short" / "elsewhere")
    assert again.verify() == []


# -- what else knows of it ---------------------------------------------------------------------


def test_a_backup_holds_the_rows_itself(moved, tmp_path, place):
    before = asked(moved)
    moved.backup(tmp_path / "backup")
    moved.erase(["row-5"], "asked for")
    assert moved.outstanding() == []
    shutil.rmtree(place)
    restored = Collection.restore(tmp_path / "backup", tmp_path / "restored", log=moved.path)
    assert (restored.rows_at, len(restored)) == (None, 39)
    assert restored.verify() == []
    assert restored.row(6).state == "erased"
    assert len(asked(restored)[0].mean) == len(before[0].mean)


def test_the_command_line_moves_rows_and_says_where_they_are(tmp_path, place):
    filled(tmp_path / "set", 4)
    said = run("rows", "move", tmp_path / "set", f"file://{place}", "--cache-bytes", "1MiB")
    assert said.stdout.startswith(f"{tmp_path}/set: 1 files moved; 4 rows in force, ")
    told = json.loads(run("status", tmp_path / "set", "--json").stdout)
    assert told["rows_at"].startswith(f"file://{place}/")
    assert (told["bytes_kept_here"], told["cache_bytes"]) == (0, 1 << 20)
    assert run("rows", "move", tmp_path / "set", f"file://{place}", "--cache-bytes", "2.5GB").exit_code == 0
    assert json.loads(run("status", tmp_path / "set", "--json").stdout)["cache_bytes"] == 2_500_000_000
    assert run("verify", tmp_path / "set").exit_code == 0
    assert run("rows", "move", tmp_path / "set", "--back").stdout.startswith(f"{tmp_path}/set: 1 files moved")
    assert "rows_at" not in json.loads(run("status", tmp_path / "set", "--json").stdout)
    for words in ((), ("memory://a", "--back"), ("memory://a", "--cache-bytes", "many")):
        assert run("rows", "move", tmp_path / "set", *words).exit_code == 2


def test_sets_that_hold_their_own_rows_need_no_fsspec(tmp_path):
    code = f"""import sys; sys.modules["fsspec"] = None; import numpy as np; from negindex import Collection
made = Collection.create({str(tmp_path / "set")!r}, (4,), "pixels"); made.add(np.ones((2, 4)), ["a", "b"])
from negindex.errors import NotAllowed
try: made.move_rows("s3://bucket/a")
except NotAllowed as error: print(error)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "needs fsspec, which is not installed: `pip install 'negindex[remote]'`" in said


def test_random_changes_keep_the_place_and_the_record_together(tmp_path):
    dice = random.Random(3)
    made, there = Collection.create(tmp_path / "set", (8,), "pixels"), set()
    for step in range(40):
        action = dice.choice(["add", "add", "withdraw", "erase", "compact", "move", "back"])
        if action == "add":
            made.add(rows(2, seed=step, shape=(8,)), [f"{step}-0", f"{step}-1"])
            there |= {f"{step}-0", f"{step}-1"}
        elif action in ("withdraw", "erase") and there:
            key = dice.choice(sorted(there))
            getattr(made, action)([key], "by the dice")
            there.discard(key)
        elif action == "compact":
            made.compact()
        elif action in ("move", "back"):
            made.move_rows(f"memory:/{tmp_path}/{dice.choice('ab')}" if action == "move" else None)
        assert made.source_keys() == sorted(there)
        if there:
            held = made.snapshot().take(torch.arange(len(there)))
            assert sorted(made.keys_of(held.ids.tolist()).values()) == sorted(there)
    assert made.outstanding() == []
    assert made.verify() == []
