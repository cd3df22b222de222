"""A model of data with strict terms is uploaded only if the user says so."""

import dataclasses

import pytest

from medjax.data.prepared import Metadata
from medjax.errors import UserError
from medjax.export import export
from medjax.exporting import terms
from medjax.runs.open_run import load_run
from tests import fake_hub
from tests.exporting import tracks


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tracks.save_ddpm(folder)
    return folder


@pytest.fixture
def run(workdir):
    """A run whose data came from a folder."""
    run = load_run(workdir)
    data = dataclasses.replace(run.config.data, root="data")
    return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))


@pytest.mark.parametrize(
    ("licence", "strict"),
    [
        ("ADNI: for registered users, under its data use agreement", True),
        ("CC BY-NC-ND 4.0, as each report says", True),
        ("NIH Clinical Center: free use with attribution; see the homepage", False),
    ],
)
def test_strict_terms_are_named(licence, strict, run, monkeypatch):
    data = Metadata("adni/1.0.0", {"train": 1}, ("image",), licence=licence)
    monkeypatch.setattr(terms, "dataset_at_hand", lambda run: data)
    if not strict:
        terms.check_terms(run)
        return
    with pytest.raises(UserError) as caught:
        terms.check_terms(run)
    assert f"the terms of the data 'adni' are \"{licence}\"" in str(caught.value)
    assert str(caught.value).endswith("add --i_may_share")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "not found, so their terms are unknown"),
        (Metadata("folder/1.0.0", {"train": 1}, ("image",)), "are unknown"),
    ],
)
def test_unknown_terms_are_named(data, problem, run, monkeypatch):
    monkeypatch.setattr(terms, "dataset_at_hand", lambda run: data)
    with pytest.raises(UserError, match=problem):
        terms.check_terms(run)


def test_nothing_is_uploaded_before_the_user_says_so(workdir, tmp_path, monkeypatch):
    def refuse(run):
        raise UserError("strict")

    hub = fake_hub.install(monkeypatch)
    monkeypatch.setattr(terms, "check_terms", refuse)
    options = {"parity": False, "push_to": "me/scans"}
    with pytest.raises(UserError, match="strict"):
        export(workdir, tmp_path / "x", **options)
    assert not hub.calls
    assert not (tmp_path / "x").exists()
    export(workdir, tmp_path / "x", i_may_share=True, **options)
    assert [call[0] for call in hub.calls] == ["create", "upload"]
