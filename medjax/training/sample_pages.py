"""Pages of samples for fixed examples, and the task's metrics of these samples.

Noise is fixed too, so pages of different steps can be compared. Sampling may take long,
so it checks before each batch whether to stop.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from medjax import meshes
from medjax.arrays import Array, Params
from medjax.data.config import DataConfig
from medjax.data.first_examples import FirstExamples
from medjax.data.pipeline import Source
from medjax.evaluation.grids import image_page
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import GENERATED, SamplePage, Task
from medjax.training.evaluators import Evaluation
from medjax.training.programs import make_sampler, samples_at_once
from medjax.training.step import example_keys
from medjax.training.validation_loss import evaluation_bar, first_batches

# Maximum number of rows of a page.
_ON_PAGE = 32


class SamplePages:
    """Samples for the first examples of a split: a page, and the task's metrics.

    At most `data.batch_size` images are sampled at a time. The page shows the first 32.
    The metrics cover all.
    """

    def __init__(
        self,
        task: Task,
        source: Source,
        tokenizer: Any,
        data: DataConfig,
        config: EvalConfig,
        mesh: Mesh,
        key: Array,
        measure: Callable[[SamplePage, Any, Any], dict[str, float]],
        asked_to_stop: Callable[[], bool] = lambda: False,
        split: str = "val",
        real_images: bool = False,
    ) -> None:
        """Read the examples.

        Args:
            task: The task, which samples.
            source: The split.
            tokenizer: Tokenizer of the captions.
            data: How examples are made, and how many images are sampled at a time.
            config: Number of samples, how often, and the settings of the sampler.
            mesh: Mesh on which the arrays are placed.
            key: Key of the noise.
            measure: Computes the task's metrics.
            asked_to_stop: Called before each batch. All hosts must get the same answer.
            split: Prefix of the metrics' columns: ``val`` or ``train``.
            real_images: Whether trackers also get real images and captions.
        """
        self._mesh, self._config = mesh, config
        self._measure, self._split = measure, split
        self._asked_to_stop, self._real_images = asked_to_stop, real_images
        first = FirstExamples(source, config.samples)
        self._size = samples_at_once(len(first), data.batch_size, mesh)
        self._data = dataclasses.replace(data, batch_size=self._size)
        self._batches = list(first_batches(first, tokenizer, self._data, mesh))
        self._records = [first[i] for i in range(len(first))]
        self._keys = example_keys(key, 0, len(self._batches) * self._size)
        self._generate = make_sampler(task, config.sampling(), mesh)

    @property
    def work(self) -> str:
        """Description of the work for the log."""
        return f"sampling {len(self._records)} images"

    def due(self, step: int) -> bool:
        """Tell whether the schedule samples after `step`."""
        return step % self._config.sample_every == 0

    def run(self, params: Params, frozen: Params) -> Evaluation | None:
        """Return a page and the metrics; None if asked to stop."""
        count, size = len(self._records), self._size
        drawn, given = [], []
        with evaluation_bar("sampling", count) as bar:
            for number, batch in enumerate(self._batches):
                if self._asked_to_stop():
                    return None
                placed: Any = meshes.place_batch(batch, self._mesh)
                keys = self._keys[number * size : (number + 1) * size]
                samples = self._generate(params, frozen, placed, keys)
                drawn.append(_on_host(samples, self._mesh))
                given.append(_on_host(placed, self._mesh))
                bar.update(min(size, count - number * size))
        columns, whole = _joined(drawn, count), _joined(given, count)
        page = {name: images[:_ON_PAGE] for name, images in columns.items()}
        captions = [record["text"] for record in self._records[:_ON_PAGE]]
        shown = SamplePage(columns, whole, self._records)
        measures = self._measure(shown, self._data, self._config)
        whole_page = image_page(page, captions if any(captions) else None)
        generated = {k: images for k, images in page.items() if k == GENERATED}
        tracked = whole_page if self._real_images else None
        if tracked is None and generated:
            tracked = image_page(generated)
        named = {f"{self._split}/{name}": x for name, x in measures.items()}
        return Evaluation(named, whole_page, tracked)


def _on_host(arrays: Mapping[str, Array], mesh: Mesh) -> dict[str, np.ndarray]:
    """Return the whole arrays as NumPy arrays, on every host."""
    whole = jax.device_put(dict(arrays), meshes.replicated(mesh))
    return {name: np.asarray(one.addressable_data(0)) for name, one in whole.items()}


def _joined(
    parts: Sequence[Mapping[str, np.ndarray]], count: int
) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    """Join batches; return the first `count` rows by name."""
    return {
        name: np.concatenate([part[name] for part in parts])[:count]
        for name in parts[0]
    }
