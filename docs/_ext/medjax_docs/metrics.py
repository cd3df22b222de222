"""Write the table of metrics; the page has to describe each metric, and no other."""

from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

from medjax.runs.sections import BestConfig
from medjax.tasks import TASKS
from medjax_docs.texts import Written, table

_LOGGER = logging.getLogger(__name__)
# Chance levels, which come with another metric and choose no checkpoint.
_CHANCE = ("val/edge_f1_chance",)


def write() -> Written:
    """Return a table of what the validation of each task measures."""
    rows: dict[str, tuple[str, list[str], str]] = {}
    for task, name, asked in _metrics():
        _, tasks, _ = rows.setdefault(name, (_better(name), [], asked))
        tasks.append(f"`{task}`")
    cells = [
        (f"{{metric}}`{name}`", ", ".join(tasks), better, asked)
        for name, (better, tasks, asked) in rows.items()
    ]
    head = ("metric", "tasks", "better", "measured")
    return "\n".join(table(head, cells)), []


def check_described(app: Sphinx, env: Any) -> None:
    """Warn of a description of a metric that no task has."""
    known = {name for _, name, _ in _metrics()} | {*_CHANCE}
    for kind, name in env.get_domain("std").objects:
        if kind == "metric" and name not in known:
            _LOGGER.warning(f"no task measures {name}", type="medjax", subtype="name")


def _metrics() -> Iterator[tuple[str, str, str]]:
    """Yield the task, name and condition of each metric of validation."""
    for task, row in TASKS.items():
        for name in ("loss", *row.metrics):
            yield task, f"val/{name}", "always"
        for one in row.optional_metrics:
            for ending in one.endings:
                shown = f"…{ending}" if ending.startswith("_") else ending
                yield task, f"val/{shown}", f"`config.eval.{one.key}=True`"


def _better(name: str) -> str:
    mode = BestConfig(metric=name).mode
    return {"min": "lower", "max": "higher"}[mode]
