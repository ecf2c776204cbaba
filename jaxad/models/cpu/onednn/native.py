"""What XLA calls for oneDNN's layers, compiled by Numba: users need no compiler.

`convolve` and `pool` are handlers of XLA's foreign function interface. They read its structures
(``xla/ffi/api/c_api.h``, in the folder that ``jax.ffi.include_dir()`` tells) as words of 8 bytes at addresses, and call
oneDNN's C interface. They run without Python's lock, in threads of XLA: they neither wait for Python nor need it, so a
process may end while a program is under way.

Objects of oneDNN are addresses. Each call makes its own; what oneDNN compiles for them it keeps. A session, an array,
collects them and notes a failure, after which nothing is computed any more. The memory of an array ends with the last
use of its name, so an address of it goes only to functions that get the array too, or while it is used later.

All is in one file because Numba keeps compiled functions until their own file changes.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = 0, 1, 2  # what `convolve` computes
POOL, POOL_WITH_PLACES, POOL_GRADIENT = 0, 1, 2  # what `pool` computes

# Values of XLA's enumerations.
_BFLOAT16 = 16
_METADATA = 1  # XLA_FFI_Extension_Metadata
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

# Words of XLA_FFI_CallFrame, XLA_FFI_Buffer, XLA_FFI_Array, XLA_FFI_Metadata_Extension, XLA_FFI_Metadata, XLA_FFI_Api.
_EXTENSION, _API, _ARGUMENTS, _RESULTS, _ATTRIBUTES = 1, 2, 9, 14, 20
_DTYPE, _DATA, _RANK, _SIDES = 2, 3, 4, 5
_NUMBERS = 2
_KIND_OF_EXTENSION, _METADATA_OF_EXTENSION = 1, 3
_HANDLER_VERSION, _TRAITS = 3, 4
_VERSION, _CREATE_ERROR = 4, 6
_HALF = 32  # bits of an int

# Values of oneDNN's enumerations.
_CPU, _IN_ORDER, _USER_SCRATCHPAD, _ANY, _DIRECT, _MAX = 1, 1, 1, 1, 1, 0x1FF
_FLOAT32, _BFLOAT16_OF_ONEDNN = 3, 2
_FOR_TRAINING, _FOR_INFERENCE = 64, 96
_WEIGHTS_OF, _WEIGHTS_GRADIENT_OF, _WORKSPACE_OF, _SCRATCHPAD_OF = 131, 132, 135, 136  # queries of a primitive
_SOURCE, _DESTINATION, _WEIGHTS, _WORKSPACE, _SCRATCHPAD = 1, 17, 33, 64, 80  # arguments of a primitive
_GRADIENT = 128  # added to one of them

_DESCRIPTION, _PRIMITIVE_DESCRIPTION, _PRIMITIVE, _MEMORY, _ENGINE, _STREAM, _ATTRIBUTE = range(7)  # kinds of objects
_FAILED, _COUNT, _FIRST = 0, 1, 2  # of a session's numbers
_ALIGNMENT = 64  # bytes
_SIZE, _STRIDE, _BORDER = 3, 2, 1  # of the pooling


def _pointer(builder: ir.IRBuilder, address: ir.Value, bits: int) -> ir.Value:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


@intrinsic
def _read(typing_context, address):
    """The word at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], 64))

    return types.int64(types.int64), generate


@intrinsic
def _write(typing_context, address, value):
    """Writes a word to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], _pointer(builder, arguments[0], 64))
        return arguments[1]

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _call_at(typing_context, address, argument):
    """Calls a function of one pointer that returns a pointer."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])

    return types.int64(types.int64, types.int64), generate


@njit
def _word(address: int, number: int) -> int:
    """The word of a number, from 0, in the structure at an address."""
    return _read(address + 8 * number)


@njit
def _argument(call: int, number: int) -> int:
    """The buffer of an argument."""
    return _word(_word(call, _ARGUMENTS), number)


@njit
def _result(call: int, number: int) -> int:
    """The buffer of a result."""
    return _word(_word(call, _RESULTS), number)


@njit
def _numbers(call: int) -> int:
    """The address of the integers that `call` was given, words of 8 bytes."""
    return _word(_word(_word(call, _ATTRIBUTES), 0), _NUMBERS)


@njit
def _dtype(buffer: int) -> int:
    """What a buffer holds: one of the constants above."""
    return _word(buffer, _DTYPE) & ((1 << _HALF) - 1)


@njit
def _data(buffer: int) -> int:
    """The address of a buffer's first value."""
    return _word(buffer, _DATA)


@njit
def _rank(buffer: int) -> int:
    """How many axes a buffer has."""
    return _word(buffer, _RANK)


@njit
def _side(buffer: int, axis: int) -> int:
    """The length of an axis; negative ones count from the last."""
    return _word(_word(buffer, _SIDES), axis + _rank(buffer) if axis < 0 else axis)


@njit
def _leading(buffer: int, kept: int) -> int:
    """The product of all axes but the last `kept`."""
    product = 1
    for axis in range(_rank(buffer) - kept):
        product *= _side(buffer, axis)
    return product


@njit
def _is_question(call: int) -> bool:
    """Whether XLA only asks for the version, which is answered."""
    extension = _word(call, _EXTENSION)
    if extension == 0 or _word(extension, _KIND_OF_EXTENSION) & ((1 << _HALF) - 1) != _METADATA:
        return False
    metadata = _word(extension, _METADATA_OF_EXTENSION)
    # Version 0, whatever XLA's own: of the structures above, only a version 1 may move fields. XLA then refuses.
    minor = _word(_word(call, _API), _VERSION) >> _HALF
    _write(metadata + 8 * _HANDLER_VERSION, minor << _HALF)
    _write(metadata + 8 * _TRAITS, 0)
    return True


@njit
def _create_error(call: int, arguments: np.ndarray) -> int:
    return _call_at(_word(_word(call, _API), _CREATE_ERROR), arguments.ctypes.data)


@njit
def _failure(call: int, message: int) -> int:
    """What a handler returns that failed, with the address of a text that ends with a zero."""
    arguments = np.zeros(4, np.int64)
    arguments[0], arguments[2], arguments[3] = 28, message, _INTERNAL  # the size of XLA_FFI_Error_Create_Args
    return _create_error(call, arguments)


def _external(name: str, *arguments: types.Type, returns: types.Type = types.int32) -> types.ExternalFunction:
    """A function of oneDNN for handlers. Addresses are int64."""
    return types.ExternalFunction(f"dnnl_{name}", returns(*arguments))


_A, _I = types.int64, types.int32
_memory_desc_create_with_strides = _external("memory_desc_create_with_strides", _A, _I, _A, _I, _A)
_memory_desc_create_with_tag = _external("memory_desc_create_with_tag", _A, _I, _A, _I, _I)
_memory_desc_get_size = _external("memory_desc_get_size", _A, returns=types.int64)
_memory_desc_destroy = _external("memory_desc_destroy", _A)
_primitive_desc_query_md = _external("primitive_desc_query_md", _A, _I, _I, returns=types.int64)
_primitive_desc_destroy = _external("primitive_desc_destroy", _A)
_primitive_create = _external("primitive_create", _A, _A)
_primitive_destroy = _external("primitive_destroy", _A)
_memory_create = _external("memory_create", _A, _A, _A, _A)
_memory_destroy = _external("memory_destroy", _A)
_engine_create = _external("engine_create", _A, _I, _A)
_engine_destroy = _external("engine_destroy", _A)
_stream_create = _external("stream_create", _A, _A, _I)
_stream_destroy = _external("stream_destroy", _A)
_stream_wait = _external("stream_wait", _A)
_primitive_attr_create = _external("primitive_attr_create", _A)
_primitive_attr_set_scratchpad_mode = _external("primitive_attr_set_scratchpad_mode", _A, _I)
_primitive_attr_destroy = _external("primitive_attr_destroy", _A)
_primitive_execute = _external("primitive_execute", _A, _A, _I, _A)

_MESSAGE = np.frombuffer(b"oneDNN refused a convolution or pooling of jaxad\0", np.uint8)


@njit
def _session() -> np.ndarray:
    """Numbers of a call: whether it failed, how many objects it made, and their addresses and kinds."""
    return np.zeros(_FIRST + 2 * 64, np.int64)


@njit
def _check(opened: np.ndarray, status: int) -> None:
    """Notes a status that is no success."""
    if status != 0:
        opened[_FAILED] = 1


@njit
def _made(opened: np.ndarray, status: int, slot: np.ndarray, kind: int) -> int:
    """The object that a function wrote to a slot, which `close` destroys; 0 if it failed."""
    _check(opened, status)
    if status != 0:
        return 0
    place = _FIRST + 2 * opened[_COUNT]
    opened[place], opened[place + 1] = slot[0], kind
    opened[_COUNT] += 1
    return slot[0]


@njit
def _close(opened: np.ndarray) -> bool:
    """Destroys what a session made, the last first; whether it failed."""
    for number in range(opened[_COUNT] - 1, -1, -1):
        address, kind = opened[_FIRST + 2 * number], opened[_FIRST + 2 * number + 1]
        if kind == _DESCRIPTION:
            _memory_desc_destroy(address)
        elif kind == _PRIMITIVE_DESCRIPTION:
            _primitive_desc_destroy(address)
        elif kind == _PRIMITIVE:
            _primitive_destroy(address)
        elif kind == _MEMORY:
            _memory_destroy(address)
        elif kind == _STREAM:
            _stream_destroy(address)
        elif kind == _ATTRIBUTE:
            _primitive_attr_destroy(address)
        else:
            _engine_destroy(address)
    return opened[_FAILED] != 0


@njit
def _answer(call: int, failed: bool) -> int:
    """What a handler returns."""
    return _failure(call, _MESSAGE.ctypes.data) if failed else 0


@njit
def _engine(opened: np.ndarray) -> int:
    """The processor."""
    slot = np.zeros(1, np.int64)
    return _made(opened, _engine_create(slot.ctypes.data, _CPU, 0), slot, _ENGINE)


@njit
def _stream(opened: np.ndarray, processor: int) -> int:
    """What primitives are executed in."""
    slot = np.zeros(1, np.int64)
    return _made(opened, _stream_create(slot.ctypes.data, processor, _IN_ORDER), slot, _STREAM)


@njit
def _user_scratchpad(opened: np.ndarray) -> int:
    """The attribute of primitives that get their scratch memory from the caller; oneDNN's own serves one thread."""
    slot = np.zeros(1, np.int64)
    attribute = _made(opened, _primitive_attr_create(slot.ctypes.data), slot, _ATTRIBUTE)
    _check(opened, _primitive_attr_set_scratchpad_mode(attribute, _USER_SCRATCHPAD))
    return attribute


@njit
def _dtype_of(buffer: int) -> int:
    """oneDNN's number for what a buffer of XLA holds."""
    return _BFLOAT16_OF_ONEDNN if _dtype(buffer) == _BFLOAT16 else _FLOAT32


@njit
def _pair(rows: int, columns: int) -> np.ndarray:
    """Two numbers as oneDNN takes them."""
    numbers = np.zeros(12, np.int64)
    numbers[0], numbers[1] = rows, columns
    return numbers


@njit
def _described(opened: np.ndarray, sides: np.ndarray, strides: np.ndarray, axes: int, dtype: int) -> int:
    """A description of an array with these strides, the first of which is 0 if oneDNN may choose the layout."""
    slot = np.zeros(1, np.int64)
    if strides[0] == 0:
        status = _memory_desc_create_with_tag(slot.ctypes.data, axes, sides.ctypes.data, dtype, _ANY)
    else:
        status = _memory_desc_create_with_strides(slot.ctypes.data, axes, sides.ctypes.data, dtype, strides.ctypes.data)
    return _made(opened, status, slot, _DESCRIPTION)


@njit
def _images(opened: np.ndarray, buffer: int, batch: int) -> int:
    """A description of images (..., h, w, c) as one batch."""
    h, w, c = _side(buffer, -3), _side(buffer, -2), _side(buffer, -1)
    sides, strides = np.zeros(12, np.int64), np.zeros(12, np.int64)
    sides[0], sides[1], sides[2], sides[3] = batch, c, h, w
    strides[0], strides[1], strides[2], strides[3] = max(h * w * c, 1), 1, w * c, c
    return _described(opened, sides, strides, 4, _dtype_of(buffer))


@njit
def _begin(opened: np.ndarray, x: int, y: int, batch: int) -> tuple[int, int, int, int]:
    """The processor, its stream, and descriptions of the images x and y."""
    processor = _engine(opened)
    return processor, _stream(opened, processor), _images(opened, x, batch), _images(opened, y, batch)


@njit
def _asked(description: int, query: int) -> int:
    """The description of one of a primitive's arrays; 0 of none."""
    return _primitive_desc_query_md(description, query, 0) if description else 0


@njit
def _size(description: int) -> int:
    """How many bytes an array takes; 0 without a description."""
    return _memory_desc_get_size(description) if description else 0


@njit
def _room(description: int) -> np.ndarray:
    """Memory for an array, whose first aligned address is `_aligned`."""
    return np.empty(_size(description) + _ALIGNMENT, np.uint8)


@njit
def _aligned(memory: np.ndarray) -> int:
    """The first address in memory that oneDNN prefers."""
    return (memory.ctypes.data + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


@njit
def _primitive(opened: np.ndarray, description: int) -> int:
    """What computes what is described; oneDNN keeps compiled ones for the next call."""
    slot = np.zeros(1, np.int64)
    return _made(opened, _primitive_create(slot.ctypes.data, description), slot, _PRIMITIVE)


@njit
def _hand(opened: np.ndarray, given: np.ndarray, number: int, processor: int, description: int, address: int) -> None:
    """Appends an array to the arguments of a primitive, whose count is in their first place."""
    slot = np.zeros(1, np.int64)
    memory = _made(opened, _memory_create(slot.ctypes.data, description, processor, address), slot, _MEMORY)
    place = 1 + 2 * given[0]
    given[place], given[place + 1] = number, memory
    given[0] += 1


@njit
def _execute(opened: np.ndarray, computing: int, line: int, given: np.ndarray) -> None:
    """Runs a primitive in a stream, unless something has failed before."""
    if opened[_FAILED] == 0:
        _check(opened, _primitive_execute(computing, line, given[0], given[1:].ctypes.data))
        _check(opened, _stream_wait(line))


_convolution_create = _external(
    "convolution_forward_primitive_desc_create", _A, _A, _I, _I, _A, _A, _A, _A, _A, _A, _A, _A, _A
)
_input_gradient_create = _external(
    "convolution_backward_data_primitive_desc_create", _A, _A, _I, _A, _A, _A, _A, _A, _A, _A, _A, _A
)
_kernel_gradient_create = _external(
    "convolution_backward_weights_primitive_desc_create", _A, _A, _I, _A, _A, _A, _A, _A, _A, _A, _A, _A, _A
)
_reorder_create = _external("reorder_primitive_desc_create", _A, _A, _A, _A, _A, _A)


@njit
def _kernel(opened: np.ndarray, buffer: int, groups: int, dtype: int, packed: bool) -> int:
    """A description of a kernel (..., kh, kw, in / groups, out), as it is or as oneDNN likes it."""
    kh, kw = _side(buffer, -4), _side(buffer, -3)
    c, out = _side(buffer, -2), _side(buffer, -1)
    sides, strides = np.zeros(12, np.int64), np.zeros(12, np.int64)
    grouped = 1 if groups > 1 else 0  # then there is an axis of groups in front
    sides[0], strides[0] = groups, out // groups
    sides[grouped], sides[grouped + 1], sides[grouped + 2], sides[grouped + 3] = out // groups, c, kh, kw
    strides[grouped], strides[grouped + 1], strides[grouped + 2], strides[grouped + 3] = 1, out, kw * c * out, c * out
    if packed:
        strides[0] = 0
    return _described(opened, sides, strides, 4 + grouped, dtype)


@njit
def _packing(opened: np.ndarray, processor: int, start: int, end: int) -> int:
    """A primitive that copies from one layout to another."""
    slot = np.zeros(1, np.int64)
    status = _reorder_create(slot.ctypes.data, start, processor, end, processor, 0)
    return _primitive(opened, _made(opened, status, slot, _PRIMITIVE_DESCRIPTION))


@njit
def _place(buffer: int, index: int, result: int) -> int:
    """Where the array at an index of the result's leading axes begins; an axis of one is the same for all."""
    size = 2 if _dtype(buffer) == _BFLOAT16 else 4
    for axis in range(-4, 0):
        size *= _side(buffer, axis)
    place, step = 0, size
    for axis in range(_rank(buffer) - 5, -1, -1):
        side = max(_side(result, axis), 1)
        if _side(buffer, axis) > 1:
            place += index % side * step
        step *= _side(buffer, axis)
        index //= side
    return _data(buffer) + place


@njit
def _convolution(
    opened: np.ndarray,
    processor: int,
    kind: int,
    arrays: tuple[int, int, int, int],
    strides: np.ndarray,
    dilation: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> int:
    """Describes a convolution, or a gradient, of images, packed kernel, its gradient and outputs.

    The geometry's arrays are parameters since the memory of an array ends with the last use of its name.
    """
    images, kernel, kernel_gradient, outputs = arrays
    attribute = _user_scratchpad(opened)
    if opened[_FAILED] != 0:
        return 0
    geometry = strides.ctypes.data, dilation.ctypes.data, before.ctypes.data, after.ctypes.data
    slot = np.zeros(1, np.int64)
    status = _convolution_create(
        slot.ctypes.data, processor, _FOR_TRAINING, _DIRECT, images, kernel, 0, outputs, *geometry, attribute
    )
    forward = _made(opened, status, slot, _PRIMITIVE_DESCRIPTION)
    if kind == FORWARD or opened[_FAILED] != 0:
        return forward
    if kind == INPUT_GRADIENT:
        status = _input_gradient_create(
            slot.ctypes.data, processor, _DIRECT, images, kernel, outputs, *geometry, forward, attribute
        )
    else:
        status = _kernel_gradient_create(
            slot.ctypes.data, processor, _DIRECT, images, kernel_gradient, 0, outputs, *geometry, forward, attribute
        )
    return _made(opened, status, slot, _PRIMITIVE_DESCRIPTION)


@njit
def _convolve(call: int) -> int:
    given = _numbers(call)
    kind, groups = _word(given, 0), _word(given, 6)
    first, second, result = _argument(call, 0), _argument(call, 1), _result(call, 0)
    x, kernel, y = first, second, result
    if kind == INPUT_GRADIENT:
        x, y = result, first
    if kind == KERNEL_GRADIENT:
        kernel, y = result, second
    # With one kernel, the leading axes make one larger batch.
    merged = kind != KERNEL_GRADIENT and _leading(kernel, 4) == 1
    count = 1 if merged else _leading(result, 4)
    batch = _leading(x, 3) if merged else _side(x, -4)

    opened = _session()
    processor, line, images, outputs = _begin(opened, x, y, batch)
    packed = _kernel(opened, kernel, groups, _dtype_of(x), True)
    wide = _kernel(opened, kernel, groups, _FLOAT32, True)  # a gradient's sums over positions stay float32
    plain = _kernel(opened, kernel, groups, _dtype_of(kernel), False)
    description = _convolution(
        opened,
        processor,
        kind,
        (images, packed, wide, outputs),
        _pair(_word(given, 1), _word(given, 1)),
        _pair(0, 0),
        _pair(_word(given, 2), _word(given, 3)),
        _pair(_word(given, 4), _word(given, 5)),
    )
    gradient = kind == KERNEL_GRADIENT
    held = _asked(description, _WEIGHTS_GRADIENT_OF if gradient else _WEIGHTS_OF)
    scratchpad = _asked(description, _SCRATCHPAD_OF)
    computing = _primitive(opened, description)
    packing = _packing(opened, processor, held, plain) if gradient else _packing(opened, processor, plain, held)
    room, scratch = _room(held), _room(scratchpad)
    if opened[_FAILED] != 0:
        count = 0

    source = _SOURCE + (_GRADIENT if kind == INPUT_GRADIENT else 0)
    weights = _WEIGHTS + (_GRADIENT if gradient else 0)
    destination = _DESTINATION + (_GRADIENT if kind != FORWARD else 0)
    for index in range(count):
        own = _session()
        copied, computed = np.zeros(17, np.int64), np.zeros(17, np.int64)
        _hand(own, copied, _DESTINATION if gradient else _SOURCE, processor, plain, _place(kernel, index, result))
        _hand(own, copied, _SOURCE if gradient else _DESTINATION, processor, held, _aligned(room))
        _hand(own, computed, source, processor, images, _place(x, index, result))
        _hand(own, computed, weights, processor, held, _aligned(room))
        _hand(own, computed, destination, processor, outputs, _place(y, index, result))
        _hand(own, computed, _SCRATCHPAD, processor, scratchpad, _aligned(scratch))
        if not gradient:
            _execute(own, packing, line, copied)
        _execute(own, computing, line, computed)
        if gradient:
            _execute(own, packing, line, copied)
        _check(opened, int(_close(own)))
    return _answer(call, _close(opened))


def convolve(call: int) -> int:
    """Computes a convolution or gradient, for each index of the leading axes that `jax.vmap` adds."""
    try:
        return 0 if _is_question(call) else _convolve(call)
    except Exception:  # memory is short
        return _answer(call, True)


_pooling_create = _external("pooling_forward_primitive_desc_create", *(_A, _A, _I, _I, _A, _A), *(_A,) * 6)
_pooling_gradient_create = _external("pooling_backward_primitive_desc_create", *(_A, _A, _I, _A, _A), *(_A,) * 7)


@njit
def _pooling(
    opened: np.ndarray,
    processor: int,
    kind: int,
    arrays: tuple[int, int],
    strides: np.ndarray,
    sizes: np.ndarray,
    dilation: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> int:
    """Describes a pooling, or its gradient, of images and outputs.

    The geometry's arrays are parameters since the memory of an array ends with the last use of its name.
    """
    images, outputs = arrays
    geometry = (
        *(strides.ctypes.data, sizes.ctypes.data, dilation.ctypes.data),
        *(before.ctypes.data, after.ctypes.data),
    )
    if opened[_FAILED] != 0:
        return 0
    direction = _FOR_INFERENCE if kind == POOL else _FOR_TRAINING
    slot = np.zeros(1, np.int64)
    status = _pooling_create(slot.ctypes.data, processor, direction, _MAX, images, outputs, *geometry, 0)
    description = _made(opened, status, slot, _PRIMITIVE_DESCRIPTION)
    if kind == POOL_GRADIENT and opened[_FAILED] == 0:
        status = _pooling_gradient_create(slot.ctypes.data, processor, _MAX, images, outputs, *geometry, description, 0)
        description = _made(opened, status, slot, _PRIMITIVE_DESCRIPTION)
    return description


@njit
def _pool(call: int) -> int:
    kind = _word(_numbers(call), 0)
    x, y, places = _argument(call, 0), _result(call, 0), 0
    if kind == POOL_WITH_PLACES:
        places = _result(call, 1)
    if kind == POOL_GRADIENT:
        x, y, places = y, x, _argument(call, 1)
    below = (_side(x, -3) - 1) // _STRIDE * _STRIDE + _SIZE - _BORDER - _side(x, -3)
    right = (_side(x, -2) - 1) // _STRIDE * _STRIDE + _SIZE - _BORDER - _side(x, -2)

    opened = _session()
    processor, line, images, outputs = _begin(opened, x, y, _leading(x, 3))
    description = _pooling(
        opened,
        processor,
        kind,
        (images, outputs),
        _pair(_STRIDE, _STRIDE),
        _pair(_SIZE, _SIZE),
        _pair(0, 0),
        _pair(_BORDER, _BORDER),
        _pair(below, right),
    )
    computing = _primitive(opened, description)
    added, given = _GRADIENT if kind == POOL_GRADIENT else 0, np.zeros(17, np.int64)
    _hand(opened, given, _SOURCE + added, processor, images, _data(x))
    _hand(opened, given, _DESTINATION + added, processor, outputs, _data(y))
    if kind != POOL:
        workspace = _asked(description, _WORKSPACE_OF)
        if _size(workspace) != _leading(places, 0):
            opened[_FAILED] = 1
        _hand(opened, given, _WORKSPACE, processor, workspace, _data(places))
    _execute(opened, computing, line, given)
    return _answer(call, _close(opened))


def pool(call: int) -> int:
    """Computes a pooling or its gradient; axes that `jax.vmap` adds make a larger batch."""
    try:
        return 0 if _is_question(call) else _pool(call)
    except Exception:  # memory is short
        return _answer(call, True)


def handler(function: Callable[[int], int]) -> Any:
    """Compiles `convolve` or `pool`, once for a machine; oneDNN must be loaded. What C calls is its ``ctypes``."""
    kept = functools.partial(cfunc, types.int64(types.int64), nopython=True)
    try:
        return kept(cache=True)(function)
    except Exception:  # no folder can be written to, or what is kept there is damaged
        return kept()(function)
