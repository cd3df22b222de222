r"""Train a model.

    python -m medjax.train --config=configs/cxr_controlnet.py:demo --workdir=DIR

Any key of the config can be set from the command line:

    python -m medjax.train --config=configs/cxr_controlnet.py --workdir=DIR \
        --config.data.root=PREPARED --config.optim.learning_rate=2e-5 \
        --config.data.batch_size=16 --config.train.gradient_accumulation_steps=4

The same command again goes on from the newest checkpoint in DIR.

On several hosts, start the same command on each of them, with DIR on a disk that they
share. SLURM, Open MPI and TPU pods say by themselves who takes part; elsewhere:

    python -m medjax.train --config=… --workdir=DIR --coordinator_address=HOST:PORT \
        --num_processes=2 --process_id=0     # and 1 on the other
"""

from absl import flags
from ml_collections import config_flags

from medjax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with :variant where it has some."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: metrics, samples, checkpoints.", required=True
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Several hosts: HOST:PORT, free, on the first of them."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Several hosts: how many processes.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Several hosts: which of them this is, from 0.", lower_bound=0
)
_DETECT = flags.DEFINE_boolean(
    "detect_hosts", True, "Whether SLURM, Open MPI or TPUs may say who takes part."
)
_HOST_TIMEOUT = flags.DEFINE_integer(
    "host_timeout",
    100,
    "Seconds to wait for another host: at first, and for a sign of life later on.",
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

    hosts = Hosts(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        detect=_DETECT.value,
        timeout_seconds=_HOST_TIMEOUT.value,
    )
    keep_compiled()
    with joined(hosts):
        config = parse(_CONFIG.value)
        train_stages(config, cli.writable_folder(_WORKDIR.value, "--workdir"))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
