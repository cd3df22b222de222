"""Say by the TPU's compiler whether each recipe fits, and what a step moves.

    python -m bench.recipes                              all tables, in an hour
    python -m bench.recipes --only=remat,scaling         some of them

Nothing runs on a TPU, and none is needed. The user's cache keeps the figures.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import report
from bench.report import Row
from medjax.compiling.compiled import figures_folder
from medjax.compiling.preflight import Estimate, estimate_step, remat_of
from medjax.compiling.topologies import find_topology
from medjax.config_files import load_config
from medjax.errors import UserError, nearest
from medjax.models.remat import POLICIES
from medjax.runs.config import RunConfig, parse

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
ABOUT = """
Compiled by the TPU's own compiler without a TPU, up to its generation of code. All
figures are for one chip; GB are 10⁹ bytes.

* **traffic**: what the operations of the compiled program read and write. Arrays that
  stay in the memory on the chip count, too.
* **memory**: weights, optimizer, batch, activations and gradients.
* **at the peak**: the largest of compute time, memory time and communication time, each
  at the chip's peak. It is an estimate of the best case. Nothing was run.
"""
# Stable Diffusion 1.5 with latents given: those of the recipe's cache.
TASKS = ("cxr_lora", "cxr_text_to_image")
RECIPES = {
    "v6e:1": (
        *("cxr_controlnet:v6e", "cxr_lora:v6e", "cxr_text_to_image:v6e"),
        *("dogs_controlnet:v6e", "cxr_autoencoder", "knee_ddpm"),
        *("brain_vqvae", "brain_ldm"),
    ),
    "v5e:1": (
        *("cxr_controlnet:v5e", "cxr_lora:v5e", "cxr_text_to_image:v5e"),
        "dogs_controlnet:v5e",
    ),
}


def config_of(recipe: str, **changes: str | int | None) -> RunConfig:
    """Return a recipe's config with some of its keys changed.

    Args:
        recipe: Name of a packaged config, with its variant.
        changes: Values by key, with ``__`` for its dot: ``data__batch_size=8``.
    """
    config = load_config("config", recipe)
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return parse(config)


def scaled(value: float | None, unit: float) -> float | str:
    """Return a figure in a larger unit. It is unknown if the program does not fit."""
    return "unknown" if value is None else value / unit


def row(about: Row, one: Estimate) -> Row:
    """Return a program's figures as a row that starts with what it is about."""
    figures = one.figures
    links = figures.link_bytes
    return {
        **about,
        "TFLOP": scaled(figures.flops, 1e12),
        "traffic, GB": scaled(figures.hbm_bytes, 1e9),
        "between chips, GB": scaled(
            None if links is None else sum(links.values()), 1e9
        ),
        "memory, GB": one.memory_bytes / 1e9,
        "fused kernels": figures.kernels,
        "fits": "yes" if one.fits else "no",
        "at the peak, s": one.roofline or "unknown",
        "images/s a chip, at most": one.images_per_second or "unknown",
        "bound by": one.bound or "unknown",
    }


def step(config: RunConfig, topology: str) -> Estimate:
    """Return the estimate of a config's step."""
    return estimate_step(config, find_topology(topology), figures_folder())


def remat_rows() -> Iterator[Row]:
    """Yield batch 8 of each task and policy on one v6e chip."""
    for recipe in TASKS:
        for policy in POLICIES:
            config = config_of(
                recipe,
                data__batch_size=8,
                train__gradient_accumulation_steps=1,
                optim__ema_decay=None,
                model__remat=policy,
            )
            yield row({"recipe": recipe, "remat": policy}, step(config, "v6e:1"))


def scaling_rows() -> Iterator[Row]:
    """Yield 8 images a chip on one chip, and on 16 with data and with fsdp."""
    for topology, data, fsdp in (
        ("v6e:1", 1, 1),
        ("v6e:4x4", 16, 1),
        ("v6e:4x4", 1, 16),
    ):
        config = config_of(
            "cxr_text_to_image",
            data__batch_size=8 * data * fsdp,
            train__gradient_accumulation_steps=1,
            optim__ema_decay=None,
            model__remat="full",
            mesh__data=data,
            mesh__fsdp=fsdp,
        )
        about: Row = {"topology": topology, "data": data, "fsdp": fsdp}
        yield row(about, step(config, topology))


def recipe_rows() -> Iterator[Row]:
    """Yield the step of every recipe, for the chip of its variant."""
    for topology, recipes in RECIPES.items():
        for recipe in recipes:
            config = config_of(recipe)
            about: Row = {
                "recipe": recipe,
                "chip": topology,
                "batch": config.data.batch_size,
                "microbatches": config.train.gradient_accumulation_steps,
                "remat": remat_of(config) or "none",
            }
            yield row(about, step(config, topology))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: Its caption.
        rows: Yields its rows.
    """

    caption: str
    rows: Callable[[], Iterator[Row]]


TABLES = {
    "remat": Table(
        "A step of 8 images of 512², latents cached, on one v6e chip", remat_rows
    ),
    "scaling": Table(
        "Full fine-tuning, 8 images of 512² a chip, on 1 and 16 v6e chips",
        scaling_rows,
    ),
    "recipes": Table("A step of every full-size recipe", recipe_rows),
}


def main() -> Path:
    """Compile as the flags say, and return the page that it writes."""
    flags = report.parser(__doc__)
    flags.add_argument(
        "--only", default=",".join(TABLES), help="tables to make (%(default)s)"
    )
    given = flags.parse_args()
    names = given.only.split(",")
    for name in names:
        if name not in TABLES:
            raise UserError(
                f"--only={name}: expected some of {', '.join(TABLES)}"
                f"{nearest(name, TABLES)}"
            )
    # Figures of the compiler do not depend on the load.
    on = dataclasses.replace(report.machine(), load=0.0, device="tpu")
    tables = {TABLES[name].caption: list(TABLES[name].rows()) for name in names}
    return report.write_results(
        "recipes",
        "Recipes by the TPU's compiler",
        ABOUT,
        tables,
        on,
        PACKAGES,
        given.out,
    )


if __name__ == "__main__":
    report.run(main)
