"""Checkpoints made to do harm: none of them runs a line of code, and none is taken for what it is not."""

import copy
import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile

import pytest
import torch

from t2im import weights
from t2im.checkpoint import read_checkpoint, write_checkpoint
from t2im.errors import ModelError
from t2im.model import TextToImage
from t2im.training.checkpoint import Checkpoints, read_state, write_state

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be verified")
noticed: list[str] | None = None
DEEDS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "ctypes.", "shutil.")


def _listen(event, arguments):
    if noticed is None:
        return
    strange = event == "exec" and getattr(arguments[0], "co_filename", "") == "<string>"
    written = event == "open" and "marker" in str(arguments[0])
    if event.startswith(DEEDS) or strange or written:
        noticed.append(f"{event} {arguments}")


sys.addaudithook(_listen)


@pytest.fixture
def watched(monkeypatch):
    """Watch what the interpreter does, and return the list of what no reader of files may do."""
    monkeypatch.setitem(globals(), "noticed", [])
    return noticed


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Rebuilt:
    """Pickles to an object of a class that torch does not know, whose state is set by the class itself."""

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        open(state["marker"], "w").close()


def saved(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def zipped(entries, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def entries_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_pickle(pickled):
    """A file in the form of torch.save whose pickle is this one."""
    return zipped({**entries_of(saved({"a": torch.zeros(2)})), "archive/data.pkl": pickled})


def script():
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against scripts
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), stream)
    return stream.getvalue()


def tarred(pickled):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    return stream.getvalue()


def touching(marker):
    return f"open({str(marker)!r}, 'w').close()"


HARM = {
    "os.system": lambda m: saved({"unet": Calls(os.system, f"touch {m}")}),
    "eval": lambda m: saved({"unet": Calls(eval, touching(m))}),
    "exec": lambda m: saved({"unet": Calls(exec, touching(m))}),
    "open": lambda m: saved({"unet": Calls(open, str(m), "w")}),
    "subprocess": lambda m: saved([Calls(subprocess.Popen, ["touch", str(m)])]),
    "getattr": lambda m: saved(Calls(getattr, int, "from_bytes")),
    "as a key": lambda m: saved({Calls(os.mkdir, str(m)): 1}),
    "torch.load again": lambda m: saved({"unet": Calls(torch.load, str(m))}),
    "__setstate__": lambda m: saved({"unet": Rebuilt(str(m))}),
    "a whole module": lambda m: saved(torch.nn.Linear(2, 2)),
    "raw pickle": lambda m: pickle.dumps(Calls(os.system, f"touch {m}")),
    "raw pickle 0": lambda m: pickle.dumps(Calls(os.system, f"touch {m}"), protocol=0),
    "older form": lambda m: saved({"unet": Calls(os.system, f"touch {m}")}, _use_new_zipfile_serialization=False),
    "oldest form": lambda m: tarred(pickle.dumps(Calls(os.system, f"touch {m}"))),
    "zip in a zip": lambda m: zipped({"archive/data.pkl": saved(Calls(os.system, f"touch {m}"))}),
    "zip behind a pickle": lambda m: pickle.dumps(Calls(os.system, f"touch {m}")) + saved({"a": 1}),
    "two pickles": lambda m: zipped({
        **entries_of(saved({"a": 1})), "b/data.pkl": pickle.dumps(Calls(os.system, f"touch {m}")),
    }),
    "compressed": lambda m: zipped(entries_of(saved(Calls(os.system, f"touch {m}"))), zipfile.ZIP_DEFLATED),
    "by extension registry": lambda m: with_pickle(b"\x80\x02\x82\x01."),
    "by stack global": lambda m: with_pickle(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."),
    "by inst": lambda m: with_pickle(b"(S'true'\nios\nsystem\n."),
    "7z": lambda m: b"7z\xbc\xaf\x27\x1c" + bytes(64),
    "torchscript": lambda m: script(),
    "pt2": lambda m: zipped({"m/archive_format": "pt2", "m/version": "0", "m/models/model.json": "{}"}),
    "python": lambda m: f"import os; {touching(m)}".encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", HARM)
@pytest.mark.parametrize("read", [read_checkpoint, read_state, TextToImage.load], ids=["checkpoint", "state", "model"])
def test_no_file_runs_code(name, read, tmp_path, watched):
    path, marker = tmp_path / "c.pt", tmp_path / "marker"
    path.write_bytes(HARM[name](marker))
    with pytest.raises(ModelError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert watched == [] and not marker.exists()


@pytest.mark.parametrize("name", ["os.system", "raw pickle", "__setstate__"])
def test_the_best_checkpoint_is_looked_at_without_running_it(name, tmp_path, watched):
    (tmp_path / "best.pt").write_bytes(HARM[name](tmp_path / "marker"))
    assert Checkpoints(tmp_path, write_state, read_state, best_by="x").is_best({"x": 3.0})
    assert watched == [] and not (tmp_path / "marker").exists()


def test_the_watch_would_notice(tmp_path, watched, monkeypatch):
    """Without the two fences the payload runs, and both the list and the marker tell."""
    (tmp_path / "c.pt").write_bytes(HARM["os.system"](tmp_path / "marker"))
    trusting = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: trusting(path, **options | {"weights_only": False}))
    weights.read_pickled(tmp_path / "c.pt")
    assert (tmp_path / "marker").exists() and watched


def test_without_the_form_that_is_asked_for_an_old_file_would_be_unpickled(tmp_path, monkeypatch):
    content = saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ModelError, match="no zip file"):
        weights.read_pickled(tmp_path / "c.pt")
    monkeypatch.setattr(weights, "_require_plain_archive", lambda path: None)
    assert set(weights.read_pickled(tmp_path / "c.pt")) == {"a"}


def nested(depth):
    value = [1]
    for _ in range(depth):
        value = [value]
    return value


def holding_itself():
    value = []
    value.append(value)
    return value


def doubling(times):
    value = [1, 2]
    for _ in range(times):
        value = [value, value]
    return value


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still read
        return torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)


def invalid_sparse():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in beta
        indices = torch.tensor([0, 5, 1]), torch.tensor([9, 9])
        return torch.sparse_csr_tensor(*indices, torch.ones(2), (2, 2), check_invariants=False)


STRANGE = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "invalid sparse": invalid_sparse,
    "quantized": quantized,
    "meta": lambda: torch.zeros(3, device="meta"),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "float8": lambda: torch.zeros(3, dtype=torch.float8_e4m3fn),
    "one number a trillion times": lambda: torch.zeros(1).expand(10**12),
    "one storage under many names": lambda: [torch.zeros(50_000)] * 9,
    "too deep": lambda: nested(80),
    "a list that holds itself": holding_itself,
    "2^40 lists": lambda: doubling(40),
    "too many values": lambda: list(range(300_000)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_sound_pickle_of_something_strange_is_refused_in_a_moment(name, tmp_path):
    torch.save({"format": "t2im-checkpoint", "schema": 2, "unet": {"w": STRANGE[name]()}}, tmp_path / "c.pt")
    started = time.process_time()
    with pytest.raises(ModelError, match=r"no dense tensor|larger than the file|more than 200,000 values"):
        weights.read_pickled(tmp_path / "c.pt")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archive/data/0": b""}, "not a checkpoint, or a damaged one"),
        ({"archive/data.pkl": b""}, "not a checkpoint, or a damaged one"),
        ({"archive/data.pkl": b"\x80\x02" + b"(" * (weights.MAX_PICKLE + 1)}, "more than 20,000,000 bytes"),
        ({"archive/more.pkl": b"."}, "another kind"),
    ],
    ids=["no storage", "no pickle", "large pickle", "more pickles"],
)
def test_an_archive_with_strange_entries_is_refused(change, message, tmp_path):
    content = entries_of(saved({"a": torch.zeros(2)}))
    assert change.keys() & content.keys() or "archive/more.pkl" in change
    (tmp_path / "c.pt").write_bytes(zipped({**content, **change}))
    with pytest.raises(ModelError, match=message):
        weights.read_pickled(tmp_path / "c.pt")


def test_a_bomb_is_not_unpacked(tmp_path):
    entries = {**entries_of(saved({"a": torch.zeros(2)})), "archive/data/0": bytes(50_000_000)}
    (tmp_path / "c.pt").write_bytes(zipped(entries, zipfile.ZIP_DEFLATED))
    assert (tmp_path / "c.pt").stat().st_size < 60_000
    with pytest.raises(ModelError, match="compressed"):
        weights.read_pickled(tmp_path / "c.pt")


NAME = "conv_in.bias"
WRONG = {
    "a name too many": lambda state: state["unet"].update(extra=torch.zeros(1)),
    "20,000 names": lambda state: state["unet"].update({f"x{i}": 0 for i in range(20_000)}),
    "a name too few": lambda state: state["unet"].pop(NAME),
    "a number as name": lambda state: state["unet"].update({5: torch.zeros(1)}),
    "a name of two lines": lambda state: state["unet"].update({"a\nb": torch.zeros(1)}),
    "another shape": lambda state: state["unet"].update({NAME: torch.zeros(99)}),
    "another type": lambda state: state["unet"].update({NAME: torch.zeros(8, dtype=torch.int64)}),
    "no tensor": lambda state: state["unet"].update({NAME: [0.0] * 8}),
    "not finite": lambda state: state["unet"].update({NAME: torch.full((8,), float("nan"))}),
    "averages not finite": lambda state: state["ema"].update({NAME: torch.full((8,), float("inf"))}),
    "optimizer not finite": lambda state: state["optimizer"].update(x=[{"y": torch.tensor(float("-inf"))}]),
    "no weights": lambda state: state.update(unet={}),
    "weights of a list": lambda state: state.update(unet=[1]),
    "a billion layers": lambda state: state["config"]["unet"].update(layers_per_block=10**9),
    "a trillion channels": lambda state: state["config"]["unet"].update(cross_attention_dim=10**12),
    "a setting of tensors": lambda state: state["config"].update(unet={"in_channels": torch.zeros(3)}),
    "a configuration of lists": lambda state: state.update(config={"unet": [[1]], 5: 6}),
    "encoders without a folder": lambda state: state["encoders"].update(vae={}),
    "encoders elsewhere": lambda state: state["encoders"]["vae"].update(folder="../../elsewhere"),
    "encoders anywhere": lambda state: state["encoders"]["vae"].update(folder="/"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_with_the_wrong_content_is_refused(name, tiny_state, tmp_path):
    state = copy.deepcopy(tiny_state)
    WRONG[name](state)
    torch.save({"format": "t2im-checkpoint", "schema": 2, **state}, tmp_path / "c.pt")
    started = time.process_time()
    with pytest.raises(ModelError) as caught:
        read_checkpoint(tmp_path / "c.pt")
    assert str(caught.value).isprintable() and time.process_time() - started < 2


def test_a_checksum_file_of_garbage_is_a_damaged_checkpoint(tiny_state, tmp_path):
    write_checkpoint(tmp_path / "c.pt", tiny_state)
    for garbage in (b"", b"\xff\xfe\0", b"no\n" * 1000):
        (tmp_path / "c.pt.sha256").write_bytes(garbage)
        with pytest.raises(ModelError, match="checksum"):
            read_checkpoint(tmp_path / "c.pt")


def test_a_thousand_mutations_are_read_or_are_model_errors(tiny_state, tmp_path):
    """Bytes of the pickle and of the zip's directory are changed rather than those of the tensors: that is where code is."""
    draw, path = random.Random(11), tmp_path / "c.pt"
    whole = saved({"a": torch.arange(6.0), "b": [{"c": (1, 2.5, "text", None, True)}], "d": torch.zeros(2, 2)})
    start = whole.index(b"\x80\x02")
    refused = 0
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            low, high = draw.choice(((start, start + 400), (len(whole) - 700, len(whole)), (0, len(whole))))
            content[draw.randrange(low, min(high, len(whole)))] = draw.randrange(256)
        path.write_bytes(content[: len(content) if draw.random() < 0.9 else draw.randrange(len(content))])
        try:
            weights.read_pickled(path)
        except ModelError as error:
            refused += 1
            assert str(error).isprintable() and str(path) in str(error)
    assert refused > 500
