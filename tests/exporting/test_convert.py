"""What ONNX Runtime makes of a graph, against JAX's own values, primitive by primitive."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxad.exporting.convert import to_onnx
from jaxad.exporting.program import tracing
from tests.refusals import refuses

SHAPE = (6, 8, 3)
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
DEEP = RNG.normal(size=(3, 2, 1, 3)).astype(np.float32)
MATRIX = RNG.normal(size=(8, 5)).astype(np.float32)
LOWER = np.tril(RNG.normal(size=(6, 8, 3, 3)) + 3 * np.eye(3)).astype(np.float32)
BANK = RNG.normal(size=(11, 3)).astype(np.float32)
CHANNELS = ("NHWC", "HWIO", "NHWC")


def convolved(x, kernel=KERNEL, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(x[None], kernel, strides, padding, dimension_numbers=CHANNELS, **options)[0]


def normalized(x):
    """A convolution, its normalization, and a shortcut from before it."""
    y = (convolved(x) - np.float32([1, 2, 3, 4])) * np.float32([0.5, 2, 1, -1]) + np.float32([0, 1, 0, 3])
    return jax.nn.relu(y) + convolved(x, KERNEL[:1, :1], padding="VALID") * 2


def summed(x):
    return lax.reduce_window(x, 0.0, lax.add, (3, 3, 1), (1, 2, 1), "SAME")


def highest(x):
    return lax.reduce_window(x, -np.inf, lax.max, (3, 3, 1), (2, 2, 1), ((1, 1), (1, 1), (0, 0)))


def spread(x):
    """Channels become squares of pixels, as behind a sub-pixel convolution."""
    y = convolved(x)
    return y.reshape(6, 8, 2, 2, 1).transpose(0, 2, 1, 3, 4).reshape(12, 16)


def nearest(x):
    """As `jaxad.scoring.nearest_neighbor`: an argmin in each part of a bank, and the closest of these."""
    flat = x.reshape(-1, 3)

    def part(bank):
        squares = ((flat[:, None] - bank) ** 2).sum(-1)
        return squares.min(1), squares.argmin(1)

    squares, found = lax.map(part, BANK.reshape(1, 11, 3).repeat(2, 0) + np.float32([[[0]], [[0.1]]]))
    at = jnp.take_along_axis(found, squares.argmin(0)[None], axis=0)[0]
    return jnp.asarray(BANK)[at]


def scanned(x):
    def step(total, row):
        return total + row, total * row

    return lax.scan(step, x[0], x[1:], reverse=True)


def explained(x):
    """A gradient inside the function, as of GradCAM."""
    y = convolved(x)
    weights = jax.grad(lambda y: jnp.sqrt((y.mean((0, 1)) ** 2).sum() + 1))(y)
    return jax.nn.relu((weights * y).sum(-1))


def dropped(x):
    """Random masks that are the same for every image."""
    keys = jax.random.split(jax.random.key(3), 4)
    passes = jax.vmap(lambda key: jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0))(keys)
    return (passes - passes[:1]).var(axis=0)


FUNCTIONS = {
    "arithmetic": lambda x: (x - 0.5) / (x + 2) * jnp.maximum(x, 0.3) - jnp.minimum(x, MATRIX[0, 0]),
    "functions": lambda x: jnp.exp(-x) + jnp.log(x + 1) + jnp.tanh(x) + jnp.sqrt(x) + lax.rsqrt(x + 1) + abs(x - 0.4),
    "powers": lambda x: x**2 + x**3 + (x + 1) ** -1 + (x + 1) ** 0.5 + jnp.square(x) + jnp.expm1(x) + jnp.log1p(x),
    "sigmoid": lambda x: jax.nn.sigmoid(x) + jax.nn.silu(x) + jax.nn.logsumexp(x, axis=-1, keepdims=True),
    "choices": lambda x: jnp.where((x > 0.5) & ~(x >= 0.9) | (x < 0.1), x, -x) + (x == x[0, 0, 0]) + (x != 0.0),
    "finite": lambda x: jnp.isfinite(jnp.where(x > 0.5, x, np.inf)).astype(jnp.float32),
    "clamp": lambda x: jnp.clip(x, 0.2, 0.7) + jnp.sign(x - 0.5) + jnp.floor(3 * x) - jnp.ceil(3 * x),
    "reductions": lambda x: x.sum(0) + x.mean((0, 1)) + x.max() - x.min((0, 2))[:, None] + x.prod(0),
    "truths": lambda x: (x > 0.1).all(0) * 1.0 + (x > 0.9).any(0),
    "repeated": lambda x: jnp.broadcast_to(x.mean((0, 1)), (5, 3)).sum(0) + jnp.ones((4, 3)).sum(0),
    "places": lambda x: x.argmax(1) - x.argmin(1).astype(jnp.float32),
    "cumulative": lambda x: jnp.cumsum(x, axis=1) + jnp.cumsum(x, axis=0, dtype=jnp.float32),
    "top": lambda x: lax.top_k(x.reshape(-1), 7)[0].mean() + jnp.sort(x, axis=1)[:, :2],
    "convolution": convolved,
    "strides": lambda x: convolved(x, strides=(2, 3), padding=((1, 0), (2, 1))),
    "dilation": lambda x: convolved(x, rhs_dilation=(2, 3)),
    "depthwise": lambda x: convolved(x, DEEP, (2, 1), feature_group_count=3),
    "normalized": normalized,
    "pooling": lambda x: highest(x)[:2] + summed(convolved(x, KERNEL[..., :3]))[:2, :4],
    "spread": spread,
    "products": lambda x: jnp.einsum("hwc,wk->hkc", x, MATRIX) + jnp.einsum("kw,hwc->hkc", MATRIX.T, x),
    "channels": lambda x: jnp.einsum("hwc,cd->hwd", convolved(x), MATRIX[:4]) + x @ MATRIX[:3],
    "both": lambda x: jnp.einsum("hwc,hvc->hwv", x, x + 1),
    "batched": lambda x: jnp.einsum("hwc,wcd->whd", x, LOWER[0]),
    "solve": lambda x: jax.vmap(jax.vmap(lambda f, v: solve_triangular(f, v, lower=True)))(LOWER, x),
    "solve_transposed": lambda x: solve_triangular(LOWER[0, 0], x.reshape(-1, 3).T, lower=True, trans=1),
    "pad": lambda x: jnp.pad(x, ((1, 2), (0, 3), (0, 0)), constant_values=2),
    "symmetric": lambda x: jnp.pad(x, ((3, 2), (2, 1), (0, 0)), mode="symmetric"),
    "joined": lambda x: jnp.concatenate([x, x[:, ::2], jnp.zeros((6, 1, 3)), x[:, ::-1]], axis=1),
    "cut": lambda x: lax.dynamic_slice(x, (2, 3, 0), (3, 3, 3)) + x[1:4, 2:8:2] + jnp.split(x, [3], axis=0)[1][:, :3],
    "windows": lambda x: jax.vmap(lambda a: lax.dynamic_slice(x, (a, 1, 0), (2, 4, 3)))(np.arange(4)),
    "chosen": lambda x: x[..., np.array([2, 0])] + x[np.array([5, 1]), :, :2].transpose(1, 0, 2)[:6, :1],
    "reshapes": lambda x: x.reshape(3, 2, 4, 2, 3).transpose(0, 2, 1, 3, 4).reshape(12, 4, 3).sum(1).reshape(1, 36, 1),
    "numbers": lambda x: x * jnp.arange(8.0)[:, None] + lax.broadcasted_iota(jnp.float32, (6, 8, 3), 0),
    "nearest": nearest,
    "scan": scanned,
    "gradient": explained,
    "dropout": dropped,
}


def converted(function):
    """A function of images in [0, 1] as a model, and as JAX computes it; outputs by their places."""

    def named(image):
        made = jax.tree.leaves(function(image.astype(jnp.float32) / 255))
        return {f"made{n}": leaf.astype(jnp.float32) for n, leaf in enumerate(made)}

    with tracing():
        return to_onnx(named, SHAPE), jax.vmap(named)


def ran(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_jax(name):
    model, function = converted(FUNCTIONS[name])
    onnx.checker.check_model(model, full_check=True)
    for count in (1, 3):
        images = np.random.default_rng(count).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
        expected = function(images)
        found = ran(model, images)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, rtol=2e-5, atol=2e-5, err_msg=key)


def test_a_normalization_is_folded_into_its_convolution():
    """Of y = (conv(x) - mean) scale + bias, by hand: weights and bias of the one convolution that is left."""
    model, _ = converted(lambda x: (convolved(x) - np.float32([1, 2, 3, 4])) * np.float32(2) + np.float32(0.5))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert not [node for node in model.graph.node if node.op_type in ("Add", "Sub", "Mul")]
    np.testing.assert_allclose(constants[conv.input[1]], 2 * KERNEL.transpose(3, 2, 0, 1), rtol=1e-6)
    np.testing.assert_allclose(constants[conv.input[2]], [-1.5, -3.5, -5.5, -7.5], rtol=1e-6)


def test_a_chain_of_convolutions_is_transposed_at_its_ends_alone():
    def chain(x):
        for _ in range(4):
            x = jax.nn.relu(normalized(x)[..., :3])
        return x

    model, _ = converted(chain)
    assert [node.op_type for node in model.graph.node].count("Transpose") == 2


def test_constants_that_are_used_often_are_kept_once():
    model, _ = converted(lambda x: convolved(x) + convolved(x + 1))
    kernels = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [4, 3, 3, 3]]
    assert len(kernels) == 1


@pytest.mark.parametrize(
    "function, word",
    [
        (lambda x: lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, x), "while"),
        (lambda x: lax.dynamic_slice(x, (x.sum().astype(int), 0, 0), (2, 8, 3)), "gather"),
        (lambda x: jnp.linalg.cholesky(x[:3, :3, 0]), "cholesky"),
        (lambda x: jnp.convolve(x[0, :, 0], x[1, :3, 0]), "kernel"),
    ],
)
def test_what_has_no_form_is_named(function, word):
    with refuses(about=None, word=word):
        converted(function)
