"""How does a trained model become the one that ships? Halved to fp16, weighed, loaded back, and put into the package.

    python tools/install_builtin.py output/builtin/model --attribution data/emoji/ATTRIBUTION.md

`make builtin` ends with this command. Nothing is replaced before the new model has proved that it draws.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from t2im.errors import ModelError, T2IMError
from t2im.files import atomic_folder
from t2im.model import TextToImage

BUILTIN = Path(__file__).parents[1] / "src" / "t2im" / "builtin"
NAME = "t2im-emoji"
LICENSE = "apache-2.0"
DATA = {
    "artwork": "Noto Emoji (Apache-2.0), Fluent Emoji and Fluent Emoji Flat (MIT), Twemoji (CC-BY-4.0)",
    "names": "emojibase-data (MIT)",
}
"""What every model of `make builtin` learned from, with the licences that stay on it."""
LARGEST = 40 * 10**6
"""Bytes; the package carries the model to every machine, needed or not."""


def install(source: Path, target: Path, *, attribution: Path | None = None, largest: int = LARGEST) -> int:
    """Put a model in fp16 into a folder, replacing the one there; return its size in bytes.

    attribution: a file about whose artwork it learned from, which stays beside it.

    Raises: ModelError if the model is too large or does not draw; then nothing has changed.
    """
    model = TextToImage.load(source)
    data = {**model.facts.data, **DATA}
    model = replace(model, facts=model.facts.model_copy(update={"name": NAME, "license": LICENSE, "data": data}))
    with tempfile.TemporaryDirectory() as temporary:
        folder = model.save(Path(temporary) / "model", dtype="float16")
        if attribution is not None:
            shutil.copyfile(attribution, folder / "ATTRIBUTION.md")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > largest:
            raise ModelError(
                f"{source}: {size / 1e6:.1f} MB in fp16, and {largest / 1e6:g} are allowed. Train a smaller one."
            )
        prompt = next(iter(model.facts.captions), "a red apple")
        TextToImage.load(folder)(prompt, seed=0)
        with atomic_folder(target) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
    return size


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a trained model the built-in one.")
    parser.add_argument("model", type=Path, help="a model folder, or a checkpoint")
    parser.add_argument("--attribution", type=Path, help="a file to keep beside the model")
    arguments = parser.parse_args()
    try:
        size = install(arguments.model, BUILTIN, attribution=arguments.attribution)
    except T2IMError as error:
        sys.exit(f"install_builtin: {error}")
    sys.stdout.write(f"{BUILTIN}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
