"""A collection that was calibrated answers by the mixture: over changes, in every process, and never from bad bytes."""

import itertools
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mixtures import SHAPE, fresh, kernel, learn_from_few, noised, off, rms, rows
from PIL import Image
from safetensors.torch import load_file
from test_crash import acknowledged, run

import negindex.index
from negindex import LITERAL, Calibration, Collection, Exact, Kernel, Mixture, NoiseLevel, Union
from negindex.calibration import Level
from negindex.errors import Damaged, KernelMismatch, NotThere, OutOfRange, ShapeMismatch
from negindex.head import Effort
from negindex.index import Index
from negindex.sampler.correction import Correction
from negindex.testing import FailingDisk, FaultyDisk, KillingDisk, NegativesTests, points
from negindex.tools.cli import main
from negindex.verify import verify

COUNT, LEVELS = 1500, (0.2, 1.0, 10.0)
EFFORTS = (Effort(250, 16), Effort(500, 32), Effort(1000, 64))  # as in test_mixture, which holds the errors to account


def as_if_large(patch):
    """An index for however few rows, and the trust in it learned from a few probes at a few levels."""
    patch.setattr("negindex.index.SCAN_ELEMENTS", 0)
    patch.setattr("negindex.mixture.usual_efforts", lambda rows: EFFORTS)
    learn_from_few(patch, LEVELS)


@pytest.fixture(autouse=True)
def every_set_is_large(monkeypatch):
    as_if_large(monkeypatch)


def learned():
    """A calibration without the work of learning it."""
    return Calibration(kernel(rows(COUNT)), (Level(1.0, 3.0, 0.2, 0.3, 0.9, 12.0),), rms(rows(COUNT)), COUNT, 0, 7)


def keys(first, last):
    return [f"row-{i}" for i in range(first, last)]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Rows 1 to 1500 and a calibration, with its index, at version 2."""
    with pytest.MonkeyPatch.context() as patch:
        as_if_large(patch)
        with Collection.create(tmp_path_factory.mktemp("template") / "set", SHAPE, "pixels") as col:
            col.add(rows(COUNT).numpy(), keys(0, COUNT), label="first")
            col.adopt(learned(), by="ann")
    return col.path


@pytest.fixture
def col(template, tmp_path):
    return Collection.open(shutil.copytree(template, tmp_path / "set"))


def index_file(col):
    (found,) = [col.path / "derived" / one.file for one in col.derived() if one.kind == "index"]
    return found


def content(negatives):
    """Rows in force and their ids, in any order."""
    ids, found = (torch.cat(part) for part in zip(*negatives.blocks(1000), strict=True))
    return Exact(found.reshape(-1, *SHAPE), ids)


def check(negatives, modelled=True):
    """What a set says where no kernel is named is what a scan by the calibrated one says, to within what is stated."""
    snapshot = negatives.pin()
    true_set, holds, errors = content(snapshot), [], []
    for s in LEVELS:
        x = noised(fresh(), s, seed=3)
        told = negatives.posterior(x, NoiseLevel(1.0, s))
        true = true_set.posterior(x, NoiseLevel(1.0, s), kernel=learned().kernel)
        assert told.kernel == learned().kernel
        assert (told.count, told.origins) == (len(true_set), negatives.origins)
        assert torch.isin(told.heaviest.ids, true.heaviest.ids.new_tensor(list(true_set.digests()))).all()
        wrong = off(told, true, true_set.moments().rms)
        assert wrong.mean() < 0.05
        assert (told.log_norm - true.log_norm).abs().mean() < 0.05
        holds.append(told.error >= wrong - 1e-12)
        errors.append(told.error)
    assert torch.cat(holds).double().mean() >= 0.95
    assert bool((torch.cat(errors) > 0).any()) == modelled


# -- the file of a calibration -----------------------------------------------------------------


@pytest.mark.parametrize("given", [learned(), Calibration(Kernel.floored(0.5), (), 1.0, 200, 3, 0)])
def test_a_calibration_comes_back_from_its_file_as_it_was(tmp_path, given):
    given.save(tmp_path / "kept")
    back = Calibration.load(tmp_path / "kept")
    assert (back.kernel, back.levels, back.rms, back.rows) == (given.kernel, given.levels, given.rms, given.rows)
    assert (back.reference_rows, back.seed, back.fingerprint) == (given.reference_rows, given.seed, given.fingerprint)
    told = load_file(tmp_path / "kept")["projection"]  # the format's own reader
    assert told.shape[0] == 0 if given.kernel.projection is None else torch.equal(told, given.kernel.projection)


def test_no_other_bytes_make_a_calibration(tmp_path):
    given = Calibration(Kernel([(1.0, 2.0)], torch.ones(1, 2).double()), (), 1.0, 200, 0, 0)
    given.save(tmp_path / "kept")
    whole = (tmp_path / "kept").read_bytes()
    changed = [whole[:n] for n in range(0, len(whole), 7)] + [whole + b"\0"]
    changed += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for content_ in changed:
        (tmp_path / "other").write_bytes(content_)
        try:
            found = Calibration.load(tmp_path / "other")
        except Damaged:
            continue
        assert found.fingerprint == given.fingerprint  # what no fingerprint covers, such as a count
    with pytest.raises(NotThere):
        Calibration.load(tmp_path / "nowhere")


# -- answers -----------------------------------------------------------------------------------


def test_a_calibrated_set_answers_by_its_index(col):
    check(col)
    check(col.snapshot())
    x, level = noised(fresh()[:4], 1.0, seed=3), NoiseLevel(1.0, 1.0)
    alone = Mixture.build(col.snapshot(), learned().kernel, efforts=EFFORTS, scan_elements=0)
    told = col.posterior(x, level)
    torch.testing.assert_close(told.mean, alone.posterior(x, level, kernel=learned().kernel).mean, rtol=0, atol=1e-5)
    literal = col.posterior(x, level, kernel=LITERAL)
    assert torch.equal(literal.mean, content(col.snapshot()).posterior(x, level).mean)
    assert (literal.kernel, literal.error.tolist()) == (LITERAL, [0.0] * 4)


def test_additions_and_withdrawals_answer_at_once_and_old_versions_stay(col):
    held = col.snapshot()
    x, level = noised(fresh()[:4], 1.0, seed=3), NoiseLevel(1.0, 1.0)
    before = held.posterior(x, level)
    col.add(rows(70, seed=5).numpy(), keys(COUNT, COUNT + 70), label="later")
    check(col)
    for gone in (keys(0, 3), keys(100, 180), keys(COUNT, COUNT + 9)):
        col.withdraw(gone, "no longer")
        check(col)
    check(Collection.open(col.path))
    col.compact()
    check(col)
    assert torch.equal(held.posterior(x, level).mean, before.mean)
    assert torch.equal(Collection.open(col.path).snapshot(2).posterior(x, level).log_norm, before.log_norm)
    for version in range(2, col.newest().version + 1):
        check(col.snapshot(version))


def test_a_row_that_is_asked_for_itself_and_withdrawn_answers_no_more(col):
    x, level = rows(COUNT)[40:44].double(), NoiseLevel(1.0, 0.05)
    assert col.posterior(x, level).heaviest.ids[:, 0].tolist() == [41, 42, 43, 44]
    col.withdraw(keys(40, 44), "no longer")
    told = col.posterior(x, level)
    assert not torch.isin(told.heaviest.ids, torch.arange(41, 45)).any()
    assert told.count == COUNT - 4


def test_a_snapshot_answers_on_after_its_collection_was_closed(col):
    x, level = noised(fresh()[:4], 1.0, seed=3), NoiseLevel(1.0, 1.0)
    true = col.posterior(x, level, error=1e-9).mean
    asked, unasked = col.snapshot(), col.snapshot()
    before = asked.posterior(x, level).mean
    col.close()
    assert torch.equal(asked.posterior(x, level).mean, before)
    torch.testing.assert_close(unasked.posterior(x, level).mean, true, rtol=0, atol=1e-12)


def test_an_error_that_is_asked_for_is_reached(col):
    col.add(rows(70, seed=5).numpy(), keys(COUNT, COUNT + 70))
    for target in (0.05, 1e-9):
        assert col.posterior(noised(fresh()[:4], 1.0, 3), NoiseLevel(1.0, 1.0), error=target).error.max() <= target


def test_views_are_answered_as_what_they_are(col):
    col.add(rows(70, seed=5).numpy(), keys(COUNT, COUNT + 70), label="later")
    check(col.snapshot().where(label="first"))
    check(col.snapshot().where(label="later"), modelled=False)
    digests = col.digests()
    check(col.snapshot().without([digests[i] for i in (3, 800, COUNT + 5)]))
    assert col.where(label="later").default_kernel == learned().kernel


def test_withdrawing_all_that_is_indexed_leaves_a_scan(col):
    col.add(rows(70, seed=5).numpy(), keys(COUNT, COUNT + 70))
    col.withdraw(keys(0, COUNT), "all of it")
    check(col, modelled=False)


def test_another_process_loads_the_index_and_builds_none(col):
    code = """if True:
        import sys, torch, negindex.index as index
        index.SCAN_ELEMENTS, index.Index.build = 0, None
        from negindex import Collection, NoiseLevel
        x = torch.load(sys.argv[2], weights_only=True)
        told = Collection.open(sys.argv[1]).posterior(x, NoiseLevel(1.0, 1.0))
        print(told.kernel.fingerprint, *told.log_norm.tolist())"""
    x = noised(fresh()[:4], 1.0, seed=3)
    torch.save(x, col.path.parent / "x")
    words = [sys.executable, "-c", code, str(col.path), str(col.path.parent / "x")]
    done = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert done[0] == learned().fingerprint
    assert [float(one) for one in done[1:]] == pytest.approx(col.posterior(x, NoiseLevel(1.0, 1.0)).log_norm.tolist())


def test_hidden_rows_leave_the_moments_that_removed_rows_leave(col):
    mixture = col.snapshot().split(learned().kernel).mixture
    gone = torch.arange(0, COUNT, 7)
    removed = mixture.clusters.without(torch.zeros(COUNT, dtype=torch.bool).index_fill(0, gone, True), mixture.source)
    hidden = mixture.clusters.hiding(gone, lambda some: mixture.source.take(mixture.clusters.places[some]))
    assert hidden.reduced is mixture.clusters.reduced  # shared, not copied
    assert len(hidden) == len(removed) == COUNT - len(gone)
    for one, other in zip(
        (*hidden.gaussians, *hidden.whole, hidden.outside, hidden.packed().ids, hidden.packed().reduced),
        (*removed.gaussians, *removed.whole, removed.outside, removed.ids, removed.reduced),
        strict=True,
    ):
        assert torch.equal(one, other)


class TestCalibratedSnapshot(NegativesTests):
    """Two thirds of the rows in the index, the last third scanned, under the literal kernel."""

    stored = torch.float16
    tolerance = 1e-3  # of float16 rows' own distances

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path_factory):
        self.place = tmp_path_factory

    def make(self, given):
        made = Collection.create(self.place.mktemp("set") / "set", given.shape[1:], "pixels")
        for part, some in enumerate(torch.arange(len(given)).tensor_split(3)):
            made.add(given[some].numpy(), [f"row-{int(i)}" for i in some])
            if part == 1 and len(made):
                made.adopt(Calibration(LITERAL, (), 1.0, 200, 0, 0))
        return made.snapshot()


# -- bad bytes are never loaded ----------------------------------------------------------------


def flipped(file, at):
    whole = bytearray(file.read_bytes())
    whole[at] ^= 4
    file.write_bytes(whole)


def spoil_start(col, _):
    flipped(index_file(col), 3)


def spoil_middle(col, _):
    flipped(index_file(col), index_file(col).stat().st_size // 2)


def spoil_end(col, _):
    flipped(index_file(col), -1)


def spoil_whole(col, _):
    index_file(col).write_bytes(b"")


def spoil_name(col, _):
    index_file(col).unlink()


def spoil_owner(col, template):
    other = Collection.create(col.path.with_name("other"), SHAPE, "pixels")
    other.add(rows(COUNT, seed=8).numpy(), keys(0, COUNT))
    other.adopt(learned())
    index_file(other).replace(index_file(col))


SPOILT = [spoil_start, spoil_middle, spoil_end, spoil_whole, spoil_name, spoil_owner]


@pytest.mark.parametrize("spoil", SPOILT)
def test_an_index_of_other_bytes_is_never_loaded_and_made_anew(col, template, monkeypatch, spoil):
    spoil(col, template)
    (fault,) = col.verify()
    assert (fault.what, fault.where) == ("derived", index_file(col).name)
    assert "`negindex compact` makes it anew" in fault.said
    with monkeypatch.context() as patch:
        patch.setattr(Index, "read", None)
        check(Collection.open(col.path))  # by one that is built in memory
    old = index_file(col)
    col.compact()
    assert index_file(col) != old
    assert col.verify() == []
    monkeypatch.setattr(Index, "build", None)
    check(Collection.open(col.path))


def test_a_calibration_of_other_bytes_is_an_error_and_other_kernels_still_answer(col):
    (kept,) = [col.path / "derived" / one.file for one in col.derived() if one.kind == "calibration"]
    flipped(kept, -1)
    with pytest.raises(Damaged, match="run `negindex calibrate` again"):
        Collection.open(col.path).posterior(fresh()[:1].double(), NoiseLevel(1.0, 1.0))
    Collection.open(col.path).posterior(fresh()[:1].double(), NoiseLevel(1.0, 1.0), kernel=LITERAL)
    assert [fault.what for fault in col.verify()] == ["derived"]


def test_a_calibration_that_the_record_exchanged_is_named(col):
    (kept,) = [one for one in col.derived() if one.kind == "calibration"]
    Calibration(Kernel.floored(0.5), (), 1.0, 200, 0, 0).save(col.path / "derived" / kept.file)
    digest = negindex.disk.sha256_of(col.path / "derived" / kept.file)
    with col._catalogue.upkeep() as change:
        change._db.execute("UPDATE derived SET sha256 = ? WHERE file = ?", (digest, kept.file))
    assert any("by the log it is" in fault.said for fault in verify(col.path).faults)


# -- upkeep ------------------------------------------------------------------------------------


def test_compaction_makes_the_index_anew_once_it_lacks_a_tenth(col, monkeypatch):
    old = index_file(col)
    col.add(rows(100, seed=5).numpy(), keys(COUNT, COUNT + 100))
    col.compact()
    assert (index_file(col), col.unindexed()) == (old, 100)
    col.add(rows(100, seed=6).numpy(), keys(COUNT + 100, COUNT + 200))
    version = col.newest().version
    col.compact()
    assert (col.unindexed(), col.newest().version, old.exists()) == (0, version, False)
    check(col)
    monkeypatch.setattr("negindex.store.INDEXED", (0.1, 20))
    col.withdraw(keys(0, 30), "no longer")
    old = index_file(col)
    col.compact()
    assert index_file(col) != old
    check(col)


def test_giving_up_old_rows_takes_them_out_of_the_index(col):
    col.withdraw(keys(0, 5), "no longer")
    old = index_file(col)
    col.compact(forget_before=col.newest().version)
    assert not old.exists()
    assert col.unindexed() == 0
    check(col)
    assert col.verify() == []


# -- erasure -----------------------------------------------------------------------------------


def traces(col, key_id):
    """What a row leaves in the index: its own bytes and those of its vector in the kernel's space."""
    with open(index_file(col), "rb") as file:
        clusters = Index.read(file, index_file(col), col.set_id, learned().kernel).clusters
    number = int((clusters.ids == key_id).nonzero())
    return [clusters.reduced[number].numpy().tobytes(), clusters.sketch[number].numpy().tobytes()]


def holding(path, marks):
    return [p.name for p in path.rglob("*") if p.is_file() and any(mark in p.read_bytes() for mark in marks)]


def test_an_erasure_takes_every_derived_byte_of_the_row(col):
    marks, projection = traces(col, 78), learned().kernel.projection.numpy().tobytes()
    assert holding(col.path, marks) == [index_file(col).name]
    assert len(holding(col.path, [projection])) == 1
    version = col.newest().version
    col.erase(["row-77"], "asked for")
    assert col.outstanding() == col.derived() == []
    assert holding(col.path, [*marks, projection]) == []
    assert (col.calibration(), col.default_kernel, col.unindexed()) == (None, LITERAL, None)
    assert json.loads(col._catalogue.ask("SELECT body FROM notes WHERE version = ?", version)[0][0])["kernel"]
    assert col.verify() == []
    told = col.posterior(fresh()[:2].double(), NoiseLevel(1.0, 1.0))
    assert (told.kernel, told.error.tolist()) == (LITERAL, [0.0, 0.0])


def test_an_erasure_is_pending_while_a_reader_maps_the_index(col):
    other = Collection.open(col.path)
    other.posterior(fresh()[:1].double(), NoiseLevel(1.0, 1.0))
    file = index_file(col).name
    col.erase(["row-77"], "asked for")
    (left,) = [one for one in col.outstanding() if one.what == "derived"]
    assert left.name == file
    assert [holder.program != "" for holder in col.holders(left)] == [True]
    assert verify(col.path).faults == []
    other.close()
    del other
    assert col.settle() == []


def test_a_row_that_the_calibration_never_saw_takes_the_index_alone(col):
    col.add(rows(200, seed=5).numpy(), keys(COUNT, COUNT + 200))
    col.compact()
    marks = traces(col, COUNT + 3)
    col.posterior(fresh()[:1].double(), NoiseLevel(1.0, 1.0))
    col.erase([f"row-{COUNT + 2}"], "asked for")
    assert [one.kind for one in col.derived()] == ["calibration"]
    assert holding(col.path, marks) == []
    check(col)
    check(Collection.open(col.path))
    col.compact()
    assert col.unindexed() == 0
    assert col.verify() == []


def test_after_an_erasure_the_newest_calibration_that_saw_nothing_of_it_holds(col):
    col.add(rows(10, seed=5).numpy(), keys(COUNT, COUNT + 10))
    col.adopt(Calibration(Kernel.floored(0.5), (), 1.0, 200, 0, 0))
    assert col.snapshot(3).default_kernel == learned().kernel
    col.erase([f"row-{COUNT}"], "asked for")
    assert col.default_kernel == learned().kernel
    check(col)
    assert col.verify() == []


# -- a crash, and a disk that fails ------------------------------------------------------------


def small(path):
    with Collection.create(path, SHAPE, "pixels") as made:
        made.add(rows(40).numpy(), keys(0, 40))
    return path


def adopted(path, disk):
    negindex.index.SCAN_ELEMENTS = 0
    return Collection.open(path, disk=disk).adopt(Calibration(kernel(rows(120)), (), 1.0, 200, 0, 0))


def killed(path, at, when, ack):
    ack.send(adopted(path, KillingDisk(at, when)))


ONE_FILE = ["write", "sync", "rename", "sync_directory"]
CALLS = ["sync_directory", *ONE_FILE, *ONE_FILE, "commit"]


@pytest.mark.parametrize(("at", "when"), points(CALLS))
def test_a_calibration_that_is_killed_happened_wholly_or_not_at_all(tmp_path, at, when):
    path = small(tmp_path / "set")
    process, ours = run(killed, path, at, when)
    assert list(acknowledged(ours)) == []
    process.join()
    assert process.exitcode == -signal.SIGKILL
    committed = (at, when) == (len(CALLS), "after")
    again = Collection.open(path)
    assert again.newest().version == 1 + committed
    assert len(again.derived()) == 2 * committed
    there = [p.name for p in (path / "derived").glob("*")]
    assert sorted(there) == sorted(one.file for one in again.derived())
    assert again.verify() == []
    assert adopted(path, None) == 2 + committed


def test_a_disk_that_fails_leaves_the_old_state(tmp_path):
    disk, path = FaultyDisk(), small(tmp_path / "set")
    adopted(shutil.copytree(path, tmp_path / "rehearsal"), disk)
    assert disk.calls == CALLS
    for (at, when), number in zip(points(CALLS), itertools.count(), strict=False):
        if (CALLS[at - 1], when) != ("commit", "after"):
            here = shutil.copytree(path, tmp_path / str(number))
            with pytest.raises(OSError, match="No space left"):
                adopted(here, FailingDisk(at, when))
            assert Collection.open(here).newest().version == 1
            assert verify(here).faults == []


# -- backups -----------------------------------------------------------------------------------


def test_a_backup_keeps_the_calibration_and_leaves_the_index_to_be_made(col, tmp_path):
    col.backup(tmp_path / "backup")
    assert [p.name.partition("-")[0] for p in (tmp_path / "backup" / "derived").iterdir()] == ["calibration"]
    assert verify(tmp_path / "backup").faults == []
    col.adopt(Calibration(Kernel.floored(0.5), (), 1.0, 200, 0, 0))
    back = Collection.restore(tmp_path / "backup", tmp_path / "back", log=col.path)
    assert back.verify() == []
    check(back)  # the later calibration is lost, like all bytes of its time
    back.compact()
    assert back.unindexed() == 0


def test_an_erasure_takes_the_calibration_out_of_backups_and_of_what_is_restored(col, tmp_path):
    projection = learned().kernel.projection.numpy().tobytes()
    col.backup(tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", tmp_path / "elsewhere")
    col.erase(["row-77"], "asked for")
    assert col.outstanding() == []
    assert holding(tmp_path / "backup", [projection]) == []
    assert verify(tmp_path / "backup").faults == []
    for source in ("backup", "elsewhere"):
        back = Collection.restore(tmp_path / source, tmp_path / f"{source}-back", log=col.path)
        back.settle()
        assert back.calibration() is None
        assert back.verify() == []
        assert holding(back.path, [projection]) == []


# -- one kernel for all ------------------------------------------------------------------------


def test_sets_that_were_calibrated_differently_are_not_asked_as_one_without_a_kernel(col):
    x, level = fresh()[:1].double(), NoiseLevel(1.0, 1.0)
    for other in (Exact(rows(30)), Collection.create(col.path.with_name("other"), SHAPE, "pixels")):
        both = Union([col, other])
        if len(other):
            with pytest.raises(KernelMismatch, match="--like"):
                both.posterior(x, level)
        both.posterior(x, level, kernel=LITERAL)
    other.add(rows(250, seed=2).numpy(), keys(0, 250))
    other.adopt(col.calibration())
    assert both.posterior(x, level).kernel == learned().kernel


def test_a_correction_sees_both_sets_through_the_negatives_kernel(col):
    both = Correction(col, Exact(rows(300, seed=2)))
    x = noised(fresh()[:3], 1.0, seed=1)
    for asked in (both, both.pin()):
        look = asked.look(x, x, NoiseLevel(1.0, 1.0))
        assert look.unsafe.kernel == look.reference.kernel == asked.weighed_by == learned().kernel
    named = Correction(col, Exact(rows(300, seed=2)), kernel=LITERAL).pin()
    assert named.look(x, x, NoiseLevel(1.0, 1.0)).reference.kernel == LITERAL


def test_what_cannot_be_calibrated_says_so(col):
    small_one = Collection.create(col.path.with_name("other"), SHAPE, "pixels")
    small_one.add(rows(50).numpy(), keys(0, 50))
    with pytest.raises(OutOfRange, match="50 rows are too few"):
        small_one.calibrate()
    with pytest.raises(ShapeMismatch, match="rows of 5 numbers"):
        small_one.adopt(Calibration(Kernel(projection=torch.ones(1, 5)), (), 1.0, 200, 0, 0))
    assert small_one.newest().version == 1


# -- the command -------------------------------------------------------------------------------


def test_the_command_calibrates_and_status_tells(tmp_path):
    made = {}
    for name, seed in (("set", 0), ("benign", 1)):
        made[name] = Collection.create(tmp_path / name, SHAPE, "pixels")
        made[name].add(rows(400, seed=seed).numpy(), keys(0, 400))

    def ran(*words):
        return CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)

    before = json.loads(ran("status", tmp_path / "set", "--json").stdout)
    assert (before["kernel"], before["calibrated_at"], before["rows_not_indexed"]) == ("literal", None, 400)
    assert ran("calibrate", tmp_path / "benign", "--like", tmp_path / "set").exit_code == 10
    for plot, why in (("plot.xyz", "end its name in .png"), ("none/plot.png", "make it first")):
        done = ran("calibrate", tmp_path / "set", "--plot", tmp_path / plot)
        assert done.exit_code != 0
        assert why in done.stderr
    assert made["set"].calibration() is None, "what cannot be drawn is said before anything is learned"
    words = ("--by", "ann", "--reason", "first", "--plot", tmp_path / "plot.png")
    done = ran("calibrate", tmp_path / "set", "--reference", tmp_path / "benign", *words)
    assert done.exit_code == 0
    with Image.open(tmp_path / "plot.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 10
    assert done.stdout.splitlines() == made["set"].calibration().table()
    told = made["set"].newest()
    assert (told.action, told.by, told.reason) == ("calibrate", "ann", "first")
    assert made["set"].calibration().reference_rows == 400
    told = json.loads(ran("calibrate", tmp_path / "benign", "--like", tmp_path / "set", "--json").stdout)
    assert told["fingerprint"] == made["set"].calibration().fingerprint
    assert ran("calibrate", tmp_path / "set", "--like", tmp_path / "a", "--reference", tmp_path / "b").exit_code == 2
    after = json.loads(ran("status", tmp_path / "set", "--json").stdout)
    assert (after["calibrated_at"], after["rows_indexed"], after["calibrate_again"]) == (2, 400, None)
    gone = ran("erase", tmp_path / "set", "row-3", "--reason", "asked for", "--yes")
    assert "run `negindex calibrate`" in gone.stderr
    assert "saw rows that were erased" in ran("status", tmp_path / "set").stdout


def test_the_same_seed_learns_the_same(tmp_path):
    made = Collection.create(tmp_path / "set", SHAPE, "pixels")
    made.add(rows(300).numpy(), keys(0, 300))
    one, other = made.calibrate(seed=4), made.calibrate(seed=4)
    assert one.fingerprint == other.fingerprint
    assert np.array_equal([level.tau for level in one.levels], [level.tau for level in other.levels])
