"""Do the classes of generated images stand apart as those of real ones do?

Two answers, in a space of features (latents, or what a network sees in an image) whose
dimensions are brought to mean 0 and variance 1 as the real ones have them:

- the silhouette, the mean over images of (b − a) / max(a, b), where a is the mean
  distance to the others of the image's class, and b to those of the nearest other: from
  −1 to 1, and 0 where classes mix. It sees clouds; classes that a plane divides may
  have one near 0;
- the accuracy on generated images of a linear classifier that learned on real ones,
  beside its accuracy on held-out real ones, which is what perfect images would reach,
  and the level of chance. Accuracies are means over the classes, so that chance is one
  over their number, however many images each has.

Neither sees whether images look real. An accuracy above that on real images means
classes that are more typical than real ones.

Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of
cluster analysis", 1987; Ravuri & Vinyals, "Classification accuracy score for
conditional generative models", NeurIPS 2019, with the roles of real and generated
exchanged.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medjax.errors import UserError

_FOLDS = 5
_STEPS = 2000


def silhouettes(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    generated: Float[np.ndarray, "m d"] | None = None,
    generated_labels: Int[np.ndarray, " m"] | None = None,
) -> dict[str, float]:
    """Return the silhouettes of the classes.

    Args:
        real: Features of real images.
        real_labels: Their classes.
        generated: Of generated ones, measured where the real ones' scale puts them.
        generated_labels: Theirs.

    Returns:
        ``silhouette_real`` and, where there are generated ones, ``silhouette``; NaN
        for fewer than two classes, or where each image has its own.
    """
    scaler = _sklearn("preprocessing").StandardScaler().fit(real)
    measures = {"silhouette_real": _silhouette(scaler.transform(real), real_labels)}
    if generated is not None and generated_labels is not None:
        scaled = scaler.transform(generated)
        measures["silhouette"] = _silhouette(scaled, generated_labels)
    return measures


def classifier_accuracy(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    generated: Float[np.ndarray, "m d"],
    generated_labels: Int[np.ndarray, " m"],
    real_groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return how well a classifier that learned on real images knows generated ones.

    A fifth of the real images at a time is held out, and what learned on the others
    classifies it and all generated images; the accuracies are the means.

    Args:
        real: Features of real images, a few thousand at most.
        real_labels: Their classes.
        generated: Features of generated images.
        generated_labels: The classes they were asked for.
        real_groups: What must not be both learned and held out: patients. None: each
            image is on its own.
        seed: Of the division.

    Returns:
        ``classifier_accuracy``, ``classifier_accuracy_real`` and
        ``classifier_accuracy_chance``.

    Raises:
        UserError: If there are fewer than two classes, one has fewer than two groups,
            or a generated image is of a class that no real one has.
    """
    selection = _sklearn("model_selection")
    groups = np.arange(len(real)) if real_groups is None else np.asarray(real_groups)
    folds = _folds(real_labels, generated_labels, groups)
    divide = selection.StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    on_generated, on_real = [], []
    for learned, held_out in divide.split(real, real_labels, groups):
        model = _classifier().fit(real[learned], real_labels[learned])
        on_generated.append(_accuracy(model, generated, generated_labels))
        on_real.append(_accuracy(model, real[held_out], real_labels[held_out]))
    return {
        "classifier_accuracy": float(np.mean(on_generated)),
        "classifier_accuracy_real": float(np.mean(on_real)),
        "classifier_accuracy_chance": 1 / len(np.unique(real_labels)),
    }


def check_separable(
    real_labels: Int[np.ndarray, " n"],
    generated_labels: Int[np.ndarray, " m"],
    real_groups: Sequence[str],
) -> None:
    """Check, before images are drawn, that the measures can be taken of them.

    Raises:
        UserError: As `classifier_accuracy`, or if scikit-learn is not installed.
    """
    _sklearn("model_selection")
    _folds(real_labels, generated_labels, np.asarray(real_groups))


def _silhouette(features: np.ndarray, labels: np.ndarray) -> float:
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(_sklearn("metrics").silhouette_score(features, labels))


def _folds(
    labels: Int[np.ndarray, " n"], generated: Int[np.ndarray, " m"], groups: np.ndarray
) -> int:
    """Return into how many parts the real images can be divided."""
    classes = np.unique(labels)
    if strange := set(generated.tolist()) - set(classes.tolist()):
        raise UserError(
            f"generated images have the classes {sorted(strange)}, but no real one has"
        )
    counts = {int(c): len(set(groups[labels == c].tolist())) for c in classes}
    if len(counts) < 2 or min(counts.values()) < 2:
        raise UserError(
            f"a classifier needs two classes of at least two groups each, got {counts} "
            "(groups by class)"
        )
    return min(_FOLDS, *counts.values())


def _classifier() -> Any:
    model = _sklearn("linear_model").LogisticRegression(max_iter=_STEPS)
    scaler = _sklearn("preprocessing").StandardScaler()
    return _sklearn("pipeline").make_pipeline(scaler, model)


def _accuracy(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the share that is recognised."""
    return float(
        _sklearn("metrics").balanced_accuracy_score(labels, model.predict(features))
    )


def _sklearn(module: str) -> Any:
    # Imported here: only evaluation needs it, and it takes a second.
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            'this measure needs scikit-learn: pip install "medjax[evaluation]"'
        ) from error
