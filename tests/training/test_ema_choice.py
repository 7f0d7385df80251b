"""On a finished run of a dozen tiny images: averages are compared, drawn side by side, and the best becomes a model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import t2im
from t2im.errors import UsageError
from t2im.training import ema_choice
from t2im.training.ema_choice import RUN_FILE, choose, draw_strip
from t2im.training.ema_snapshots import FOLDER, series
from t2im.training.posthoc import reconstruct
from t2im.training.run import train
from t2im.training.split import Split

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange", "cyan", "pink", "grey", "brown")
SETTINGS = (
    "data.resolution=16",
    "data.heldout=0.2",
    "training.batch_size=4",
    "training.evaluations=1",
    "training.learning_rate=0.01",
    "training.ema_sigmas=(0.05,0.10)",
    "training.ema_snapshots=6",
    "training.preview_prompts=('a red picture','all blue')",
    "unet.block_out_channels=(8,16)",
    "unet.addition_embed_type=none",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=2",
    "unet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
    "unet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')",
    "sampling.num_inference_steps=2",
)


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """Return the images and the output of a run that has ended, and what it said of its own average."""
    base = tmp_path_factory.mktemp("finished")
    images = base / "photos" / "images"
    images.mkdir(parents=True)
    captions = {}
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + number, 16), colour).save(images / f"{colour}.png")
        captions[f"{colour}.png"] = f"a {colour} picture"
    (images.parent / "captions.json").write_text(json.dumps(captions))
    tiny_model.vae.save(base / "encoders" / "vae")
    tiny_model.text_encoder.save(base / "encoders")
    encoders = {"vae": str(base / "encoders"), "text_encoder": str(base / "encoders")}
    run = train(
        images.parent, output=base / "run", settings=SETTINGS, steps=12, quiet=True, device="cpu", seed=3, **encoders
    )
    return images.parent, run


def copy_of(finished, folder):
    images, run = finished
    shutil.copytree(run.output, folder)
    (folder / RUN_FILE).write_text(json.dumps({"folder": str(images)}))
    return folder


def quietly(run, sigmas, **options):
    return choose(run, sigmas, say=lambda text: None, device="cpu", **options)


@pytest.fixture(scope="module")
def choice(finished, tmp_path_factory):
    """Return what came of one comparison; all that it wrote lies in its run's folder."""
    return quietly(copy_of(finished, tmp_path_factory.mktemp("choice") / "run"), [0.04, 0.1])


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """Return a copy of the run's output that a test may change, where measuring takes no time."""

    class Quick:
        def __init__(self, store, examples, schedule):
            assert len(examples)

        def measure(self, unet, device):
            return {"heldout_loss": 0.5}

    monkeypatch.setattr(ema_choice, "HeldOut", Quick)
    return copy_of(finished, tmp_path / "run")


def weights_of(model):
    return {name: parameter for name, parameter in model.unet.named_parameters()}


def test_the_average_with_the_least_heldout_loss_becomes_a_model(choice):
    assert [one.sigma for one in choice.candidates] == [None, None, 0.04, 0.1]
    assert choice.best.loss == min(one.loss for one in choice.candidates if one.sigma is not None)
    assert choice.step == 12 and choice.model.name == "model_ema"
    model = t2im.load(choice.model)
    expected, mixed = reconstruct(series(choice.strip.parent), choice.best.sigma)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(model).items())
    assert mixed.error == choice.best.error
    assert model.facts.training["ema_sigma"] == choice.best.sigma
    assert model.facts.training["heldout_loss"] == pytest.approx(choice.best.loss, abs=1e-5)
    assert model.facts.training["batch_size"] == 4  # what the run's own model tells stays
    assert model("a red picture", seed=1).image.size == (16, 16)


def test_the_runs_own_average_is_measured_as_the_run_measured_it(choice, finished):
    own = next(one for one in choice.candidates if one.name == "the run's average")
    assert own.loss == pytest.approx(finished[1].heldout_loss, rel=1e-5)


def test_every_candidate_is_measured_with_its_own_weights(choice):
    assert len({one.loss for one in choice.candidates}) == len(choice.candidates)


def test_the_strip_has_a_row_for_each_candidate_and_a_column_for_each_prompt(choice):
    with Image.open(choice.strip) as strip:
        assert strip.size == (130 + 2 * 132, 20 + 4 * 132)
    assert choice.strip.parent.name == FOLDER and choice.strip.name == "strip.png"


def test_a_strip_shows_every_picture_in_its_place():
    colours = (("red", "lime"), ("blue", "white"))
    rows = [[Image.new("RGB", (16, 16), colour) for colour in row] for row in colours]
    strip = draw_strip(rows, ["first", "second"], ["a prompt that is far too long for one column", "short"])
    middle = [[strip.getpixel((130 + x * 132 + 64, 20 + y * 132 + 64)) for x in range(2)] for y in range(2)]
    assert middle == [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]


def test_no_model_is_overwritten(run, tmp_path):
    for name in ("model_ema", "precious"):
        (run / name).mkdir()
        (run / name / "note").touch()
    with pytest.raises(UsageError, match=r"precious: exists already. Choose another --output"):
        quietly(run, [0.1], output=run / "precious")
    assert quietly(run, [0.1]).model == run / "model_ema-2"
    assert [path.name for path in (run / "model_ema").iterdir()] == ["note"]


def test_a_place_for_the_model_may_be_named(run, tmp_path):
    assert quietly(run, [0.1], output=tmp_path / "new").model == tmp_path / "new"
    assert not (run / "model_ema").exists()


def test_the_images_may_be_named_where_the_run_does_not_know_them(run, finished):
    (run / RUN_FILE).unlink()
    with pytest.raises(UsageError, match=r"does not tell where its images are. Name their folder with --data"):
        quietly(run, [0.1])
    assert quietly(run, [0.1], folder=finished[0]).model.is_dir()


def test_a_run_without_snapshots_is_refused_at_once(run):
    for path in (run / FOLDER).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UsageError, match=r"training.ema_sigmas=\(0.05,0.10\)"):
        quietly(run, [0.1])


def test_nothing_can_be_chosen_without_heldout_images(run, monkeypatch):
    def all_for_training(*arguments, **options):
        return Split([], np.arange(12), np.arange(0))

    monkeypatch.setattr(ema_choice, "read_split", all_for_training)
    with pytest.raises(UsageError, match=r"no images were held out.*data.heldout above 0"):
        quietly(run, [0.1])
