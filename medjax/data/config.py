"""Define the data section of a config."""

import dataclasses

from medjax.data.edges import CannyBackend
from medjax.data.phantoms.config import PhantomsConfig
from medjax.data.transforms import ResizeMode
from medjax.errors import UserError, check_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are prepared.

    Attributes:
        root: Folder of a data set that `medjax prepare` wrote. "" means phantoms.
        phantoms: Kind of phantoms, if `root` is "". None if `root` names a data set.
        image_size: Height and width of the images, in pixels, at least 8.
        batch_size: Number of examples in the global batch of one step, at least 1.
        resize: "center_crop", "letterbox" (padded; the padding has no loss) or
            "stretch".
        folds: Number of folds that divide training and validation data, by patient or
            report. 0 keeps the prepared splits.
        fold: Number of the fold that validates, 0 to folds - 1. The others train.
        cache: Folder of this host in which the resized training images are kept, with
            their edges if their thresholds are fixed. They are made before the first
            step, once for all runs that use this folder. None keeps none.
        workers: Number of processes that prepare batches. 0 uses threads of this
            process.
        seed: Seed of the order of examples and of their other random numbers.
    """

    root: str = ""
    phantoms: PhantomsConfig | None = dataclasses.field(default_factory=PhantomsConfig)
    image_size: int = 512
    batch_size: int = 4
    resize: ResizeMode = "center_crop"
    folds: int = 0
    fold: int = 0
    cache: str | None = None
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges; `configuration.parse` checks the types.

        Raises:
            UserError: If a value is out of its range.
        """
        check_least(self, image_size=8, batch_size=1, workers=0, seed=0)
        if self.root:
            # A run on other data ignores the phantoms of its recipe.
            object.__setattr__(self, "phantoms", None)
        elif self.phantoms is None:
            raise UserError(
                "root='' and phantoms=None: no data. Expected a prepared folder in "
                "root, or settings of phantoms"
            )
        if self.cache is not None and (not self.cache or "://" in self.cache):
            raise UserError(
                f"cache is '{self.cache}'. Expected a folder on a local disk, or None"
            )
        check_least(self, folds=0, fold=0)
        if self.folds == 1 or self.fold >= max(1, self.folds):
            raise UserError(
                f"folds is {self.folds}, fold is {self.fold}. Expected folds to be 0 "
                "or at least 2, and fold to be from 0 to folds - 1"
            )


@dataclasses.dataclass(frozen=True)
class ControlDataConfig(DataConfig):
    """Examples with a control: a stored image, or Canny edges if none is stored.

    Attributes:
        canny_low: Range of the weaker threshold, in gray values, ends included; see
            `edges.canny`. Each example has a random value. Equal ends fix the value.
        canny_high: Range of the stronger threshold, in gray values, ends included.
        canny_sigma: Standard deviation of the Gaussian blur before Canny, in pixels.
            0 means no blur.
        canny_backend: Implementation of Canny, "opencv" or "skimage".
    """

    canny_low: tuple[float, float] = (100.0, 100.0)
    canny_high: tuple[float, float] = (200.0, 200.0)
    canny_sigma: float = 0.0
    canny_backend: CannyBackend = "opencv"

    @property
    def fixed_thresholds(self) -> tuple[float, float] | None:
        """Thresholds of all examples; None if each example has random thresholds."""
        low, high = self.canny_low, self.canny_high
        if low[0] == low[1] and high[0] == high[1]:
            return low[0], high[0]
        return None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: If a value is out of its range.
        """
        super().__post_init__()
        check_least(self, canny_sigma=0)
        for name in ("canny_low", "canny_high"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UserError(
                    f"{name} is ({low:g}, {high:g}). Expected (low, high) with "
                    "0 <= low <= high"
                )
        for low, high in zip(self.canny_low, self.canny_high, strict=True):
            if low > high:
                raise UserError(
                    f"canny_low reaches {low:g}, but canny_high reaches {high:g}. "
                    "Expected canny_low <= canny_high at both ends"
                )


@dataclasses.dataclass(frozen=True)
class ClassDataConfig(DataConfig):
    """Examples with a class.

    Attributes:
        classes: Labels that are classes. The class of an example is the index of its
            label in this tuple. An empty tuple means that examples have no class.
    """

    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the classes differ.

        Raises:
            UserError: If a class is named twice.
        """
        super().__post_init__()
        if len(set(self.classes)) < len(self.classes):
            raise UserError(f"classes are {self.classes}. Expected each class once")
