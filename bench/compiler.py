"""Compare training steps by the figures of the TPU's compiler, without a TPU.

    python -m bench.compiler --topology=v6e:1 --size=512 --batch=8

A full-size step compiles for one to three minutes. The user's cache keeps the figures.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from bench import report
from bench.competitors import controlled, flax_program, medjax_optimizer
from bench.networks import (
    DTYPES,
    UNETS,
    Settings,
    check_choices,
    draw_batch,
    draw_controlnet,
    draw_unet,
)
from bench.recipes import scaled
from bench.report import Row
from bench.torch_steps import channels_first
from medjax.blank import blank_weights
from medjax.compiling.compiled import compile_program, figures_folder
from medjax.compiling.preflight import Estimate
from medjax.compiling.run_programs import RunProgram
from medjax.compiling.topologies import (
    LOCAL,
    Topology,
    find_topology,
)
from medjax.models.remat import POLICIES

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "diffusers", "optax")
OURS = {f"medjax, remat {policy}": policy for policy in POLICIES}
COMPETITORS = ("diffusers Flax", *OURS)
ABOUT = """
A step trains a ControlNet on a frozen U-Net: loss, gradient, clipping at norm 1, AdamW.
Latents, noise and text embeddings are given. Trained weights are float32.

* **TFLOP**, **traffic**, **memory**: of the compiled program, for one chip and step.
  Traffic is what its operations read and write; arrays that stay in a TPU's memory on
  the chip count, too. A kernel counts as what it declares about itself.
* **fused kernels**: medjax's attention; in diffusers' modules, softmax kernels that XLA
  puts in by itself.
* **at the peak**: the longest of operations and traffic, each at the peak of the chip.
  It is an estimate of the best case. Nothing was run.
"""


def program(competitor: str, settings: Settings, topology: Topology) -> RunProgram:
    """Return a competitor's step with shapes in place of arrays.

    Args:
        competitor: One of `COMPETITORS`.
        settings: Network, sizes and type of the step.
        topology: The first of its devices is used.
    """
    import jax
    import jax.numpy as jnp

    from medjax import meshes, trees
    from medjax.training.step import make_train_step, state_shapes

    mesh = meshes.make_mesh(meshes.MeshConfig(), topology.devices[:1])
    whole = meshes.replicated(mesh)

    def placed(tree: Any) -> Any:
        return meshes.sharded_shapes(tree, jax.tree.map(lambda _: whole, tree))

    batch: Any = draw_batch(settings)
    with blank_weights():
        unet = trees.cast(draw_unet(settings), jnp.dtype(settings.dtype))
        weights = draw_controlnet(settings)
        if competitor == "diffusers Flax":
            begin, step = flax_program(settings)
            batch = {name: channels_first(x) for name, x in batch.items()}
            given: Any = (jax.eval_shape(begin, weights), unet, batch)
        else:
            params = {"controlnet": weights}
            optimizer = medjax_optimizer(params)
            task = controlled(settings, remat=OURS[competitor])
            step = make_train_step(task, optimizer, mesh)
            state = state_shapes(params, {}, optimizer, mesh, ema=False)
            key = jax.eval_shape(lambda: jax.random.key(0))
            given = (state, {"unet": unet}, batch, key)
    return RunProgram("step", step, placed(given), settings.batch)


def measure(settings: Settings, topology: Topology, cache: Path) -> list[Row]:
    """Return a row for each competitor."""
    rows: list[Row] = []
    for competitor in COMPETITORS:
        make = functools.partial(program, competitor, settings)
        figures = compile_program(make, topology, cache)
        one = Estimate(figures, settings.batch, 1, topology.chip, 0.0)
        rows.append(
            {
                "competitor": competitor,
                "TFLOP": scaled(figures.flops, 1e12),
                "traffic, GB": scaled(figures.hbm_bytes, 1e9),
                "arguments, GB": figures.argument_bytes / 1e9,
                "temporaries, GB": figures.temporary_bytes / 1e9,
                "memory, GB": one.memory_bytes / 1e9,
                "fused kernels": figures.kernels,
                "at the peak, s": one.roofline or "unknown",
                "bound by": one.bound or "unknown",
            }
        )
    return rows


def main() -> Path:
    """Compile as the flags say, and return the page that it writes."""
    flags = report.parser(__doc__)
    flags.add_argument("--topology", default="v6e:1", help="chip (%(default)s)")
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument("--size", type=int, default=512, help="pixels (%(default)s)")
    flags.add_argument("--batch", type=int, default=8, help="images (%(default)s)")
    flags.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    given = flags.parse_args()
    check_choices(given.network, given.size, [given.dtype])
    report.need(["diffusers"], "the comparison")
    # Figures of the compiler do not depend on the load.
    on = dataclasses.replace(report.machine(), load=0.0)
    topology = find_topology(given.topology)
    settings = Settings(given.network, given.size, given.batch, given.dtype)
    chip = topology.chip.name if topology.chip else LOCAL
    title = (
        f"{given.network}, {given.size}², batch {given.batch}, {given.dtype}, {chip}"
    )
    rows = measure(settings, topology, figures_folder())
    on = dataclasses.replace(on, device=chip)
    name = f"compiler-{given.network}"
    return report.write_results(
        name, "Steps by the compiler", ABOUT, {title: rows}, on, PACKAGES, given.out
    )


if __name__ == "__main__":
    report.run(main)
