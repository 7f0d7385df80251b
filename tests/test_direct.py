import dataclasses

import pytest
import torch
from PIL import Image

from t2im import generate_images_direct
from t2im.card import ModelFacts
from t2im.errors import T2IMError, UsageError
from t2im.infotext import read_settings

CAPTIONS = {"a red apple", "a blue owl in the snow", "two green pears on a white plate"}


def test_the_one_call_of_the_notebook(tiny_checkpoint):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, so there is no fallback to see")
    with pytest.warns(UserWarning, match='no device "cuda" here; using "cpu" instead'):
        images = generate_images_direct(unet_path=tiny_checkpoint, device="cuda")
    assert [image.size for image in images] == [(16, 16)] * 4
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)


def test_without_prompts_it_draws_captions_of_the_training_set(tiny_checkpoint, tmp_path):
    folder = tmp_path / "pictures"
    images = generate_images_direct(tiny_checkpoint, num_images=4, seed=7, output_dir=folder)
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"0000{i + 1}-{7 + i}.png" for i in range(4)]
    prompts = [read_settings(path)["request"]["prompt"] for path in paths]
    assert set(prompts) == CAPTIONS
    assert prompts[3] == prompts[0]
    for image, path in zip(images, paths, strict=True):
        with Image.open(path) as saved:
            assert saved.tobytes() == image.tobytes()
    again = generate_images_direct(tiny_checkpoint, num_images=4, seed=7)
    assert [image.tobytes() for image in again] == [image.tobytes() for image in images]


def test_settings_reach_the_pictures(tiny_model, tmp_path):
    model = tiny_model.save(tmp_path / "model")
    settings = {
        "negative_prompt": "blurry",
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "seed": 5,
        "scheduler": "ddpm",
        "height": 24,
        "width": 20,
    }
    images = generate_images_direct(
        model, "cpu", prompts="a red apple", num_images=2, output_dir=tmp_path / "out", **settings
    )
    assert [image.size for image in images] == [(20, 24)] * 2
    request = read_settings(tmp_path / "out" / "00002-6.png")["request"]
    assert request == {"prompt": "a red apple", "guidance_rescale": 0.0, "eta": 0.0, **settings, "seed": 6}
    _, expected = tiny_model("a red apple", num_images=2, **settings)
    assert images[1].tobytes() == expected.image.tobytes()


def test_several_prompts_make_several_pictures(tiny_checkpoint):
    assert len(generate_images_direct(tiny_checkpoint, prompts=["a", "b"], num_images=2, num_inference_steps=1)) == 4


def test_a_model_without_captions_asks_for_prompts(tiny_model, tmp_path):
    forgetful = dataclasses.replace(tiny_model, facts=ModelFacts(name="forgetful"))
    with pytest.raises(UsageError, match="remembers no captions"):
        generate_images_direct(forgetful.save(tmp_path / "model"))


def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(T2IMError, match="cannot write there"):
        generate_images_direct("no/model", output_dir=tmp_path / "file" / "out")


def test_an_unknown_device_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r'did you mean "cuda"'):
        generate_images_direct("no/model", "cuad")
