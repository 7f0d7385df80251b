"""Numbers are written as people read them, and warnings stand where the numbers are."""

import json
from dataclasses import replace

import pytest

from t2im.advice.copying import risk_of_copying
from t2im.advice.forecast import Forecast, Stage, as_dict, duration, lines, size_of
from t2im.advice.probe import Memory, Trial


@pytest.fixture
def forecast():
    return Forecast(
        folder="photos",
        device="cpu",
        images=2_003,
        training_images=1_963,
        captions=2_001,
        resolution=64,
        latent_shape=(4, 16, 16),
        parameters={"UNet": 5_804_452, "VAE": 648_375, "text encoder": 4_216_320},
        encoders={"VAE": "the built-in one", "text encoder": "to be trained"},
        flops_per_sample=1_500_000_000,
        batch_size=64,
        samples_at_once=64,
        tried=Trial(64, 64, 100.0, 8, 900_000_000, 92_900_000),
        memory=Memory(5e8, 5e6),
        memory_available=8_000_000_000,
        largest_batch=1_340,
        cache_bytes={"latents": 8_000_000, "text states": 30_000_000},
        steps=1_000,
        epochs=32.6,
        samples=64_000,
        stages=(Stage("encode once", 20.0, "measured"), Stage("train the UNet", 640.0, "at the measured speed")),
        checkpoint_bytes=92_900_000,
        disk_needed=400_000_000,
        disk_free=9_000_000_000,
        copying=risk_of_copying(64_000, 1_963),
    )


def test_the_table_holds_every_number_asked_for(forecast):
    table = "\n".join(lines(forecast))
    for words in ("5,804,452", "96 GFLOPs", "100 samples/s", "900 MB", "1,340 samples", "38 MB", "11 min", "low:"):
        assert words in table


def test_a_batch_that_does_not_fit_is_said_with_the_remedy(forecast):
    small = replace(forecast, largest_batch=20, memory_available=700_000_000)
    assert small.fits is False
    assert "TOO LITTLE for 64; raise training.gradient_accumulation_steps" in "\n".join(lines(small))
    assert "TOO LITTLE" not in "\n".join(lines(forecast))


def test_a_disk_that_is_too_small_is_said(forecast):
    assert "TOO LITTLE" in "\n".join(lines(replace(forecast, disk_free=100)))


def test_a_trial_of_less_than_the_batch_is_called_that(forecast):
    partial = replace(forecast, tried=replace(forecast.tried, batch_size=16, samples_at_once=16))
    table = "\n".join(lines(partial))
    assert "16 samples instead of 64" in table
    assert "about 820 MB with 64 samples at once" in table


def test_unknown_memory_is_called_unknown(forecast):
    unknown = replace(forecast, tried=replace(forecast.tried, peak_memory=None), memory=None, largest_batch=None)
    assert "cannot be measured here" in "\n".join(lines(unknown))
    assert unknown.fits is None


def test_json_holds_what_is_derived(forecast):
    read = json.loads(json.dumps(as_dict(forecast)))
    assert read["flops_per_step"] == 96_000_000_000 and read["seconds"] == 660 and read["fits"] is True


def test_sizes_and_durations():
    assert [size_of(number) for number in (0, 999, 1000, 23_456_789)] == ["0 B", "999 B", "1 kB", "23.5 MB"]
    assert [duration(number) for number in (0.5, 119, 120, 7200, 180_000)] == [
        "0.5 s",
        "119 s",
        "2 min",
        "2 h",
        "2.1 days",
    ]
