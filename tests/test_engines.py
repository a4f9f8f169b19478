"""A set whose index lies in Milvus Lite answers as it does from memory, or raises; and it owes the engine erasures."""

import json
import random
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from engines import alike, delete, lite, running, same_rows  # noqa: F401, skips where Milvus Lite is not installed
from mixtures import SHAPE, fresh, noised, rows
from test_calibrated_set import keys, learned

from negindex import LITERAL, Collection, NoiseLevel
from negindex.engines import push
from negindex.engines.address import Address
from negindex.engines.link import IN_FORCE, EngineRow, Link
from negindex.engines.milvus import MilvusNegatives
from negindex.engines.on_engine import OnEngine
from negindex.errors import EngineBehind, InvalidInput, Locked, NotAllowed, NotThere, OutOfRange, Unreachable
from negindex.head import Effort
from negindex.tools.cli import main
from negindex.verify import verify

LEVELS = (0.2, 1.0, 10.0)
COUNT = 600
EFFORTS = (Effort(100, 8), Effort(200, 16), Effort(400, 32))


def make_large(patch):
    """Every set gets an index, quickly: of few rows that say what closed forms are worth."""
    patch.setattr("negindex.index.SCAN_ELEMENTS", 0)
    patch.setattr("negindex.mixture.usual_efforts", lambda rows: EFFORTS)
    patch.setattr("negindex.trust._HELD_OUT", 4)


@pytest.fixture(autouse=True)
def every_set_is_large(monkeypatch):
    make_large(monkeypatch)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Rows 1 to 600 and a calibration, with its index, at version 2."""
    with pytest.MonkeyPatch.context() as patch:
        make_large(patch)
        with Collection.create(tmp_path_factory.mktemp("template") / "set", SHAPE, "pixels") as col:
            col.add(rows(COUNT).numpy(), keys(0, COUNT), label="first")
            col.adopt(learned(), by="ann")
    return col.path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    yield from running(tmp_path_factory.mktemp("lite") / "engine.db")


@pytest.fixture(scope="module")
def pushed(template, file, tmp_path_factory):
    """The template with an engine, and the engine."""
    path = shutil.copytree(template, tmp_path_factory.mktemp("pushed") / "set")
    address = Address.of(f"milvus://{file}/claims")
    with pytest.MonkeyPatch.context() as patch:
        make_large(patch)
        push.push(Collection.open(path), address)
    return path, address


@pytest.fixture
def both(pushed, tmp_path):
    """A copy of the set, and the same through the engine: read alone, so one table does for all tests."""
    col = Collection.open(shutil.copytree(pushed[0], tmp_path / "set"))
    with closing(MilvusNegatives(Collection.open(col.path), pushed[1])) as negatives:
        yield col, negatives


@pytest.fixture
def own(template, file, tmp_path, request):
    """A set with a table of its own, which a test may harm."""
    col = Collection.open(shutil.copytree(template, tmp_path / "set"))
    address = Address.of(f"milvus://{file}/own_{abs(hash(request.node.name))}")
    push.push(col, address)
    return col, address


def asked(negatives, s=1.0, count=4, **options):
    return negatives.posterior(noised(fresh()[:count], s, seed=3), NoiseLevel(1.0, s), **options)


def table_of(col, address):
    return col.engines.table(address, col.index().file)


# -- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("s", LEVELS)
@pytest.mark.parametrize("error", [None, 0.02])
def test_an_engine_answers_as_memory_does(both, s, error):
    col, negatives = both
    alike(asked(negatives, s, error=error), asked(col, s, error=error))
    assert isinstance(negatives.pin().split(learned().kernel).mixture, OnEngine)


def test_pure_noise_and_the_literal_kernel_are_answered_too(both):
    col, negatives = both
    alike(asked(negatives, kernel=LITERAL), asked(col, kernel=LITERAL))
    noise, level = 100 * fresh()[:2].double(), NoiseLevel(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    alike(negatives.posterior(noise, level), col.posterior(noise, level))


def test_a_batch_larger_than_memory_is_answered_in_parts(both, monkeypatch):
    monkeypatch.setattr("negindex.engines.on_engine.AT_ONCE", 300)
    col, negatives = both
    alike(asked(negatives, count=5), asked(col, count=5))


def test_answers_that_the_engine_gives_page_by_page_are_the_same(both, monkeypatch):
    monkeypatch.setattr("negindex.engines.link.MOST", 40)  # clusters are larger, and smaller
    col, negatives = both
    alike(asked(negatives, count=2), asked(col, count=2))


@pytest.mark.parametrize("limits", [{"k": 3}, {"radius": 2.0}, {"radius": 2.0, "noise": 0.1}, {"radius": 0.0}])
def test_an_engine_finds_the_rows_that_memory_finds(both, limits):
    col, negatives = both
    x = torch.cat([noised(fresh()[:2], 0.1, seed=3), rows(COUNT)[:2].double()])
    same_rows(negatives.near(x, **limits), col.near(x, **limits))


def test_more_rows_than_an_engine_tells_are_found_by_a_scan(both, monkeypatch):
    monkeypatch.setattr("negindex.engines.table.MOST", 4)
    col, negatives = both
    same_rows(negatives.near(fresh()[:2], k=9), col.near(fresh()[:2], k=9))
    same_rows(negatives.near(rows(COUNT)[:1], 2.0), col.near(rows(COUNT)[:1], 2.0))


def test_views_of_a_set_are_asked_through_the_engine_too(both):
    col, negatives = both
    gone = list(col.snapshot().digests().values())[:40]
    one, other = negatives.pin().without(gone), col.pin().without(gone)
    alike(asked(one), asked(other))
    assert isinstance(one.split(learned().kernel).mixture, OnEngine)
    assert len(negatives.pin().where(label="nobody")) == 0


def test_what_was_fetched_once_is_not_asked_for_again(both, monkeypatch):
    col, negatives = both
    first = asked(negatives)
    monkeypatch.setattr(Link, "seen", lambda *_, **__: pytest.fail("the engine was asked"))
    alike(asked(negatives), first)
    forgetful = MilvusNegatives(col, negatives.engine, cache_rows=0)
    with pytest.raises(pytest.fail.Exception, match="the engine was asked"):
        asked(forgetful)


# -- additions, withdrawals, erasures ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_identical_calls_agree_over_random_changes(own, seed):
    """Rows come, go and come back; some are erased, which takes calibration and index; then both are made again."""
    col, address = own
    choose, negatives = random.Random(seed), MilvusNegatives(Collection.open(col.path), address)
    fresh_rows, next_key, versions = rows(400, seed=50 + seed).numpy(), 0, [col.newest().version]
    for step in range(8):
        does = choose.choices(["add", "withdraw", "back", "push", "erase"], [4, 4, 2, 2, 1])[0]
        held = col.source_keys()
        if does == "add":
            many = choose.randrange(1, 40)
            col.add(fresh_rows[next_key : next_key + many], [f"{seed}-{next_key + i}" for i in range(many)])
            next_key += many
        elif does == "withdraw":
            col.withdraw(choose.sample(held, choose.randrange(1, 60)), "it goes")
        elif does == "back" and (first := [key for key in keys(0, 50) if key not in held]):
            col.add(rows(COUNT).numpy()[[int(key.split("-")[1]) for key in first]], first)
        elif does == "erase":
            col.erase(choose.sample(held, 2), "it goes for good")
            negatives.let_go()
            versions.clear()
            col.settle()
            assert not [one for one in col.outstanding() if one.what == "engine"]
            with closing(Link(address)) as link:
                assert link.tables(col.engines.prefix(address)) == []
            col.adopt(learned())
            push.push(col, address)
        else:
            push.push(col, address)
        negatives.let_go()  # an index that was made anew is of the same version
        versions.append(col.newest().version)
        s = choose.choice(LEVELS)
        alike(asked(negatives, s, 2), asked(col, s, 2))
        old = choose.choice(versions)
        alike(asked(negatives.snapshot(old), s, 1), asked(col.snapshot(old), s, 1))
        same_rows(negatives.near(fresh()[step : step + 1], k=2), col.near(fresh()[step : step + 1], k=2))
    negatives.close()


def test_withdrawn_rows_answer_nothing_before_the_engine_has_heard_of_it(both):
    _, negatives = both
    before, gone = negatives.pin(), rows(COUNT)[:4]
    negatives.collection.withdraw(keys(0, 4), "no longer")
    told = negatives.posterior(gone.double(), NoiseLevel(1.0, 1e-3))
    assert not torch.isin(told.heaviest.ids, torch.arange(1, 5)).any()
    assert not negatives.near(gone, radius=0.0).found.any()
    assert before.near(gone, radius=0.0).found.all()
    assert before.posterior(gone.double(), NoiseLevel(1.0, 1e-3)).heaviest.ids[:, 0].tolist() == list(range(1, 5))


def test_a_push_tells_the_engine_who_left_and_old_versions_are_answered_still(own):
    col, address = own
    before, x = col.snapshot(), rows(COUNT)[:5].double()
    col.withdraw(keys(0, 5), "no longer")
    assert push.check(col, address) == (COUNT, 0, 5, 0)
    assert push.push(col, address).different == 5
    with closing(Link(address)) as link:
        there = link.sent(table_of(col, address), "id <= 6")
    assert {i: row["withdrawn"] for i, row in there.items()} == {**dict.fromkeys(range(1, 6), 3), 6: IN_FORCE}
    assert {row["label"] for row in there.values()} == {"first"}
    negatives = MilvusNegatives(col, address)
    assert not negatives.near(x, radius=0.0).found.any()
    old = negatives.snapshot(before.version)
    assert old.near(x, radius=0.0).found.all()
    alike(old.posterior(x, NoiseLevel(1.0, 0.2)), before.posterior(x, NoiseLevel(1.0, 0.2)))


def test_a_row_that_the_engine_says_is_in_force_is_not_taken_at_its_word(own):
    """It holds rows of nobody, and one that was withdrawn, marked as in force and near everything."""
    col, address = own
    col.withdraw(["row-0"], "no longer")
    seen = np.concatenate([fresh()[0].flatten().numpy().astype(np.float32)] * 2)[: 12 + 64]
    with closing(Link(address)) as link:
        link.put(table_of(col, address), [EngineRow(9999, 0, 0, IN_FORCE, "", seen)], 12)
    told, negatives = asked(col), MilvusNegatives(col, address)
    alike(asked(negatives), told)
    with pytest.raises(EngineBehind, match=r"gave 601 of the 600 rows"):
        negatives.near(fresh()[:1], k=1)
    assert push.check(col, address, repair=True) == (COUNT, 0, 1, 1)
    assert push.check(col, address).wrong == 0
    same_rows(negatives.near(fresh()[:1], k=1), col.near(fresh()[:1], k=1))


# -- an engine that lacks rows, or is not there --------------------------------------------------


def test_rows_that_the_engine_lost_raise_and_a_push_brings_them_back(own):
    col, address = own
    negatives = MilvusNegatives(col, address, cache_rows=0)
    whole = asked(negatives, 10.0)
    delete(address, table_of(col, address), list(range(1, COUNT, 3)))
    with pytest.raises(EngineBehind, match=r"gave \d+ of the \d+ rows of \d+ clusters .*engine push SET milvus"):
        asked(negatives, 10.0)
    with pytest.raises(EngineBehind, match="gave 400 of the 600 rows that version 2 needs"):
        negatives.near(fresh()[:1], k=1)
    assert push.status(col)[0].held == 400
    assert push.check(col, address) == (COUNT, 200, 0, 0)
    assert push.push(col, address) == (COUNT, 200, 0, 0)
    alike(asked(negatives, 10.0), whole)
    assert push.status(col)[0].is_whole


def test_a_table_that_is_gone_raises(own):
    col, address = own
    negatives = MilvusNegatives(col, address)
    with closing(Link(address)) as link:
        link.drop(table_of(col, address))
    for _ in range(2):
        with pytest.raises(EngineBehind, match="gave 0 of the 600 rows"):
            asked(negatives)
        with pytest.raises(EngineBehind, match="gave 0 of the 600 rows"):
            negatives.near(fresh()[:1], k=1)
    assert push.check(col, address) == (COUNT, COUNT, 0, 0)


def test_an_index_that_was_never_pushed_raises_and_so_does_one_not_on_record(own):
    col, address = own
    elsewhere = Address.of(address.text.rpartition("/")[0] + "/elsewhere")
    with pytest.raises(EngineBehind, match="gave 0 of the 600 rows"):
        asked(MilvusNegatives(col, elsewhere))
    (index,) = [one for one in col.derived() if one.kind == "index"]
    (col.path / "derived" / index.file).unlink()
    with pytest.raises(EngineBehind, match=r"0 of 600 rows .*not on record; `negindex compact"):
        asked(MilvusNegatives.open(col.path, address))
    push.push(Collection.open(col.path), address)  # makes it anew, and drops the table of the one that is lost
    with closing(MilvusNegatives.open(col.path, address)) as negatives:
        alike(asked(negatives), asked(negatives.collection))
    assert push.status(Collection.open(col.path))[0].older == ()


def grown(col):
    """With so many rows more that the index has to be made anew."""
    col.add(rows(COUNT + 300)[COUNT:].numpy(), keys(COUNT, COUNT + 300), label="later")


def test_look_ups_go_on_while_an_index_made_anew_is_pushed(own):
    col, address = own
    grown(col)
    before, told = col.index().file, []
    with closing(MilvusNegatives.open(col.path, address)) as reader:

        def say(said):
            assert said.endswith("of 900 rows")
            told.append(reader.collection.index().file)
            alike(asked(reader), asked(col))

        assert push.keep_up(col, address, say) == (900, 900, 0, 0)
        assert set(told) == {before} != {col.index().file}
        alike(asked(reader), asked(col))
        assert reader.collection.index().file == col.index().file
        reader.let_go()
        col.let_go()
        col.settle()
        assert push.keep_up(col, address) is None
        assert push.status(col)[0].older == ()


def test_an_engine_that_cannot_take_an_index_leaves_that_on_record_as_it_is(own, monkeypatch):
    col, address = own
    grown(col)
    before, calibration = asked(MilvusNegatives(col, address)), col.calibration()
    derived, table = col.derived(), table_of(col, address)
    monkeypatch.setattr(Link, "settle", lambda self, table: self.delete(table, [7]))
    ahead = push.EnginesAhead(col, col.engines.known())
    for change in (lambda: col.reindex(ahead), lambda: col.adopt(calibration, ahead=ahead)):
        with pytest.raises(EngineBehind, match="counts 899 rows"):
            change()
    assert (col.derived(), verify(col.path).faults) == (derived, [])
    alike(asked(MilvusNegatives(col, address)), before)
    monkeypatch.undo()
    make_large(monkeypatch)
    assert push.push(col, address).missing == 900
    assert set(push.status(col)[0].older) <= {table}  # that a reader may hold still; what was begun is gone


def test_rows_that_are_erased_while_their_index_is_pushed_go_from_the_engine_too(own):
    col, address = own
    grown(col)

    def say(said):
        if col.outstanding() == []:
            col.erase(["row-1"], "it goes for good")

    ahead = push.EnginesAhead(col, [address], say)
    assert not col.reindex(ahead)
    assert (ahead.sent.missing, col.index()) == (900, None)
    assert col.settle() == []
    with closing(Link(address)) as link:
        assert link.tables(col.engines.prefix(address)) == []


def test_an_engine_that_does_not_answer_raises(both):
    col, _ = both
    nowhere = MilvusNegatives(col, "milvus://127.0.0.1:9/claims", timeout=1.0)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9/claims did not"):
        asked(nowhere)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9/claims did not"):
        nowhere.near(fresh()[:1], k=1)


# -- what it refuses, and what it owes -----------------------------------------------------------


def test_an_erasure_is_pending_until_the_engine_has_heard_of_it(own, monkeypatch):
    col, address = own
    clear = type(col.engines).clear
    monkeypatch.setattr(type(col.engines), "clear", lambda *_: (_ for _ in ()).throw(Unreachable("it is down")))
    version = col.erase(["row-1"], "it goes for good")
    assert [(one.version, one.name) for one in col.outstanding() if one.what == "engine"] == [(version, address.text)]
    with closing(Link(address)) as link:
        assert len(link.tables(col.engines.prefix(address))) == 1
    assert verify(col.path).faults == []
    monkeypatch.setattr(type(col.engines), "clear", clear)
    assert col.settle() == []
    with closing(Link(address)) as link:
        assert link.tables(col.engines.prefix(address)) == []


def test_an_erasure_waits_for_readers_of_the_engine(own):
    col, address = own
    reader = MilvusNegatives.open(col.path, address)
    held = reader.pin()
    before = asked(held)
    col.erase(["row-1"], "it goes for good")
    assert {one.what for one in col.settle()} >= {"derived", "engine"}
    alike(asked(held), before)
    del held, before
    reader.close()
    assert col.settle() == []


def test_a_backup_neither_holds_engines_nor_owes_them(own, tmp_path, monkeypatch):
    col, _ = own
    monkeypatch.setattr(type(col.engines), "clear", lambda *_: (_ for _ in ()).throw(Unreachable("it is down")))
    col.erase(["row-1"], "it goes for good")
    assert "engine" in {one.what for one in col.outstanding()}
    col.backup(tmp_path / "copy")
    back = Collection.restore(tmp_path / "copy", tmp_path / "back")
    assert back.engines.known() == []
    assert "engine" not in {one.what for one in back.outstanding()}


def test_one_program_changes_an_engine_at_a_time(own):
    col, address = own
    with col.engines.held(address), pytest.raises(Locked, match="another program is changing"):
        push.push(col, address)


def test_sets_that_an_engine_cannot_hold_are_refused(tmp_path, monkeypatch, own):
    small = Collection.create(tmp_path / "small", SHAPE, "pixels")
    small.add(rows(3).numpy(), keys(0, 3))
    with pytest.raises(NotAllowed, match="no index that an engine could hold"):
        push.push(small, own[1])
    monkeypatch.setattr("negindex.engines.push.MOST_DIMENSIONS", 8)
    with pytest.raises(OutOfRange, match="12 dimensions, and an engine takes 8"):
        push.push(own[0], own[1])


@pytest.mark.parametrize(
    "text",
    [
        "claims", "http://host:1/claims", "milvus://host", "milvus://host:x/claims", "milvus://host/a/b", "milvus:///f/a",
        "milvus://host/9", "milvus://host/a b", "milvus:///claims", "milvus://host/a?b", f"milvus://host/{'a' * 101}",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InvalidInput, match="give"):
        Address.of(text)


def test_addresses():
    assert Address.of("milvus://host/a")[1:] == ("http://host:19530", "a")
    assert Address.of("milvus+tls://host:7/a_1")[1:] == ("https://host:7", "a_1")
    assert Address.of("milvus://[::1]:7/a")[1:] == ("http://[::1]:7", "a")
    assert Address.of("milvus:///x/y.db/a") == ("milvus:///x/y.db/a", "/x/y.db", "a")
    for place in ("host", "host:port"):
        with pytest.raises(InvalidInput, match="NEGINDEX_MILVUS_TOKEN") as refused:
            Address.of(f"milvus://ann:secret@{place}/a")
        assert "secret" not in str(refused.value)


# -- the command line ----------------------------------------------------------------------------


def run(*words, code=0):
    done = CliRunner().invoke(main, ["engine", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.stdout


def test_an_engine_from_the_command_line(own):
    col, address = own
    assert run("status", col.path) == f"{address.text}: 600 of 600 rows\n"
    delete(address, table_of(col, address), [3, 4])
    assert run("status", col.path, code=3) == f"{address.text}: 598 of 600 rows\n"
    assert run("check", col.path, code=13).endswith("600 rows, 2 wrong (2 missing, 0 different, 0 of no row)\n")
    assert "2 put right" in run("check", col.path, address.text, "--repair")
    assert json.loads(run("push", col.path, "--json"))["missing"] == 0
    assert json.loads(run("status", col.path, "--json"))[0]["held"] == 600
    assert run("drop", col.path) == f"{col.path}: {address.text} dropped, 1 tables\n"
    assert run("status", col.path) == ""
    run("check", col.path, address.text, "--repair", code=10)
    run("push", col.path, code=2)
    run("push", col.path, "nowhere", code=2)


def test_a_compaction_of_the_command_line_pushes_the_index_that_it_makes_anew(own):
    col, address = own
    grown(col)
    col.let_go()
    done = CliRunner().invoke(main, ["compact", str(col.path)])
    assert done.exit_code == 0, done.output
    assert f"{address.text}: 900 of 900 rows" in done.output
    assert run("status", col.path) == f"{address.text}: 900 of 900 rows\n"  # and no older table


def test_a_calibration_is_refused_before_it_begins_where_an_engine_is_away(own):
    col, _ = own
    col.engines.note(Address.of("milvus://127.0.0.1:9/claims"))
    before = col.newest().version
    done = CliRunner().invoke(main, ["calibrate", str(col.path)])
    assert done.exit_code != 0
    assert "127.0.0.1:9/claims did not list its collections" in done.output
    assert "engine drop" in done.output
    assert col.newest().version == before


def test_an_engine_that_is_gone_for_good_is_forgotten(own, monkeypatch):
    col, address = own
    col.engines.note(gone := Address.of("milvus://127.0.0.1:9/claims"))
    monkeypatch.setattr("negindex.engines.known._PATIENCE", 0.5)
    col.erase(["row-1"], "it goes for good")
    assert [one.name for one in col.outstanding() if one.what == "engine"] == [gone.text]
    run("drop", col.path, gone.text, "--gone", code=2)
    assert "forgotten" in run("drop", col.path, gone.text, "--gone", "--yes")
    assert col.outstanding() == []
    assert col.engines.known() == [address]
    with pytest.raises(NotThere, match="is no engine of this set"):
        col.engines.forget(gone)


def test_build_with_an_engine_is_one_command(file, tmp_path):
    np.save(tmp_path / "rows.npy", rows(300).numpy())
    address = f"milvus://{file}/built"
    words = ["build", str(tmp_path / "set"), str(tmp_path / "rows.npy"), "--space", "pixels", "--engine", address]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "calibrating" in done.stderr
    assert f"{address}: 300 rows, 300 sent" in done.stderr
    assert run("status", tmp_path / "set") == f"{address}: 300 of 300 rows\n"
    assert CliRunner().invoke(main, [*words[:-1], "nowhere"]).exit_code == 2
