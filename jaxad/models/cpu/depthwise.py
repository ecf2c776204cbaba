"""Depthwise convolution by oneDNN; where that is missing, as a sum of shifted products.

XLA's CPU backend takes 50 to 200 times as long as that sum for grouped convolutions at the shapes of an EfficientNet,
and automatic differentiation of the sum would scatter. oneDNN takes a sixth to a half of the sum's time. Values and
gradients are those of the grouped convolution up to rounding.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxad.models import cpu
from jaxad.models.cpu.onednn import convolution
from jaxad.models.cpu.sums import channel_sum
from jaxad.models.layers import materialized
from jaxad.runtime import devices


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Cross-correlates each channel of x (b, h, w, c) with its own kernel (k, k, 1, c), with TensorFlow's SAME padding.

    The computation runs in the dtype of x.

    Of the zeros around, as many as the outputs need, the odd one goes behind. On CPU there is no forward-mode
    derivative.

    Returns:
      (b, ceil(h / stride), ceil(w / stride), c)
    """
    if convolution.takes(x, kernel, depthwise=True):
        sides = tuple(padding(n, k, stride) for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
        return convolution.conv(x, kernel, stride=stride, padding=sides, groups=x.shape[-1])
    kernel = kernel.astype(x.dtype)
    if not cpu.preferred():
        axes, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, "SAME", dimension_numbers=axes, feature_group_count=groups
        )
    return _depthwise_conv(stride, *devices.varying_alike(x, kernel))


def padding(n: int, k: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: zeros before and behind n pixels, for a kernel of k of them."""
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return total // 2, total - total // 2


def _padded(x: jax.Array, k: int, stride: int) -> jax.Array:
    sides = [padding(n, k, stride) for n in x.shape[1:3]]
    return materialized(jnp.pad(x, ((0, 0), *sides, (0, 0))))


def _correlate(padded: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Sums the products with every tap of the kernel (k, k, 1, c), without padding, in at least float32."""
    k = len(kernel)
    rows, columns = ((n - k) // stride * stride + 1 for n in padded.shape[1:3])
    taps = [(i, j) for i in range(k) for j in range(k)]
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    total = sum(padded[:, i : i + rows : stride, j : j + columns : stride] * wide[i, j] for i, j in taps)
    return total.astype(padded.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _depthwise_conv(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(_padded(x, len(kernel), stride), kernel, stride)


def _forward(stride: int, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return materialized(_depthwise_conv(stride, x, kernel)), (x, kernel)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _input_gradient(x, kernel, gradient, stride), _kernel_gradient(x, kernel, gradient, stride)


def _input_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """Correlates the gradient, spread out by the stride, with the kernel turned around."""
    k, edges = len(kernel), [(0, 0, 0)]
    for n, outputs in zip(x.shape[1:3], gradient.shape[1:3], strict=True):
        before = k - 1 - padding(n, k, stride)[0]
        edges.append((before, n + k - 1 - before - (outputs - 1) * stride - 1, stride - 1))
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), (*edges, (0, 0, 0)))
    return materialized(_correlate(materialized(spread), kernel[::-1, ::-1], 1))


def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """Sums over the products of the gradient with the pixels at each tap."""
    k, padded = len(kernel), _padded(x, len(kernel), stride)
    rows, columns = ((n - 1) * stride + 1 for n in gradient.shape[1:3])
    wide = materialized(gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32)))
    taps = [(i, j) for i in range(k) for j in range(k)]
    shifted = (padded[:, i : i + rows : stride, j : j + columns : stride] for i, j in taps)
    return jnp.stack([channel_sum(part * wide) for part in shifted]).reshape(kernel.shape).astype(kernel.dtype)


_depthwise_conv.defvjp(_forward, _backward)
