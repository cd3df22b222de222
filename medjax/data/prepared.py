"""Read a prepared data set (TFDS ArrayRecord) with random access, and its metadata."""

import dataclasses
import functools
import hashlib
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.readers import decode_image
from medjax.data.roots import INFO, find_dataset
from medjax.errors import UserError, nearest

_LOGGER = logging.getLogger(__name__)
_IMAGES = ("image", "conditioning_image")
_OWN = ("id", "text", "labels", *_IMAGES)
CONTENT = "content_sha256"
"""Key of the digest of all records in the metadata."""
_AGAIN = "prepare the data again with --overwrite"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a data set.

    Attributes:
        name: Name and version, such as "folder/1.0.0".
        splits: Number of examples per split.
        features: Names of the fields of an example.
        label_names: All possible labels. Empty if labels are free text.
        licence: Terms of use.
        description: One or two sentences about the data.
        settings: Settings of the preparation.
        content: Digest of all records. "" if the data were prepared without one.
    """

    name: str
    splits: dict[str, int]
    features: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    licence: str = ""
    description: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    content: str = ""


def read_metadata(folder: str | Path) -> Metadata:
    """Return the metadata of the data set in a folder.

    Raises:
        UserError: If the metadata are damaged.
    """
    info = _builder(str(folder)).info
    settings = dict(info.metadata or {})
    return Metadata(
        name=f"{info.name}/{info.version}",
        splits={name: split.num_examples for name, split in info.splits.items()},
        features=tuple(info.features),
        label_names=_label_names(dict(info.features).get("labels")),
        licence=info.redistribution_info.license,
        description=info.description or "",
        content=settings.pop(CONTENT, ""),
        settings=settings,
    )


def fingerprint(root: str | Path) -> str:
    """Return a digest that identifies the data set at `root`.

    It covers the metadata of TFDS (names, features, sizes) and the digest of all
    records, which `medjax.prepare` stores. If that is missing, it covers the files. So
    a copy has the same fingerprint, and a data set with other images, captions or
    labels has a different one.

    Raises:
        UserError: If the data set is missing or damaged.
    """
    folder = find_dataset(root)
    content = read_metadata(folder).content or _content_of_files(folder)
    digest = hashlib.sha256(content.encode())
    for file in (folder / INFO, folder / "features.json"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _content_of_files(folder: Path) -> str:
    _LOGGER.info(
        "reading all of %s to compute its digest; data prepared again store it", folder
    )
    digest = hashlib.sha256()
    for split in _builder(str(folder)).info.splits.values():
        for name in sorted(split.filenames):
            shard = folder / Path(name).name
            try:
                with shard.open("rb") as file:
                    own = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{shard}: {error.strerror}; {_AGAIN}") from error
            digest.update(f"{shard.name} {own}\n".encode())
    return digest.hexdigest()


def _builder(folder: str) -> Any:
    # Imported here, because prepared data need TFDS and phantoms do not.
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    # TFDS raises any error of its parsers of versions, features and JSON.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: {INFO} or features.json is damaged: {reason}; {_AGAIN}"
        ) from error


def _label_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a class label, or of a sequence of them; () for free text."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


@dataclasses.dataclass(frozen=True)
class PreparedSource:
    """One split of a prepared data set, as a sequence of records.

    A record has `image` (uint8, H W 3), `text`, `labels`, `id`, `parameters` (all
    other stored fields: group, view, age, ...) and, if stored, `conditioning_image`.
    A source is pickled as its path, so that worker processes open their own files.
    """

    folder: Path
    split: str

    def __post_init__(self) -> None:
        splits = self.metadata.splits
        if self.split not in splits:
            raise UserError(
                f"{self.folder}: no split '{self.split}', only "
                f"{describe_splits(splits)}{nearest(self.split, splits)}; prepare more "
                "data, or prepare them with larger shares (--split_percent)"
            )
        if "image" not in self.metadata.features:
            raise UserError(
                f"{self.folder}: examples have no 'image', only "
                f"{', '.join(self.metadata.features)}; prepare the data with "
                "medjax prepare"
            )
        for shard, count in self._shards:
            _check_shard(shard, count)

    def __len__(self) -> int:
        return self.metadata.splits[self.split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self._read(index)
        name = _text(stored["id"]) if "id" in stored else str(index)
        record: dict[str, Any] = {
            "id": name,
            "text": _text(stored.get("text", b"")),
            "labels": self._labels(stored.get("labels", ())),
            "parameters": {
                key: _plain(value) for key, value in stored.items() if key not in _OWN
            },
        }
        for key in _IMAGES:
            if key in stored:
                where = f"{self.folder}, {self.split}, record {name}, {key}"
                record[key] = decode_image(stored[key], where)
        return record

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """Group of each record, its patient or report. This reads all records.

        Raises:
            UserError: If the groups were not stored.
        """
        name = self.metadata.settings.get("group_name")
        if name not in self.metadata.features:
            raise UserError(f"{self.folder}: records have no group; {_AGAIN}")
        return _groups(self.folder, self.split, name, fingerprint(self.folder))

    @functools.cached_property
    def metadata(self) -> Metadata:
        """Metadata of the data set."""
        return read_metadata(self.folder)

    @functools.cached_property
    def _shards(self) -> list[tuple[Path, int]]:
        """Files of this split, with the number of records in each."""
        info = _builder(str(self.folder)).info.splits[self.split]
        files = [self.folder / Path(name).name for name in info.filenames]
        return list(zip(sorted(files), info.shard_lengths, strict=True))

    @functools.cached_property
    def _records(self) -> Any:
        """Random access to the stored records, whose images are still encoded."""
        import tensorflow_datasets as tfds

        skip = tfds.decode.SkipDecoding()
        stored = [name for name in _IMAGES if name in self.metadata.features]
        return _builder(str(self.folder)).as_data_source(
            split=self.split, decoders=dict.fromkeys(stored, skip)
        )

    def _read(self, index: int) -> dict[str, Any]:
        """Return one record as stored."""
        try:
            return dict(self._records[index])
        except RuntimeError as error:  # ArrayRecord found a wrong checksum.
            raise UserError(
                f"{self._shard_of(index)}: record {index} of {self.split} is damaged: "
                f"{_first_reason(error)}; {_AGAIN}"
            ) from error

    def _shard_of(self, index: int) -> Path:
        """Return the file that contains a record."""
        ends = itertools.accumulate(count for _, count in self._shards)
        return next(
            shard
            for (shard, _), end in zip(self._shards, ends, strict=True)
            if index < end
        )

    def _labels(self, stored: Any) -> tuple[str, ...]:
        names = self.metadata.label_names
        return tuple(names[x] if names else _text(x) for x in stored)


@functools.lru_cache(maxsize=8)
def _groups(folder: Path, split: str, name: str, content: str) -> tuple[str, ...]:
    """Return one field of all records, cached by their fingerprint, `content`."""
    del content
    source = PreparedSource(folder, split)
    return tuple(_text(source._read(i)[name]) for i in range(len(source)))


def _check_shard(shard: Path, count: int) -> None:
    """Check that a file of records exists and holds `count` records."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not shard.is_file():
        raise UserError(f"{shard}: is missing; {_AGAIN}, or copy the file again")
    try:
        reader = ArrayRecordReader(str(shard))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise UserError(
            f"{shard}: is damaged: {_first_reason(error)}; {_AGAIN}, or copy the file "
            "again"
        ) from error
    if found != count:
        raise UserError(f"{shard}: has {found} records, expected {count}; {_AGAIN}")


def _first_reason(error: Exception) -> str:
    """Return ArrayRecord's first reason, which is the one of the lowest level."""
    return str(error).partition(";")[0]


def describe_splits(splits: dict[str, int]) -> str:
    """Return "train (650 examples), test (80 examples)"."""
    return ", ".join(f"{name} ({count} examples)" for name, count in splits.items())


def _plain(value: Any) -> Any:
    """Return a stored value as text, number or list."""
    return _text(value) if isinstance(value, bytes) else np.asarray(value).tolist()


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
