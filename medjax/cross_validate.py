r"""Cross-validate a recipe: a run a fold, and a table of what they are worth.

    python -m medjax.cross_validate --config=configs/cxr_controlnet.py --workdir=DIR \
        --config.data.root=PREPARED --config.data.folds=5 --config.best.patience=5 \
        --config.train.checkpoint_every=500

What was prepared for training and validation is divided into folds by patient or
report; each validates once, and the others train. The best checkpoint of each fold is
scored on the test split, which is in none of them. DIR gets a folder for each fold,
``cross_validation.md`` and ``cross_validation.json``. The same command again goes on
where it was interrupted.
"""

from absl import flags
from ml_collections import config_flags

from medjax import cli


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with :variant where it has some."
    )
    flags.DEFINE_string("workdir", None, "Folder for all of it.", required=True)
    flags.DEFINE_integer(
        "images", 64, "Test examples that images are drawn for, each fold."
    )


def main(_: object) -> None:
    """Cross-validate as the flags say."""
    from medjax.compilation import keep_compiled
    from medjax.cross_validation.folds import cross_validate
    from medjax.hosts import refuse_several
    from medjax.runs.config import parse

    refuse_several("python -m medjax.cross_validate")
    keep_compiled()
    values = flags.FLAGS
    workdir = cli.writable_folder(values.workdir, "--workdir")
    cross_validate(parse(values.config), workdir, values.images)


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("config")
    cli.run(main)
