"""Score the best checkpoint of a fold on the test split."""

import csv
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from medjax import meshes, storage
from medjax.data.pipeline import Source, dataset_identity, validation_batches
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.evaluation.frechet import frechet_distance
from medjax.evaluation.grids import image_page, save_png
from medjax.evaluation.similarity import Mask, likeness
from medjax.pretrained.efficientnet import efficientnet_features
from medjax.runs.checksums import CHECKSUMS
from medjax.runs.config import RunConfig
from medjax.runs.find_checkpoint import best_step
from medjax.runs.open_run import Run, load_run
from medjax.runs.sections import BestConfig
from medjax.sampling.generate import generate
from medjax.tasks import TASKS
from medjax.tasks.drawing import Request

_AT_ONCE = 8
Images = Float[np.ndarray, "n H W 3"]


@dataclasses.dataclass(frozen=True)
class FoldScores:
    """Scores of the best checkpoint of a fold on the test split.

    Attributes:
        fold: Number of the fold.
        step: Step of the checkpoint.
        best: Value of `config.best.metric`, on the fold's own validation examples.
        each: Scores of each image sampled for a test example, by name: ``mse``,
            ``psnr_db`` and ``ssim`` against the real image, for images in [-1, 1]. For
            computed chests also whether the image matches its caption; see
            `medjax.evaluation.chest.matches`.
        all: Scores of all images together, by name: ``frechet_distance`` to the real
            images. For computed chests also the levels of chance and `presence`; see
            `medjax.evaluation.chest.findings`.
    """

    fold: int
    step: int
    best: float
    each: dict[str, Float[np.ndarray, " n"]]
    all: dict[str, float]


def score_fold(
    fold: int, folder: Path, config: RunConfig, test: Source, count: int
) -> FoldScores:
    """Return the scores of a fold's best checkpoint and keep them in ``scores.json``.

    If that file has the scores of the same checkpoint and settings, they are reused.

    Args:
        fold: Number of the fold.
        folder: Folder of the fold's run.
        config: Config of all runs.
        test: Examples of the test split, which are in no fold.
        count: Number of test examples to sample images for, from the first on.

    Raises:
        UserError: If no checkpoint was measured by `config.best`, or if the best one
            was not kept.
    """
    step, best = best_step(folder, config.best)
    _check_kept(folder, config.best, best)
    file = folder / "scores.json"
    weights = (folder / "checkpoints" / str(step) / CHECKSUMS).read_bytes()
    asked = {
        "step": step,
        "checkpoint": hashlib.sha256(weights).hexdigest(),
        "images": count,
        "eval": dataclasses.asdict(config.eval),
        "dataset": dataset_identity(config.data)["fingerprint"],
    }
    if file.is_file() and (known := json.loads(file.read_text("utf-8")))["of"] == asked:
        each = {name: np.array(values) for name, values in known["each"].items()}
        return FoldScores(fold, step, best, each, known["all"])
    row = TASKS[config.task]
    assert row.caption_scores is not None
    # The base may have moved since the checkpoint was saved.
    base = row.origins(config.model).pretrained or None
    run = load_run(folder, step, base=base)
    real, drawn, mask = _drawn(run, test, count, config.eval.sampling())
    save_png(
        folder / "test.png",
        image_page({"real": real[:_AT_ONCE], "drawn": drawn[:_AT_ONCE]}),
    )
    each = likeness(real, drawn, mask)
    features = efficientnet_features(real), efficientnet_features(drawn)
    whole = {"frechet_distance": frechet_distance(*features)}
    texts = [test[number]["text"] for number in range(count)]
    more, of_all = row.caption_scores.measure(drawn, texts, config.eval)
    each, whole = each | more, whole | of_all
    kept = {name: values.tolist() for name, values in each.items()}
    content = {"of": asked, "each": kept, "all": whole}
    storage.write_json(file, content, indent=None)
    return FoldScores(fold, step, best, each, whole)


def _check_kept(folder: Path, best: BestConfig, kept: float) -> None:
    """Check that no earlier checkpoint of the run, now removed, was better."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        found = [
            float(row.get(best.metric) or math.nan) for row in csv.DictReader(file)
        ]
    measured = [value for value in found if math.isfinite(value)]
    better = min(measured) < kept if best.mode == "min" else max(measured) > kept
    if better:
        raise UserError(
            f"{folder}: the checkpoint with the best {best.metric} was not kept, "
            "because the run used another config.best or kept fewer checkpoints. Train "
            "the fold again in another --workdir, or use config.best of the run"
        )


def _drawn(
    run: Run, test: Source, count: int, sampling: SamplingConfig
) -> tuple[Images, Images, Mask | None]:
    """Return test images, images sampled for their captions, and their masks."""
    data = dataclasses.replace(run.config.data, batch_size=1, workers=0)
    batches = validation_batches(test, run.sd.tokenizer, data)
    real, masks, requests = [], [], []
    for number, batch in zip(range(count), batches, strict=False):
        real.append(batch["images"][0])
        masks += list(batch.get("loss_mask", ()))
        control = batch.get("conditioning_image")
        requests.append(
            Request(
                number,
                test[number]["text"],
                conditioning_image=None if control is None else control[0],
            )
        )
    batches.close()
    drawn = generate(
        run.sd,
        requests,
        sampling,
        (data.image_size, data.image_size),
        meshes.make_mesh(meshes.MeshConfig(), jax.devices()),
        batch_size=_AT_ONCE * len(jax.devices()),
    )
    return np.stack(real), np.stack(list(drawn)), np.stack(masks) if masks else None
