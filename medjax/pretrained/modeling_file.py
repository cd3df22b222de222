"""Write ``modeling.py`` of an export: one file of PyTorch, without medjax.

It is the text of those modules in `medjax.pretrained.modeling` that a model needs, with
their imports together at the top. So the code that is tested here is the code that an
export gets, and an export does not contain networks that it does not use.
"""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

from medjax import texts

FOLDER = Path(__file__).parent / "modeling"
# Parts in the order of the file, and the parts that define each class.
_ORDER = (
    *("embedding", "blocks", "unet_2d", "conv_unet", "vq_vae", "autoencoder_kl"),
    *("image_diffusion", "files"),
)
_PARTS = {
    "UNet2D": ("embedding", "blocks", "unet_2d"),
    "ConvUNet": ("embedding", "conv_unet"),
    "VQVAE": ("vq_vae",),
    "AutoencoderKL": ("blocks", "autoencoder_kl"),
    "ImageDiffusion": ("image_diffusion",),
}
_HEAD = '''"""A model in PyTorch. It requires torch, safetensors and numpy.

`load` returns the model of the folder that contains this file. README.md has an
example. Images are in [-1, 1] and have the axes (b c H W): number, channel, height and
width.
"""'''


def modeling_file(classes: Iterable[str]) -> str:
    """Return the text of ``modeling.py`` for these classes of networks."""
    wanted = {"files"} | {part for name in classes for part in _PARTS[name]}
    modules = [_Part(name) for name in _ORDER if name in wanted]
    imports = _imports(module.tree for module in modules)
    bodies = [f"# {module.title}\n\n\n{module.body}" for module in modules]
    return f"{_HEAD}\n\n{imports}\n\n" + "\n\n\n".join(bodies) + "\n"


class _Part:
    """A module of the folder `modeling`: its syntax tree, first line and definitions.

    Attributes:
        tree: Syntax tree.
        title: First line of its docstring.
        body: Text after its docstring and its imports.
    """

    def __init__(self, name: str) -> None:
        text = texts.read_text(FOLDER / f"{name}.py")
        self.tree = ast.parse(text)
        self.title = (ast.get_docstring(self.tree) or "").partition("\n")[0]
        kinds = (ast.Import, ast.ImportFrom)
        last = [node for node in self.tree.body if isinstance(node, kinds)][-1]
        lines = text.splitlines()[last.end_lineno or last.lineno :]
        self.body = "\n".join(lines).strip()


def _imports(trees: Iterable[ast.Module]) -> str:
    """Return all imports except those of medjax: Python's own, then the others."""
    found: dict[tuple[bool, bool, str], set[str]] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Import):
                for name in node.names:
                    text = name.name + (f" as {name.asname}" if name.asname else "")
                    found.setdefault((_is_foreign(text), False, text), set())
            elif isinstance(node, ast.ImportFrom) and node.module:
                key = (_is_foreign(node.module), True, node.module)
                found.setdefault(key, set()).update(one.name for one in node.names)
    lines: dict[bool, list[str]] = {False: [], True: []}
    for (foreign, named, module), names in sorted(found.items()):
        if not module.startswith("medjax."):
            text = f"from {module} import {', '.join(sorted(names))}"
            lines[foreign].append(text if named else f"import {module}")
    return "\n\n".join("\n".join(group) for group in lines.values() if group)


def _is_foreign(module: str) -> bool:
    """Tell whether a module is not part of Python's library."""
    return module.split(" ")[0].split(".")[0] not in sys.stdlib_module_names
