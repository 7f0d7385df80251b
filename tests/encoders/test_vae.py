"""Images to latents and back: scaled exactly as diffusers would, whitened without changing a picture."""

import itertools
import json
import os

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from t2im.encoders.vae import VAE, Posterior, latent_statistics, new_vae, psnr, whitened
from t2im.errors import ModelError, UsageError
from t2im.networks import VAEConfig

CONFIG = VAEConfig(latent_channels=3, block_out_channels=(4, 8), norm_num_groups=2)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def build(seed=0, **changes):
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_config({**new_vae(CONFIG, 14).config, **changes})
    with torch.no_grad():  # a fresh convolution's bias is almost zero, which would hide errors
        for weight in vae.parameters():
            weight += 0.05 * torch.randn_like(weight)
        vae.decoder.conv_out.weight *= 3  # so that some colours need clamping
    return VAE(vae.eval().requires_grad_(False))


def pictures(count=5, side=14, seed=1):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def saved(tmp_path):
    build().save(tmp_path / "vae")
    return tmp_path / "vae"


KINDS = {
    "scaled": {"scaling_factor": 0.18215},
    "shifted": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "standardized": {"scaling_factor": 0.5, "latents_mean": [-1.6, 2.3, 0.1], "latents_std": [8.4, 5.3, 0.7]},
    "without convolutions": {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": -0.7},
}


def reference_scale_and_shift(config):
    scale = torch.full((3, 1, 1), config.scaling_factor)
    if config.latents_mean is None:
        return scale, torch.full((3, 1, 1), config.shift_factor or 0.0)
    return scale / torch.tensor(config.latents_std)[:, None, None], torch.tensor(config.latents_mean)[:, None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_those_of_diffusers_shifted_and_scaled(kind):
    vae, images = build(**KINDS[kind]), pictures()
    raw = vae.module.encode(images).latent_dist
    scale, shift = reference_scale_and_shift(vae.module.config)
    noise = torch.randn(raw.mean.shape)
    posterior = vae.encode(images)
    torch.testing.assert_close(posterior.mean, (raw.mean - shift) * scale)
    torch.testing.assert_close(posterior.sample(noise), (raw.mean + raw.std * noise - shift) * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_undoes_the_scaling_and_clamps(kind):
    vae = build(**KINDS[kind])
    latents = 3 * torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(2))
    scale, shift = reference_scale_and_shift(vae.module.config)
    raw = vae.module.decode(latents / scale + shift).sample
    torch.testing.assert_close(vae.decode(latents), raw.clamp(-1, 1))
    assert (raw.abs() > 1).any()


def test_images_that_do_not_divide_into_cells_are_refused():
    with pytest.raises(UsageError, match=r"14x13 pixels.*multiples of 2"):
        build().encode(pictures()[..., :13])


def test_new_vae_has_the_sizes_of_its_config_and_unscaled_latents():
    vae = VAE(new_vae(VAEConfig(latent_channels=5, block_out_channels=(8, 8, 16)), 28))
    assert (vae.latent_channels, vae.downscale, vae.module.config.scaling_factor) == (5, 4, 1.0)
    assert vae.encode(pictures(side=28)).mean.shape == (5, 5, 7, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_latents_have_mean_zero_and_std_one_in_every_channel(kind):
    vae, images = build(**KINDS[kind]), pictures(11)
    measured = latent_statistics([vae.encode(images)])
    white = latent_statistics([whitened(vae, measured.mean, measured.std).encode(images)])
    torch.testing.assert_close(white.mean, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(white.std, torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    assert (measured.mean.abs() > 1e-3).all() and ((measured.std - 1).abs() > 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_whitening_changes_no_sampled_picture(kind):
    vae, images, noise = build(**KINDS[kind]), pictures(), torch.randn(5, 3, 7, 7)
    mean, std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.2, 1.5, 7.0])
    white = whitened(vae, mean, std)
    before, after = vae.encode(images).sample(noise), white.encode(images).sample(noise)
    torch.testing.assert_close(after * std[:, None, None] + mean[:, None, None], before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(white.decode(after), vae.decode(before), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_code_that_knows_one_scalar_decodes_a_whitened_vae(kind, tmp_path):
    vae = build(**KINDS[kind])
    white = whitened(vae, torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.2, 1.5, 7.0]))
    white.save(tmp_path)
    stock = AutoencoderKL.from_pretrained(tmp_path)
    latents = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(
        stock.decode(latents / stock.config.scaling_factor).sample.clamp(-1, 1), white.decode(latents)
    )
    assert stock.config.scaling_factor == 1.0
    assert stock.config.shift_factor is stock.config.latents_mean is stock.config.latents_std is None


def test_whitening_leaves_the_original_alone():
    vae = build()
    before = vae.sha256
    assert whitened(vae, torch.ones(3), torch.full((3,), 2.0)).sha256 != before
    assert vae.sha256 == before


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), "constant"),
        (torch.tensor([0.0, float("nan"), 0.0]), torch.ones(3), "finite"),
        (torch.zeros(2), torch.ones(2), "each of the 3 latent channels"),
    ],
)
def test_whitening_by_impossible_statistics_is_refused(mean, std, message):
    with pytest.raises(UsageError, match=message):
        whitened(build(), mean, std)


def test_latent_statistics_include_the_posteriors_variance():
    torch.manual_seed(4)
    mean, logvar = torch.randn(7, 2, 3, 5), torch.randn(7, 2, 3, 5)
    measured = latent_statistics([Posterior(mean, logvar)])
    drawn = torch.cat([Posterior(mean, logvar).sample(torch.randn_like(mean)) for _ in range(3000)]).double()
    torch.testing.assert_close(measured.mean, drawn.mean(dim=(0, 2, 3)), rtol=0, atol=2e-2)
    torch.testing.assert_close(measured.std, drawn.std(dim=(0, 2, 3)), rtol=1e-2, atol=0)


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(1, 12), max_size=4), offset=st.sampled_from([0.0, 1e4]))
def test_latent_statistics_do_not_depend_on_the_batches(cuts, offset):
    mean = torch.randn(13, 2, 3, 3, generator=torch.Generator().manual_seed(3)) + offset
    whole = mean.double().transpose(0, 1).flatten(1)
    bounds = [0, *sorted(set(cuts)), 13]
    stream = [Posterior(mean[a:b], torch.full_like(mean[a:b], -60)) for a, b in itertools.pairwise(bounds)]
    measured = latent_statistics(stream)
    torch.testing.assert_close(measured.mean, whole.mean(dim=1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(measured.std, whole.std(dim=1, correction=0), rtol=1e-9, atol=0)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(UsageError, match="no images"):
        latent_statistics([])


def test_psnr_is_that_of_the_formula():
    images = torch.zeros(3, 3, 5, 5)
    other = images.clone()
    other[0] += 0.2  # an error of a tenth of the range: 20 dB
    other[1, 0] += 0.02 * 3**0.5  # the same energy in one of three colours: 40 dB
    torch.testing.assert_close(psnr(images, other), torch.tensor([20.0, 40.0, float("inf")]))


def test_a_saved_vae_is_the_same_from_its_own_folder_and_from_a_pipelines(saved):
    for folder in (saved, saved.parent, str(saved)):
        vae = VAE.load(folder)
        assert vae.sha256 == build().sha256
        assert not vae.module.training and not any(weight.requires_grad for weight in vae.module.parameters())


def test_half_precision_files_are_loaded_in_float32(saved):
    build().module.half().save_pretrained(saved)
    assert {weight.dtype for weight in VAE.load(saved).module.parameters()} == {torch.float32}


def test_identity_sees_one_changed_weight_and_the_scale(saved):
    hashes = {build().sha256, build(scaling_factor=0.5).sha256, build(seed=1).sha256}
    vae = build()
    vae.module.decoder.conv_out.bias[1] += 1e-6
    assert len(hashes | {vae.sha256}) == 4


def damage_missing(folder):
    weights = load_file(folder / WEIGHTS)
    weights.pop("decoder.conv_in.weight")
    save_file(weights, folder / WEIGHTS)


def damage_not_finite(folder):
    weights = load_file(folder / WEIGHTS)
    weights["encoder.conv_in.bias"][1] = float("nan")
    save_file(weights, folder / WEIGHTS)


def damage_truncated(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 7)


def damage_pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def damage_other_class(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


def damage_config(folder):
    (folder / "config.json").write_text("[1, 2")


def damage_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"latent_channels": 5}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r'lack "decoder.conv_in.weight" \(1 in all\)'),
        (damage_not_finite, '"encoder.conv_in.bias" is not finite'),
        (damage_truncated, "cannot be loaded"),
        (damage_pickled, "Only safetensors"),
        (damage_other_class, "is a UNet2DConditionModel, not a AutoencoderKL"),
        (damage_config, "not a model's configuration"),
        (damage_shape, "cannot be loaded"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_one_line(saved, damage, message):
    damage(saved)
    with pytest.raises(ModelError, match=message) as refusal:
        VAE.load(saved)
    assert "\n" not in str(refusal.value) and str(saved) in str(refusal.value)


def test_a_misspelt_folder_is_answered_with_the_nearest(saved):
    with pytest.raises(ModelError, match=r'did you mean "vae"'):
        VAE.load(saved.parent / "vea")
    with pytest.raises(ModelError, match=r"config\.json nor vae/config\.json"):
        (saved.parent / "empty").mkdir()
        VAE.load(saved.parent / "empty")


def test_a_hub_id_that_is_not_at_hand_is_refused_with_the_alternative():
    with pytest.raises(ModelError, match=r"local hub cache.*Give the folder of a local copy") as refusal:
        VAE.load("nobody/has-this-vae", local_files_only=True)
    assert "\n" not in str(refusal.value)


def test_a_hub_id_is_fetched_as_safetensors_only(saved, monkeypatch):
    asked = {}

    def fetch(name, *, allow_patterns, local_files_only):
        asked.update(name=name, patterns=allow_patterns)
        return str(saved.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert VAE.load("somebody/pipeline").sha256 == build().sha256
    assert asked["name"] == "somebody/pipeline"
    assert set(asked["patterns"]) == {"config.json", "vae/config.json", WEIGHTS, f"vae/{WEIGHTS}"}
