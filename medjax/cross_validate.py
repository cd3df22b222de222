r"""Cross-validate a recipe: train and score a run for each fold.

    medjax cross-validate --config=cxr_controlnet --workdir=DIR \
        --config.data.root=PREPARED --config.data.folds=5 --config.best.patience=5 \
        --config.train.checkpoint_every=500

What was prepared for training and validation is divided into folds by patient or
report; each validates once, and the others train. The best checkpoint of each fold is
scored on the test split, which is in none of them. DIR gets a folder for each fold,
``cross_validation.md`` and ``cross_validation.json``. The same command again goes on
where it was interrupted.
"""

from absl import flags

from medjax import cli


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "folder for all of it", required=True)
    flags.DEFINE_integer(
        "images",
        64,
        "test examples that images are drawn for, each fold",
        lower_bound=2,
    )


def main(_: object) -> None:
    """Cross-validate as the flags say."""
    from medjax.compilation import keep_compiled
    from medjax.cross_validation.folds import cross_validate
    from medjax.hosts import refuse_several
    from medjax.runs.config import parse

    refuse_several("medjax cross-validate")
    keep_compiled()
    values = flags.FLAGS
    workdir = cli.writable_folder(values.workdir, "--workdir")
    cross_validate(parse(values.config), workdir, values.images)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
