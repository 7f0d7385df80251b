"""Weights in files that a stranger wrote: what is malformed, huge or no number is refused by every reader, at once."""

import json
import os
import random
import resource
import struct
import time

import pytest
import torch
from safetensors.torch import save, save_file

from t2im import weights
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import ModelError
from t2im.nn.unet import ConditionalUNet
from t2im.training.ema_snapshots import series

SOUND = save({"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.float16)}, {"format": "pt"})


def made_of(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(**changes):
    """A file of one tensor, of which something is changed."""
    return made_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}, bytes(8))


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
MANY = b"{" + b",".join(b'"%d":%b' % (i, ENTRY) for i in range(150_000)) + b"}"
MALFORMED = {
    "empty": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "header beyond the end": made_of(b"{}", size=10**6),
    "header of 2^63 bytes": made_of(b"{}", size=2**63),
    "header of 100 MB": made_of(b"{}", bytes(10), size=100_000_000),
    "header of 11 MB": made_of(b"{}" + b" " * 11_000_000),
    "header that is no JSON": made_of(b"{nothing}"),
    "header that is a list": made_of(b"[]"),
    "header that is not UTF-8": made_of(b'{"\xff\xfe": 1}'),
    "header of brackets": made_of(b"[" * 1_000_000),
    "header of braces": made_of(b'{"a":' * 1_000_000),
    "150,000 entries": made_of(MANY, bytes(4)),
    "a key twice": made_of(b'{"a":%b,"a":%b}' % (ENTRY, ENTRY.replace(b"[0,4]", b"[4,8]")), bytes(8)),
    "truncated": SOUND[:-1],
    "trailing bytes": SOUND + b"\0",
    "overlap": made_of(b'{"a":%b,"b":%b}' % (ENTRY, ENTRY), bytes(4)),
    "a hole": made_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "negative offsets": one(data_offsets=[-8, 0]),
    "offsets backwards": one(data_offsets=[8, 0]),
    "offsets beyond the end": one(data_offsets=[0, 16], shape=[4]),
    "a shape that overflows": one(shape=[2**32, 2**32, 2**32]),
    "a negative shape": one(shape=[-2]),
    "another shape": one(shape=[3]),
    "a shape of fractions": one(shape=[2.5]),
    "an unknown type": one(dtype="F99"),
    "a type of half bytes": one(dtype="F4", shape=[16]),
    "complex numbers": one(dtype="C64", shape=[1]),
    "float8": one(dtype="F8_E4M3", shape=[8]),
    "NaN": made_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, struct.pack("<f", float("nan"))),
    "infinity": save({"a": torch.tensor([1.0, float("inf")])}),
    "negative infinity in bfloat16": save({"a": torch.tensor([-float("inf")], dtype=torch.bfloat16)}),
    "a name of two lines": save({"a\nb": torch.zeros(1)}),
    "a name that steers a terminal": save({"\x1b[31m": torch.zeros(1)}),
    "a pickle": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
    "a zip": b"PK\3\4" + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_in_a_second_and_in_little_memory(name, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(MALFORMED[name])
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        weights.read_safetensors(path)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert str(caught.value).isprintable() and str(caught.value).startswith(f"{path}: ")


def test_the_caps_are_just_wide_enough(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(SOUND)
    assert weights.read_safetensors(path).keys() == {"a", "b"}
    assert weights.read_metadata(path) == {"format": "pt"}
    save_file({f"{i}": torch.zeros(1) for i in range(7)}, path, metadata={"about": "seven"})
    monkeypatch.setattr(weights, "MAX_TENSORS", 7)
    assert len(weights.read_safetensors(path)) == 7
    save_file({f"{i}": torch.zeros(1) for i in range(10)}, path)
    with pytest.raises(ModelError, match="11 entries, more than 7"):
        weights.read_safetensors(path)


@pytest.mark.parametrize(("cap", "name"), [("MAX_HEADER", "header of 11 MB"), ("MAX_TENSORS", "150,000 entries")])
def test_without_its_cap_a_header_would_reach_the_parser(cap, name, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(ModelError, match="more than"):
        weights.require_modest(path)
    monkeypatch.setattr(weights, cap, 10**9)
    weights.require_modest(path)


def test_without_the_look_at_the_values_nan_would_be_read(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(MALFORMED["NaN"])
    monkeypatch.setattr(weights, "is_finite", lambda tensor: True)
    assert weights.read_safetensors(path)["a"].isnan().all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "nothing"):
        for read in (weights.read_safetensors, weights.read_metadata):
            with pytest.raises(ModelError, match=f"{name}: cannot be read"):
                read(tmp_path / name)


READERS = {
    "unet": ("unet/diffusion_pytorch_model.safetensors", lambda folder: ConditionalUNet.load(folder / "unet")),
    "vae": ("vae/diffusion_pytorch_model.safetensors", VAE.load),
    "text encoder": ("text_encoder/model.safetensors", TextEncoder.load),
    "snapshots": ("step_00000007_sigma_0.1.safetensors", series),
}


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize("name", ["header of 11 MB", "150,000 entries", "truncated", "a pickle", "a hole", "empty"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_weights_refuses_such_files(reader, name, model_folder):
    place, read = READERS[reader]
    path = model_folder / place
    sound = path.read_bytes() if path.exists() else None
    path.write_bytes(MALFORMED[name])
    try:
        with pytest.raises(ModelError) as caught:
            read(model_folder)
        assert str(caught.value).isprintable() and str(path.parent) in str(caught.value)
    finally:
        path.unlink() if sound is None else path.write_bytes(sound)


@pytest.mark.parametrize("reader", ["unet", "vae", "text encoder"])
def test_no_reader_takes_weights_that_are_not_finite(reader, model_folder):
    place, read = READERS[reader]
    path = model_folder / place
    sound = path.read_bytes()
    read(model_folder)
    path.write_bytes(sound[:-4] + struct.pack("<f", float("nan")))
    try:
        with pytest.raises(ModelError, match="not finite"):
            read(model_folder)
    finally:
        path.write_bytes(sound)


def test_a_thousand_mutations_are_read_or_are_model_errors(tmp_path):
    draw, path = random.Random(13), tmp_path / "w.safetensors"
    refused = 0
    for _ in range(1000):
        content = bytearray(SOUND)
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: len(content) if draw.random() < 0.9 else draw.randrange(len(content))])
        for read in (weights.read_safetensors, weights.read_metadata):
            try:
                read(path)
            except ModelError as error:
                refused += 1
                assert str(error).isprintable() and str(path) in str(error)
    assert refused > 1000
