"""Captions of chest radiographs, for the phantoms and for NIH ChestX-ray14 alike.

Findings come first, since a text encoder that takes 77 tokens sees the beginning; view,
age and sex follow, and what is unknown is left out:

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
"""What a caption calls each of NIH's 14 findings."""

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
        labels: Findings by NIH's names; none, or "No Finding" alone, is a normal image.
        view: "PA" or "AP"; "" where unknown.
        age: Whole years, 0 or more; None where unknown.
        sex: "F" or "M"; "" where unknown.
        style: "findings" names all this. "binary" says only whether there is a finding,
            in the words of the published system.
        sides: The patient's side, "left" or "right", of findings where it is known.

    Raises:
        UserError: If a label, view, sex, side or style is none of these.

    Source: of the binary prompts, the training prompts of track 1's original system.
    """
    _check("caption style", style, _STYLES)
    findings = _findings(labels)
    if style == "binary":
        # Its own capitals: the published prompts write a small x.
        return f"Chest x-ray of a patient with {'' if findings else 'no '}diseases"
    names = [_name(label, (sides or {}).get(label, "")) for label in findings]
    what = f"with {_enumerate(names)}" if names else "without abnormal findings"
    parts = [f"Chest X-ray {what}", _view(view), _person(age, sex)]
    return ", ".join(part for part in parts if part)


def labels_of(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return what `caption`, in the style "findings", was given: labels and sides.

    Args:
        text: A whole caption.

    Returns:
        The findings by NIH's names, and the side of those whose side it tells.

    Raises:
        UserError: If `caption` would not write this.
    """
    match = _FINDINGS_CAPTION.fullmatch(text)
    if match is None:
        raise UserError(
            f"cannot tell the findings of '{text}'; expected a caption such as "
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
            f"labels {sorted(labels)}: '{NO_FINDING}' stands alone; drop it or the rest"
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
    """Return e.g. "57-year-old woman"; without an age, not whether woman or girl."""
    if sex:
        _check("sex", sex, ("F", "M"))
    if age is None:
        return _PATIENTS[sex]
    if age < 0:
        raise UserError(f"age {age}: expected whole years ≥ 0, or None where unknown")
    noun = (_ADULTS if age >= _ADULT_AGE else _CHILDREN)[sex]
    return f"{age}-year-old {noun}" if age else f"infant {noun}"


def words(text: str) -> list[str]:
    """Split a caption as CLIP does: runs of letters, single digits, punctuation."""
    return re.findall(r"[a-z]+|[0-9]|[^a-z0-9\s]+", text.lower())


def vocabulary(labels: Collection[str]) -> tuple[str, ...]:
    """Return every word that captions of these findings can have.

    Args:
        labels: Some of NIH's names.

    Returns:
        Lower case, sorted; numbers are single digits.

    Raises:
        UserError: If a label is not known.
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
"""Every word a caption can have, lower case, sorted; numbers are single digits."""
