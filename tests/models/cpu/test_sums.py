"""Sums in parts against NumPy in float64, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxad.models.cpu import sums
from jaxad.runtime import devices

SHAPES = [(1,), (7,), (1, 3), (64, 1), (65, 3), (767, 2), (768, 5), (769, 4), (5, 33, 31, 6), (2, 144, 1), (9217, 3)]


def values(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 1, shape).astype(np.float32)


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_right(shape: tuple[int, ...]) -> None:
    x = values(shape)
    wide = x.astype(np.float64)

    @devices.jit
    def call(x):
        return sums.channel_sum(x), sums.total(x), sums.mean(x), sums.norm({"a": x, "b": x[:1]})

    found = call(x)
    expected = wide.sum(tuple(range(wide.ndim - 1))), wide.sum(), wide.mean()
    assert found[0].shape == (shape[-1],)
    for one, other in zip(found, (*expected, np.sqrt((wide**2).sum() + (wide[:1] ** 2).sum())), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.medium
def test_many_small_numbers_are_not_lost() -> None:
    """One chain of additions in float32 stops at 2^24 = 16,777,216."""
    count = 2**24 + 2**21
    assert float(sums.channel_sum(jnp.ones((count, 1)))[0]) == count


@pytest.mark.usefixtures("formulation")
def test_the_norm_of_single_numbers() -> None:
    assert float(sums.norm((jnp.float32(3), {"x": jnp.float32(-4)}))) == 5


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("shape", [(2, 3), (800, 3)])
def test_the_gradient_of_a_sum_is_one_everywhere(shape: tuple[int, ...]) -> None:
    weights = jnp.arange(1.0, 4.0)
    gradient = jax.grad(lambda x: (weights * sums.channel_sum(x)).sum())(values(shape))
    np.testing.assert_array_equal(gradient, np.broadcast_to(weights, shape))


@pytest.mark.usefixtures("formulation")
def test_sums_of_stacked_arrays() -> None:
    x = values((3, 800, 2))
    np.testing.assert_allclose(jax.vmap(sums.channel_sum)(x), x.astype(np.float64).sum(1), rtol=1e-6)


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("device_count", [1, 8])
def test_scale_centered_has_the_gradients_of_its_formula(device_count: int, dtype: jnp.dtype) -> None:
    x, weights = values((8, 100, 3)).astype(dtype), values((8, 100, 3))
    channels = jnp.array([3.0, 2.9, 3.1]), jnp.array([0.5, -2.0, 1.0]), jnp.array([0.1, 0.2, 0.3])
    mesh = jax.make_mesh((device_count,), ("batch",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("batch"), PartitionSpec()

    def gradients(function):
        def loss(x, channels, weights):
            return jax.lax.psum((function(x, *channels).astype(jnp.float32) * weights).sum(), "batch")

        mapped = jax.shard_map(
            jax.value_and_grad(loss, argnums=(0, 1)),
            mesh=mesh,
            in_specs=(split, whole, split),
            out_specs=(whole, (split, whole)),
        )
        return jax.jit(mapped)(x, channels, weights)

    found = gradients(sums.scale_centered)
    expected = gradients(lambda x, mean, factor, shift: (x - mean) * factor + shift)
    assert found[1][0].dtype == dtype
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), rtol=1e-4, atol=1e-3)
