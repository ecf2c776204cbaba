"""Winograd's convolution against the direct one, in values and gradients, and by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxad.models.cpu import winograd
from jaxad.models.layers import Conv, conv


def normal(seed: int, shape: tuple[int, ...], dtype=np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv(x, kernel, padding=(1, 1))


def value_and_gradients(function, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(function, x, kernel)
    return y, *pull(normal(9, y.shape, y.dtype))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (6, 5), (1, 3), (2, 1)])
def test_equals_the_direct_convolution(size: tuple[int, int]) -> None:
    with jax.enable_x64(True):
        x, kernel = normal(0, (2, *size, 3), np.float64), normal(1, (3, 3, 3, 5), np.float64)
        actual = jax.jit(lambda *a: value_and_gradients(winograd.conv3x3, *a))(x, kernel)
        for found, expected in zip(actual, value_and_gradients(direct, x, kernel), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.medium
def test_one_tile_by_hand() -> None:
    """A 2x2 image under a kernel of the numbers 0 to 8: each output is a sum of four products."""
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    by_hand = [[4 * 1 + 5 * 2 + 7 * 3 + 8 * 4, 3 * 1 + 4 * 2 + 6 * 3 + 7 * 4]]
    by_hand += [[1 * 1 + 2 * 2 + 4 * 3 + 5 * 4, 0 * 1 + 1 * 2 + 3 * 3 + 4 * 4]]
    np.testing.assert_array_equal(winograd.conv3x3(x, kernel)[0, :, :, 0], by_hand)


@pytest.mark.slow
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
    traced = jax.make_jaxpr(lambda x, kernel: Conv(128, 3).apply({"params": {"kernel": kernel}}, x))(x, kernel)
    assert "conv_general_dilated" not in str(traced)


def test_pays_only_where_products_take_the_time() -> None:
    assert winograd.pays((64, 14, 14, 256), 256, jnp.float32)
    assert not winograd.pays((64, 56, 56, 64), 64, jnp.float32)  # too few channels
    assert not winograd.pays((64, 14, 14, 256), 64, jnp.float32)
    assert not winograd.pays((1, 16, 16, 256), 256, jnp.float32)  # 64 tiles cannot carry the kernel's transform
    assert not winograd.pays((64, 4, 4, 512), 512, jnp.float32)
    assert not winograd.pays((64, 14, 14, 256), 256, jnp.bfloat16)


WHOLE, SPLIT = PartitionSpec(), PartitionSpec("batch")


@pytest.mark.slow
@pytest.mark.parametrize("specs", [(SPLIT, WHOLE), (WHOLE, SPLIT), (SPLIT, SPLIT)])
def test_gradients_on_eight_devices_equal_one(specs: tuple[PartitionSpec, PartitionSpec]) -> None:
    """With the images split as in training, and with one kernel per device."""
    with jax.enable_x64(True):
        x, kernels = normal(0, (8, 2, 6, 6, 3), np.float64), normal(1, (8, 3, 3, 3, 5), np.float64)
        x, kernels = (a if spec == SPLIT else a[:1] for a, spec in zip((x, kernels), specs, strict=True))

        def total(x: jax.Array, kernels: jax.Array) -> jax.Array:
            return jnp.square(jax.vmap(winograd.conv3x3)(x, kernels)).sum()

        def on_one(x: jax.Array, kernels: jax.Array) -> jax.Array:
            shape = (8, *x.shape[1:]), (8, *kernels.shape[1:])
            return total(*(jnp.broadcast_to(a, to) for a, to in zip((x, kernels), shape, strict=True)))

        def on_eight(x: jax.Array, kernels: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.grad(lambda *a: jax.lax.psum(total(*a), "batch"), argnums=(0, 1))(x, kernels)

        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        mapped = jax.shard_map(on_eight, mesh=mesh, in_specs=specs, out_specs=specs)
        found, expected = jax.jit(mapped)(x, kernels), jax.grad(on_one, argnums=(0, 1))(x, kernels)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)
