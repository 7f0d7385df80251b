"""KahabMiniGenT2Im: a mini Stable Diffusion to train from scratch on your own captioned images, run, and understand.

Three lines to begin with:

    import t2im
    model = t2im.load()                                                 # built in, offline
    model("a red fox in the snow", seed=7).save("fox.png")              # the settings travel in the PNG
"""

import importlib
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2im.config import Config as Config
    from t2im.direct import generate_images_direct as generate_images_direct
    from t2im.errors import T2IMError as T2IMError
    from t2im.infotext import read_settings as read_settings
    from t2im.model import TextToImage as TextToImage
    from t2im.picture import Picture as Picture
    from t2im.recipe import load_config as load_config
    from t2im.training.run import train as train

    load = TextToImage.load

__version__ = "0.1.0"

_HOMES = {
    "Config": "t2im.config:Config",
    "Picture": "t2im.picture:Picture",
    "T2IMError": "t2im.errors:T2IMError",
    "TextToImage": "t2im.model:TextToImage",
    "generate_images_direct": "t2im.direct:generate_images_direct",
    "load": "t2im.model:TextToImage.load",
    "load_config": "t2im.recipe:load_config",
    "read_settings": "t2im.infotext:read_settings",
    "train": "t2im.training.run:train",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Find a public name where it lives, on first use: importing the package imports no torch (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, path = _HOMES[name].partition(":")
    return attrgetter(path)(importlib.import_module(module))


def __dir__() -> list[str]:
    """List the public names before they are loaded, for completion."""
    return sorted(__all__)
