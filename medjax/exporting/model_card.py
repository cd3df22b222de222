"""Write the model card of an export: what it is, its base, its data and its training.

The card is a ``README.md`` that starts with metadata, as the Hugging Face hub expects.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from medjax import __version__
from medjax.data.config import ControlDataConfig
from medjax.data.prepared import describe_splits
from medjax.exporting import card_texts, image_card_texts
from medjax.exporting.card_facts import UNKNOWN, CardFacts, collect_facts
from medjax.exporting.for_torch import pipeline_class, torch_sampling
from medjax.exporting.formats import Export
from medjax.pretrained.sources import built_in, hub_id
from medjax.runs.config import RunConfig, make_config, parse
from medjax.runs.open_run import Run

_TAGS = ("medical-imaging", "medjax", "jax")
_WHAT = card_texts.WHAT | image_card_texts.WHAT
_USE = card_texts.USE | image_card_texts.USE
# Config keys that hold paths or hub ids. A local path is replaced by the placeholder.
_PLACES = {
    "data.root": "DATA",
    "model.pretrained": "BASE",
    "model.vae": "VAE",
    "model.controlnet": "CONTROLNET",
    "model.autoencoder": "AUTOENCODER",
}


def model_card(run: Run, export: Export) -> str:
    """Return the text of ``README.md``."""
    return render(collect_facts(run, export))


def render(facts: CardFacts) -> str:
    """Return the text of a model card with these facts."""
    config, export = facts.config, facts.export
    return card_texts.CARD.format(
        metadata=_metadata(facts),
        title=export.name.rpartition("/")[2],
        what=_WHAT[facts.texts] + (card_texts.UNET_TOO if facts.unet_too else ""),
        warning=card_texts.GENERATES if facts.sampling else card_texts.RECONSTRUCTS,
        use=_use(facts),
        size=config.data.image_size,
        captions=card_texts.CAPTIONS if facts.captioned else "",
        data=_data(facts),
        base=_base(facts),
        weights=_weights(facts),
        step=facts.step,
        batch_size=config.data.batch_size,
        version=__version__,
        config=config_file(config),
        command=command(config),
        metrics=_metrics(facts),
    )


def _use(facts: CardFacts) -> str:
    """Return how to use the export, as text and code."""
    export = facts.export
    base = (facts.base and facts.base.name) or "BASE"
    use = _USE[facts.texts].format(
        name=export.name,
        file=export.file,
        dtype=export.dtype,
        base=base,
        steps=facts.sampling and facts.sampling.steps,
        guidance=facts.sampling and facts.sampling.guidance_scale,
        size=facts.config.data.image_size,
        run=export.file.removeprefix("lora_").removesuffix(".safetensors"),
        changes=_changes_of_base(facts),
        mode="L" if facts.channels == 1 else "RGB",
        load=image_card_texts.load_code(
            facts.texts, export.name, hub_id(export.name) is not None
        ),
        **_sample_code(facts),
    )
    named = [name for name in (export.name, base) if f'"{name}' in use]
    return use if all(map(hub_id, named)) else use + card_texts.PLACES


def _sample_code(facts: CardFacts) -> dict[str, Any]:
    """Return parts of the code that samples without captions; {} for other models."""
    own, objective = facts.sampling, facts.config.diffusion
    if facts.captioned or own is None or objective is None:
        return {}
    used = torch_sampling(own)
    note = image_card_texts.sample_note(
        used.sampler, own.sampler, facts.classes, objective.label_dropout > 0
    )
    return {
        "note": note,
        "pipeline": pipeline_class(used),
        **image_card_texts.sample_code(used, facts.classes),
    }


def _changes_of_base(facts: CardFacts) -> str:
    """Return code that changes the base to the model that the run trained."""
    kind, code = facts.prediction_type, ""
    if kind is not None:
        code = card_texts.PREDICTS.format(kind=kind)
    if facts.vae is not None:
        name, dtype = facts.vae.name, facts.export.dtype
        code += card_texts.OWN_AUTOENCODER.format(vae=name, dtype=dtype)
    return code


def config_file(config: RunConfig) -> str:
    """Return a config file with every value that is not a default or a local path."""
    default = parse(make_config(config.task))
    lines = [
        f"    config.{key} = {_literal(value)}"
        for key, value in _changes(config, default)
        if not _is_local(key, value)
    ]
    return card_texts.CONFIG.format(task=config.task, lines="\n".join(lines)).strip()


def _changes(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key whose value differs between two configs or sections, and ours."""
    for field in dataclasses.fields(ours):
        value, default = vars(ours)[field.name], vars(theirs)[field.name]
        if dataclasses.is_dataclass(value):
            yield from _changes(value, default, f"{path}{field.name}.")
        # An unused section is None, and a config file cannot set a section to None.
        elif value != default and not dataclasses.is_dataclass(default):
            yield f"{path}{field.name}", value


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def command(config: RunConfig) -> str:
    """Return the command that trains with `config_file`, saved as ``config.py``."""
    flags = ["--config=config.py", "--workdir=DIR"]
    sections = dataclasses.asdict(config)
    for key, placeholder in _PLACES.items():
        section, _, name = key.partition(".")
        if _is_local(key, sections[section].get(name)):
            flags.append(f"--config.{key}={placeholder}")
    return " ".join(["python -m medjax.train", *flags])


def _is_local(key: str, value: object) -> bool:
    """Tell whether a value is a path on the machine that trained."""
    if key not in _PLACES or not isinstance(value, str) or not value:
        return False
    return key == "data.root" or (hub_id(value) is None and not built_in(value))


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    draws = "unconditional-image-generation" if facts.sampling else "image-to-image"
    own_code = facts.export.format == "pytorch"
    kind = () if facts.texts in image_card_texts.WHAT else ("stable-diffusion",)
    return ModelCardData(
        license=facts.licence,
        base_model=facts.base_id,
        library_name="pytorch" if own_code else "diffusers",
        pipeline_tag="text-to-image" if facts.captioned else draws,
        tags=[*facts.tags, *kind, *_TAGS],
    ).to_yaml()


def _base(facts: CardFacts) -> str:
    if facts.base is None:
        if not facts.first_stage:
            return card_texts.FROM_NOTHING
        return card_texts.FROM_SCRATCH.format(fingerprint=facts.fingerprint)
    name = facts.base.name
    what = f"`{name}`" if name else "medjax's tiny model with random weights"
    text = (
        f"{what} (fingerprint `{facts.fingerprint}`, which identifies the weights). "
        f"Licence: {facts.base.licence}."
    )
    if facts.vae is not None:
        text += (
            f" Its autoencoder was replaced by `{facts.vae.name}` (licence: "
            f"{facts.vae.licence})."
        )
    if facts.controlnet is not None:
        text += (
            f" The ControlNet started from `{facts.controlnet.name}` (licence: "
            f"{facts.controlnet.licence}). This licence also applies to this "
            "ControlNet."
        )
    return text


def _data(facts: CardFacts) -> str:
    metadata, known = (
        facts.data,
        f"(fingerprint `{facts.data_fingerprint}`, which identifies the data)",
    )
    if metadata is None:
        said = [
            f"`{facts.data_name}` {known}.",
            f"Licence: {UNKNOWN}. The data were not found when this card was written.",
        ]
    else:
        licence = (
            metadata.licence or f"{UNKNOWN}, because the prepared data do not state it"
        )
        said = [
            f"`{metadata.name}` {known}. Splits: {describe_splits(metadata.splits)}.",
            " ".join(metadata.description.split()),
            f"Licence: {licence}.",
        ]
    if facts.control is not None:
        text = card_texts.CONDITION[facts.control]
        said.append(text.format(edges=_edges(facts.config.data)))
    return " ".join(said)


def _edges(data: ControlDataConfig) -> str:
    low, high = (
        f"{a:g}" if a == b else f"{a:g}–{b:g}"
        for a, b in (data.canny_low, data.canny_high)
    )
    sigma = data.canny_sigma
    blur = f", Gaussian blur with σ = {sigma:g} px" if sigma else ""
    backend = {"opencv": "OpenCV", "skimage": "scikit-image"}[data.canny_backend]
    return f"Canny edges, white on black ({backend}, thresholds {low} and {high}{blur})"


def _weights(facts: CardFacts) -> str:
    decay = facts.config.optim.ema_decay
    average = f"the moving average of the weights (decay {decay})"
    return average if facts.average else "the weights"


def _metrics(facts: CardFacts) -> str:
    told = {
        name: value
        for name, value in sorted(facts.metrics.items())
        if name.startswith("val/") or name == "train/loss"
    }
    if not told:
        return "No metrics were measured at this step."
    rows = [f"| {name} | {value:.4g} |" for name, value in told.items()]
    table = "\n".join(["| metric at this step | value |", "|---|---|", *rows])
    return table + (card_texts.ADHERENCE if "val/edge_f1" in told else "")
