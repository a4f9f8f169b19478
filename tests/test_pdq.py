"""PDQ hashes: the reference's own bits, and images that cannot be told from others."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from negindex.errors import ImageRefused
from negindex.hamming import NEAR, Hashes, groups
from negindex.sampler.encode import read_image
from negindex.sampler.pdq import MIN_QUALITY, pdq_of, pdq_of_file

REFERENCE = [  # ((height, width), bits, quality) of ``pattern`` by pdqhash 0.2.8, but for the one of 5 lines: there 100
    ((64, 64), "cad9774385a56ada95246a9995366d5a92a5254b5d5ab2a5695b9524ec99ab62", 34),
    ((63, 65), "aaac565bb525cadab964ce999524695aaaad75655d5aa2a44adb1574a8a93a62", 34),
    ((50, 30), "aa2e83e05c1faaa651f05c1fa2e055515c1fa2e05d5d7c1fa3e05d1faaa2a3e5", 14),
    ((5, 400), "0aaa2b24f555d45f2d8aab272eaa54d9d07527a80aaa2b26f555d4572f8aab27", 41),
    ((128, 129), "1dd2356f22647390ef8e1c70cc4edd90aaa7db3ab5f01e47c3cdaa4c374806d8", 100),
    ((300, 200), "aba072e355089d832a5fe618d5a7165cff934aa4ce2835f3f4744ba1ccaaab44", 100),
    ((427, 640), "fe0080ff9fffff80b00f81ff1ff0b800303ff1fc87009b07a63f6c7049c02c70", 100),
    ((963, 1281), "ffffef0000008fff849481ff0ffc81ff1ffefe00f005ff00e000ff00f0057f00", 100),
]
PHOTOS = {  # of scikit-learn's photographs, by pdqhash 0.2.8
    "china.jpg": "bf18cef3407e8678e6833b1937d14066988e5cd2046eac5f783103f157abf50e",
    "flower.jpg": "673966dcb772a66499a69a666196a9476599a21b9649a659596624b3e58ea693",
}


def pattern(height, width):
    y, x = np.mgrid[:height, :width]
    bands = (x * y // 97 + 3 * x + 5 * (y // 11) ** 2, x * x // 301 + y, 7 * y + x * y // 53)
    return Image.fromarray((np.stack(bands, -1) % 256).astype(np.uint8))


@pytest.fixture(scope="module")
def photos():
    loaded = load_sample_images()
    return {name: Image.fromarray(loaded.images[i]) for i, name in enumerate(PHOTOS)}


def apart(a, b):
    return (int.from_bytes(a.bits, "big") ^ int.from_bytes(b.bits, "big")).bit_count()


def encoded(image, fmt, **options):
    data = io.BytesIO()
    image.save(data, fmt, **options)
    return Image.open(data)


# -- the published hash ------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "bits", "quality"), REFERENCE)
def test_hashes_and_qualities_are_the_reference_s_bit_by_bit(size, bits, quality):
    got = pdq_of(pattern(*size))
    assert (got.bits.hex(), got.quality) == (bits, quality)


@pytest.mark.parametrize("name", PHOTOS)
def test_photographs_hash_as_the_reference_hashes_them(photos, name):
    got = pdq_of(photos[name])
    assert (int(got.bits.hex(), 16) ^ int(PHOTOS[name], 16)).bit_count() <= 2  # JPEG decoders differ by a level
    assert got.quality == 100


EDITS = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=20),
    "webp": lambda image: encoded(image, "WEBP", quality=50),
    "half": lambda image: image.resize((320, 214)),
    "double": lambda image: image.resize((1280, 854)),
    "thumbnail": lambda image: image.resize((64, 43)),
    "squeezed": lambda image: image.resize((256, 256)),
    "grey": lambda image: image.convert("L"),
    "cropped by 2 %": lambda image: image.crop((6, 4, 634, 423)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_photograph_is_near_itself_and_far_from_another(photos, edit):
    edited = {name: pdq_of(EDITS[edit](image)) for name, image in photos.items()}
    for name, image in photos.items():
        assert apart(edited[name], pdq_of(image)) <= NEAR
    assert apart(*edited.values()) > 3 * NEAR


# -- one decode path ---------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_hashes_as_it_is_seen(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pattern(90, 130).save(tmp_path / "a.png", exif=exif)
    upright = pdq_of(read_image(tmp_path / "a.png"))
    assert pdq_of_file(tmp_path / "a.png") == pdq_of(Image.open(tmp_path / "a.png")) == upright
    assert (apart(upright, pdq_of(pattern(90, 130))) == 0) == (orientation == 1)


def test_alpha_is_laid_over_white():
    image = pattern(80, 80).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((80, 80)))
    white = Image.new("RGBA", image.size, "white")
    assert pdq_of(image) == pdq_of(Image.alpha_composite(white, image).convert("RGB"))


def test_a_transparent_colour_is_laid_over_white(tmp_path):
    image = Image.new("RGB", (80, 80), (9, 9, 9))
    image.paste(pattern(40, 60), (10, 20))
    image.save(tmp_path / "a.png", transparency=(9, 9, 9))
    assert pdq_of(Image.open(tmp_path / "a.png")) == pdq_of_file(tmp_path / "a.png") != pdq_of(image)


def test_sixteen_bits_of_grey_hash_as_their_eight():
    grey = np.asarray(pattern(80, 90).convert("L"))
    assert pdq_of(Image.fromarray(grey.astype(np.uint16) * 257)) == pdq_of(Image.fromarray(grey))


def test_grey_hashes_as_three_equal_channels():
    grey = pattern(200, 150).convert("L")
    assert pdq_of(grey) == pdq_of(grey.convert("RGB"))


def test_pixels_without_a_scale_are_refused_by_name():
    with pytest.raises(ImageRefused, match=r"sky\.tif has floating-point"):
        pdq_of(Image.new("F", (64, 64)), "sky.tif")


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageRefused, match=r"a\.png"):
        pdq_of_file(tmp_path / "a.png")


# -- images with nothing in them ------------------------------------------------------------------


BLANK = {
    "white": Image.new("RGB", (640, 427), "white"),
    "black": Image.new("L", (64, 64)),
    "grey": Image.new("RGB", (333, 20), (128, 128, 128)),
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "four pixels high": pattern(4, 600),
    "nothing but alpha": Image.new("RGBA", (50, 50), (9, 9, 9, 0)),
    "all but black": Image.fromarray(np.random.default_rng(0).integers(0, 3, (300, 400), np.uint8)),
}


@pytest.mark.parametrize("name", BLANK)
def test_blank_images_are_below_the_threshold(name):
    assert pdq_of(BLANK[name]).quality < MIN_QUALITY


def test_blank_images_group_with_no_photograph(photos):
    hashed = [pdq_of(image) for image in [*BLANK.values(), *photos.values(), *photos.values()]]
    enough = np.array([one.quality >= MIN_QUALITY for one in hashed])
    kept = Hashes.of(one.bits for one in hashed).where(enough)
    first, second = len(BLANK), len(BLANK) + len(photos)
    assert [kept.ids[places].tolist() for places in groups(kept)] == [[first + i, second + i] for i in range(2)]


def shapes(side):
    """A square, a smaller one, a disc and a stripe, black on white, in the middle of the image."""
    found = []
    for kind, across, down in [("rectangle", 6, 6), ("rectangle", 3, 3), ("ellipse", 6, 6), ("rectangle", 8, 4)]:
        found.append(Image.new("L", (side, side), 255))
        box = (side // across, side // down, side - 1 - side // across, side - 1 - side // down)
        getattr(ImageDraw.Draw(found[-1]), kind)(box, fill=0)
    return found


@pytest.mark.parametrize("side", [64, 100, 256, 640])
def test_plain_symmetric_shapes_never_group(side):
    """What is the same from left to right and from top to bottom has 64 bits to itself: too few to go by."""
    hashed = [pdq_of(image) for image in shapes(side)]
    hashes, enough = Hashes.of(one.bits for one in hashed), np.array([one.quality for one in hashed]) >= MIN_QUALITY
    assert groups(hashes.where(enough)) == []
    assert (groups(hashes) == []) == (side > 100), "the threshold is needed where the middle is sampled as the middle"


def test_an_image_that_is_its_own_mirror_image_still_counts():
    half = np.asarray(pattern(200, 100))
    assert pdq_of(Image.fromarray(np.concatenate([half, half[:, ::-1]], 1))).quality >= MIN_QUALITY


# -- hostile sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 2_000_000), (2_000_000, 5)])
def test_a_long_thin_image_takes_the_memory_of_a_strip(size):
    image = Image.new("L", size, 200)
    tracemalloc.start()
    try:
        pdq_of(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
