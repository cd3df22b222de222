"""Measure the stages of the input pipeline, on one core.

Other ways to decode are measured too: OpenCV, and half the height and width.
"""

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from bench.pipelines import Batch, Pipelines
from bench.report import Row

# Number of images that each stage computes.
_IMAGES = 24


def stages(pipelines: dict[str, Pipelines]) -> list[Row]:
    """Return milliseconds per image of each stage, for each kind of files."""
    with _one_thread():
        columns = {kind: _stages(one) for kind, one in pipelines.items()}
    names = next(iter(columns.values()))
    return [
        {"stage": name} | {kind: column[name] for kind, column in columns.items()}
        for name in names
    ]


def _stages(pipelines: Pipelines) -> dict[str, float]:
    """Return milliseconds per image by stage."""
    import cv2

    from medjax.data.edges import canny
    from medjax.data.examples import make_batch, resized
    from medjax.data.image_cache import cache_images
    from medjax.data.readers import decode_image
    from medjax.data.tokens import tokenize
    from medjax.data.transforms import fit
    from medjax.pretrained.tiny import tiny_tokenizer

    config, source, tokenizer = pipelines.config(), pipelines.source(), tiny_tokenizer()
    files = sorted(pipelines.files.glob("*.*g"))[:_IMAGES]
    encoded = [file.read_bytes() for file in files]
    images = [decode_image(one, "image") for one in encoded]
    contents = [fit(image, pipelines.size, config.resize) for image in images]
    texts = [source[i]["text"] for i in range(len(files))]
    cached: Any = cache_images(source, config)
    made = [cached[i] for i in range(len(files))]
    keys = [(0, i) for i in range(pipelines.batch)]

    def batch(first: dict[str, Any]) -> Batch:
        return make_batch([first] * len(keys), tokenizer, config, keys)[0]

    whole = batch(made[0])
    return {
        "decode": _milliseconds(lambda one: decode_image(one, "image"), encoded),
        "decode by OpenCV instead": _milliseconds(
            lambda one: cv2.imdecode(
                np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR_RGB
            ),
            encoded,
        ),
        "decode at half the scale instead": _milliseconds(_half, encoded),
        "resize": _milliseconds(
            lambda one: fit(one, pipelines.size, config.resize), images
        ),
        "find edges": _milliseconds(lambda one: canny(one, 100, 200), contents),
        "tokenise": _milliseconds(lambda one: tokenize(tokenizer, one), texts),
        "write the batch, tokenise": _milliseconds(batch, made) / len(keys),
        "copy it to the main process": _milliseconds(_share, [whole] * 12) / len(keys),
        "decode, resize and find edges": _milliseconds(
            lambda one: resized({"image": decode_image(one, "")}, config), encoded
        ),
        "read from the cache instead": _milliseconds(
            lambda i: cached[i], list(range(len(files)))
        ),
    }


def _milliseconds(stage: Callable[[Any], Any], items: list[Any]) -> float:
    """Return the median time of this process, which other processes disturb little."""
    stage(items[0])
    times = []
    for item in items:
        start = time.process_time()
        stage(item)
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def _half(encoded: bytes) -> np.ndarray:
    """Decode a JPEG at half the height and width; Pillow decodes a PNG as a whole."""
    from PIL import Image

    from medjax.data.transforms import repeat_gray

    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("L", (image.width // 2, image.height // 2))
        return repeat_gray(np.asarray(image))


def _share(batch: Batch) -> None:
    """Copy a batch to shared memory, as a worker process does."""
    for array in batch.values():
        memory = shared_memory.SharedMemory(create=True, size=array.nbytes)
        np.ndarray(array.shape, array.dtype, memory.buf)[:] = array
        memory.close()
        memory.unlink()


@contextlib.contextmanager
def _one_thread() -> Any:
    """Let OpenCV use one thread."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
