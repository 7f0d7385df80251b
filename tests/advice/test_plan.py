"""A forecast agrees with the run that it is a forecast of."""

import hashlib

import pytest

from t2im import cache
from t2im.advice import plan as module
from t2im.advice.plan import images_to_train_on, latents_bytes, plan, run_length, text_bytes
from t2im.config import Config
from t2im.data import captions
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import ConfigError, UsageError
from t2im.recipe import load_config
from t2im.training import choice
from t2im.training.at_hand import text_encoder_at_hand, vae_at_hand
from t2im.training.denoiser import read_unet_checkpoint
from t2im.training.run import train, with_length

QUICK = ("training.batch_size=4", "training.evaluations=1", "sampling.num_inference_steps=2", "data.heldout=0.1")
CLIP = tuple(
    f"clip.{name}={value}"
    for name, value in {
        "vocab_size": 540,
        "width": 8,
        "heads": 2,
        "layers": 1,
        "vision_width": 8,
        "vision_heads": 2,
        "vision_layers": 1,
        "image_size": 16,
    }.items()
)


def state_of(folder):
    return {path: path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}


def test_a_forecast_agrees_with_its_run(colours, encoders, unet_settings, tmp_path):
    settings = (*unet_settings, *QUICK)
    before = state_of(tmp_path)
    forecast = plan(colours, output=tmp_path / "out", settings=settings, epochs=2, device="cpu", **encoders)
    assert state_of(tmp_path) == before, "a plan writes nothing"

    run = train(colours, output=tmp_path / "out", settings=settings, epochs=2, device="cpu", quiet=True, **encoders)
    state = read_unet_checkpoint(run.checkpoint)
    assert forecast.parameters["UNet"] == sum(state["model"][name].numel() for name in state["model"])
    assert forecast.steps == run.steps
    assert forecast.training_images == state["data"]["train"]
    assert forecast.checkpoint_bytes == pytest.approx(
        run.checkpoint.stat().st_size, rel=0.5
    )  # file names weigh more here
    assert forecast.captions == 24 and forecast.images == 12
    assert forecast.copying.risk == "high"
    assert forecast.flops_per_step == 4 * forecast.flops_per_sample > 0
    assert {stage.name for stage in forecast.stages} == {"encode once", "train the UNet", "evaluate and draw"}
    assert forecast.tried.batch_size == 4


def test_encoders_that_are_missing_are_planned_for(colours, unet_settings, tmp_path):
    settings = (*unet_settings, *QUICK, *CLIP, "vae.block_out_channels=(8,8)", "vae_training.steps=997")
    forecast = plan(
        colours, output=tmp_path, settings=settings, steps=3, vae="train", text_encoder="train", device="cpu"
    )
    named = {stage.name: stage for stage in forecast.stages}
    assert "997 steps" in named["train a VAE"].how
    assert named["train a VAE"].seconds > 0 and named["train a text encoder"].seconds > 0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", ["attend", "mask"])
def test_the_cache_is_as_large_as_said(flip, padding, colours, tiny_model, build_model, tmp_path):
    encoder = build_model(padding=padding).text_encoder
    config = load_config(settings=("data.resolution=16", f"data.horizontal_flip={flip}"))
    examples = captions.read(colours)
    store = cache.build(examples, tiny_model.vae, encoder, tmp_path / "cache", config.data)

    def written(kind):
        paths = list((tmp_path / "cache").glob(f"{kind}-*/*/*.npy"))
        return sum(path.stat().st_size for path in paths) - 128 * len(paths)  # .npy files begin with 128 bytes

    different = sorted({caption for example in examples for caption in example.captions} | {""})
    latents = latents_bytes(len(examples), store.latent_shape, mirrored=flip)
    ends = 8 * len(list((tmp_path / "cache").glob("latents-*/*/offsets.npy")))
    assert written("latents") == latents + ends
    assert written("text") == text_bytes(different, encoder) + 8


def test_the_encoders_at_hand_are_those_that_train_takes(colours, encoders, tiny_model, tmp_path, monkeypatch):
    examples = captions.read(colours)
    trained = tiny_model.vae, tiny_model.text_encoder
    monkeypatch.setattr(choice, "train_vae", lambda *arguments, **options: trained[0])
    monkeypatch.setattr(choice, "train_clip", lambda *arguments, **options: trained[1])
    output = tmp_path / "out"
    for psnr, pieces in ((0.1, 100.0), (99.0, 0.1)):
        config = load_config(
            settings=(
                "data.resolution=16",
                f"vae_training.good_enough_psnr={psnr}",
                f"clip_training.good_enough_pieces={pieces}",
            )
        )
        for wanted in ("auto", encoders["vae"], "train"):
            chosen = choice.vae_for(wanted, examples, (), config, output, lambda text: None)
            assert (vae_at_hand(wanted, examples, config, output).vae is None) == (chosen is trained[0])
            encoder = choice.text_encoder_for(wanted, examples, (), config, output, lambda text: None)
            assert (text_encoder_at_hand(wanted, examples, config, output).encoder is None) == (encoder is trained[1])


def test_encoders_in_the_output_come_first(colours, tiny_model, tmp_path):
    config = load_config(
        settings=(
            "data.resolution=16",
            "vae_training.good_enough_psnr=0.1",
            "clip_training.good_enough_pieces=100",
        )
    )
    tiny_model.vae.save(tmp_path / "encoders" / "vae")
    tiny_model.text_encoder.save(tmp_path / "encoders")
    examples = captions.read(colours)
    found = vae_at_hand("auto", examples, config, tmp_path)
    assert found.whitened and found.why.startswith("the one in this output")
    assert found.vae.sha256 == VAE.load(tmp_path / "encoders" / "vae").sha256
    encoder = text_encoder_at_hand("auto", examples, config, tmp_path).encoder
    assert encoder.sha256 == TextEncoder.load(tmp_path / "encoders").sha256


def test_of_many_large_images_the_share_is_taken_without_reading_them(colours, tmp_path, monkeypatch):
    examples = captions.read(colours) * 10
    monkeypatch.setattr(module, "READ_BYTES", 0)
    monkeypatch.setattr(module, "hashes_of_files", None)
    assert images_to_train_on(examples, Config(), tmp_path) == 108
    assert images_to_train_on(examples, load_config(settings=("data.heldout=0",)), tmp_path) == 120


def test_a_length_is_given_once_and_replaces_the_recipes():
    config = load_config(settings=("training.steps=9",))
    assert with_length(config, 7, None, None).training.steps is None
    assert with_length(config, None, None, None) is config
    with pytest.raises(UsageError, match="epochs and minutes both say"):
        with_length(config, 1, None, 2.0)


def test_minutes_become_samples_at_the_measured_speed():
    config = load_config(settings=("training.minutes=2", "training.batch_size=10"))
    assert run_length(config, 1_000, samples_per_second=50.0, evaluating=20.0) == 5_000


def test_a_wrong_setting_is_named_before_anything_is_tried(colours):
    with pytest.raises(ConfigError, match="batch_size"):
        plan(colours, settings=("training.batch_sise=3",))
