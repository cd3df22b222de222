"""Sphinx configuration. Build with ``make docs``: each warning is an error."""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# The pages describe this checkout, also where another version is installed.
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "docs" / "_ext")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import medjax  # noqa: E402

project = "medjax"
author = copyright = "the medjax authors"
release = version = medjax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "medjax_docs",
]
exclude_patterns = ["_build", "_ext"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = "medjax"
html_copy_source = False
html_show_sphinx = False

# Single backticks in docstrings enclose code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "__init__"}
napoleon_use_ivar = True

# Types of other packages, and our own that are no public names.
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|jax|flax|jaxtyping|collections|pathlib|ml_collections)\..*"),
    (r"py:.*", r"(ndarray|UserError|'.*')"),
    (r"py:.*", r"(Path|Mapping|Sequence|Any|Callable|Literal|Array|Module|np\..*)"),
    (r"py:.*", r"medjax\.[a-z_]+\..*"),
]
