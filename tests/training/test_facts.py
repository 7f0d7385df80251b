from pathlib import Path

import numpy as np
import pytest
import torch

from t2im.batches import Store
from t2im.config import Config
from t2im.content import digests
from t2im.data.captions import Example
from t2im.diffusion.schedule import Schedule
from t2im.recipe import load_config
from t2im.training import facts
from t2im.training.facts import card_training, data_facts, start_facts
from t2im.training.rhythm import Progress
from t2im.training.split import Split


class Contents(Store):
    def __init__(self, *images):
        self.content = digests(images)


def facts_of(captions, tiny_model, images=None):
    examples = [Example(Path(f"{index}.png"), (caption,)) for index, caption in enumerate(captions)]
    split = Split(examples, np.arange(1, len(examples)), np.arange(1))
    store = Contents(*(images or [str(index).encode() for index in range(len(examples))]))
    return data_facts("photos", split, store, tiny_model.text_encoder, Config())


def test_facts_of_data_are_counted(tiny_model):
    found = facts_of([f"a red apple {index}" for index in range(20)], tiny_model)
    assert (found["name"], found["images"], found["held out"], found["resolution"]) == ("photos", 20, "1 (5.0%)", 64)
    assert found["different captions"] == 20 and found["captions per image"] == 1
    assert len(found["captions"]) == 12 and found["captions"][0] == "a red apple 0"
    assert f"the text encoder reads {tiny_model.text_encoder.context_length}" in found["tokens of a caption"]
    assert found["findings"] == []


def test_what_looks_wrong_is_named(tiny_model):
    long = "owl snow pear " * 40
    found = facts_of(["a cat", "a cat", "a cat", " ", long], tiny_model, images=[b"1", b"2", b"2", b"3", b"2"])
    assert found["findings"] == [
        '3 captions of 5 are the same: "a cat"',
        "1 captions are empty",
        "2 images are copies of others",
        "20.0% of the captions are longer than the text encoder reads; their ends are never seen",
    ]


def test_the_start_holds_all_that_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(facts.sys, "argv", ["bin/t2im", "train", "photos"])
    config = load_config(None, settings=["objective.type=flow", "sampling.scheduler=euler", "training.seed=7"])
    start = start_facts(config, Schedule(config.schedule, "flow"), {"images": 3})
    assert start["command"] == "t2im train photos" and start["data"] == {"images": 3}
    assert start["expected"]["zero"] == pytest.approx(2)
    (tmp_path / "again.toml").write_text(start["settings"])
    assert load_config(str(tmp_path / "again.toml")) == config


def test_a_card_shows_what_came_out_and_how(monkeypatch):
    evaluation = {"heldout_loss": 0.3456789, "heldout_loss_t0": 0.2, "text_gain": 0.25}
    progress = Progress(step=700, samples=7000, epoch=2, seconds=90, skipped_steps=3, evaluation=evaluation)
    card = card_training(load_config(None, settings=["objective.type=v_prediction"]), progress, torch.device("cpu"))
    assert card["heldout_loss"] == 0.34568 and card["text_gain"] == 0.25 and "heldout_loss_t0" not in card
    assert (card["steps"], card["minutes"], card["skipped_steps"]) == (700, 1.5, 3)
    assert card["prediction_type"] == "v_prediction" and card["precision"] == "fp32"
    assert card["optimizer"] == "adamw, learning rate 0.001, cosine"
    assert torch.__version__.split("+")[0] in card["versions"]
    assert all(isinstance(value, str | int | float) for value in card.values())  # the card's table shows only these
    monkeypatch.setattr(facts, "environment", lambda: {"gpu": "H100", "t2im": "1", "torch": "2"})
    monkeypatch.setattr(facts, "precision_for", lambda wanted, device: "bf16")
    on_gpu = card_training(Config(), progress, torch.device("cuda"))
    assert (on_gpu["hardware"], on_gpu["precision"]) == ("H100", "bf16")
