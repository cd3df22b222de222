"""Read pickles of torch weights without torch and without running their code.

A pickle is a program for a small virtual machine, and can import and call anything.
This machine replaces each global name by a `_Global`, which contains only the name.
Nothing is imported, and a `_Global` is not callable, so the program can reach no
function and no class. When the program requests a call, only these are handled:

| called                              | result                                       |
|-------------------------------------|----------------------------------------------|
| ``torch._utils._rebuild_tensor``, … | a `PickledTensor`: its position in a storage |
| ``collections.OrderedDict``         | a dict                                       |
| names in `_PLAIN`, ``cls.__new__``  | an inert object that ignores its arguments   |
| anything else                       | UserError that names it                      |

Source: opcodes from Python's pickletools; names from torch/_utils.py.
"""

import dataclasses
import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from medjax.errors import UserError

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
# Calls for data other than weights. They are replaced by inert objects.
_PLAIN = (
    "__builtin__.bytearray __builtin__.complex __builtin__.frozenset __builtin__.set "
    "_codecs.encode builtins.bytearray builtins.complex builtins.frozenset "
    "builtins.set collections.Counter collections.defaultdict copy_reg._reconstructor "
    "copyreg._reconstructor datetime.date datetime.datetime datetime.timedelta "
    "numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar numpy.dtype "
    "numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar "
    "numpy.ndarray pathlib.PosixPath pathlib.WindowsPath pathlib._local.PosixPath "
    "pathlib._local.WindowsPath torch.Size torch.device"
).split()
# Opcodes that bypass `find_class`, or that allocate any size that the program claims.
_REFUSED = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
_MEND = (
    ". If you trust the file, load it in torch and write its state dict with "
    "safetensors.torch.save_file"
)


@dataclasses.dataclass(frozen=True)
class PickledTensor:
    """A view of a storage, which is outside the pickle.

    Attributes:
        storage: Key of the storage.
        dtype: Dtype of the storage.
        offset: Number of elements of the storage before the tensor's first.
        shape: Shape of the tensor.
        strides: Number of elements from one index to the next along each axis.
    """

    storage: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(opened: io.BufferedIOBase, file: Path) -> tuple[Any, dict[str, np.dtype]]:
    """Run one pickle and leave `opened` at its end.

    Args:
        opened: File whose position is the start of the pickle.
        file: Name of the file, for error messages.

    Returns:
        The value that the pickle builds, and the dtype of each storage. The value
        consists of dicts (only with strings as keys), lists, tuples, numbers, strings,
        `PickledTensor`s and inert objects.

    Raises:
        UserError: If the pickle is damaged, or if it requests a call that is refused.
    """
    machine = _Machine(opened, file)
    return machine.run(), machine.dtypes


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a class or function, without the object itself."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype


class _Inert:
    """Placeholder for an object of an unknown class."""

    def append(self, item: Any) -> None:
        """Ignore an item."""

    extend = append


class _Machine(pickle._Unpickler):
    """Run a pickle without imports or calls, based on Python's pure-Python unpickler.

    Its memo is a dict. That of the C unpickler would grow to any index in a pickle.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def __init__(self, opened: io.BufferedIOBase, file: Path) -> None:
        super().__init__(opened, encoding="utf-8")
        self.file = file
        self.dtypes: dict[str, np.dtype] = {}

    def run(self) -> Any:
        """Return the value that the pickle builds."""
        try:
            return self.load()
        except UserError:
            raise
        # A damaged pickle can raise any error.
        except Exception as error:
            raise UserError(
                f"{self.file} is damaged or not a file of torch weights "
                f"({type(error).__name__} in its pickle). It may be an incomplete "
                "download or a git-lfs pointer"
            ) from error

    def find_class(self, module: str, name: str) -> _Global:
        """Return only the name."""
        return _Global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that a persistent id names."""
        _, kind, key, _, _, *view = pid
        library, _, name = kind.name.rpartition(".")
        dtype = DTYPES.get(name) if library.startswith("torch") else None
        if dtype is None or any(part is not None for part in view):
            kept = f"{kind.name!r:.200}"
            raise UserError(f"{self.file} has weights of unknown type {kept}{_MEND}")
        if not isinstance(key, str):
            raise TypeError("not the key of a storage")
        self.dtypes[key] = dtype
        return _Storage(key, dtype)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Return a substitute for the result of a call."""
        name = function.name
        if name in _TENSORS:
            return _tensor(*args[:4])
        if name in _PARAMETERS:
            return args[0]
        if name == "collections.OrderedDict":
            return _named(args[0] if args else ())
        if name in _PLAIN:
            return _Inert()
        raise self.refused(f"{name!r}")

    def refused(self, what: str) -> UserError:
        """Return the error for a refused call of `what`."""
        return UserError(
            f"{self.file} requests a call of {what:.200}, which medjax refuses; no "
            f"code of the file was run{_MEND}"
        )

    def do_reduce(self) -> None:
        args = self.stack.pop()
        self.append(self.call(self.stack.pop(), args))

    def do_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self.call(self.find_class(module, name), tuple(self.pop_mark())))

    def do_obj(self) -> None:
        function, *args = self.pop_mark()
        self.append(self.call(function, tuple(args)))

    def do_new(self) -> None:
        del self.stack[-2:]
        self.append(_Inert())

    def do_new_ex(self) -> None:
        self.stack.pop()
        self.do_new()

    def do_build(self) -> None:
        self.stack.pop()

    def do_dict(self) -> None:
        items = self.pop_mark()
        self.append(_named(zip(items[::2], items[1::2], strict=True)))

    def do_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def do_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        """Put items with string keys into the dict on top of the stack."""
        if not isinstance(self.stack[-1], _Inert):
            self.stack[-1].update(_named(zip(items[::2], items[1::2], strict=True)))

    def do_additems(self) -> None:
        self.pop_mark()

    def do_frozenset(self) -> None:
        self.pop_mark()
        self.append(_Inert())

    def do_refuse(self) -> None:
        raise self.refused("an extension or a buffer outside the file")

    dispatch: ClassVar[Any] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: do_reduce,
        pickle.INST[0]: do_inst,
        pickle.OBJ[0]: do_obj,
        pickle.NEWOBJ[0]: do_new,
        pickle.NEWOBJ_EX[0]: do_new_ex,
        pickle.BUILD[0]: do_build,
        pickle.DICT[0]: do_dict,
        pickle.SETITEM[0]: do_setitem,
        pickle.SETITEMS[0]: do_setitems,
        pickle.ADDITEMS[0]: do_additems,
        pickle.FROZENSET[0]: do_frozenset,
        **dict.fromkeys((opcode[0] for opcode in _REFUSED), do_refuse),
    }


def _named(pairs: Iterable[Any]) -> dict[str, Any]:
    """Return the pairs with string keys. Hashing other keys could take forever."""
    return {key: value for key, value in pairs if isinstance(key, str)}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> PickledTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise TypeError("not a tensor")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError("not a position in a storage")
    return PickledTensor(
        storage.key, storage.dtype, offset, tuple(shape), tuple(strides)
    )
