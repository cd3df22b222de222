"""Define input pipelines over the same files: medjax's, and a torch DataLoader.

They decode with Pillow, resize by area and find edges with OpenCV, and tokenise with
one CLIP tokenizer. medjax reads the output of `medjax.prepare`, the DataLoader reads
the files.
"""

import csv
import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

# Batches that each worker prefetches, in both pipelines.
READY = 2
# Number of examples in an epoch of the DataLoader.
ENDLESS = 10**9

Batch = dict[str, np.ndarray]
Stream = Generator[Batch, None, None]


def write_files(folder: Path, count: int, size: int, kind: str) -> None:
    """Write computed radiographs as grayscale files, with their captions.

    Args:
        folder: Folder for the images and `metadata.csv`.
        count: Number of images.
        size: Height and width of the images, in pixels.
        kind: Format of the files, "png" or "jpg". JPEG has quality 90.
    """
    from PIL import Image

    from medjax.data.phantoms import PhantomSource

    folder.mkdir(parents=True)
    source = PhantomSource("train", size, count, seed=0)
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for i in range(count):
            record = source[i]
            name = f"{i:05d}.{kind}"
            Image.fromarray(record["image"][..., 0]).save(folder / name, quality=90)
            table.writerow([name, record["text"]])


@dataclasses.dataclass(frozen=True)
class TorchDataset:
    """A map-style dataset for a DataLoader, as one writes it without medjax.

    Attributes:
        examples: File and caption of each example.
        tokenizer: A CLIP tokenizer.
        size: Height and width of resized images, in pixels.
    """

    examples: tuple[tuple[Path, str], ...]
    tokenizer: Any
    size: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        import cv2
        from PIL import Image

        file, caption = self.examples[index]
        with Image.open(file) as opened:
            image = np.asarray(opened.convert("RGB"))
        side = (self.size, self.size)
        image = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
        edges = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 100, 200)
        ids = self.tokenizer(
            caption, padding="max_length", truncation=True, max_length=77
        )
        return {
            "images": image.astype(np.float32) / 127.5 - 1.0,
            "conditioning_image": cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB).astype(
                np.float32
            )
            / 255.0,
            "text_ids": np.asarray(ids["input_ids"], np.int32),
        }


@dataclasses.dataclass(frozen=True)
class Pipelines:
    """All pipelines over one set of files.

    Attributes:
        root: Folder that `medjax.prepare` wrote.
        cache: Folder of the resized images.
        files: Folder of the original files.
        size: Height and width of the images in batches, in pixels.
        batch: Number of images per batch.
        workers: Number of worker processes of each pipeline.
    """

    root: Path
    cache: Path
    files: Path
    size: int
    batch: int
    workers: int

    def medjax(self, shuffle: bool) -> Stream:
        """Return medjax's batches, without end."""
        return self._batches(self.source(), shuffle)

    def cached(self, shuffle: bool) -> Stream:
        """Return medjax's batches of cached images, without end."""
        from medjax.data.image_cache import cache_images

        return self._batches(cache_images(self.source(), self.config()), shuffle)

    def torch(self, shuffle: bool) -> Stream:
        """Return the DataLoader's batches: endless with `shuffle`, or one epoch."""
        from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

        from medjax.pretrained.tiny import tiny_tokenizer

        dataset: Any = TorchDataset(self._examples(), tiny_tokenizer(), self.size)
        # One epoch without end, because prefetching stops at the end of an epoch.
        endless = RandomSampler(dataset, num_samples=ENDLESS)
        yield from DataLoader(
            dataset,
            batch_size=self.batch,
            sampler=endless if shuffle else SequentialSampler(dataset),
            num_workers=self.workers,
            prefetch_factor=READY if self.workers else None,
            # As grain does, because a process with threads must not be forked.
            multiprocessing_context="spawn" if self.workers else None,
        )

    def config(self) -> Any:
        """Return medjax's config of the data."""
        from medjax.data.config import ControlDataConfig

        return ControlDataConfig(
            root=str(self.root),
            cache=str(self.cache),
            image_size=self.size,
            batch_size=self.batch,
            workers=self.workers,
        )

    def source(self) -> Any:
        """Return the prepared records."""
        from medjax.data.pipeline import open_dataset

        return open_dataset(self.config(), "train")

    def _batches(self, source: Any, shuffle: bool) -> Stream:
        from medjax.data.pipeline import make_batches
        from medjax.pretrained.tiny import tiny_tokenizer

        return make_batches(source, tiny_tokenizer(), self.config(), shuffle=shuffle)

    def _examples(self) -> tuple[tuple[Path, str], ...]:
        """Return files and captions in the order of the prepared data."""
        source = self.source()
        records = [source[i] for i in range(len(source))]
        return tuple((self.files / r["id"], r["text"]) for r in records)


def make_pipelines(
    folder: Path,
    images: int,
    source_size: int,
    size: int,
    batch: int,
    workers: int,
    kind: str = "png",
) -> Pipelines:
    """Write files into `folder`, prepare them, and return the pipelines."""
    from medjax.prepare import prepare

    write_files(folder / "files", images, source_size, kind)
    shares = {"train": 1.0, "validation": 0.0, "test": 0.0}
    prepare("folder", folder / "files", folder / "prepared", fractions=shares)
    prepared, cache, files = (folder / name for name in ("prepared", "cache", "files"))
    return Pipelines(prepared, cache, files, size, batch, workers)
