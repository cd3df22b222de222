"""Uploading, with a hub that is not there."""

import huggingface_hub
import pytest
from huggingface_hub import constants

from medjax.errors import UserError
from medjax.pretrained import hub
from tests import fake_hub


@pytest.fixture
def fake(monkeypatch):
    return fake_hub.install(monkeypatch)


def test_a_folder_goes_to_a_private_repository(fake, tmp_path):
    assert hub.upload(tmp_path, "me/chests", "Step 3") == (
        "https://huggingface.co/me/chests"
    )
    (_, name, options), (_, sent) = fake.calls
    assert name == "me/chests"
    assert options == {"private": True, "exist_ok": True}
    assert sent["folder_path"] == tmp_path and sent["repo_id"] == "me/chests"


class Answer:
    """The part of an HTTP answer that errors carry."""

    def __init__(self, status_code):
        self.status_code = status_code


def refusal(status):
    error = OSError(f"{status} Client Error.\nmore")
    error.response = Answer(status)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refusal(401), r"refuses the token \(401\): log in with 'hf auth login'"),
        (refusal(403), r"refuses the token \(403\)"),
        (refusal(409), "the hub refuses: 409 Client Error;"),
        (ConnectionError("Name or service not known"), "does not answer: Name or"),
    ],
)
def test_what_goes_wrong_is_one_line_and_the_export_stays(fake, tmp_path, error, said):
    def fail(**_):
        raise error

    fake.upload_folder = fail
    with pytest.raises(UserError, match=said) as told:
        hub.upload(tmp_path, "me/chests", "Step 3")
    assert f"complete in {tmp_path}. To upload it, run 'hf upload me/ch" in str(
        told.value
    )
    assert "\n" not in str(told.value)


def test_what_can_be_known_is_asked_first(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(
        UserError, match="--push_to=me/chests: the hub's token is missing; log in"
    ):
        hub.check_upload("me/chests")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    hub.check_upload("me/chests")
    with pytest.raises(UserError, match="--push_to=a/b/c: expected a hub id such as"):
        hub.check_upload("a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.check_upload("me/chests")
