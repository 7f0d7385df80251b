"""How does a picture remember how it was made?

A PNG may carry named texts beside its pixels. We write two:

    t2im        JSON with everything, lossless: the request, the resolved seed, the model, the versions
    parameters  the three-part text that AUTOMATIC1111's web UI made the common tongue of picture tools:

        a red fox in the snow
        Negative prompt: blurry
        Steps: 30, Sampler: DDIM, Schedule type: Automatic, CFG scale: 4, Seed: 7, Size: 64x64, ...

Readers take the last line for the settings when it holds three pairs or more, so it is always written, and a prompt
may span lines. The common text cannot tell a prompt's own line `Negative prompt: ...` from the real one; the JSON can.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from t2im.errors import DataError

SCHEMA = 1
"""Version of the JSON; a reader refuses what is newer than itself."""

SAMPLER_LABELS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm++2m": "DPM++ 2M",
    "unipc": "UniPC",
    "pndm": "PLMS",
    "deis": "DEIS",
    "lcm": "LCM",
    "lms": "LMS",
}
"""What other tools call our samplers."""

_NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def parameters_text(settings: Mapping[str, Any]) -> str:
    """Write settings (the value of the `t2im` chunk) in the common tongue.

    >>> print(parameters_text({"request": {"prompt": "a red fox", "num_inference_steps": 30, "guidance_scale": 4.0,
    ...     "scheduler": "ddim", "width": 64, "height": 64}, "resolved_seed": 7}))
    a red fox
    Steps: 30, Sampler: DDIM, Schedule type: Automatic, CFG scale: 4, Seed: 7, Size: 64x64, RNG: CPU
    """
    request, model, versions = (settings.get(part, {}) for part in ("request", "model", "versions"))
    scheduler = request.get("scheduler")
    sides = request.get("width"), request.get("height")
    pairs = {
        "Steps": request.get("num_inference_steps"),
        "Sampler": SAMPLER_LABELS.get(scheduler, scheduler),
        "Schedule type": "Automatic",
        "CFG scale": request.get("guidance_scale"),
        "Seed": settings.get("resolved_seed"),
        "Size": f"{sides[0]}x{sides[1]}" if all(sides) else None,
        "Model hash": model["sha256"][:10] if model.get("sha256") else None,
        "Model": re.sub(r'[,:"\s]+', "_", model["name"]) if model.get("name") else None,
        "Eta DDIM": request.get("eta") or None,
        "RNG": "CPU",
        "Version": f"t2im {versions['t2im']}" if "t2im" in versions else None,
    }
    lines = [request.get("prompt", "")]
    if request.get("negative_prompt"):
        lines.append(_NEGATIVE + request["negative_prompt"])
    lines.append(", ".join(f"{key}: {_value(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, Any]:
    """Read the common tongue, also from other tools, into settings of the same form as our JSON.

    Raises: DataError if the last line is no line of settings.
    """
    *lines, last = text.split("\n")
    pairs = dict(_PAIR.findall(last))
    if len(pairs) < 3:
        raise DataError(
            '"parameters" does not end in a line such as "Steps: 30, Sampler: DDIM, CFG scale: 4, Seed: 7".'
        )
    pairs = {key: _unquoted(value) for key, value in pairs.items()}
    split = next((index for index, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[split:]).removeprefix(_NEGATIVE)
    names = {label: name for name, label in SAMPLER_LABELS.items()}
    width, _, height = pairs.get("Size", "").partition("x")
    request = {
        "prompt": "\n".join(lines[:split]),
        "negative_prompt": negative,
        "num_inference_steps": _number(pairs.get("Steps")),
        "guidance_scale": _number(pairs.get("CFG scale")),
        "scheduler": names.get(pairs.get("Sampler", ""), pairs.get("Sampler")),
        "eta": _number(pairs.get("Eta DDIM")),
        "width": _number(width),
        "height": _number(height),
    }
    model = {"name": pairs.get("Model"), "sha256": pairs.get("Model hash")}
    return {
        "schema": SCHEMA,
        "request": {key: value for key, value in request.items() if value is not None},
        "resolved_seed": _number(pairs.get("Seed")),
        "model": {key: value for key, value in model.items() if value is not None},
    }


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return how a picture was made: our JSON if the PNG has it, else what the common text says.

    Raises: DataError if there is no such picture, it holds no settings, or a newer version wrote them.
    """
    try:
        with Image.open(path) as image:
            image.load()  # texts may also follow the pixels
            texts = image.info
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable picture ({error}).") from None
    if "t2im" in texts:
        try:
            settings = json.loads(texts["t2im"])
            schema = int(settings["schema"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: its settings are damaged ({error!r}).") from None
        if schema > SCHEMA:
            raise DataError(f"{path}: its settings have schema {schema}, this version reads {SCHEMA}. Update t2im.")
        return dict(settings)
    if isinstance(texts.get("parameters"), str):
        try:
            return parse_parameters(texts["parameters"])
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    raise DataError(f"{path}: holds no settings; only PNG files written by t2im or compatible tools do.")


def _value(value: Any) -> str:
    """Quote what holds a separator; write whole numbers without a fraction."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _unquoted(text: str) -> str:
    """Undo the quoting; what only looks quoted stays as it is."""
    try:
        return str(json.loads(text)) if text.startswith('"') else text.strip()
    except ValueError:
        return text


def _number(text: str | None) -> int | float | None:
    """Read a number if it is one."""
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return None
