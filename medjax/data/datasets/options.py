"""List the data sets that `medjax prepare` supports, and their options."""

from typing import Any

from medjax.errors import UserError, nearest

DATASETS = ("nih_cxr", "openi", "oai_akoa", "adni", "folder")

# Data sets that each option is for.
_OPTIONS = {
    "caption_style": ("nih_cxr", "openi"),
    "tokenizer": ("openi",),
    "download": ("openi",),
    "group_column": ("folder",),
    "classes_from_folders": ("folder",),
}
# The first is the default.
_STYLES = {"nih_cxr": ("findings", "binary"), "openi": ("report", "published")}
MEANS = ("tokenizer", "download")
"""Options about access to the data. They do not describe the data."""


def own_options(dataset: str, **options: Any) -> dict[str, Any]:
    """Return the options of a data set, with defaults. Refuse options of other sets.

    Args:
        dataset: One of `DATASETS`.
        options: All options by name. Empty or False means that an option is not set.

    Raises:
        UserError: If the data set or the caption style is unknown, or an option applies
            only to another data set.
    """
    if dataset not in DATASETS:
        raise UserError(
            f"--dataset={dataset}: expected {', '.join(DATASETS[:-1])} or "
            f"{DATASETS[-1]}{nearest(dataset, DATASETS)}"
        )
    for name, value in options.items():
        if value and dataset not in _OPTIONS[name]:
            raise UserError(
                f"--{name} applies only to --dataset={' or '.join(_OPTIONS[name])}, "
                f"not to {dataset}. Remove it"
            )
    own = {name: x for name, x in options.items() if dataset in _OPTIONS[name]}
    if "caption_style" in own:
        styles = _STYLES[dataset]
        style = own["caption_style"] = own["caption_style"] or styles[0]
        if style not in styles:
            raise UserError(
                f"--caption_style={style}: expected {' or '.join(styles)}"
                f"{nearest(style, styles)}"
            )
    return own
