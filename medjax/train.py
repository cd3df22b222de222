r"""Train a model.

    python -m medjax.train --config=configs/cxr_controlnet.py:demo --workdir=DIR

Any key of the config can be set from the command line:

    python -m medjax.train --config=configs/cxr_controlnet.py --workdir=DIR \
        --config.data.root=PREPARED --config.optim.learning_rate=2e-5 \
        --config.data.batch_size=16 --config.train.gradient_accumulation_steps=4

The same command again goes on from the newest checkpoint in DIR.
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


def main(_: object) -> None:
    """Train as the flags say."""
    # Imported here so that --help and mistakes in flags answer at once.
    from medjax.training.config import parse
    from medjax.training.loop import train

    config = parse(_CONFIG.value)
    cli.check_writable(_WORKDIR.value, "--workdir")
    train(config, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
