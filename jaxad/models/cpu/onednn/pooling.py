"""Max pooling by oneDNN, whose gradient needs one byte for each output instead of the input."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxad.models import cpu
from jaxad.models.cpu.onednn import library
from jaxad.models.cpu.onednn.library import Pointer
from jaxad.runtime import foreign

_TARGET = "jaxad_onednn_max_pool"
_FORWARD, _WITH_PLACES, _GRADIENT = range(3)
_MAX = 0x1FF  # dnnl_pooling_max
_SIZE, _STRIDE, _BORDER = 3, 2, 1


class _Operation(NamedTuple):
    """A prepared pooling or gradient, and descriptions of its arrays."""

    primitive: Pointer
    images: Pointer
    outputs: Pointer
    places: Pointer | None


def takes(x: jax.Array) -> bool:
    """Whether `max_pool` computes with an array of this dtype on this machine and backend."""
    return x.dtype in library.DTYPES and cpu.preferred() and _supports(jnp.dtype(x.dtype))


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling of x (b, h, w, c) by 3x3 with stride 2 and padding 1, which `takes` must have allowed.

    Each window hands its gradient to the first of its maxima. A window of NaN has the lowest number of the dtype for
    its maximum; a convolution of that overflows. It has no forward-mode derivative.

    Returns:
      (b, ceil(h / 2), ceil(w / 2), c)
    """
    _register()
    return _max_pool(x.shape[1:3], x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(sides: tuple[int, int], x: jax.Array) -> jax.Array:
    return foreign.call(_TARGET, [x], [jax.ShapeDtypeStruct(_pooled(x.shape), x.dtype)], (_FORWARD,))[0]


def _forward(sides, x):
    kinds = [jax.ShapeDtypeStruct(_pooled(x.shape), dtype) for dtype in (x.dtype, jnp.uint8)]
    y, places = foreign.call(_TARGET, [x], kinds, (_WITH_PLACES,))
    return y, places


def _backward(sides, places, gradient):
    b, _, _, c = gradient.shape
    kind = jax.ShapeDtypeStruct((b, *sides, c), gradient.dtype)
    return tuple(foreign.call(_TARGET, [gradient, places], [kind], (_GRADIENT,)))


_max_pool.defvjp(_forward, _backward)


def _pooled(shape: tuple[int, ...]) -> tuple[int, ...]:
    b, h, w, c = shape
    return b, -(-h // _STRIDE), -(-w // _STRIDE), c


@functools.cache
def _register() -> None:
    foreign.register(_TARGET, _run)


@functools.cache
def _supports(dtype: jnp.dtype) -> bool:
    if not library.load():
        return False
    try:
        _prepare(_GRADIENT, (1, 8, 8, 16), dtype)
    except NotImplementedError:
        return False
    return True


@functools.cache
def _prepare(kind: int, shape: tuple[int, ...], dtype: jnp.dtype) -> _Operation:
    """Prepares a pooling of images of a shape, or its gradient; once for each."""
    images, outputs = library.images(shape, dtype), library.images(_pooled(shape), dtype)
    behind = ((n - 1) // _STRIDE * _STRIDE + _SIZE - _BORDER - n for n in shape[1:3])
    pairs = (_STRIDE,) * 2, (_SIZE,) * 2, (0, 0), (_BORDER,) * 2, tuple(behind)
    sides = [library.Sides(*pair) for pair in pairs]
    direction = library.INFERENCE if kind == _FORWARD else library.TRAINING
    begin = library.engine(), direction, _MAX
    description = forward = library.made(
        "pooling_forward_primitive_desc_create", *begin, images, outputs, *sides, library.user_scratchpad()
    )
    if kind == _GRADIENT:
        begin = library.engine(), _MAX
        description = library.made(
            "pooling_backward_primitive_desc_create",
            *begin,
            images,
            outputs,
            *sides,
            forward,
            library.user_scratchpad(),
        )
    places = None if kind == _FORWARD else library.asked(description, library.WORKSPACE_OF)
    return _Operation(library.made("primitive_create", description), images, outputs, places)


def _run(arguments: list[foreign.Buffer], results: list[foreign.Buffer], numbers: tuple[int, ...]) -> None:
    """Computes a pooling or its gradient; axes that `jax.vmap` adds make a larger batch."""
    (kind,) = numbers
    if kind == _GRADIENT:
        (outputs, places), (images,) = arguments, results
    else:
        (images,), (outputs, *places) = arguments, results
        places = places[0] if places else None
    prepared = _prepare(kind, images.merged().shape, images.dtype)
    added = library.GRADIENT if kind == _GRADIENT else 0
    arrays = {
        library.SOURCE + added: (prepared.images, images.address),
        library.DESTINATION + added: (prepared.outputs, outputs.address),
    }
    if places:
        arrays[library.WORKSPACE] = prepared.places, places.address
    library.execute(prepared.primitive, arrays)
