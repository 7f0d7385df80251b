"""What no line of this package may do: run code that came in a file, hand a shell a string, or name this machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "pickle.load": "runs what the file says",
    "pickle.loads": "runs what the file says",
    "pickle.Unpickler": "runs what the file says",
    "marshal.loads": "runs what the file says",
    "joblib.load": "runs what the file says",
    "shelve.open": "runs what the file says",
    "torch.jit.load": "runs what the file says",
    "torch.export.load": "runs what the file says",
    "yaml.load": "runs what the file says",
    "os.system": "hands a shell a string",
    "os.popen": "hands a shell a string",
    "torch.hub.load": "runs code from the network",
}
FORBIDDEN_ARGUMENTS = {"shell": True, "trust_remote_code": True, "weights_only": False, "allow_pickle": True}
ABSOLUTE_PATH = re.compile(r"(?<![\w.~}/)-])/(?:work|root|home|Users|tmp|mnt|opt)/[\w.]")
HOST = re.compile(r"https?://([\w.-]+)")
KNOWN_HOSTS = {
    "arxiv.org",
    "creativecommons.org",
    "editorconfig.org",
    "example.com",
    "example.org",
    "github.com",
    "keepachangelog.com",
    "semver.org",
    "www.apache.org",
    "www.w3.org",  # the name of SVG, not a place
}
"""Places that a reader may be sent to. None of them is a package index: which one is used is the user's affair."""


def calls_that_are_not_safe(source):
    """Return the dangerous calls of some source code, each with its line and the reason."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, arguments = ast.unparse(call.func), {argument.arg: argument.value for argument in call.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(f"{call.lineno}: {name} {FORBIDDEN_CALLS[name]}")
        if name == "torch.load" and getattr(arguments.get("weights_only"), "value", None) is not True:
            found.append(f"{call.lineno}: torch.load without weights_only=True runs what the file says")
        for argument, value in arguments.items() if name != "torch.load" else ():
            if argument in FORBIDDEN_ARGUMENTS and getattr(value, "value", None) is FORBIDDEN_ARGUMENTS[argument]:
                found.append(f"{call.lineno}: {name} with {argument}={value.value}")
    return found


def texts():
    """Yield name and text of every file that people wrote."""
    folders = ("src", "tests", "tools", "docs", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in [*paths, *ROOT.iterdir()]:
        generated = "__pycache__" in path.parts or "builtin" in path.parts
        if path.is_file() and not generated and path.suffix in {"", ".py", ".md", ".toml", ".txt", ".yaml", ".ipynb"}:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_no_call_of_the_package_trusts_a_file():
    files = list((ROOT / "src").rglob("*.py"))
    assert len(files) > 40
    found = {path.name: calls_that_are_not_safe(path.read_text(encoding="utf-8")) for path in files}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.load(file)",
        "yaml.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=trusted)",
        "torch.jit.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_watch_sees_a_dangerous_call(line):
    assert len(calls_that_are_not_safe(f"def f():\n    return {line}\n")) == 1


def test_safe_calls_pass():
    assert calls_that_are_not_safe("torch.load(path, weights_only=True); ast.literal_eval(t); model.eval()") == []


def test_no_file_names_a_place_on_somebodys_machine():
    checkout = str(ROOT)
    found = {name for name, text in texts() if ABSOLUTE_PATH.search(text) or checkout in text}
    assert found == set()


def test_a_place_on_somebodys_machine_is_seen():
    for folder in ("work", "root", "home", "Users"):
        assert ABSOLUTE_PATH.search(f'open("/{folder}/someone/data")')
    assert not ABSOLUTE_PATH.search("captions and images/work/ are relative")


def test_no_file_sends_anyone_to_an_unknown_host():
    found = {name: sorted(set(HOST.findall(text)) - KNOWN_HOSTS) for name, text in texts()}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}


def test_constraints_pin_versions_and_name_no_index():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert "torch==2.13.0" in lines
