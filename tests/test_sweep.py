"""Files on their way in: what they are like in the set and among each other, and what is kept of those that go in."""

import json
from hashlib import sha256

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageEnhance
from small_sets import state

from negindex import Collection
from negindex.alike import MIN_QUALITY
from negindex.disk import sha256_of
from negindex.sampler import sweep as sweeping
from negindex.sampler.corpus import prepare, sources_in
from negindex.sampler.encode import PixelEncoder
from negindex.sampler.ingest import ingest
from negindex.sampler.pdq import Pdq, forms_of, pdq_of, pdq_of_file
from negindex.sampler.sources import Item
from negindex.sampler.sweep import BARRED, given_files, sweep
from negindex.tools.cli import main

Turn = Image.Transpose
ENCODER = PixelEncoder(16, 16, 3)
PARTLY, NOT_THERE = 3, 10


@pytest.fixture
def folder(tmp_path, photos):
    """Both as PNG."""
    made = tmp_path / "photos"
    made.mkdir()
    for name, photo in zip(("china", "flower"), photos, strict=True):
        photo.save(made / f"{name}.png")
    return made


@pytest.fixture
def held(tmp_path, folder):
    """A set of both."""
    collection = Collection.create(tmp_path / "a.set", ENCODER.shape, "pixels")
    ingest(collection, given_files(sources_in([folder])), ENCODER)
    return collection


def given(tmp_path, **images):
    """Inputs of images, by name; a name's own format may be told after two underscores."""
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    return [(name, tmp_path / f"{name}.png") for name in images]


def found(swept):
    return {(key, one.source_key, one.by) for key, one in swept.in_set}


BLANK = {
    "white": Image.new("RGB", (320, 214), "white"),
    "black": Image.new("RGB", (64, 64)),
    "pixel": Image.new("RGB", (1, 1), "red"),
    "sliver": Image.new("RGB", (4, 600), "blue"),
}


# -- copies --------------------------------------------------------------------------------------


def jpeg(image, tmp_path, quality):
    image.save(tmp_path / "again.jpg", quality=quality)
    with Image.open(tmp_path / "again.jpg") as again:
        return again.copy()


EDITS = {
    "jpeg": lambda image, tmp_path: jpeg(image, tmp_path, 50),
    "half": lambda image, _: image.resize((160, 107)),
    "brighter": lambda image, _: ImageEnhance.Brightness(image).enhance(1.3),
    "mirrored": lambda image, _: image.transpose(Turn.FLIP_LEFT_RIGHT),
    "turned by 90": lambda image, _: image.transpose(Turn.ROTATE_90),
    "turned over, half, jpeg": lambda image, tmp_path: jpeg(
        image.transpose(Turn.FLIP_TOP_BOTTOM).resize((160, 107)), tmp_path, 50
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_is_found_and_nothing_else_is(held, photos, tmp_path, edit):
    edited = [EDITS[edit](photo, tmp_path) for photo in photos]
    before = state(held)
    swept = sweep(held, given(tmp_path, first=edited[0], second=edited[1]))
    assert found(swept) == {("first", "photos/china.png", "pdq"), ("second", "photos/flower.png", "pdq")}
    assert (swept.looked_at, swept.among, swept.refused) == (2, [], [])
    assert state(held) == before


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (90, 130), (200, 150), (1300, 700)])
def test_the_forms_of_an_image_are_the_hashes_of_the_image_turned_and_mirrored(photos, size):
    image = photos[0].resize(size)
    assert forms_of(image)[0] == pdq_of(image)
    assert set(forms_of(image)) == {pdq_of(image), *(pdq_of(image.transpose(turn)) for turn in Turn)}
    assert len({form.bits for form in forms_of(image)}) == 8


def test_an_image_of_a_few_pixels_says_too_little_to_be_told_from_others(photos):
    assert forms_of(BLANK["pixel"]) == [Pdq(bytes(32), 0)]
    assert pdq_of(photos[0].resize((8, 8))).quality < MIN_QUALITY <= pdq_of(photos[0].resize((24, 24))).quality


def test_the_same_file_is_found_by_its_bytes_and_the_same_row_by_its_own(held, folder, photos, tmp_path):
    again = given(tmp_path, twin=photos[0])
    assert found(sweep(held, sources_in([folder / "china.png"]))) == {("china.png", "photos/china.png", "bytes")}
    photos[0].save(again[0][1], compress_level=1)
    assert found(sweep(held, again)) == {("twin", "photos/china.png", "pdq")}
    assert found(sweep(held, again, encoder=ENCODER)) == {("twin", "photos/china.png", "bytes")}


def test_withdrawn_rows_are_looked_among_when_asked(held, folder):
    held.withdraw(["photos/china.png"], "a mistake")
    inputs = sources_in([folder])
    assert {key for key, _ in sweep(held, inputs).in_set} == {"photos/flower.png"}
    assert {(key, one.in_force) for key, one in sweep(held, inputs, ever=True).in_set} == {
        ("photos/china.png", False),
        ("photos/flower.png", True),
    }


def test_copies_among_what_is_given_are_grouped_in_the_order_given(tmp_path, photos):
    empty = Collection.create(tmp_path / "a.set", ENCODER.shape, "pixels")
    china, flower = photos
    inputs = given(tmp_path, f1=flower, c1=china, f2=flower.transpose(Turn.ROTATE_270), c2=china.resize((160, 107)))
    swept = sweep(empty, inputs)
    assert swept.among == [["f1", "f2"], ["c1", "c2"]]
    assert swept.in_set == []
    assert sweep(empty, inputs) == swept


def test_embeddings_find_what_no_hash_does(tmp_path, photos):
    """A stand-in for a model: the mean colour of the image's quarters."""

    def embed(image):
        return np.asarray(image.resize((2, 2)), np.float32).ravel()

    collection = Collection.create(tmp_path / "a.set", ENCODER.shape, "pixels")
    rows = np.stack([ENCODER.row(photo, "photo") for photo in photos])
    collection.add(rows, ["china", "flower"], embeddings=np.stack([embed(photo) for photo in photos]))
    inputs = given(tmp_path, cut=photos[0].crop((30, 20, 300, 200)))
    assert sweep(collection, inputs).in_set == []
    assert found(sweep(collection, inputs, embed=embed, cosine=0.99)) == {("cut", "china", "embedding")}


# -- images with nothing in them, and files that are none -------------------------------------------


def test_blank_images_are_near_no_photograph_and_near_each_other_by_bytes_alone(held, photos, tmp_path):
    """Case 13."""
    inputs = given(tmp_path, **BLANK, again=BLANK["white"], china=photos[0].transpose(Turn.FLIP_LEFT_RIGHT))
    swept = sweep(held, inputs)
    assert found(swept) == {("china", "photos/china.png", "pdq")}
    assert swept.among == [["white", "again"]]
    report = ingest(held, given_files(inputs), ENCODER)
    assert (report.added, report.refused) == (6, []), "an image without a hash goes in"
    more = given(tmp_path, paper=Image.new("RGB", (333, 20), "white"), flower=photos[1].resize((160, 107)))
    assert found(sweep(held, more)) == {("flower", "photos/flower.png", "pdq")}
    groups = [sorted(group.values()) for group in held.alike_among()]
    assert groups == [["again", "white"]]


def test_what_cannot_be_read_or_become_a_row_is_named_in_order_and_stops_nothing(held, photos, tmp_path):
    inputs = given(tmp_path, good=photos[0], cut=photos[1])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    swept = sweep(held, [("gone", tmp_path / "gone.png"), *inputs])
    assert [key for key, _ in swept.refused] == ["gone", "cut"]
    assert "cannot be read" in swept.refused[0][1]
    assert found(swept) == {("good", "photos/china.png", "bytes")}
    grey = sweep(held, inputs[:1], encoder=PixelEncoder(16, 16, 1))
    assert "has colour" in grey.refused[0][1]
    assert found(grey) == found(swept), "looked for all the same"


# -- what may not come in --------------------------------------------------------------------------


def named(held, *hashes):
    held.claims.open("hash-only", {"source": "a list"}, hashes=hashes)


def test_a_file_that_a_list_names_is_refused_before_it_is_decoded(held, photos, tmp_path, monkeypatch):
    inputs = given(tmp_path, listed=photos[0].resize((100, 90)), other=photos[1].resize((64, 64)))
    named(held, f"sha256:{sha256_of(inputs[0][1])}")
    opened = []
    real = sweeping.read_image
    monkeypatch.setattr(
        sweeping, "read_image", lambda file, name, **more: opened.append(name) or real(file, name, **more)
    )
    swept = sweep(held, inputs)
    report = ingest(held, given_files(inputs), ENCODER)
    assert opened == ["other.png"] * 2
    assert swept.refused == report.refused == [("listed", BARRED)]
    assert report.added == 1
    assert "listed" not in held.source_keys()


@pytest.mark.parametrize("turn", [None, *Turn])
def test_an_image_whose_hash_a_list_names_is_refused_mirrored_and_turned_too(held, photos, tmp_path, turn):
    named(held, f"pdq:{pdq_of(photos[0]).bits.hex()}")
    image = photos[0] if turn is None else photos[0].transpose(turn)
    inputs = given(tmp_path, listed=image.resize((image.width // 2, image.height // 2)), white=BLANK["white"])
    assert sweep(held, inputs).refused == [("listed", BARRED)]
    report = ingest(held, given_files(inputs), ENCODER)
    assert (report.added, report.refused) == (1, [("listed", BARRED)])


def test_a_claim_that_comes_in_while_files_are_read_is_obeyed(held, photos, tmp_path):
    """The store has the last word: what it refuses is named, and the others go in."""
    inputs = given(tmp_path, listed=photos[0].resize((100, 90)), other=photos[1].resize((64, 64)))

    class Slow(PixelEncoder):
        def row(self, image, name):
            row = super().row(image, name)
            if name == "listed.png":
                stored = np.ascontiguousarray(row, held.dtype)
                named(held, f"sha256:{sha256(stored.tobytes()).hexdigest()}")
            return row

    report = ingest(held, given_files(inputs), Slow(16, 16, 3))
    assert (report.added, report.refused) == (1, [("listed", BARRED)])


# -- what is kept, and how it is counted -------------------------------------------------------------


def test_what_a_row_was_made_of_is_kept_beside_it(held, folder):
    prepared = prepare(held, sources_in([folder]), ENCODER)
    assert prepared.keys == ["photos/china.png", "photos/flower.png"]
    for (_, file), source in zip(sources_in([folder]), prepared.sources, strict=True):
        assert source.image_sha256 == sha256_of(file)
        assert (source.pdq, source.quality) == pdq_of_file(file)
        assert source.thumbnail is None
    assert {record.stored for record in held.log(1)} == {((1, 2),)}
    content = [source.image_sha256 for source in prepared.sources]
    assert all(content)
    assert found(sweep(held, sources_in([folder]))) == {(key, key, "bytes") for key in prepared.keys}


def test_rows_that_another_process_puts_in_meanwhile_are_not_counted(held, photos, tmp_path):
    class Beside(Collection):
        def add_incoming(self, given, **options):
            size = len(held)
            held.add(np.random.default_rng(size).normal(size=(5, *self.shape)), [f"{size}/{i}" for i in range(5)])
            return super().add_incoming(given, **options)

    inputs = [*given(tmp_path, new=photos[0].resize((50, 40))), *sources_in([tmp_path / "photos"])]
    ready = [Item(key, key, row=ENCODER.encode(file)) for key, file in inputs]  # not known before they are added
    for items, added, unchanged in [(given_files(inputs), 1, 2), (ready, 0, 3)]:
        report = ingest(Beside.open(held.path), items, ENCODER)
        assert (report.added, report.unchanged, report.refused) == (added, unchanged, [])
    assert len(held) == 2 + 1 + 2 * 5


def test_a_key_given_twice_counts_once_and_with_other_bytes_is_refused(held, photos, tmp_path):
    (new, other) = given(tmp_path, new=photos[0].resize((50, 40)), other=photos[1].resize((50, 40)))
    before = len(held)
    report = ingest(held, given_files([new, new, (new[0], other[1]), new]), ENCODER)
    assert dict(report.counts) == {"in": 1, "duplicate": 2, "refused": 1}
    assert "its key came before, with other bytes" in report.refused[0][1]
    assert len(held) == before + 1


# -- the command -----------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(main, ["similar", *(str(word) for word in words)])


def test_the_command_says_what_is_there_and_among_what_is_given(held, folder, photos, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    photos[0].resize((160, 107)).save(more / "half.png")
    photos[0].transpose(Turn.FLIP_LEFT_RIGHT).save(more / "mirror.png")
    before = state(held)
    done = run(held.path, more, folder / "flower.png")
    assert done.exit_code == 0, done.output
    assert "flower.png: row 2 photos/flower.png (the same)" in done.stdout
    assert "more/mirror.png: row 1 photos/china.png (0 bits apart)" in done.stdout
    assert "near each other: more/half.png, more/mirror.png" in done.stdout
    assert "3 images looked at, 3 of them in" in done.stderr
    said = json.loads(run(held.path, more, "--json").stdout)
    assert [(one["file"], one["source_key"], one["by"]) for one in said["in_set"]] == [
        ("more/half.png", "photos/china.png", "pdq"),
        ("more/mirror.png", "photos/china.png", "pdq"),
    ]
    assert (said["looked_at"], said["among"]) == (2, [["more/half.png", "more/mirror.png"]])
    assert state(held) == before


def test_finding_nothing_is_no_failure(held, tmp_path, photos):
    given(tmp_path, other=photos[0].crop((0, 0, 100, 100)))
    for words in (
        [held.path, tmp_path / "other.png", "--nearest", 0],
        [held.path],
        [held.path, "--ever", "--distance", 0],
    ):
        done = run(*words)
        assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert json.loads(run(held.path, "--json").stdout) == {"rows_in_force": 2, "groups": []}


def test_what_cannot_be_read_makes_the_look_up_partly_done(held, folder):
    (folder / "text.png").write_text("no image")
    done = run(held.path, folder)
    assert done.exit_code == PARTLY
    assert "refused: photos/text.png: text.png is no image" in done.stderr
    assert "2 images looked at" in done.stderr
    assert run(held.path, folder / "nowhere").exit_code == NOT_THERE


def test_the_set_is_grouped_without_sources(held, photos, tmp_path):
    ingest(held, given_files(given(tmp_path, half=photos[1].resize((160, 107)))), ENCODER)
    done = run(held.path)
    assert done.stdout.splitlines() == ["near each other: photos/flower.png, half"]
    assert "3 rows in force looked at, 1 groups" in done.stderr
    (group,) = json.loads(run(held.path, "--json").stdout)["groups"]
    assert group == [{"row": 2, "source_key": "photos/flower.png"}, {"row": 3, "source_key": "half"}]
