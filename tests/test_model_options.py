"""A whole model whose UNet has options that diffusers' has not: it is saved, loaded and drawn with like any other."""

from dataclasses import replace

import pytest
import torch

from t2im.model import TextToImage
from t2im.nn.unet import ConditionalUNet
from t2im.shapes import TextStates


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(0)
    config = tiny_model.unet.config.model_copy(update={"qk_norm": True, "size_conditioning": True})
    return replace(tiny_model, unet=ConditionalUNet(config).eval().requires_grad_(False))


def test_it_comes_back_from_its_folder_and_no_stock_pipeline_is_led_to_it(model, tmp_path):
    folder = model.save(tmp_path / "model")
    assert not (folder / "model_index.json").exists()
    assert "qk_norm and size_conditioning" in (folder / "README.md").read_text(encoding="utf-8")
    again = TextToImage.load(folder)
    assert again.unet.config == model.unet.config
    assert again("a red apple", seed=3).image.tobytes() == model("a red apple", seed=3).image.tobytes()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_every_prompt_asks_for_a_picture_of_the_native_size_that_was_not_cropped(model, guidance_scale, monkeypatch):
    heard = []

    def prepare(unet, text, timesteps):
        heard.append(text.sizes)
        return original(unet, text, timesteps)

    original = ConditionalUNet.prepare
    monkeypatch.setattr(ConditionalUNet, "prepare", prepare)
    model("a red apple", seed=3, guidance_scale=guidance_scale)
    assert heard[0].tolist() == [[16, 16, 0, 0]] * (1 if guidance_scale == 1 else 2)


def test_another_size_draws_another_picture(model):
    text = model.text_encoder(["a red apple"])
    latents = torch.randn(1, 3, 8, 8)
    native, small = (model.unet(latents, 500, told) for told in (text.sized(16, 16), text.sized(9, 9)))
    assert isinstance(text, TextStates) and not torch.allclose(native, small, atol=1e-4)
