"""The model card of an export: what it is, what it stands on, and how it was made.

Its form is the Hugging Face hub's: ``README.md`` with metadata in front. What is not
known is said to be unknown, and no path of the machine that trained is told.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medjax import __version__, texts
from medjax.data.config import ControlDataConfig
from medjax.data.prepared import describe_splits
from medjax.exporting import card_texts
from medjax.pretrained.sources import PHANTOM_SD, local_place
from medjax.runs.config import RunConfig, make_config, parse
from medjax.runs.open_run import Run, dataset_at_hand, has_stored_controls

UNKNOWN = "unknown"
# The hub's words for the licences of what is usually started from.
LICENCES = {
    "creativeml-openrail-m": (
        "CompVis/stable-diffusion-v1-4",
        "runwayml/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "openrail++": (
        "stabilityai/stable-diffusion-2",
        "stabilityai/stable-diffusion-2-base",
        "stabilityai/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "openrail": ("lllyasviel/ControlNet", "lllyasviel/sd-controlnet-canny"),
    # The tiny one is part of this project.
    "apache-2.0": ("",),
}
_TAGS = ("stable-diffusion", "medical-imaging", "medjax", "jax")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Settings that are places, and what stands for them where they are local.
_PLACES = {
    "data.root": "DATA",
    "model.pretrained": "BASE",
    "model.vae": "VAE",
    "model.controlnet": "CONTROLNET",
    "model.autoencoder": "AUTOENCODER",
}


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        name: Of the folder, or its hub id.
        format: As `medjax.export` names it.
        dtype: What weights are stored as.
        file: Name of the single file, where it is one.
    """

    name: str
    format: str
    dtype: str
    file: str = ""


def model_card(run: Run, export: Export) -> str:
    """Return the text of ``README.md``."""
    task, size = run.config.task, run.config.data.image_size
    alone = task == "controlnet" or export.format in ("lora", "kohya")
    kind = export.format if alone else task
    base = _named(run.base["source"]) or "BASE"
    use = card_texts.USE[kind].format(
        name=export.name,
        file=export.file,
        dtype=export.dtype,
        base=base,
        guidance=getattr(run.config.eval, "guidance_scale", None),
        size=size,
        run=export.file.removeprefix("lora_").removesuffix(".safetensors"),
        changes=_upon(run, export.dtype),
    )
    named = [name for name in (export.name, base) if f'"{name}' in use]
    return card_texts.CARD.format(
        metadata=_metadata(run),
        title=export.name.rpartition("/")[2],
        what=card_texts.WHAT[kind]
        + (card_texts.UNET_TOO if {"controlnet", "unet"} <= set(run.trained) else ""),
        use=use if all(map(_hub_id, named)) else use + card_texts.PLACES,
        size=size,
        captions="" if task == "autoencoder_kl" else card_texts.CAPTIONS,
        data=_data(run),
        base=_base(run),
        weights=_weights(run),
        step=run.step,
        batch_size=run.config.data.batch_size,
        version=__version__,
        config=config_file(run.config),
        command=command(run.config),
        metrics=_metrics(run),
    )


def config_file(config: RunConfig) -> str:
    """Return a config file that says all that is no default, places aside."""
    default = parse(make_config(config.task))
    lines = [
        f"    config.{key} = {_literal(value)}"
        for key, value in _changes(config, default)
        if not _is_local(key, value)
    ]
    return card_texts.CONFIG.format(task=config.task, lines="\n".join(lines)).strip()


def _changes(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key below two configs, or sections, whose values differ, and ours."""
    for field in dataclasses.fields(ours):
        value, default = (getattr(one, field.name) for one in (ours, theirs))
        if dataclasses.is_dataclass(value):
            yield from _changes(value, default, f"{path}{field.name}.")
        # A section that is not used is None, and cannot be set to it.
        elif value != default and not dataclasses.is_dataclass(default):
            yield f"{path}{field.name}", value


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def command(config: RunConfig) -> str:
    """Return the command that trains by `config_file`, as ``config.py``."""
    flags = ["--config=config.py", "--workdir=DIR"]
    for key, placeholder in _PLACES.items():
        section, _, name = key.partition(".")
        if _is_local(key, getattr(getattr(config, section), name, None)):
            flags.append(f"--config.{key}={placeholder}")
    return " ".join(["python -m medjax.train", *flags])


def _is_local(key: str, value: object) -> bool:
    """Tell whether a setting is a place on the machine that trained."""
    if key not in _PLACES or not isinstance(value, str) or not value:
        return False
    return key == "data.root" or (_hub_id(value) is None and value != PHANTOM_SD)


def _hub_id(source: str) -> str | None:
    """Return the source if it names a model on the hub, as far as can be seen."""
    hub = _HUB_ID.fullmatch(source) and not local_place(source).exists()
    return source if hub else None


def _named(source: str) -> str:
    """Return a name of the source, without its place; of phantom-SD its folder's."""
    own = "medjax/pretrained/phantom_sd" if source == PHANTOM_SD else ""
    return own or _hub_id(source) or Path(source).name


def _metadata(run: Run) -> str:
    from huggingface_hub import ModelCardData

    task, source = run.config.task, run.base["source"]
    # Weights of computed images alone are the project's own.
    own = UNKNOWN if run.config.data.root else "apache-2.0"
    return ModelCardData(
        license=own if _from_scratch(run) else _licence(source),
        base_model=None if _from_scratch(run) else _hub_id(source),
        library_name="diffusers",
        pipeline_tag="image-to-image" if task == "autoencoder_kl" else "text-to-image",
        tags=[*_kinds(run), *_TAGS],
    ).to_yaml()


def _kinds(run: Run) -> list[str]:
    """Return the hub's words for what there is beside a Stable Diffusion."""
    if run.config.task == "text_to_image" and run.sd.adapters:
        return ["lora"]
    return ["controlnet"] if run.config.task == "controlnet" else []


def _upon(run: Run, dtype: str) -> str:
    """Return the code by which a base becomes what the run trained upon."""
    kind = getattr(run.config.diffusion, "prediction_type", None)
    code = "" if kind is None else card_texts.PREDICTS.format(kind=kind)
    if vae := getattr(run.config.model, "vae", None):
        code += card_texts.OWN_AUTOENCODER.format(vae=_named(vae), dtype=dtype)
    return code


def _from_scratch(run: Run) -> bool:
    """Tell whether all of it was trained by runs of medjax, beginning with noise."""
    if run.config.task == "autoencoder_kl":
        return run.config.model.pretrained is None
    return getattr(run.config.model, "autoencoder", None) is not None


def _licence(source: str) -> str:
    """Return the hub's word for the licence of weights, or `UNKNOWN`."""
    for licence, sources in LICENCES.items():
        if source in sources:
            return licence
    card = local_place(source) / "README.md"
    if not card.is_file():
        return UNKNOWN
    found = re.search(r"^license: *([\w.+-]+) *$", texts.read_text(card), re.M)
    return found[1] if found else UNKNOWN


def _base(run: Run) -> str:
    if _from_scratch(run):
        if run.config.task == "autoencoder_kl":
            return card_texts.FROM_NOTHING
        return card_texts.FROM_SCRATCH.format(fingerprint=run.base["fingerprint"])
    source, model = run.base["source"], run.config.model
    start, vae = getattr(model, "controlnet", None), getattr(model, "vae", None)
    what = f"`{_named(source)}`" if source else "The tiny, random model of medjax"
    text = (
        f"{what}, known by the fingerprint `{run.base['fingerprint']}`. Licence: "
        f"{_licence(source)}."
    )
    if vae is not None:
        text += f" In its autoencoder's place: `{_named(vae)}` ({_licence(vae)})."
    if start is not None:
        text += (
            f" The ControlNet started from `{_named(start)}`, whose licence goes on "
            f"with it: {_licence(start)}."
        )
    return text


def _data(run: Run) -> str:
    metadata = dataset_at_hand(run)
    known = f"known by the fingerprint `{run.dataset['fingerprint']}`"
    if metadata is None:
        said = [
            f"`{Path(run.dataset['source']).name}`, {known}.",
            f"Licence: {UNKNOWN}: the data were not at hand when this was written.",
        ]
    else:
        licence = metadata.licence or f"{UNKNOWN}: the prepared data record none"
        said = [
            f"`{metadata.name}`, {known}: {describe_splits(metadata.splits)}.",
            " ".join(metadata.description.split()),
            f"Licence: {licence}.",
        ]
    if isinstance(run.config.data, ControlDataConfig):
        kind = "unknown" if metadata is None else "edges"
        kind = "stored" if has_stored_controls(run) else kind
        said.append(card_texts.CONDITION[kind].format(edges=_edges(run.config.data)))
    return " ".join(said)


def _edges(data: ControlDataConfig) -> str:
    low, high = (
        f"{a:g}" if a == b else f"{a:g}–{b:g}"
        for a, b in (data.canny_low, data.canny_high)
    )
    blur = f" after a blur of {data.canny_sigma:g} pixels" if data.canny_sigma else ""
    backend = {"opencv": "OpenCV", "skimage": "scikit-image"}[data.canny_backend]
    return (
        f"{backend}'s Canny edges, white on black, at thresholds {low} and {high}{blur}"
    )


def _weights(run: Run) -> str:
    average = f"The moving average of the weights (decay {run.config.optim.ema_decay})"
    return average if run.weights == "ema" else "The weights"


def _metrics(run: Run) -> str:
    told = {
        name: value
        for name, value in sorted(run.metrics.items())
        if name.startswith("val/") or name == "train/loss"
    }
    if not told:
        return "Nothing was measured at this step."
    rows = [f"| {name} | {value:.4g} |" for name, value in told.items()]
    table = "\n".join(["| measured at this step | |", "|---|---|", *rows])
    return table + (card_texts.ADHERENCE if "val/edge_f1" in told else "")
