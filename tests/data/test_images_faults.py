"""One folder of everything that can be wrong with an image: each file is used or refused as listed, and nothing stops."""

import io
import json
import os
import resource
import socket
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from t2im import cache
from t2im.config import DataConfig
from t2im.data import images as images_module
from t2im.data.check import check
from t2im.data.images import UPRIGHT, decode
from t2im.errors import BadImage

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Truncated File Read")
NOISE = np.random.default_rng(5).integers(0, 256, (13, 17, 3), dtype=np.uint8)
NOISY = Image.fromarray(NOISE)
LARGE = Image.fromarray(np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8))
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def encoded(image, format_, **options):
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def png_of(width, height, bits, colour_type, rows):
    """Write a PNG by hand, for what Pillow cannot write. rows: compressed."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png(values, colour_type, *, bits=16):
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else ">u1").tobytes() for row in values)
    return png_of(values.shape[1], values.shape[0], bits, colour_type, zlib.compress(rows))


def bomb(width, height):
    """A real PNG of so many pixels of one bit, all zero: kilobytes that unfold to gigabytes."""
    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + packer.flush()
    return png_of(width, height, 1, 0, rows)


def with_flipped_bit(content, place):
    flipped = bytearray(content)
    flipped[place] ^= 16
    return bytes(flipped)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    return encoded(NOISY.transpose(UPRIGHT[inverse]) if orientation > 1 else NOISY, "PNG", exif=exif)


def half(format_):
    whole = encoded(LARGE, format_)
    return whole[: len(whole) // 2]


def indexed():
    image = Image.new("P", (16, 16), 3)
    image.putpalette(bytes(12))
    return image


def frames(format_):
    return encoded(NOISY, format_, save_all=True, append_images=[NOISY.rotate(90)])


REFUSED = {  # name -> (content, reason)
    "zero.png": (b"", "is empty"),
    "text.png": (b"a cat on a mat", "is no image"),
    "html.jpg": (b"<!doctype html><title>404</title>", "is no image"),
    "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image"),
    "document.png": (b"%PDF-1.7\n%\xe2\xe3", "is no image"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
    "layers.png": (b"8BPS\0\1" + bytes(40), "is no image"),
    "stars.png": (b"SIMPLE  =                    T" + b" " * 2850, "is no image"),
    "icon.png": (encoded(Image.new("RGB", (16, 16)), "ICO"), "is no image"),
    "portable.png": (encoded(Image.new("RGB", (16, 16)), "PPM"), "is no image"),
    "program.png": (b"\x7fELF" + bytes(60), "is no image"),
    "pickle.png": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "is no image"),
    "half.jpg": (half("JPEG"), "truncated"),
    "half.png": (half("PNG"), ": "),
    "half.webp": (half("WEBP"), ": "),
    "half.gif": (half("GIF"), ": "),
    "half.tif": (half("TIFF"), ": "),
    "half.bmp": (half("BMP"), ": "),
    "bomb.png": (bomb(9000, 9000), "more than 50 million"),
    "bomb 12k.png": (bomb(12_000, 12_000), "more than 50 million"),
    "bomb 20k.png": (bomb(20_000, 20_000), "more than 50 million"),
    "damaged data.png": (with_flipped_bit(png(NOISE, 2, bits=8), 60), ": "),
    "damaged sum.png": (with_flipped_bit(png(NOISE, 2, bits=8), -14), "checksum"),
    "damaged header.png": (with_flipped_bit(png(NOISE, 2, bits=8), 18), ": "),
    "dot.png": (encoded(Image.new("L", (1, 1)), "PNG"), "less than 8"),
    "thread.png": (encoded(Image.new("L", (1, 5000)), "PNG"), "less than 8"),
    "lying thread.png": (encoded(Image.new("L", (5000, 1)), "PNG"), "less than 8"),
    "strip.png": (encoded(Image.new("L", (8, 200)), "PNG"), "a strip"),
    "not a number.tif": (encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), "non-finite"),
}
USED = {  # name -> (content, mean of the pixels, how far it may be from that)
    "cmyk.jpg": (encoded(Image.new("CMYK", (16, 16), (200, 40, 10, 30)), "JPEG", quality=95), 151.0, 3),
    "16-bit grey.png": (png(RAMP, 0), 127.5, 1),
    "16-bit rgb.png": (png(np.repeat(RAMP[..., None], 3, -1), 2), 127.5, 1),
    "16-bit.tif": (encoded(Image.fromarray(RAMP), "TIFF"), 127.5, 1),
    "32-bit.tif": (encoded(Image.fromarray(RAMP.astype(np.int32) << 15), "TIFF"), 127.5, 1),
    "fractions.tif": (encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), 127.5, 1),
    "moving.gif": (frames("GIF"), NOISE.mean(), 9),
    "moving.webp": (frames("WEBP"), NOISE.mean(), 9),
    "moving.png": (frames("PNG"), NOISE.mean(), 1e-6),
    "nothing.png": (encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "PNG"), 255.0, 1e-6),
    "nothing grey.png": (encoded(Image.new("LA", (16, 16), (0, 0)), "PNG"), 255.0, 1e-6),
    "nothing indexed.png": (encoded(indexed(), "PNG", transparency=3), 255.0, 1e-6),
    "one bit.png": (encoded(Image.new("1", (16, 16), 1), "PNG"), 255.0, 1e-6),
    **{f"turned {o}.png": (turned(o), NOISE.mean(), 1e-6) for o in range(1, 9)},
    "new\nline.png": (encoded(NOISY, "PNG"), NOISE.mean(), 1e-6),
    "fox 🦊.png": (encoded(NOISY, "PNG"), NOISE.mean(), 1e-6),
    "x" * 251 + ".png": (encoded(NOISY, "PNG"), NOISE.mean(), 1e-6),
    "not utf-8 \udcff.png": (encoded(NOISY, "PNG"), NOISE.mean(), 1e-6),
    "a..b.png": (encoded(NOISY, "PNG"), NOISE.mean(), 1e-6),
}
NEVER_OPENED = ("pipe.png", "folder.png", "socket.png", "link out.png", "link to zero.png", "link to nothing.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "all"
    folder.mkdir()
    for name, (content, *_) in (REFUSED | USED).items():
        (folder / name).write_bytes(content)
    (tmp_path / "secret.png").write_bytes(encoded(NOISY, "PNG"))
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "link out.png").symlink_to(tmp_path / "secret.png")
    (folder / "link to zero.png").symlink_to("/dev/zero")
    (folder / "link to nothing.png").symlink_to(folder / "nobody.png")
    monkeypatch.chdir(folder)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    names = [*REFUSED, *USED, *NEVER_OPENED]
    (folder / "captions.json").write_text(json.dumps(dict.fromkeys(names, "a thing")))
    return folder


def test_every_file_is_used_or_refused_as_listed(folder):
    assert len(REFUSED) + len(USED) + len(NEVER_OPENED) > 50
    started = time.process_time()
    report, usable = check(folder)
    assert time.process_time() - started < 10
    assert {example.path.name for example in usable} == set(USED)
    assert {line.split(": ")[0] for line in report.unreadable} == set(REFUSED)
    assert {line.split('"')[1] for line in report.missing} == set(NEVER_OPENED)
    assert set(report.animated) == {"moving.gif", "moving.webp", "moving.png"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name, folder):
    started = time.process_time()
    with pytest.raises(BadImage, match=REFUSED[name][1]) as caught:
        decode(folder / name)
    assert str(caught.value).isprintable() and time.process_time() - started < 2


@pytest.mark.parametrize("name", USED, ids=ascii)
def test_what_is_used_shows_what_it_should(name, folder):
    _, mean, tolerance = USED[name]
    assert np.asarray(decode(folder / name)).mean() == pytest.approx(mean, abs=tolerance)


@pytest.mark.parametrize("name", ["pipe.png", "socket.png", "folder.png", "link to zero.png", "link to nothing.png"])
def test_what_is_no_file_is_never_waited_for(name, folder):
    with pytest.raises(BadImage):
        decode(folder / name)


def growth_of(work):
    """Return by how many MB the peak memory grows while a child process works."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            work()
        finally:
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
            os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reading, 20)) / 1000


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_bombs_cost_no_memory_and_the_measure_would_tell(tmp_path, monkeypatch):
    for side in (9000, 12_000, 20_000):
        (tmp_path / f"{side}.png").write_bytes(bomb(side, side))

    def refuse_all():
        for side in (9000, 12_000, 20_000):
            with pytest.raises(BadImage):
                decode(tmp_path / f"{side}.png")

    assert growth_of(refuse_all) < 50
    monkeypatch.setattr(images_module, "MAX_PIXELS", 10**9)
    assert growth_of(lambda: decode(tmp_path / "9000.png")) > 150


def test_without_the_list_of_formats_every_decoder_would_be_tried(tmp_path, monkeypatch):
    (tmp_path / "icon.png").write_bytes(REFUSED["icon.png"][0])
    monkeypatch.setattr(images_module, "FORMATS", None)
    assert decode(tmp_path / "icon.png").size == (16, 16)


def test_without_the_checksums_damaged_pixels_would_be_taken(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(REFUSED["damaged sum.png"][0])
    monkeypatch.setattr(images_module, "_check_sums", lambda path: None)
    assert decode(tmp_path / "a.png").size == (17, 13)


@pytest.fixture
def build(tiny_model, tmp_path):
    """Return a function that fills a cache from four images, while something happens to one of them."""

    def build(**settings):
        (tmp_path / "few").mkdir(exist_ok=True)
        for number in range(4):
            (tmp_path / "few" / f"{number}.png").write_bytes(encoded(LARGE.rotate(90 * number), "PNG"))
        (tmp_path / "few" / "captions.json").write_text(json.dumps({f"{n}.png": f"number {n}" for n in range(4)}))
        _, examples = check(tmp_path / "few")
        config = DataConfig(resolution=16, **settings)
        return cache.build(examples, tiny_model.vae, tiny_model.text_encoder, tmp_path / "cache", config)

    return build


@pytest.mark.parametrize("when", ["before it is read", "after it is read"])
def test_an_image_deleted_while_the_cache_is_filled_is_named_or_left_out(when, build, tmp_path, monkeypatch):
    victim, whole = tmp_path / "few" / "2.png", cache.read_image

    def read(path, **options):
        if path == victim and when.startswith("before"):
            victim.unlink(missing_ok=True)
        image = whole(path, **options)
        if path == victim:
            victim.unlink()
        return image

    monkeypatch.setattr(cache, "read_image", read)
    with pytest.raises(BadImage, match=r"2\.png: does not exist"):
        build()
    with pytest.warns(cache.ImageSkipped, match=r"2\.png is left out"):
        store = build(skip_bad=True)
    assert [example.path.name for example in store.examples] == ["0.png", "1.png", "3.png"]


def test_nothing_that_happens_to_the_images_afterwards_disturbs_a_run(build, tmp_path):
    store = build()
    before = store.batch(np.arange(4), np.arange(4), seed=3)
    for path in (tmp_path / "few").glob("*.png"):
        path.unlink() if path.stem in "01" else path.write_bytes(b"replaced")
    after = store.batch(np.arange(4), np.arange(4), seed=3)
    assert before.latents.equal(after.latents) and before.text.hidden_states.equal(after.text.hidden_states)


@pytest.mark.slow
def test_a_hundred_thousand_mutations_never_raise_anything_else(tmp_path):
    draw, path = np.random.default_rng(17), tmp_path / "mutated"
    seeds = [content for content, *_ in (REFUSED | USED).values() if 0 < len(content) < 10_000]
    for number in range(100_000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(draw.integers(1, 9)):
            data[draw.integers(len(data))] = draw.integers(256)
        path.write_bytes(data if number % 3 else data[: draw.integers(len(data))])
        try:
            assert decode(path).mode == "RGB"
        except BadImage as error:
            assert str(error).isprintable()
