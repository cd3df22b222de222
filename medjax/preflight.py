r"""Ask the compiler whether a run fits the hardware, and at what speed.

    medjax preflight --config=cxr_controlnet --topology=v6e:1
    medjax preflight --config=cxr_lora --topology=v5e:2x4 --max_batch \
        --price_per_hour=1.2
    medjax preflight --config=knee_ddpm:demo --topology=local --json

The hardware is not needed. A TPU's own compiler (package libtpu, under the Google Cloud
Platform Terms of Service) compiles the programs that medjax train runs: step,
validation and sampler. No weights are read or downloaded. Figures are for one chip.
Times and images/s are best-case estimates from the chip's peaks. Any key of the config
can be set, as for medjax train.

A full-size step takes one to three minutes on two cores, because the TPU's compiler is
stopped before it generates code. Figures are kept in ~/.cache/medjax/preflight, by the
program's hash.
"""

import json

from absl import flags

from medjax import cli


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    cli.define_config()
    flags.DEFINE_string(
        "topology",
        "local",
        "chips to compile for: v5e:2x4, v6e:1 (one chip), v5p:2x2x1, v4:2x2x1 …, or "
        "local for the devices of this machine",
    )
    flags.DEFINE_list(
        "programs",
        ["step", "validation", "sampler"],
        "programs to compile, of step, validation and sampler",
    )
    flags.DEFINE_boolean(
        "max_batch",
        False,
        "also find the least remat and the largest batch that fit; this compiles the "
        "step several times",
    )
    flags.DEFINE_float(
        "price_per_hour",
        None,
        "price of one chip for an hour, to estimate the price of the run",
        lower_bound=0,
    )
    flags.DEFINE_boolean("json", False, "print JSON instead of text")


def main(_: object) -> None:
    """Print what the compiler says."""
    from medjax.compiling.compiled import figures_folder
    from medjax.compiling.preflight import preflight
    from medjax.compiling.report import to_json, to_lines
    from medjax.compiling.run_programs import PROGRAMS
    from medjax.compiling.topologies import find_topology
    from medjax.errors import UserError, nearest
    from medjax.runs.config import parse

    values = flags.FLAGS
    for name in values.programs:
        if name not in PROGRAMS:
            raise UserError(
                f"--programs={name}: unknown program; expected some of "
                f"{', '.join(PROGRAMS)}{nearest(name, PROGRAMS)}"
            )
    topology = find_topology(values.topology)
    config = parse(values.config)
    names = tuple(name for name in PROGRAMS if name in values.programs)
    found = preflight(config, topology, figures_folder(), names, values.max_batch)
    price = values.price_per_hour
    if values.json:
        print(json.dumps(to_json(found, config, price), indent=1))
    else:
        print("\n".join(to_lines(found, config, price)))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
