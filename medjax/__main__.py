"""Run a command of medjax: ``medjax COMMAND``, or ``python -m medjax COMMAND``."""

import importlib
import sys
from collections.abc import Sequence

from medjax import __version__
from medjax.errors import nearest

USAGE_EXIT_CODE = 2
COMMANDS = {
    "prepare": "Prepare a folder of images for training: write a TFDS data set.",
    "preflight": "Ask the compiler whether a run fits the hardware, and at what speed.",
    "train": "Train a model.",
    "cross-validate": "Cross-validate a config: train and score one run per fold.",
    "sample": "Sample images from a run or from any Stable Diffusion.",
    "export": "Export the model of a run for PyTorch diffusers and for web UIs.",
}
"""Each command's help: the first line of its module's docstring.

The name of the module has ``_`` where the command has ``-``.
"""
_EXAMPLES = (
    "medjax train --config=cxr_controlnet:demo --workdir=RUN",
    "medjax sample --workdir=RUN --image=XRAY.png --prompt=cardiomegaly",
    "medjax export --workdir=RUN --to=PIPELINE",
    "medjax prepare --dataset=folder --source=IMAGES --out=DATA",
    "medjax COMMAND --help",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names.

    Args:
        argv: Arguments after ``medjax``. None means those in ``sys.argv``.

    Returns:
        The exit code. A known command does not return: it ends the process.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    command = name.replace("_", "-")
    if command in COMMANDS:
        _run(command, rest)
    if name in ("-h", "-help", "--help", "help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"medjax {__version__}")
        return 0
    if not name:
        print(_usage(), file=sys.stderr)
        return USAGE_EXIT_CODE
    sys.stderr.write(
        f"error: unknown command '{name}'. Expected one of {', '.join(COMMANDS)}"
        f"{nearest(command, COMMANDS)}\n"
    )
    return USAGE_EXIT_CODE


def _run(command: str, arguments: Sequence[str]) -> None:
    """Run a command as ``python -m medjax.COMMAND`` does, and end the process."""
    from medjax import cli

    module = importlib.import_module(f"medjax.{command.replace('-', '_')}")
    sys.argv = [f"medjax {command}", *arguments]
    module.define_flags()
    cli.run(module.main)


def _usage() -> str:
    """Return the help that lists the commands."""
    width = max(map(len, COMMANDS))
    commands = [f"    {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    lines = ["usage: medjax COMMAND [--FLAG=VALUE …]", "", "Commands:", *commands]
    return "\n".join([*lines, "", "Examples:", *(f"    {one}" for one in _EXAMPLES)])


if __name__ == "__main__":
    sys.exit(main())
