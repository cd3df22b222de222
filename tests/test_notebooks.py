"""The notebooks run from their first cell to their last, as a user runs them."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests import tiny_vqvae

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
SMALL = (
    "--config.train.steps=2 --config.data.image_size=16 --config.data.batch_size=4 "
    "--config.eval.examples=4 --config.eval.samples=2 --config.eval.sampler_steps=2 "
)
PHANTOMS = "--config.data.phantoms.count=16 "
# Sizes that a notebook trains with here, by the name of its variable.
SMALLER = {
    "chest_xray_controlnet": {"OPTIONS": SMALL + PHANTOMS},
    "text_to_xray_lora": {"OPTIONS": SMALL + PHANTOMS},
    "dogs_controlnet": {"OPTIONS": SMALL + PHANTOMS},
    "knee_and_brain_from_scratch": {
        "KNEE_OPTIONS": SMALL + PHANTOMS,
        "BRAIN_OPTIONS": SMALL.replace("image_size=16", "image_size=64")
        + PHANTOMS
        + f"--config.model.autoencoder_config={Path(tiny_vqvae.__file__)}",
    },
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def run(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> nbformat.NotebookNode:
    """Execute a notebook in a folder, with other values of its settings.

    A failed ``!command`` does not stop a notebook, so its error is looked for.
    """
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    notebook = read(name)
    left = set(values)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", ()):
            here = {k: v for k, v in values.items() if f"{k} =" in cell.source}
            left -= here.keys()
            lines = [f"{key} = {value!r}" for key, value in here.items()]
            cells.append(nbformat.v4.new_code_cell("\n".join(lines)))
    assert not left
    notebook.cells = cells
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(folder)}}
    ).execute()
    output = "".join(text for cell in notebook.cells for text in printed(cell))
    for word in ("error:", "Traceback", "not found"):
        assert word not in output, output
    return notebook


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """Return what a cell printed."""
    return [out.text for out in cell.get("outputs", ()) if out.output_type == "stream"]


def imports(cell: nbformat.NotebookNode) -> list[str]:
    """Return the lines of a code cell that import in the notebook's own process."""
    lines = cell.source.splitlines()
    return [line for line in lines if not line.lstrip().startswith("!")]


def pictures(notebook: nbformat.NotebookNode) -> int:
    """Return the number of pictures that a notebook shows."""
    return sum(
        "image/png" in out.get("data", {})
        for cell in notebook.cells
        for out in cell.get("outputs", ())
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_and_has_no_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert len(notebook.cells) < 25
    assert notebook.cells[0].source.startswith("# ")
    # jax in the notebook's own process would take the TPU from the commands.
    assert not any("import jax" in line for cell in code for line in imports(cell))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("chest_xray_controlnet", 3, marks=pytest.mark.release),
        pytest.param("text_to_xray_lora", 3, marks=pytest.mark.release),
        pytest.param("dogs_controlnet", 3, marks=pytest.mark.ci),
        pytest.param("knee_and_brain_from_scratch", 6, marks=pytest.mark.release),
    ],
)
def test_a_notebook_runs_on_phantoms(name, shown, tmp_path, monkeypatch):
    notebook = run(name, tmp_path, monkeypatch, SMALLER[name])
    assert pictures(notebook) == shown
    exports = list(tmp_path.glob("workdirs/*/*export*/README.md"))
    assert len(exports) == sum(
        cell.source.count("medjax export")
        for cell in notebook.cells
        if cell.cell_type == "code"
    )


@pytest.mark.release
@pytest.mark.parametrize("name", ["chest_xray_controlnet", "text_to_xray_lora"])
def test_a_notebook_runs_on_own_images(name, tmp_path, monkeypatch):
    source = tmp_path / "my images"
    source.mkdir()
    rows = ["file_name,text,patient"]
    for number in range(40):
        Image.effect_noise((40, 48), 50).save(source / f"{number}.png")
        rows.append(f"{number}.png,Normal chest X-ray,p{number}")
    (source / "metadata.csv").write_text("\n".join(rows))
    options = {"OPTIONS": SMALL, "SOURCE": str(source)}
    if name == "chest_xray_controlnet":
        options["XRAY"] = str(source / "0.png")
    notebook = run(name, tmp_path, monkeypatch, options)
    assert (tmp_path / "data").is_dir()
    assert pictures(notebook) == 3
    assert list(tmp_path.glob("workdirs/*/*export*/README.md"))
