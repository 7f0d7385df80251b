import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from t2im.data.images import MAX_PIXELS, UPRIGHT, decode, original_size, read_image, read_images, square
from t2im.errors import BadImage, UsageError

rng = np.random.default_rng(5)
NOISE = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values, colour_type, *, bits=16, before=b""):
    """Write a PNG by hand, for what Pillow cannot write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else ">u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encoded(image, format_, **options):
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def pixels(path, **options):
    return np.asarray(decode(path, **options))


@pytest.fixture
def store(tmp_path):
    """Return a function that puts bytes or an image into a file and returns its path."""

    def store(content, name="a.png", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **options)
        return path

    return store


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_come_back_exactly_whatever_the_name(format_, store):
    options = {"lossless": True} if format_ == "WEBP" else {}
    path = store(encoded(Image.fromarray(NOISE), format_, **options), "a.jpg")
    assert (pixels(path) == NOISE).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_every_exif_orientation_is_made_upright(orientation, name, store):
    upright = Image.fromarray(NOISE)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(UPRIGHT[inverse]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = store(stored, name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    image = decode(path)
    assert (np.asarray(image) == NOISE).all()
    assert image.info == {"size": (17, 13), "animated": False}
    assert original_size(path) == (13, 17)  # height first


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_cost_the_image(exif, store):
    assert decode(store(Image.fromarray(NOISE), "a.jpg", exif=exif)).size == (17, 13)


def test_metadata_that_cannot_be_parsed_does_not_cost_the_image(store):
    metadata = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  4\nno hexadecimal")
    path = store(png(NOISE, 2, bits=8, before=metadata))
    with Image.open(path) as image, pytest.raises(ValueError, match="hexadecimal"):
        image.getexif()
    assert (pixels(path) == NOISE).all()


@pytest.mark.parametrize(
    ("mode", "alpha_name"), [("RGBA", "a.png"), ("LA", "a.png"), ("P", "a.gif"), ("RGBA", "a.tif"), ("RGBA", "a.webp")]
)
def test_transparent_pixels_show_the_background(mode, alpha_name, store):
    image = Image.new("RGBA", (16, 8), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 8))
    options = {"lossless": True} if alpha_name == "a.webp" else {}
    if mode == "P":
        image = image.convert("RGB").convert("P", colors=4)
        image.putpixel((0, 0), 1)
        image.paste(2, (8, 0, 16, 8))
        options = {"transparency": 2}
    else:
        image = image.convert(mode)
    path = store(image, alpha_name, **options)
    shown = pixels(path, background="#10c820")
    assert (shown[:, 8:] == (0x10, 0xC8, 0x20)).all()
    assert (shown[1:, :8] == 0).all()
    assert (pixels(path)[:, 8:] == 255).all()


def test_half_transparent_is_halfway_to_the_background(store):
    path = store(Image.new("RGBA", (8, 8), (255, 0, 0, 128)))
    assert np.abs(pixels(path, background="black")[0, 0].astype(int) - (128, 0, 0)).max() <= 1
    assert np.abs(pixels(path, background="white")[0, 0].astype(int) - (255, 127, 127)).max() <= 1


def test_a_palette_with_graded_transparency_is_composited(store):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    path = store(image, transparency=bytes([255, 51]))
    assert np.abs(pixels(path, background="blue")[0, 0].astype(int) - (40, 0, 204)).max() <= 1


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (png(RAMP, 0), "grey.png"),
        (png(np.repeat(RAMP[..., None], 3, -1), 2), "rgb.png"),
        (Image.fromarray(RAMP), "grey.tif"),
        (Image.fromarray(RAMP.astype(">u2")), "big-endian.tif"),
        (Image.fromarray(RAMP.astype(np.int32)), "in-32-bit.tif"),
        (Image.fromarray(RAMP.astype(np.int32) << 15), "32-bit.tif"),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), "unit-float.tif"),
        (Image.fromarray(RAMP.astype(np.float32)), "float.tif"),
        (Image.fromarray((RAMP >> 8).astype(np.int32)), "8-in-32-bit.tif"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_deep_values_are_scaled_and_not_clipped(content, name, store):
    image = pixels(store(content, name))
    assert image.mean() == pytest.approx(127.5, abs=0.6)
    assert np.abs(image[..., 0].astype(float) - RAMP / 257).max() <= 1


@pytest.mark.parametrize("values", [np.full((8, 8), np.nan), np.full((8, 8), np.inf), np.full((8, 8), -1)])
def test_deep_values_without_a_meaning_are_refused(values, store):
    with pytest.raises(BadImage, match="negative or non-finite"):
        decode(store(Image.fromarray(values.astype(np.float32)), "a.tif"))


def test_the_transparent_value_of_deep_grey_shows_the_background(store):
    values = np.full((8, 8), 1000, dtype=np.uint16)
    values[:, 4:] = 40_000
    image = pixels(store(png(values, 0, before=chunk(b"tRNS", struct.pack(">H", 40_000)))), background="red")
    assert (image[:, 4:] == (255, 0, 0)).all()
    assert (image[:, :4] == round(1000 / 257)).all()


@pytest.mark.parametrize("transform", ["CMYK", "YCCK"])
def test_inks_are_converted_and_adobes_inversion_undone(transform, store):
    inks = (200, 40, 10, 30)
    if transform == "CMYK":
        data = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=95)
    else:  # the first three inks stored as luma and chroma; Pillow cannot write that, but its marker can be patched
        luma = Image.new("RGB", (1, 1), inks[:3]).convert("YCbCr").getpixel((0, 0))
        stored = (*(255 - value for value in luma), inks[3])
        data = bytearray(encoded(Image.new("CMYK", (16, 16), stored), "JPEG", quality=95))
        data[data.index(b"Adobe") + 11] = 2
    cyan, magenta, yellow, key = (ink / 255 for ink in inks)
    reference = [255 * (1 - ink) * (1 - key) for ink in (cyan, magenta, yellow)]
    assert np.abs(pixels(store(bytes(data), "a.jpg")).mean((0, 1)) - reference).max() < 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "CMYK"])
def test_other_colour_modes_become_rgb(mode, store):
    image = Image.fromarray(NOISE).convert(mode)
    assert (pixels(store(encoded(image, "TIFF"))) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(format_, store):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = store(encoded(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True), "a.gif")
    image = decode(path)
    assert image.info["animated"]
    assert (np.asarray(image) == (255, 0, 0)).all()
    assert not decode(store(encoded(frames[0], format_), "b.gif")).info["animated"]


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.01])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated_files_are_refused(format_, kept, store):
    whole = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format_)
    with pytest.raises(BadImage) as error:
        decode(store(whole[: int(len(whole) * kept)]))
    assert "a.png: " in str(error.value)
    assert str(error.value).endswith("Replace it, or leave it out with --skip-bad.")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\0", "is no image"),
        (b"hello", "is no image"),
        (b"<!doctype html><html></html>", "is no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
        (b"%PDF-1.7\n", "is no image"),
        (b"8BPS\0\1" + bytes(40), "is no image"),
        (b"SIMPLE  =                    T" + b" " * 2850, "is no image"),
        (encoded(Image.new("RGB", (16, 16)), "ICO"), "is no image"),
        (encoded(Image.new("RGB", (16, 16)), "PPM"), "is no image"),
    ],
)
def test_what_is_no_image_of_the_six_formats_is_refused(content, reason, store):
    with pytest.raises(BadImage, match=reason):
        decode(store(content))


def test_a_wrong_checksum_in_a_png_is_refused(store):
    data = bytearray(png(NOISE, 2, bits=8))
    assert (pixels(store(bytes(data))) == NOISE).all()
    data[data.index(b"IEND") - 5] ^= 1  # the last byte of the checksum of the pixels
    with pytest.raises(BadImage, match="checksum"):
        decode(store(bytes(data)))


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (20_000, 20_000), (7072, 7072)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_from_the_header(size, store, monkeypatch):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0))
    path = store(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="50 million"):
        decode(path)
    assert size[0] * size[1] > MAX_PIXELS


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 5000), (5000, 1), (8, 129), (129, 8)])
def test_tiny_images_and_strips_are_refused(size, store):
    with pytest.raises(BadImage, match=f"{size[0]}x{size[1]} pixels"):
        decode(store(Image.new("L", size)))


@pytest.mark.parametrize("size", [(8, 8), (8, 128), (128, 8)])
def test_what_is_just_large_enough_is_read(size, store):
    assert read_image(store(Image.new("L", size)), resolution=5).shape == (3, 5, 5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer for ever
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "/dev/zero"):
        with pytest.raises(BadImage, match="is no regular file"):
            decode(tmp_path / name)
    with pytest.raises(BadImage, match="does not exist"):
        decode(tmp_path / "none.png")


def test_names_stay_on_their_line(store):
    with pytest.raises(BadImage) as error:
        decode(store(b"x", "new\nline\x1b[31m\u202e.png"))
    assert "new\\nline\\x1b[31m\\u202e.png" in str(error.value)


def test_a_photograph_can_come_smaller_but_never_smaller_than_asked(store):
    y, x = np.mgrid[:600, :800]
    smooth = np.stack([127 + 100 * np.sin(x / 37), 127 + 100 * np.cos(y / 51), (x + y) / 6], -1).astype(np.uint8)
    path = store(Image.fromarray(smooth), "a.jpg", quality=95)
    small = decode(path, at_least=64)
    assert small.size == (100, 75)
    assert small.info["size"] == (800, 600)
    assert decode(path, at_least=76).size == (200, 150)
    assert decode(path, at_least=301).size == (800, 600)
    assert decode(store(Image.new("RGB", (804, 601)), "b.jpg"), at_least=8).size == (804, 601)
    read = read_image(path, resolution=32)
    whole = torch.from_numpy(np.array(square(decode(path), 32))).permute(2, 0, 1) / 127.5 - 1
    assert (read - whole).abs().max() < 0.02


def test_reading_takes_the_centre_square(store):
    stripes = np.zeros((10, 31, 3), dtype=np.uint8)
    stripes[:, 10:20] = 255
    image = read_image(store(Image.fromarray(stripes)), resolution=10)
    assert image.dtype == torch.float32
    assert (image == 1).all()
    upright = read_image(store(Image.fromarray(stripes.swapaxes(0, 1).copy())), resolution=10)
    assert (upright == 1).all()


def test_pixels_become_numbers_from_minus_one_to_one(store):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = read_image(store(Image.fromarray(values)), resolution=16)
    assert image[0].flatten().tolist() == pytest.approx((np.arange(256) / 127.5 - 1).tolist(), abs=1e-6)
    assert image.min() == -1
    assert image.max() == 1


def test_reduction_is_antialiased(store):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert read_image(store(Image.fromarray(board)), resolution=8).abs().max() < 0.05


def test_a_batch_equals_single_reads_in_order(store):
    paths = [store(Image.fromarray(np.roll(NOISE, index, 0)), f"{index}.png") for index in range(13)]
    batch = read_images(paths, resolution=11)
    assert batch.shape == (13, 3, 11, 11)
    for image, path in zip(batch, paths, strict=True):
        assert torch.equal(image, read_image(path, resolution=11))


def test_a_batch_names_its_first_bad_image(store):
    paths = [store(Image.fromarray(NOISE)), store(b"", "bad.png"), store(b"x", "worse.png")]
    with pytest.raises(BadImage, match=r"bad\.png: is empty"):
        read_images(paths, resolution=8)


@pytest.mark.parametrize("background", ["whit", "#12345", "", "none"])
def test_a_background_that_is_no_colour_is_a_usage_error(background, store):
    with pytest.raises(UsageError, match="is no colour"):
        decode(store(Image.fromarray(NOISE)), background=background)
    with pytest.raises(UsageError, match='did you mean "white"'):
        decode(store(Image.fromarray(NOISE)), background="whit")


def _seeds():
    small = Image.fromarray(NOISE)
    rgba = small.convert("RGBA")
    rgba.putalpha(Image.fromarray(NOISE[..., 0]))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker"
    yield from (encoded(small, format_) for format_ in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"))
    yield encoded(small, "JPEG", progressive=True, exif=exif)
    yield encoded(small.convert("CMYK"), "JPEG")
    yield encoded(small, "TIFF", compression="tiff_lzw", exif=exif)
    yield encoded(small, "TIFF", compression="jpeg")
    yield encoded(rgba, "PNG", exif=exif)
    yield encoded(rgba, "WEBP", exif=exif)
    yield encoded(small.convert("P"), "PNG", transparency=3)
    yield encoded(small, "GIF", save_all=True, append_images=[small.rotate(90), small.rotate(180)])
    yield encoded(rgba, "PNG", save_all=True, append_images=[rgba.rotate(90)])
    yield encoded(small, "WEBP", save_all=True, append_images=[small.rotate(90)])
    yield png(RAMP[:9, :9], 0)


SEEDS = tuple(_seeds())


@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
    extra=st.binary(max_size=8),
)
@settings(max_examples=500, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_decode_or_are_bad_images(seed, changes, kept, extra, tmp_path_factory):
    data = bytearray(seed)
    for place, value in changes:
        data[int(place * len(data))] = value
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(bytes(data[: int(kept * len(data))]) + extra)
    try:
        image = decode(path)
    except BadImage as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"
        assert image.size[0] * image.size[1] <= MAX_PIXELS
