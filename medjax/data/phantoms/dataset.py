"""Open phantoms as a data set with splits, metadata and a fingerprint."""

from medjax.data.phantoms.chest.parameters import FINDING_SHARE, FINDINGS
from medjax.data.phantoms.config import PhantomsConfig
from medjax.data.phantoms.source import KINDS, PhantomSource
from medjax.data.prepared import Metadata, describe_splits
from medjax.data.splits import SPLITS
from medjax.errors import UserError, nearest

# Validation and test need fewer phantoms than training.
_HELD_OUT_SHARE = 8


def open_phantoms(config: PhantomsConfig, split: str, size: int) -> PhantomSource:
    """Open one split of the phantoms.

    Args:
        config: Settings of the phantoms.
        split: "train", "validation" or "test".
        size: Height and width of the images, in pixels.

    Raises:
        UserError: If the split is unknown.
    """
    splits = _splits(config)
    if split not in splits:
        raise UserError(
            f"phantoms have no split '{split}', only {describe_splits(splits)}"
            f"{nearest(split, splits)}"
        )
    # The seed is fixed: `data.seed` orders the phantoms and must not change them.
    return PhantomSource(
        split,
        size,
        splits[split],
        seed=0,
        kind=config.kind,
        findings=config.findings,
        finding_share=config.finding_share,
    )


def phantoms_metadata(config: PhantomsConfig) -> Metadata:
    """Return the metadata, which a prepared data set stores in a file."""
    kind = KINDS[config.kind]
    return Metadata(
        name="phantoms",
        splits=_splits(config),
        features=("id", "image", "text", "labels"),
        label_names=kind.label_names,
        licence="Apache-2.0, because medjax computed the data",
        description=kind.description,
    )


def phantoms_fingerprint(config: PhantomsConfig) -> str:
    """Return a name that identifies these phantoms, but not their number."""
    if config.kind != "chest":
        return f"phantoms/{config.kind}"
    possible = [name for name in FINDINGS if name in config.findings]
    share, facts = config.finding_share, "phantoms"
    if len(possible) < len(FINDINGS):
        facts += f" with {' or '.join(possible) or 'no finding'}"
    return facts if share == FINDING_SHARE else f"{facts}, a share of {share:g} each"


def _splits(config: PhantomsConfig) -> dict[str, int]:
    held_out = max(1, config.count // _HELD_OUT_SHARE)
    return {"train": config.count} | dict.fromkeys(SPLITS[1:], held_out)
