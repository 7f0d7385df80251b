"""Which file may import which? A room imports only from rooms above it in this list, and there are no circles.

A room is a file of `src/t2im`, or one of its folders. A new room is put here first, at the place where it belongs.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "t2im"
GROUND = (
    "errors",
    "settings",
    "networks",
    "migrate",
    "samplers",
    "config",
    "stock",
    "recipe",
    "files",
    "toml",
    "seeds",
    "blocks",
    "content",
    "infotext",
    "request",
    "card",
)
MATHEMATICS = ("shapes", "devices", "weights", "nn", "diffusion")
WORLD = ("data", "encoders", "batches", "cache", "picture", "checkpoint", "model_folder", "model", "direct")
JOBS = ("training", "explain")  # they do not know each other
AROUND = ("advice", "sweeps")  # they begin runs, before and beside the real ones, and do not know each other either
HOUSE = (*GROUND, *MATHEMATICS, *WORLD, *JOBS, *AROUND, "cli")
STRANGERS = {
    ("diffusion", "nn"),
    ("data", "encoders"),
    ("encoders", "data"),
    *((one, other) for one in JOBS for other in JOBS if one != other),
    *((one, other) for one in AROUND for other in (*AROUND, "explain") if one != other),
}


def room_of(file):
    return file.partition("/")[0]


def imports_of(source):
    """Return what each file of a package `t2im` imports of it, anywhere in the file, as names such as "nn/unet"."""
    paths = {path.relative_to(source).with_suffix("").as_posix(): path for path in source.rglob("*.py")}
    files = {name.removesuffix("/__init__"): path for name, path in paths.items() if name != "__init__"}
    graph = {}
    for name, path in files.items():
        dotted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: relative import; write it as t2im.{node.module}"
                dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                dotted |= {alias.name for alias in node.names}
        ours = (target.split(".")[1:] for target in dotted if target.startswith("t2im."))
        known = ({"/".join(parts[:n]) for n in range(1, len(parts) + 1)} & files.keys() for parts in ours)
        graph[name] = {max(candidates, key=len) for candidates in known if candidates} - {name}
    return graph


def offences(graph):
    """Return every import that goes up, to a stranger, or round in a circle."""
    found = [f"{file}: no place in the house yet" for file in graph if room_of(file) not in HOUSE]
    for file, targets in graph.items():
        for target in targets:
            here, there = room_of(file), room_of(target)
            if here != there and {here, there} <= set(HOUSE):
                if (here, there) in STRANGERS:
                    found.append(f"{file} imports {target}, but {here} and {there} do not know each other")
                elif HOUSE.index(there) > HOUSE.index(here):
                    found.append(f"{file} imports {target}, which is further down in the house")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(" imports ".join(reversed(error.args[1])))
    return sorted(found)


def test_every_file_imports_only_from_rooms_above_it():
    assert offences(imports_of(SOURCE)) == []


def test_the_ground_floor_imports_no_torch():
    for room in GROUND:
        source = (SOURCE / f"{room}.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names), f"{room} imports torch"


@pytest.mark.parametrize(
    ("files", "offence"),
    [
        ({"errors": "from t2im.cli.main import app", "cli/main": ""}, "further down"),
        ({"seeds": "def f():\n    from t2im import config, model", "config": "", "model": ""}, "seeds imports model"),
        ({"diffusion/sample": "import t2im.nn.unet", "nn/unet": ""}, "do not know each other"),
        ({"training/run": "from t2im.explain import trace", "explain/__init__": "", "explain/trace": ""}, "know each"),
        ({"nn/a": "from t2im.nn import b", "nn/b": "from t2im.nn.a import name", "nn/__init__": ""}, "imports nn/"),
        ({"attic": ""}, "no place in the house"),
    ],
)
def test_the_rule_bites(files, offence, tmp_path):
    for name, source in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    found = offences(imports_of(tmp_path))
    assert len(found) == 1
    assert offence in found[0]
