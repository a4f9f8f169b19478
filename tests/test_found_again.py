"""Rates of finding the same thing again: counted right, over images that have exactly one namesake."""

import json

import pytest
from corpora import png, run
from PIL import Image

from negindex import Collection
from negindex.errors import NotThere
from negindex.nearest import Neighbour
from negindex.sampler.encode import PixelEncoder
from negindex.sampler.found_again import FoundAgain, found_again

NOT_THERE = 10


@pytest.fixture
def two(tmp_path):
    """A set of six images, and a folder of their names: two alike, two swapped, one blank, one broken, one new."""
    for vendor in ("a", "b"):
        (tmp_path / vendor).mkdir()
    for seed in range(6):
        (tmp_path / "a" / f"{seed}.png").write_bytes(png(seed, (40, 40), "RGB"))
    for name, seed in (("0", 0), ("1", 1), ("2", 3), ("3", 2), ("new", 4)):
        (tmp_path / "b" / f"{name}.png").write_bytes(png(seed, (40, 40), "RGB"))
    Image.new("RGB", (40, 40), "white").save(tmp_path / "b" / "4.png")
    (tmp_path / "b" / "5.png").write_bytes(b"text")
    assert run("build", tmp_path / "a.set", tmp_path / "a", "--size", 20).exit_code == 0
    return tmp_path / "a.set", tmp_path / "b"


def test_the_shares_are_of_all_images_that_have_a_namesake(two):
    path, folder = two
    said = json.loads(run("bench", "similar", path, folder, "--json").stdout)
    assert said["asked"] == 5, "the file that is no image and the one without a namesake are passed over"
    assert said["rates"]["pdq"]["at_1"] == pytest.approx(2 / 5)
    assert said["rates"]["pdq"]["at_5"] >= 2 / 5
    assert said["rates"]["space"]["at_1"] == pytest.approx(2 / 5)
    words = run("bench", "similar", path, folder).stdout
    assert "5 images looked up among 6 rows" in words
    assert "space      nearest  40.0%" in words


def test_a_rank_is_counted_up_to_k_and_a_way_that_cannot_ask_finds_nothing():
    told = FoundAgain(asked=4)
    for keys in ("ba", "ab", "ac"):
        told.note("pdq", [Neighbour(0, key, 1.0) for key in keys], "b")
    told.note("pdq", [], "b")
    assert (told.rate("pdq", 1), told.rate("pdq", 2), told.rate("pdq", 9)) == (0.25, 0.5, 0.5)


def test_a_name_that_several_rows_have_is_not_counted(two, tmp_path):
    path, folder = two
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.png").write_bytes(png(77, (40, 40), "RGB"))
    run("build", path, tmp_path / "c")
    told = found_again(Collection.open(path), sorted(folder.iterdir()), 5, encoder=PixelEncoder(20, 20, 3))
    assert told.asked == 4


def test_where_no_file_has_a_namesake_that_is_said(two, tmp_path):
    path, folder = two
    with pytest.raises(NotThere, match="the same images from elsewhere"):
        found_again(Collection.open(path), [folder / "new.png"], 5)
    assert run("bench", "similar", path, folder / "new.png").exit_code == NOT_THERE


def test_an_image_of_many_views_is_one_image(tmp_path, two):
    _, folder = two
    words = ["--size", 20, "--augment", "flip"]
    assert run("build", tmp_path / "many.set", tmp_path / "a", *words).exit_code == 0
    made = Collection.open(tmp_path / "many.set")
    assert len(made) == 12
    told = found_again(made, sorted(folder.iterdir()), 6, encoder=PixelEncoder(20, 20, 3))
    assert told.asked == 5
    assert told.rate("space", 1) == pytest.approx(2 / 5)
    assert told.rate("space", 6) == 1, "six images are the six nearest, whichever of their twelve rows is nearer"
