"""Check the terms of the data before a model that was trained on them is shared."""

from medjax.errors import UserError
from medjax.runs.open_run import Run, dataset_at_hand

# Words in the terms of data that nobody may pass on without a permission: ADNI, OAI and
# Open-i.
_FORBID = ("data use agreement", "NC-ND")


def check_terms(run: Run) -> None:
    """Raise UserError if the terms of a run's data may forbid sharing the model."""
    if not run.config.data.root:
        return
    data = dataset_at_hand(run)
    if data is None:
        problem = "the data of the run were not found, so their terms are unknown"
    elif not data.licence:
        problem = f"the terms of the data '{run.dataset['source']}' are unknown"
    elif any(words in data.licence for words in _FORBID):
        name = data.name.partition("/")[0]
        problem = f"the terms of the data '{name}' are \"{data.licence}\""
    else:
        return
    raise UserError(
        f"--push_to: {problem}. They may forbid sharing a model of these data. If you "
        "may share it, add --i_may_share"
    )
