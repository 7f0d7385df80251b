"""The VAE and CLIP learn what they are for, on squares of one colour."""

import pytest
import torch
from PIL import Image

from t2im.config import DataConfig, VAETrainingConfig
from t2im.data.captions import Example
from t2im.encoders.text import train_tokenizer
from t2im.networks import CLIPConfig, VAEConfig
from t2im.training.discriminator import Judge
from t2im.training.tasks import CLIPTask, ImageBatches, VAETask, contrastive_loss

DATA = DataConfig(resolution=16)
COLOURS = ("red", "green", "blue", "black", "white", "yellow")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for colour in COLOURS:
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
    return [Example(folder / f"{colour}.png", (f"a {colour} square",)) for colour in COLOURS]


def descend(task, steps, batch_size, learning_rate):
    optimizer = torch.optim.AdamW(task.model.parameters(), learning_rate)
    task.model.train()
    for step in range(steps):
        loss, numbers = task.loss(task.model, range(step * batch_size, (step + 1) * batch_size))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    task.model.eval()
    return numbers


def test_the_vae_learns_to_redraw(examples, tmp_path):
    vae = VAEConfig(latent_channels=3, block_out_channels=(8, 8), norm_num_groups=4)
    task = VAETask(examples, examples[:3], DATA, vae, VAETrainingConfig(), seed=1)
    before = task.evaluate(task.model)["heldout_psnr"]
    numbers = descend(task, 80, 6, 0.02)
    assert task.evaluate(task.model)["heldout_psnr"] > before + 3
    assert set(numbers) == {"pixels", "detail", "kl"}
    task.preview(task.model, tmp_path / "previews" / "vae.png")
    with Image.open(tmp_path / "previews" / "vae.png") as preview:
        assert preview.size == (3 * 18 - 2, 2 * 18 - 2)


def test_the_loss_of_the_vae_is_its_formula(examples):
    vae = VAEConfig(latent_channels=3, block_out_channels=(8, 8), norm_num_groups=4)
    settings = VAETrainingConfig(kl_weight=0.25, detail_weight=0.5)
    task = VAETask(examples, examples[:1], DATA, vae, settings, seed=1)
    loss, parts = task.loss(task.model, range(6))
    assert loss.item() == pytest.approx((parts["pixels"] + 0.5 * parts["detail"] + 0.25 * parts["kl"]).item(), rel=1e-5)
    again, _ = task.loss(task.model, range(6))
    assert loss.item() == again.item()


def test_the_discriminator_joins_late_learns_and_is_saved(examples):
    vae = VAEConfig(latent_channels=3, block_out_channels=(8, 8), norm_num_groups=4)
    settings = VAETrainingConfig(steps=4, adversarial_steps=2, adversarial_weight=0.5)

    def task():
        return VAETask(examples, examples[:1], DATA, vae, settings, seed=1)

    first, second = task(), task()
    joined = []
    for step in range(4):
        loss, numbers = first.loss(first.model, range(6 * step, 6 * step + 6))
        loss.backward()
        joined.append("discriminator" in numbers)
    assert joined == [False, False, True, True]
    plain = numbers["pixels"] + numbers["detail"] + 1e-4 * numbers["kl"]
    assert loss.item() != pytest.approx(plain.item(), rel=1e-6)
    assert all(p.grad is not None for p in first.model.vae.decoder.parameters())
    second.load_state_dict(first.state_dict())
    again = [one.loss(one.model, range(30, 36))[1]["discriminator"].item() for one in (first, second)]
    assert again[0] == again[1] != task().loss(task().model, range(30, 36))[1]["discriminator"].item()


def test_a_judge_learns_to_tell_blur_from_edges():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(8, 3, 16, 16, generator=generator).sign()
    blurred = torch.nn.functional.avg_pool2d(real, 3, stride=1, padding=1)
    judge = Judge(0.01, seed=1)
    losses = [judge.learn(real, blurred).item() for _ in range(15)]
    assert losses[-1] < 0.3 * losses[0]
    assert judge.objection(blurred) > judge.objection(real)


def test_clip_learns_which_words_go_with_which_image(examples):
    clip = CLIPConfig(
        vocab_size=540,
        context_length=16,
        width=16,
        heads=2,
        layers=1,
        vision_width=16,
        vision_heads=2,
        vision_layers=1,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    tokenizer = train_tokenizer([example.captions[0] for example in examples], 540, 16)
    task = CLIPTask(examples, examples, DATA, clip, tokenizer, seed=1)
    before = task.evaluate(task.model)
    descend(task, 60, 6, 0.01)
    after = task.evaluate(task.model)
    assert after["recall_at_1"] >= 5 / 6 > before["recall_at_1"] and after["heldout_loss"] < before["heldout_loss"]


def test_samples_of_an_epoch_show_each_image_once(examples):
    batches = ImageBatches(examples, DATA, 16, seed=4)
    assert sorted(example.path.stem for example in batches.at(range(6, 12))) == sorted(COLOURS)


def test_moving_an_image_is_a_function_of_its_sample(examples):
    batches = ImageBatches(examples, DATA, 16, seed=4)
    images = torch.rand(2, 3, 16, 16)
    both = batches.moved(images, range(10, 12))
    assert torch.equal(both[1:], batches.moved(images[1:], range(11, 12))) and both.shape == images.shape


def test_contrastive_loss_meets_its_closed_form():
    certain, undecided = 50 * torch.eye(3), torch.zeros(3, 3)
    pairs = torch.eye(3, dtype=torch.bool)
    assert contrastive_loss(certain, pairs).item() == pytest.approx(0.0, abs=1e-6)
    assert contrastive_loss(undecided, pairs).item() == pytest.approx(torch.log(torch.tensor(3.0)).item())


def test_images_of_equal_captions_are_right_answers_of_each_other():
    pairs = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    both = 50.0 * pairs
    assert contrastive_loss(both, pairs).item() == pytest.approx(2 / 3 * 0.693147, rel=1e-4)
    assert contrastive_loss(50 * torch.eye(3), pairs).item() > 5
