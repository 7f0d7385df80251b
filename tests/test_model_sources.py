"""Models as older versions and strangers left them: the former load for ever, of the latter only plain data is read."""

import copy
import json
import sys

import pytest
import torch

from t2im.checkpoint import config_of, read_checkpoint
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import ModelError
from t2im.migrate import MOVED
from t2im.model import TextToImage

SINCE_SCHEMA_1 = ("judged_by", "environment")


@pytest.fixture
def older(tiny_state, tiny_model, tmp_path):
    """Return a checkpoint in the form of schema 1, with its encoders beside it."""
    state = copy.deepcopy({key: part for key, part in tiny_state.items() if key not in SINCE_SCHEMA_1})
    for new, old in ((new, old) for old, new in MOVED[2].items()):
        (group, name), (old_group, old_name) = new.split("."), old.split(".")
        state["config"][old_group][old_name] = state["config"][group][name]
    del state["config"]["objective"]
    tiny_model.vae.save(tmp_path / "encoders" / "vae")
    tiny_model.text_encoder.save(tmp_path / "encoders")
    torch.save({"format": "t2im-checkpoint", "schema": 1, **state}, tmp_path / "checkpoint_epoch_1.pt")
    return tmp_path / "checkpoint_epoch_1.pt"


@pytest.mark.filterwarnings("ignore:.*cannot be verified")
def test_a_checkpoint_of_schema_1_loads_and_draws(older, tiny_model):
    checkpoint = read_checkpoint(older)
    assert checkpoint["schema"] == 2 and checkpoint["judged_by"] == {}
    assert config_of(checkpoint, older).objective.type == tiny_model.schedule.prediction_type
    assert TextToImage.load(older).unet.config == tiny_model.unet.config


def test_a_model_folder_of_schema_1_loads_and_one_of_tomorrow_is_refused(tiny_model, tmp_path):
    folder = tiny_model.save(tmp_path / "model")
    about = json.loads((folder / "t2im.json").read_text())
    about.pop("stock_obstacle", None)  # which the first writer of schema 1 did not know
    (folder / "t2im.json").write_text(json.dumps(about | {"schema": 1}))
    assert TextToImage.load(folder).facts.name == "tiny"
    (folder / "t2im.json").write_text(json.dumps(about | {"schema": 2}))
    with pytest.raises(ModelError, match=r"has schema 2, this version reads 1. Update t2im"):
        TextToImage.load(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "unet/../../outside", "C:\\outside"])
def test_a_model_folder_names_no_file_outside_of_it(name, tiny_model, tmp_path):
    folder = tiny_model.save(tmp_path / "model")
    about = json.loads((folder / "t2im.json").read_text())
    (folder / "t2im.json").write_text(json.dumps(about | {"checksums": {name: "0"}}))
    with pytest.raises(ModelError, match=r"leads out of the folder|is an absolute path"):
        TextToImage.load(folder)


def with_code(folder, tmp_path):
    """Put code wherever a library could look for it, and configurations that ask for it."""
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
    for place in (".", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for name in ("pipeline", "modeling", "configuration", "tokenization", "conftest", "__init__", "custom"):
            (folder / place / f"{name}.py").write_text(trap)
    asks = {"auto_map": {"AutoModel": "modeling.Model", "AutoTokenizer": ["tokenization.Tokenizer", None]}}
    asks |= {"custom_pipeline": "pipeline", "trust_remote_code": True}
    for place in ("vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json", "model_index.json"):
        values = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(values | asks))
    (folder / "t2im.json").unlink()  # its checksums would tell


def test_code_beside_a_model_is_never_imported(tiny_model, tmp_path):
    folder = tiny_model.save(tmp_path / "model")
    with_code(folder, tmp_path)
    before = set(sys.modules)
    for load in (TextToImage.load, VAE.load, TextEncoder.load):
        try:
            load(folder)
        except ModelError as error:
            assert str(error).isprintable()
    assert not (tmp_path / "sprung").exists()
    assert not {
        name for name in set(sys.modules) - before if "transformers_modules" in name or "diffusers_modules" in name
    }


@pytest.mark.parametrize(
    ("place", "weights"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_weights_that_are_only_there_as_a_pickle_are_refused(place, weights, tiny_model, tmp_path):
    folder = tiny_model.save(tmp_path / "model")
    (folder / "t2im.json").unlink()
    (folder / place / weights).unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt", "model.ckpt"):
        torch.save({"a": torch.zeros(1)}, folder / place / name)
    with pytest.raises(ModelError, match=rf"{weights} is missing") as caught:
        TextToImage.load(folder)
    assert str(caught.value).isprintable()
