"""Draw a map of image classes: features in two dimensions by UMAP.

UMAP is fitted to the real images only, so generated images cannot change the map. A
generated image is placed near its nearest real neighbours, even if it resembles no real
image. So read the measures of `separation` and a Fréchet distance together with the
map. Distances between clusters mean little.

Source: McInnes, Healy & Melville, "UMAP: Uniform manifold approximation and projection
for dimension reduction", 2018.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medjax import storage
from medjax.errors import UserError

_NEIGHBOURS = 15
# Neighbourhoods of fewer images have no structure that UMAP can preserve.
_FEWEST = 5
# Colours of Okabe and Ito, which people with red-green colour blindness can
# distinguish. With more classes, several share a colour.
_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#a8960c",
    "#3b3b3b",
)


def embed(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m d"] | None = None,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "m 2"] | None]:
    """Return the positions of real and generated images in a map of the real ones.

    Features are scaled so that those of the real images have mean 0 and variance 1.

    Args:
        real: Features of real images.
        generated: Features of generated images. None means no such images.
        seed: Seed of UMAP. Features and seed determine the map.

    Raises:
        UserError: If `real` has fewer than five images, or UMAP is not installed.
    """
    check_embeddable(len(real))
    umap, scaler = _libraries()
    scaler.fit(real)
    # One thread, because several threads add in a different order each time.
    reducer = umap.UMAP(
        n_neighbors=min(_NEIGHBOURS, len(real) - 1),
        random_state=seed,
        transform_seed=seed,
        n_jobs=1,
    )
    places = np.asarray(reducer.fit_transform(scaler.transform(real)))
    if generated is None:
        return places, None
    return places, np.asarray(reducer.transform(scaler.transform(generated)))


def check_embeddable(count: int) -> None:
    """Check, before sampling starts, that UMAP can map `count` real images.

    Raises:
        UserError: If there are too few images, or if umap-learn is not installed.
    """
    if count < _FEWEST:
        raise UserError(f"UMAP requires at least {_FEWEST} real images, got {count}")
    _libraries()


def save_umap_page(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    generated: Float[np.ndarray, "m d"] | None,
    generated_labels: Int[np.ndarray, " m"] | None,
    class_names: Sequence[str],
    png: str | Path,
    seed: int = 0,
    measures: Mapping[str, float] | None = None,
) -> None:
    """Draw the map: real images as dots, generated ones as crosses, in class colours.

    Args:
        real: Features of real images.
        real_labels: Classes of the real images, as indices of `class_names`.
        generated: Features of generated images. None draws only the real ones.
        generated_labels: Classes of the generated images.
        class_names: Names of the classes.
        png: File to write. Its folder is created if it is missing.
        seed: Seed of the map.
        measures: Numbers to print below the map, by name; see `separation`.

    Raises:
        UserError: As `embed`.
    """
    # Imported here, because only drawing needs it. A Figure without pyplot does not
    # look for a screen.
    from matplotlib.figure import Figure

    real_places, generated_places = embed(real, generated, seed)
    figure = Figure(figsize=(8, 7), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(class_names):
        places = real_places[real_labels == number]
        axes.scatter(*places.T, label=f"{name}, real", **_dots(number, len(real)))
    if generated_places is not None and generated_labels is not None:
        for number, name in enumerate(class_names):
            places = generated_places[generated_labels == number]
            axes.scatter(*places.T, label=f"{name}, generated", **_crosses(number))
    axes.set_title("UMAP fitted to real images, with generated images", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(_sentence(measures or {}), fontsize=9)
    columns = min(4, len(class_names))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    with storage.writing(png) as file:
        figure.savefig(file, format="png")


def _dots(number: int, count: int) -> dict[str, Any]:
    """Return the style of real images of a class. More images get smaller dots."""
    size = float(np.clip(6000 / count, 5, 30))
    return {"s": size, "color": _colour(number), "alpha": 0.45, "linewidths": 0}


def _crosses(number: int) -> dict[str, Any]:
    style = {"marker": "X", "s": 42, "edgecolors": "black", "linewidths": 0.6}
    return {"color": _colour(number)} | style


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _sentence(measures: Mapping[str, float]) -> str:
    """Return measures as text, three per line."""
    parts = [
        f"{name.replace('_', ' ')} {value:.2f}" for name, value in measures.items()
    ]
    lines = [parts[i : i + 3] for i in range(0, len(parts), 3)]
    return "\n".join(" · ".join(line) for line in lines)


def _libraries() -> tuple[Any, Any]:
    # Imported here, because only the map needs them, and numba takes seconds.
    try:
        import umap
        from sklearn.preprocessing import StandardScaler
    except ModuleNotFoundError as error:
        raise UserError(
            'UMAP requires umap-learn: pip install "medjax[evaluation]"'
        ) from error
    return umap, StandardScaler()
