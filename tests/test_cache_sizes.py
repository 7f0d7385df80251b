"""The cache knows how large each image was before it was scaled; one that was made without learns it from the files."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from t2im import cache
from t2im.cache import ImageSkipped, build
from t2im.config import DataConfig
from t2im.data.captions import Example
from t2im.encoders.text import new_clip, text_part, train_tokenizer
from t2im.encoders.vae import VAE, new_vae
from t2im.networks import CLIPConfig, VAEConfig

# height, width of a file, and what is told of it at 14 pixels: height, width, top and left of the centre square
TOLD = {
    (14, 14): (14, 14, 0, 0),
    (28, 28): (14, 14, 0, 0),  # larger is as good
    (10, 10): (10, 10, 0, 0),  # smaller is not
    (28, 56): (14, 28, 0, 7),
    (11, 9): (11, 9, 1, 0),
    (140, 70): (28, 14, 7, 0),
}
CLIP = CLIPConfig(
    vocab_size=600, context_length=16, width=6, layers=1, heads=1,
    vision_width=4, vision_layers=1, vision_heads=1, image_size=4, patch_size=2, projection_dim=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a word", "a word"], CLIP.vocab_size, CLIP.context_length)
    vae = VAE(new_vae(VAEConfig(latent_channels=3, block_out_channels=(4, 4), norm_num_groups=2), 14).eval())
    return vae, text_part(new_clip(CLIP, tokenizer).eval(), tokenizer, "attend")


@pytest.fixture
def examples(tmp_path):
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(TOLD):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [Example(tmp_path / f"{number}.png", ("a word",)) for number in range(len(TOLD))]


def build_at(resolution, examples, encoders, folder, **data):
    return build(examples, *encoders, folder / "cache", DataConfig(resolution=resolution, **data))


def test_each_image_is_told_of_in_pixels_of_the_training_resolution(examples, encoders, tmp_path):
    store = build_at(14, examples, encoders, tmp_path)
    assert [tuple(row) for row in store.sizes.tolist()] == list(TOLD.values())


def test_sizes_are_measured_once_and_serve_every_resolution(examples, encoders, tmp_path, monkeypatch):
    build_at(14, examples, encoders, tmp_path)
    monkeypatch.setattr(cache, "original_size", lambda path: pytest.fail(f"{path} was measured already"))
    with pytest.warns(cache.CacheRebuilt, match="latents"):
        store = build_at(28, examples, encoders, tmp_path)
    assert store.sizes[1].tolist() == [28, 28, 0, 0]
    assert store.sizes[3].tolist() == [28, 56, 0, 14]


def test_a_cache_that_was_made_without_sizes_is_extended_and_nothing_is_encoded_again(examples, encoders, tmp_path):
    whole = build_at(14, examples, encoders, tmp_path).sizes.tolist()
    for folder in tmp_path.glob("cache/sizes-*"):
        shutil.rmtree(folder)

    def no_work(what, done, total):
        pytest.fail(f"{what} encoded again")

    store = build(examples, *encoders, tmp_path / "cache", DataConfig(resolution=14), progress=no_work)
    assert store.sizes.tolist() == whole


def test_copies_are_measured_once_and_images_that_are_left_out_never(examples, encoders, tmp_path, monkeypatch):
    shutil.copy(tmp_path / "3.png", tmp_path / "4.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    measured = []

    def measure(path):
        measured.append(path.name)
        return original_size(path)

    original_size = cache.original_size
    monkeypatch.setattr(cache, "original_size", measure)
    with pytest.warns(ImageSkipped):
        store = build_at(14, examples, encoders, tmp_path, skip_bad=True)
    assert sorted(measured) in (["1.png", "2.png", "3.png", "5.png"], ["1.png", "2.png", "4.png", "5.png"])
    assert store.sizes[2].tolist() == store.sizes[3].tolist() == [14, 28, 0, 7]
