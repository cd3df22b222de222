"""Sections of the config that every task has: `optim`, `train` and `best`."""

import dataclasses
from typing import Literal

from medjax.errors import UserError, check_least

ScheduleKind = Literal["constant", "cosine", "linear"]

# Ends of the names of metrics whose larger values are better.
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
    """Optimizer settings for one network. None means the value in `OptimConfig`.

    Attributes:
        learning_rate: Peak learning rate.
        schedule: Schedule after the warm-up.
        warmup_fraction: Part of all steps, in [0, 1], in which the rate rises linearly.
        weight_decay: Decoupled decay λ.
    """

    learning_rate: float | None = None
    schedule: ScheduleKind | None = None
    warmup_fraction: float | None = None
    weight_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        learning_rate: Peak learning rate.
        schedule: After the warm-up: the peak held, or a decay to zero at the end.
        warmup_fraction: Part of all steps, in [0, 1], in which the rate rises linearly;
            of those that the run begins with, where `train.steps` is changed later.
        weight_decay: Decoupled decay λ, applied to arrays of two or more dimensions.
        b1: Decay of the gradient's mean, in [0, 1).
        b2: Decay of the squared gradient's mean, in [0, 1).
        eps: ε, added to the root of the squared gradient's mean.
        clip_norm: Largest norm of the whole gradient; None leaves it alone.
        ema_decay: Decay d of the moving average of the parameters; None keeps none.
        text_encoder: Settings of a text encoder that trains, where they differ.
    """

    learning_rate: float = 1e-5
    schedule: ScheduleKind = "constant"
    warmup_fraction: float = 0.0
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    text_encoder: NetworkOptimConfig = NetworkOptimConfig()

    def __post_init__(self) -> None:
        """Refuse values outside the ranges above."""
        for name in ("learning_rate", "weight_decay", "eps"):
            _require(getattr(self, name) >= 0, self, name, "at least 0")
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
        """Names of the networks that have settings of their own."""
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
        raise UserError(f"{name} is {getattr(config, name)}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to write down.

    Attributes:
        steps: Updates of the whole run.
        gradient_accumulation_steps: Microbatches of one update; divides the batch.
        seed: Of everything drawn in training.
        log_every: Updates between two rows of metrics.
        checkpoint_every: Updates between two checkpoints; the last is always kept.
        keep_last: Newest checkpoints to keep.
        keep_best: Best checkpoints, by the section ``best``, to keep besides.
        max_hours: Stop cleanly after this long; None never does.
        max_skipped_updates: Updates with a loss or gradient that is NaN or infinite to
            skip, over the whole run, before it stops.
        profile_at: Update at which to record a profile; None records none.
        profile_steps: Updates that the profile lasts.
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
        """Refuse counts that cannot be counted."""
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


@dataclasses.dataclass(frozen=True)
class BestConfig:
    """Which checkpoint is best, and when a run ends early.

    Attributes:
        metric: A column of ``metrics.csv`` that validation writes, such as
            ``val/loss``, ``val/psnr_db``, ``val/ssim`` or ``val/frechet_distance``.
        patience: Validations in a row without improvement that end the run. None never
            ends it early.
        min_change: What counts as an improvement, at least, in the metric's units.
    """

    metric: str = "val/loss"
    patience: int | None = None
    min_change: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no validation gives, and counts that cannot be counted."""
        check_least(self, patience=1, min_change=0)
        if not self.metric.startswith("val/"):
            raise UserError(
                f"metric is '{self.metric}', expected one that validation writes, such "
                "as val/loss"
            )

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the smallest or the largest is best."""
        return "max" if self.metric.endswith(_RISING) else "min"
