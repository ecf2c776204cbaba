"""State dicts that ``torch.save`` has written, read without PyTorch and without executing anything.

Such a file holds a pickle, a program for a machine with a stack that may call any function by its name. Nothing is
called here. `read` interprets the few opcodes that a dict of plain tensors needs, takes the names of functions and
types as mere names, and refuses every other opcode and name. The numbers of the tensors lie beside the pickle in a zip
archive; PyTorch before 1.6 wrote them behind it ("legacy").
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxad.errors import UserError, first_line

_MAGIC, _LEGACY_PROTOCOL, _PICKLE_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001, 2
_ZIP = b"PK\x03\x04"
_DICT, _REBUILD = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"  # with a space, as the pickle's tokens
_STORAGES = {
    f"torch {name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16, "Long": np.int64,
        "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
    }.items()
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(NamedTuple):
    """A function or type that the pickle names, one of the known."""

    name: str


class _Storage(NamedTuple):
    """What the pickle says of a storage: its type, under which key its numbers lie, and how many they are."""

    dtype: np.dtype
    key: str
    count: int


class _Tensor(NamedTuple):
    """Where a tensor lies in its storage: offset and strides count numbers."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Refusal(Exception):
    """Something, in words, that a state dict of plain tensors does not hold."""


def is_torch_file(path: Path) -> bool:
    """Whether a file starts as those of ``torch.save`` do: a zip archive, or a bare pickle."""
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file may start with the byte of a pickle too, but has a brace behind its 8 bytes of length.
    return head.startswith((_ZIP, b"\x80")) and head[8:] != b"{"


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict by name, in the types in which they are stored.

    Raises:
      UserError: The file holds anything but plain tensors, or is damaged.
    """
    try:
        content = path.read_bytes()
        stored, numbers = (_read_zip if content.startswith(_ZIP) else _read_legacy)(content)
        return {name: _strided(numbers(tensor.storage), tensor) for name, tensor in stored.items()}
    except _Refusal as error:
        raise UserError(
            f"{path} holds {error}, but nothing else than a state dict of plain tensors is read; where the file was "
            "made, save model.state_dict() alone with torch.save",
            about=path,
        ) from error
    # What pickletools, zipfile and NumPy raise where bytes are missing or changed.
    except (ValueError, LookupError, OverflowError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); fetch it again", about=path) from error


# Containers


def _read_legacy(content: bytes) -> tuple[dict[str, _Tensor], Callable[[_Storage], np.ndarray]]:
    """The tensors of a legacy file, and the numbers of each storage.

    Five pickles lie one behind the other: a magic number, a version, the writer's machine, the state dict, and the keys
    of the storages. Each storage follows as its count in 8 bytes and its numbers.
    """
    stream = io.BytesIO(content)
    if _unpickle(stream) != _MAGIC or _unpickle(stream) != _LEGACY_PROTOCOL:
        raise ValueError("it does not start with the numbers of torch.save")
    machine = _unpickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Refusal("numbers of a big-endian machine")
    stored = _tensors(_unpickle(stream))
    keys, at = _unpickle(stream), stream.tell()
    expected = {tensor.storage.key: tensor.storage for tensor in stored.values()}
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(expected):
        raise ValueError("its list of storages is not that of its tensors")
    numbers = {}
    for key in keys:
        count = int.from_bytes(content[at : at + 8], "little")
        end = at + 8 + count * expected[key].dtype.itemsize
        numbers[key] = content[at + 8 : end]
        at = end
    if at != len(content):
        raise ValueError(f"its tensors need {at} bytes and it has {len(content)}")
    return stored, lambda storage: _array(numbers[storage.key], storage)


def _read_zip(content: bytes) -> tuple[dict[str, _Tensor], Callable[[_Storage], np.ndarray]]:
    """The tensors of a zip archive, and the numbers of each storage: ``data.pkl`` and ``data/KEY`` in one folder."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl, or several")
    folder = pickles[0].removesuffix("data.pkl")

    def member(name: str) -> bytes:
        # torch.save compresses nothing; so no member is larger than the file.
        info = archive.getinfo(folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise _Refusal(f"compressed or encrypted data ({name!a:.80})")
        return archive.read(folder + name)

    if f"{folder}byteorder" in archive.namelist() and member("byteorder") != b"little":
        raise _Refusal("numbers of a big-endian machine")
    stored = _tensors(_unpickle(io.BytesIO(member("data.pkl"))))
    return stored, lambda storage: _array(member(f"data/{storage.key}"), storage)


def _tensors(state: object) -> dict[str, _Tensor]:
    """Checks that the value of a pickle is a dict of tensors."""
    if not isinstance(state, dict):
        raise _Refusal("an object that is no dict")
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            raise _Refusal(f"an entry {name!a:.80} that is no tensor")
    return state


def _array(numbers: bytes, storage: _Storage) -> np.ndarray:
    if len(numbers) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key!a} has {len(numbers)} bytes for {storage.count} of {storage.dtype}")
    return np.frombuffer(numbers, storage.dtype)


def _strided(numbers: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The tensor as a view of its storage."""
    _, offset, size, stride = tensor
    if 0 in size:
        return np.empty(size, numbers.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # as_strided checks no bounds.
    if any(n < 0 for n in (offset, *size, *stride)) or last >= len(numbers):
        raise ValueError(f"a tensor of size {size} and strides {stride} does not fit its {len(numbers)} numbers")
    if math.prod(size) > len(numbers):  # a few bytes could fill any memory
        raise _Refusal(f"a tensor of {math.prod(size)} elements that repeats its {len(numbers)} numbers")
    steps = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False)


# The pickle


def _unpickle(stream: io.BytesIO) -> Any:
    """The value of the pickle at the position of a stream, which is left behind it."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def taken(count: int | None = None) -> list[Any]:
        """The last values of the stack, by default those behind the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise ValueError("its pickle takes more than it holds")
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" if argument == _PICKLE_PROTOCOL:
                pass
            case "STOP":
                return stack[-1]
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise ValueError("its pickle takes what it has not stored")
                stack.append(memo[argument])
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(taken()))
            case name if name in _TUPLES:
                stack.append(tuple(taken(_TUPLES[name])))
            case "APPEND":
                _extend(stack, taken(1))
            case "APPENDS":
                _extend(stack, taken())
            case "SETITEM":
                _update(stack, taken(2))
            case "SETITEMS":
                _update(stack, taken())
            case "GLOBAL":
                stack.append(_name(argument))
            case "BINPERSID":
                stack.append(_storage(*taken(1)))
            case "REDUCE":
                stack.append(_reduced(*taken(2)))
            case "BUILD":  # of an OrderedDict: its attribute `_metadata`, versions of modules
                taken(1)
            case _:
                raise _Refusal(f"the opcode {opcode.name}{'' if argument is None else f' ({argument!a:.80})'}")
    raise AssertionError("genops ends with STOP or an error")


def _extend(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("its pickle appends to what is no list")
    stack[-1].extend(values)


def _update(stack: list[Any], pairs: list[Any]) -> None:
    if not isinstance(stack[-1], dict) or len(pairs) % 2 or not all(isinstance(key, str) for key in pairs[::2]):
        raise ValueError("its pickle sets what is no item by name")
    stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))


def _name(text: str) -> _Name:
    if text not in (_DICT, _REBUILD, *_STORAGES):
        raise _Refusal(f"the global {text.replace(' ', '.', 1)!a}")
    return _Name(text)


def _storage(found: Any) -> _Storage:
    """The storage that a persistent id names: what it is, its type, key and device, its count, and in legacy files None
    unless it is a part of another storage."""
    match found:
        case ("storage", _Name(name), str(key), str(), int(count), *rest) if name in _STORAGES and rest in ([], [None]):
            return _Storage(_STORAGES[name], key, count)
    raise _Refusal("a persistent id that names no whole storage")


def _reduced(function: Any, arguments: Any) -> Any:
    """What a call gives, for the two that are known."""
    match function, arguments:
        case _Name(name), () if name == _DICT:
            return {}
        case _Name(name), (_Storage() as storage, int(offset), tuple(size), tuple(stride), bool(), dict(), *_) if (
            name == _REBUILD and len(size) == len(stride) and all(type(n) is int for n in (*size, *stride))
        ):
            return _Tensor(storage, offset, size, stride)
        case _Name(name), _:  # nothing is said of the arguments, whose text may be larger than any memory
            raise _Refusal(f"a call of {name.replace(' ', '.')} with unknown arguments")
    raise _Refusal("a call of what is no function")
