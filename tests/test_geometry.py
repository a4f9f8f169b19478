"""How images become the model's height and width: stated by the set, the same for later adds, or refused by name."""

import json

import numpy as np
import pytest
from corpora import ledger, png, run
from PIL import Image, ImageOps

from negindex import Collection
from negindex.errors import ImageRefused, InvalidInput
from negindex.geometry import COVER, Geometry, apart, stated
from negindex.sampler.encode import PixelEncoder, read_image
from negindex.sampler.ingest import ingest
from negindex.sampler.sources import Item
from negindex.sampler.views import rows_of, views

PARTLY = 3
GREY, COLOUR = PixelEncoder(8, 8, 1), PixelEncoder(8, 8, 3)


def saved(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def noise(width, height, mode="L", seed=0):
    shape = (height, width, *([3] if mode == "RGB" else []))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def built(path, *sources, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return run("build", path, *sources, "--size", 8, *words)


def stored(path):
    """{source key: row (*S) in float64}"""
    collection = Collection.open(path)
    keys = collection.source_keys()
    return dict(zip(keys, collection.rows_under(keys).astype(np.float64), strict=True)) if keys else {}


# -- each fit ------------------------------------------------------------------------------------


def test_contain_keeps_the_whole_image_and_pads_it_white():
    dark = Image.new("L", (16, 4), 0)
    ((suffix, row),) = rows_of(GREY, Geometry("contain"), dark, "a.png")
    assert suffix == ""
    assert (row[0, 3:5] == -1).all(), "16 x 4 becomes 8 x 2, in the middle"
    assert (np.delete(row[0], [3, 4], axis=0) == 1).all()


def test_cover_fills_the_whole_and_crops_what_is_too_long():
    halves = Image.new("L", (16, 8), 0)
    halves.paste(255, (12, 0, 16, 8))
    ((_, row),) = rows_of(GREY, COVER, halves, "a.png")
    assert (row == -1).all(), "the middle 8 x 8 has none of the white"


def test_tiles_hold_every_pixel_and_the_first_has_the_images_own_key():
    image = noise(20, 13)
    pixels, seen = np.asarray(image), np.zeros((13, 20), bool)
    made = list(views(image, Geometry("tile"), (8, 8), "a.png"))
    assert [suffix for suffix, _ in made] == ["", *(f"#view={r}.{c}" for r in (0, 1) for c in (0, 1, 2) if r or c)]
    tops, lefts = (0, 5), (0, 6, 12)
    for (_, view), (top, left) in zip(made, [(t, c) for t in tops for c in lefts], strict=True):
        np.testing.assert_array_equal(np.asarray(view), pixels[top : top + 8, left : left + 8])
        seen[top : top + 8, left : left + 8] = True
    assert seen.all()


def test_an_image_that_is_no_larger_than_the_models_is_not_cut():
    for size in ((8, 8), (3, 5), (1, 1)):
        assert [suffix for suffix, _ in views(noise(*size), Geometry("tile"), (8, 8), "a.png")] == [""]


@pytest.mark.parametrize("fit", ["cover", "contain", "tile"])
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (20_000, 10), (10, 20_000), (7, 9), (8, 8)])
def test_any_shape_becomes_rows_or_is_refused_by_name(fit, size):
    image = Image.new("L", size, 0)
    if fit == "tile" and max(size) == 20_000:
        with pytest.raises(ImageRefused, match=r"a\.png would be 5,000 tiles of 8 × 8, the limit is 1,024"):
            rows_of(GREY, Geometry(fit), image, "a.png")
        return
    made = rows_of(GREY, Geometry(fit), image, "a.png")
    assert all(row.shape == GREY.shape and np.isfinite(row).all() for _, row in made)
    assert (made[0][1] == -1).any(), "black is not lost, however thin"


def test_a_line_of_pixels_is_refused_before_it_is_scaled():
    with pytest.raises(ImageRefused, match="tiles"):
        rows_of(PixelEncoder(512, 512, 1), Geometry("tile"), Image.new("L", (90_000_000, 1)), "a.png")


# -- what the set states ---------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [Geometry(fit, flip) for fit in ("cover", "contain", "tile") for flip in (0, 1)])
def test_what_a_set_states_comes_back_and_the_space_stays_comparable(tmp_path, geometry):
    for space in ("pixels", "vae 0123 scaling_factor=0.18215 latents_mean=[0.0, 1.0]", "mine"):
        assert apart(stated(space, geometry)) == (space, geometry)
    collection = Collection.create(tmp_path / "a.set", GREY.shape, stated("pixels", geometry))
    assert (collection.space, collection.geometry) == ("pixels", geometry)
    assert collection.snapshot().space == "pixels"
    assert Collection.open(tmp_path / "a.set").geometry == geometry
    assert collection.verify() == []


def test_a_geometry_of_a_newer_negindex_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="newer negindex"):
        Collection.create(tmp_path / "a.set", GREY.shape, "pixels fit=squeeze")


def test_later_adds_use_what_the_set_was_made_with(tmp_path):
    one = saved(tmp_path / "one.png", noise(16, 4))
    two = saved(tmp_path / "two.png", noise(4, 16))
    assert built(tmp_path / "a.set", one, fit="contain").exit_code == 0
    assert run("add", tmp_path / "a.set", two).exit_code == 0
    assert built(tmp_path / "b.set", one, two, fit="contain").exit_code == 0
    first, second = stored(tmp_path / "a.set"), stored(tmp_path / "b.set")
    assert first.keys() == second.keys() == {"one.png", "two.png"}
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    other = built(tmp_path / "a.set", two, fit="cover")
    assert other.exit_code != 0
    assert "makes rows of images by fit=contain, and asked for is fit=cover; build another set" in other.stderr
    assert json.loads(run("status", tmp_path / "a.set", "--json").stdout)["images"] == "fit=contain"


def test_sets_of_another_geometry_are_not_merged(tmp_path):
    one = saved(tmp_path / "one.png", noise(16, 4))
    built(tmp_path / "a.set", one, fit="contain")
    built(tmp_path / "b.set", one)
    done = run("merge", tmp_path / "c.set", tmp_path / "a.set", tmp_path / "b.set")
    assert done.exit_code != 0
    assert "by fit=cover, and the set's are by fit=contain" in done.stderr
    assert run("merge", tmp_path / "d.set", tmp_path / "a.set").exit_code == 0
    assert Collection.open(tmp_path / "d.set").geometry == Geometry("contain")


# -- real files --------------------------------------------------------------------------------------


def files(folder):
    """{name: the file}, of one picture as every kind of file that people have."""
    picture = noise(16, 8, "RGB", 3).resize((160, 80), Image.Resampling.BICUBIC)
    grey = picture.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    clear = picture.convert("RGBA")
    clear.putalpha(Image.new("L", picture.size, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    return {
        "plain.png": saved(folder / "plain.png", picture),
        "grey.png": saved(folder / "grey.png", grey),
        "deep.png": saved(folder / "deep.png", Image.fromarray(deep)),
        "clear.png": saved(folder / "clear.png", clear),
        "turned.jpg": saved(
            folder / "turned.jpg", picture.transpose(Image.Transpose.ROTATE_90), exif=turned, quality=100, subsampling=0
        ),
        "cmyk.jpg": saved(folder / "cmyk.jpg", picture.convert("CMYK"), quality=100, subsampling=0),
        "one.png": saved(folder / "one.png", Image.new("RGB", (1, 1), "black")),
        "long.png": saved(folder / "long.png", Image.new("RGB", (20_000, 10), "black")),
    }


@pytest.mark.parametrize("fit", ["cover", "contain", "tile"])
def test_every_kind_of_file_becomes_the_rows_of_its_picture(tmp_path, fit):
    files(tmp_path / "in")
    done = built(tmp_path / "a.set", tmp_path / "in", fit=fit, channels=3, ledger=tmp_path / "run.jsonl")
    ends, _ = ledger(tmp_path / "run.jsonl")
    too_long = fit == "tile"
    assert done.exit_code == (PARTLY if too_long else 0), done.stderr
    assert ends.pop("in/long.png") == ("refused" if too_long else "in")
    assert set(ends.values()) == {"in"}
    rows = stored(tmp_path / "a.set")
    for ending in [""] if fit != "tile" else ["", "#view=0.1", "#view=9.19"]:
        plain = rows[f"in/plain.png{ending}"]
        for name, near in (("turned.jpg", 0.05), ("cmyk.jpg", 0.05)):
            assert np.abs(rows[f"in/{name}{ending}"] - plain).max() < near, name
        np.testing.assert_array_equal(rows[f"in/deep.png{ending}"], rows[f"in/grey.png{ending}"])
        assert (rows[f"in/clear.png{ending}"] == 1).all(), "nothing but white behind it"
    assert (rows["in/one.png"] == -1).all()
    assert read_image(tmp_path / "in" / "turned.jpg").size == (160, 80)


# -- views come and go together ------------------------------------------------------------------------


def flipped(tmp_path, *more, count=3, **options):
    for place in range(count):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{place}.png").write_bytes(png(place, (12, 8)))
    done = built(tmp_path / "a.set", tmp_path / "in", *more, augment="flip", **options)
    assert done.exit_code == 0, done.stderr
    return Collection.open(tmp_path / "a.set"), done


@pytest.mark.parametrize("fit", ["cover", "contain", "tile"])
def test_a_flipped_set_holds_each_view_and_its_mirror_image(tmp_path, fit):
    collection, done = flipped(tmp_path, fit=fit)
    rows = stored(collection.path)
    firsts = [key for key in rows if not key.endswith("flip")]
    assert len(rows) == 2 * len(firsts) == (12 if fit == "tile" else 6)
    for key in firsts:
        mirrored = rows[f"{key}.flip" if "#view=" in key else f"{key}#view=flip"]
        np.testing.assert_array_equal(mirrored, rows[key][:, :, ::-1])
    assert f"{len(rows)} rows in force (3 added" in done.stdout, "an input counts once"
    assert collection.alike_among() == [], "views of one image are no duplicates of each other"
    before = collection.newest()
    assert built(collection.path, tmp_path / "in").exit_code == 0
    assert collection.newest() == before, "the same command changes nothing"


@pytest.mark.parametrize("named", ["in/1.png", "in/1.png#view=flip"])
@pytest.mark.parametrize("act", ["withdraw", "erase"])
def test_all_views_of_an_image_go_together(tmp_path, named, act):
    collection, _ = flipped(tmp_path)
    more = ["--yes"] if act == "erase" else []
    shown = run(act, collection.path, named, "--reason", "r", "--dry-run", *more)
    assert "in/1.png#view=flip" in shown.stdout
    assert "2 rows would be" in shown.stderr
    assert run(act, collection.path, named, "--reason", "r", *more).exit_code == 0
    assert collection.source_keys() == [f"in/{n}.png{end}" for n in (0, 2) for end in ("", "#view=flip")]
    if act == "erase":
        assert not collection.ids_under(["in/1.png", "in/1.png#view=flip"])
    assert collection.verify() == []
    assert built(collection.path, tmp_path / "in").exit_code == 0, "and come back together"
    assert len(collection) == 6


def test_a_withdrawn_image_is_erased_with_its_views(tmp_path):
    collection, _ = flipped(tmp_path)
    collection.withdraw(["in/1.png"], "r")
    collection.erase(["in/1.png"], "r")
    assert not collection.ids_under(["in/1.png", "in/1.png#view=flip"])


def test_a_claim_on_an_image_names_all_its_views(tmp_path):
    collection, _ = flipped(tmp_path)
    claim = collection.claims.open("in-house", source_keys=["in/1.png"])
    assert len(claim.rows) == 2
    by_hash = collection.held(["in/2.png"])["in/2.png"].image_sha256
    assert len(collection.claims.open("in-house", hashes=[f"sha256:{by_hash}"]).rows) == 2


def test_the_keys_of_a_set_without_views_are_nobodys_family(tmp_path):
    collection = Collection.create(tmp_path / "a.set", (2,), "mine")
    collection.add(np.ones((2, 2)), ["a", "a#view=flip"])
    collection.withdraw(["a"], "r")
    assert collection.source_keys() == ["a#view=flip"]


@pytest.mark.parametrize("together", [False, True])
def test_an_image_whose_key_is_taken_is_left_out_whole(tmp_path, together):
    """Two images under one key, the second of more tiles: none of its views goes in."""
    first, second = (saved(tmp_path / place / "k.png", noise(width, 8)) for place, width in (("x", 8), ("y", 30)))
    if together:
        collection = Collection.create(tmp_path / "a.set", GREY.shape, "pixels fit=tile")
        ends = []
        given = [Item("k.png", str(file), read=file.read_bytes) for file in (first, second)]
        ingest(collection, given, GREY, tell=lambda entry: ends.append(entry.outcome))
        assert ends == ["in", "refused"]
    else:
        built(tmp_path / "a.set", first, fit="tile")
        assert built(tmp_path / "a.set", second).exit_code == PARTLY
    assert Collection.open(tmp_path / "a.set").source_keys() == ["k.png"]


# -- looked for ------------------------------------------------------------------------------------


def looked_up(path, *words):
    done = run("similar", path, *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_similar_names_an_image_once_by_its_nearest_view(tmp_path):
    """Of a mirrored query the mirrored view; as many images as were asked for, however many views each has."""
    images = {name: noise(40, 40, "RGB", seed) for seed, name in enumerate("abcd")}
    for name, image in images.items():
        saved(tmp_path / "in" / f"{name}.png", image)
    assert built(tmp_path / "s.set", tmp_path / "in", augment="flip").exit_code == 0
    query = saved(tmp_path / "q.png", ImageOps.mirror(images["b"]))
    said = looked_up(tmp_path / "s.set", query, "--nearest", 4)
    for way in ("pdq", "space"):
        found = [one["source_key"].partition("#")[0] for one in said["nearest"][way]]
        assert sorted(found) == [f"in/{name}.png" for name in "abcd"]
        assert found[0] == "in/b.png"
    assert said["nearest"]["space"][0]["source_key"] == "in/b.png#view=flip"
    assert [one["source_key"].partition("#")[0] for one in said["in_set"]] == ["in/b.png"]
    shown = run("similar", tmp_path / "s.set", tmp_path / "in" / "b.png", "--nearest", 0).stdout
    assert shown.splitlines() == [f"b.png: row {shown.split()[2]} in/b.png (the same)"]


def test_a_tile_stands_for_its_image_in_every_list(tmp_path):
    large = noise(33, 33)
    saved(tmp_path / "in" / "large.png", large)
    saved(tmp_path / "in" / "other.png", noise(33, 33, seed=1))
    saved(tmp_path / "in" / "twin.png", large, optimize=True, compress_level=1)
    assert built(tmp_path / "s.set", tmp_path / "in", fit="tile").exit_code == 0
    query = saved(tmp_path / "q.png", large.crop((25, 25, 33, 33)))
    near = looked_up(tmp_path / "s.set", query, "--nearest", 3)["nearest"]["space"]
    assert near[0]["source_key"] in ("in/large.png#view=4.4", "in/twin.png#view=4.4")
    assert len({one["source_key"].partition("#")[0] for one in near}) == len(near) == 3
    groups = looked_up(tmp_path / "s.set")["groups"]
    assert [[one["source_key"] for one in group] for group in groups] == [["in/large.png", "in/twin.png"]]


def test_in_a_set_without_views_every_row_is_its_own_image(tmp_path):
    collection = Collection.create(tmp_path / "s.set", GREY.shape, "pixels")
    row = GREY.row(noise(8, 8), "")
    collection.add(np.stack([row, row]), ["a", "a#view=flip"])
    query = saved(tmp_path / "q.png", noise(8, 8))
    said = looked_up(collection.path, query, "--nearest", 5)
    assert len(said["nearest"]["space"]) == len(said["in_set"]) == 2
