"""Make the mesh, and place arrays on it.

The mesh has three axes. ``data`` and ``fsdp`` split the examples of a batch. ``fsdp``
and ``tensor`` split the parameters. On one device all sizes are 1 and every sharding is
trivial, so the same program runs everywhere.

Each parameter follows the first rule whose pattern is found in its path:

* A layer that widens (queries, keys, values, input of the feed-forward network) is
  split over ``tensor`` by its outputs. The layer that narrows again (outputs of
  attention and of the feed-forward network) is split by its inputs. So no device waits
  between the two (Shoeybi et al., "Megatron-LM", 2019).
* Every other kernel is split over ``tensor`` by its outputs.
* The other one of these two axes is split over ``fsdp`` (Rajbhandari et al., "ZeRO",
  2020).

Vectors are replicated. An axis that the mesh does not divide is replicated too.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from medjax.arrays import Batch, PyTree
from medjax.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# (pattern of the path, axis of the inputs, axis of the outputs).
RULES = (
    (r"(to_out_0|out_proj|net_2|fc2|proj_attn)/kernel$", "tensor", "fsdp"),
    (r"kernel$", "fsdp", "tensor"),
    (r"embedding$", "fsdp", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh.

    Attributes:
        data: Groups of devices. Each group holds all parameters. -1 means as many
            groups as the devices allow.
        fsdp: Devices that split the parameters and the examples.
        tensor: Devices that split each matrix product.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of `devices` with the sizes in `config`.

    With several TPU slices, or nodes of GPUs, only ``data`` crosses from one to
    another, because the network between them is slow.

    Args:
        config: Size of each axis.
        devices: Devices to use. None means all devices.

    Raises:
        UserError: If the product of the sizes is not the number of devices, or if
            fsdp × tensor does not divide a slice or node.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    rest = config.fsdp * config.tensor
    if min(config.fsdp, config.tensor) < 1 or config.data == 0 or config.data < -1:
        raise UserError(
            f"config.mesh: the sizes are {sizes}. Expected sizes of at least 1; only "
            "data may be -1"
        )
    if config.data == -1:
        sizes[0] = len(devices) // rest
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"config.mesh: data={config.data}, fsdp={config.fsdp}, "
            f"tensor={config.tensor} does not fit {len(devices)} devices. Set "
            "config.mesh.data=-1, and fsdp × tensor to a divisor of that number"
        )
    slices = _slices(devices)
    counts = sorted({len(one) for one in slices})
    if len(counts) > 1 or counts[0] % rest:
        raise UserError(
            f"config.mesh: fsdp={config.fsdp} × tensor={config.tensor} does not divide "
            f"the {' and '.join(map(str, counts))} devices of each slice, or node of "
            "GPUs. Only data may cross from one to another, and all must be equal"
        )
    # jax arranges the devices of a slice by its wires.
    shape = (sizes[0] // len(slices), *sizes[1:])
    parts = [jax.make_mesh(shape, AXES, devices=one).devices for one in slices]
    # Auto and not jax's new default Explicit, so that the compiler chooses layouts
    # inside the step.
    return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Return the devices of each TPU slice or node of GPUs, as jax numbers them."""
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return [slices[number] for number in sorted(slices)]


def batch_shards(mesh: Mesh) -> int:
    """Return how many parts a batch is split into."""
    return _size(mesh, BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the example."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def on_mesh(mesh: Mesh, function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, traced so that `split_activations` finds `mesh`."""

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced


def split_activations(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain `x` to be split by examples, and its other axes over `axes`.

    Without such constraints, the compiler carries the layout of one layer into the
    next. Outside `on_mesh`, `x` is not constrained. An axis that the mesh does not
    divide is not split.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, *axes))


def activation_spec(shape: Sequence[int], *axes: str | None) -> PartitionSpec:
    """Return how `split_activations` splits an array of this shape on the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    wanted = (BATCH_AXES, *axes, *(None,) * (len(shape) - 1 - len(axes)))
    return PartitionSpec(
        *(
            names if names and size % _size(mesh, names) == 0 else None
            for names, size in zip(wanted, shape, strict=True)
        )
    )


def gather_params(tree: PyTree, but: Collection[str] = ()) -> PyTree:
    """Constrain parameters to be whole along ``fsdp``, because every layer needs that.

    Without this the compiler may move activations to the parts of a kernel instead. On
    three axes XLA's CPU partitioner (jax 0.10.2) then computes wrong gradients. Outside
    `on_mesh`, nothing is constrained.

    Args:
        tree: Parameters, by network.
        but: Networks whose layers gather their own kernels (`gather_kernel`). A sampler
            names none, because it gathers all kernels once, before its loop.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def gather(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name.endswith("/kernel") and name.partition("/")[0] in but:
            return leaf
        return _gathered(leaf, name, mesh)

    return jax.tree_util.tree_map_with_path(gather, tree)


def gather_kernel(kernel: jax.Array, layer: str) -> jax.Array:
    """Constrain a layer's kernel to be whole along ``fsdp``, where the layer needs it.

    The kernel is already in the dtype of the computation, so in bfloat16 half as much
    is sent and held. With ``remat=full`` it is not held until the backward pass.

    Args:
        kernel: The kernel.
        layer: Name of its layer, the last part of its path.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return kernel
    return _gathered(kernel, f"{layer}/kernel", mesh)


def _gathered(leaf: jax.Array, name: str, mesh: AbstractMesh) -> jax.Array:
    spec = param_spec(name, leaf.shape, mesh)
    whole = PartitionSpec(*(axis if axis == "tensor" else None for axis in spec))
    return jax.lax.with_sharding_constraint(leaf, whole)


def _name(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _size(mesh: Mesh | AbstractMesh, names: str | Sequence[str]) -> int:
    names = (names,) if isinstance(names, str) else names
    return int(np.prod([mesh.shape[name] for name in names]))


def host_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """Return which rows of a global batch this host's devices hold, in order.

    Usually each host holds a block of rows. But hosts that split matrix products need
    the same rows, and jax may order devices by their connections, not by their hosts.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = range(batch_size)
    return sorted({row for part in parts.values() if part for row in rows[part[0]]})


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> Batch:
    """Put this host's rows of a global batch on its devices, as parts of whole arrays.

    Args:
        batch: NumPy arrays whose first axis is the example; the rows are `host_rows`.
        mesh: Devices to put them on.
    """
    sharding = batch_sharding(mesh)
    placed = {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }
    return cast(Batch, placed)


def place_params(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put parameters on the devices. Each host must have all of them, with same values.

    `jax.device_put` would send them all to all hosts, to check that they are equal.
    """

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(place, tree, param_shardings(tree, mesh))


def param_spec(
    path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Return how the parameter at `path` is split: the first of `RULES` that fits."""
    if len(shape) < 2:
        return PartitionSpec()
    for pattern, inputs, outputs in RULES:
        if re.search(pattern, path):
            axes: list[str | None] = [None] * (len(shape) - 2) + [inputs, outputs]
            sized = zip(axes, shape, strict=True)
            return PartitionSpec(
                *(a if a and n % mesh.shape[a] == 0 else None for a, n in sized)
            )
    return PartitionSpec()


def sharded_shapes(tree: PyTree, shardings: PyTree) -> PyTree:
    """Return a tree of shapes and types with their shardings, without values."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings,
    )


def param_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return a tree of shardings for a tree whose paths end in names of parameters.

    Such trees are the parameters, their averages and the optimiser's moments, because
    all use the same paths.
    """

    def sharding(path: tuple[object, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, param_spec(_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)
