"""The course runs as it stands: no cell fails or warns, the loss falls, and what is written out equals the package.

The notebook is committed with its outputs. After a change: jupyter execute --inplace KahabMiniGenT2Im.ipynb
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "KahabMiniGenT2Im.ipynb"
LARGEST = 1_500_000  # bytes of the file, with all its pictures


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Run all cells in a kernel of their own, far from the user's settings, files and network."""
    folder = tmp_path_factory.mktemp("course")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(
        notebook,
        timeout=1200,
        startup_timeout=300,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    places = {"TMPDIR": str(folder), "IPYTHONDIR": str(folder), "MPLCONFIGDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in places.items():
            environment.setenv(name, value)
        client.execute()  # raises CellExecutionError with the cell and its traceback
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def numbers_after(words, text):
    """Return the number that follows each occurrence of some words."""
    return [float(number) for number in re.findall(rf"{words} ([\d.]+(?:e[+-]\d+)?)", text)]


def test_no_cell_warns(executed):
    assert [output.text for output in outputs(executed) if output.get("name") == "stderr"] == []


def test_the_loss_falls(executed):
    (losses,) = re.findall(r"from ([\d.]+) at the first step to ([\d.]+) on held-out images", printed(executed))
    first, last = map(float, losses)
    assert 0.5 < first < 2
    assert last < first / 3


def test_the_loop_that_is_written_out_takes_the_steps_of_the_package(executed):
    lists = [ast.literal_eval(found) for found in re.findall(r"^\[[\d., ]+\]", printed(executed), re.MULTILINE)]
    written_out, by_package = lists
    assert len(written_out) == 5
    assert written_out == pytest.approx(by_package, abs=2e-4)


def test_attention_and_sampling_that_are_written_out_equal_the_package(executed):
    differences = numbers_after("largest difference[^:\\d]*:?", printed(executed))
    assert len(differences) == 3  # attention, sampling, guided sampling
    assert max(differences) < 1e-3


def test_noise_picture_and_velocity_follow_from_one_another(executed):
    errors = numbers_after("largest error", printed(executed))
    assert len(errors) == 2
    assert max(errors) < 1e-3


def test_pictures_are_drawn(executed):
    pictures = [output for output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(pictures) > 15


@pytest.fixture(params=["committed", "executed"])
def notebook(request):
    if request.param == "executed":
        return request.getfixturevalue("executed")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_no_output_names_a_place_on_somebodys_machine(notebook):
    texts = [output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs(notebook)]
    assert [text for text in texts if re.search(r"(?<![\w.])/\w+/", text)] == []


def test_the_file_is_small_and_sound(notebook):
    nbformat.validate(notebook)
    assert len(nbformat.writes(notebook)) < LARGEST


def test_the_committed_outputs_are_of_one_run_from_top_to_bottom():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []


def test_cells_are_short():
    lengths = [
        len(cell.source.splitlines())
        for cell in nbformat.read(NOTEBOOK, as_version=4).cells
        if cell.cell_type == "code"
    ]
    assert sorted(lengths)[-3] <= 16  # all but the imports and the recipe, which are lists
