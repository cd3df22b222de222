import pytest

from tests.launch.recorder import Recorder


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    (tmp_path / "recorder").mkdir()
    found = Recorder(tmp_path / "recorder", monkeypatch)
    monkeypatch.chdir(tmp_path)
    return found
