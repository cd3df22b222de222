"""Runs of the tracks without captions, and their exports."""

import pytest

from medjax.export import export
from tests.exporting import tracks


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The folder of a run of each track, with networks of at most 16 channels."""
    folder = tmp_path_factory.mktemp("runs")
    tracks.save_ddpm(folder / "knee")
    tracks.save_ldm(folder / "brain")
    return folder


@pytest.fixture(scope="session")
def exports(runs):
    """The folder of an export of each run, compared with PyTorch."""
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    folder = runs / "exports"
    for name in tracks.RUNS:
        export(runs / name, folder / tracks.export_name(name))
    (folder / "size.json").write_text(str(tracks.SIZE))
    return folder
