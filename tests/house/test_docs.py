"""What the documents say is so: commands parse, Python runs, tables agree with the code, links lead somewhere."""

import ast
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

import t2im.advice.plan
import t2im.model
import t2im.model_folder
import t2im.training.at_hand
import t2im.training.run
from t2im.cli.main import app
from t2im.errors import UsageError
from t2im.networks import UNetConfig
from t2im.recipe import load_config
from t2im.samplers import SCHEDULERS, require_able
from t2im.stock import stock_obstacle
from t2im.sweeps.grid import budget_settings, grid

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "t2im"
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/data.md",
    "docs/before-training.md",
    "docs/training.md",
    "docs/configuration.md",
    "docs/recipes.md",
    "docs/precision.md",
    "docs/reliability.md",
    "docs/ema.md",
    "docs/watching.md",
    "docs/models.md",
    "docs/unet.md",
    "docs/objectives.md",
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_COMMANDS = {"source", "pip", "python", ".venv/bin/pre-commit", ".venv/bin/pytest"}
TINY = (
    "data.resolution=16",
    "training.batch_size=4",
    "training.epochs=1",
    "training.evaluations=1",
    "unet.block_out_channels=(8,16)",
    "unet.addition_embed_type=none",
    "unet.norm_num_groups=4",
    "unet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
    "unet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')",
    "vae_training.good_enough_psnr=0.1",
    "clip_training.good_enough_pieces=100",
    "sampling.num_inference_steps=2",
)


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document, language):
    return [body for found, body in FENCE.findall(text_of(document)) if found == language]


def command_lines(text):
    """Split shell text into commands, without comments and assignments of no interest."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def parse(arguments):
    """Parse the arguments of a `t2im` command without running it; return the leaf command's context."""
    command, context = get_command(app), None
    while hasattr(command, "resolve_command"):
        context = command.make_context("t2im", [], parent=context, resilient_parsing=True)
        name, command, arguments = command.resolve_command(context, list(arguments))
        assert command is not None, f"no such command: {name}"
    return command.make_context(command.name, list(arguments), parent=context)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_the_documents_exist_with_their_options(document):
    makefile = text_of("Makefile")
    commands = [words for body in blocks(document, "bash") for words in command_lines(body)]
    assert commands
    for program, *arguments in commands:
        if program == "t2im":
            options = parse(arguments).params
            settings = options.get("settings") or ()
            if arguments[0] == "sweep":
                assert grid(options["bases"] or (), settings, budget_settings(options["budget"]))
            else:
                load_config(options.get("recipe"), settings=settings)
        elif program == "make":
            assert all(f"\n{target}:" in makefile for target in arguments)
        else:
            assert program in OTHER_COMMANDS
            files = [word for word in arguments if word.endswith((".py", ".txt"))]
            assert all((ROOT / word).is_file() for word in files)


@pytest.mark.parametrize(
    "line", ["generate --stepz 3 x", "trane x", "data chekc x", "generate", "train x --epochs few"]
)
def test_a_command_that_does_not_exist_is_seen(line):
    with pytest.raises(Exception, match=r"(?i)no such|missing|should be a valid"):
        parse(shlex.split(line))


@pytest.fixture
def newcomer(tiny_model, tiny_checkpoint, tmp_path, monkeypatch):
    """Put the reader of a document at a place with a folder of photos, a trained model, and a built-in one."""
    tiny_model.save(tmp_path / "builtin")
    for module in (t2im.model, t2im.training.at_hand):
        monkeypatch.setattr(module, "builtin_folder", lambda: tmp_path / "builtin")
    for module in (t2im.training.run, t2im.advice.plan):
        monkeypatch.setattr(module, "load_config", lambda recipe, settings: load_config(recipe, settings=TINY))
    shutil.copytree(tmp_path / "builtin", tmp_path / "output" / "model")
    for suffix in (".pt", ".pt.sha256"):
        path = tiny_checkpoint.with_name(f"checkpoint_epoch_1{suffix}")
        text = path.read_bytes() if suffix == ".pt" else path.read_bytes().replace(b"epoch_1.", b"epoch_600.")
        path.with_name(f"checkpoint_epoch_600{suffix}").write_bytes(text)
    (tmp_path / "photos" / "images").mkdir(parents=True)
    captions = {f"{colour}.png": f"a {colour} cat" for colour in ("black", "grey", "red", "white", "brown")}
    for name in captions:
        Image.new("RGB", (17, 19), name.removesuffix(".png")).save(tmp_path / "photos" / "images" / name)
    (tmp_path / "photos" / "captions.json").write_text(json.dumps(captions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document, "python")])
def test_python_of_the_documents_runs(document, newcomer, capsys):
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as that there is no CUDA here
        for body in blocks(document, "python"):
            exec(compile(body, document, "exec"), names)
    assert names


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_of_the_documents_lead_somewhere(document):
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in text_of(document).splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert ((ROOT / document).parent / target).exists(), target


def test_defaults_in_the_documents_are_those_of_the_code():
    rows = re.findall(r"^\| `([a-z_]+)\.([a-z_]+)` \| `([^`]+)` \|", text_of("docs/training.md"), re.MULTILINE)
    assert len(rows) > 15
    config = load_config()
    for group, name, default in rows:
        assert getattr(getattr(config, group), name) == ast.literal_eval(default), f"{group}.{name}"


def test_samplers_in_the_documents_are_those_that_exist():
    section = text_of("docs/models.md").partition("## Samplers\n")[2].partition("\n\n#")[0]
    assert re.findall(r"`([^`]+)`", section.split(". ")[0]) == list(SCHEDULERS)


def test_what_samplers_can_run_in_the_documents_is_what_the_code_says():
    def able(name, *, zero_snr=False, prediction_type="epsilon"):
        try:
            require_able(name, prediction_type, zero_snr=zero_snr)
        except UsageError:
            return "no"
        settings = {"padding": "attend", "prediction_type": prediction_type, "scheduler": name}
        return "here only" if stock_obstacle(UNetConfig(), **settings) else "stock"

    section = text_of("docs/objectives.md").partition("## Which sampler")[2]
    rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", section, re.MULTILINE)
    columns = ({}, {"prediction_type": "sample"}, {"zero_snr": True}, {"prediction_type": "flow"})
    assert rows == [(name, *(able(name, **column) for column in columns)) for name in SCHEDULERS]


def question_of(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    question, mark, _ = " ".join(docstring.split()).partition("?")
    return question + mark


def test_the_course_asks_the_questions_that_its_files_answer():
    course = text_of("README.md").partition("### The course")[2].partition("### ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", course, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 18))
    for _, files, questions in rows:
        paths = [ROOT / name for name in re.findall(r"\((src/t2im/[\w/]+\.py)\)", files)]
        assert questions == " ".join(map(question_of, paths))


def public_definitions(tree, prefix=""):
    """Yield public functions and classes of a module, and public methods of these classes, by name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


def test_every_public_name_says_what_it_is_for():
    silent = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = [("", tree), *public_definitions(tree)]
        silent += [f"{path.relative_to(SOURCE)}: {name}" for name, node in named if not ast.get_docstring(node)]
    assert silent == []


def test_every_file_begins_with_the_question_that_it_answers():
    exempt = {path for path in SOURCE.rglob("*.py") if path.name == "__init__.py" or path.parent.name == "cli"}
    for path in set(SOURCE.rglob("*.py")) - exempt:
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        assert "?" in first, path.relative_to(SOURCE).as_posix()
