"""Find, convert and check weights for diffusers' Flax pipelines.

The pipelines read Flax's ``.msgpack`` directly and torch's ``.bin`` with
``from_pt=True``, but no local safetensors. If a folder has only safetensors, they are
first written as ``.bin`` to a temporary folder, which takes as much disk space as the
weights.

The pipelines drop unexpected weights and fill missing ones at random, with only a
warning. The names in the files are therefore checked first; any difference is an error.
"""

import contextlib
import importlib.util
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from medjax import storage, trees
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.pretrained import layout, names
from medjax.pretrained.layout import Part
from medjax.pretrained.safetensors_io import stored_tensors

Shapes = dict[str, tuple[int, ...]]


@contextlib.contextmanager
def readable_folder(
    folder: Path, parts: Mapping[str, Part], trees_of: Mapping[str, Params]
) -> Iterator[tuple[Path, bool]]:
    """Yield a folder that the Flax classes can read, and the value for ``from_pt``.

    Args:
        folder: Folder in the diffusers layout, with weights in any of its formats.
        parts: The networks to read.
        trees_of: Tree of the shapes that each network's module expects.

    Raises:
        UserError: If weights are missing, unexpected or of a wrong shape.
    """
    expected = {name: shapes_of(tree) for name, tree in trees_of.items()}
    homes = {name: folder / part.folder for name, part in parts.items()}
    if all((homes[name] / part.flax_file).is_file() for name, part in parts.items()):
        for name, part in parts.items():
            _check_flax(homes[name] / part.flax_file, expected[name])
        yield folder, False
        return
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"the Flax pipelines read the weights in {folder} with torch, which is not "
            'installed: pip install "medjax[flax-pipelines]", or use '
            "route='safetensors'"
        )
    with storage.temporary_folder() as staged:
        for file in storage.listed(folder, "*.json"):
            _link(file, staged)
        for name, part in parts.items():
            file = _stage(homes[name], part, staged / part.folder)
            _check_torch(file, homes[name], expected[name])
        yield staged, True


def shapes_of(tree: Params) -> Shapes:
    """Return the shape of each path."""
    return {path: tuple(leaf.shape) for path, leaf in trees.flatten(tree).items()}


def _stage(home: Path, part: Part, target: Path) -> Path:
    """Put a network's configuration and ``.bin`` in a folder; return the ``.bin``."""
    storage.make_folder(target)
    if not (target / layout.CONFIG).exists():
        _link(home / layout.CONFIG, target)
    file = target / part.torch_file
    if (home / part.torch_file).is_file():
        _link(home / part.torch_file, target)
        return file
    weights = part.weights_in(home)
    if weights is None:
        raise UserError(
            f"{home} contains no weights. Expected {part.flax_file}, "
            f"{part.torch_file} or {part.stem}.safetensors"
        )
    import torch
    from safetensors.torch import load_file

    state = {}
    for shard in sorted({tensor.file for tensor in stored_tensors(weights).values()}):
        for name, tensor in load_file(shard).items():
            # diffusers converts torch's tensors to NumPy, which has no bfloat16.
            state[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    torch.save(state, file)
    return file


def _link(file: Path, folder: Path) -> None:
    (folder / file.name).symlink_to(file.resolve())


def _check_torch(file: Path, home: Path, expected: Shapes) -> None:
    import torch

    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        state = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:
        raise UserError(
            f"{home / file.name} is damaged or not a file of torch weights: "
            f"{str(error).partition(chr(10))[0] or type(error).__name__}"
        ) from error
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    names.match(expected, stored, f"{home / file.name}")


def _check_flax(file: Path, expected: Shapes) -> None:
    from flax.serialization import msgpack_restore

    stored = shapes_of(msgpack_restore(file.read_bytes()))
    names.check_tree(expected, stored, str(file))
