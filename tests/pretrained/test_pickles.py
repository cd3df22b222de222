"""Pickles: what torch saves comes back; a hostile one runs nothing, whatever it tries.

Hostile programs are written by hand, opcode by opcode, as an attacker would.
"""

import copyreg
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.pretrained.pickles import unpickle
from medjax.pretrained.safetensors_io import read_tensors
from medjax.pretrained.torch_files import stored_tensors

PROTO = b"\x80\x02"


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def called(module, name, *args):
    """Return a program that calls a global, as protocol 2 does."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR"


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(*values):
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(key="0", kind=b"ctorch\nFloatStorage\n", count=6):
    place = [text("storage"), kind, text(key), text("cpu"), number(count)]
    return b"(" + b"".join(place) + b"tQ"


def tensor(offset=0, shape=(2, 3), strides=(3, 1), **place):
    where = [number(offset), numbers(*shape), numbers(*strides)]
    rest = [b"\x89", called("collections", "OrderedDict")]
    args = [storage(**place), *where, *rest]
    return called("torch._utils", "_rebuild_tensor_v2", *args)


def state(**values):
    """Return a program that builds a dict of these values."""
    pairs = b"".join(text(name) + value for name, value in values.items())
    return PROTO + b"}(" + pairs + b"u."


def archive(file, program, compression=zipfile.ZIP_STORED, **extra):
    """Write an archive with one storage: 0, 1, … 5 in float32."""
    with zipfile.ZipFile(file, "w", compression) as out:
        out.writestr("archive/data.pkl", program)
        out.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
        for name, content in extra.items():
            out.writestr(f"archive/{name}", content)
    return file


def read(file):
    return dict(read_tensors(stored_tensors(file)))


# Each would create the file CANARY, or import `antigravity`, if anything ran it.
TOUCH = text("touch CANARY")
HOSTILE = {
    "REDUCE": (called("os", "system", TOUCH), "os.system"),
    "REDUCE of posix": (called("posix", "system", TOUCH), "posix.system"),
    "eval": (
        called("builtins", "eval", text("open('CANARY', 'w')")),
        "builtins.eval",
    ),
    "eval of Python 2": (
        called("__builtin__", "eval", text("open('CANARY', 'w')")),
        "__builtin__.eval",
    ),
    "partial": (
        called("functools", "partial", b"cos\nsystem\n", TOUCH),
        "functools.partial",
    ),
    "a class": (
        called("subprocess", "Popen", b"](" + text("touch") + text("CANARY") + b"e"),
        "subprocess.Popen",
    ),
    "torch.load": (called("torch", "load", text("CANARY")), "torch.load"),
    "getattr": (
        called("builtins", "getattr", b"cos\nerror\n", text("system")),
        "builtins.getattr",
    ),
    "dotted": (
        text("os") + text("path.os.system") + b"\x93(" + TOUCH + b"tR",
        "os.path.os.system",
    ),
    "STACK_GLOBAL": (
        text("os") + text("system") + b"\x93(" + TOUCH + b"tR",
        "os.system",
    ),
    "INST": (b"(" + TOUCH + b"ios\nsystem\n", "os.system"),
    "OBJ": (b"(cos\nsystem\n" + TOUCH + b"o", "os.system"),
    "a module to import": (called("antigravity", "f"), "antigravity.f"),
    "our own": (
        called("medjax.pretrained.pickles", "unpickle", TOUCH),
        "medjax.pretrained.pickles.unpickle",
    ),
    "within a tensor": (
        called("torch._utils", "_rebuild_parameter", called("os", "system", TOUCH)),
        "os.system",
    ),
    "within a key": (b"}" + called("os", "system", TOUCH) + number(1) + b"s", "os."),
    "EXT1": (b"\x82\xf0(" + TOUCH + b"tR", "an extension"),
    "EXT2": (b"\x83\xf0\x00(" + TOUCH + b"tR", "an extension"),
    "EXT4": (b"\x84\xf0\x00\x00\x00(" + TOUCH + b"tR", "an extension"),
    "a buffer": (b"\x97", "a buffer"),
    "memory on its word": (b"\x96" + struct.pack("<Q", 2**60), "a buffer"),
}
# These ask for no call that could be named; they do nothing, or are damaged.
INERT = {
    "NEWOBJ": b"cos\nsystem\n(" + TOUCH + b"t\x81",
    "NEWOBJ_EX": b"cos\nsystem\n(" + TOUCH + b"t}\x92",
    "a module to import": b"cantigravity\nf\n",
    "BUILD with a state": (
        b"cantigravity\nf\n)\x81}(" + text("__setstate__") + b"cos\nsystem\nub"
    ),
    "BUILD of a global": b"cos\nsystem\n}(" + text("name") + text("x") + b"ub",
    "BUILD of a dict": b"}}" + text("__class__") + b"cos\nsystem\nsb",
    "reduce of copyreg": called(
        "copyreg", "_reconstructor", b"cos\nsystem\n", b"cbuiltins\nobject\n", b"N"
    ),
}
DAMAGED = {
    "PERSID": b"Pstorage\n",
    "BINPERSID": b"cos\nsystem\nQ",
    "BINPERSID that calls": b"(" + text("storage") + b"cos\nsystem\n" + b"NNNtQ",
    "a call of what is no global": b"}(tR",
    "a call of a text": text("os.system") + b"(" + TOUCH + b"tR",
    "a memo that is not there": b"h\x07",
    "an empty stack": b"0000",
    "no end": b"((((",
    "an unknown opcode": b"\xff",
}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Run where a canary would appear, and see afterwards that none did."""
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", 0xF0)
    # As if something in this process had used the extension already.
    pickle.loads(b"\x80\x02\x82\xf0.")
    yield tmp_path / "CANARY"
    copyreg.remove_extension("os", "system", 0xF0)
    copyreg._extension_cache.pop(0xF0, None)
    assert not (tmp_path / "CANARY").exists()
    assert "antigravity" not in sys.modules


def test_the_canary_sings(canary, tmp_path):
    """The same program, in Python's own machine, does what it says."""
    pickle.loads(PROTO + HOSTILE["EXT1"][0] + b".")
    assert canary.exists()
    canary.unlink()
    pickle.loads(PROTO + HOSTILE["REDUCE"][0] + b".")
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("layout", ["archive", "legacy", "first of legacy"])
@pytest.mark.parametrize(("program", "named"), HOSTILE.values(), ids=HOSTILE)
def test_what_would_call_is_refused_by_name(program, named, layout, canary, tmp_path):
    file = tmp_path / "x.ckpt"
    program = state(weight=tensor(), callbacks=program)
    if layout == "archive":
        archive(file, program)
    else:
        preamble = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        start = b"".join(pickle.dumps(part, 2) for part in preamble)
        file.write_bytes(start + program if layout == "legacy" else program)
    with pytest.raises(UserError) as error:
        stored_tensors(file)
    assert named in str(error.value)
    assert "x.ckpt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("program", INERT.values(), ids=INERT)
def test_what_calls_nothing_is_inert(program, canary, tmp_path):
    file = archive(tmp_path / "x.ckpt", state(weight=tensor(), callbacks=program))
    np.testing.assert_array_equal(
        read(file)["weight"], np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    assert list(read(file)) == ["weight"]


@pytest.mark.parametrize("program", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_program_is_damaged(program, canary, tmp_path):
    file = archive(tmp_path / "x.ckpt", state(weight=tensor(), callbacks=program))
    with pytest.raises(UserError, match="x.ckpt"):
        stored_tensors(file)


def test_no_value_within_reach_can_be_called():
    """What the argument for safety rests on."""
    everything = list(INERT.values())
    built, _ = unpickle(
        io.BytesIO(state(**{str(i): p for i, p in enumerate(everything)})), Path("x")
    )
    assert len(built) == len(everything)
    assert not any(callable(value) for value in built.values())


def test_a_name_stays_on_one_line_and_short(tmp_path):
    program = text("os\nmore") + text("s" * 10**5) + b"\x93)R"
    with pytest.raises(UserError) as error:
        stored_tensors(archive(tmp_path / "x", state(weight=program)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.ci
def test_bombs_take_neither_time_nor_memory(tmp_path):
    deep = b")" + b"\x85" * 10**5
    wide = b")" + b"2\x86" * 200
    memo = b"Nr" + struct.pack("<I", 2**32 - 1) + b"0"
    program = PROTO + b"}(" + text("weight") + tensor()
    for bomb in (deep, wide):
        # As a value, as a key of a dict, and as an item of a set.
        program += text("x") + bomb + bomb + b"N"
        program += text("s") + b"\x8f(" + bomb + b"\x90"
        program += text("f") + b"(" + bomb + b"\x91"
    key = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + wide + b"NNtQ"
    with pytest.raises(UserError, match="damaged"):
        stored_tensors(archive(tmp_path / "key.pt", program + text("k") + key + b"u."))
    program += text("m") + b"(" + memo + b"l" + b"u."
    assert list(read(archive(tmp_path / "x.pt", program))) == ["weight"]


BAD_PLACES = {
    "beyond the storage": tensor(offset=1),
    "far beyond": tensor(offset=2**31 - 1),
    "before it": tensor(offset=-1),
    "by strides": tensor(strides=(4, 1)),
    "backwards": tensor(strides=(-3, 1)),
    "repeated": tensor(shape=(2**31 - 1, 6), strides=(0, 1)),
    "of two ranks": tensor(strides=(1,)),
    "elsewhere": tensor(key="../../etc/passwd"),
    "absolute": tensor(key="/etc/passwd"),
    "absent": tensor(key="7"),
    "wider": tensor(kind=b"ctorch\nDoubleStorage\n"),
    "of no known kind": tensor(kind=b"ctorch\nComplexFloatStorage\n"),
    "of an alien kind": tensor(kind=b"cevil\nFloatStorage\n"),
}


@pytest.mark.parametrize("program", BAD_PLACES.values(), ids=BAD_PLACES)
def test_a_tensor_lies_within_its_storage(program, tmp_path):
    with pytest.raises(UserError, match="x.pth"):
        stored_tensors(archive(tmp_path / "x.pth", state(weight=program)))


@pytest.mark.parametrize("keep", [0, 3, 30, 150, -30, -1])
def test_a_file_that_was_cut_is_an_error(keep, tmp_path):
    file = archive(tmp_path / "x.pt", state(weight=tensor()))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="x.pt"):
        stored_tensors(file)


def test_damaged_bytes_are_read_or_an_error(canary, tmp_path):
    """Some damage leaves a valid file; what is read then lies within it."""
    rng = np.random.default_rng(0)
    parts = [p for p, _ in HOSTILE.values()] + list(INERT.values())
    file, refused = tmp_path / "x.pt", 0
    for i in range(400):
        program = bytearray(state(a=tensor(), b=parts[i % len(parts)], c=tensor()))
        whole = i % 4 == 0
        content = bytearray(archive(file, bytes(program)).read_bytes())
        damaged = content if whole else program
        for place in rng.integers(len(damaged), size=rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        if whole:
            file.write_bytes(damaged)
        else:
            archive(file, bytes(damaged))
        try:
            read(file)
        except UserError:
            refused += 1
    assert 200 < refused < 400


OTHERS = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "a pickle": pickle.dumps({"a": 1}),
    "nothing": b"",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_another_kind_of_file_is_an_error(content, tmp_path):
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(UserError, match="not a file of torch weights"):
        stored_tensors(file)


def test_other_archives_are_errors(tmp_path):
    file = tmp_path / "x.ckpt"
    program = state(weight=tensor())
    archive(file, program, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        stored_tensors(file)
    archive(file, program, byteorder="big")
    with pytest.raises(UserError, match="big-endian machine"):
        stored_tensors(file)
    archive(file, state(weight=text("none")))
    with pytest.raises(UserError, match="contains no weights"):
        stored_tensors(file)
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("word/document.xml", "")
    with pytest.raises(UserError, match="no data.pkl"):
        stored_tensors(file)
    with pytest.raises(UserError, match="missing"):
        stored_tensors(tmp_path / "none.ckpt")


def test_strides_shared_storages_and_empty_tensors(tmp_path):
    values = np.arange(6, dtype=np.float32)
    program = state(
        plain=tensor(),
        turned=tensor(shape=(3, 2), strides=(1, 3)),
        column=tensor(offset=1, shape=(2,), strides=(3,)),
        scalar=tensor(offset=5, shape=(), strides=()),
        empty=tensor(offset=6, shape=(0, 4), strides=(4, 1)),
        tail=tensor(offset=4, shape=(2, 1), strides=(1, 1)),
    )
    got = read(archive(tmp_path / "x.pt", program, byteorder="little"))
    grid = values.reshape(2, 3)
    expected = {
        "plain": grid,
        "turned": grid.T,
        "column": grid[:, 1],
        "scalar": values[5],
        "empty": np.empty((0, 4), np.float32),
        "tail": values[4:, None],
    }
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


TRAINER = "pytorch_lightning.callbacks"


class Callback:
    """Stands for a trainer's class, which is not there when the file is read."""

    __module__ = TRAINER

    def __init__(self):
        self.best = {"score": np.float64(0.5)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_what_torch_saves_comes_back(layout, protocol, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch absent")
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    base = torch.arange(24).reshape(2, 3, 4)
    tensors = {kind: base.to(getattr(torch, kind)) for kind in kinds}
    tensors |= {
        "turned": tensors["float32"].permute(2, 0, 1),
        "part": tensors["float32"][1:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float16)),
        "scalar": torch.tensor(3.5),
    }
    linear = torch.nn.Linear(2, 3).state_dict()
    tensors |= linear
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": type(linear)(tensors),
        "callbacks": {Callback: {"seen": {1, 2}}, (1, "a"): Callback()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"path": Path("x"), "device": torch.device("cpu")},
        "raw": b"bytes",
    }
    file = tmp_path / "x.ckpt"
    with monkeypatch.context() as there:
        for name in ("pytorch_lightning", TRAINER):
            module = types.ModuleType(name)
            module.Callback = Callback
            there.setitem(sys.modules, name, module)
        torch.save(
            content,
            file,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=layout == "archive",
        )
    got = read(file)
    assert got.keys() == tensors.keys()
    for name, expected in tensors.items():
        expected = expected.detach()
        as_float = expected.float() if expected.dtype == torch.bfloat16 else expected
        array = got[name].astype(as_float.numpy().dtype)
        np.testing.assert_array_equal(array, as_float.numpy(), err_msg=name)
        assert got[name].dtype.name == str(expected.dtype).removeprefix("torch.")


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch absent")
    file = tmp_path / "x.ckpt"
    torch.save({"a": torch.ones(4), "model_ema.a": torch.ones(10**6)}, file)
    # Overwrite the other's bytes: a read of them would be seen as a hole.
    stored = stored_tensors(file)
    skipped = stored.pop("model_ema.a")
    os.truncate(file, max(skipped.start, stored["a"].start + stored["a"].size))
    assert dict(read_tensors(stored))["a"].tolist() == [1, 1, 1, 1]
