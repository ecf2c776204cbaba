"""Convolutions by oneDNN.

In bfloat16 it multiplies with the processor's own instructions (AVX512-BF16 or AMX) and sums in float32; XLA would
widen everything to float32. Only kernels are packed, for each call.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxad.models import cpu
from jaxad.models.cpu.onednn import library
from jaxad.models.cpu.onednn.library import Pointer
from jaxad.runtime import devices, foreign

_TARGET = "jaxad_onednn_convolution"
_FORWARD, _INPUT_GRADIENT, _KERNEL_GRADIENT = range(3)
_DIRECT = 1  # dnnl_convolution_direct

_Shape = tuple[int, ...]


class _Geometry(NamedTuple):
    """What a convolution is, but for its arrays."""

    stride: int
    before: tuple[int, int]  # border of zeros, rows and columns
    after: tuple[int, int]
    groups: int


class _Operation(NamedTuple):
    """A prepared convolution or gradient, and descriptions of its arrays."""

    primitive: Pointer
    packing: Pointer  # of the kernel, before; or of the kernel's gradient back, after
    images: Pointer
    outputs: Pointer
    kernel: Pointer
    packed: Pointer
    scratchpad: Pointer


def takes(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv` computes with arrays of these dtypes on this machine and backend."""
    known = x.dtype in library.DTYPES and kernel.dtype in (x.dtype, jnp.float32)
    return known and cpu.preferred() and _supports(jnp.dtype(x.dtype))


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple, groups: int = 1) -> jax.Array:
    """Cross-correlates x (b, h, w, in) with a kernel (kh, kw, in / groups, out), which `takes` must have allowed.

    The computation runs in the dtype of x, with sums in float32. The kernel may be float32 with x in bfloat16; then so
    is its gradient. It has no forward-mode derivative.

    Args:
      x: The images.
      kernel: The kernel.
      stride: Of both axes.
      padding: Zeros before and behind, for rows and columns: ((top, bottom), (left, right)).
      groups: Of channels; as many as x has for a depthwise convolution.

    Returns:
      (b, rows, columns, out) in the dtype of x.
    """
    before, after = zip(*padding, strict=True)
    _register()
    return _conv(_Geometry(stride, before, after, groups), *devices.varying_alike(x, kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    sides = zip(x.shape[1:3], kernel.shape[:2], geometry.before, geometry.after, strict=True)
    outputs = tuple((n + a + b - k) // geometry.stride + 1 for n, k, a, b in sides)
    return _call(_FORWARD, geometry, x, kernel, shape=(len(x), *outputs, kernel.shape[-1]), dtype=x.dtype)


def _forward(geometry, x, kernel):
    return _conv(geometry, x, kernel), (x, kernel)


def _backward(geometry, saved, gradient):
    x, kernel = saved
    of_x = _call(_INPUT_GRADIENT, geometry, gradient, kernel, shape=x.shape, dtype=x.dtype)
    return of_x, _call(_KERNEL_GRADIENT, geometry, x, gradient, shape=kernel.shape, dtype=kernel.dtype)


_conv.defvjp(_forward, _backward)


def _call(kind: int, geometry: _Geometry, *arrays: jax.Array, shape: _Shape, dtype: DTypeLike) -> jax.Array:
    numbers = kind, geometry.stride, *geometry.before, *geometry.after, geometry.groups
    return foreign.call(_TARGET, arrays, [jax.ShapeDtypeStruct(shape, dtype)], numbers)[0]


@functools.cache
def _register() -> None:
    foreign.register(_TARGET, _run)


@functools.cache
def _supports(dtype: jnp.dtype) -> bool:
    """Whether oneDNN is there and computes convolutions of a dtype, which for bfloat16 depends on the processor."""
    if not library.load():
        return False
    try:
        for kind in (_FORWARD, _INPUT_GRADIENT, _KERNEL_GRADIENT):
            _prepare(kind, _Geometry(1, (1, 1), (1, 1), 1), (1, 8, 8, 16), (3, 3, 16, 16), (1, 8, 8, 16), dtype, dtype)
    except NotImplementedError:
        return False
    return True


def _kernel(shape: _Shape, dtype: jnp.dtype, groups: int, *, packed: bool) -> Pointer:
    kh, kw, c, out = shape
    sides, strides = (out, c, kh, kw), (1, out, kw * c * out, c * out)
    if groups > 1:
        sides, strides = (groups, out // groups, c, kh, kw), (out // groups, *strides)
    return library.described(sides, dtype, None if packed else strides)


@functools.cache
def _prepare(
    kind: int,
    geometry: _Geometry,
    x: _Shape,
    kernel: _Shape,
    y: _Shape,
    dtype: jnp.dtype,
    kernel_dtype: jnp.dtype,
) -> _Operation:
    """Prepares a convolution or gradient, from the shapes of its images, kernel and outputs; once for each of these.

    `dtype` is that of the images and outputs, `kernel_dtype` that of the kernel outside of oneDNN.
    """
    images, outputs, attribute = library.images(x, dtype), library.images(y, dtype), library.user_scratchpad()
    strides, dilation = (geometry.stride,) * 2, (0, 0)
    sides = [library.Sides(*pair) for pair in (strides, dilation, geometry.before, geometry.after)]
    packed = _kernel(kernel, dtype, geometry.groups, packed=True)
    begin = library.engine(), library.TRAINING, _DIRECT
    forward = library.made(
        "convolution_forward_primitive_desc_create", *begin, images, packed, None, outputs, *sides, attribute
    )
    begin = library.engine(), _DIRECT
    if kind == _FORWARD:
        description = forward
    elif kind == _INPUT_GRADIENT:
        arrays = images, packed, outputs
        name = "convolution_backward_data_primitive_desc_create"
        description = library.made(name, *begin, *arrays, *sides, forward, attribute)
    else:
        # Sums over all positions stay float32.
        arrays = images, _kernel(kernel, jnp.dtype(jnp.float32), geometry.groups, packed=True), None, outputs
        name = "convolution_backward_weights_primitive_desc_create"
        description = library.made(name, *begin, *arrays, *sides, forward, attribute)
    query = library.WEIGHTS_GRADIENT_OF if kind == _KERNEL_GRADIENT else library.WEIGHTS_OF
    chosen, scratchpad = (library.asked(description, what) for what in (query, library.SCRATCHPAD_OF))
    plain = _kernel(kernel, kernel_dtype, geometry.groups, packed=False)
    start, end = (chosen, plain) if kind == _KERNEL_GRADIENT else (plain, chosen)
    packing = library.made("reorder_primitive_desc_create", start, library.engine(), end, library.engine(), None)
    primitives = (library.made("primitive_create", each) for each in (description, packing))
    return _Operation(*primitives, images, outputs, plain, chosen, scratchpad)


def _run(arguments: list[foreign.Buffer], results: list[foreign.Buffer], numbers: tuple[int, ...]) -> None:
    """Computes a convolution or gradient, for each index of the leading axes that `jax.vmap` adds."""
    kind, stride, top, left, bottom, right, groups = numbers
    (first, second), (result,) = arguments, results
    images, kernel, outputs = {
        _FORWARD: (first, second, result),
        _INPUT_GRADIENT: (result, second, first),
        _KERNEL_GRADIENT: (first, result, second),
    }[kind]
    if kind != _KERNEL_GRADIENT and math.prod(kernel.shape[:-4]) == 1:  # with one kernel they are one larger batch
        images, outputs = images.merged(), outputs.merged()
        kernel = kernel._replace(shape=kernel.shape[-4:])
    arrays = images, kernel, outputs
    geometry = _Geometry(stride, (top, left), (bottom, right), groups)
    prepared = _prepare(kind, geometry, *(each.shape[-4:] for each in arrays), images.dtype, kernel.dtype)
    for index in np.ndindex(np.broadcast_shapes(*(each.shape[:-4] for each in arrays))):
        _compute(kind, prepared, *(_address(each, index) for each in arrays))


def _address(buffer: foreign.Buffer, index: tuple[int, ...]) -> int:
    """Where the array at an index of the leading axes begins; an axis of one is the same for all."""
    place = 0
    for side, number in zip(buffer.shape[:-4], index, strict=True):
        place = place * side + (number if side > 1 else 0)
    return buffer.address + place * math.prod(buffer.shape[-4:]) * buffer.dtype.itemsize


def _compute(kind: int, prepared: _Operation, images: int, kernel: int, outputs: int) -> None:
    scratch = library.Scratch(library.size(prepared.scratchpad))
    room = library.Scratch(library.size(prepared.packed))
    plain, packed = (prepared.kernel, kernel), (prepared.packed, room.address)
    x, y = (prepared.images, images), (prepared.outputs, outputs)
    source, weights, destination = library.SOURCE, library.WEIGHTS, library.DESTINATION
    if kind != _KERNEL_GRADIENT:
        library.execute(prepared.packing, {source: plain, destination: packed})
    if kind == _FORWARD:
        arrays = {source: x, weights: packed, destination: y}
    elif kind == _INPUT_GRADIENT:
        arrays = {library.GRADIENT + source: x, weights: packed, library.GRADIENT + destination: y}
    else:
        arrays = {source: x, library.GRADIENT + weights: packed, library.GRADIENT + destination: y}
    library.execute(prepared.primitive, arrays | {library.SCRATCHPAD: (prepared.scratchpad, scratch.address)})
    if kind == _KERNEL_GRADIENT:
        library.execute(prepared.packing, {source: packed, destination: plain})
