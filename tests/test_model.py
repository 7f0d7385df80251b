import dataclasses
import json
import shutil

import pytest
import torch
from PIL import ImageChops

from t2im import model as model_module
from t2im.config import SamplingConfig, ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.encoders.text import PromptTooLong
from t2im.encoders.vae import VAE, new_vae
from t2im.errors import ConfigError, ModelError, SamplingError, UsageError
from t2im.infotext import read_settings
from t2im.model import TextToImage
from t2im.networks import VAEConfig
from t2im.nn.unet import ConditionalUNet
from t2im.picture import Picture
from t2im.request import Request

PROMPT = "a blue owl"


def pixels(picture):
    return picture.image.tobytes()


def same(left, right):
    """Whether two pictures are equal up to rounding: a batch multiplies matrices in another order than one image."""
    difference = ImageChops.difference(left.image, right.image)
    return max(highest for _, highest in difference.getextrema()) <= 1


@pytest.fixture
def folder(tiny_model, tmp_path):
    return tiny_model.save(tmp_path / "model")


def test_a_folder_brings_back_the_same_model(tiny_model, folder):
    loaded = TextToImage.load(folder)
    assert pixels(loaded(PROMPT, seed=3)) == pixels(tiny_model(PROMPT, seed=3))
    assert loaded.sampling == tiny_model.sampling
    assert loaded.facts == tiny_model.facts
    assert loaded.schedule.config == tiny_model.schedule.config
    assert len(loaded.sha256) == 64
    assert (
        repr(loaded)
        == f"TextToImage('tiny', {tiny_model.unet.num_parameters():,} parameters in the UNet, 16x16 pixels, on cpu)"
    )


def test_a_folder_holds_safetensors_only(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".md", ".txt"}


def test_a_folder_in_half_precision_is_half_as_large_and_computes_in_single(tiny_model, folder, tmp_path):
    half = tiny_model.save(tmp_path / "half", dtype="float16")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (half / weights).stat().st_size < 0.6 * (folder / weights).stat().st_size
    loaded = TextToImage.load(half)
    assert loaded.unet.conv_in.weight.dtype == torch.float32
    assert torch.equal(loaded.unet.conv_in.weight, tiny_model.unet.conv_in.weight.half().float())


def test_weights_too_large_for_half_precision_are_refused(build_model, tmp_path):
    model = build_model()
    model.unet.conv_in.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(ModelError, match=r'"conv_in\.weight" of unet/ does not fit into fp16'):
        model.save(tmp_path / "half", dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("padding", ["attend", "mask"])
def test_only_what_the_stock_pipeline_can_run_is_announced_to_it(build_model, tmp_path, padding):
    model = build_model(padding=padding)
    folder = model.save(tmp_path / "model")
    assert (folder / "model_index.json").exists() == (model.stock_obstacle is None) == (padding == "attend")
    assert json.loads((folder / "t2im.json").read_text())["stock_obstacle"] == model.stock_obstacle
    assert (str(model.stock_obstacle) in (folder / "README.md").read_text()) == (padding == "mask")
    loaded = TextToImage.load(folder)
    assert loaded.text_encoder.padding == padding
    assert pixels(loaded(PROMPT, seed=3)) == pixels(model(PROMPT, seed=3))


def test_a_folder_for_diffusers_is_refused_with_the_reason(build_model, tmp_path):
    build_model().save(tmp_path / "attends", for_diffusers=True)
    with pytest.raises(UsageError, match=r"tiny: not saved for diffusers, because the UNet reads prompts without"):
        build_model(padding="mask").save(tmp_path / "masks", for_diffusers=True)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("scheduler", ["euler", "heun", "dpm++2m", "unipc"])
def test_a_flow_model_draws_the_same_from_its_folder(build_model, tmp_path, scheduler):
    model = build_model(Schedule(ScheduleConfig(num_train_timesteps=500), "flow"), scheduler=scheduler)
    loaded = TextToImage.load(model.save(tmp_path / "model"))
    assert (loaded.schedule.config, loaded.schedule.prediction_type) == (model.schedule.config, "flow")
    assert pixels(loaded(PROMPT, seed=3)) == pixels(model(PROMPT, seed=3))
    with pytest.raises(UsageError, match=r'"ddim" cannot run the straight path of flow; use euler'):
        loaded(PROMPT, scheduler="ddim")


def test_a_shifted_flow_from_elsewhere_is_refused(build_model, tmp_path):
    folder = build_model(Schedule(ScheduleConfig(), "flow"), scheduler="euler").save(tmp_path / "model")
    (folder / "t2im.json").unlink()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 3.0}))
    with pytest.raises(ModelError, match="a shifted flow is not supported"):
        TextToImage.load(folder)


def test_a_model_is_replaced_but_nothing_else_is(tiny_model, folder, tmp_path):
    tiny_model.save(folder)
    TextToImage.load(folder)
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(UsageError, match="something else than a model"):
        tiny_model.save(tmp_path)
    with pytest.raises(UsageError, match="something else than a model"):
        tiny_model.save(tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "part", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"]
)
def test_a_changed_or_missing_file_is_noticed(folder, part):
    path = folder / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or changed") as caught:
        TextToImage.load(folder)
    assert part in str(caught.value)
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        TextToImage.load(folder)


def test_people_may_edit_the_card(folder):
    (folder / "README.md").write_text("mine")
    TextToImage.load(folder)


def test_a_description_that_cannot_be_read_is_said_in_one_line(folder):
    path = folder / "t2im.json"
    for content, message in [
        ("{", "damaged"),
        ('{"schema": 9}', "schema 9"),
        ('{"schema": 1, "x": 1}', '"x" is unknown'),
    ]:
        path.write_text(content)
        with pytest.raises(ModelError, match=message) as caught:
            TextToImage.load(folder)
        assert "\n" not in str(caught.value)


def test_a_scheduler_that_cannot_be_read_is_said_in_one_line(folder):
    (folder / "t2im.json").unlink()
    path = folder / "scheduler" / "scheduler_config.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"_class_name": "DDIMSchedulr"}, 'did you mean "DDIMScheduler"'),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
    ]:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ModelError, match=message):
            TextToImage.load(folder)
    path.write_text("[")
    with pytest.raises(ModelError, match="damaged"):
        TextToImage.load(folder)
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        TextToImage.load(folder)


def test_a_wrong_name_is_answered_with_the_nearest(folder, tiny_checkpoint):
    with pytest.raises(ModelError, match=r'did you mean "model"'):
        TextToImage.load(folder.with_name("modle"))
    with pytest.raises(ModelError, match=r"holds checkpoints; load one, such as .*checkpoint_epoch_1\.pt"):
        TextToImage.load(tiny_checkpoint.parent)
    with pytest.raises(ModelError, match="no model folder"):
        TextToImage.load(folder / "unet")


def test_a_package_without_a_built_in_model_says_so(monkeypatch, tmp_path, folder):
    monkeypatch.setattr("t2im.model_folder.resources.files", lambda package: tmp_path)
    with pytest.raises(ModelError, match="has no built-in model"):
        TextToImage.load()
    shutil.copytree(folder, tmp_path / "builtin")
    assert TextToImage.load().facts.name == "tiny"


def test_a_checkpoint_draws_with_its_average_unless_asked(tiny_model, tiny_state, tiny_checkpoint):
    averaged, raw = TextToImage.load(tiny_checkpoint), TextToImage.load(tiny_checkpoint, weights="raw")
    assert torch.equal(averaged.unet.conv_in.weight, tiny_state["ema"]["conv_in.weight"])
    assert pixels(raw(PROMPT, seed=3)) == pixels(tiny_model(PROMPT, seed=3))
    assert pixels(averaged(PROMPT, seed=3)) != pixels(tiny_model(PROMPT, seed=3))
    assert averaged.facts.captions == tuple(tiny_state["data"]["captions"])
    assert averaged.facts.latents == {"mean": [0.5, 0.0, 0.0]}
    assert averaged.facts.data == {"images": 3}
    assert averaged.facts.name == "checkpoint_epoch_1"
    assert len(averaged.sha256) == 64


def test_a_checkpoint_with_other_encoders_is_refused(build_model, tiny_checkpoint):
    build_model(seed=6).vae.save(tiny_checkpoint.parent / "encoders" / "vae")
    with pytest.raises(ModelError, match=r"not the encoder that checkpoint_epoch_1\.pt was trained with"):
        TextToImage.load(tiny_checkpoint)
    shutil.rmtree(tiny_checkpoint.parent / "encoders")
    with pytest.raises(ModelError, match="encoders"):
        TextToImage.load(tiny_checkpoint)


def test_raw_weights_of_a_folder_are_refused(folder):
    with pytest.raises(UsageError, match="only kept in checkpoints"):
        TextToImage.load(folder, weights="raw")


def test_parts_that_do_not_belong_together_are_refused(build_model, tiny_model):
    four_channels = VAE(new_vae(VAEConfig(block_out_channels=(4, 8)), 16))
    with pytest.raises(ModelError, match="the UNet maps 3 to 3 latent channels, the VAE has 4"):
        dataclasses.replace(tiny_model, vae=four_channels)
    unet = ConditionalUNet(tiny_model.unet.config.model_copy(update={"cross_attention_dim": 7}))
    with pytest.raises(ModelError, match="text of width 7, the text encoder's is 10"):
        dataclasses.replace(tiny_model, unet=unet)


def test_one_picture_of_one_prompt_is_no_list(tiny_model):
    assert isinstance(tiny_model(PROMPT, seed=1), Picture)
    assert len(tiny_model(PROMPT, seed=1, num_images=2)) == 2
    assert len(tiny_model([PROMPT], seed=1)) == 1


@pytest.mark.parametrize(("scheduler", "padding"), [("ddim", "attend"), ("euler_a", "mask")])
def test_image_i_equals_a_single_run_with_seed_plus_i(build_model, scheduler, padding):
    tiny_model = build_model(padding=padding)
    prompts = [PROMPT, "a red apple"]
    drawn = tiny_model(prompts, num_images=2, seed=7, scheduler=scheduler)
    assert [picture.seed for picture in drawn] == [7, 8, 9, 10]
    assert [picture.prompt for picture in drawn] == [prompts[0]] * 2 + [prompts[1]] * 2
    for picture in drawn:
        assert same(tiny_model(picture.prompt, seed=picture.seed, scheduler=scheduler), picture)
    assert not same(drawn[0], drawn[1])


def test_pictures_do_not_depend_on_how_they_are_split_into_batches(tiny_model, monkeypatch):
    together = tiny_model(PROMPT, num_images=5, seed=7)
    heard = []
    monkeypatch.setattr(model_module, "PIXELS_AT_ONCE", 2 * 16 * 16)
    request = Request(prompts=(PROMPT,), num_images=5, seed=7)
    split = list(tiny_model.draw(request, lambda step: heard.append((step.index, len(step.latents)))))
    assert all(same(left, right) for left, right in zip(split, together, strict=True))
    assert heard == [(i, size) for size in (2, 2, 1) for i in range(3)]


def test_a_picture_remembers_all_that_draws_it_again(tiny_model, tmp_path):
    picture = tiny_model(PROMPT, negative_prompt="red", scheduler="DDIM", eta=0.5, guidance_rescale=0.3, width=24)
    settings = read_settings(picture.save(tmp_path / "x.png"))
    request = settings["request"]
    assert request["scheduler"] == "ddim"
    assert request["num_inference_steps"] == 3
    assert (request["height"], request["width"]) == (16, 24) == picture.image.size[::-1]
    assert request["seed"] == settings["resolved_seed"] >= 0
    again = tiny_model(request.pop("prompt"), **request)
    assert pixels(again) == pixels(picture)
    assert again.settings == picture.settings


def test_a_random_seed_is_drawn_anew_each_time(tiny_model):
    assert tiny_model(PROMPT).seed != tiny_model(PROMPT).seed


def test_guidance_and_the_negative_prompt_matter_only_where_they_should(tiny_model):
    def draw(**settings):
        return pixels(tiny_model(PROMPT, seed=3, **settings))

    assert draw(guidance_scale=3.0) == draw()
    assert draw(guidance_scale=1.0) != draw()
    assert draw(negative_prompt="red") != draw()
    assert draw(guidance_scale=1.0, negative_prompt="red") == draw(guidance_scale=1.0)


def test_the_unconditional_half_is_not_even_encoded_without_guidance(tiny_model, monkeypatch):
    asked = []
    encoder = type(tiny_model.text_encoder)
    encode = encoder.__call__
    monkeypatch.setattr(
        encoder, "__call__", lambda self, prompts: (asked.append(list(prompts)), encode(self, prompts))[1]
    )
    tiny_model([PROMPT, PROMPT], guidance_scale=1.0)
    assert asked == [[PROMPT, PROMPT]]


def test_steps_can_be_watched_and_left(tiny_model):
    steps = tiny_model.steps(PROMPT, seed=3, num_inference_steps=5)
    first = next(steps)
    assert (first.index, first.total) == (0, 5)
    assert first.latents.shape == (1, 3, 8, 8)
    *_, last = steps
    (decoded,) = model_module.to_pil(tiny_model.vae.decode(last.latents))
    assert decoded.tobytes() == pixels(tiny_model(PROMPT, seed=3, num_inference_steps=5))


def test_a_listener_that_raises_stops_the_work(tiny_model):
    def cancel(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(tiny_model.draw(Request(prompts=(PROMPT,)), cancel))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 18}, r"width 18: this model draws multiples of 4 pixels; take 16 or 20\."),
        ({"height": 3}, r"height 3: .* take 4\."),
        ({"scheduler": "eulr"}, 'did you mean "euler"'),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "1 to 1000"),
        ({"num_images": 0}, "num_images"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**63 - 1, "num_images": 2}, "largest seed"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(tiny_model, settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        tiny_model(PROMPT, **settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_is_answered_with_the_nearest(tiny_model):
    with pytest.raises(ConfigError, match=r'did you mean "guidance_scale"'):
        tiny_model.steps(PROMPT, guidence_scale=3.0)
    with pytest.raises(ConfigError, match="prompts"):
        tiny_model([])


def test_a_prompt_that_is_too_long_names_the_words_it_lost(tiny_model):
    with pytest.warns(PromptTooLong, match="not seen: .*everest"):
        tiny_model("an owl " * 20 + "everest", seed=1)


def test_an_overflow_is_an_error_that_names_the_step(build_model):
    model = build_model()
    model.unet.conv_out.bias.data[0] = float("inf")
    with pytest.raises(SamplingError, match="step 1 of 3"):
        model(PROMPT)


def test_a_sampling_default_of_the_model_can_be_changed_for_a_copy(tiny_model):
    other = dataclasses.replace(tiny_model, sampling=SamplingConfig(num_inference_steps=2, scheduler="euler"))
    assert other(PROMPT).settings["request"]["num_inference_steps"] == 2


def test_zero_terminal_snr_survives_the_folder(build_model, tmp_path):
    config = ScheduleConfig(rescale_betas_zero_snr=True, num_train_timesteps=700)
    loaded = TextToImage.load(build_model(Schedule(config, "v_prediction")).save(tmp_path / "m")).schedule
    assert (loaded.config, loaded.prediction_type) == (config, "v_prediction")
