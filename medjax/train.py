r"""Train a model.

    medjax train --config=cxr_controlnet:demo --workdir=DIR

--config names a config packaged with medjax, or a config file. Every key of the config
can be set on the command line:

    medjax train --config=cxr_controlnet --workdir=DIR \
        --config.data.root=PREPARED --config.optim.learning_rate=2e-5 \
        --config.data.batch_size=16 --config.train.gradient_accumulation_steps=4

medjax train --config=cxr_controlnet --help lists the keys of this config, with their
values. The same command resumes from the newest checkpoint in DIR.

On several hosts, start the same command on each host, with DIR on a shared disk. Under
SLURM or Open MPI and on TPU pods, the hosts find each other. Elsewhere:

    medjax train --config=… --workdir=DIR --coordinator_address=HOST:PORT \
        --num_processes=2 --process_id=0     # on the second host: --process_id=1
"""

from absl import flags

from medjax import cli


def define_flags() -> None:
    """Define the flags. Not on import, because flags of two commands would collide."""
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
        "several hosts: HOST:PORT of a free port on the first host",
    )
    flags.DEFINE_integer(
        "num_processes", None, "several hosts: number of processes", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "several hosts: number of this process, from 0",
        lower_bound=0,
    )
    flags.DEFINE_boolean(
        "detect_hosts", True, "find the hosts with SLURM, Open MPI or TPU metadata"
    )
    flags.DEFINE_integer(
        "host_timeout",
        100,
        "seconds to wait for another host, at the start and for a heartbeat later",
        lower_bound=1,
    )


def main(_: object) -> None:
    """Train with the settings in the flags."""
    # Imported here, so that --help and mistakes in flags take no time.
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
