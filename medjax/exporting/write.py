"""Write an export's folder: weights, sampling defaults, model card and parity."""

from pathlib import Path

from medjax import storage
from medjax.exporting.formats import FORMATS, Export
from medjax.exporting.model_card import model_card
from medjax.exporting.parity import write_parity
from medjax.runs.open_run import Run
from medjax.sampling.defaults import ABOUT, sampling_defaults


def write_export(run: Run, folder: Path, export: Export, parity: bool) -> None:
    """Write weights, model card and, if asked for, ``parity.json``.

    Args:
        run: The run to export.
        folder: An empty folder.
        export: Format, dtype and name.
        parity: Whether to measure the networks against PyTorch's.

    Raises:
        UserError: If the format or dtype cannot hold the weights, or PyTorch does not
            load what was written.
    """
    chosen = FORMATS[export.format]
    model = chosen.save(run, folder, export)
    if chosen.draws:
        storage.write_json(folder / ABOUT, sampling_defaults(run), sort_keys=True)
    storage.write_text(folder / "README.md", model_card(run, export))
    if parity:
        write_parity(run, model, folder, export)
