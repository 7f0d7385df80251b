"""From a folder of captioned images to a model, on a dozen tiny images."""

import hashlib
import json

import pytest
import torch
from PIL import Image

import t2im
from t2im.config import Config
from t2im.errors import BadImage, CaptionError, ModelError, T2IMError, UsageError
from t2im.files import alone_in
from t2im.recipe import load_config
from t2im.training.run import fitted, train, train_part

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange", "cyan", "pink", "grey", "brown")
SETTINGS = (
    "data.resolution=16",
    "data.heldout=0.2",
    "training.batch_size=4",
    "training.evaluations=2",
    "unet.block_out_channels=(8,16)",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=2",
    "unet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
    "unet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')",
    "sampling.num_inference_steps=2",
    "training.learning_rate=0.01",
    "unet.dropout=0.1",
    "unet.addition_embed_type=none",
)
ENCODERS = (
    "vae.block_out_channels=(8,8)",
    "vae_training.steps=3",
    "vae_training.batch_size=4",
    "vae.latent_channels=3",
    "clip.vocab_size=540",
    "clip.width=8",
    "clip.heads=2",
    "clip.layers=1",
    "clip.vision_width=8",
    "clip.vision_heads=2",
    "clip.vision_layers=1",
    "clip.image_size=16",
    "clip_training.steps=3",
    "clip_training.batch_size=4",
)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "photos" / "images"
    images.mkdir(parents=True)
    captions = {}
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + number, 16), colour).save(images / f"{colour}.png")
        captions[f"{colour}.png"] = [f"a {colour} picture", f"all {colour}"]
    (images.parent / "captions.json").write_text(json.dumps(captions))
    return images.parent


@pytest.fixture
def encoders(tiny_model, tmp_path):
    tiny_model.vae.save(tmp_path / "encoders" / "vae")
    tiny_model.text_encoder.save(tmp_path / "encoders")
    return {"vae": str(tmp_path / "encoders"), "text_encoder": str(tmp_path / "encoders")}


def quick(folder, output, **options):
    return train(folder, output=output, settings=options.pop("settings", SETTINGS), quiet=True, device="cpu", **options)


def weights(model):
    return torch.cat([p.flatten() for p in model.unet.parameters()])


def test_a_folder_becomes_a_model_that_draws(folder, encoders, tmp_path):
    run = quick(folder, tmp_path / "out", epochs=3, **encoders)
    assert run.finished and run.epochs == 3 and run.checkpoint.name == "checkpoint_epoch_3.pt"
    assert run.heldout_loss == pytest.approx(1.0, abs=0.5)
    model = t2im.load(run.model)
    assert model("a red picture", seed=1).image.size == (16, 16)
    assert torch.equal(weights(model), weights(t2im.load(run.checkpoint)))
    images = t2im.generate_images_direct(run.checkpoint, device="cpu", num_images=1, seed=3)
    assert images[0].size == (16, 16)
    previews = sorted((tmp_path / "out" / "previews").iterdir())
    assert len(previews) == 2
    with Image.open(previews[0]) as preview:
        assert preview.width > 16
    assert "heldout_loss" in model.facts.training and model.facts.data["images"] == 12


def test_training_only_reads_the_users_folder(folder, encoders, tmp_path):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.rglob("*")
        }

    before = state()
    quick(folder, tmp_path / "out", steps=1, **encoders)
    assert state() == before


def test_ten_steps_are_five_and_resume_and_five_to_the_bit(folder, encoders, tmp_path):
    whole = quick(folder, tmp_path / "whole", steps=10, settings=(*SETTINGS, "training.schedule=constant"), **encoders)
    quick(folder, tmp_path / "parts", steps=5, settings=(*SETTINGS, "training.schedule=constant"), **encoders)
    resumed = quick(folder, tmp_path / "parts", steps=10, settings=(), resume=True)
    first, second = (torch.load(run.checkpoint, weights_only=True) for run in (whole, resumed))
    assert first["progress"]["step"] == second["progress"]["step"] == 10
    for part in ("unet", "ema"):
        for name, value in first[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[part][name])), name
    assert first["optimizer"]["state"][0]["exp_avg"].equal(second["optimizer"]["state"][0]["exp_avg"])


def test_the_same_command_with_resume_goes_on_and_a_changed_setting_is_refused(folder, encoders, tmp_path):
    quick(folder, tmp_path / "out", steps=1, **encoders)
    assert quick(folder, tmp_path / "out", steps=2, resume=True, **encoders).steps == 2
    with pytest.raises(UsageError, match=r"training.batch_size \(was 4, now 8\)"):
        quick(folder, tmp_path / "out", steps=3, resume=True, settings=(*SETTINGS, "training.batch_size=8"), **encoders)


def test_a_finished_run_is_not_overwritten(folder, encoders, tmp_path):
    quick(folder, tmp_path / "out", steps=1, **encoders)
    with pytest.raises(UsageError, match=r"holds a run .*--resume"):
        quick(folder, tmp_path / "out", steps=1, **encoders)


def test_two_runs_cannot_share_an_output(folder, encoders, tmp_path):
    (tmp_path / "out").mkdir()
    with alone_in(tmp_path / "out", "training there"), pytest.raises(T2IMError, match=r"process \d+ is training there"):
        quick(folder, tmp_path / "out", steps=1, **encoders)


def test_encoders_are_trained_where_there_are_none_and_found_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("t2im.training.at_hand.builtin_folder", no_model)
    run = quick(folder, tmp_path / "out", steps=1, settings=(*SETTINGS, *ENCODERS))
    assert run.finished
    vae = t2im.load(run.model).vae
    assert vae.latent_channels == 3
    assert vae.module.config["scaling_factor"] == 1.0
    assert (tmp_path / "out" / "vae_training" / "side_by_side.png").is_file()


def test_a_part_trained_alone_is_used_by_the_next_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("t2im.training.at_hand.builtin_folder", no_model)
    settings = (*SETTINGS, *ENCODERS, "vae_training.good_enough_psnr=0.1", "clip_training.good_enough_pieces=99")
    for part in ("vae", "clip"):
        assert train_part(part, folder, output=tmp_path / "out", settings=settings, quiet=True, device="cpu").is_dir()
    before = t2im_vae(tmp_path / "out")
    said = []
    monkeypatch.setattr("t2im.training.report.Report.say", lambda self, text: said.append(text))
    quick(folder, tmp_path / "out", steps=1, settings=settings)
    assert t2im_vae(tmp_path / "out") == before
    assert any(line.startswith("VAE: the one in this output; its round trip") for line in said)


def no_model():
    raise ModelError("there is no built-in model")


def t2im_vae(output):
    return hashlib.sha256(
        (output / "encoders" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    ).hexdigest()


def test_poor_encoders_are_trained_anew_and_the_reason_is_said(folder, encoders, tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr("t2im.training.at_hand.builtin_folder", lambda: Path(encoders["vae"]))
    said = []
    monkeypatch.setattr("t2im.training.report.Report.say", lambda self, text: said.append(text))
    quick(folder, tmp_path / "out", steps=1, settings=(*SETTINGS, *ENCODERS, "vae_training.good_enough_psnr=90"))
    assert any("to be trained: the built-in one keeps" in line and "of 90 wanted" in line for line in said)
    assert any("pieces for a word" in line for line in said)


def test_an_unreadable_image_stops_before_anything_is_trained(folder, encoders, tmp_path):
    (folder / "images" / "red.png").write_bytes((folder / "images" / "red.png").read_bytes()[:40])
    with pytest.raises(BadImage, match=r"red.png.*--skip-bad"):
        quick(folder, tmp_path / "out", steps=1, **encoders)
    run = quick(folder, tmp_path / "out", steps=1, settings=(*SETTINGS, "data.skip_bad=true"), **encoders)
    assert t2im.load(run.model).facts.data["images"] == 11


def test_a_typo_in_the_captions_names_the_nearest_image(folder, encoders, tmp_path):
    (folder / "captions.json").write_text(json.dumps({"redd.png": "a red picture"}))
    with pytest.raises(CaptionError, match=r'redd.png.*did you mean "(images/)?red.png"'):
        quick(folder, tmp_path / "out", steps=1, **encoders)


def test_two_budgets_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="epochs and steps both say how long"):
        quick(folder, tmp_path / "out", steps=1, epochs=1)


def test_a_resolution_that_the_levels_cannot_halve_is_refused(tiny_model):
    config = load_config(settings=("data.resolution=20",))
    with pytest.raises(ModelError, match=r"10 cells a side, which 3 UNet levels cannot halve. Take a multiple of 8"):
        fitted(config, tiny_model.vae, tiny_model.text_encoder)


def test_the_encoders_decide_the_unets_border(tiny_model):
    unet = fitted(Config(), tiny_model.vae, tiny_model.text_encoder).unet
    assert (unet.sample_size, unet.in_channels, unet.out_channels, unet.cross_attention_dim) == (32, 3, 3, 10)


def test_an_encoder_that_was_exchanged_is_noticed_on_resume(folder, encoders, build_model, tmp_path):
    quick(folder, tmp_path / "out", steps=1, **encoders)
    build_model(seed=6).vae.save(tmp_path / "out" / "encoders" / "vae")
    with pytest.raises(ModelError, match="its vae is not the one this run began with"):
        quick(folder, tmp_path / "out", steps=2, resume=True, settings=())


def test_changed_data_is_said_on_resume(folder, encoders, tmp_path, monkeypatch):
    quick(folder, tmp_path / "out", steps=1, **encoders)
    captions = json.loads((folder / "captions.json").read_text())
    (folder / "captions.json").write_text(json.dumps(captions | {"red.png": "another red"}))
    said = []
    monkeypatch.setattr("t2im.training.report.Report.say", lambda self, text: said.append(text))
    quick(folder, tmp_path / "out", steps=2, resume=True, settings=())
    assert any("have changed since the checkpoint" in line for line in said)


def test_heldout_images_are_never_trained_on(folder, encoders, tmp_path):
    from t2im.batches import split
    from t2im.content import hashes_of_files
    from t2im.data import captions

    examples = captions.read(folder)
    train_set, heldout = split(hashes_of_files([e.path for e in examples], tmp_path / "index"), 0.2)
    assert len(heldout) and not set(train_set) & set(heldout) and len(train_set) + len(heldout) == 12
    run = quick(folder, tmp_path / "out", steps=1, **encoders)
    data = t2im.load(run.model).facts.data
    assert (data["train"], data["heldout"]) == (len(train_set), len(heldout))


def test_as_many_checkpoints_stay_as_the_settings_say(folder, encoders, tmp_path):
    settings = (*SETTINGS, "training.checkpoint_epochs=1", "training.keep_checkpoints=2")
    quick(folder, tmp_path / "out", epochs=4, settings=settings, **encoders)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pt")) == [
        "best.pt",
        "checkpoint_epoch_3.pt",
        "checkpoint_epoch_4.pt",
    ]


def test_a_small_folder_holds_out_a_tenth_at_most_and_none_if_asked(tmp_path):
    from t2im.training.split import read_split

    folder = tmp_path / "grey"
    folder.mkdir()
    for shade in range(120):
        Image.new("L", (16, 16), shade).save(folder / f"{shade}.png")
        (folder / f"{shade}.txt").write_text("a grey square")
    said = []
    data = [
        read_split(
            folder, load_config(settings=(f"data.heldout={share}",)), tmp_path / "out", said.append, check_images=False
        )
        for share in (0.02, 0.0)
    ]
    assert 4 <= len(data[0].heldout) <= 24 and len(data[1].heldout) == 0
