"""The data section of a config."""

import dataclasses

from medjax.data.edges import CannyBackend
from medjax.data.phantoms.config import PhantomsConfig
from medjax.data.transforms import ResizeMode
from medjax.errors import UserError, check_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from, and what is done to them.

    Attributes:
        root: Folder of a data set that `medjax.prepare` wrote; "" is phantoms.
        phantoms: Which phantoms, if `root` is ""; None if `root` names a data set.
        image_size: Height and width of the images, in pixels.
        batch_size: Examples in the global batch of one update.
        resize: "center_crop", "letterbox" (padded; the padding has no loss) or
            "stretch".
        folds: Number of folds that training and validation data are divided into, by
            patient or report; 0 keeps the prepared splits.
        fold: The fold that validates, 0 to folds - 1; the others train.
        workers: Processes that prepare batches; 0 does it in threads of this one.
        seed: Seed of the order, and of all else that is drawn for examples.
    """

    root: str = ""
    phantoms: PhantomsConfig | None = dataclasses.field(default_factory=PhantomsConfig)
    image_size: int = 512
    batch_size: int = 4
    resize: ResizeMode = "center_crop"
    folds: int = 0
    fold: int = 0
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what types do not say (those, `configuration.parse` checks).

        Raises:
            UserError: If a value is out of its range.
        """
        check_least(self, image_size=8, batch_size=1, workers=0, seed=0)
        if self.root:
            # A recipe's phantoms are no part of a run on other data.
            object.__setattr__(self, "phantoms", None)
        elif self.phantoms is None:
            raise UserError(
                "root is '' and phantoms is None. Expected a folder, or phantoms"
            )
        check_least(self, folds=0, fold=0)
        if self.folds == 1 or self.fold >= max(1, self.folds):
            raise UserError(
                f"folds is {self.folds}, fold {self.fold}; expected folds to be 0 or "
                "at least 2, and fold below it"
            )


@dataclasses.dataclass(frozen=True)
class ControlDataConfig(DataConfig):
    """Examples with a control: a stored one, or else edges by Canny.

    Attributes:
        canny_low: Range, ends included, that the weaker threshold is drawn from, for
            each example; equal ends fix it. In gray values; see `edges.canny`.
        canny_high: Range of the stronger threshold.
        canny_sigma: Blur before Canny, in pixels; 0 is none.
        canny_backend: "opencv" or "skimage".
    """

    canny_low: tuple[float, float] = (100.0, 100.0)
    canny_high: tuple[float, float] = (200.0, 200.0)
    canny_sigma: float = 0.0
    canny_backend: CannyBackend = "opencv"

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            UserError: If a value is out of its range.
        """
        super().__post_init__()
        check_least(self, canny_sigma=0)
        for name in ("canny_low", "canny_high"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UserError(
                    f"{name} is ({low:g}, {high:g}), expected a range from a threshold "
                    "of at least 0 to one that is not smaller"
                )
        for low, high in zip(self.canny_low, self.canny_high, strict=True):
            if low > high:
                raise UserError(
                    f"canny_low reaches {low:g} where canny_high reaches {high:g}; "
                    "expected the weaker threshold not to be above the stronger"
                )


@dataclasses.dataclass(frozen=True)
class ClassDataConfig(DataConfig):
    """Examples with a class.

    Attributes:
        classes: Labels that are classes: an example's class is the number, in here, of
            the one that it has. Empty: none has a class.
    """

    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            UserError: If a class is named twice.
        """
        super().__post_init__()
        if len(set(self.classes)) < len(self.classes):
            raise UserError(f"classes are {self.classes}, expected each once")
