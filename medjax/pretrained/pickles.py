"""Pickles of torch weights, read without torch; nothing in them runs.

A pickle is a program for a small machine, and may ask it to import and call anything.
Here it runs on a machine without hands: a global name becomes a `_Global`, which holds
the name and is neither imported nor callable, so that no value within the program's
reach is a function or a class. Where it asks for a call, only these happen:

| called                              | result                                       |
|-------------------------------------|----------------------------------------------|
| ``torch._utils._rebuild_tensor``, … | a `PickledTensor`: its place in a storage    |
| ``collections.OrderedDict``         | a dict                                       |
| names in `_PLAIN`, ``cls.__new__``  | an inert object that forgets what it is told |
| anything else                       | UserError that names it                      |

Source: the opcodes, Python's pickletools; the names, torch/_utils.py.
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
# Calls by which data without weights are written: they are not made.
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
# What would reach past `find_class`, or take memory on the program's word.
_REFUSED = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
_MEND = (
    "; if you trust the file, load it in torch and write its state dict with "
    "safetensors.torch.save_file"
)


@dataclasses.dataclass(frozen=True)
class PickledTensor:
    """A view of a storage, which lies outside the pickle.

    Attributes:
        storage: Its key.
        dtype: Of the storage.
        offset: Elements of the storage before the first.
        shape: Its shape.
        strides: Elements from one index to the next along each axis.
    """

    storage: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(opened: io.BufferedIOBase, file: Path) -> tuple[Any, dict[str, np.dtype]]:
    """Run one pickle, and leave `opened` where it ends.

    Args:
        opened: Stands where the pickle begins.
        file: For errors.

    Returns:
        What the pickle builds, of dicts (with names as keys alone), lists, tuples,
        numbers, texts, `PickledTensor`s and inert objects; the dtype of each storage.

    Raises:
        UserError: If the pickle is damaged, or asks for a call that is not made.
    """
    machine = _Machine(opened, file)
    return machine.run(), machine.dtypes


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a class or function, and nothing else of it."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype


class _Inert:
    """Stands for an object of a class that we do not know."""

    def append(self, item: Any) -> None:
        """Forget an item."""

    extend = append


class _Machine(pickle._Unpickler):
    """Runs a pickle. Python's own machine in Python, with the hands cut off.

    Its memo is a dict, where that of the machine in C grows to any number it is told.
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
        """Return what the pickle builds."""
        try:
            return self.load()
        except UserError:
            raise
        # A damaged program can fail in any way that a program can.
        except Exception as error:
            raise UserError(
                f"{self.file} is damaged, or no file of torch weights "
                f"({type(error).__name__} in its pickle); an incomplete download, or a "
                "pointer of git-lfs?"
            ) from error

    def find_class(self, module: str, name: str) -> _Global:
        """Return the name alone."""
        return _Global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that a persistent id names."""
        _, kind, key, _, _, *view = pid
        library, _, name = kind.name.rpartition(".")
        dtype = DTYPES.get(name) if library.startswith("torch") else None
        if dtype is None or any(part is not None for part in view):
            kept = f"{kind.name!r:.200}"
            raise UserError(f"{self.file} stores weights as {kept}{_MEND}")
        if not isinstance(key, str):
            raise TypeError("no key of a storage")
        self.dtypes[key] = dtype
        return _Storage(key, dtype)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Return what stands for the result of a call."""
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
        """Return the error for a call of `what`."""
        return UserError(
            f"{self.file} asks to call {what:.200} when it is read, which medjax does "
            f"not do; nothing was run{_MEND}"
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
        """Put what has a name into the dict on top of the stack."""
        if not isinstance(self.stack[-1], _Inert):
            self.stack[-1].update(_named(zip(items[::2], items[1::2], strict=True)))

    def do_additems(self) -> None:
        self.pop_mark()

    def do_frozenset(self) -> None:
        self.pop_mark()
        self.append(_Inert())

    def do_refuse(self) -> None:
        raise self.refused("an extension or a buffer from outside")

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
    """Return what has a name. To hash other keys could take for ever, and is no use."""
    return {key: value for key, value in pairs if isinstance(key, str)}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> PickledTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise TypeError("no tensor")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError("no place in a storage")
    return PickledTensor(
        storage.key, storage.dtype, offset, tuple(shape), tuple(strides)
    )
