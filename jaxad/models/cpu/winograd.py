"""Winograd's convolution F(2x2, 3x3): a 3x3 convolution with 16 instead of 36 products for every 2x2 outputs.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.1: with tiles d of 4x4 inputs
that overlap by two, and a kernel g, the 2x2 outputs of a tile are Y = A^T [(G g G^T) * (B^T d B)] A. The product * runs
over tiles and channels as 16 matrix products, one for each place in the tile. Values and gradients equal those of the
direct convolution to float32 rounding: 1e-6 of the largest at the shapes of a ResNet-18.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jaxad.models import cpu
from jaxad.runtime import devices

Tiles = list[list[jax.Array]]  # one array for each place [row][column] in the tile

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def _bt(d: list) -> list:
    """B^T times the four rows d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _at(m: list) -> list:
    """A^T times the four rows m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _a(y: list) -> list:
    """A times the two rows y."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _on_both_sides(transform: Callable[[list], list], tile: Tiles) -> Tiles:
    """T tile T^T: a transform of the tile's columns, then of its rows.

    Each place is computed once, as an array: fused into its users it would be computed for every block of a product.
    """
    rows = zip(*[transform(list(column)) for column in zip(*tile, strict=True)], strict=True)
    return [[lax.optimization_barrier(place) for place in transform(list(row))] for row in rows]


def _grid(h: int, w: int) -> tuple[int, int]:
    """How many tiles cover h x w pixels."""
    return -(-h // 2), -(-w // 2)


def _tiles(x: jax.Array, *, size: int, before: int) -> Tiles:
    """Cuts x (b, h, w, c) into tiles of size x size, one for every 2x2 pixels; places of shape (b tiles, c)."""
    _, h, w, c = x.shape
    rows, columns = _grid(h, w)
    after = [2 * n + size - 2 - side - before for n, side in ((rows, h), (columns, w))]
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (before, after[0]), (before, after[1]), (0, 0))))
    return [
        [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2].reshape(-1, c) for j in range(size)]
        for i in range(size)
    ]


def _kernel_transform(dtype) -> np.ndarray:
    """(16, 9): from the places of a kernel to those of G g G^T."""
    return np.kron(_G, _G).astype(dtype)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    (b, h, w, c), out = x.shape, kernel.shape[-1]
    u = (_kernel_transform(kernel.dtype) @ kernel.reshape(9, c * out)).reshape(4, 4, c, out)
    v = _on_both_sides(_bt, _tiles(x, size=4, before=1))
    m = [[v[i][j] @ u[i, j] for j in range(4)] for i in range(4)]
    y = jnp.stack([place for row in _on_both_sides(_at, m) for place in row])
    rows, columns = _grid(h, w)
    y = y.reshape(2, 2, b, rows, columns, out).transpose(2, 3, 0, 4, 1, 5).reshape(b, 2 * rows, 2 * columns, out)
    return y[:, :h, :w]


def pays(shape: tuple[int, ...], features: int, dtype: DTypeLike) -> bool:
    """Whether `conv3x3` is faster than the direct convolution of x (b, h, w, in) to `features` channels.

    On two CPU cores and batches of 64, value and gradients take 0.65 of the time at 14x14x256 and 0.79 at 28x28x128,
    and with 64 channels nothing is gained. With fewer tiles the transform of the kernel weighs too much: a single image
    of 256 pixels would take twice as long. So the batch decides too, within rounding. Not tried in half precision,
    whose digits the transforms would cost, nor on other backends, whose libraries know this algorithm.
    """
    b, h, w, channels = shape
    rows, columns = _grid(h, w)
    enough = min(channels, features) >= 128 and rows * columns >= 16 and b * rows * columns >= 128
    return enough and jnp.dtype(dtype).itemsize >= 4 and cpu.preferred()


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlates x (b, h, w, in) with a kernel (3, 3, in, out) at stride 1, with a border of one zero.

    It has no forward-mode derivative.
    """
    return _conv3x3(*devices.varying_alike(x, kernel))


@jax.custom_vjp
def _conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(x, kernel)


def _forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    # The gradient of the input is itself a convolution: of the gradient, with the kernel turned around.
    dx = _convolve(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    v, dm = _on_both_sides(_bt, _tiles(x, size=4, before=1)), _on_both_sides(_a, _tiles(gradient, size=2, before=0))
    du = jnp.stack([v[i][j].T @ dm[i][j] for i in range(4) for j in range(4)])
    dk = _kernel_transform(kernel.dtype).T @ du.reshape(16, -1)
    return dx, dk.reshape(kernel.shape)


_conv3x3.defvjp(_forward, _backward)
