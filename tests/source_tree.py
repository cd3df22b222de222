"""Read a package as syntax trees: which module imports what, where and when."""

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: its module, and where and when it is imported."""

    target: str
    line: int
    lazy: bool
    typing_only: bool


@dataclasses.dataclass(frozen=True)
class Module:
    """One file; `name` is relative to the package ("" is the package itself)."""

    name: str
    path: Path

    @functools.cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse("\n".join(self.lines), str(self.path))

    @functools.cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, self._package()))

    def _package(self) -> str:
        names = ["medjax", *filter(None, self.name.split("."))]
        return ".".join(names if self.path.stem == "__init__" else names[:-1])

    def within(self, *places: str) -> bool:
        return any(f"{self.name}.".startswith(f"{place}.") for place in places)

    def at(self, line: int) -> str:
        return f"{self.path.name}:{line} (medjax.{self.name})"


Tree = dict[str, Module]


def read(package: Path) -> Tree:
    """Return the modules under a folder by name, without importing them."""
    modules: Tree = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        modules[name] = Module(name, path)
    return modules


def _imports(
    node: ast.AST, package: str, lazy: bool = False, typing_only: bool = False
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy, typing_only)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in child.names:
                target = f"{base}.{alias.name}"
                yield Import(target, child.lineno, lazy, typing_only)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            condition = ast.unparse(child.test) if isinstance(child, ast.If) else ""
            guard = condition.endswith("TYPE_CHECKING")
            yield from _imports(child, package, lazy or inside, typing_only or guard)


def inner_targets(module: Module, tree: Tree) -> Iterator[tuple[Import, str]]:
    """Yield each import of our own package, with the name of the imported module."""
    for imported in module.imports:
        first, *rest = imported.target.split(".")
        if first == "medjax":
            name = ".".join(rest)
            yield imported, name if name in tree else ".".join(rest[:-1])


def reaches(imported: Import, library: str) -> bool:
    return f"{imported.target}.".startswith(f"{library}.")


def imported_with(start: str, tree: Tree) -> set[str]:
    """Return `start` and each of our modules that its import runs."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in tree:
            continue
        seen.add(name)
        # An import of a.b.c also runs a and a.b.
        waiting += [name.rpartition(".")[0]]
        for imported, target in inner_targets(tree[name], tree):
            if not (imported.lazy or imported.typing_only):
                waiting.append(target)
    return seen
