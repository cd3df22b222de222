"""Measure whether the classes of generated images are as separate as real classes.

Features are latents, or outputs of a network. They are scaled so that those of the real
images have mean 0 and variance 1. Two measures use them:

- The silhouette: the mean over images of (b − a) / max(a, b). Here a is the mean
  distance to the other images of the class, and b that to the images of the nearest
  other class. It is in [−1, 1], and 0 if classes mix. It measures clusters: classes
  that a plane divides may have a silhouette near 0.
- The accuracy on generated images of a linear classifier trained on real images. It is
  reported with the accuracy on held-out real images, which perfect images would reach,
  and with the chance level. Accuracies are means over the classes. So the chance level
  is one over the number of classes, for any number of images per class.

Neither measures whether images look real. If the accuracy is above that on real images,
the generated classes are more typical than the real ones.

Sources: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation
of cluster analysis", 1987; Ravuri & Vinyals, "Classification accuracy score for
conditional generative models", NeurIPS 2019, with real and generated exchanged.
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
        real_labels: Classes of the real images.
        generated: Features of generated images. None means no such images.
        generated_labels: Classes of the generated images.

    Returns:
        ``silhouette_real`` and, with generated images, ``silhouette``. NaN with fewer
        than two classes, or if each class has only one image.
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
    """Return how well a classifier trained on real images recognises generated ones.

    The real images are divided into five folds, or fewer if a class has fewer groups.
    For each fold, a classifier trains on the other folds, then classifies the fold and
    all generated images. The accuracies are means over the folds.

    Args:
        real: Features of real images, a few thousand at most.
        real_labels: Classes of the real images.
        generated: Features of generated images.
        generated_labels: Requested classes of the generated images.
        real_groups: Group of each real image, usually the patient. All images of a
            group are in one fold. None means that each image is a separate group.
        seed: Seed of the division into folds.

    Returns:
        ``classifier_accuracy``, ``classifier_accuracy_real`` and
        ``classifier_accuracy_chance``.

    Raises:
        UserError: If the real images have fewer than two classes, or a class has fewer
            than two groups. Or if a generated image has a class without real images.
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
    """Check, before sampling starts, that the measures can be computed.

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
    """Return the number of folds into which the real images can be divided."""
    classes = np.unique(labels)
    if strange := set(generated.tolist()) - set(classes.tolist()):
        raise UserError(
            f"generated images have the classes {sorted(strange)}, but no real image "
            "has them"
        )
    counts = {int(c): len(set(groups[labels == c].tolist())) for c in classes}
    if len(counts) < 2 or min(counts.values()) < 2:
        raise UserError(
            "a classifier requires two classes of at least two groups each, got "
            f"{counts} (groups by class)"
        )
    return min(_FOLDS, *counts.values())


def _classifier() -> Any:
    model = _sklearn("linear_model").LogisticRegression(max_iter=_STEPS)
    scaler = _sklearn("preprocessing").StandardScaler()
    return _sklearn("pipeline").make_pipeline(scaler, model)


def _accuracy(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the fraction classified correctly."""
    return float(
        _sklearn("metrics").balanced_accuracy_score(labels, model.predict(features))
    )


def _sklearn(module: str) -> Any:
    # Imported here, because only evaluation needs it, and it takes a second.
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            'this measure requires scikit-learn: pip install "medjax[evaluation]"'
        ) from error
