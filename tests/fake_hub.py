"""A hub without a network, which remembers its calls."""

import huggingface_hub
from huggingface_hub import constants


class FakeHub:
    """Takes the place of `HfApi`.

    Attributes:
        calls: A tuple for each call: ``create``, a hub id and the options, or
            ``upload`` and the options.
    """

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **options):
        self.calls.append(("upload", options))


def install(monkeypatch):
    """Replace the hub's client, as for a user with a token; return the fake."""
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return fake
