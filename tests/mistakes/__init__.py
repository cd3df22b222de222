"""What users get wrong, and what they are told: the rows of `test_bad_input`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

DEMO = "--config=tests/tiny_demo.py"


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What is typed, and words that the one line of the answer has.

    In arguments and words, {dir} is a fresh folder, {data} prepared images and {raw}
    images that are not; `setup` may change the fresh folder first. Most are typed
    within the test's process; those `apart`, or with variables of their own in `env`,
    get one.
    """

    name: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    setup: Callable[[Path], object] = lambda folder: None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = "train"
    apart: bool = False


def train(name: str, *arguments: str, says: tuple[str, ...], **more) -> Mistake:
    """Return a mistake in training the demo."""
    return Mistake(name, (DEMO, "--workdir={dir}/run", *arguments), says, **more)


def prep(name: str, *arguments: str, says: tuple[str, ...], **more) -> Mistake:
    """Return a mistake in preparing a folder of images."""
    typed = ("--dataset=folder", "--source={raw}", "--out={dir}/out", *arguments)
    return Mistake(name, typed, says, command="prepare", **more)
