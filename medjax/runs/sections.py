"""Config sections that every task has: `optim`, `train`, `log` and `best`."""

import dataclasses
from typing import Literal

from medjax.errors import UserError, check_least, nearest

ScheduleKind = Literal["constant", "cosine", "linear"]

# Endings of the names of metrics for which larger values are better.
_RISING = (
    "codebook_usage",
    "perplexity",
    "edge_f1",
    "psnr_db",
    "ssim",
    "_agreement",
    "_presence",
)


@dataclasses.dataclass(frozen=True)
class NetworkOptimConfig:
    """Optimizer settings of one network that differ from those in `OptimConfig`.

    Attributes:
        learning_rate: Peak learning rate, at least 0. None means the value of
            ``config.optim.learning_rate``.
        schedule: Learning rate after the warm-up: constant, cosine or linear. None
            means the value of ``config.optim.schedule``.
        warmup_fraction: Fraction of the run's steps, in [0, 1], in which the learning
            rate rises linearly to its peak. None means the value of
            ``config.optim.warmup_fraction``.
        weight_decay: Decoupled weight decay λ, at least 0. None means the value of
            ``config.optim.weight_decay``.
    """

    learning_rate: float | None = None
    schedule: ScheduleKind | None = None
    warmup_fraction: float | None = None
    weight_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer and of the average of the weights.

    Attributes:
        optimizer: adamw stores two numbers for each trained weight, in float32.
            adafactor stores almost nothing, for devices with too little memory.
        learning_rate: Peak learning rate, at least 0.
        schedule: Learning rate after the warm-up: constant stays at the peak; cosine
            and linear decay to zero at the end of the run.
        warmup_fraction: Fraction of the run's steps, in [0, 1], in which the learning
            rate rises linearly to its peak. If `train.steps` changes later, the warm-up
            keeps its first length.
        weight_decay: Decoupled weight decay λ, at least 0. It applies only to arrays of
            two or more dimensions.
        b1: Decay of AdamW's average of the gradient, in [0, 1).
        b2: Decay of AdamW's average of the squared gradient, in [0, 1).
        eps: Small number ε, at least 0, that AdamW adds to the root of the average
            squared gradient.
        first_moment_dtype: Type of AdamW's average of the gradient. bfloat16 saves
            2 bytes for each trained weight.
        clip_norm: Largest norm of the gradient of all parameters together, above 0.
            A gradient with a larger norm is scaled down to it. None means no clipping.
        ema_decay: Decay of the exponential moving average of the weights, in [0, 1).
            Validation and samples use the average. None means no average.
        text_encoder: Settings for a text encoder that trains, if they differ from the
            other keys of this section.
    """

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 1e-5
    schedule: ScheduleKind = "constant"
    warmup_fraction: float = 0.0
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    text_encoder: NetworkOptimConfig = NetworkOptimConfig()

    def __post_init__(self) -> None:
        """Raise UserError if a value is outside its range."""
        for name in ("learning_rate", "weight_decay", "eps"):
            _require(getattr(self, name) >= 0, self, name, "of at least 0")
        for name in ("b1", "b2"):
            _require(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")
        _require(0 <= self.warmup_fraction <= 1, self, "warmup_fraction", "in [0, 1]")
        if self.clip_norm is not None:
            _require(self.clip_norm > 0, self, "clip_norm", "above 0, or None")
        if self.ema_decay is not None:
            _require(0 <= self.ema_decay < 1, self, "ema_decay", "in [0, 1), or None")
        if self.networks:
            try:
                self.of(*self.networks)
            except UserError as error:
                raise UserError(f"text_encoder.{error}") from error

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks with their own settings."""
        own = self.text_encoder != NetworkOptimConfig()
        return ("text_encoder",) if own else ()

    def of(self, network: str) -> "OptimConfig":
        """Return the settings of one network."""
        if network not in self.networks:
            return self
        own = {k: v for k, v in vars(self.text_encoder).items() if v is not None}
        return dataclasses.replace(self, text_encoder=NetworkOptimConfig(), **own)


def _require(holds: bool, config: OptimConfig, name: str, expected: str) -> None:
    if not holds:
        raise UserError(f"{name}={getattr(config, name)}: expected a number {expected}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of a run, its checkpoints and its log.

    Attributes:
        steps: Number of training steps of the whole run, at least 1.
        gradient_accumulation_steps: Number of microbatches per step, at least 1. The
            batch is split into them, so it must be divisible by this number.
        seed: Seed of all random numbers in training, such as first weights, noise and
            timesteps. ``config.data.seed`` is the seed of the data.
        log_every: Number of steps between two log lines and rows of ``metrics.csv``,
            at least 1.
        checkpoint_every: Number of steps between two checkpoints, at least 1. The last
            step is always saved.
        keep_last: Number of newest checkpoints to keep, at least 1.
        keep_best: Number of best checkpoints to keep in addition, at least 0. The
            section ``best`` decides which are best.
        max_hours: Time in hours, at least 0, after which training validates, saves and
            stops. It counts from the start of the command, also when a run resumes.
            None means no limit.
        max_skipped_updates: Largest number of optimizer updates, at least 0, that the
            whole run may skip because the loss or gradient is NaN or infinite. One more
            stops the run.
        profile_at: Step, at least 1, at which to start recording a profile for
            TensorBoard or Perfetto. None means no profile.
        profile_steps: Number of steps to record in the profile, at least 1.
    """

    steps: int = 10_000
    gradient_accumulation_steps: int = 1
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_best: int = 1
    max_hours: float | None = None
    max_skipped_updates: int = 0
    profile_at: int | None = None
    profile_steps: int = 5

    def __post_init__(self) -> None:
        """Raise UserError if a value is too small."""
        check_least(
            self,
            steps=1,
            gradient_accumulation_steps=1,
            log_every=1,
            checkpoint_every=1,
            keep_last=1,
            keep_best=0,
            max_hours=0,
            max_skipped_updates=0,
            profile_at=1,
            profile_steps=1,
        )


TRACKERS = ("tensorboard", "wandb")
"""Names of the programs that can keep a run's metrics and samples."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where a run's metrics and samples go, beside its workdir.

    Attributes:
        trackers: Names of trackers: tensorboard writes event files into the workdir;
            wandb sends to Weights & Biases.
        real_images: Whether trackers also get real images and captions: the whole
            sample pages. By default they get only generated images.
    """

    trackers: tuple[str, ...] = ("tensorboard",)
    real_images: bool = False

    def __post_init__(self) -> None:
        """Raise UserError if a tracker is unknown."""
        for name in self.trackers:
            if name not in TRACKERS:
                raise UserError(
                    f"trackers={self.trackers}: unknown tracker '{name}'. Expected "
                    f"some of {', '.join(TRACKERS)}" + nearest(name, TRACKERS)
                )
        if len(set(self.trackers)) < len(self.trackers):
            raise UserError(f"trackers={self.trackers}: names a tracker twice")


@dataclasses.dataclass(frozen=True)
class BestConfig:
    """Choice of the best checkpoint, and early stopping.

    Attributes:
        metric: Column of ``metrics.csv`` that decides which checkpoint is best. It must
            come from validation, such as ``val/loss``, ``val/psnr_db``, ``val/ssim`` or
            ``val/frechet_distance``. The metric's name decides whether small or large
            values are better.
        patience: Number of validations in a row without improvement, at least 1, after
            which the run ends early. None means that it never ends early.
        min_change: Smallest change that counts as an improvement, at least 0, in the
            metric's unit.
    """

    metric: str = "val/loss"
    patience: int | None = None
    min_change: float = 0.0

    def __post_init__(self) -> None:
        """Raise UserError if a value is too small or the metric is not ``val/…``."""
        check_least(self, patience=1, min_change=0)
        if not self.metric.startswith("val/"):
            raise UserError(
                f"metric={self.metric}: expected a metric of validation, such as "
                "val/loss"
            )

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the smallest or the largest value of the metric is best."""
        return "max" if self.metric.endswith(_RISING) else "min"
