r"""Prepare a folder of images for training: write a TFDS data set.

NIH ChestX-ray14 as published (Data_Entry_2017*.csv, and images anywhere below NIH):

    medjax prepare --dataset=nih_cxr --source=NIH --out=DIR

Any folder of images, with or without metadata.csv or metadata.jsonl (file_name, text,
optionally conditioning_image):

    medjax prepare --dataset=folder --source=IMAGES --out=DIR \
        --group_column=patient

With --classes_from_folders, an image's label is the name of its folder.

Knee slices of the Osteoarthritis Initiative (AKOA_Analysis/*.png), and brain slices of
ADNI (AD_NC/{train,test}/{AD,NC}/*.jpeg). Both are split by the subjects in their names:

    medjax prepare --dataset=oai_akoa --source=AKOA_Analysis --out=DIR
    medjax prepare --dataset=adni --source=AD_NC --out=DIR

Open-i's radiographs with their reports, from the two published archives or their files.
--download fetches the archives into the source folder:

    medjax prepare --dataset=openi --source=OPENI --out=DIR --download

Then train on the data set with --config.data.root=DIR.

Images and rows that cannot be used stay where they are. DIR/report.json names them with
the reason: under `quarantine` if they are damaged, and under `skipped` if they are
intact but match nothing. All other images and rows are in the data set.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from medjax import cli, storage
from medjax.data.datasets.options import DATASETS, MEANS, own_options
from medjax.data.datasets.report import REPORT, make_report, summary
from medjax.data.datasets.survey import Survey
from medjax.data.splits import DEFAULT_FRACTIONS, parse_percent
from medjax.errors import UserError

# The folder is hidden, so that unfinished data are never taken for a data set.
_STAGING = ".incomplete"


def prepare(
    dataset: str,
    source: str | Path,
    out: str | Path,
    *,
    caption_style: str = "",
    tokenizer: str = "",
    download: bool = False,
    group_column: str = "",
    classes_from_folders: bool = False,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the images of `source` as a TFDS data set in `out`.

    Args:
        dataset: "nih_cxr", "openi", "oai_akoa", "adni" or "folder".
        source: Folder with the images.
        out: Folder to write to. An old data set stays until the new one is complete.
        caption_style: "findings" (default) or "binary" for nih_cxr; "report" (default)
            or "published" for openi.
        tokenizer: Folder or hub id of the tokenizer that captions must fit. "" means
            CLIP's tokenizer (openi).
        download: Whether to fetch the archives that are missing in `source` (openi).
        group_column: Column to split by (folder).
        classes_from_folders: Whether folder names become labels (folder).
        fractions: Expected share of the groups per split.
        overwrite: Whether to replace an existing data set.

    Returns:
        The report, which is also in `out`/report.json.

    Raises:
        UserError: If something is missing, `out` already has a data set, no image can
            be read, or the disk is full or fails. Then `out` stays as it was.
    """
    from medjax.data.datasets.builder import SurveyBuilder

    target = Path(out).expanduser()
    own = own_options(
        dataset,
        caption_style=caption_style,
        tokenizer=tokenizer,
        download=download,
        group_column=group_column,
        classes_from_folders=classes_from_folders,
    )
    if not str(source):
        raise UserError("--source is empty; set it to a folder, or to . for this one")
    cli.writable_folder(out, "--out")
    # A killed process may have moved the old data set to another name.
    storage.recover(target / dataset)
    _publish_report(target, dataset)
    _check_target(target, dataset, overwrite)
    survey = _survey(dataset, Path(source).expanduser(), own)
    settings = {name: x for name, x in own.items() if name not in MEANS}
    settings |= {"split_fractions": dict(fractions)}
    with _disk_errors(out), storage.scratch_folder(target / _STAGING) as staging:
        builder = SurveyBuilder(survey, fractions, settings, staging)
        builder.write()
        report = make_report(
            survey, builder.stored, builder.unreadable, settings, source
        )
        storage.write_json(staging / dataset / REPORT, report, indent=1)
        storage.replace_folder(staging / dataset, target / dataset)
        _publish_report(target, dataset)
    return report


def _publish_report(target: Path, dataset: str) -> None:
    """Copy the report of the data set to the place where users look for it."""
    own, public = target / dataset / REPORT, target / REPORT
    if own.exists():
        text = own.read_text(encoding="utf-8")
        if not public.exists() or public.read_text(encoding="utf-8") != text:
            storage.write_text(public, text)


@contextlib.contextmanager
def _disk_errors(out: str | Path) -> Iterator[None]:
    """Turn the errors of a full or failing disk into `UserError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # ArrayRecord raises RuntimeError with the operating system's message.
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):
            raise
        reason = str(error).partition("write() failed: ")[2].partition(";")[0]
        raise UserError(
            f"--out={out}: cannot be written: {reason or error}; existing data "
            "are unchanged"
        ) from error


def _check_target(target: Path, dataset: str, overwrite: bool) -> None:
    """Refuse a target with another data set, or with one that must not be replaced."""
    from medjax.data.prepared import describe_splits, read_metadata
    from medjax.data.roots import find_prepared

    for folder in find_prepared(target):
        if folder.parent != target / dataset:
            raise UserError(
                f"--out={target}: has another data set, {folder}; set --out to "
                "another folder"
            )
        # A damaged data set can be replaced without being read.
        if not overwrite:
            metadata = read_metadata(folder)
            raise UserError(
                f"--out={target}: already has {metadata.name}, complete: "
                f"{describe_splits(metadata.splits)}; to replace it, set --overwrite"
            )


def _survey(dataset: str, source: Path, settings: dict[str, Any]) -> Survey:
    """Survey the source folder."""
    from medjax.data.datasets.adni import survey_adni
    from medjax.data.datasets.akoa import survey_akoa
    from medjax.data.datasets.folder import survey_folder
    from medjax.data.datasets.nih_cxr import survey_nih_cxr

    looks: Mapping[str, Callable[..., Survey]] = {
        "nih_cxr": survey_nih_cxr,
        "openi": _survey_openi,
        "oai_akoa": survey_akoa,
        "adni": survey_adni,
        "folder": survey_folder,
    }
    return looks[dataset](source, **settings)


def _survey_openi(
    source: Path, caption_style: Any, tokenizer: str, download: bool
) -> Survey:
    """Fetch and unpack missing archives, then survey the source folder."""
    from medjax.data.datasets.openi import survey_openi
    from medjax.data.datasets.openi_source import complete_source
    from medjax.data.tokens import tokenize
    from medjax.pretrained.tokenizer import TOKENIZER_ID, find_tokenizer

    try:
        clip = find_tokenizer(tokenizer or TOKENIZER_ID)
    except UserError as error:
        raise UserError(
            f"captions must fit CLIP's 77 tokens: {error}; set --tokenizer=FOLDER to a "
            "folder with vocab.json and merges.txt"
        ) from error
    if download:
        cli.writable_folder(source, "--source")
    notes = complete_source(source, download)
    return survey_openi(
        source, lambda text: not tokenize(clip, text)[1], caption_style, notes
    )


def define_flags() -> None:
    """Define the command's flags. On import, flags of several commands collide."""
    flags.DEFINE_string("dataset", None, ", ".join(DATASETS), required=True)
    flags.DEFINE_string("source", None, "folder of the images", required=True)
    flags.DEFINE_string("out", None, "folder to write to", required=True)
    flags.DEFINE_string(
        "caption_style",
        "",
        "nih_cxr: 'findings' (the default) names findings, view, age and sex; 'binary' "
        "states only whether the patient has a disease. openi: 'report' (the default) "
        "uses the report's first sentences, beginning with the impression; "
        "'published' is the published system's prompt",
    )
    flags.DEFINE_string(
        "tokenizer",
        "",
        "openi: folder or hub id of the tokenizer that captions must fit; by default "
        "the CLIP tokenizer of Stable Diffusion 1.x, from the hub or its cache",
    )
    flags.DEFINE_bool(
        "download",
        False,
        "openi: fetch the archives that are missing in --source; an interrupted "
        "download resumes where it stopped",
    )
    flags.DEFINE_string(
        "group_column",
        "",
        "folder: column of the metadata, such as the patient's id; the split keeps "
        "images with the same value together",
    )
    flags.DEFINE_bool(
        "classes_from_folders",
        False,
        "folder: an image's label is the name of its folder, directly below the folder "
        "of all images; see medjax/data/datasets/classes.py",
    )
    flags.DEFINE_list(
        "split_percent",
        ["80", "10", "10"],
        "expected shares of train, validation and test, in percent; each group is "
        "assigned independently, so shares of small data sets differ from these",
    )
    flags.DEFINE_bool("overwrite", False, "replace an existing data set in --out")


def main(_: Sequence[str]) -> None:
    """Prepare a data set as the flags say."""
    # Pillow also warns about damage that it tolerates.
    warnings.filterwarnings("ignore", module="PIL")
    values = flags.FLAGS
    report = prepare(
        values.dataset,
        values.source,
        values.out,
        caption_style=values.caption_style,
        tokenizer=values.tokenizer,
        download=values.download,
        group_column=values.group_column,
        classes_from_folders=values.classes_from_folders,
        fractions=parse_percent(values.split_percent),
        overwrite=values.overwrite,
    )
    print(summary(report, values.out))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
