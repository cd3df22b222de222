r"""Train a model.

    medjax train --config=cxr_controlnet:demo --workdir=DIR

--config names a config that comes with medjax, or a file. Any key of the config can be
set from the command line:

    medjax train --config=cxr_controlnet --workdir=DIR \
        --config.data.root=PREPARED --config.optim.learning_rate=2e-5 \
        --config.data.batch_size=16 --config.train.gradient_accumulation_steps=4

The same command again goes on from the newest checkpoint in DIR.

On several hosts, start the same command on each of them, with DIR on a disk that they
share. SLURM, Open MPI and TPU pods say by themselves who takes part; elsewhere:

    medjax train --config=… --workdir=DIR --coordinator_address=HOST:PORT \
        --num_processes=2 --process_id=0     # and 1 on the other
"""

from absl import flags

from medjax import cli


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    cli.define_config()
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the run: metrics, samples, checkpoints",
        required=True,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "several hosts: HOST:PORT, free, on the first of them",
    )
    flags.DEFINE_integer(
        "num_processes", None, "several hosts: how many processes", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "several hosts: which of them this is, from 0",
        lower_bound=0,
    )
    flags.DEFINE_boolean(
        "detect_hosts", True, "whether SLURM, Open MPI or TPUs may say who takes part"
    )
    flags.DEFINE_integer(
        "host_timeout",
        100,
        "seconds to wait for another host: at first, and for a sign of life later on",
        lower_bound=1,
    )


def main(_: object) -> None:
    """Train as the flags say."""
    # Imported here so that --help and mistakes in flags answer at once.
    from medjax.compilation import keep_compiled
    from medjax.distributed import joined
    from medjax.hosts import Hosts
    from medjax.runs.config import parse
    from medjax.training.two_stages import train_stages

    values = flags.FLAGS
    hosts = Hosts(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        detect=values.detect_hosts,
        timeout_seconds=values.host_timeout,
    )
    keep_compiled()
    with joined(hosts):
        config = parse(values.config)
        train_stages(config, cli.writable_folder(values.workdir, "--workdir"))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
