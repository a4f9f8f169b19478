"""Receipts inside PNGs: what comes back is what went in, or an error with a name."""

import json
import struct
import zlib
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_receipts import RECEIPT, STEP

from negindex.checkpoint import Checkpoint
from negindex.errors import Damaged, ImageRefused, InvalidInput, NotThere
from negindex.receipts import HeavyRow, Receipt, SetStated, Step
from negindex.sampler import png
from negindex.sampler.png import KEYWORD, MODES, read_receipt, save_image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(mode="RGB"):
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(0).integers(0, 1 << 16, (6, 5), np.uint16))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8), "RGBA").convert(mode)


def chunk(kind, content, crc=None):
    packed = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", packed)


def chunks(data):
    """(kind, content) of every chunk."""
    place = len(SIGNATURE)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += length + 12


@pytest.fixture
def saved(tmp_path):
    save_image(picture(), RECEIPT, tmp_path / "a.png")
    return tmp_path / "a.png"


def rewrite(path, change):
    """Write the file anew, each chunk as ``change`` gives it back (bytes)."""
    parts = [change(kind, content) for kind, content in chunks(path.read_bytes())]
    path.write_bytes(SIGNATURE + b"".join(parts))


# -- the round trip ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_a_receipt_comes_back_equal_and_matches_the_decoded_image(tmp_path, mode):
    bound = save_image(picture(mode), RECEIPT, tmp_path / "a.png")
    told = read_receipt(tmp_path / "a.png")
    assert told == bound.without_names(), "names stay out of what travels"
    assert told.digest == bound.digest
    assert replace(bound, image_sha256=None) == RECEIPT
    with Image.open(tmp_path / "a.png") as image:
        assert told.matches(image)
        assert json.loads(image.text[KEYWORD]) == json.loads(told.to_json()), "other programs read it too"
    assert not told.matches(picture("L" if mode != "L" else "RGB"))


def test_an_image_whose_pixels_change_no_longer_matches(saved, tmp_path):
    with Image.open(saved) as image:
        image.load()
        changed, told = image.copy(), read_receipt(saved)
    changed.putpixel((0, 0), tuple(v ^ 1 for v in changed.getpixel((0, 0))))
    assert not told.matches(changed)


def test_a_mode_that_no_png_gives_back_is_refused(tmp_path):
    with pytest.raises(ImageRefused, match="CMYK"):
        save_image(Image.new("CMYK", (2, 2)), RECEIPT, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_receipt_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(png, "LIMIT", 1000)
    with pytest.raises(InvalidInput, match="save it beside the image"):
        save_image(picture(), RECEIPT, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_receipt_of_a_thousand_steps_fits(tmp_path):
    rows = tuple(HeavyRow("s" * 32, i, f"a/long/path/of/a/folder/{i:09d}.png", -1234.5678) for i in range(8))
    long = replace(RECEIPT, steps=(replace(STEP, heaviest=rows),) * 1000)
    save_image(picture(), long, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert read_receipt(tmp_path / "a.png").matches(image)


# -- hostile files -----------------------------------------------------------------------------


def test_what_holds_no_receipt_says_so(tmp_path):
    picture().save(tmp_path / "plain.png")
    picture().save(tmp_path / "a.bmp")
    with pytest.raises(NotThere, match=r"plain\.png holds no receipt"):
        read_receipt(tmp_path / "plain.png")
    with pytest.raises(NotThere, match="no file"):
        read_receipt(tmp_path / "nowhere.png")
    with pytest.raises(ImageRefused, match="no PNG"):
        read_receipt(tmp_path / "a.bmp")


@pytest.mark.parametrize("says", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 24, 10_000])
@pytest.mark.parametrize("kind", [b"iTXt", b"IDAT", b"zzZz"])
def test_a_chunk_that_says_more_than_there_is_is_refused(saved, kind, says):
    def lie(name, content):
        honest = chunk(name, content)
        return struct.pack(">I", says) + (kind + honest[8:]) if name == b"iTXt" else honest

    rewrite(saved, lie)
    with pytest.raises(Damaged, match="more bytes than there are"):
        read_receipt(saved)


def test_a_chunk_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    save_image(picture(), replace(RECEIPT, gate="g" * 5000), tmp_path / "a.png")
    monkeypatch.setattr(png, "LIMIT", 100)
    with pytest.raises(Damaged, match="the limit is 100"):
        read_receipt(tmp_path / "a.png")


@pytest.mark.parametrize("keep", [0.999, 0.7, 0.1])
def test_a_truncated_file_is_refused(saved, keep):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(Damaged, match="breaks off"):
        read_receipt(saved)


def head(text, flags=b"\0\0", language=b"\0\0"):
    return KEYWORD.encode() + b"\0" + flags + language + text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (lambda content: chunk(b"iTXt", content) * 2, "2 receipts"),
        (lambda content: chunk(b"iTXt", content, crc=0), "checksum"),
        (lambda content: chunk(b"iTXt", head(zlib.compress(b"{}"), b"\1\0")), "compressed"),
        (lambda content: chunk(b"iTXt", head(b"", b"", b"")), "cut short"),
        (lambda content: chunk(b"iTXt", head(b"\xff\xfe")), "no text"),
        (lambda content: chunk(b"iTXt", head(b"{")), "no JSON"),
        (lambda content: chunk(b"iTXt", head(b"[" * 100_000)), "no JSON"),
        (lambda content: chunk(b"iTXt", head(b'{"made": 1}')), "lacks"),
    ],
)
def test_a_receipt_that_is_not_sound_is_refused(saved, written, said):
    rewrite(saved, lambda kind, content: written(content) if kind == b"iTXt" else chunk(kind, content))
    with pytest.raises(Damaged, match=said):
        read_receipt(saved)


def test_other_chunks_are_passed_over_and_nothing_is_read_behind_the_end(saved):
    other = chunk(b"iTXt", b"Comment\0\0\0\0\0hello") + chunk(b"iTXt", b"") + chunk(b"tEXt", b"a\0b")
    rewrite(saved, lambda kind, content: other + chunk(kind, content) if kind == b"iTXt" else chunk(kind, content))
    told = read_receipt(saved)
    saved.write_bytes(saved.read_bytes() + b"behind" * 100)
    assert read_receipt(saved) == told


# -- from JSON ---------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False)
heavy = st.builds(HeavyRow, texts, st.integers(0, 2**62), st.none() | texts, floats)
BY_TYPE = {"float": floats, "bool": st.booleans(), "tuple[HeavyRow, ...]": st.lists(heavy, max_size=2).map(tuple)}
step = st.builds(Step, **{field.name: BY_TYPE[field.type] for field in fields(Step)})
points = st.builds(Checkpoint, texts, st.integers(0), texts, texts, texts, texts)
stated = st.lists(st.builds(SetStated, texts, st.integers(0), st.integers(0), st.none() | points), max_size=2)
stated = stated.map(tuple)


@given(
    st.builds(
        replace,
        st.just(RECEIPT),
        made=texts,
        sets=stated,
        reference=stated,
        steps=st.lists(step, max_size=2).map(tuple),
        degraded_steps=st.integers(0),
        libraries=st.dictionaries(texts, texts, max_size=2),
        image_sha256=st.none() | texts,
        signature=texts,
        public_key=texts,
    )
)
def test_any_receipt_makes_the_round_trip_through_json(receipt):
    for text in (receipt.to_json(), receipt.to_json(indent=None), receipt.to_json().encode()):
        told = Receipt.from_json(text)
        assert told == receipt
        assert told.digest == receipt.digest


def test_a_number_that_another_program_wrote_without_its_point_is_a_float():
    text = RECEIPT.to_json().replace('"alpha": 1.0', '"alpha": 1')
    assert text != RECEIPT.to_json()
    assert Receipt.from_json(text).digest == RECEIPT.digest


def changed(*path, to):
    """The receipt's JSON with one place changed, or taken out where ``to`` is Ellipsis."""
    told = json.loads(RECEIPT.to_json())
    inner = told
    for part in path[:-1]:
        inner = inner[part]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return json.dumps(told)


def paths():
    yield from ((field.name,) for field in fields(Receipt))
    yield from (("steps", 0, field.name) for field in fields(Step))
    yield from (("steps", 0, "heaviest", 0, field.name) for field in fields(HeavyRow))
    yield from (("sets", 0, field.name) for field in fields(SetStated))


@pytest.mark.parametrize("path", list(paths()), ids=lambda path: ".".join(map(str, path)))
def test_a_field_that_is_missing_or_of_another_type_is_refused(path):
    absent = [] if path == ("missing",) else [...]  # the one field that receipts were written without
    for wrong in (*absent, {"x": []}, [[]]):
        with pytest.raises(Damaged):
            Receipt.from_json(changed(*path, to=wrong))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"receipt"',
        changed("more", to=1),
        changed("steps", 0, "more", to=1),
        changed("degraded_steps", to=True),
        changed("gate", to=7),
        changed("image_sha256", to=7),
        changed("steps", 0, "log_norm", to="low"),
        changed("sets", 0, "version", to="3"),
        changed("degraded_steps", to=1.0),
        changed("steps", 0, "alpha", to="nan"),
        changed("steps", 0, "alpha", to="Infinity"),
        changed("steps", 0, "alpha", to=True),
        changed("steps", 0, "alpha", to=10**400),
        changed("sets", to={}),
        changed("gate", to="\ud800"),
        changed("steps", 0, "alpha", to=float("nan")),
        changed("steps", 0, "alpha", to=float("inf")),
        RECEIPT.to_json().replace('"kernel":', '"gate": "other", "kernel":'),
        RECEIPT.to_json()[:-5],
        "9" * 5000,
        b"\xff\xfe{",
    ],
    ids=range(24),
)
def test_what_is_no_receipt_is_refused(text):
    with pytest.raises(Damaged):
        Receipt.from_json(text)


def test_every_field_is_read_back():
    told = asdict(Receipt.from_json(RECEIPT.to_json()))
    assert told == asdict(RECEIPT)
