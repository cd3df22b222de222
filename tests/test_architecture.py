"""Check the rules of docs/explanation/architecture.md, as read from the syntax tree.

Each rule is a function from a source tree to the places that break it. Every rule runs
twice: on the package, which must follow it, and on small trees that break it. So a rule
that can no longer fail makes a test fail.
"""

import ast
import functools
import graphlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.source_tree import Tree, imported_with, inner_targets, reaches, read

PACKAGE = Path(__file__).resolve().parents[1] / "medjax"

# A module may import only from groups above its own in this list. Modules of the first
# group may import each other; modules of any other group may not.
FLOORS = (
    (
        "errors",
        "logs",
        "storage",
        "arrays",
        "texts",
        "trees",
        "meshes",
        "config_files",
        "flag_parsing",
        "host_memory",
        "configuration",
        "compilation",
        *("blank", "chips", "program_costs"),
        "hosts",
        "jax_private",
        "distributed",
    ),
    ("diffusion", "models", "data"),
    ("pretrained",),
    ("evaluation",),
    ("tasks",),
    ("runs",),
    ("training", "sampling", "cli"),
    ("exporting", "cross_validation", "compiling"),
    (
        *("prepare", "train", "cross_validate", "sample"),
        *("evaluate", "export", "preflight"),
    ),
    ("__main__",),
)
GROUND = "the ground floor"

# Only these may import a library. Those in `TYPED` may import it for annotations.
ONLY_IN = {
    "flax.linen": ("models", "tasks"),
    "transformers": ("pretrained",),
    "diffusers": ("pretrained",),
    "torch": ("pretrained",),
}
TYPED = {"transformers": ("data.tokens",)}

# These must run with few packages installed.
LEAN = ("models", "diffusion", "training.step")
HEAVY = ("cv2", "tensorflow_datasets", "absl")

# Only these may use private names of libraries.
PRIVATE_IN = ("jax_private",)

# Calls and libraries that make, replace, remove or lock files.
WRITING = {
    *("write_text", "write_bytes", "rename", "renames", "unlink", "remove", "truncate"),
    *("mkdir", "makedirs", "rmdir", "rmtree", "removedirs", "touch", "savez"),
}
WRITING_LIBRARIES = ("shutil", "tempfile", "filelock", "etils")

MOST_LINES, MOST_OF_A_FUNCTION = 300, 80


@functools.cache
def package() -> Tree:
    return read(PACKAGE)


def unit(name: str) -> str:
    top = name.split(".")[0]
    return GROUND if top in FLOORS[0] else top


def floor(name: str) -> int | None:
    top = name.split(".")[0]
    return next((i for i, tops in enumerate(FLOORS) if top in tops), None)


def imports_only_go_down(tree: Tree) -> Iterator[str]:
    """The package itself imports only for annotations, because its names are lazy."""
    for module in tree.values():
        here = -1 if not module.name else floor(module.name)
        if here is None:
            yield f"{module.at(1)} stands on no floor: add it to FLOORS"
            continue
        for imported, name in inner_targets(module, tree):
            there = floor(name)
            if unit(name) == unit(module.name):
                continue
            if not module.name and imported.typing_only:
                continue
            if name and (there is None or there >= here):
                yield f"{module.at(imported.line)} imports medjax.{name}"


def no_cycles(tree: Tree) -> Iterator[str]:
    graph = {
        module.name: {
            name
            for imported, name in inner_targets(module, tree)
            if name in tree and not (module.name == "" and imported.typing_only)
        }
        for module in tree.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " -> ".join(error.args[1])


def libraries_stay_in_their_place(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        for imported in module.imports:
            for library, places in ONLY_IN.items():
                typed = imported.typing_only and module.within(*TYPED.get(library, ()))
                if reaches(imported, library) and not (module.within(*places) or typed):
                    yield f"{module.at(imported.line)} imports {imported.target}"


def lean_modules_stay_lean(tree: Tree) -> Iterator[str]:
    """This holds for the modules and for all modules that they import."""
    for module in tree.values():
        if not module.within(*LEAN):
            continue
        for name in imported_with(module.name, tree):
            for imported in tree[name].imports:
                counts = name == module.name or not imported.lazy
                heavy = any(reaches(imported, library) for library in HEAVY)
                if heavy and counts and not imported.typing_only:
                    where = tree[name].at(imported.line)
                    yield f"medjax.{module.name} needs {imported.target}, by {where}"


def private_names_of_libraries_are_left_alone(tree: Tree) -> Iterator[str]:
    """They are not imported, and not used by their full name, such as ``jax._src``."""
    for module in tree.values():
        if module.within(*PRIVATE_IN):
            continue
        names = {(one.target, one.line) for one in module.imports}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                names.add((ast.unparse(node), node.lineno))
        libraries = {one.target.split(".")[0] for one in module.imports}
        libraries -= {"medjax", *sys.stdlib_module_names}
        for name, line in sorted(names):
            library, *rest = name.split(".")
            if library in libraries and any(map(_is_private, rest)):
                yield f"{module.at(line)} reaches {name}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def only_storage_writes(tree: Tree) -> Iterator[str]:
    """Reading is allowed everywhere, and libraries may write their files themselves.

    They write into folders that `storage` made (orbax, TFDS, TensorBoard, `torch.save`,
    tokenizers' `save_pretrained`, links for Flax pipelines), or into a file that it
    opened (PIL, matplotlib).
    """
    for module in tree.values():
        if module.name == "storage":
            continue
        for imported in module.imports:
            if any(reaches(imported, library) for library in WRITING_LIBRARIES):
                yield f"{module.at(imported.line)} imports {imported.target}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _writes(node):
                where = module.at(node.lineno)
                yield f"{where} calls {ast.unparse(node.func)}: use medjax.storage"


def _writes(call: ast.Call) -> bool:
    """Tell whether a call makes, replaces or removes a file without `storage`."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and _opens_to_write(call.args[1:], call.keywords)
    if not isinstance(call.func, ast.Attribute):
        return False
    owner, name = ast.unparse(call.func.value), call.func.attr
    if name == "open":
        return owner == "os" or _opens_to_write(call.args[:2], call.keywords)
    if name == "replace":
        # Only `replace` of a path has one argument and no keywords, as here.
        return owner == "os" or (len(call.args) == 1 and not call.keywords)
    if name == "remove" and owner != "os":
        return False
    return owner != "storage" and (name in WRITING or f"{owner}.{name}" == "np.save")


def _opens_to_write(args: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    values = [*args, *(keyword.value for keyword in keywords if keyword.arg == "mode")]
    modes = [x.value for x in values if isinstance(x, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)


def files_are_short(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        if len(module.lines) > MOST_LINES:
            yield f"{module.at(1)} has {len(module.lines)} lines, over {MOST_LINES}"


def functions_are_short(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_OF_A_FUNCTION:
                    yield f"{module.at(node.lineno)}: {node.name} has {lines} lines"


def public_functions_are_documented(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        classes = [n for n in module.tree.body if isinstance(n, ast.ClassDef)]
        public = [c for c in classes if not c.name.startswith("_")]
        for owner in (module.tree, *public):
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                # The class describes flax's `setup`, as it does dunder methods.
                exempt = node.name.startswith("_") or node.name == "setup"
                if not exempt and ast.get_docstring(node) is None:
                    yield f"{module.at(node.lineno)}: {node.name} has no docstring"


def config_fields_are_read(tree: Tree) -> Iterator[str]:
    """A field that only its own ``__post_init__`` reads counts as unread."""
    read_names: set[str] = set()
    for module in tree.values():
        _collect_reads(module.tree, read_names)
    for module in tree.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and _is_config(node):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign):
                        name = ast.unparse(field.target)
                        if name not in read_names:
                            where = module.at(field.lineno)
                            yield f"{where}: nothing reads {node.name}.{name}"


def _is_config(node: ast.ClassDef) -> bool:
    decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    return node.name.endswith("Config") and "frozen=True" in decorators


def _collect_reads(node: ast.AST, into: set[str]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name == "__post_init__":
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            into.add(child.attr)
        _collect_reads(child, into)


def what_a_task_has_is_in_its_row(tree: Tree) -> Iterator[str]:
    """Above `tasks`, no code compares a task's name or looks for an attribute."""
    above = floor("tasks") or 0
    for module in tree.values():
        if not module.name or (floor(module.name) or 0) <= above:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                names = [s.attr for s in sides if isinstance(s, ast.Attribute)]
                if "task" in names:
                    yield f"{module.at(node.lineno)} compares a task's name"
            named = isinstance(node, ast.Call) and ast.unparse(node.func)
            if named == "hasattr" or (named == "getattr" and len(node.args) == 3):
                yield f"{module.at(node.lineno)} looks for an attribute"


def no_file_hides_a_standard_module(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        if module.name.split(".")[-1] in sys.stdlib_module_names:
            yield f"{module.at(1)} is named after a module of Python's library"


BROKEN: dict[Callable[[Tree], Iterator[str]], list[dict[str, str]]] = {
    imports_only_go_down: [
        {"trees.py": "from medjax.models import unet", "models/unet.py": ""},
        {"models/a.py": "from ..data.b import c", "data/b.py": "c = 1"},
        {"evaluation/a.py": "def f():\n    import medjax.tasks.b", "tasks/b.py": ""},
        {"train.py": "from medjax import sample", "sample.py": ""},
        {"__init__.py": "from medjax import errors", "errors.py": ""},
        {"__init__.py": "def f():\n    from medjax import errors", "errors.py": ""},
        {"cli.py": "from medjax import __main__", "__main__.py": ""},
        {"elsewhere.py": ""},
    ],
    no_cycles: [
        {"data/a.py": "from medjax.data import b", "data/b.py": "from .a import x"},
        {"trees.py": "import medjax.arrays", "arrays.py": "import medjax.trees"},
        {"__init__.py": "import medjax.trees", "trees.py": "import medjax"},
    ],
    libraries_stay_in_their_place: [
        {"training/step.py": "from flax import linen as nn"},
        {"data/readers.py": "def f():\n    from transformers import CLIPTokenizer"},
        {"data/tokens.py": "import transformers"},
        {"models/unet.py": "import torch.nn"},
    ],
    lean_modules_stay_lean: [
        {"models/unet.py": "def f():\n    import cv2"},
        {"diffusion/schedule.py": "import medjax.trees", "trees.py": "import absl.app"},
        {"training/step.py": "", "training/__init__.py": "from absl import logging"},
    ],
    private_names_of_libraries_are_left_alone: [
        {"hosts.py": "def f():\n    from jax._src.clusters import ClusterEnv"},
        {"trees.py": "import jax\nx = jax._src"},
        {"meshes.py": "from absl.flags import _helpers"},
    ],
    only_storage_writes: [
        {"trees.py": f"def f(path):\n    {call}"}
        for call in (
            'open(path, "w")',
            'open(path, mode="a")',
            'path.open("xb")',
            'path.open(mode="r+b")',
            'gzip.open(path, "wb")',
            "os.open(path, os.O_WRONLY)",
            'path.write_text("")',
            'path.write_bytes(b"")',
            "os.replace(path, path)",
            "path.replace(path)",
            "path.rename(path)",
            "os.rename(path, path)",
            "os.remove(path)",
            "path.unlink(missing_ok=True)",
            "path.parent.mkdir()",
            "os.makedirs(path)",
            "os.truncate(path, 0)",
            "np.save(path, path)",
            "import shutil",
            "import tempfile",
            "from filelock import FileLock",
            "from etils import epath",
        )
    ],
    files_are_short: [{"errors.py": "x = 1\n" * (MOST_LINES + 1)}],
    functions_are_short: [
        {"errors.py": "def f():\n" + "    x = 1\n" * MOST_OF_A_FUNCTION},
    ],
    public_functions_are_documented: [
        {"errors.py": "def f(): return 1"},
        {"errors.py": "class A:\n    def f(self): return 1"},
    ],
    config_fields_are_read: [
        {
            "trees.py": "@dataclass(frozen=True)\nclass AConfig:\n    a: int = 1\n"
            "    b: int = 2\n    def __post_init__(self):\n        assert self.b\n"
            "def f(config):\n    return config.a\n"
        }
    ],
    what_a_task_has_is_in_its_row: [
        {"runs/a.py": "def f(config):\n    return config.task == 'vq_vae'"},
        {"exporting/a.py": "def f(model):\n    return getattr(model, 'vae', None)"},
    ],
    no_file_hides_a_standard_module: [{"data/types.py": ""}],
}

EXAMPLES = [(rule, files) for rule, trees in BROKEN.items() for files in trees]


@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Tree], Iterator[str]]):
    tree = package()
    assert "errors" in tree
    assert list(rule(tree)) == []


@pytest.mark.parametrize(("rule", "files"), EXAMPLES)
def test_the_rule_can_fail(
    rule: Callable[[Tree], Iterator[str]], files: dict[str, str], tmp_path: Path
):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(list(rule(read(tmp_path)))) == 1


def test_what_is_allowed_passes(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "trees.py").write_text("from medjax.errors import UserError")
    (tmp_path / "errors.py").write_text("")
    (tmp_path / "logs.py").write_text(
        "from medjax import storage\n"
        "def _f(path, file):\n"
        "    storage.write_text(path, path.read_text().replace('a', 'w'))\n"
        "    open(path)\n    open(path, 'rb')\n    path.open('rb')\n"
        "    tarfile.open(fileobj=file, mode='r|')\n"
        "    dataclasses.replace(path, a=1)\n    [].remove(1)\n"
        "    image.save(file, format='PNG')\n"
    )
    (tmp_path / "storage.py").write_text(
        "import shutil\ndef _f(path):\n    shutil.rmtree(path)\n    path.mkdir()\n"
    )
    (tmp_path / "data" / "tokens.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from medjax import trees\n"
        "if TYPE_CHECKING:\n    from transformers import CLIPTokenizer\n"
    )
    (tmp_path / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from medjax.data.tokens import tokenize\n"
    )
    tree = read(tmp_path)
    assert [found for rule in BROKEN for found in rule(tree)] == []
