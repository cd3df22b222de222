"""Which samplers there are: each is diffusers' scheduler of a class.

It reads the same keys of a ``scheduler_config.json``, with the same defaults, and gives
the same numbers; a configuration that asks for something else is refused. Pipelines of
diffusers may change a configuration first (``StableDiffusionPipeline`` makes its
``steps_offset`` 1), and begin PNDM from an image at a stop of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from medjax.diffusion import pndm, solvers, spacing
from medjax.diffusion.schedule import PredictionType, Schedule
from medjax.diffusion.spacing import Stops
from medjax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One way to sample.

    Attributes:
        scheduler: diffusers' class.
        stops: Where it stops.
        updates: What it does there.
        options: Keys of the scheduler's configuration that it reads, and their defaults
            in diffusers.
        fixed: Options that no configuration changes.
        only: Values that other keys must have, where a configuration has them.
        predictions: Which outputs it takes.
        by_level: Whether diffusers scales its latents to a signal of 1.
    """

    scheduler: str
    stops: Callable[..., Stops]
    updates: Callable[..., solvers.Updates]
    options: dict[str, Any]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    only: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    predictions: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
    by_level: bool = False


_EVENLY: dict[str, Any] = {"timestep_spacing": "leading", "steps_offset": 0}
_CLIPPED: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
_LEVELS: dict[str, Any] = {"timestep_spacing": "linspace", "steps_offset": 0}
_FINAL: dict[str, Any] = {"final_sigmas_type": "zero", "use_karras_sigmas": False}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_flow_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "sigma_min": (None,),
    "sigma_max": (None,),
}
_MULTISTEP: dict[str, tuple[Any, ...]] = _PLAIN | {"solver_order": (2,)}
_DPM = Sampler(
    "DPMSolverMultistepScheduler",
    spacing.stops_at_levels,
    solvers.dpmpp_2m,
    _LEVELS
    | _FINAL
    | {
        "lower_order_final": True,
        "euler_at_final": False,
        "lambda_min_clipped": -float("inf"),
    },
    {"whole": True, "cuts_cosine": True},
    # diffusers takes the names of other classes' solvers for its own.
    _MULTISTEP
    | {
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        # DDPM's, which mean nothing here; those that are learned would.
        "variance_type": (
            *("fixed_small", "fixed_small_log"),
            *("fixed_large", "fixed_large_log"),
        ),
    },
)
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        "DDPMScheduler",
        spacing.stops_at_timesteps,
        solvers.ddpm,
        _EVENLY | _CLIPPED | {"variance_type": "fixed_small"},
        {"to_next": True, "set_alpha_to_one": True},
        _PLAIN | {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    ),
    "ddim": Sampler(
        "DDIMScheduler",
        spacing.stops_at_timesteps,
        solvers.ddim,
        _EVENLY | _CLIPPED | {"set_alpha_to_one": True},
        {"to_next": False},
        _PLAIN,
    ),
    "pndm": Sampler(
        "PNDMScheduler",
        pndm.stops_for_pndm,
        pndm.pndm,
        _EVENLY | {"set_alpha_to_one": False, "skip_prk_steps": False},
        predictions=("epsilon", "v_prediction"),
    ),
    "euler": Sampler(
        "EulerDiscreteScheduler",
        spacing.stops_at_levels,
        solvers.ddim,
        _LEVELS | _FINAL,
        {"whole": False, "eta": 0.0},
        _PLAIN | {"interpolation_type": ("linear",), "timestep_type": ("discrete",)},
        by_level=True,
    ),
    "euler_ancestral": Sampler(
        "EulerAncestralDiscreteScheduler",
        spacing.stops_at_levels,
        solvers.ddim,
        _LEVELS,
        {"whole": False, "eta": 1.0},
        predictions=("epsilon", "v_prediction"),
        by_level=True,
    ),
    "dpmpp_2m": _DPM,
    "dpmpp_2m_karras": dataclasses.replace(
        _DPM, fixed=_DPM.fixed | {"use_karras_sigmas": True}
    ),
    "unipc": Sampler(
        "UniPCMultistepScheduler",
        spacing.stops_at_levels,
        solvers.unipc,
        _LEVELS | _FINAL | {"lower_order_final": True},
        {"whole": True},
        _MULTISTEP
        | {
            "solver_type": ("bh2", "midpoint", "heun", "logrho"),
            "predict_x0": (True,),
            "disable_corrector": ([],),
            "solver_p": (None,),
        },
    ),
}


def find_sampler(name: str) -> Sampler:
    """Return the sampler of that name.

    Raises:
        UserError: If there is none.
    """
    if name not in SAMPLERS:
        raise UserError(
            f"there is no sampler '{name}'; expected one of {', '.join(SAMPLERS)}"
            + nearest(name.replace("+", "p"), SAMPLERS)
        )
    return SAMPLERS[name]


def own_sampler(schedule: Schedule) -> str:
    """Return the name of the sampler that a schedule's configuration asks for.

    It is DDIM where that one does not take what the model predicts.

    Raises:
        UserError: If it is none of ours.
    """
    scheduler = schedule.config.get("_class_name", "DDIMScheduler")
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler == scheduler:
            return name if schedule.prediction_type in sampler.predictions else "ddim"
    raise UserError(
        f"the model's own scheduler is {scheduler}, which there is no sampler for; "
        f"choose one of {', '.join(SAMPLERS)}"
    )


def scheduler_config(name: str, schedule: Schedule) -> dict[str, Any]:
    """Return a ``scheduler_config.json`` by which diffusers samples as `name` does."""
    sampler = find_sampler(name)
    options = sampler_options(name, sampler, schedule)
    others = {key for one in SAMPLERS.values() for key in (*one.options, *one.only)}
    kept = {key: x for key, x in schedule.config.items() if key not in others}
    return kept | {
        "_class_name": sampler.scheduler,
        "prediction_type": schedule.prediction_type,
        **{key: options[key] for key in sampler.options},
    }


def sampler_options(
    name: str, sampler: Sampler, schedule: Schedule, eta: float = 0.0
) -> dict[str, Any]:
    """Return a sampler's options: the schedule's, else diffusers' defaults.

    Args:
        name: Of the sampler, for errors.
        sampler: Itself.
        schedule: Of the model.
        eta: In [0, 1], for DDIM: how much fresh noise.

    Raises:
        UserError: If the schedule asks for what the sampler does not do.
    """
    if schedule.prediction_type not in sampler.predictions:
        raise UserError(
            f"sampler {name} takes no model that predicts {schedule.prediction_type}; "
            f"expected {' or '.join(sampler.predictions)}, or another sampler"
        )
    config = schedule.config
    for key, values in sampler.only.items():
        if config.get(key) is not None and config[key] not in values:
            raise UserError(
                f"sampler {name}: the model's scheduler has {key}={config[key]!r}; "
                f"expected {' or '.join(map(repr, values))}"
            )
    if not 0 <= eta <= 1 or (eta and name != "ddim"):
        raise UserError(
            f"eta is {eta} for sampler {name}; expected 0, or with ddim up to 1"
        )
    own = {key: config[key] for key in sampler.options if config.get(key) is not None}
    return {"eta": eta, **sampler.options, **own, **sampler.fixed}
