"""What a build keeps beside rows, what it keeps out as near, and the sheet that shows both."""

import json
from io import BytesIO

import numpy as np
import pytest
from corpora import ledger, png, run
from PIL import Image

from negindex import Collection
from negindex.sampler import contact
from negindex.sampler.beside import SIDE, reduced
from negindex.sampler.encode import PixelEncoder
from negindex.sampler.ingest import ingest
from negindex.sampler.sieve import Sieve
from negindex.sampler.sources import Item
from negindex.sampler.tiles import HEIGHT, WIDTH, Strip, Tile, drawn, sheet

PARTLY, NOT_THERE = 3, 10


@pytest.fixture
def folder(tmp_path, photos):
    """Two photographs, a smaller copy of one, the other mirrored and turned, and two blank images."""
    made = tmp_path / "in"
    made.mkdir()
    china, flower = photos
    china.save(made / "a-china.png")
    flower.save(made / "a-flower.png")
    china.resize((160, 107)).save(made / "b-small.jpg", quality=80)
    flower.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(made / "b-mirror.png")
    flower.transpose(Image.Transpose.ROTATE_90).save(made / "b-turned.png")
    for name, colour in (("white", "white"), ("black", "black"), ("white2", "white")):
        Image.new("RGB", (64 + len(name), 64), colour).save(made / f"c-{name}.png")
    return made


def built(tmp_path, folder, *words):
    return run("build", tmp_path / "a.set", folder, "--size", 16, *words)


# -- near-duplicates kept out ----------------------------------------------------------------------


def test_what_is_near_an_earlier_input_is_named_with_its_neighbour_and_kept_out(tmp_path, folder):
    done = built(tmp_path, folder, "--refuse-near", 31, "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == PARTLY
    outcomes, entries = ledger(tmp_path / "run.jsonl")
    refused = {key for key, outcome in outcomes.items() if outcome == "refused"}
    assert refused == {"in/b-small.jpg", "in/b-mirror.png", "in/b-turned.png"}
    assert "bits of PDQ from 'in/a-china.png'" in entries["in/b-small.jpg"]["reason"]
    for name in ("mirror", "turned"):
        assert "bits of PDQ from 'in/a-flower.png'" in entries[f"in/b-{name}.png"]["reason"]
    assert len(Collection.open(tmp_path / "a.set")) == 5


def test_what_is_near_a_row_of_the_set_is_kept_out_too_and_the_row_itself_never(tmp_path, folder, photos):
    assert built(tmp_path, folder / "a-china.png").exit_code == 0
    done = built(tmp_path, folder / "b-small.jpg", "--refuse-near", 31)
    assert "'a-china.png'" in done.stderr
    assert done.exit_code == PARTLY
    assert built(tmp_path, folder / "a-china.png", "--refuse-near", 31).exit_code == 0, "there already"
    photos[1].save(folder / "a-china.png")
    assert "with other pixels" in built(tmp_path, folder / "a-china.png", "--refuse-near", 31).stderr


def test_without_the_option_near_duplicates_go_in(tmp_path, folder):
    assert built(tmp_path, folder).exit_code == 0
    assert len(Collection.open(tmp_path / "a.set")) == 8


def test_blank_images_are_kept_out_as_copies_of_themselves_alone(tmp_path):
    collection = Collection.create(tmp_path / "a.set", (3, 8, 8), "pixels")
    blank = BytesIO()
    Image.new("RGB", (40, 40), "white").save(blank, "PNG")
    contents = {"w1": blank.getvalue(), "w2": blank.getvalue(), "p": png(1, (40, 40), "RGB")}
    items = [Item(key, key, read=lambda content=content: content) for key, content in contents.items()]
    report = ingest(collection, items, PixelEncoder(8, 8, 3), through=Sieve(collection))
    assert report.refused == [("w2", "the same image as 'w1'; leave it out")]


def test_every_input_comes_out_of_a_sieve_in_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr("negindex.sampler.sieve._AT_ONCE", 3)
    collection = Collection.create(tmp_path / "a.set", (3, 8, 8), "pixels")
    items = [Item(f"{i}", f"{i}", read=lambda i=i: png(i % 5, (40, 40), "RGB")) for i in range(12)]
    items.insert(4, Item("ready", "ready", row=np.ones((3, 8, 8), np.float32)))
    items.insert(7, Item("bad", "bad", read=lambda: b"text"))
    told = []
    ingest(collection, items, PixelEncoder(8, 8, 3), through=Sieve(collection), tell=told.append)
    assert sorted(entry.key for entry in told) == sorted(item.key for item in items)
    assert {entry.key for entry in told if entry.outcome == "in"} == {"0", "1", "2", "3", "4", "ready"}


# -- thumbnails ------------------------------------------------------------------------------------


def test_thumbnails_are_kept_when_asked_for_and_only_then(tmp_path, folder, photos):
    assert built(tmp_path, folder / "a-china.png").exit_code == 0
    assert built(tmp_path, folder / "a-flower.png", "--thumbnails").exit_code == 0
    collection = Collection.open(tmp_path / "a.set")
    plain, kept = (collection.stored([row]).sources[0].thumbnail for row in (1, 2))
    assert plain is None
    with Image.open(BytesIO(kept)) as image:
        assert image.size == (SIDE, round(214 * SIDE / 320))
        assert np.array_equal(np.asarray(image), np.asarray(reduced(photos[1])))
    assert collection.verify() == []
    assert drawn(collection, 1).size == (16, 16), "a row of pixels is drawn itself"
    assert drawn(collection, 2).size == image.size
    collection.erase(["a-flower.png"], "gone")
    assert drawn(collection, 2) is None


def test_of_latents_without_a_thumbnail_there_is_no_picture(tmp_path):
    collection = Collection.create(tmp_path / "a.set", (4, 8, 8), "vae 0123")
    collection.add(np.ones((1, 4, 8, 8), np.float32), ["a"])
    assert drawn(collection, 1) is None


# -- the sheet -------------------------------------------------------------------------------------


def near(image, place, colour):
    """Whether the tile at a place of a sheet has mostly a colour."""
    left, top = 8 + place % 8 * WIDTH, 28 + place // 8 * HEIGHT
    cell = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.int64)
    return bool((np.abs(cell - np.array(colour)).sum(-1) < 30).mean() > 0.9)


def test_a_sheet_shows_what_went_in_and_what_did_not_beside_its_neighbour(tmp_path, folder):
    done = built(tmp_path, folder, "--refuse-near", 31, "--sheet", tmp_path / "sheet.png")
    assert done.exit_code == PARTLY
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (8 * WIDTH + 16, 2 * (HEIGHT + 28) + 8)  # five tiles, then three pairs
        image.load()
    assert near(image, 2, (0, 0, 0))
    assert near(image, 3, (255, 255, 255))
    mirror, flower = (image.crop((8 + at * WIDTH, 28 + HEIGHT + 28, 8 + at * WIDTH + 64, 28 + HEIGHT + 28 + 43))
                      for at in (0, 1))  # fmt: skip
    apart = np.abs(np.asarray(mirror, np.int64)[:, ::-1] - np.asarray(flower, np.int64))
    assert apart.mean() < 3, "each stands before its neighbour"


def test_a_neighbour_from_an_earlier_run_is_drawn_from_the_set(tmp_path, folder):
    built(tmp_path, folder / "a-china.png", "--thumbnails")
    built(tmp_path, folder / "b-small.jpg", "--refuse-near", 31, "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        one, other = (np.asarray(image.crop((at, 56, at + 64, 99)), np.int64) for at in (8, 8 + WIDTH))
    assert np.abs(one - other).mean() < 12


def test_a_sheet_holds_a_stated_number_of_tiles_and_counts_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(contact, "MOST_IN", 3)
    monkeypatch.setattr(contact, "MOST_PAIRS", 2)
    folder = tmp_path / "in"
    folder.mkdir()
    for place in range(12):
        (folder / f"{place:02}.png").write_bytes(png(place % 6, (40, 40), "RGB"))
    sheets = []
    monkeypatch.setattr(contact, "sheet", lambda strips: sheets.append(strips) or sheet(strips))
    assert built(tmp_path, folder, "--refuse-near", 31, "--sheet", tmp_path / "s.png").exit_code == PARTLY
    went, kept = sheets[0]
    assert (len(went.tiles), len(kept.tiles)) == (3, 4)
    assert (went.heading, kept.heading.partition(",")[0]) == (
        "6 went in, 3 of them shown",
        "6 kept out as near-duplicates",
    )


def test_a_tile_of_what_was_refused_after_all_is_not_shown_as_in(tmp_path, folder, photos, monkeypatch):
    built(tmp_path, folder / "a-china.png")
    photos[1].save(folder / "a-china.png")
    sheets = []
    monkeypatch.setattr(contact, "sheet", lambda strips: sheets.append(strips) or sheet(strips))
    words = [folder / "a-china.png", "--sheet", tmp_path / "s.png"]
    assert built(tmp_path, *words).exit_code == PARTLY
    assert built(tmp_path, folder / "c-white.png", *words[1:]).exit_code == 0
    assert [[tile.words for tile in one[0].tiles] for one in sheets] == [[], ["c-white.png"]]


def test_a_sheet_in_no_folder_is_refused_before_anything_is_built(tmp_path, folder):
    done = built(tmp_path, folder, "--sheet", tmp_path / "none" / "s.png")
    assert done.exit_code == NOT_THERE
    assert not (tmp_path / "a.set").exists()


def test_a_sheet_of_nothing_and_of_odd_names_can_be_drawn():
    strips = [
        Strip("nothing", []),
        Strip("näme \n", [Tile(None, "日本\u202e" * 40), Tile(Image.new("RGB", (1, 900)), "x")]),
    ]
    assert sheet(strips).width == 8 * WIDTH + 16


def test_the_summary_counts_them_as_refused(tmp_path, folder):
    said = json.loads(built(tmp_path, folder, "--refuse-near", 31, "--json").stdout)
    assert (said["in"], said["refused"], said["inputs"]) == (5, 3, 8)
