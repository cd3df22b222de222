"""List the samplers. Each one is the equivalent of a scheduler class of diffusers.

A sampler reads the same keys of a ``scheduler_config.json`` as diffusers, with the same
defaults, and computes the same numbers. It refuses a configuration that it does not
support. Pipelines of diffusers differ in two points. They may change a configuration
first (``StableDiffusionPipeline`` sets ``steps_offset`` to 1). And they begin PNDM from
an image at another stop.
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
    """One sampler.

    Attributes:
        scheduler: Name of the diffusers class.
        stops: Function that returns its stops.
        updates: Function that returns its updates at these stops.
        options: Keys of the scheduler configuration that it reads, with the defaults of
            diffusers.
        fixed: Options that no configuration changes.
        only: Supported values of other keys, if a configuration has these keys.
        predictions: Supported prediction types.
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
    # For this class, diffusers also accepts names of other classes' solvers.
    _MULTISTEP
    | {
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        # This key of DDPM has no effect here, except for the learned variances.
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
    """Return the sampler with this name.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in SAMPLERS:
        raise UserError(
            f"unknown sampler '{name}'; expected one of {', '.join(SAMPLERS)}"
            + nearest(name.replace("+", "p"), SAMPLERS)
        )
    return SAMPLERS[name]


def own_sampler(schedule: Schedule) -> str:
    """Return the name of the sampler for a schedule's configuration.

    It is DDIM if that sampler does not support the model's prediction type.

    Raises:
        UserError: If medjax does not have that sampler.
    """
    scheduler = schedule.config.get("_class_name", "DDIMScheduler")
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler == scheduler:
            return name if schedule.prediction_type in sampler.predictions else "ddim"
    raise UserError(
        f"the model's own scheduler is {scheduler}, but medjax has no sampler for it; "
        f"choose one of {', '.join(SAMPLERS)}"
    )


def scheduler_config(name: str, schedule: Schedule) -> dict[str, Any]:
    """Return a ``scheduler_config.json`` that makes diffusers sample as `name` does."""
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
    """Return a sampler's options: the schedule's, or the defaults of diffusers.

    Args:
        name: Name of the sampler, for errors.
        sampler: The sampler.
        schedule: The noise schedule of the model.
        eta: Amount of fresh noise in DDIM, in [0, 1].

    Raises:
        UserError: If the sampler does not support the schedule or `eta`.
    """
    if schedule.prediction_type not in sampler.predictions:
        raise UserError(
            f"sampler {name} does not support prediction_type="
            f"{schedule.prediction_type}; expected {' or '.join(sampler.predictions)}, "
            "or another sampler"
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
            f"eta={eta} with sampler {name}: expected 0, or 0 to 1 with sampler ddim"
        )
    own = {key: config[key] for key in sampler.options if config.get(key) is not None}
    return {"eta": eta, **sampler.options, **own, **sampler.fixed}
