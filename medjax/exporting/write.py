"""Write the folder of an export: weights, sampling defaults, model card and parity."""

from pathlib import Path

from medjax import storage
from medjax.exporting.formats import FORMATS, Export
from medjax.exporting.model_card import model_card
from medjax.exporting.parity import write_parity
from medjax.runs.open_run import Run
from medjax.sampling.defaults import ABOUT, sampling_defaults


def write_export(run: Run, folder: Path, export: Export, parity: bool) -> None:
    """Write weights, sampling defaults, model card and, on request, ``parity.json``.

    Args:
        run: The run to export.
        folder: An empty folder.
        export: Format, dtype and name.
        parity: Whether to compare the networks with PyTorch's.

    Raises:
        UserError: If the format or dtype cannot store the weights, or if PyTorch cannot
            load the export.
    """
    chosen = FORMATS[export.format]
    model = chosen.save(run, folder, export)
    if chosen.draws and run.config.eval.sampling() is not None:
        storage.write_json(folder / ABOUT, sampling_defaults(run), sort_keys=True)
    storage.write_text(folder / "README.md", model_card(run, export))
    if parity:
        write_parity(run, model, folder, export)
