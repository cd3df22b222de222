"""Read the images that guide sampling besides the caption: a control and a start.

The flags ``--image`` and ``--edges`` name their files.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.edges import CannyBackend, canny
from medjax.data.readers import read_image
from medjax.data.transforms import ResizeMode, cover, fit, pad, repeat_gray, resize
from medjax.errors import UserError

Size = tuple[int, int]

CONTROL_MISSING = (
    "the ControlNet requires a control: set --edges=FILE or, for one trained on edges, "
    "--image=FILE, to use the edges of that image"
)
"""Error without --image and --edges."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How to prepare an image. It should match the preparation in training.

    Attributes:
        resize: Way of resizing; see `transforms`.
        low: Weaker threshold of Canny, in gray values; see `edges.canny`.
        high: Stronger threshold of Canny, in gray values.
        sigma: Standard deviation of the Gaussian blur before Canny, in pixels.
        backend: Implementation of Canny.
        stored: Whether training used stored control images instead of edges.
    """

    resize: ResizeMode = "center_crop"
    low: float = 100.0
    high: float = 200.0
    sigma: float = 0.0
    backend: CannyBackend = "opencv"
    stored: bool = False

    @classmethod
    def of_training(cls, data: DataConfig, stored: bool) -> "Preparation":
        """Return a run's preparation. Each threshold is at the middle of its range."""
        if not isinstance(data, ControlDataConfig):
            return cls(data.resize)
        low, high = (sum(ends) / 2 for ends in (data.canny_low, data.canny_high))
        return cls(data.resize, low, high, data.canny_sigma, data.canny_backend, stored)


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """Images that guide sampling.

    Attributes:
        size: Height and width of the samples, in pixels.
        conditioning_image: Control, in [0, 1]. None means no control.
        image: Image to start from, in [-1, 1]. None means noise.
        settings: File names and preparation, to be recorded with the samples.
    """

    size: Size
    conditioning_image: Float32[np.ndarray, "H W 3"] | None
    image: Float32[np.ndarray, "H W 3"] | None
    settings: dict[str, Any]


def read_control(
    image_file: str | Path | None,
    edges_file: str | Path | None,
    size: Size | None,
    default_size: Size,
    preparation: Preparation,
    controlled: bool,
    strength: float,
) -> Control:
    """Read ``--image`` and ``--edges``, and prepare them for sampling.

    Args:
        image_file: Image whose edges are the control if `edges_file` is None. If
            `strength` is below 1, sampling starts from this image.
        edges_file: Control. Stored controls are resized as in training. Edges stay
            unchanged.
        size: Requested height and width, in pixels. None means no request.
        default_size: Height and width if neither `size` nor edges give them.
        preparation: How to prepare the image.
        controlled: Whether the model has a ControlNet.
        strength: Strength of the change to the image, in (0, 1].

    Raises:
        UserError: If a file cannot be read, is missing or has no effect, or if edges
            have another size.
    """
    if controlled and preparation.stored and edges_file is None:
        raise UserError(
            "the ControlNet was trained on stored controls, not on edges; set "
            "--edges=FILE to such a control"
        )
    if controlled and image_file is None and edges_file is None:
        raise UserError(CONTROL_MISSING)
    _check_needed(image_file, edges_file, controlled, strength)
    edges = None if edges_file is None else read_image(edges_file)
    if edges is None or preparation.stored:
        size = size or default_size
    else:
        size = _size_of_edges(edges_file, edges, size)
    if edges is not None and preparation.stored:
        edges = _padded(_resized(edges, size, preparation.resize), size)
    settings: dict[str, Any] = {}
    image = None
    if image_file is not None:
        content = _resized(read_image(image_file), size, preparation.resize)
        image = _padded(content, size)
        settings["image"] = Path(image_file).name
        if controlled and edges is None:
            # Edges are found before padding, because padding adds an edge.
            edges = _padded(_edges(content, preparation), size)
            settings["canny"] = [preparation.low, preparation.high]
            settings["canny_sigma"] = preparation.sigma
            settings["canny_backend"] = preparation.backend
    if edges_file is not None:
        settings["edges"] = Path(edges_file).name
    if image_file is not None or (edges_file is not None and preparation.stored):
        settings["resize"] = preparation.resize
    return Control(
        size,
        None if edges is None else edges.astype(np.float32) / 255,
        image.astype(np.float32) / 127.5 - 1
        if image is not None and strength < 1
        else None,
        settings,
    )


def _size_of_edges(
    file: str | Path | None, edges: UInt8[np.ndarray, "H W 3"], asked: Size | None
) -> Size:
    """Return the size of edges. They are not resized, because that blurs them."""
    size = (edges.shape[0], edges.shape[1])
    if asked is not None and asked != size:
        raise UserError(
            f"--edges={file} is {size[0]}x{size[1]}, and --size is "
            f"{asked[0]}x{asked[1]}. Expected the same size, because resizing blurs "
            "edges"
        )
    return size


def _check_needed(
    image_file: str | Path | None,
    edges_file: str | Path | None,
    controlled: bool,
    strength: float,
) -> None:
    if edges_file is not None and not controlled:
        raise UserError(
            "--edges requires a ControlNet: set --workdir=RUN or --controlnet=…"
        )
    if strength < 1 and image_file is None:
        raise UserError(f"--strength={strength} requires --image=FILE to start from")
    if image_file is None or strength < 1:
        return
    if edges_file is not None or not controlled:
        raise UserError(
            "--image has no effect here: set --strength below 1 to start from it"
            + (", or remove --image, because --edges is set" if edges_file else "")
        )


def _resized(
    image: UInt8[np.ndarray, "_ _ 3"], size: Size, mode: ResizeMode
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Resize the image as in training; letterbox leaves it smaller than `size`."""
    if mode == "stretch":
        return resize(image, *size)
    if mode == "letterbox" and size[0] == size[1]:
        return fit(image, size[0], mode)
    return cover(image, *size)


def _padded(
    content: UInt8[np.ndarray, "h w 3"], size: Size
) -> UInt8[np.ndarray, "_ _ 3"]:
    return content if content.shape[:2] == size else pad(content, size[0])


def _edges(
    image: UInt8[np.ndarray, "H W 3"], settings: Preparation
) -> UInt8[np.ndarray, "H W 3"]:
    found = canny(image, settings.low, settings.high, settings.sigma, settings.backend)
    return repeat_gray(found)
