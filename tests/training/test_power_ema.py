import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2im.errors import ModelError, TrainingError
from t2im.training.power_ema import PowerEMA, decay_at, exponent_of, width_of


def model_of(value):
    model = torch.nn.BatchNorm1d(1)  # parameters and buffers
    with torch.no_grad():
        model.weight.fill_(value)
    return model


@given(st.floats(min_value=0.005, max_value=0.2899))
def test_width_and_exponent_are_inverse_to_each_other(sigma):
    assert width_of(exponent_of(sigma)) == pytest.approx(sigma, rel=1e-9)


def test_the_width_is_the_standard_deviation_of_the_weighting():
    gamma = exponent_of(0.07)
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    weighting = grid**gamma / (grid**gamma).sum()
    mean = (weighting * grid).sum()
    assert ((weighting * (grid - mean) ** 2).sum().sqrt()).item() == pytest.approx(0.07, rel=1e-6)


def test_the_recursion_is_the_integral_for_weights_that_stay_constant_between_updates():
    gamma, trajectory = exponent_of(0.10), torch.randn(23, generator=torch.Generator().manual_seed(1)).double()
    average = torch.tensor(99.0).double()
    for step, value in enumerate(trajectory, start=1):
        average = torch.lerp(value, average, decay_at(step, gamma))
    edges = torch.arange(24, dtype=torch.float64) ** (gamma + 1)
    assert average.item() == pytest.approx(((edges[1:] - edges[:-1]) / edges[-1] @ trajectory).item(), rel=1e-12)


def test_averages_meet_their_closed_form_whatever_the_initial_weights():
    model = model_of(1e6)
    ema = PowerEMA(model, (0.05, 0.2))
    values = (5.0, -1.0, 4.0, 8.0, 3.0)
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
    for sigma in (0.05, 0.2):
        edges = torch.arange(6, dtype=torch.float64) ** (exponent_of(sigma) + 1)
        expected = (edges[1:] - edges[:-1]) / edges[-1] @ torch.tensor(values).double()
        assert ema.averages[sigma]["weight"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_buffers_are_not_averaged():
    assert all(set(average) == {"weight", "bias"} for average in PowerEMA(model_of(1.0), (0.05, 0.1)).averages.values())


def test_saved_and_restored_averages_go_on_to_the_bit():
    model = model_of(1.0)
    first, second = PowerEMA(model, (0.05, 0.1)), PowerEMA(model_of(7.0), (0.05, 0.1))
    for step in range(7):
        with torch.no_grad():
            model.weight.fill_(step / 3)
        if step == 4:
            second.load_state_dict(first.state_dict())
        first.update(model)
        if step >= 4:
            second.update(model)
    assert second.updates == 7
    for sigma in (0.05, 0.1):
        assert torch.equal(first.averages[sigma]["weight"], second.averages[sigma]["weight"])


def test_averages_of_other_widths_are_not_taken_up():
    ema = PowerEMA(model_of(1.0), (0.05, 0.1))
    with pytest.raises(ModelError, match=r"widths 0.05, 0.1, the settings ask for 0.07"):
        PowerEMA(model_of(1.0), (0.07,)).load_state_dict(ema.state_dict())


def test_averages_that_are_never_updated_sound_the_alarm():
    model = model_of(1.0)
    ema = PowerEMA(model, (0.05,))
    ema.check(model)
    with torch.no_grad():
        model.weight.fill_(1.5)
    with pytest.raises(TrainingError, match=r"sigma 0.05\) still equals the initial weights"):
        ema.check(model)
    ema.update(model)
    ema.check(model)
