"""Mistakes in `python -m medjax.train`."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from tests.mistakes import DEMO, Mistake, train
from tests.pretrained import small

CONFIG = """from medjax.runs.config import make_config
def get_config(variant=""):
    config = make_config("controlnet")
    {}
    return config
"""


def own_config(line: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "own.py").write_text(CONFIG.format(line))


def copy_data(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a setup that changes the training shard of a copy of prepared images."""

    def setup(folder: Path) -> None:
        shutil.copytree(folder.parent / "data", folder / "data")
        (shard,) = (folder / "data").rglob("*train.array_record*")
        change(shard)

    return setup


def flip(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    start = content.index(b"IDAT")
    # Overwrites a whole block that the checksum covers, the same in every record.
    while start >= 0:
        content[start : start + 200] = bytes(200)
        start = content.find(b"IDAT", start)
    shard.write_bytes(content)


def save_controlnet(folder: Path) -> None:
    from medjax.pretrained import save_controlnet

    save_controlnet(small.network("controlnet"), folder / "controlnet")


def save_checkpoint(folder: Path) -> None:
    """Write a checkpoint of the demo with another base model and another source."""
    from medjax.data.pipeline import dataset_identity
    from medjax.runs.checkpoints import Checkpoints
    from medjax.runs.config import parse
    from tests.tiny_demo import get_config

    config = parse(get_config())
    inputs = {
        "base": {"source": "other/base", "fingerprint": "0123"},
        "dataset": dataset_identity(config.data),
    }
    place = folder / "run" / "checkpoints"
    with Checkpoints(place, dataclasses.asdict(config), inputs) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2)})


OWN = ("--config={dir}/own.py", "--workdir={dir}/run")
MISTAKES = [
    train(
        "config file",
        "--config=configs/cxr_controlnt.py",
        says=("configs/cxr_controlnt.py", "did you mean 'configs/cxr_controlnet.py'?"),
        apart=True,
    ),
    train(
        "variant",
        "--config=configs/cxr_controlnet.py:publishd",
        says=(
            "'publishd'",
            "Known variants: published, demo",
            "did you mean 'published'?",
        ),
    ),
    train(
        "key",
        "--config.optim.learning_rat=1",
        says=("--config.optim.learning_rat;", "did you mean 'optim.learning_rate'?"),
    ),
    Mistake(
        "key that nothing reads",
        OWN,
        ("config.data has no key 'image_sise'", "did you mean 'image_size'?"),
        own_config("config.data.unlock().image_sise = 3"),
    ),
    Mistake(
        "key that a config does not take",
        OWN,
        ("own.py: line 4", "image_sise"),
        own_config("config.lock().data.image_sise = 3"),
    ),
    Mistake(
        "broken config file",
        OWN,
        ("own.py: line 4: SyntaxError",),
        own_config("config.data.("),
    ),
    Mistake(
        "wrong type in a file",
        OWN,
        ("own.py: line 4: TypeError", "'steps'", "many"),
        own_config("config.train.steps = 'many'"),
    ),
    train(
        "wrong type",
        "--config.train.steps=many",
        says=("--config.train.steps=many: Expected an integer",),
    ),
    train(
        "choice",
        "--config.data.resize=crop",
        says=("config.data.resize is 'crop'", "center_crop, letterbox, stretch"),
    ),
    train("section", "--config.data=3", says=("section", "--config.data.KEY=VALUE")),
    train(
        "task",
        "--config.task=contrlnet",
        says=("config.task='contrlnet': unknown task", "did you mean 'controlnet'?"),
    ),
    train(
        "flag", "--workdr=x", says=("--workdr;", "did you mean 'workdir'?"), apart=True
    ),
    train("argument", "steps=3", says=("'steps=3'", "--name=value")),
    Mistake("no workdir", (DEMO,), ("--workdir is missing",)),
    Mistake("no config", ("--workdir={dir}",), ("--config is missing",)),
    train("steps", "--config.train.steps=0", says=("train.steps is 0, expected at",)),
    train(
        "image size",
        "--config.data.image_size=-8",
        says=("config.data.image_size is -8, expected at least 8",),
    ),
    train(
        "batch size",
        "--config.data.batch_size=0",
        says=("config.data.batch_size is 0, expected at least 1",),
    ),
    train(
        "not a number",
        "--config.optim.learning_rate=nan",
        says=("config.optim.learning_rate=nan: expected",),
    ),
    train(
        "fraction",
        "--config.diffusion.caption_dropout=7",
        says=("config.diffusion.caption_dropout is 7.0", "[0, 1]"),
    ),
    train(
        "thresholds",
        "--config.data.canny_low=300,300",
        says=("config.data.canny_low reaches 300", "canny_high reaches 200"),
    ),
    train(
        "one threshold",
        "--config.data.canny_low=300",
        says=("config.data.canny_low has 1 values", "(float, float)"),
    ),
    train(
        "image size that the networks cannot halve",
        "--config.data.image_size=18",
        says=("config.data.image_size=18", "multiple of 4", "16 or 20"),
    ),
    train(
        "batch and mesh",
        "--config.data.batch_size=12",
        says=("config.data.batch_size=12", "8 devices", "multiple of 8"),
    ),
    train(
        "batch and accumulation",
        "--config.train.gradient_accumulation_steps=3",
        says=("gradient_accumulation_steps=3", "multiple of 24"),
    ),
    train("mesh", "--config.mesh.fsdp=3", says=("fsdp=3", "8 devices")),
    train(
        "no data",
        "--config.data.root={dir}/none",
        says=("config.data.root={dir}/none: no such folder", "medjax prepare"),
        apart=True,
    ),
    train(
        "empty folder of data",
        "--config.data.root={dir}/empty",
        says=("{dir}/empty: is empty", "medjax prepare"),
        setup=lambda folder: (folder / "empty").mkdir(),
    ),
    train(
        "data that are not prepared",
        "--config.data.root={raw}",
        says=("not prepared", "medjax prepare --dataset=folder --source={raw} --out="),
    ),
    train(
        "missing file of prepared data",
        "--config.data.root={dir}/data",
        says=("array_record", "is missing", "prepare the data again"),
        setup=copy_data(Path.unlink),
    ),
    train(
        "cut file of prepared data",
        "--config.data.root={dir}/data",
        says=("array_record", "is damaged", "prepare the data again"),
        setup=copy_data(lambda shard: shard.write_bytes(shard.read_bytes()[:99_999])),
    ),
    train(
        "damaged record, in threads",
        "--config.data.root={dir}/data",
        says=("train.array_record", "of train is damaged", "prepare the data again"),
        setup=copy_data(flip),
    ),
    train(
        "damaged record, in processes",
        "--config.data.root={dir}/data",
        "--config.data.workers=1",
        says=("train.array_record", "of train is damaged", "prepare the data again"),
        setup=copy_data(flip),
    ),
    train(
        "cache of images below a file",
        "--config.data.cache={dir}/file/cache",
        says=("config.data.cache={dir}/file/cache: cannot be written", "or to None"),
        setup=lambda folder: (folder / "file").write_text("precious"),
    ),
    train("empty workdir", "--workdir=", says=("--workdir= is empty",)),
    train(
        "workdir that is a file",
        "--workdir={dir}/run",
        says=("--workdir={dir}/run", "is not a folder"),
        setup=lambda folder: (folder / "run").write_text("precious"),
    ),
    train(
        "workdir below a file",
        "--workdir={dir}/run/deeper",
        says=("{dir}/run is not a folder",),
        setup=lambda folder: (folder / "run").write_text("precious"),
    ),
    train(
        "workdir where nobody can write",
        "--workdir=/proc/run",
        says=("--workdir=/proc/run: cannot be written to", "may write to"),
    ),
    train(
        "hub id, offline",
        "--config.model.pretrained=no/such",
        says=("'no/such'", "HF_HUB_OFFLINE is set", "give a folder"),
    ),
    train(
        "hub id, no connection",
        "--config.model.pretrained=no/such",
        says=("'no/such'", "http://127.0.0.1:9 does not answer", "refused"),
        env={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    ),
    train(
        "no hub id",
        "--config.model.pretrained={dir}/none",
        says=("'{dir}/none'", "no such local folder", "owner/name"),
    ),
    train(
        "folder that is no model",
        "--config.model.pretrained={raw}",
        says=("{raw}", "is missing", "diffusers layout"),
    ),
    train(
        "ControlNet of another base",
        "--config.model.controlnet={dir}/controlnet",
        says=("config.model.controlnet", "base model", "cross_attention_dim 16"),
        setup=save_controlnet,
    ),
    train(
        "resuming with another base and another rate",
        "--config.optim.learning_rate=1",
        says=(
            "checkpoint 1 in {dir}/run/checkpoints belongs to another run",
            "base is '' (",
            "was 'other/base' (0123)",
            "config.optim.learning_rate is 1.0, was 0.001",
            "another --workdir",
        ),
        setup=save_checkpoint,
    ),
]
if os.geteuid() != 0:
    # Root may write to folders that refuse other users.
    MISTAKES.append(
        train(
            "workdir without the right to write",
            says=("run: Permission denied",),
            setup=lambda folder: (folder / "run").mkdir(mode=0o500),
        )
    )
