"""A Sphinx extension: write the reference from the code, and check what pages name.

A line that begins with ``<!-- generated: NAME -->`` is replaced by the text of
`WRITERS`. The rest of the line is for readers of the page's source. A
flag or a config key without a description is a warning, and so is a page that names a
flag or a key that does not exist; ``make docs`` turns warnings into errors.
"""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

from medjax_docs import commands, configs, links, listings, metrics

_LOGGER = logging.getLogger(__name__)
_MARK = re.compile(r"^<!-- generated: ([a-z_]+) -->.*$", re.MULTILINE)
WRITERS = {
    "commands": commands.write,
    "config": configs.write,
    "recipes": configs.write_recipes,
    "recipe_table": configs.write_recipe_table,
    "metrics": metrics.write,
    "samplers": listings.write_samplers,
    "formats": listings.write_formats,
    "may_differ": listings.write_may_differ,
    "exit_codes": listings.write_exit_codes,
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the kinds of things that pages can name, and the hooks."""
    app.add_object_type("config-key", "config", "pair: %s; config key")
    app.add_object_type("command-flag", "flag", "pair: %s; flag")
    app.add_object_type("metric", "metric", "pair: %s; metric")
    app.connect("env-get-outdated", _generated_pages)
    app.connect("source-read", _write_generated)
    app.connect("doctree-read", links.link_names)
    app.connect("env-check-consistency", metrics.check_described)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}


def _generated_pages(app: Sphinx, env: Any, *_: Any) -> list[str]:
    """Return the pages to read again, because the code may have changed."""
    paths = {name: env.doc2path(name) for name in env.found_docs}
    return [name for name, path in paths.items() if _MARK.search(_read(path))]


def _read(path: Any) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write_generated(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the marks of a page."""

    def text(mark: re.Match[str]) -> str:
        if mark[1] not in WRITERS:
            _warn(f"nothing generates '{mark[1]}'", page)
            return ""
        written, problems = WRITERS[mark[1]]()
        for problem in problems:
            _warn(problem, page)
        return written

    source[0] = _MARK.sub(text, source[0])


def _warn(problem: str, page: str) -> None:
    _LOGGER.warning(problem, location=page, type="medjax", subtype="generated")
