"""Write a surveyed data set as TFDS ArrayRecord, without TensorFlow.

The result is an ordinary TFDS data set, which `tfds.builder_from_directory` reads. It
has the original bytes of the images, never re-encoded, with captions, labels, groups
and attributes. Every image is decoded once before it is stored, so that training reads
no damaged image.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medjax.data.datasets.survey import Entry, Skipped, Survey
from medjax.data.prepared import CONTENT
from medjax.data.readers import decode_image
from medjax.data.splits import among, split_of
from medjax.data.transforms import same_aspect
from medjax.errors import UserError
from medjax.logs import ProgressBar

# Images read at a time: enough for the threads, and few enough for the memory.
_CHUNK = 64


class SurveyBuilder(  # type: ignore[call-arg]  # TFDS is untyped.
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """The TFDS builder of any `Survey`.

    Attributes:
        stored: Written entries per split, complete after `write`.
        unreadable: Images that turned out to be damaged.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so no checksums exist. (A search for them requires
    # importlib_resources, which TFDS 4.9.10 does not install.)
    url_infos = None

    def __init__(
        self,
        survey: Survey,
        fractions: Mapping[str, float],
        settings: Mapping[str, Any],
        data_dir: Path,
    ):
        # TFDS calls `_info` inside its own __init__, so these must come first.
        self.name = survey.name
        self.survey = survey
        self.settings = settings
        self.unreadable: list[Skipped] = []
        self.stored: dict[str, list[Entry]] = {}
        self.by_split = _by_split(survey, fractions)
        self._content = hashlib.sha256()
        super().__init__(data_dir=str(data_dir))

    def write(self) -> Path:
        """Write the data set and return its folder.

        Raises:
            UserError: If no image can be read, or the disk is full or fails.
        """
        tfds.disable_progress_bar()
        bar = ProgressBar("preparing", len(self.survey.entries), "images")
        # TFDS prints two lines about a download that does not happen.
        with bar as self.progress, contextlib.redirect_stdout(io.StringIO()):
            self.download_and_prepare(file_format="array_record")
        return Path(self.data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        survey = self.survey
        return tfds.core.DatasetInfo(
            builder=self,
            description=survey.description,
            features=_features(survey),
            homepage=survey.homepage,
            citation=survey.citation,
            license=survey.licence,
            metadata=tfds.core.MetadataDict(
                group_name=survey.group_name, **self.settings
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        splits: dict[str, Iterator[Any]] = {}
        for name, entries in self.by_split.items():
            examples = self._generate_examples(name, entries)
            # TFDS refuses an empty split. It is empty if no image of it is readable.
            if (first := next(examples, None)) is not None:
                splits[name] = itertools.chain([first], examples)
        if not splits:
            raise UserError(
                f"none of {len(self.unreadable)} images can be read; first: "
                f"{self.unreadable[0].name}: {self.unreadable[0].reason}"
            )
        return splits

    def _generate_examples(
        self, name: str, entries: list[Entry]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        encode = functools.partial(_encode, survey=self.survey)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(entries), _CHUNK):
                chunk = entries[start : start + _CHUNK]
                for entry, result in zip(chunk, pool.map(encode, chunk), strict=True):
                    self.progress.update(1)
                    if isinstance(result, Skipped):
                        self.unreadable.append(result)
                    else:
                        self.stored.setdefault(name, []).append(entry)
                        self._content.update(_line(name, result))
                        yield entry.id, result
        # TFDS writes the metadata when all splits are complete.
        self.info.metadata[CONTENT] = self._content.hexdigest()


def _by_split(survey: Survey, fractions: Mapping[str, float]) -> dict[str, list[Entry]]:
    """Return the entries of each split, without empty splits."""
    splits: dict[str, list[Entry]] = {name: [] for name in fractions}
    for entry in survey.entries:
        splits[split_of(entry.group, among(entry.splits, fractions))].append(entry)
    return {name: entries for name, entries in splits.items() if entries}


def _features(survey: Survey) -> tfds.features.FeaturesDict:
    """Return the features of an example. Absent columns are not features."""
    label = (
        tfds.features.ClassLabel(names=list(survey.label_names))
        if survey.label_names
        else tfds.features.Text()
    )
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(doc="as published; gray or colour"),
        "labels": tfds.features.Sequence(label),
        survey.group_name: tfds.features.Text(doc="kept together by the split"),
    }
    if survey.captions:
        features["text"] = tfds.features.Text(doc="caption")
    first = survey.entries[0]
    if first.conditioning_image is not None:
        features["conditioning_image"] = tfds.features.Image(doc="control")
    for name, value in first.attributes.items():
        is_number = isinstance(value, int)
        features[name] = (
            tfds.features.Scalar(np.int32) if is_number else tfds.features.Text()
        )
    return tfds.features.FeaturesDict(features)


def _encode(entry: Entry, survey: Survey) -> dict[str, Any] | Skipped:
    """Return one example, or the reason to skip the entry."""
    try:
        encoded = entry.image.read_bytes()
        shape = decode_image(encoded, entry.id).shape
        example: dict[str, Any] = {
            "id": entry.id,
            "image": io.BytesIO(encoded),
            "labels": list(entry.labels),
            survey.group_name: entry.group,
            **entry.attributes,
        }
        if survey.captions:
            example["text"] = entry.text
        if entry.conditioning_image is not None:
            control = entry.conditioning_image.read_bytes()
            name = f"{entry.id} (conditioning_image {entry.conditioning_image.name})"
            control_shape = decode_image(control, name).shape
            if not same_aspect(shape, control_shape):
                raise UserError(
                    f"{name}: has {control_shape[1]}x{control_shape[0]} pixels, the "
                    f"image has {shape[1]}x{shape[0]}. Expected the same aspect ratio"
                )
            example["conditioning_image"] = io.BytesIO(control)
    except (OSError, MemoryError, UserError) as error:
        return Skipped("image", entry.id, str(error).removeprefix(f"{entry.id}: "))
    return example


def _line(split: str, example: Mapping[str, Any]) -> bytes:
    """Return a line that identifies an example. It has digests instead of images."""
    fields = {
        name: hashlib.sha256(value.getbuffer()).hexdigest()
        if isinstance(value, io.BytesIO)
        else value
        for name, value in example.items()
    }
    return json.dumps([split, fields], sort_keys=True).encode() + b"\n"
