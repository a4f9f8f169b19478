"""From files to rows: every kind of image, and what is no image, or too large a one."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps, PngImagePlugin

from negindex.errors import ImageRefused, InvalidInput, OutOfRange, SpaceMismatch
from negindex.sampler import PixelEncoder
from negindex.sampler.encode import has_colour, images_in, read_image, space_of, to_images

GREY, COLOUR = PixelEncoder(8, 8, 1), PixelEncoder(8, 8, 3)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def levels(row):
    """(C, H, W) in [-1, 1] -> (H, W, C) 8-bit levels, which must be whole."""
    values = (row.astype(np.float64).transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(values - values.round()).max() < 1e-4
    return values.round().astype(np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


# -- every kind of image -----------------------------------------------------------------------


def test_grey_goes_in_as_it_is_and_as_three_equal_channels(tmp_path):
    pixels = noise(8, 8)
    path = saved(tmp_path, Image.fromarray(pixels))
    assert GREY.encode(path).dtype == np.float32
    assert (levels(GREY.encode(path))[..., 0] == pixels).all()
    assert (levels(COLOUR.encode(path)) == pixels[..., None]).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_colour_goes_in_as_it_is(tmp_path, suffix):
    pixels = noise(8, 8, 3)
    options = {"lossless": True} if suffix == "webp" else {}
    assert (levels(COLOUR.encode(saved(tmp_path, Image.fromarray(pixels), f"a.{suffix}", **options))) == pixels).all()


def test_a_jpeg_goes_in(tmp_path):
    row = COLOUR.encode(saved(tmp_path, Image.new("RGB", (8, 8), (200, 30, 60)), "a.jpg", quality=95))
    assert np.abs(levels(row).astype(int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    bands = len(mode)
    pixels = noise(8, 8, bands)
    pixels[:4, :, -1], pixels[4:, :, -1] = 0, 255
    path = saved(tmp_path, Image.fromarray(pixels, mode) if mode == "RGBA" else la_image(pixels))
    got = levels((COLOUR if mode == "RGBA" else GREY).encode(path))
    assert (got[:4] == 255).all()
    assert (got[4:] == pixels[4:, :, :-1]).all()


def la_image(pixels):
    return Image.merge("LA", [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(2)])


def test_a_palette_with_a_transparent_colour_is_laid_over_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    got = levels(COLOUR.encode(saved(tmp_path, image, "a.gif", transparency=0)))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == [200, 100, 50]


def test_cmyk_becomes_colour(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = levels(COLOUR.encode(saved(tmp_path, image, "a.jpg", quality=95)))[0, 0].astype(int)
    assert red > 200
    assert max(green, blue) < 60


def test_sixteen_bits_of_grey_keep_their_high_byte(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = saved(tmp_path, Image.fromarray(values))
    got = levels(GREY.encode(path))[..., 0]
    assert np.abs(got.astype(float) - values / 257).max() < 1
    assert (got[0, 0], got[-1, -1]) == (0, 255)


def test_one_bit_is_black_and_white(tmp_path):
    pixels = noise(8, 8) > 127
    path = saved(tmp_path, Image.fromarray(pixels))
    assert not has_colour(path)
    assert (levels(GREY.encode(path))[..., 0] == pixels * 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_encoded_upright(tmp_path, orientation):
    upright = noise(8, 8, 3)
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    assert (levels(COLOUR.encode(path)) == upright).all()


def test_one_pixel_fills_the_row(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)))
    assert (levels(COLOUR.encode(path)) == (1, 2, 3)).all()


@pytest.mark.parametrize("size", [(32, 16), (16, 32)])
def test_the_centre_of_a_long_image_is_kept(tmp_path, size):
    """Sides are cut, never squeezed: red sides go, the middle stays."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste((0, 0, 255), (8, 0, 24, 16))
    path = saved(tmp_path, image if size == (32, 16) else image.transpose(Image.Transpose.ROTATE_90))
    got = levels(COLOUR.encode(path))
    assert got[..., 2].min() > 200
    assert got[..., 0].max() < 55  # Lanczos looks a little beyond the cut


def test_rows_need_not_be_square(tmp_path):
    pixels = noise(6, 10, 3)
    encoder = PixelEncoder(6, 10, 3)
    row = encoder.encode(saved(tmp_path, Image.fromarray(pixels)))
    assert row.shape == encoder.shape == (3, 6, 10)
    assert (levels(row) == pixels).all()


def test_a_larger_image_is_scaled_like_pillow_does(tmp_path):
    image = Image.fromarray(noise(20, 30, 3))
    expected = np.asarray(ImageOps.fit(image, (8, 8), Image.Resampling.LANCZOS))
    assert (levels(COLOUR.encode(saved(tmp_path, image))) == expected).all()


# -- what is refused ---------------------------------------------------------------------------


def header(width, height):
    """A PNG that says how large it is, and then breaks off."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(bytes(100)))]
    packed = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def png(tmp_path):
    return saved(tmp_path, Image.fromarray(noise(64, 64, 3)), "whole.png").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, share):
    whole = png(tmp_path)
    (tmp_path / "cut.png").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageRefused, match=r"cut\.png"):
        COLOUR.encode(tmp_path / "cut.png")


def test_a_damaged_file_is_refused(tmp_path):
    whole = bytearray(png(tmp_path))
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "bad.png").write_bytes(whole)
    with pytest.raises(ImageRefused, match=r"bad\.png is damaged"):
        COLOUR.encode(tmp_path / "bad.png")


def test_text_by_the_name_of_an_image_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ImageRefused, match=r"notes\.png is no image"):
        COLOUR.encode(tmp_path / "notes.png")
    assert not has_colour(tmp_path / "notes.png")


@pytest.mark.parametrize(("width", "height"), [(65000, 65000), (20000, 20000), (10001, 10000)])
def test_a_bomb_is_refused_by_its_header(tmp_path, width, height, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(header(width, height))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        ImageRefused, match=rf"(?s)bomb\.png.*({width}|{width * height}).*100,000,000, so make it smaller"
    ):
        COLOUR.encode(tmp_path / "bomb.png")


def test_an_image_at_the_limit_goes_in_and_one_pixel_more_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("negindex.sampler.encode.MAX_PIXELS", 100)
    assert COLOUR.encode(saved(tmp_path, Image.new("RGB", (10, 10)))).shape == (3, 8, 8)
    with pytest.raises(ImageRefused, match=r"101 × 1 pixels; the limit is 100"):
        COLOUR.encode(saved(tmp_path, Image.new("RGB", (101, 1))))


def test_colour_is_never_dropped_in_silence(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(8, 8, 3)))
    with pytest.raises(ImageRefused, match="has colour, and the set holds grey rows"):
        GREY.encode(path)


def test_colour_that_is_grey_goes_into_a_grey_set(tmp_path):
    pixels = noise(8, 8)
    path = saved(tmp_path, Image.fromarray(np.repeat(pixels[..., None], 3, 2)))
    assert (levels(GREY.encode(path))[..., 0] == pixels).all()


def test_pixels_without_a_scale_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((8, 8), np.float32)), "a.tiff")
    with pytest.raises(ImageRefused, match="floating-point pixels"):
        read_image(path)
    deep = saved(tmp_path, Image.fromarray(np.full((8, 8), 70000, np.int32)), "b.tiff")
    with pytest.raises(ImageRefused, match="outside 0 to 65,535"):
        read_image(deep)


@pytest.mark.parametrize(("height", "width", "channels"), [(0, 8, 1), (8, -1, 1), (8, 8, 2), (8, 8, 4)])
def test_rows_that_no_image_fills_are_refused(height, width, channels):
    with pytest.raises(OutOfRange):
        PixelEncoder(height, width, channels)


def test_a_refusal_is_the_callers_input():
    assert issubclass(ImageRefused, InvalidInput)


# -- back, and what samples are ----------------------------------------------------------------


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))),
)
def test_eight_bit_images_come_back_exactly(pixels):
    row = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1))
    (image,) = to_images(row[None])
    assert (np.asarray(image).reshape(pixels.shape) == pixels).all()


def test_all_256_levels_make_the_round_trip_through_a_file(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    row = PixelEncoder(16, 16, 1).encode(saved(tmp_path, Image.fromarray(pixels)))
    assert (row.min(), row.max()) == (-1.0, 1.0)
    for samples in (torch.from_numpy(row)[None], torch.from_numpy(row)[None].double()):
        assert (np.asarray(to_images(samples)[0]) == pixels).all()


def test_values_beyond_the_scale_are_clipped():
    assert np.asarray(to_images(torch.tensor([[[[-9.0, 9.0]]]]))[0]).tolist() == [[0, 255]]


def test_images_are_found_at_any_depth_in_the_order_of_their_names(tmp_path):
    for name in ("b/2.PNG", "a/1.jpg", "c.webp", "notes.txt", "a/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in images_in(tmp_path)] == ["a/1.jpg", "b/2.PNG", "c.webp"]
    assert images_in(tmp_path / "c.webp") == [tmp_path / "c.webp"]


class Vae(torch.nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.ones_(self.layer.weight)
        self.config = config


def pipe_with(**parts):
    return type("Pipe", (), parts)()


def nudged(ulp):
    vae = Vae(scaling_factor=0.2)
    with torch.no_grad():
        vae.layer.weight[0, 0] += ulp
    return vae


def test_a_space_is_pixels_or_one_vae_and_its_normalisation():
    spaces = [
        space_of(pipe_with()),
        space_of(pipe_with(vae=Vae(scaling_factor=0.2))),
        space_of(pipe_with(vae=Vae(scaling_factor=0.3))),
        space_of(pipe_with(vae=Vae(scaling_factor=0.2, shift_factor=0.1))),
        space_of(pipe_with(vae=Vae(scaling_factor=0.2, latents_mean=[0.1], latents_std=[1.0]))),
        space_of(pipe_with(vae=nudged(torch.finfo(torch.float16).eps))),
    ]
    assert spaces[0] == COLOUR.space == space_of(pipe_with(vae=None)) == "pixels"
    assert len(set(spaces)) == len(spaces)
    assert space_of(pipe_with(vae=Vae(scaling_factor=0.2))) == spaces[1]


def test_a_space_is_the_same_in_float32_and_float16_and_says_lists_and_tuples_alike():
    vae = Vae(scaling_factor=0.2)
    torch.nn.init.normal_(vae.layer.weight)
    space = space_of(pipe_with(vae=vae))
    assert space_of(pipe_with(vae=vae.half())) == space
    assert space_of(pipe_with(vae=vae.float())) == space, "and back again"
    listed, tupled = (Vae(latents_mean=kind([0.5, 1.5]), latents_std=kind([1.0, 2.0])) for kind in (list, tuple))
    assert space_of(pipe_with(vae=listed)) == space_of(pipe_with(vae=tupled))


def test_latents_of_another_kind_are_no_pixels():
    with pytest.raises(SpaceMismatch, match="vqvae"):
        space_of(pipe_with(vqvae=Vae()))


def test_a_decoded_image_has_the_row_of_its_file(tmp_path):
    image = Image.fromarray(noise(8, 8, 3))
    assert (COLOUR.row(image, "image") == COLOUR.encode(saved(tmp_path, image))).all()
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    assert (COLOUR.row(clear, "image") == 1).all()
    with pytest.raises(ImageRefused, match="sample 7 has colour"):
        GREY.row(image, "sample 7")
