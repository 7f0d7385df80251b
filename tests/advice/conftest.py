"""A folder of tiny captioned pictures, with settings and encoders that make a run of it take a moment."""

import json

import pytest
from PIL import Image

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange", "cyan", "pink", "grey", "brown")
UNET = (
    "data.resolution=16",
    "unet.block_out_channels=(8,16)",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=2",
    "unet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
    "unet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')",
    "unet.addition_embed_type=none",
)


@pytest.fixture
def colours(tmp_path):
    """Return a folder of twelve pictures, each of a colour with a square of another one."""
    images = tmp_path / "colours" / "images"
    images.mkdir(parents=True)
    captions = {}
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (23, 17), colour)
        picture.paste(COLOURS[number - 5], (number % 5 + 3, 2, number % 5 + 12, 11))
        picture.save(images / f"{colour}.png")
        captions[f"{colour}.png"] = [f"{colour} with a square", f"all but the square is {colour}"]
    (images.parent / "captions.json").write_text(json.dumps(captions))
    return images.parent


@pytest.fixture
def encoders(tiny_model, tmp_path):
    """Return the tiny model's encoders as arguments of `train` and its kin."""
    tiny_model.vae.save(tmp_path / "encoders" / "vae")
    tiny_model.text_encoder.save(tmp_path / "encoders")
    return {"vae": str(tmp_path / "encoders"), "text_encoder": str(tmp_path / "encoders")}


@pytest.fixture
def unet_settings():
    """Return settings of a UNet that fits the tiny encoders."""
    return UNET
