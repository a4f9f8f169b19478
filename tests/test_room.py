"""Batches, devices, memory and disk: found by themselves, and refused before a build starts where they do not do."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from corpora import png, run, tar
from PIL import Image
from worlds import diffusers_on_numpy_2

from negindex import Collection
from negindex.errors import ImageRefused, NotAllowed, OutOfRange
from negindex.geometry import COVER, Geometry, stated
from negindex.sampler import batches, foreseen, room
from negindex.sampler.batches import ALONE, Batches
from negindex.sampler.encode import PixelEncoder
from negindex.sampler.foreseen import rows_foreseen
from negindex.sampler.ingest import chosen, ingest
from negindex.sampler.sources import sources_of

ALLOWED, USAGE = 12, 2
GREY = PixelEncoder(8, 8, 1)


class Counting:
    """An encoder that keeps count of what it is given together, on a clock of its own."""

    shape, space, size = (1, 8, 8), "pixels", (8, 8)

    def __init__(self, monkeypatch, device="cuda", each=0.0, call=1.0, drift=0.0, fails_at=0, bad=()):
        self.device, self._each, self._call, self._drift, self._fails_at = device, each, call, drift, fails_at
        self.calls, self.now, self._bad = [], 0.0, bad
        monkeypatch.setattr(batches.time, "perf_counter", lambda: self.now)

    def encode(self, path):
        raise AssertionError("files are read elsewhere")

    def row(self, image, name):
        return self.rows(self.pixels(image, name)[None])[0]

    def pixels(self, image, name):
        if name in self._bad:
            raise ImageRefused(f"{name} will not do")
        return GREY.row(image, name)

    def rows(self, pixels):
        self.calls.append(len(pixels))
        if self._fails_at and len(pixels) >= self._fails_at:
            raise RuntimeError("CUDA out of memory")
        self.now += self._call + self._each * len(pixels)
        return pixels + np.float32(self._drift * (len(pixels) > 1))


def encoded(encoder, count, **options):
    """The rows of so many images, asked for at the end, and the size that was found."""
    together = Batches(encoder, **options)
    images = [Image.fromarray(np.full((8, 8), place % 256, np.uint8)) for place in range(count)]
    rows = [slot.row() for slot in [together.put(image, f"{place}.png") for place, image in enumerate(images)]]
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(row, GREY.row(image, ""))
    return together.size


def test_batches_grow_while_they_are_faster(monkeypatch):
    assert encoded(Counting(monkeypatch), 1000) == 64
    assert encoded(Counting(monkeypatch, device="cpu"), 100) == 4
    assert encoded(Counting(monkeypatch), 1000, most=16) == 16


def test_batches_stay_small_where_nothing_is_gained(monkeypatch):
    encoder = Counting(monkeypatch, each=1.0, call=0.0)
    assert encoded(encoder, 100) == 1
    assert encoder.calls.count(2) == 1, "tried once"


def test_an_image_has_its_own_row_in_any_company(monkeypatch):
    """Where more together make other rows, they are encoded alone, however fast."""
    assert encoded(Counting(monkeypatch, drift=1e-6), 100) == 1


def test_batches_stop_where_the_memory_does(monkeypatch):
    encoder = Counting(monkeypatch, fails_at=8)
    assert encoded(encoder, 100) == 4
    assert encoder.calls.count(8) == 1


def test_an_error_that_is_not_of_memory_is_raised(monkeypatch):
    encoder = Counting(monkeypatch)
    monkeypatch.setattr(encoder, "rows", lambda pixels: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        encoded(encoder, 1)


def test_a_short_run_tries_nothing(monkeypatch):
    encoder = Counting(monkeypatch)
    assert encoded(encoder, ALONE) == 1
    assert encoder.calls == [1] * ALONE


@pytest.mark.parametrize("count", [1, 7, 8, 19])
def test_a_size_that_is_named_is_taken_and_what_is_left_over_goes_alone(monkeypatch, count):
    encoder = Counting(monkeypatch)
    assert encoded(encoder, count, size=8) == 8
    assert encoder.calls == [8] * (count // 8) + [1] * (count % 8)


@pytest.mark.parametrize("together", [None, 1, 3, 8])
def test_a_build_makes_the_same_set_whatever_the_batch(tmp_path, monkeypatch, together):
    folder = tmp_path / "in"
    folder.mkdir()
    for place in range(20):
        (folder / f"{place:02}.png").write_bytes(png(place))
    (folder / "05.png").write_bytes(b"no image")
    encoder = Counting(monkeypatch, bad=("11.png",))
    sets = []
    for name, made_by in (("a", GREY), ("b", encoder)):
        collection = Collection.create(tmp_path / f"{name}.set", (1, 8, 8), "pixels")
        report = ingest(collection, chosen(sources_of([folder]), (1, 8, 8)), made_by, together=together)
        sets.append((report, collection))
    (_, alone), (report, held) = sets
    assert [key for key, _ in report.refused] == ["in/05.png", "in/11.png"]
    keys = held.source_keys()
    assert alone.source_keys() == sorted([*keys, "in/11.png"])
    np.testing.assert_array_equal(alone.rows_under(keys), held.rows_under(keys))


@diffusers_on_numpy_2
def test_a_vaes_rows_together_are_its_rows_alone_as_far_as_a_build_relies_on_it():
    from test_vae import kl

    from negindex.sampler.vae import VaeEncoder

    encoder = VaeEncoder(kl(), 16, 16)
    assert isinstance(encoder, batches.Together)
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)) for i in range(24)]
    together = Batches(encoder)
    slots = [together.put(image, "a.png") for image in noise]
    for image, slot in zip(noise, slots, strict=True):
        np.testing.assert_array_equal(slot.row(), encoder.row(image, "a.png"))


@diffusers_on_numpy_2
def test_a_precision_is_the_vaes_alone_and_the_space_stays():
    from test_vae import kl

    from negindex.sampler.vae import VaeEncoder

    vae = kl()
    whole, half = VaeEncoder(vae, 16, 16), VaeEncoder(vae, 16, 16, device="cpu", precision=torch.bfloat16)
    assert half.space == whole.space
    assert next(vae.parameters()).dtype == torch.float32, "the pipeline's own is left alone"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    one, other = whole.row(image, ""), half.row(image, "")
    assert other.dtype == np.float32
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()


# -- refused before it starts ------------------------------------------------------------------------


def array(path, count=64, shape=(4, 32, 32)):
    np.save(path, np.ones((count, *shape), np.float16))
    return path


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_full_is_named_before_anything_is_made(tmp_path, monkeypatch):
    rows = array(tmp_path / "rows.npy")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 1 << 20))
    done = run("build", tmp_path / "a.set", rows, "--space", "mine")
    assert done.exit_code == ALLOWED
    assert "needs up to about 33 MiB, and its disk has 1 MiB free" in done.stderr
    assert not (tmp_path / "a.set").exists()
    monkeypatch.undo()
    assert run("build", tmp_path / "a.set", rows, "--space", "mine").exit_code == 0


def test_room_is_asked_for_rows_and_not_for_what_is_there(tmp_path, monkeypatch):
    array(tmp_path / "rows.npy", 64)
    one, shape = 4 * 32 * 32 * 2 + room.RECORD_BYTES, (4, 32, 32)

    def needed(**given):
        return room.disk_needed(64, shape, "float16", **given) - room.AT_LEAST

    assert needed() == 64 * one
    assert needed(shards=4) == 16 * one
    assert needed(known=60) == 4 * one
    assert needed(known=1000) == 0
    run("build", tmp_path / "a.set", tmp_path / "rows.npy", "--space", "mine")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, room.AT_LEAST))
    again = run("build", tmp_path / "a.set", tmp_path / "rows.npy", "--space", "mine")
    assert again.exit_code == 0, "a build that goes on is not asked for what is there"
    other = array(tmp_path / "other.npy")
    assert run("build", tmp_path / "a.set", other, "--space", "mine").exit_code == ALLOWED


def test_what_a_build_stores_is_within_the_room_that_was_asked_for(tmp_path):
    for place in range(50):
        (tmp_path / f"{place:02}.png").write_bytes(png(place))
    collection = Collection.create(tmp_path / "a.set", (1, 8, 8), "pixels")
    sources = [source for place in range(50) for source in sources_of([tmp_path / f"{place:02}.png"])]
    need = room.disk_needed(rows_foreseen(sources, COVER, (8, 8)), (1, 8, 8), "float16")
    ingest(collection, chosen(sources, (1, 8, 8)), GREY)
    assert sum(file.stat().st_size for file in (tmp_path / "a.set").rglob("*")) < need


SIZES = [(8, 8), (20, 13), (7, 30), (3, 3), (8, 9), (300, 9)]


def corpus(folder):
    """Images of several sizes: in a folder, in shards, in a list, beside what is none and ready rows."""
    (folder / "in").mkdir(parents=True)
    for place, size in enumerate(SIZES):
        (folder / "in" / f"{place}.png").write_bytes(png(place, size))
    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "in" / "turned.jpg").write_bytes(png(7, (20, 13), form="JPEG", exif=turned))
    (folder / "in" / "text.png").write_bytes(b"text")
    members = [(f"{place}.png", png(10 + place, size)) for place, size in enumerate(SIZES)]
    tar(folder / "a.tar", [*members, ("0.txt", b"a word"), ("big.png", bytes(200_000))])
    tar(folder / "b.tgz", [(name, content) for name, content in members], "w:gz")
    for name in ("rows.npy", "more.npy"):
        np.save(
            folder / name, np.ones((5, 1, 8, 8), np.float16) * np.arange(1, 6).reshape(5, 1, 1, 1).astype(np.float16)
        )
    (folder / "list.txt").write_text("in/1.png\nin/gone.png\nmore.npy\nhttps://example.org/a.png\nnotes\n\n")
    return [folder / "in", folder / "a.tar", folder / "b.tgz", f"@{folder}/list.txt", folder / "rows.npy"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("fit", ["cover", "contain", "tile"])
def test_no_more_rows_go_in_than_were_foreseen_and_not_many_fewer(tmp_path, fit, flip):
    geometry = Geometry(fit, flip)
    collection = Collection.create(tmp_path / "a.set", (1, 8, 8), stated("pixels", geometry))
    for path in corpus(tmp_path / "c"):
        before, sources = len(collection), sources_of([path])
        foreseen = rows_foreseen(sources, geometry, (8, 8))
        ingest(collection, chosen(sources, (1, 8, 8)), GREY)
        came = len(collection) - before
        in_list = 5 if str(path).startswith("@") else 0  # refused ones, and an image that is there already
        assert came <= foreseen <= came + (1 + flip) * (2 + 6 * (fit == "tile") + in_list)


def test_of_a_large_packed_shard_the_beginning_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(foreseen, "SAMPLED", 100_000)
    shard = tar(tmp_path / "a.tgz", [(f"{place}.png", png(place, (60, 60))) for place in range(400)], "w:gz")
    assert 400 <= rows_foreseen(sources_of([shard]), COVER, (8, 8)) <= 600


def test_a_damaged_shard_is_foreseen_up_to_its_damage(tmp_path):
    shard = tar(tmp_path / "a.tar", [(f"{place}.png", png(place)) for place in range(10)])
    shard.write_bytes(shard.read_bytes()[: 5 * 1024 + 100])
    assert rows_foreseen(sources_of([shard]), COVER, (8, 8)) == 5


def test_room_for_tiles_and_shards_is_asked_for_before_a_build_starts(tmp_path, monkeypatch):
    shard = tar(tmp_path / "a.tar", [(f"{place}.png", png(place, (160, 160))) for place in range(4)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, room.AT_LEAST + 4 * 2048))
    assert run("build", tmp_path / "a.set", shard, "--size", 8).exit_code == 0
    done = run("build", tmp_path / "b.set", shard, "--size", 8, "--fit", "tile")
    assert done.exit_code == ALLOWED
    assert "needs up to about" in done.stderr
    assert not (tmp_path / "b.set").exists()


def test_a_build_over_its_memory_is_refused_with_an_estimate(tmp_path):
    rows = array(tmp_path / "rows.npy")
    done = run("build", tmp_path / "a.set", rows, "--space", "mine", "--max-memory", "100M")
    assert done.exit_code == USAGE
    assert "takes about 806 MiB of memory, and the limit is 100 MiB" in done.stderr
    assert not (tmp_path / "a.set").exists()
    assert run("build", tmp_path / "a.set", rows, "--space", "mine", "--max-memory", "2G").exit_code == 0


@pytest.mark.parametrize("size", ["", "G", "-1G", "4X", "1.5G", "0", "zero"])
def test_an_amount_of_memory_that_is_none_is_refused(size):
    with pytest.raises(OutOfRange, match="is no amount of memory"):
        room.parsed(size)


def test_a_device_that_is_not_there_is_refused_by_name():
    assert room.device_found("cpu") == "cpu"
    assert room.device_found("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OutOfRange, match="device 'abacus' cannot be used here"):
        room.device_found("abacus")


def test_a_folder_that_is_not_there_yet_has_its_parents_room(tmp_path):
    room.check_disk(tmp_path / "a" / "b" / "c.set", 1)
    with pytest.raises(NotAllowed, match="make room, or build it elsewhere"):
        room.check_disk(tmp_path / "a", 1 << 60)


@diffusers_on_numpy_2
def test_a_larger_image_or_a_wider_vae_is_estimated_to_take_more():
    from test_vae import kl

    from negindex.sampler.vae import VaeEncoder, held_at_once

    small, large = VaeEncoder(kl(), 16, 16), VaeEncoder(kl(), 64, 64)
    weights = 4 * sum(p.numel() for p in kl().parameters())
    assert weights < held_at_once(small) < held_at_once(large)
    assert held_at_once(large) - weights == 16 * (held_at_once(small) - weights), "as the pixels"
    assert room.memory_needed(large, 1_000_000) > room.memory_needed(GREY, 1_000_000)
