"""Every test runs with checked shapes, and on models that are built here, never downloaded."""

import pytest
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeException
from jaxtyping import install_import_hook

NUMBERS = BeartypeConf(is_pep484_tower=True)  # a whole number is a float, as for every type checker


def checked(function):
    """Check a function's annotations, except what beartype cannot: Self, and names imported for type checkers only."""

    def checkable(hint):
        try:
            is_bearable(None, hint, conf=NUMBERS)
        except BeartypeException:
            return False
        return True

    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if checkable(hint)}
    return beartype(function, conf=NUMBERS)


# Only what is imported after this is checked: hence no import of the package above or beside it. The hook wants an
# expression that begins with a module's name; this file has none that one could rely on.
install_import_hook("t2im", f"sys.modules[{__name__!r}].checked")

CAPTIONS = ("a red apple", "a blue owl in the snow", "two green pears on a white plate")


@pytest.fixture(scope="session")
def build_model():
    """Return a function that builds a model with random weights, which draws 16x16 pixels in milliseconds."""
    import torch

    from t2im.card import ModelFacts
    from t2im.config import SamplingConfig, ScheduleConfig
    from t2im.diffusion.schedule import Schedule
    from t2im.encoders.text import new_clip, text_part, train_tokenizer
    from t2im.encoders.vae import VAE, new_vae
    from t2im.model import TextToImage
    from t2im.networks import CLIPConfig, UNetConfig, VAEConfig
    from t2im.nn.unet import ConditionalUNet

    unet = UNetConfig(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        attention_head_dim=2,
        cross_attention_dim=10,
        norm_num_groups=4,
    )
    vae = VAEConfig(latent_channels=3, block_out_channels=(4, 8), norm_num_groups=4)
    clip = CLIPConfig(
        vocab_size=540,
        context_length=37,
        width=10,
        layers=1,
        heads=2,
        vision_width=8,
        vision_layers=1,
        vision_heads=1,
        image_size=8,
        projection_dim=5,
    )

    def build(schedule=None, *, padding="attend", scheduler="ddim", seed=5):
        torch.manual_seed(seed)
        tokenizer = train_tokenizer(CAPTIONS, clip.vocab_size, clip.context_length)
        return TextToImage(
            unet=ConditionalUNet(unet).eval().requires_grad_(False),
            vae=VAE(new_vae(vae, 16).eval().requires_grad_(False)),
            text_encoder=text_part(new_clip(clip, tokenizer).eval().requires_grad_(False), tokenizer, padding),
            schedule=schedule or Schedule(ScheduleConfig()),
            sampling=SamplingConfig(num_inference_steps=3, guidance_scale=3.0, scheduler=scheduler),
            facts=ModelFacts(name="tiny", captions=CAPTIONS, training={"steps": 7}, latents={"mean": [0.5]}),
        )

    return build


@pytest.fixture(scope="session")
def tiny_model(build_model):
    """Return one tiny model for all tests; nobody may change it."""
    return build_model()


@pytest.fixture(scope="session")
def tiny_state(tiny_model):
    """Return what a run of the tiny model would save, with an average that differs from the raw weights."""
    import torch

    from t2im.config import Config

    weights = tiny_model.unet.state_dict()
    config = Config(unet=tiny_model.unet.config, sampling=tiny_model.sampling)
    vae, text_encoder = tiny_model.vae, tiny_model.text_encoder
    return {
        "unet": weights,
        "ema": {name: weight * 0.9 for name, weight in weights.items()} | {"updates": 5},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "progress": {"step": 7, "samples": 70, "epoch": 1},
        "judged_by": {"heldout_loss": 0.3},
        "rng": {"torch": torch.get_rng_state()},
        "environment": {"torch": "2.13.0"},
        "config": config.model_dump(mode="json"),
        "encoders": {
            "vae": {"folder": "encoders/vae", "sha256": vae.sha256, "source": "trained"},
            "text_encoder": {"folder": "encoders", "sha256": text_encoder.sha256, "source": "trained"},
        },
        "data": {"images": 3, "captions": list(CAPTIONS), "latents": {"mean": [0.5, 0.0, 0.0]}},
        "summary": {"steps": 7},
    }


@pytest.fixture
def tiny_checkpoint(tiny_model, tiny_state, tmp_path):
    """Return the path of a checkpoint with its encoders beside it."""
    from t2im.checkpoint import write_checkpoint

    path = tmp_path / "output" / "checkpoint_epoch_1.pt"
    tiny_model.vae.save(path.parent / "encoders" / "vae")
    tiny_model.text_encoder.save(path.parent / "encoders")
    write_checkpoint(path, tiny_state)
    return path
