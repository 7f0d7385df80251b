"""Numbers that are none, in a run of the real UNet: no step with them changes anything, and none of them is saved."""

import hashlib
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t2im import cache
from t2im.config import Config
from t2im.data.captions import Example
from t2im.errors import Diverged, SamplingError, TrainingError
from t2im.picture import to_pil
from t2im.request import Request
from t2im.training import checkpoint as checkpoint_module
from t2im.training import trainer as trainer_module
from t2im.training.checkpoint import Checkpoints, NotFinite
from t2im.training.denoiser import DenoiserTask, read_unet_checkpoint, write_unet_checkpoint
from t2im.training.loop import fit
from t2im.training.report import Report
from t2im.training.rhythm import Budget, Plan
from t2im.training.trainer import Trainer
from t2im.weights import tensors_in

NAN, INF = float("nan"), float("inf")
BAD = 5  # the step that goes wrong
STEPS = 7
SIGMA = 0.1


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    """Return a cache of seven tiny pictures, and how to begin a run of it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    examples = []
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        examples.append(Example(folder / f"{number}.png", (f"picture number {number}",)))
    config = Config(unet=tiny_model.unet.config, sampling=tiny_model.sampling)
    data = config.data.model_copy(update={"resolution": 16})
    training = config.training.model_copy(
        update={"batch_size": 2, "warmup_steps": 3, "ema_decay": 0.9, "mixed_precision": "no", "learning_rate": 0.01}
    )
    config = config.model_copy(update={"data": data, "training": training})
    store = cache.build(examples, tiny_model.vae, tiny_model.text_encoder, folder / "cache", data)
    encoder = {"folder": "encoders", "sha256": "0", "source": "tiny"}
    about = {"encoders": {"vae": encoder, "text_encoder": encoder}, "data": {}, "summary": {}}

    def task():
        indices = np.arange(7), np.arange(0)
        return DenoiserTask(store, *indices, tiny_model.vae, tiny_model.text_encoder, config, about)

    return SimpleNamespace(task=task, config=config)


def digest(trainer):
    """Hash what a step may change: weights, averages and the optimizer's memory, but not the rate that it was last given."""
    state = trainer.state_dict()
    hashed = hashlib.sha256()
    for group in state["optimizer"]["param_groups"]:
        assert {key: value for key, value in group.items() if key not in ("lr", "params")}
    kept = {part: state[part] for part in ("model", "ema", "power_ema", "loss_scale")}
    for where, tensor in tensors_in(kept | {"memory": state["optimizer"]["state"]}):
        hashed.update(f"{where} {tensor.dtype}".encode() + tensor.numpy().tobytes())
    return hashed.hexdigest(), trainer.ema.updates, trainer.power_ema.updates


@pytest.fixture
def steps(monkeypatch):
    """Return what each step of a run left, in order: digests before and after it, and its learning rate."""
    seen, whole = [], Trainer.step

    def watched(self, loss, samples, rate):
        before = digest(self)
        taken = whole(self, loss, samples, rate)
        seen.append((before, digest(self), rate))
        return taken

    monkeypatch.setattr(Trainer, "step", watched)
    return seen


def run(world, folder, *, steps=STEPS, task=None, every=2, parts=1):
    checkpoints = Checkpoints(folder, write_unet_checkpoint, read_unet_checkpoint, keep=9)
    with Report(folder, name="unet", quiet=True) as report:
        return fit(
            task or world.task(),
            world.config.training.model_copy(update={"gradient_accumulation_steps": parts}),
            Budget(steps=steps),
            Plan(evaluations=0, checkpoint_steps=every),
            checkpoints,
            report,
            seed=5,
            ema_sigmas=(SIGMA,),
        )


def events(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == kind]


def poison_loss(task, value, wanted):
    whole = task.loss

    def loss(model, samples):
        mean, numbers = whole(model, samples)
        return (mean + value if wanted(samples.start // 2) else mean), numbers

    task.loss = loss


def poison_gradient(task, value, wanted):
    """Spoil one number of one gradient, on its way to a weight in the middle of the network."""
    state = {"bad": False}

    def spoil(gradient):
        spoiled = gradient.clone()
        if state["bad"]:
            spoiled.view(-1)[3] = value
        return spoiled

    task.model.get_parameter("mid_block.resnets.0.conv1.weight").register_hook(spoil)
    whole = task.loss

    def loss(model, samples):
        state["bad"] = wanted(samples.start // 2)
        return whole(model, samples)

    task.loss = loss


def poison_latent(task, value, wanted):
    """Spoil one number of the latents of a step's second sample, where they are read."""

    class Spoiled:
        def __getattr__(self, name):
            return getattr(store, name)

        def batch(self, examples, samples, *chances):
            batch = store.batch(examples, samples, *chances)
            latents = batch.latents.clone()
            for row, sample in enumerate(samples.tolist()):
                if wanted(sample // 2) and sample % 2:
                    latents[row, 0, 2, 2] = value
            return replace(batch, latents=latents)

    store = task._store
    task._store = Spoiled()


POISONS = {"loss": poison_loss, "gradient": poison_gradient, "latent": poison_latent}


def poisoned(world, place, value, wanted=lambda step: step == BAD):
    task = world.task()
    POISONS[place](task, value, wanted)
    return task


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("place", "parts"), [("loss", 1), ("gradient", 1), ("latent", 1), ("latent", 2)])
def test_a_step_with_a_number_that_is_none_changes_nothing(place, parts, value, world, steps, tmp_path):
    progress = run(world, tmp_path, task=poisoned(world, place, value), parts=parts)
    unchanged = [before == after for before, after, _ in steps]
    assert unchanged == [step == BAD for step in range(STEPS)]
    assert all(after == before for (_, after, _), (before, _, _) in itertools.pairwise(steps))
    assert (progress.step, progress.skipped_steps, progress.samples) == (STEPS, 1, 2 * STEPS)
    (skipped,) = events(tmp_path, "skipped")
    assert (skipped["step"], skipped["samples"]) == (BAD, [2 * BAD, 2 * BAD + 2])
    (dump,) = (tmp_path / "nonfinite").iterdir()
    found = json.loads(dump.read_text())
    assert dump.name == f"step_{BAD:08d}.json" and found["weights_not_finite"]["count"] == 0
    if place == "gradient":
        assert found["gradients_not_finite"]["first"] == ["mid_block.resnets.0.conv1.weight"]
    guilty = [2 * BAD + 1] if place == "latent" else [2 * BAD, 2 * BAD + 1]
    assert [sample["sample"] for sample in found["samples"]] == guilty
    assert all("picture number" in sample["shows"] for sample in found["samples"])


def test_the_learning_rate_of_the_steps_after_a_bad_one_is_that_of_a_run_without_it(world, steps, tmp_path):
    run(world, tmp_path / "bad", task=poisoned(world, "loss", NAN))
    with_bad = [rate for _, _, rate in steps]
    steps.clear()
    run(world, tmp_path / "good")
    assert with_bad == [rate for _, _, rate in steps]


def test_without_the_look_at_loss_and_gradients_the_step_would_be_taken(world, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "is_finite", lambda loss, norm: True)
    with pytest.raises(NotFinite):
        run(world, tmp_path, task=poisoned(world, "gradient", NAN), every=0)
    before, after, _ = steps[BAD]
    assert before != after


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Return the last checkpoint of a run without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    run(world, folder)
    return max(folder.glob("checkpoint_*.pt"), key=lambda path: read_unet_checkpoint(path)["progress"]["step"])


def all_finite(folder):
    paths = sorted(folder.glob("*.pt"))
    assert paths
    return all(
        bool(torch.isfinite(tensor).all())
        for path in paths
        for _, tensor in tensors_in(read_unet_checkpoint(path))
        if tensor.is_floating_point()
    )


@pytest.mark.parametrize("place", ["loss", "latent"])
def test_ten_bad_steps_in_a_row_stop_a_run_with_exit_code_5(place, world, tmp_path):
    with pytest.raises(Diverged, match=rf"10 steps in a row .* step {BAD + 9}:.*--resume") as caught:
        run(world, tmp_path, steps=30, task=poisoned(world, place, NAN, lambda step: step >= BAD))
    assert caught.value.exit_code == 5
    assert [line["step"] for line in events(tmp_path, "skipped")] == list(range(BAD, BAD + 10))
    assert all_finite(tmp_path)


def test_nine_in_a_row_stop_nothing(world, tmp_path):
    task = poisoned(world, "loss", INF, lambda step: BAD <= step < BAD + 9)
    progress = run(world, tmp_path, steps=16, task=task)
    assert progress.finished and progress.skipped_steps == 9 and all_finite(tmp_path)


def spoil(trainer, place):
    """Turn one number in memory into none, as a fault of the memory does, where no loss will tell of it."""
    where = {
        "average": lambda: trainer.ema.shadow["conv_in.bias"],
        "power average": lambda: trainer.power_ema.averages[SIGMA]["conv_in.bias"],
        "momentum": lambda: next(iter(trainer.state_dict()["optimizer"]["state"].values()))["exp_avg_sq"],
        "weight": lambda: trainer.model.conv_in.bias.data,
    }
    where[place]().view(-1)[0] = INF


@pytest.fixture
def fault(monkeypatch):
    """Return a function that makes the memory fail after some steps, counted over all attempts."""

    def fault(place, after):
        whole, taken = Trainer.step, []

        def step(self, *arguments):
            answer = whole(self, *arguments)
            taken.append(self)
            if len(taken) in after:
                spoil(self, place)
            return answer

        monkeypatch.setattr(Trainer, "step", step)

    return fault


@pytest.mark.parametrize("place", ["average", "power average", "momentum", "weight"])
def test_a_fault_of_the_memory_is_never_saved_and_the_run_goes_back_once(place, world, whole, tmp_path, fault):
    fault(place, {4})
    progress = run(world, tmp_path)
    assert progress.finished and progress.step == STEPS and progress.skipped_steps == 0
    (rollback,) = events(tmp_path, "rollback")
    assert "is not finite, so checkpoint_epoch_1.pt was not written" in rollback["reason"]
    assert [line["step"] for line in events(tmp_path, "resume")] == [2]
    assert all_finite(tmp_path)
    again = read_unet_checkpoint(tmp_path / whole.name)["model"]
    assert all(torch.equal(weight, again[name]) for name, weight in read_unet_checkpoint(whole)["model"].items())


def test_weights_that_are_no_numbers_are_found_by_the_next_step_and_not_only_by_a_save(world, tmp_path, fault):
    fault("weight", {4})
    progress = run(world, tmp_path, every=3)
    assert progress.finished and progress.step == STEPS and progress.skipped_steps == 0
    (rollback,) = events(tmp_path, "rollback")
    assert rollback["reason"] == 'step 4: the weight "conv_in.bias" is not finite.'
    assert [line["step"] for line in events(tmp_path, "resume")] == [3]


def test_a_second_fault_stops_the_run(world, tmp_path, fault):
    fault("momentum", {4, 6})
    with pytest.raises(NotFinite) as caught:
        run(world, tmp_path)
    assert caught.value.exit_code == 5 and len(events(tmp_path, "rollback")) == 1 and all_finite(tmp_path)


def test_a_fault_before_the_first_checkpoint_stops_the_run(world, tmp_path, fault):
    fault("average", {1})
    with pytest.raises(NotFinite):
        run(world, tmp_path)
    assert not list(tmp_path.glob("*.pt")) and not events(tmp_path, "rollback")


def test_without_the_look_before_a_save_nothing_would_go_back(world, tmp_path, fault, monkeypatch):
    fault("momentum", {2})
    monkeypatch.setattr(checkpoint_module, "first_not_finite", lambda state: "")
    with pytest.raises(TrainingError, match="3 saves in a row have failed"):  # by the writer's own look
        run(world, tmp_path)
    assert not events(tmp_path, "rollback")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_numbers_that_are_none_never_become_a_picture(part, build_model):
    model = build_model()
    module = model.unet if part == "unet" else getattr(model, part).module
    names = {"unet": "conv_out.bias", "vae": "decoder.conv_out.bias", "text_encoder": "final_layer_norm.bias"}
    weight = next(parameter for name, parameter in module.named_parameters() if name.endswith(names[part]))
    weight.data.fill_(NAN)
    with pytest.raises(SamplingError, match="not finite") as caught:
        list(model.draw(Request(prompts=("a red apple",), num_inference_steps=2, seed=3)))
    assert caught.value.exit_code == 6


def test_without_the_look_at_the_pixels_a_picture_would_be_black(monkeypatch):
    images = torch.full((1, 3, 4, 4), NAN)
    with pytest.raises(SamplingError):
        to_pil(images)
    monkeypatch.setattr(torch, "isfinite", lambda tensor: torch.ones_like(tensor, dtype=torch.bool))
    assert np.asarray(to_pil(images)[0]).max() == 0
