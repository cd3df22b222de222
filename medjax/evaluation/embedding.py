"""A map of images by class: features in two dimensions by UMAP, generated over real.

The map is made of the real images alone, and the generated ones are put into it, so
that they cannot change it. They are put where their nearest real neighbours are: one
that resembles nothing real still lands among them, so read `separation`'s numbers and a
Fréchet distance with the picture. Distances between clusters mean little.

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
# Below this UMAP has no neighbourhoods to keep.
_FEWEST = 5
# Okabe and Ito's colours, which people who do not tell red from green tell apart; more
# classes than that share them.
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
    """Return the places of real and generated images in a map of the real ones.

    Dimensions are brought to mean 0 and variance 1 as the real ones have them.

    Args:
        real: Features of real images.
        generated: Of generated ones.
        seed: The map is a function of features and seed.

    Raises:
        UserError: If there are fewer than five real images, or UMAP is not installed.
    """
    check_embeddable(len(real))
    umap, scaler = _libraries()
    scaler.fit(real)
    # One thread: with several, sums are in another order each time.
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
    """Check, before images are drawn, that so many real ones can be mapped.

    Raises:
        UserError: As `embed`.
    """
    if count < _FEWEST:
        raise UserError(f"UMAP needs at least {_FEWEST} real images, got {count}")
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
    """Draw the map: real images as dots, generated ones as crosses, a colour a class.

    Args:
        real: Features of real images.
        real_labels: Their classes, as indices of `class_names`.
        generated: Of generated ones; None draws the real ones alone.
        generated_labels: Theirs.
        class_names: What the classes are called.
        png: File to write; its folder is made if need be.
        seed: Of the map.
        measures: Numbers to say below it, by name; see `separation`.

    Raises:
        UserError: As `embed`.
    """
    # Imported here: only drawing needs it. A Figure of its own leaves pyplot alone,
    # which would look for a screen.
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
    axes.set_title("UMAP of the real images, generated ones put into it", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(_sentence(measures or {}), fontsize=9)
    columns = min(4, len(class_names))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    with storage.writing(png) as file:
        figure.savefig(file, format="png")


def _dots(number: int, count: int) -> dict[str, Any]:
    """Return how real images of a class look: the more, the smaller."""
    size = float(np.clip(6000 / count, 5, 30))
    return {"s": size, "color": _colour(number), "alpha": 0.45, "linewidths": 0}


def _crosses(number: int) -> dict[str, Any]:
    style = {"marker": "X", "s": 42, "edgecolors": "black", "linewidths": 0.6}
    return {"color": _colour(number)} | style


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _sentence(measures: Mapping[str, float]) -> str:
    """Return numbers in words, three a line."""
    parts = [
        f"{name.replace('_', ' ')} {value:.2f}" for name, value in measures.items()
    ]
    lines = [parts[i : i + 3] for i in range(0, len(parts), 3)]
    return "\n".join(" · ".join(line) for line in lines)


def _libraries() -> tuple[Any, Any]:
    # Imported here: only this needs them, and numba takes seconds.
    try:
        import umap
        from sklearn.preprocessing import StandardScaler
    except ModuleNotFoundError as error:
        raise UserError(
            'UMAP needs umap-learn: pip install "medjax[evaluation]"'
        ) from error
    return umap, StandardScaler()
