"""Write and parse captions of chest radiographs, for phantoms and NIH ChestX-ray14.

Findings come first, because a text encoder of 77 tokens always sees the beginning.
View, age and sex follow. Unknown values are left out:

    Chest X-ray with cardiomegaly and left pleural effusion, PA view, 57-year-old woman
    Chest X-ray without abnormal findings, AP view, 31-year-old man
"""

import re
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

from medjax.errors import UserError, nearest

CaptionStyle = Literal["findings", "binary"]

NO_FINDING = "No Finding"

FINDING_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "Atelectasis": "atelectasis",
        "Cardiomegaly": "cardiomegaly",
        "Consolidation": "consolidation",
        "Edema": "pulmonary edema",
        "Effusion": "pleural effusion",
        "Emphysema": "emphysema",
        "Fibrosis": "pulmonary fibrosis",
        "Hernia": "hiatal hernia",
        "Infiltration": "infiltration",
        "Mass": "lung mass",
        "Nodule": "lung nodule",
        "Pleural_Thickening": "pleural thickening",
        "Pneumonia": "pneumonia",
        "Pneumothorax": "pneumothorax",
    }
)
"""Words of a caption for each of NIH's 14 findings."""

_LABELS = {name: label for label, name in FINDING_NAMES.items()}
_VIEWS = ("PA", "AP")
_SIDES = ("left", "right")
_PATIENTS = {"F": "female patient", "M": "male patient", "": ""}
_ADULTS = {"F": "woman", "M": "man", "": "patient"}
_CHILDREN = {"F": "girl", "M": "boy", "": "child"}
_ADULT_AGE = 18
_STYLES: tuple[CaptionStyle, ...] = ("findings", "binary")
_FINDINGS_CAPTION = re.compile(
    r"Chest X-ray (?:without abnormal findings|with (?P<findings>.+?))"
    r"(?:, (?:PA|AP) view)?"
    r"(?:, (?:(?:[0-9]+-year-old|infant) [a-z]+|(?:fe)?male patient))?"
)


def caption(
    labels: Collection[str],
    view: str,
    age: int | None,
    sex: str,
    style: CaptionStyle = "findings",
    sides: Mapping[str, str] | None = None,
) -> str:
    """Describe a frontal chest radiograph.

    Args:
        labels: Findings, with the names of NIH ChestX-ray14. No label, or "No Finding"
            alone, means a normal image.
        view: "PA" or "AP"; "" if unknown.
        age: Age in whole years, at least 0; None if unknown.
        sex: "F" or "M"; "" if unknown.
        style: "findings" names findings, view, age and sex. "binary" states only
            whether any finding is present, in the words of the published system.
        sides: The patient's side, "left" or "right", for findings whose side is known.

    Raises:
        UserError: If a label, view, sex, side or style is unknown, or the age is
            negative.

    Source of the binary prompts: the training prompts of the published system for chest
    X-rays with edges.
    """
    _check("caption style", style, _STYLES)
    findings = _findings(labels)
    if style == "binary":
        # The published prompts write a small x.
        return f"Chest x-ray of a patient with {'' if findings else 'no '}diseases"
    names = [_name(label, (sides or {}).get(label, "")) for label in findings]
    what = f"with {_enumerate(names)}" if names else "without abnormal findings"
    parts = [f"Chest X-ray {what}", _view(view), _person(age, sex)]
    return ", ".join(part for part in parts if part)


def labels_of(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the labels and sides of a caption that has the style "findings".

    Args:
        text: A whole caption, as `caption` writes it.

    Returns:
        The findings by NIH's names, and the side of each finding that has one.

    Raises:
        UserError: If `caption` never writes this text.
    """
    match = _FINDINGS_CAPTION.fullmatch(text)
    if match is None:
        raise UserError(
            f"cannot read the findings of '{text}'; expected a caption such as "
            f"'{caption(('Effusion',), 'PA', 57, 'F', sides={'Effusion': 'left'})}'"
        )
    labels, sides = [], {}
    for name in re.split(", | and ", match["findings"] or ""):
        if not name:
            continue
        first, _, rest = name.partition(" ")
        side, plain = (first, rest) if first in _SIDES else ("", name)
        _check("finding", plain, _LABELS)
        labels.append(_LABELS[plain])
        if side:
            sides[labels[-1]] = side
    return tuple(labels), sides


def _findings(labels: Collection[str]) -> list[str]:
    """Return the labels in NIH's order, each once, without "No Finding"."""
    for label in labels:
        _check("finding", label, (*FINDING_NAMES, NO_FINDING))
    findings = [label for label in FINDING_NAMES if label in labels]
    if findings and NO_FINDING in labels:
        raise UserError(
            f"labels {sorted(labels)}: '{NO_FINDING}' excludes other findings; remove "
            "it or the others"
        )
    return findings


def _check(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(
            f"unknown {what} '{value}'; expected one of "
            f"{', '.join(known)}{nearest(value, known)}"
        )


def _name(label: str, side: str) -> str:
    if not side:
        return FINDING_NAMES[label]
    _check(f"side of {label}", side, _SIDES)
    return f"{side} {FINDING_NAMES[label]}"


def _enumerate(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _view(view: str) -> str:
    if not view:
        return ""
    _check("view", view, _VIEWS)
    return f"{view} view"


def _person(age: int | None, sex: str) -> str:
    """Return, e.g., "57-year-old woman", or "female patient" if the age is unknown."""
    if sex:
        _check("sex", sex, ("F", "M"))
    if age is None:
        return _PATIENTS[sex]
    if age < 0:
        raise UserError(f"age {age}: expected whole years ≥ 0, or None if unknown")
    noun = (_ADULTS if age >= _ADULT_AGE else _CHILDREN)[sex]
    return f"{age}-year-old {noun}" if age else f"infant {noun}"


def words(text: str) -> list[str]:
    """Split a caption as CLIP does: runs of letters, single digits, punctuation."""
    return re.findall(r"[a-z]+|[0-9]|[^a-z0-9\s]+", text.lower())


def vocabulary(labels: Collection[str]) -> tuple[str, ...]:
    """Return every word that captions of these findings can contain.

    Args:
        labels: Some of NIH's names.

    Returns:
        Words in lower case, sorted. Numbers are single digits.

    Raises:
        UserError: If a label is unknown.
    """
    texts = _every_template(_findings(labels))
    return tuple(sorted({word for text in texts for word in words(text)}))


def _every_template(findings: list[str]) -> Iterator[str]:
    """Yield captions that together use every word of every template."""
    people = [(age, sex) for age in (None, 0, 5, 50) for sex in ("", "F", "M")]
    for labels in ([], findings):
        yield caption(labels, "", None, "", style="binary")
        for side in _SIDES:
            yield caption(labels, "", None, "", sides=dict.fromkeys(labels, side))
        for view in _VIEWS:
            yield from (caption(labels, view, age, sex) for age, sex in people)
    yield "0123456789"


VOCABULARY: tuple[str, ...] = vocabulary(FINDING_NAMES)
"""Every word of all captions, in lower case, sorted. Numbers are single digits."""
