"""Damaged and hostile inputs: each is refused by its name, the run goes on, and the exit code says so."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from corpora import ledger, png, run, tar
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from negindex import Collection
from negindex.errors import ImageRefused
from negindex.sampler import PixelEncoder
from negindex.sampler.encode import read_image

PARTLY = 3


def chunk(kind, content, crc=None):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc or zlib.crc32(kind + content))


def crafted(width=8, height=8, bits=8, colour=0, data=None, more=b"", end=True):
    """A PNG with a header and data of one's choice."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(bytes(9 * 8)) if data is None else data
    closing = chunk(b"IEND", b"") if end else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + closing


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


WHOLE = png(0, (40, 40), "RGB")
JPEG = png(0, (40, 40), "RGB", "JPEG")
WEBP = png(0, (40, 40), "RGB", "WEBP")
GIF = png(0, (40, 40), "L", "GIF")
BMP = png(0, (40, 40), "RGB", "BMP")
TIFF_F = saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
TIFF_I = saved(Image.fromarray(np.full((8, 8), 70000, np.int32)), "TIFF")
BAD = {
    "empty.png": b"",
    "one-byte.png": b"\x89",
    "signature.png": WHOLE[:8],
    "header.png": WHOLE[:33],
    "half.png": WHOLE[: len(WHOLE) // 2],
    "tail.png": WHOLE[:-60],
    "flipped.png": flip(WHOLE, len(WHOLE) // 2),
    "crc.png": flip(WHOLE, 30),
    "nothing-inside.png": crafted(data=zlib.compress(b"")),
    "no-zlib.png": crafted(data=b"no zlib"),
    "bomb.png": crafted(65_000, 65_000),
    "wide-bomb.png": crafted(2**31 - 1, 1),
    "no-width.png": crafted(0, 8),
    "odd-bits.png": crafted(bits=7),
    "odd-colour.png": crafted(colour=5),
    "text-bomb.png": crafted(more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70 << 20)))),
    "text.png": b"not an image at all",
    "html.jpg": b"<!doctype html><title>404</title>",
    "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
    "document.png": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
    "half.jpg": JPEG[: len(JPEG) // 2],
    "start.jpg": JPEG[:20],
    "frame.jpg": JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
    "half.webp": WEBP[: len(WEBP) // 2],
    "riff.webp": b"RIFF\x10\0\0\0WEBPVP8 \0\0\0\0",
    "half.gif": GIF[: len(GIF) // 3],
    "screen.gif": b"GIF89a\xff\xff\xff\xff\0\0\0;",
    "half.bmp": BMP[: len(BMP) // 2],
    "huge.bmp": BMP[:18] + struct.pack("<ii", 2**30, 2**30) + BMP[26:],
    "compression.bmp": BMP[:30] + struct.pack("<I", 99) + BMP[34:],
    "float.png": TIFF_F,
    "beyond.png": TIFF_I,
    "half.png.png": TIFF_F[: len(TIFF_F) // 2],
    "colour-in-grey.png": WHOLE,
}


def test_every_damaged_file_is_refused_by_its_name_and_the_others_go_in(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    for place in range(5):
        (folder / f"good-{place}.png").write_bytes(png(place))
    (folder / "undecodable-\udcff.png").write_bytes(png(7))
    (folder / "secret.png").symlink_to(folder / "nowhere")
    began = time.monotonic()
    words = [folder, "--size", 8, "--channels", 1, "--ledger", tmp_path / "run.jsonl"]
    done = run("build", tmp_path / "a.set", *words)
    assert done.exit_code == PARTLY, done.output
    assert time.monotonic() - began < 10
    outcomes, entries = ledger(tmp_path / "run.jsonl")
    refused = {key for key, outcome in outcomes.items() if outcome == "refused"}
    assert refused == {f"corpus/{name}" for name in BAD} | {"corpus/undecodable-\udcff.png"}
    for name in BAD:
        assert name in entries[f"corpus/{name}"]["reason"]
        assert f"refused: corpus/{name}: " in done.stderr
    assert Collection.open(tmp_path / "a.set").source_keys() == [f"corpus/good-{place}.png" for place in range(5)]


def test_the_same_files_inside_a_shard_are_refused_by_their_names(tmp_path):
    names = {f"{place:02}": content for place, content in enumerate(BAD.values())}
    shard = tar(tmp_path / "a.tar", [*((f"{name}.png", content) for name, content in names.items()), ("z.png", png(1))])
    done = run("build", tmp_path / "a.set", shard, "--size", 8, "--channels", 1, "--json")
    assert done.exit_code == PARTLY
    said = json.loads(done.stdout)
    assert (said["in"], said["refused"], said["inputs"]) == (1, len(BAD), len(BAD) + 1)
    assert all(f"refused: a.tar/{name}: " in done.stderr for name in names)


def test_case_9_one_of_a_hundred_is_cut_short(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for place in range(100):
        content = png(place)
        (folder / f"{place}.png").write_bytes(content[:-30] if place == 41 else content)
    done = run("build", tmp_path / "a.set", folder, "--size", 8)
    assert done.exit_code == PARTLY
    assert "99 rows in force (99 added, 0 already there, 1 refused)" in done.stdout
    assert "refused: corpus/41.png: 41.png is damaged" in done.stderr


def test_a_damaged_file_does_not_make_a_grey_set_colour(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"text")
    (folder / "1.png").write_bytes(png(1))
    run("build", tmp_path / "a.set", folder, "--size", 8)
    assert Collection.open(tmp_path / "a.set").shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--max-pixels", 99], "10 × 10 pixels; the limit is 99"), (["--max-bytes", 100], "more than 100 bytes")],
)
def test_limits_can_be_set(tmp_path, words, said):
    (tmp_path / "a.png").write_bytes(png(1, (10, 10)))
    done = run("build", tmp_path / "a.set", tmp_path / "a.png", "--size", 8, *words)
    assert done.exit_code == PARTLY
    assert said in done.stderr
    assert run("build", tmp_path / "a.set", tmp_path / "a.png", "--size", 8, "--max-pixels", 100).exit_code == 0


def scanned_again(times):
    """A progressive JPEG of 2,000 × 2,000 pixels whose last scan comes so many times more: a few kilobytes."""
    content = saved(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda"))
    return content[:-2] + content[last:-2] * times + b"\xff\xd9"


def in_runs(side, runs):
    """A BMP of 8 bits with these runs."""
    palette = bytes(4 * 256)
    sizes = struct.pack("<IIH", 54 + len(palette) + len(runs), 0, 54 + len(palette))
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + sizes + b"\0\0" + header + palette + runs


def test_few_bytes_that_ask_for_minutes_are_refused_at_once(tmp_path):
    bombs = {
        "scans.jpg": (scanned_again(2000), "2,006 times over its 2000 × 2000 pixels; the limit at this size is 500"),
        "runs.bmp": (in_runs(4000, b"\0\2\0\0" * 1_200_000), "a BMP of 4,801,078 bytes packed in runs"),
        "wide.bmp": (in_runs(5000, b"\1\5" * 9), "for 5000 × 5000 pixels"),
    }
    (tmp_path / "pile").mkdir()
    for name, (content, _) in bombs.items():
        assert len(content) < 5_000_000
        (tmp_path / "pile" / name).write_bytes(content)
    (tmp_path / "pile" / "scans-in.tiff").write_bytes(saved(Image.new("L", (64, 64)), "TIFF", compression="jpeg"))
    began = time.monotonic()
    done = run("build", tmp_path / "a.set", tmp_path / "pile", "--size", 8)
    assert time.monotonic() - began < 20  # decoding them takes minutes
    assert done.exit_code == PARTLY
    for name, (_, said) in bombs.items():
        assert f"{name}" in done.stderr
        assert said in done.stderr


def test_what_is_scanned_or_packed_as_usual_goes_in():
    again = Image.new("L", (2000, 2000), 128)
    assert np.asarray(read_image(scanned_again(20))).shape == (2000, 2000)
    assert read_image(saved(again, "TIFF", compression="jpeg")).size == (2000, 2000)
    assert (np.asarray(read_image(in_runs(4, b"\4\0\0\0" * 4))) == 0).all()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_goes_in(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    moving = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (np.asarray(read_image(moving).convert("RGB")) == (255, 0, 0)).all()


def test_sixteen_bits_of_colour_keep_their_high_bytes():
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    got = np.asarray(read_image(crafted(bits=16, colour=2, data=zlib.compress(lines))))
    assert np.abs(got.astype(int) - values.astype(float) / 257).max() <= 1


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([WHOLE, JPEG, WEBP, GIF, BMP, TIFF_F]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.2, 1),
)
def test_changed_bytes_give_a_row_or_a_refusal_and_nothing_else(content, changes, share):
    wild = bytearray(content)
    for at, value in changes:
        wild[int(at * len(wild))] = value
    try:
        row = PixelEncoder(8, 8, 3).row(read_image(bytes(wild[: int(share * len(wild))]), "wild"), "wild")
    except ImageRefused:
        return
    assert np.isfinite(row).all()
