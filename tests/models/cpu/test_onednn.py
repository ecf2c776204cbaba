"""oneDNN's convolutions and pooling against float64, and what they are used for."""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxad.models import layers
from jaxad.models.cpu.onednn import convolution, library, native, pooling

pytestmark = pytest.mark.skipif(not library.has_avx512(), reason="oneDNN is not installed, or there is no AVX512")
DTYPES = [
    jnp.float32,
    pytest.param(
        jnp.bfloat16,
        marks=pytest.mark.skipif(not library.multiplies(jnp.bfloat16), reason="the processor has no AVX512-BF16"),
    ),
]
SAME = ((1, 1), (1, 1))


def normal(seed: int, shape: tuple[int, ...], dtype=np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def direct(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: tuple = SAME, groups: int = 1) -> jax.Array:
    axes = ("NHWC", "HWIO", "NHWC")
    options = {"dimension_numbers": axes, "feature_group_count": groups, "precision": "highest"}
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, **options)


def value_and_gradients(function, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(function, x, kernel)
    return y, *pull(normal(9, y.shape, y.dtype))


def wide(array: jax.Array) -> np.ndarray:
    return np.asarray(array, np.float64)


@pytest.mark.medium
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "kernel", "options"), [
    ((2, 14, 15, 32), (3, 3, 32, 48), {"stride": 1, "padding": SAME}),
    ((2, 15, 14, 32), (3, 3, 32, 48), {"stride": 2, "padding": SAME}),
    ((2, 32, 32, 3), (7, 7, 3, 64), {"stride": 2, "padding": ((3, 3), (3, 3))}),
    ((2, 7, 7, 64), (1, 1, 64, 24), {"stride": 2, "padding": ((0, 0), (0, 0))}),
    ((2, 9, 8, 16), (2, 2, 16, 20), {"stride": 1, "padding": ((0, 1), (0, 1))}),
    ((1, 2, 2, 5), (7, 7, 5, 3), {"stride": 1, "padding": ((3, 3), (3, 3))}),
    ((2, 9, 9, 24), (3, 3, 1, 24), {"stride": 2, "padding": ((0, 1), (1, 0)), "groups": 24}),
    ((2, 9, 9, 24), (5, 5, 6, 16), {"stride": 1, "padding": ((2, 2), (2, 2)), "groups": 4}),
    ((0, 8, 8, 4), (3, 3, 4, 4), {"stride": 1, "padding": SAME}),
])  # fmt: skip
def test_convolutions_equal_float64_within_rounding(shape, kernel, options, dtype) -> None:
    """Sums are float32, so only a result that is kept in bfloat16 has its rounding; that of the kernel is not."""
    x, weights = normal(0, shape, dtype), normal(1, kernel, dtype)
    found = value_and_gradients(lambda x, w: convolution.conv(x, w, **options), x, weights.astype(jnp.float32))
    cotangent = normal(9, found[0].shape, dtype)
    with jax.enable_x64(True):
        given = (jnp.asarray(wide(array)) for array in (x, weights))
        y, pull = jax.vjp(lambda x, w: direct(x, w, **options), *given)
        expected = y, *pull(jnp.asarray(wide(cotangent)))
    assert [array.dtype for array in found] == [dtype, dtype, jnp.float32]
    for ours, exact in zip(found, expected, strict=True):
        last_place = 2.0**-8 if ours.dtype == jnp.bfloat16 else 0
        bound = last_place * np.abs(exact) + 4e-6 * np.abs(exact).max(initial=0)
        assert (np.abs(wide(ours) - wide(exact)) <= bound).all()


@pytest.mark.medium
def test_vmap_over_images_kernels_and_both() -> None:
    x, kernels = normal(0, (3, 2, 6, 7, 4)), normal(1, (3, 3, 3, 4, 5))
    for axes in ((0, None), (None, 0), (0, 0)):
        given = tuple(a if axis == 0 else a[0] for a, axis in zip((x, kernels), axes, strict=True))
        found, expected = (
            value_and_gradients(jax.vmap(each, axes), *given)
            for each in (lambda x, w: convolution.conv(x, w, stride=1, padding=SAME), direct)
        )
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(jnp.abs(theirs).max()))
    twice = jax.vmap(jax.vmap(pooling.max_pool))(x[None])
    np.testing.assert_array_equal(twice[0], jnp.stack([layers._max_pool(each) for each in x]))


@pytest.mark.medium
def test_vmap_over_gradients_of_pooling() -> None:
    """Of the gradient, the image, or both."""
    x = normal(0, (3, 2, 6, 7, 4))
    for found, expected in (
        (jax.vmap(jax.grad(lambda x, pool=pool: pool(x).sum()))(x) for pool in (pooling.max_pool, layers._max_pool)),
        (
            jax.vmap(jax.vjp(pool, x[0])[1])(normal(1, (3, 2, 3, 4, 4)))[0]
            for pool in (pooling.max_pool, layers._max_pool)
        ),
        (jax.jacrev(pool)(x[0, :1]) for pool in (pooling.max_pool, layers._max_pool)),
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.medium
def test_gradients_on_eight_devices_equal_one() -> None:
    x, kernel = normal(0, (16, 6, 6, 3)), normal(1, (3, 3, 3, 5))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("batch"), PartitionSpec()

    def loss(conv, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(layers.max_pool(conv(x, kernel))).sum()

    def on_eight(x: jax.Array, kernel: jax.Array) -> jax.Array:
        ours = lambda x, w: convolution.conv(x, w, stride=1, padding=SAME)  # noqa: E731
        return jax.grad(lambda w: lax.psum(loss(ours, x, w), "batch"))(kernel)

    mapped = jax.jit(jax.shard_map(on_eight, mesh=mesh, in_specs=(split, whole), out_specs=whole))
    expected = jax.grad(lambda w: loss(direct, x, w))(kernel)
    np.testing.assert_allclose(mapped(x, kernel), expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_equals_xlas_in_values_and_gradients(dtype) -> None:
    for shape in ((2, 8, 8, 16), (1, 7, 5, 3), (1, 1, 2, 4)):
        ties = jnp.asarray(np.random.default_rng(0).integers(-1, 2, shape), dtype)
        for x in (normal(0, shape, dtype), ties):
            found, expected = (jax.vjp(each, x) for each in (pooling.max_pool, layers._max_pool))
            np.testing.assert_array_equal(wide(found[0]), wide(expected[0]))
            gradient = jnp.asarray(np.random.default_rng(1).integers(-4, 5, expected[0].shape), dtype)
            np.testing.assert_array_equal(wide(found[1](gradient)[0]), wide(expected[1](gradient)[0]))


def test_pooling_passes_over_nan_but_does_not_hide_a_diverged_network() -> None:
    """oneDNN's maximum of NaN alone is the lowest number, which the next layers cannot make plausible again."""
    x = jnp.zeros((1, 8, 8, 16)).at[0, 3, 3].set(jnp.nan)
    np.testing.assert_array_equal(pooling.max_pool(x), jnp.zeros((1, 4, 4, 16)))
    pooled = pooling.max_pool(jnp.full((1, 8, 8, 16), jnp.nan))
    assert not jnp.isfinite(convolution.conv(pooled, normal(0, (3, 3, 16, 16)), stride=1, padding=SAME)).all()


def test_only_dtypes_that_it_knows_are_taken() -> None:
    assert convolution.takes(jnp.ones(1), jnp.ones(1)) and pooling.takes(jnp.ones(1))
    for x, kernel in ((jnp.float16, jnp.float16), (jnp.float32, jnp.bfloat16), (jnp.int32, jnp.int32)):
        assert not convolution.takes(jnp.ones(1, x), jnp.ones(1, kernel))
    with jax.enable_x64(True):
        assert not convolution.takes(jnp.ones(1, jnp.float64), jnp.ones(1, jnp.float64))


def test_an_error_of_onednn_is_told() -> None:
    geometry = convolution._Geometry(1, (1, 1), (1, 1), 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN refused a convolution"):
        x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
        jax.block_until_ready(
            convolution._call(native.FORWARD, geometry, x, kernel, shape=(1, 9, 9, 4), dtype=x.dtype)
        )


UNFINISHED = """
import jax, jax.numpy as jnp
from jaxad.models.layers import conv
kernel = jnp.ones((3, 3, 64, 64))
step = jax.jit(lambda x: conv(conv(x, kernel, padding=(1, 1)), kernel, padding=(1, 1)).sum())
x = jnp.ones((32, 56, 56, 64))
jax.block_until_ready(step(x))
for _ in range(4):
    step(x)
print("busy", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code", "told"), [("", 0, ""), ("raise ValueError('wrong')", 1, "ValueError: wrong")])
def test_a_process_may_end_while_it_computes(end: str, code: int, told: str) -> None:
    done = subprocess.run([sys.executable, "-c", UNFINISHED + end], capture_output=True, timeout=120, text=True)
    assert (done.returncode, done.stdout) == (code, "busy\n") and told in done.stderr


@pytest.mark.slow
def test_a_busy_thread_of_python_does_not_slow_it_down() -> None:
    """It runs without Python's lock, for which each call would wait 5 ms."""
    kernel, x = normal(0, (3, 3, 16, 16)), normal(1, (1, 8, 8, 16))

    @jax.jit
    def forty(x: jax.Array) -> jax.Array:
        for _ in range(40):
            x = convolution.conv(x, kernel, stride=1, padding=SAME) / 16
        return x

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(forty(x))
        return time.perf_counter() - start

    seconds()
    ended = threading.Event()
    busy = threading.Thread(target=lambda: [None for _ in iter(ended.is_set, True)])
    busy.start()
    try:
        assert min(seconds() for _ in range(10)) < 0.05
    finally:
        ended.set()
        busy.join()


@pytest.mark.medium
@pytest.mark.parametrize("files", [None, [], ["text"]])
def test_without_the_library_xla_computes(files, monkeypatch, tmp_path) -> None:
    """Where the package is missing, is another one, or cannot be loaded, which a warning tells."""
    (tmp_path / library._FILE).write_text("no library")

    class File:
        name = library._FILE

        def locate(self):
            return tmp_path / library._FILE

    def found(name: str):
        if files is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return [File() for _ in files]

    monkeypatch.setattr("importlib.metadata.files", found)
    with pytest.warns(UserWarning, match="oneDNN cannot be loaded") if files else contextlib.nullcontext():
        assert library._load.__wrapped__() is None


@pytest.mark.medium
def test_the_environment_is_left_as_it_was() -> None:
    code = "import os; from jaxad.models.cpu.onednn import library; library.load(); "
    code += "print(os.environ.get('OMP_WAIT_POLICY'))"
    for value in (None, "active"):
        given = {name: text for name, text in os.environ.items() if name != "OMP_WAIT_POLICY"}
        given |= {"OMP_WAIT_POLICY": value} if value else {}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=given, text=True, check=True)
        assert done.stdout.strip() == str(value)
