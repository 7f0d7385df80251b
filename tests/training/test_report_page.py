"""The page is read as a browser would read it: by its tags and attributes."""

import json
import random
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image
from typer.testing import CliRunner

from t2im.cli.main import app
from t2im.training.report_page import MOST_PREVIEWS, write_report

EVIL = '<script>alert("owl")</script><img src=x onerror=alert(1)>'
VOID = {"meta", "img", "br", "link"}
SVG_LEAVES = {"rect", "line", "polyline"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and makes sure that every tag is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a folder with a whole run: 300 steps, 6 evaluations, one resume, 20 previews, and a caption with a trap."""
    tmp_path = tmp_path_factory.mktemp("run")
    events = [
        {
            "event": "start",
            "time": 1.5e9,
            "command": f"t2im train '{EVIL}'",
            "environment": {"torch": "2", "threads": 2},
            "settings": f"[data]\n# {EVIL}",
            "expected": {"zero": 1.0, "blind": 0.9, "blind_x0": 0.5},
            "data": {"images": 12, "captions": [EVIL, "a blue owl"], "findings": [EVIL]},
        },
        {"event": "resume", "time": 1.5e9, "step": 0, "path": EVIL},
    ]
    for step in range(1, 301):
        numbers = {"loss": 1 / step, "learning_rate": 1e-3, "gradient_norm": 0.5, "samples_per_second": 60.0}
        events.append({"event": "step", "time": 1.5e9 + step, "step": step, "epoch": 1, "memory_gb": 1.5, **numbers})
        if step % 50 == 0:
            names = ["heldout_loss", "heldout_x0", "heldout_x0_shuffled", "heldout_x0_empty", "text_gain"]
            names += [f"heldout_loss_t{part}" for part in range(4)]
            numbers = {f"{prefix}{name}": 0.5 + 1 / step for name in names for prefix in ("", "raw_")}
            events.append({"event": "evaluation", "time": 1.5e9 + step, "step": step, **numbers})
    events += [
        {"event": "save", "step": 300, "path": "a.pt", "problem": EVIL},
        {"event": "rollback", "reason": EVIL},
        {"event": "skipped", "step": 7, "samples": [1, 2]},
        {"event": "end", "step": 300, "finished": True},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "previews").mkdir()
    noise = random.Random(5).randbytes(900 * 700 * 3)  # the worst that can be compressed
    picture = tmp_path / "previews" / "unet_step_00000015.png"
    Image.frombytes("RGB", (900, 700), noise).save(picture, compress_level=0)
    for step in range(30, 301, 15):
        shutil.copy(picture, picture.with_name(f"unet_step_{step:08d}.png"))
    return tmp_path


@pytest.fixture(scope="module")
def html(run):
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_is_sound_html_and_shows_everything(html):
    page = Reader(html)
    text = " ".join(page.text)
    for title in ("Loss", "Error in x0", "Text gain", "by timestep", "Learning rate", "Gradient norm", "Throughput"):
        assert title in text
    assert page.tags.count("svg") == 8 and page.tags.count("img") == MOST_PREVIEWS
    assert "knows nothing of pictures: 0.9" in text and "held-out, averaged weights" in text
    assert "The run has finished" in text and "a blue owl" in text and "torch" in text
    assert "went back to the newest checkpoint" in text and "resumed from" in text and "step 300" in text


def test_nothing_comes_from_elsewhere_and_nothing_can_run(html):
    page = Reader(html)
    assert not {"script", "iframe", "link", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert len(sources) == MOST_PREVIEWS and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "@import" not in html and "url(" not in html
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    assert "default-src 'none'" in html and "script-src" not in html


def test_captions_and_messages_are_text_and_nothing_else(html):
    page = Reader(html)
    text = "".join(page.text)
    assert text.count(EVIL) == 7  # command, setting, caption, finding, resume, save, rollback
    assert "<script" not in html


def test_the_page_stays_small_whatever_was_drawn(html):
    assert len(html) < 4_000_000


def test_previews_are_the_first_the_last_and_some_between(html):
    steps = [int(value.split()[-1]) for name, value in Reader(html).attributes if name == "alt"]
    newest, *others = steps
    assert newest == 300 and others[0] == 15 and others == sorted(set(others) - {300}) and len(steps) == MOST_PREVIEWS


def test_a_run_of_an_older_version_or_of_a_minute_still_has_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "step": 1, "loss": 0.5}\n{"event": "evalu')
    page = Reader(write_report(tmp_path).read_text())
    assert page.tags.count("svg") == 1 and "stopped before its end, or still going on" in " ".join(page.text)


def test_the_command_writes_the_page_and_says_where(run):
    answer = CliRunner().invoke(app, ["report", str(run)])
    assert answer.exit_code == 0 and answer.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").stat().st_size > 10_000
