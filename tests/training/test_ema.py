import pytest
import torch

from t2im.errors import TrainingError
from t2im.training.ema import EMA, require_average, some_values


def model_of(value):
    model = torch.nn.BatchNorm1d(1)  # parameters and buffers
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def test_average_meets_its_closed_form_with_warm_up():
    model, expected = model_of(2.0), 2.0
    ema = EMA(model, 0.3)
    for update, value in enumerate((5.0, -1.0, 4.0, 8.0)):
        decay = min(0.3, (1 + update) / (10 + update))
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        expected = decay * expected + (1 - decay) * value
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_buffers_are_not_averaged():
    assert set(EMA(model_of(1.0), 0.9).shadow) == {"weight", "bias"}


def test_swapping_in_shows_the_average_and_puts_the_live_weights_back():
    model = model_of(1.0)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    with pytest.raises(ZeroDivisionError), ema.swapped_in(model):
        assert model.weight.item() == 1.0
        raise ZeroDivisionError
    assert model.weight.item() == 3.0 and ema.shadow["weight"].item() == 1.0


def test_the_optimizer_still_trains_the_model_after_a_swap():
    model = model_of(1.0)
    ema, optimizer = EMA(model, 0.9), torch.optim.SGD(model.parameters(), lr=1.0)
    with ema.swapped_in(model):
        pass
    model.weight.grad = torch.tensor([0.25])
    optimizer.step()
    assert model.weight.item() == 0.75 and ema.shadow["weight"].item() == 1.0


def test_saved_and_restored_averages_go_on_alike():
    model = model_of(1.0)
    first, second = EMA(model, 0.9), EMA(model_of(7.0), 0.9)
    first.update(model)
    second.load_state_dict(
        {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in first.state_dict().items()
        }
    )
    with torch.no_grad():
        model.weight.fill_(5.0)
    first.update(model)
    second.update(model)
    assert torch.equal(first.shadow["weight"], second.shadow["weight"]) and second.updates == 2


def test_copying_makes_the_average_the_weights():
    model = model_of(1.0)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.copy_to(model)
    assert model.weight.item() == 1.0


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_an_average_that_was_never_updated_sounds_the_alarm():
    model = model_of(1.0)
    ema = EMA(model, 0.9)
    ema.check(model)  # nothing has moved yet
    fill(model, 1.5)
    with pytest.raises(TrainingError, match=r"decay 0.9\) still equals the initial weights"):
        ema.check(model)
    ema.update(model)
    ema.check(model)


def test_an_average_that_follows_a_forgotten_copy_of_the_model_sounds_the_alarm():
    model, copy = model_of(1.0), model_of(1.0)
    ema = EMA(model, 0.9)
    fill(model, 1.5)
    for _ in range(20):
        ema.update(copy)
    with pytest.raises(TrainingError, match="with another copy of the model"):
        ema.check(model)


def test_a_resumed_run_still_knows_its_initial_weights():
    model = model_of(1.0)
    ema = EMA(model, 0.9)
    fill(model, 1.5)
    resumed = EMA(model_of(1.0), 0.9)
    resumed.load_state_dict(ema.state_dict())
    with pytest.raises(TrainingError, match="still equals the initial weights"):
        resumed.check(model)


def test_an_average_over_buffers_sounds_the_alarm():
    model = model_of(1.0)
    with pytest.raises(TrainingError, match=r'an average holds buffers \(first: "num_batches_tracked"\)'):
        require_average(model.state_dict(), model, some_values(model.parameters()), "an average")


def test_some_values_are_few_and_tell_any_tensor_that_moved():
    tensors = [torch.zeros(1000, 30), torch.zeros(2), torch.zeros(())]
    before = some_values(tensors)
    assert len(before) < 30
    tensors[2] += 1
    assert not torch.equal(some_values(tensors), before)
