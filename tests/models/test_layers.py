"""Each layer against the plain one of Flax, in values and gradients, and against values derived by hand."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from scipy.ndimage import zoom

from jaxad.models.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dropout,
    depth_to_space,
    he_normal_fan_out,
    max_pool,
    uniform_fan_out,
    upsample_bilinear,
)

SIZES = [(8, 8), (7, 10), (6, 5), (1, 3)]


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual: jax.Array, expected: jax.Array, case: str = "") -> None:
    """Equal up to float32 rounding of sums of a few thousand terms."""
    assert actual.shape == expected.shape, case
    largest = max(1, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * largest, err_msg=case)


def assert_same_function(f: Callable, g: Callable, *arguments: jax.Array) -> None:
    """Compares values and the gradients with respect to every argument, for a random cotangent."""
    cotangent = normal(9, jax.eval_shape(g, *arguments).shape)

    @jax.jit
    def value_and_gradients(*arguments: jax.Array) -> list[tuple[jax.Array, ...]]:
        return [(y, *pull(cotangent)) for y, pull in (jax.vjp(h, *arguments) for h in (f, g))]

    for actual, expected in zip(*value_and_gradients(*arguments), strict=True):
        assert_close(actual, expected, f"for {arguments[0].shape}")


def with_kernel(layer: nn.Module) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The layer as a function of its input and its kernel."""
    return lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)


def assert_same_layer(ours: nn.Module, plain: nn.Module, size: tuple[int, int]) -> None:
    """Compares parameters, values and gradients for images of a size."""
    x = normal(0, (2, *size, 3))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert shapes == jax.eval_shape(plain.init, jax.random.key(0), x)
    weights = normal(1, shapes["params"]["kernel"].shape)
    assert_same_function(with_kernel(ours), with_kernel(plain), x, weights)


def plain_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1), (1, 2)])
def test_conv_equals_flax(kernel: int, stride: int) -> None:
    ours = Conv(5, kernel, stride)
    padding = (kernel // 2, kernel // 2)
    plain = nn.Conv(5, (kernel, kernel), (stride, stride), padding=(padding, padding), use_bias=False)
    for size in (*SIZES, (2, 2), (4, 4), (1, 1)):
        assert_same_layer(ours, plain, size)


@pytest.mark.slow
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(("kernel", "features"), [(3, 5), (1, 5), (7, 1), (5, 2)])
def test_conv_transpose_equals_flax(kernel: int, features: int) -> None:
    ours = ConvTranspose(features, kernel)
    padding = (kernel // 2, kernel // 2 + 1)
    plain = nn.ConvTranspose(features, (kernel, kernel), (2, 2), padding=(padding, padding), use_bias=False)
    for size in SIZES:
        assert_same_layer(ours, plain, size)


@pytest.mark.usefixtures("formulation")
def test_conv_transpose_by_hand() -> None:
    """One pixel spreads the kernel around position 2m, in the order of a correlation with the dilated input."""
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 1, 0].set(1)
    kernel = jnp.arange(1.0, 10).reshape(3, 3, 1, 1)
    y = ConvTranspose(1, 3).apply({"params": {"kernel": kernel}}, x)[0, :, :, 0]
    np.testing.assert_array_equal(y, [[0, 0, 0, 0], [0, 9, 8, 7], [0, 6, 5, 4], [0, 3, 2, 1]])


@pytest.mark.slow
@pytest.mark.usefixtures("formulation")
def test_max_pool_equals_flax_and_breaks_ties_as_it() -> None:
    for size in SIZES:
        ties = jnp.asarray(np.random.default_rng(0).integers(-1, 2, (2, *size, 3)), jnp.float32)
        for x in (normal(0, (2, *size, 3)), ties):
            assert_same_function(max_pool, plain_pool, x)


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_max_pool_by_hand() -> None:
    x = jnp.asarray([[1.0, 5, 2], [5, 0, 3], [4, 4, 9]])[None, :, :, None]
    y, pull = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[5, 5], [5, 9]])
    gradient = jnp.asarray([[1.0, 10], [100, 1000]])[None, :, :, None]
    np.testing.assert_array_equal(pull(gradient)[0][0, :, :, 0], [[0, 11, 0], [100, 0, 0], [0, 0, 1000]])


def test_depth_to_space_by_hand() -> None:
    x = normal(0, (2, 2, 3, 12))
    y = depth_to_space(x)
    assert y.shape == (2, 4, 6, 3)
    square = np.concatenate([y[1, 2, 4], y[1, 2, 5], y[1, 3, 4], y[1, 3, 5]])
    np.testing.assert_array_equal(square, x[1, 1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_upsampling_equals_scipy(size: tuple[int, int]) -> None:
    x = normal(0, (2, *size, 3))
    expected = zoom(np.asarray(x, np.float64), (1, 2, 2, 1), order=1, mode="nearest")
    assert_close(upsample_bilinear(x), jnp.asarray(expected, jnp.float32))


def test_upsampling_by_hand() -> None:
    y = upsample_bilinear(jnp.asarray([0.0, 3, 9]).reshape(1, 1, 3, 1))  # positions 0, 0.4, 0.8, 1.2, 1.6, 2
    np.testing.assert_allclose(y[0, 0, :, 0], [0, 1.2, 2.4, 4.2, 6.6, 9], rtol=1e-6)


@pytest.mark.slow
def test_kernels_are_drawn_with_the_stated_spread() -> None:
    he = np.asarray(he_normal_fan_out(jax.random.key(0), (3, 3, 64, 128)))
    assert abs(he.std() / np.sqrt(2 / (128 * 9)) - 1) < 0.01
    uniform = np.asarray(uniform_fan_out(jax.random.key(0), (7, 7, 64, 16)))
    bound = 1 / np.sqrt(16 * 49)
    assert 0.999 * bound < uniform.max() <= bound
    assert -bound <= uniform.min() < -0.999 * bound
    assert abs(uniform.std() / (bound / np.sqrt(3)) - 1) < 0.01


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_batch_norm_by_hand() -> None:
    """Values 1, 2, 3, 6 have mean 3, biased variance 3.5 and unbiased variance 14 / 3."""
    x = jnp.asarray([1.0, 2, 3, 6]).reshape(2, 2, 1, 1)
    variables = {
        "params": {"scale": jnp.asarray([2.0]), "bias": jnp.asarray([1.0])},
        "batch_stats": {"mean": jnp.asarray([10.0]), "var": jnp.asarray([20.0])},
    }
    y, updated = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel(), 1 + 2 * (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.9 * 10 + 0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 * 20 + 0.1 * 14 / 3], rtol=1e-6)
    y = BatchNorm().apply(variables, x, train=False)
    np.testing.assert_allclose(y.ravel(), 1 + 2 * (np.array([1, 2, 3, 6]) - 10) / np.sqrt(20 + 1e-5), rtol=1e-6)


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_batch_norm_equals_flax() -> None:
    variables = {"batch_stats": {"mean": jnp.zeros(7), "var": jnp.ones(7)}}

    def function(layer: nn.Module, **mode: bool) -> Callable:
        def apply(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            params = {"params": {"scale": scale, "bias": bias}}
            return layer.apply(variables | params, x, mutable=["batch_stats"], **mode)[0]

        return apply

    ours, plain = function(BatchNorm(), train=True), function(nn.BatchNorm(use_running_average=False, epsilon=1e-5))
    assert_same_function(ours, plain, 3 + 2 * normal(0, (4, 5, 6, 7)), normal(1, (7,)), normal(2, (7,)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_batch_norm_is_right_far_from_zero(devices: int) -> None:
    """At a mean of 100 and a deviation of 0.01, E[x^2] - E[x]^2 in float32 is up to 20 times the variance.

    The devices' own means differ too, by more than the deviation.
    """
    x = np.random.default_rng(0).normal(100, 0.01, (8, 32, 32, 4)) + 0.1 * np.arange(8)[:, None, None, None]
    x[..., 0] = x[0, ..., 0]  # this channel is the same on all devices
    x = x.astype(np.float32)
    variables = BatchNorm().init(jax.random.key(0), x[:1], train=True)
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("batch")

    def apply(x: jax.Array) -> tuple[jax.Array, dict]:
        return BatchNorm("batch", momentum=1.0).apply(variables, x, train=True, mutable=["batch_stats"])

    y, updated = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=split, out_specs=(split, whole)))(x)
    wide = x.astype(np.float64)
    var = wide.var((0, 1, 2))
    found = updated["batch_stats"]
    np.testing.assert_allclose(found["mean"], wide.mean((0, 1, 2)), rtol=2e-7)
    np.testing.assert_allclose(found["var"], wide.var((0, 1, 2), ddof=1), rtol=1e-4)
    # What is left is the rounding of the mean itself, 2e-7 of 100.
    np.testing.assert_allclose(y, (wide - wide.mean((0, 1, 2))) / np.sqrt(var + 1e-5), atol=2e-5 / np.sqrt(var.min()))


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_batch_norm_takes_statistics_in_float32() -> None:
    """In bfloat16 a sum of 4096 ones would stop at 256."""
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16).at[0, ::2].set(3)
    variables = BatchNorm().init(jax.random.key(0), x, train=True)
    y, updated = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(np.unique(y.astype(jnp.float32)), [-1, 1], rtol=1e-2)


def thinned(x: jax.Array, rate: jax.Array | float, examples: list[int] | None = None, key: int = 0) -> jax.Array:
    numbers = None if examples is None else jnp.asarray(examples, jnp.int32)
    return Dropout().apply({}, x, rate, numbers, rngs={"dropout": jax.random.key(key)})


def test_dropout_zeroes_and_scales() -> None:
    """Of 20,000 values a share of 0.3 with a standard deviation of 0.003; the mean stays."""
    y = np.asarray(thinned(jnp.full((1, 100, 200), 7.0), 0.3))
    assert abs((y == 0).mean() - 0.3) < 0.015
    np.testing.assert_allclose(y[y != 0], 10, rtol=1e-6)
    assert abs(y.mean() - 7) < 0.15


@pytest.mark.medium
@pytest.mark.parametrize("examples", [None, [4, 9]])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_of_rate_zero_changes_nothing(examples: list[int] | None, dtype: jnp.dtype) -> None:
    x = normal(0, (2, 30, 40)).astype(dtype)
    y = jax.jit(lambda rate: thinned(x, rate, examples))(0.0)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, x)


@pytest.mark.medium
def test_dropout_masks_are_shared_or_of_the_example() -> None:
    """Without numbers all have one mask; with them each its own, wherever it stands and whoever stands beside it."""
    ones = jnp.ones((4, 6, 50))
    shared = np.asarray(thinned(ones, 0.5))
    assert all((mask == shared[0]).all() for mask in shared)
    np.testing.assert_array_equal(thinned(ones[:1], 0.5)[0], shared[0])
    own, moved = (np.asarray(thinned(ones, 0.5, examples)) for examples in ([7, 8, 7, 1000], [1000, 3, 8, 7]))
    np.testing.assert_array_equal(own[0], own[2])
    np.testing.assert_array_equal(own[[3, 1, 2]], moved[[0, 2, 3]])
    for one, other in [(own[0], own[1]), (own[0], own[3]), (own[1], moved[1])]:
        assert 0.3 < (one != other).mean() < 0.7


@pytest.mark.medium
@pytest.mark.parametrize("examples", [None, [0, 1]])
def test_dropout_masks_are_of_the_key(examples: list[int] | None) -> None:
    ones = jnp.ones((2, 6, 50))
    first, again, other = (np.asarray(thinned(ones, 0.5, examples, key)) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert all(0.3 < (one != another).mean() < 0.7 for one, another in zip(first, other, strict=True))


def test_the_gradient_of_dropout_is_its_mask() -> None:
    x = normal(0, (2, 50)) + 10  # nowhere zero
    y, pull = jax.vjp(lambda x: thinned(x, 0.25), x)
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0], y / x, rtol=1e-6)
    assert 0 < (y == 0).sum() < y.size


class Tiny(nn.Module):
    """Every layer once, with synchronised statistics."""

    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(BatchNorm(self.axis_name)(Conv(4, 7, 2, dtype=x.dtype)(x), train=True))
        x = ConvTranspose(4, 3, dtype=x.dtype)(max_pool(x)) + ConvTranspose(4, 1, dtype=x.dtype)(max_pool(x))
        return upsample_bilinear(nn.relu(BatchNorm(self.axis_name)(x, train=True)))


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_eight_devices_equal_one() -> None:
    """Loss, gradients and running statistics of a batch split over devices are those of the whole batch."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(np.arange(8)[:, None, None, None], 1, (8, 12, 12, 3)))
        target = jnp.asarray(np.random.default_rng(1).standard_normal((8, 12, 12, 4)))
        variables = jax.jit(Tiny("batch").init)(jax.random.key(0), x[:1])
        variables = jax.tree.map(lambda v: v.astype(jnp.float64), variables)

        def loss_and_gradient(axis_name: str | None) -> Callable:
            def loss(params: dict, x: jax.Array, target: jax.Array) -> tuple[jax.Array, dict]:
                y, updated = Tiny(axis_name).apply(variables | {"params": params}, x, mutable=["batch_stats"])
                value = jnp.square(y - target).mean()
                return (jax.lax.pmean(value, axis_name) if axis_name else value), updated

            return jax.value_and_grad(loss, has_aux=True)

        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        whole, split = PartitionSpec(), PartitionSpec("batch")
        on_eight = jax.shard_map(loss_and_gradient("batch"), mesh=mesh, in_specs=(whole, split, split), out_specs=whole)
        actual = jax.jit(on_eight)(variables["params"], x, target)
        expected = jax.jit(loss_and_gradient(None))(variables["params"], x, target)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), actual, expected)


def centered(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """BatchNorm in training, as its paper writes it."""
    mean = x.mean((0, 1, 2))
    return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean((0, 1, 2)) + 1e-5) * scale + bias


def with_scale(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": bias, "var": bias}}
    return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0]


def interpolated(x: jax.Array) -> jax.Array:
    for axis in (1, 2):
        position = jnp.linspace(0, x.shape[axis] - 1, 2 * x.shape[axis])
        first = jnp.minimum(position.astype(int), x.shape[axis] - 2)
        share = (position - first).reshape([-1 if i == axis else 1 for i in range(4)])
        x = (1 - share) * jnp.take(x, first, axis) + share * jnp.take(x, first + 1, axis)
    return x


def transposed(features: int, kernel: int) -> tuple:
    padding = ((kernel // 2, kernel // 2 + 1),) * 2
    plain = nn.ConvTranspose(features, (kernel, kernel), (2, 2), padding=padding, use_bias=False)
    return ConvTranspose(features, kernel), plain, [(kernel, kernel, 24, features)], 0


# Each layer of the networks with parameters, the plain function that it is, and the shapes of both one's arguments; and
# how often bfloat16 rounds on the way, beside the result.
LAYERS = {
    "3x3 convolution": (Conv(16, 3), nn.Conv(16, (3, 3), use_bias=False), [(3, 3, 24, 16)], 0),
    "7x7 convolution of stride 2": (
        Conv(16, 7, 2), nn.Conv(16, (7, 7), (2, 2), padding=((3, 3), (3, 3)), use_bias=False), [(7, 7, 24, 16)], 0,
    ),
    "1x1 convolution": (Conv(16, 1), nn.Conv(16, (1, 1), use_bias=False), [(1, 1, 24, 16)], 0),
    "3x3 transposed convolution": transposed(8, 3),
    "1x1 transposed convolution": transposed(8, 1),
    "7x7 transposed convolution": transposed(1, 7),
    "batch normalization": (with_scale, centered, [(24,), (24,)], 2),  # gradients by the mean and by the variance
    "max pooling": (max_pool, plain_pool, [], 3),  # a pixel's gradient is a sum over up to four windows
    "bilinear upsampling": (upsample_bilinear, interpolated, [], 3),  # both weights, and what is between them
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_of_every_layer_equal_float64(formulation: str, name: str, dtype: jnp.dtype) -> None:
    """To the rounding of what is returned in bfloat16, of what is between, and of float32 sums; parameters are float32.

    XLA's own convolutions return the gradient of a kernel in the dtype of the images, so there it is rounded too.
    """
    ours, plain, shapes, roundings = LAYERS[name]
    if isinstance(ours, nn.Module):
        ours, plain = with_kernel(ours.clone(dtype=dtype)), with_kernel(plain)
    x = normal(0, (4, 12, 10, 24)).astype(dtype)
    given = [normal(1 + i, shape).astype(dtype).astype(jnp.float32) for i, shape in enumerate(shapes)]
    cotangent = normal(9, jax.eval_shape(ours, x, *given).shape).astype(dtype)

    @jax.jit
    def value_and_gradients(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(ours, *arguments)
        return y, *pull(cotangent)

    found = value_and_gradients(x, *given)
    assert [array.dtype for array in found] == [dtype, dtype, *[jnp.float32] * len(given)]
    with jax.enable_x64(True):
        y, pull = jax.vjp(plain, *(jnp.asarray(np.float64(array)) for array in (x, *given)))
        expected = [np.asarray(array) for array in (y, *pull(jnp.asarray(np.float64(cotangent))))]
    for number, (array, exact) in enumerate(zip(found, expected, strict=True)):
        of_kernel = number >= 2 and formulation != "onednn" and "normalization" not in name
        rounded = 2.0**-8 if array.dtype == jnp.bfloat16 or (dtype == jnp.bfloat16 and of_kernel) else 0
        between = roundings * 2.0**-8 if dtype == jnp.bfloat16 else 0
        bound = rounded * np.abs(exact) + (between + 1e-5) * np.abs(exact).max()
        assert (np.abs(np.float64(array) - exact) <= bound).all(), number
