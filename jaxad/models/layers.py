"""Layers of the convolutional networks, written so that they are fast on CPU.

oneDNN computes convolutions and max pooling there, and without it XLA. In their plain form XLA takes 3 to 13 times as
long for transposed convolutions, 6 times for max pooling with its gradient, up to 1.5 times for wide 3x3 convolutions
and over 100 times for those of maps smaller than their kernel. Each layer here is the same function of the same
parameters as its plain counterpart (``nn.Conv``, ``nn.ConvTranspose``, ``nn.max_pool``) up to rounding, only computed
another way: checkpoints don't depend on the formulation. Some have gradients in reverse mode only.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxad.models import cpu
from jaxad.models.cpu import sums, winograd
from jaxad.models.cpu.onednn import convolution, pooling


def he_normal_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws a convolution's kernel (kh, kw, in, out) from N(0, 2 / (out kh kw)) (He et al. 2015, fan out)."""
    kh, kw, _, out = shape
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / (out * kh * kw))


def uniform_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws a transposed convolution's kernel (kh, kw, in, out) uniformly from +- 1 / sqrt(out kh kw)."""
    kh, kw, _, out = shape
    bound = 1 / math.sqrt(out * kh * kw)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def materialized(x: jax.Array) -> jax.Array:
    """The same array, which `devices.jit` keeps in memory instead of computing it anew for each of its uses.

    XLA's CPU backend transposes a convolution's input for the gradient of its kernel. Without this it fuses the whole
    chain of normalisations and shortcuts before it into that transpose, at its slow, strided access. Other backends,
    where nothing was measured, are left to fuse as they do.
    """
    return lax.optimization_barrier(x) if cpu.preferred() else x


def depth_to_space(x: jax.Array) -> jax.Array:
    """Spreads the channels of (b, h, w, 4c), ordered (row, column, channel), over squares: (b, 2h, 2w, c)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: tuple[int, int]) -> jax.Array:
    """Cross-correlates x (b, h, w, in) with a kernel (kh, kw, in, out), in the dtype of x.

    The padding, before and behind, holds for both axes.
    """
    if convolution.takes(x, kernel):
        return convolution.conv(x, kernel, stride=stride, padding=(padding, padding))
    kernel = kernel.astype(x.dtype)
    if (*kernel.shape[:2], stride, *padding) == (3, 3, 1, 1, 1) and winograd.pays(x.shape, kernel.shape[-1], x.dtype):
        return winograd.conv3x3(x, kernel)
    sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    outputs = tuple((n + sum(padding) - k) // stride + 1 for n, k in sides)
    # Where the kernel is larger than the map, as on the crops of a patch model, XLA's CPU backend takes over a hundred
    # times as long as the whole matrix, which is small there.
    tiny = math.prod((*x.shape[1:3], *outputs)) < math.prod(kernel.shape[:2]) ** 2
    if tiny and cpu.preferred():
        return _conv_by_matrix(x, kernel, stride=stride, before=padding[0], outputs=outputs)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv_by_matrix(
    x: jax.Array, kernel: jax.Array, *, stride: int, before: int, outputs: tuple[int, int]
) -> jax.Array:
    """`conv` as one product with the matrix from all inputs of an image to all its outputs, good for tiny maps."""
    (b, h, w, c), out = x.shape, kernel.shape[-1]
    matrix = kernel
    for axis, n, m in ((0, h, outputs[0]), (2, w, outputs[1])):  # (kh, kw, ...) to (h, m, kw, ...) to (h, m, w, m, ...)
        padded = jnp.pad(matrix, [(n, n) if i == axis else (0, 0) for i in range(matrix.ndim)])
        starts = [n + before - stride * i for i in range(m)]
        matrix = jnp.stack([lax.slice_in_dim(padded, start, start + n, axis=axis) for start in starts], axis=axis + 1)
    matrix = matrix.transpose(0, 2, 4, 1, 3, 5).reshape(h * w * c, -1)
    return (x.reshape(b, -1) @ matrix).reshape(b, *outputs, out)


def conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles the resolution by a transposed convolution, computed as a sub-pixel convolution (Shi et al., CVPR 2016).

    Equal to ``lax.conv_transpose(x, kernel, (2, 2), ((r, r + 1), (r, r + 1)))`` with r = k // 2, which convolves x with
    zeros between its pixels. Here the four outputs y[2m + p], p in {0, 1}^2, are channels of one dense convolution:
    y[2m + p] = sum_s x[m + s] K[r - p + 2s]. Where r - p + 2s leaves the kernel, the tap is zero.

    Args:
      x: (b, h, w, in)
      kernel: (k, k, in, out), k odd, laid out as in ``nn.ConvTranspose``.

    Returns:
      (b, 2h, 2w, out)
    """
    k, _, c, out = kernel.shape
    r = k // 2
    if k == 1:  # three of four output pixels are zero
        y = conv(x, kernel, padding=(0, 0))
        return depth_to_space(jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, 3 * out))))
    taps, before = (k + 1) // 2, r // 2
    low = 1 - r % 2  # so that pairs of taps begin with the phase p = 1: with p the index in the kernel falls
    pad = (low, 1 - low)
    kernel = jnp.pad(kernel, (pad, pad, (0, 0), (0, 0))).reshape(taps, 2, taps, 2, c, out)[:, ::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(taps, taps, c, 4 * out)
    return depth_to_space(conv(x, kernel, padding=(before, taps - 1 - before)))


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling by 3x3 with stride 2 and padding 1: ``nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))``.

    Each window hands its gradient to the first of its maxima in row-major order.

    Args:
      x: (b, h, w, c)

    Returns:
      (b, ceil(h / 2), ceil(w / 2), c)
    """
    return pooling.max_pool(x) if pooling.takes(x) else _max_pool(x)


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    """`max_pool` whose gradient is computed by shifted slices, where XLA's own would scatter."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _max_pool(x), x


def _max_pool_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    (h, w), (rows, columns) = x.shape[1:3], gradient.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    offsets = [(i, j) for i in range(3) for j in range(3)]
    highest, first = jnp.full_like(gradient, -jnp.inf), jnp.zeros(gradient.shape, jnp.int8)
    for n, (i, j) in enumerate(offsets):
        pixel = padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        highest, first = jnp.maximum(highest, pixel), jnp.where(pixel > highest, jnp.int8(n), first)
    edge = ((0, 0), (0, 1), (0, 1), (0, 0))
    first, gradient = jnp.pad(first, edge, constant_values=len(offsets)), jnp.pad(gradient, edge)

    def shares(parity: tuple[int, int]) -> jax.Array:
        """The gradient of the pixels (2m, 2n) + parity, (b, rows, columns, c): what the windows around hand on."""
        total = 0
        for n, (i, j) in enumerate(offsets):
            if ((i + 1) % 2, (j + 1) % 2) == parity:  # pixel 2m + i - 1 of x is the i-th of window m
                rows_of, columns_of = slice(i == 0, rows + (i == 0)), slice(j == 0, columns + (j == 0))
                total += jnp.where(first[:, rows_of, columns_of] == n, gradient[:, rows_of, columns_of], 0)
        return total

    lines = [jnp.stack([shares((p, q)) for q in (0, 1)], 3) for p in (0, 1)]
    total = jnp.stack(lines, 2).reshape(-1, 2 * rows, 2 * columns, x.shape[-1])[:, :h, :w]
    # Each of its users, sums among them, would compute it anew.
    return (materialized(total),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _linear_upsampling(n: int) -> jax.Array:
    """The (2n, n) matrix of linear interpolation from n to 2n samples whose end points coincide."""
    position = jnp.arange(2 * n) * ((n - 1) / (2 * n - 1))
    return jnp.maximum(0, 1 - jnp.abs(position[:, None] - jnp.arange(n)))


def upsample_bilinear(x: jax.Array) -> jax.Array:
    """Doubles the resolution bilinearly with aligned corners: (b, h, w, c) to (b, 2h, 2w, c), two matrix products."""
    rows, columns = (_linear_upsampling(n).astype(x.dtype) for n in x.shape[1:3])
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x)
    return jnp.einsum("Ww,bhwc->bhWc", columns, x)


class Conv(nn.Module):
    """Square convolution of odd size without bias, padded by half its size: ``nn.Conv`` with the same parameters.

    Parameters are float32; the computation runs in ``dtype``.
    """

    features: int
    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, in) to (b, ceil(h / stride), ceil(w / stride), features)."""
        kernel = self.param("kernel", he_normal_fan_out, (self.size, self.size, x.shape[-1], self.features))
        return conv(materialized(x.astype(self.dtype)), kernel, stride=self.stride, padding=(self.size // 2,) * 2)


class ConvTranspose(nn.Module):
    """Square transposed convolution of odd size, stride 2, without bias: ``nn.ConvTranspose`` with the same parameters.

    Its padding there is (size // 2, size // 2 + 1). Parameters are float32; the computation runs in ``dtype``.
    """

    features: int
    size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, in) to (b, 2h, 2w, features)."""
        kernel = self.param("kernel", uniform_fan_out, (self.size, self.size, x.shape[-1], self.features))
        return conv_transpose(materialized(x.astype(self.dtype)), kernel)


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch's: running averages move by ``momentum`` a step and hold the unbiased variance.

    With ``axis_name`` the statistics in training are those of the global batch. They are computed in at least float32.
    Every channel's scale is ``first_scale`` before the training.
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    first_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises (..., c); with ``train`` by the batch's statistics, updating the collection ``batch_stats``."""
        c = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        scale = self.param("scale", nn.initializers.constant(self.first_scale), (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var, count = self._batch_statistics(x)
            if not self.is_initializing():
                for average, new in ((running_mean, mean), (running_var, var * (count / max(count - 1, 1)))):
                    moved = (1 - self.momentum) * average.value + self.momentum * new
                    average.value = moved.astype(average.value.dtype)
        return sums.scale_centered(x, mean, scale * lax.rsqrt(var + self.epsilon), bias).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance of each channel of the global batch, and over how many values they are taken.

        The variance is the mean square of what the global mean leaves. E[x^2] - E[x]^2 would need one exchange between
        the devices instead of two, but is 20 times too large in float32 at a mean of 100 and a deviation of 0.01.
        """
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        synchronized = self.axis_name is not None and not self.is_initializing()
        count = x.size // x.shape[-1]

        def averaged(total: jax.Array) -> jax.Array:
            return lax.pmean(total / count, self.axis_name) if synchronized else total / count

        mean = averaged(sums.channel_sum(x))
        var = averaged(sums.centered_square_sum(x, mean))
        return mean, var, count * (lax.axis_size(self.axis_name) if synchronized else 1)


class Dropout(nn.Module):
    """Dropout that is also meant for inference: which values are zeroed depends on keys alone.

    Masks are drawn with the random stream ``dropout``.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array | float, examples: jax.Array | None) -> jax.Array:
        """Zeroes values of x (b, ...) with probability `rate` and divides the others by 1 - rate.

        Args:
          x: (b, ...)
          rate: In [0, 1), which may be traced; 0 changes nothing.
          examples: int32 (b,), numbers by which each example draws a mask of its own, wherever it stands in a batch;
            None for one mask that all share.
        """
        key, shape = self.make_rng("dropout"), x.shape[1:]
        if examples is None:
            keep = jax.random.bernoulli(key, 1 - rate, shape)
        else:
            keep = jax.vmap(lambda n: jax.random.bernoulli(jax.random.fold_in(key, n), 1 - rate, shape))(examples)
        return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
