"""Upload folders to the Hugging Face hub, after checking what can go wrong.

Token, cache and offline switch are the hub's own, as in `sources`.
"""

from pathlib import Path

from medjax.errors import UserError
from medjax.pretrained.sources import first_line, innermost

_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"


def check_upload(hub_id: str) -> None:
    """Check, without the network, that an upload can start.

    Args:
        hub_id: ``owner/name``, or ``name`` if the user is the owner.

    Raises:
        UserError: If the id is not valid, if the token is missing, or if the hub is
            switched off.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise UserError(
            f"--push_to={hub_id}: expected a hub id such as owner/name: {error}"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push_to={hub_id}: HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise UserError(f"--push_to={hub_id}: the hub's token is missing; {_LOG_IN}")


def upload(folder: Path, hub_id: str, message: str) -> str:
    """Upload a folder and return its address; a new repository is private.

    Raises:
        UserError: If the hub does not answer or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(hub_id, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message=message
        )
    # The client raises its own errors and those of its HTTP library.
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            why = f"the hub refuses the token ({status}): {_LOG_IN}, with write access"
        elif status is not None:
            why = f"the hub refuses: {first_line(error)}"
        else:
            why = f"the hub does not answer: {first_line(innermost(error))}"
        raise UserError(
            f"--push_to={hub_id}: {why}; the export is complete in {folder}. To upload "
            f"it, run 'hf upload {hub_id} {folder}'"
        ) from error
    return str(repository)
