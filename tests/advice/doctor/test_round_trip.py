"""The VAE is judged by what it loses, and the worst images are shown."""

import pytest
import torch
from PIL import Image

from t2im.advice.doctor.round_trip import RoundTrip, examine, judge, vae_findings
from t2im.data import captions
from t2im.encoders.vae import VAE, Posterior
from t2im.recipe import load_config

CONFIG = load_config(settings=("data.resolution=16",))


class Blur(VAE):
    """A VAE whose latents are the means of squares of pixels."""

    def __init__(self, side):
        self.side = side

    def encode(self, images):
        """Take the means."""
        latents = torch.nn.functional.avg_pool2d(images, self.side)
        return Posterior(latents, torch.full_like(latents, -20.0))

    def decode(self, latents):
        """Fill the squares with them."""
        return latents.repeat_interleave(self.side, -1).repeat_interleave(self.side, -2)


def test_a_lossy_vae_keeps_fewer_edges_and_decibels(colours, tmp_path):
    examples = captions.read(colours)
    fine, coarse = (examine(Blur(blur), examples, CONFIG, tmp_path / f"{blur}.png") for blur in (1, 8))
    assert fine.psnr.min() > 60 and fine.sharpness.median() == pytest.approx(1.0)
    assert coarse.psnr.max() < 30 and coarse.sharpness.median() < 0.9
    with Image.open(tmp_path / "8.png") as sheet:
        assert sheet.width == 8 * 162 - 2  # four pairs in a row, enlarged for the eye


def test_the_worst_images_are_named_first(colours, tmp_path):
    trip = examine(Blur(8), captions.read(colours), CONFIG, tmp_path / "sheet.png")
    finding = vae_findings(trip, tmp_path / "sheet.png")[0]
    worst = min(zip(trip.psnr.tolist(), trip.names, strict=True))
    assert finding.details[0] == f"{worst[1]}: {worst[0]:.1f} dB"


def test_the_verdict_grows_worse_with_the_loss():
    assert [judge(decibels)[0] for decibels in (35, 29, 24, 18)] == ["OK", "OK", "look", "wrong"]
    assert "text and thin lines will not survive" in judge(24)[1]


@pytest.mark.parametrize(("mean", "std", "level"), [(0.0, 1.0, "OK"), (0.0, 5.5, "wrong"), (3.0, 1.0, "wrong")])
def test_latents_of_the_wrong_size_are_wrong(mean, std, level, tmp_path):
    trip = RoundTrip(("a",), torch.tensor([30.0]), torch.tensor([0.9]), (0.0, mean), (1.0, std))
    assert vae_findings(trip, tmp_path)[1].level == level
