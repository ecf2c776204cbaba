"""Winograd's convolution against the direct one, in values and gradients, and by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxad.models import winograd
from jaxad.models.layers import Conv, conv


def normal(seed: int, shape: tuple[int, ...], dtype=np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv(x, kernel, padding=(1, 1))


def value_and_gradients(function, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(function, x, kernel)
    return y, *pull(normal(9, y.shape, y.dtype))


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (6, 5), (1, 3), (2, 1)])
def test_equals_the_direct_convolution(size: tuple[int, int]) -> None:
    with jax.enable_x64(True):
        x, kernel = normal(0, (2, *size, 3), np.float64), normal(1, (3, 3, 3, 5), np.float64)
        actual = jax.jit(lambda *a: value_and_gradients(winograd.conv3x3, *a))(x, kernel)
        for found, expected in zip(actual, value_and_gradients(direct, x, kernel), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_one_tile_by_hand() -> None:
    """A 2x2 image under a kernel of the numbers 0 to 8: each output is a sum of four products."""
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    by_hand = [[4 * 1 + 5 * 2 + 7 * 3 + 8 * 4, 3 * 1 + 4 * 2 + 6 * 3 + 7 * 4]]
    by_hand += [[1 * 1 + 2 * 2 + 4 * 3 + 5 * 4, 0 * 1 + 1 * 2 + 3 * 3 + 4 * 4]]
    np.testing.assert_array_equal(winograd.conv3x3(x, kernel)[0, :, :, 0], by_hand)


@pytest.mark.parametrize("size", [(14, 14), (7, 7)])
def test_wide_convolutions_equal_flax(size: tuple[int, int]) -> None:
    """`Conv` takes Winograd's form for these shapes, within float32 rounding of sums of 1152 terms."""
    x, kernel = normal(0, (8, *size, 128)), normal(1, (3, 3, 128, 128)) / 34
    assert winograd.pays(x.shape, 128, x.dtype)
    plain = nn.Conv(128, (3, 3), padding=((1, 1), (1, 1)), use_bias=False)
    ours, theirs = (
        value_and_gradients(lambda x, kernel, layer=layer: layer.apply({"params": {"kernel": kernel}}, x), x, kernel)
        for layer in (Conv(128, 3), plain)
    )
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * float(jnp.abs(expected).max()))
    assert not np.array_equal(ours[0], theirs[0]), "the direct convolution was computed instead"


def test_pays_only_where_products_take_the_time() -> None:
    assert winograd.pays((64, 14, 14, 256), 256, jnp.float32)
    assert not winograd.pays((64, 56, 56, 64), 64, jnp.float32)  # too few channels
    assert not winograd.pays((64, 14, 14, 256), 64, jnp.float32)
    assert not winograd.pays((1, 16, 16, 256), 256, jnp.float32)  # 64 tiles cannot carry the kernel's transform
    assert not winograd.pays((64, 14, 14, 256), 256, jnp.bfloat16)


def test_kernel_gradient_sums_over_eight_devices() -> None:
    with jax.enable_x64(True):
        x, kernel = normal(0, (8, 6, 6, 3), np.float64), normal(1, (3, 3, 3, 5), np.float64)

        def gradient(x: jax.Array, kernel: jax.Array, axis_name: str | None) -> jax.Array:
            def loss(kernel: jax.Array) -> jax.Array:
                value = jnp.square(winograd.conv3x3(x, kernel)).mean()
                return jax.lax.pmean(value, axis_name) if axis_name else value

            return jax.grad(loss)(kernel)

        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        specs = (PartitionSpec("batch"), PartitionSpec())
        on_eight = jax.shard_map(
            lambda x, kernel: gradient(x, kernel, "batch"), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
        )
        np.testing.assert_allclose(jax.jit(on_eight)(x, kernel), gradient(x, kernel, None), rtol=1e-12)
