"""Every config file parses in every variant, and refuses unknown variants."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from medjax.errors import UserError
from medjax.runs.config import parse

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
# Configs that reimplement no published system; and those of them as small as a demo.
OWN = ("cxr_autoencoder", "cxr_text_to_image", "phantom_sd", "phantom_vae")
SMALL = ("phantom_sd", "phantom_vae")

HARDWARE = ("v5e", "v6e", "gpu24", "gpu80")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_parses_and_differs(path):
    module = load(path)
    assert ("published" in module.VARIANTS) == (path.stem not in OWN)
    assert ("demo" in module.VARIANTS) == (path.stem not in SMALL)
    configs = {v: parse(module.get_config(v)) for v in module.VARIANTS}
    # Two kinds of hardware may take the same split of the batch.
    others = [config for v, config in configs.items() if v not in HARDWARE]
    assert len({str(dataclasses.asdict(config)) for config in others}) == len(others)
    message = "has no variant 'dem'" if path.stem in SMALL else "did you mean 'demo'"
    with pytest.raises(UserError, match=message):
        module.get_config("dem")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.learning_rat", 1e-4, "did you mean 'learning_rate'"),
        ("train.steps", 0, "config.train.steps is 0"),
        ("train.steps", "many", "config.train.steps is 'many' .*expected int"),
        ("model.dtype", "float16", "expected one of float32, bfloat16"),
        ("data.resize", "crop", "resize"),
        ("optim.clip_norm", -1.0, "clip_norm"),
    ],
)
def test_what_no_section_takes_is_refused(key, value, message):
    config = load(FILES[0]).get_config("demo")
    with config.unlocked(), config.ignore_type():
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(UserError, match=message):
        parse(config)


def test_adapters_have_their_own_rates_and_the_best_is_kept():
    module = load(FILES[[path.stem for path in FILES].index("cxr_lora")])
    for variant in module.VARIANTS:
        config = parse(module.get_config(variant))
        assert config.model.adapters.keys() == {"unet", "text_encoder"}
        text = config.optim.of("text_encoder")
        if variant != "demo":  # Its text encoder must learn a word.
            assert text.learning_rate < config.optim.learning_rate
        assert text.schedule == config.optim.schedule == "cosine"
        # Each evaluation that may choose the best checkpoint coincides with a save.
        measured = "sample_every" if config.best.metric == "val/ssim" else "every"
        assert getattr(config.eval, measured) % config.train.checkpoint_every == 0
        assert config.data.folds and config.best.patience
    published = parse(module.get_config("published"))
    assert (
        published.model.unet_lora.scale == published.model.text_encoder_lora.scale == 2
    )
    assert published.optim.of("text_encoder").weight_decay == 0.08


def test_an_unknown_task_is_refused():
    config = load(FILES[0]).get_config("demo")
    config.task = "control_net"
    with pytest.raises(UserError, match="did you mean 'controlnet'"):
        parse(config)


@pytest.mark.parametrize(
    "name", ["cxr_controlnet", "cxr_lora", "cxr_text_to_image", "dogs_controlnet"]
)
@pytest.mark.parametrize("hardware", HARDWARE)
def test_hardware_changes_how_a_batch_is_split_alone(name, hardware):
    module = load(FILES[[path.stem for path in FILES].index(name)])
    recipe, ours = (parse(module.get_config(variant)) for variant in ("", hardware))
    steps = ours.train.gradient_accumulation_steps
    assert ours.data.batch_size % steps == 0
    model = dataclasses.replace(ours.model, remat=recipe.model.remat)
    train = dataclasses.replace(
        ours.train,
        gradient_accumulation_steps=recipe.train.gradient_accumulation_steps,
    )
    same = dataclasses.replace(ours, model=model, train=train)
    if name == "cxr_text_to_image" and hardware in ("v5e", "gpu24"):
        # AdamW's state of a billion weights does not fit beside them.
        assert ours.optim.optimizer == "adafactor" and ours.optim.ema_decay is None
        same = dataclasses.replace(same, optim=recipe.optim)
    assert same == recipe
