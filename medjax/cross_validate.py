r"""Cross-validate a config: train and score one run per fold.

    medjax cross-validate --config=cxr_controlnet --workdir=DIR \
        --config.data.root=PREPARED --config.data.folds=5 --config.best.patience=5 \
        --config.train.checkpoint_every=500

The training and validation splits are divided into folds by patient or report. Each
run validates on one fold and trains on the others. The best checkpoint of each run is
scored on the test split, which is in no fold. DIR gets a folder for each fold,
``cross_validation.md`` and ``cross_validation.json``. After an interruption, the same
command resumes.
"""

from absl import flags

from medjax import cli


def define_flags() -> None:
    """Define the flags. Not on import, because flags of two commands would collide."""
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "folder for the runs and the report", required=True
    )
    flags.DEFINE_integer(
        "images",
        64,
        "number of test examples to sample images for, per fold",
        lower_bound=2,
    )


def main(_: object) -> None:
    """Cross-validate with the values of the flags."""
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
