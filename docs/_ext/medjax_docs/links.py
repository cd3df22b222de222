"""Link each config key and flag that a page names to its description."""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

from medjax_docs.commands import flag_names
from medjax_docs.configs import key_names

_LOGGER = logging.getLogger(__name__)
_KEY = re.compile(r"(?:--)?(config(?:\.[a-z0-9_]+)+)(?:=.*)?")
# Files whose name begins with "config.".
_FILES = (".json", ".py", ".md")
_FLAG = re.compile(r"--([a-z_]+)(?:=.*)?")
# Flags of other programs and of the launchers that pages mention.
_OTHERS = frozenset(
    (
        *("only", "keep", "max_restarts", "mount", "node_pools", "noprivileged"),
        *("dry_run", "replace", "slices"),
    )
)


def link_names(app: Sphinx, tree: nodes.document) -> None:
    """Replace inline code that names a key or a flag by a link to it.

    An unknown key or flag is a warning.
    """
    for literal in list(tree.findall(nodes.literal)):
        if isinstance(literal.parent, nodes.reference | addnodes.pending_xref):
            continue
        text = literal.astext()
        if text.endswith(_FILES):
            continue
        if match := _KEY.fullmatch(text):
            _link_key(literal, match[1])
        elif match := _FLAG.fullmatch(text):
            _link_flag(literal, match[1])


def _link_key(literal: nodes.literal, name: str) -> None:
    if name in key_names():
        _link(literal, "config", name)
    elif not any(key.startswith(f"{name}.") for key in key_names()):
        _warn(f"unknown config key {name}", literal)


def _link_flag(literal: nodes.literal, name: str) -> None:
    commands = flag_names().get(name)
    if commands is None and name not in _OTHERS:
        _warn(f"unknown flag --{name}", literal)
    if commands and len(commands) == 1 and not name.startswith("no"):
        _link(literal, "flag", f"medjax {commands[0]} --{name}")


def _link(literal: nodes.literal, role: str, target: str) -> None:
    reference = addnodes.pending_xref(
        "",
        literal.deepcopy(),
        refdomain="std",
        reftype=role,
        reftarget=target,
        refexplicit=True,
        refwarn=True,
    )
    literal.replace_self(reference)


def _warn(problem: str, literal: nodes.literal) -> None:
    _LOGGER.warning(problem, location=literal, type="medjax", subtype="name")
