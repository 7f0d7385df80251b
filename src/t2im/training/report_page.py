"""How did a run go, on one page that can be sent to anybody? `report.html`: curves, previews, data, command, settings.

One file without any link, script or font from elsewhere: it opens on a machine without a network, in ten years too. All
text of the run (captions, paths, error messages) is escaped, and the page forbids its own scripts besides, so that no
caption can do anything but be read.
"""

import base64
import datetime
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from t2im.files import write_text
from t2im.training.chart import STYLE, Line, Mark, chart, smoothed
from t2im.training.history import History, read_history
from t2im.training.verdict import findings

REPORT = "report.html"
MOST_PREVIEWS = 12
PREVIEW_SIDE, LAST_PREVIEW_SIDE = 420, 840
"""Pixels of the longer side of embedded previews; so the page stays at a few megabytes, whatever was drawn."""

PAGE_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --soft: #6b7078; --rule: #e3e5e8; --card: #f6f7f8;
  --good: #15803d; --bad: #b45309; --c0: #2563eb; --c1: #d9480f; --c2: #15803d; --c3: #7e22ce; --c4: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --ink: #e6e8ea; --soft: #9aa0a8; --rule: #30343a;
  --card: #1e2125; --good: #4ade80; --bad: #fbbf24; --c0: #60a5fa; --c1: #fb923c; --c2: #4ade80; --c3: #c084fc;
  --c4: #22d3ee; } }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; } h2 { margin: 40px 0 12px; border-bottom: 1px solid var(--rule); } h3 { margin: 0 0 4px; }
p { margin: 4px 0 10px; } .soft, figcaption { color: var(--soft); font-size: 13px; }
.tiles, .charts, .previews { display: grid; gap: 14px; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); margin: 18px 0; }
.tile, .card { background: var(--card); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 20px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
.previews { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); align-items: start; }
figure { margin: 0; } img { max-width: 100%; image-rendering: auto; border-radius: 6px; }
.key { display: inline-block; width: 18px; height: 3px; margin: 0 5px 3px 0; vertical-align: middle; }
.key.dashed { background: none !important; border-top: 2px dashed var(--soft); height: 0; }
.legend span { margin-right: 14px; white-space: nowrap; font-size: 13px; }
li.good::marker { content: "✓  "; color: var(--good); } li.bad::marker { content: "!  "; color: var(--bad); }
pre { background: var(--card); padding: 12px; border-radius: 10px; overflow-x: auto; white-space: pre-wrap; }
table { border-collapse: collapse; } td { padding: 3px 18px 3px 0; vertical-align: top; }
"""

# Beside each chart: how to read it.
READING = {
    "loss": "The training loss jumps, for every step meets other noise; its trend counts. The held-out loss asks the same "
    "questions every time. When it rises while the training loss falls, images are being learned by heart. Below the "
    "dashed line the model knows something of pictures. A training loss with weights has a scale of its own.",
    "x0": "The error of the clean picture that the model sees through the noise, at noise levels that are the same for "
    "every objective and schedule: the number to compare runs by. Lower is better.",
    "gain": "The share of the error that only the right caption removes. 0: the text is not read. It rises late, after "
    "the first outlines.",
    "bins": "The held-out loss by quarters of the time axis: t0 has the least noise (fine detail), t3 the most "
    "(composition). One that stands still while others fall shows where the model is short of capacity or practice.",
    "rate": "What the schedule of the learning rate made of the peak rate.",
    "norm": "Before clipping. A steady level is good; spikes come before trouble; a steep rise asks for a lower rate.",
    "speed": "Samples per second of training steps. A fall means that something else uses the machine.",
    "memory": "The most that the process, or the GPU, has needed so far. A steady rise would be a leak.",
}


def write_report(folder: str | Path) -> Path:
    """Make the page of a run anew from what lies in its folder, whether the run goes on, was stopped or has ended.

    Raises: DataError if there is no run in the folder.
    """
    folder = Path(folder)
    path = folder / REPORT
    write_text(path, page(read_history(folder), previews(folder), name=folder.resolve().name))
    return path


def page(history: History, pictures: Sequence[tuple[int, str]], *, name: str) -> str:
    """Return the whole page; pictures: (step, data URL) of previews, the oldest first."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Nothing may be loaded or run, whatever gets into the page.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: how the run went</title>\n<style>{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n"
    )
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{escape(_state(history))}</p>',
        _tiles(history),
        _section("What the curves say", _findings(history)),
        _section("Curves", f'<div class="charts">{"".join(_charts(history))}</div>'),
        _section("Previews", _previews(history, pictures)),
        _section("Data", _data(history.start.get("data", {}))),
        _section("The run", _run(history)),
    ]
    return head + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def previews(folder: Path) -> list[tuple[int, str]]:
    """Return (step, data URL) of at most twelve previews, evenly chosen, the first and the last among them."""
    found = sorted((folder / "previews").glob("*_step_*.png"))
    count = min(MOST_PREVIEWS, len(found))
    chosen = [found[round(index * (len(found) - 1) / max(1, count - 1))] for index in range(count)]
    return [
        (int(path.stem.rpartition("_")[2]), _data_url(path, LAST_PREVIEW_SIDE if path == found[-1] else PREVIEW_SIDE))
        for path in chosen
        if re.fullmatch(r"\w+_step_\d+", path.stem)
    ]


def _data_url(path: Path, side: int) -> str:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _state(history: History) -> str:
    ends = [event for event in history.story if event["event"] == "end"]
    told = "finished" if ends and ends[-1].get("finished") else "stopped before its end, or still going on"
    times = [event["time"] for event in (*history.steps, *history.evaluations) if isinstance(event.get("time"), float)]
    when = f"{datetime.datetime.fromtimestamp(max(times)):%Y-%m-%d %H:%M}" if times else "an unknown time"
    return f"The run has {told}. Last sign of life {when}."


def _tiles(history: History) -> str:
    numbers = {
        "steps": f"{history.step:,}",
        "epochs": _shown(history.last("epoch"), ",.0f"),
        "minutes of training": _shown(history.last("training_seconds"), ",.1f", 1 / 60),
        "held-out loss": _shown(history.last("heldout_loss"), ".4f"),
        "x0 error": _shown(history.last("heldout_x0"), ".4f"),
        "text gain": _shown(history.last("text_gain"), ".1%"),
        "samples/s": _shown(history.last("samples_per_second"), ",.1f"),
        "skipped steps": str(history.count("skipped")),
        "resumes": str(history.count("resume")),
    }
    tiles = (f'<div class="tile"><b>{number}</b>{escape(name)}</div>' for name, number in numbers.items() if number)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _shown(value: float | None, form: str, factor: float = 1) -> str:
    return "" if value is None else format(value * factor, form)


def _findings(history: History) -> str:
    items = (f'<li class="{"good" if found.good else "bad"}">{escape(found.text)}</li>' for found in findings(history))
    return f"<ul>{''.join(items)}</ul>"


def _charts(history: History) -> Iterable[str]:
    """Yield the charts for which there are numbers."""
    expected = history.start.get("expected", {})
    known = {name: value for name, value in expected.items() if isinstance(value, int | float)}
    yield _figure(
        "Loss",
        "loss",
        [*_noisy(history, "loss", "training"), *_both(history, "heldout_loss", "held-out")],
        [Mark("knows nothing of pictures", known["blind"])] if "blind" in known else [],
    )
    yield _figure(
        "Error in x0 on held-out images",
        "x0",
        [
            *_both(history, "heldout_x0", "right caption"),
            Line("another's caption", history.curve("heldout_x0_shuffled"), 3),
            Line("no caption", history.curve("heldout_x0_empty"), 4),
        ],
        [Mark("knows nothing of pictures", known["blind_x0"])] if "blind_x0" in known else [],
    )
    yield _figure(
        "Text gain",
        "gain",
        [
            *_both(history, "text_gain", "over another's caption"),
            Line("over none", history.curve("text_gain_empty"), 4),
        ],
        [Mark("reads nothing", 0.0)],
    )
    quarters = [Line(f"t{part}", history.curve(f"heldout_loss_t{part}"), part) for part in range(4)]
    yield _figure("Held-out loss by timestep", "bins", quarters)
    yield _figure("Learning rate", "rate", [Line("learning rate", history.curve("learning_rate"))], from_zero=True)
    yield _figure("Gradient norm", "norm", _noisy(history, "gradient_norm", "gradient norm"), log=True)
    yield _figure("Throughput", "speed", _noisy(history, "samples_per_second", "samples/s"), from_zero=True)
    memory = [Line("process, GB", history.curve("memory_gb")), Line("GPU, GB", history.curve("gpu_memory_gb"), 1)]
    yield _figure("Peak memory", "memory", memory, from_zero=True)


def _noisy(history: History, name: str, words: str) -> list[Line]:
    """Return a curve that jumps from step to step, and its trend."""
    points = history.curve(name)
    return [Line(f"{words}, step by step", points, 0, faint=True), Line(f"{words}, smoothed", smoothed(points), 0)]


def _both(history: History, name: str, words: str) -> list[Line]:
    """Return the curves of the averaged weights and of the raw ones."""
    raw = history.curve(f"raw_{name}")
    return [
        Line(f"{words}{', averaged weights' if raw else ''}", history.curve(name), 1),
        Line(f"{words}, raw", raw, 2),
    ]


def _figure(title: str, reading: str, lines: Sequence[Line], marks: Sequence[Mark] = (), **axis: bool) -> str:
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    legend = [
        f'<span><i class="key" style="background:var(--c{line.colour}){";opacity:.35" if line.faint else ""}"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
    ]
    legend += [f'<span><i class="key dashed"></i>{escape(mark.name)}: {mark.value:.3g}</span>' for mark in marks]
    return (
        f'<figure class="card"><h3>{escape(title)}</h3>{chart(title, lines, marks, **axis)}'
        f'<div class="legend">{"".join(legend)}</div><figcaption>{escape(READING[reading])}</figcaption></figure>'
    )


def _previews(history: History, pictures: Sequence[tuple[int, str]]) -> str:
    if not pictures:
        return ""
    figures = [
        f'<figure><img src="{url}" alt="preview at step {step}"><figcaption>step {step:,}</figcaption></figure>'
        for step, url in pictures
    ]
    intro = "The same prompts from the same noise, with the sampler of t2im generate and the averaged weights."
    return f'<p>{intro} The newest, and how it came about:</p>{figures[-1]}<div class="previews">{"".join(figures[:-1])}</div>'


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    plain = {name: value for name, value in data.items() if isinstance(value, str | int | float)}
    captions = "".join(f"<li>{escape(str(caption))}</li>" for caption in data.get("captions", [])[:12])
    notes = "".join(f'<li class="bad">{escape(str(note))}</li>' for note in data.get("findings", []))
    return (
        _table(plain)
        + (f"<p>Some captions:</p><ul>{captions}</ul>" if captions else "")
        + (f"<p>Worth a look:</p><ul>{notes}</ul>" if notes else "")
    )


def _run(history: History) -> str:
    start = history.start
    parts = []
    if "command" in start:
        parts.append(f"<p>The command:</p><pre>{escape(str(start['command']))}</pre>")
    parts.append(_table(start.get("environment", {})))
    story = "".join(f"<li>{escape(_told(event))}</li>" for event in history.story[-100:])
    parts.append(f"<p>What happened besides:</p><ul>{story}</ul>" if story else "<p>It was never interrupted.</p>")
    if "settings" in start:
        parts.append(f"<details><summary>All settings</summary><pre>{escape(str(start['settings']))}</pre></details>")
    return "".join(parts)


def _told(event: Mapping[str, Any]) -> str:
    at = f"step {event['step']:,}: " if isinstance(event.get("step"), int) else ""
    match event["event"]:
        case "start":
            return "the run was started"
        case "resume":
            return f"{at}resumed from {event.get('path', 'a checkpoint')}"
        case "skipped":
            why = "the loss scale of fp16 was too high" if event.get("excused") else "not finite"
            return f"{at}skipped, {why}, samples {event.get('samples')}"
        case "rollback":
            return f"{at}went back to the newest checkpoint: {event.get('reason', '')}"
        case "end":
            return f"{at}{'finished' if event.get('finished') else 'stopped by the user'}"
        case _:
            return f"{at}{event.get('path')}: {event.get('problem')}"


def _table(rows: Mapping[str, Any]) -> str:
    cells = (
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>"
        f"{escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{''.join(cells)}</table>" if rows else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""
