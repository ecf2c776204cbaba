"""One device and eight: the same synthetic images, the same statistics, the same step."""

import functools
import math
import os
import platform
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxad.methods.method import Hooks, Method
from jaxad.models.encoder_decoder import EncoderDecoder
from jaxad.models.layers import Conv
from jaxad.runtime import devices
from jaxad.training.step import Shared, TrainState, init_state, make_step
from tests import tiny
from tests.parts import ROOT, one_step

BATCH, SIDE, SEED = 8, 16, 3
# Means over a batch's pixels are sums of 2,048 numbers, whose order differs; their rounding errors add up like a random
# walk. In float64 one and eight devices agree to 1e-9 (see the twenty steps).
ROUNDING = np.sqrt(BATCH * SIDE * SIDE) * np.finfo(np.float32).eps
OPTIMIZERS = {"sgd": optax.sgd(0.1), "adam": optax.adam(1e-3)}


def batch_of(step: int, *, side: int = SIDE, dtype=np.float32) -> dict[str, np.ndarray]:
    """Eight random images with labels, at positions of the stream that a step would have."""
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (BATCH, side, side, 3)).astype(dtype),
        "label": rng.random((BATCH, side, side)).astype(dtype),
        "index": np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32),
    }


def run(method: Method, optimizer, device_count: int, *, steps: int = 1, side: int = SIDE, dtype=np.float32):
    """Trains on `device_count` devices; returns states and metrics of every step on the host, the fresh state first."""
    mesh = devices.make_mesh(device_count)
    state = init_state(method, optimizer, np.zeros((side, side, 3), np.uint8), seed=SEED)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
    state = state._replace(params=params, opt_state=optimizer.init(params))
    state = devices.replicate(state, mesh)
    step = one_step(make_step(method, optimizer, lambda step: 0.0 * step), mesh, seed=SEED)
    states, found = [devices.to_host(state)], []
    for number in range(steps):
        batch = devices.split(batch_of(number, side=side, dtype=dtype), mesh)
        state, metrics = step(state, batch)
        states.append(devices.to_host(state))
        found.append(devices.to_host(metrics))
    return states, found


def assert_close(one, other, *, atol: float, rtol: float = 0.0) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def largest(tree) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def subtract(one, other):
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, one, other)


@pytest.mark.medium
@pytest.mark.parametrize("home", [None, "/dev/null"], ids=["none", "not writable"])
def test_a_user_without_a_home_has_no_compilation_cache(home):
    """As in a container whose user id has no name; the programs work without."""
    program = "import os; from jaxad.runtime import devices; os.getuid = lambda: 54321; "
    program += "devices.use_compilation_cache(); import jax; print(jax.config.jax_compilation_cache_dir)"
    left = {name: value for name, value in os.environ.items() if name not in ("HOME", "JAX_COMPILATION_CACHE_DIR")}
    left |= {"HOME": home} if home else {}
    result = subprocess.run([sys.executable, "-c", program], env=left, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "None\n", "")


def test_meshes_hold_the_devices_asked_for() -> None:
    assert devices.make_mesh().size == 8
    assert devices.make_mesh(1).size == 1
    assert devices.make_mesh(3).axis_names == (devices.AXIS,)


def test_prefetch_keeps_order_and_splits_over_the_devices() -> None:
    mesh = devices.make_mesh(8)
    calls = ({"x": np.arange(16, dtype=np.int32).reshape(2, 8) + 16 * n} for n in range(5))
    found = list(devices.prefetch(calls, mesh, ahead=3))
    assert [int(call["x"][0, 0]) for call in found] == [0, 16, 32, 48, 64]
    assert found[0]["x"].addressable_shards[5].data.tolist() == [[5], [13]]


def test_prefetch_reads_no_further_than_ahead() -> None:
    read = []

    def batches():
        for n in range(6):
            read.append(n)
            yield {"x": np.full((1, 8), n)}

    fed = devices.prefetch(batches(), devices.make_mesh(8), ahead=2)
    assert int(next(fed)["x"][0, 0]) == 0
    assert read == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("device_count", [1, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 10])
def test_a_padded_call_gives_a_row_for_each_row(device_count: int, count: int) -> None:
    """Ten rows are asked for: ten on one device, sixteen on eight; what fills them up is zero and is cut off."""
    mesh, seen = devices.make_mesh(device_count), []

    @jax.jit
    def call(weights, rows):
        jax.debug.callback(lambda *leaves: seen.append(leaves), rows["x"], rows["deep"][0])
        return {"scaled": weights * rows["x"], "pair": (rows["deep"][0].sum((1, 2)), rows["deep"][0] + 1)}

    x, y = np.arange(1, count + 1, dtype=np.int32), np.full((count, 2, 3), 7, np.uint8)
    weights = devices.replicate(np.float32(0.5), mesh)
    made = devices.call_padded(call, weights, {"x": x, "deep": [y]}, mesh, batch=10)
    assert jax.tree.structure(made) == jax.tree.structure({"scaled": 0, "pair": (0, 0)})
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(made))
    np.testing.assert_array_equal(made["scaled"], np.arange(1, count + 1) / 2)
    np.testing.assert_array_equal(made["pair"][0], np.full(count, 42))
    np.testing.assert_array_equal(made["pair"][1], np.full((count, 2, 3), 8))
    jax.effects_barrier()
    ((found_x, found_y),) = seen
    padding = (10 if device_count == 1 else 16) - count
    assert found_x.tolist() == [*x, *[0] * padding] and found_x.dtype == np.int32
    assert found_y[:count].all() and found_y.shape == (count + padding, 2, 3) and not found_y[count:].any()
    assert found_y.dtype == np.uint8


def test_padded_calls_split_the_rows_and_compile_once() -> None:
    mesh, found = devices.make_mesh(8), []

    @jax.jit
    def call(weights, rows):
        jax.debug.inspect_array_sharding(rows, callback=found.append)
        return rows

    for count in (3, 8, 9):
        rows = np.ones((count, 2), np.float32)
        assert devices.call_padded(call, None, rows, mesh, batch=9).shape == (count, 2)
    assert call._cache_size() == 1
    assert [sharding.shard_shape((16, 2)) for sharding in found] == [(2, 2)]


def watched(base: Method) -> Method:
    """The method with a metric that holds the images of both steps as the loss sees them, by position in the stream."""

    def loss(params, batch_stats, batch, key):
        value, (batch_stats, metrics) = base.loss(params, batch_stats, batch, key)
        # The mean over devices of images scattered to their places, times their number, is exact for 1 and 8.
        places = jnp.zeros((2 * BATCH, SIDE, SIDE, 3)).at[batch["index"]].set(batch["image"])
        return value, (batch_stats, metrics | {"seen": places * jax.lax.axis_size(devices.AXIS)})

    return base._replace(loss=loss)


@functools.cache
def two_steps(name: str, device_count: int):
    """Two steps in float32 of the tiny method."""
    return run(watched(tiny.make()), OPTIMIZERS[name], device_count, steps=2)


@pytest.mark.slow
def test_synthetic_images_do_not_depend_on_the_devices() -> None:
    (_, ones), (_, eights) = two_steps("sgd", 1), two_steps("sgd", 8)
    noises = []
    for step, (one, eight) in enumerate(zip(ones, eights, strict=True)):
        np.testing.assert_array_equal(one["seen"], eight["seen"])
        noise = one["seen"][step * BATCH :][:BATCH] - batch_of(step)["image"]
        assert (noise.min(), noise.max()) == (-16, 15)
        noises.append(noise.reshape(BATCH, -1))
    # Every example of every step has noise of its own.
    assert np.abs(np.corrcoef(np.concatenate(noises)) - np.eye(2 * BATCH)).max() < 0.2


@pytest.mark.parametrize("device_count", [1, 8])
def test_gradient_is_that_of_the_mean_loss_by_hand(device_count: int) -> None:
    """loss = mean(w x): with w = 2, x = 0 ... 7 and rate 0.5 the step leads to 2 - 0.5 * 3.5 = 0.25."""
    method = Method(
        init=None,
        loss=lambda params, stats, batch, key: ((params["w"] * batch["x"]).mean(), (stats, {"top": batch["x"].max()})),
        fit=None,
        score=None,
    )
    mesh, optimizer = devices.make_mesh(device_count), optax.sgd(0.5)
    params = {"w": jnp.float32(2)}
    state = devices.replicate(TrainState(jnp.int32(0), params, {}, optimizer.init(params)), mesh)
    step = one_step(make_step(method, optimizer, lambda step: step + 0.25), mesh)
    batch = {"x": np.arange(8, dtype=np.float32), "index": np.arange(8, dtype=np.int32)}
    state, metrics = step(state, devices.split(batch, mesh))
    assert float(state.params["w"]) == 0.25
    assert int(state.step) == 1
    assert float(metrics["loss"]) == 7.0
    assert float(metrics["top"]) == (7.0 if device_count == 1 else 3.5)  # other metrics are means over devices
    assert float(metrics["learning_rate"]) == 0.25


def test_batch_statistics_are_the_global_batchs() -> None:
    states, metrics = two_steps("sgd", 8)
    kernel = states[0].params["conv1"]["kernel"].astype(np.float64)
    images = metrics[0]["seen"][:BATCH].astype(np.float64) / 255
    images = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    features = np.einsum("bhwcij,ijco->bhwo", windows, kernel).reshape(-1, 8)
    found = states[1].batch_stats["bn"]
    np.testing.assert_allclose(found["mean"], 0.1 * features.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * features.var(0, ddof=1), rtol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_step_in_float32_on_one_and_eight_devices(name: str) -> None:
    (one, metrics_one), (eight, metrics_eight) = two_steps(name, 1), two_steps(name, 8)
    assert_close(one[0], eight[0], atol=0)
    assert_close(one[1], eight[1], atol=1e-6)
    assert_close(metrics_one[0], metrics_eight[0], atol=0, rtol=ROUNDING)
    assert largest(subtract(one[1].params, one[0].params)) > 5e-4  # the step is far larger than the tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_in_float64_on_one_and_eight_devices(name: str) -> None:
    with jax.enable_x64(True):
        method = tiny.make(dtype=jnp.float64)._replace(hooks=Hooks())
        made = [run(method, OPTIMIZERS[name], n, steps=20, dtype=np.float64) for n in (1, 8)]
    (one, metrics_one), (eight, metrics_eight) = made
    assert_close(metrics_one, metrics_eight, atol=1e-9)
    assert one[-1].params["conv1"]["kernel"].dtype == np.float64
    assert one[-1].batch_stats["bn"]["var"].dtype == np.float64
    assert_close(one[-1], eight[-1], atol=1e-9)
    assert largest(subtract(one[-1].params, one[0].params)) > 5e-3


@pytest.mark.slow
def test_first_step_of_the_encoder_decoder_on_one_and_eight_devices() -> None:
    """Adam divides by |g|: where the gradient is rounding noise so is the direction; there the moment is judged."""
    model = EncoderDecoder(axis_name=devices.AXIS)

    def loss(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        stages, updated = model.apply(variables, batch["image"] / 255, train=True, mutable=["batch_stats"])
        value = optax.sigmoid_binary_cross_entropy(stages["logits"], batch["label"]).mean()
        return value, (updated["batch_stats"], {})

    method = Method(
        lambda key, x: model.init(key, x, train=False), loss, None, None, hooks=Hooks(device_augment=tiny.add_noise)
    )
    (before, one), (_, eight) = (run(method, OPTIMIZERS["adam"], n, side=64)[0] for n in (1, 8))
    moments = [state.opt_state[0].mu for state in (one, eight)]
    assert largest(subtract(*moments)) < 0.1 * 1e-6  # Adam's first moment is a tenth of the gradient, what SGD applies
    for a, b in zip(*map(jax.tree.leaves, (one.batch_stats, eight.batch_stats)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    shares = []
    trees = *moments, one.params, eight.params, before.params
    for moment, other, a, b, old in zip(*map(jax.tree.leaves, trees), strict=True):
        noise = np.abs(moment - other).max()
        assert noise < 3e-5 * np.abs(moment).max()
        clear = np.abs(moment) > 1000 * noise  # so that the direction is known to 1e-3, of a rate of 1e-3
        np.testing.assert_allclose(a[clear], b[clear], rtol=0, atol=1e-6)
        assert np.abs(a - old)[clear].max() > 9e-4
        shares.append(clear.mean())
    assert np.mean(shares) > 0.9


COLLECTIVES = "all-reduce|all-gather|reduce-scatter|collective-permute|collective-broadcast|all-to-all"


def collectives(program: str) -> list[tuple[str, list[int], list[list[int]]]]:
    """The collectives of a compiled program: kind, sizes of what is sent, and the groups of devices."""
    found = []
    for kind in re.finditer(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(.*?replica_groups=(\S+?),? ", program):
        shapes = re.findall(r"f32\[([\d,]*)\]", kind[1])
        sizes = [math.prod(int(side) for side in shape.split(",") if side) for shape in shapes]
        found.append((kind[2], sizes, groups(kind[3])))
    return found


def groups(text: str) -> list[list[int]]:
    """Groups of devices in either spelling of XLA: `{{0,1},{2,3}}`, or all of a mesh, `mesh['batch'=4]`."""
    if mesh := re.fullmatch(r"mesh\['batch'=(\d+)\]", text):
        return [list(range(int(mesh[1])))]
    assert re.fullmatch(r"\{(\{\d+(,\d+)*\},?)+\}", text), text
    return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def test_groups_of_devices_are_read_in_both_spellings() -> None:
    assert groups("{{0,1,2,3}}") == groups("mesh['batch'=4]") == [[0, 1, 2, 3]]
    assert groups("{{0,1},{2,3}}") == [[0, 1], [2, 3]]


@pytest.mark.slow
@pytest.mark.parametrize("device_count", [1, 2, 4, 8])
def test_a_step_reduces_the_gradient_once_and_batch_statistics(device_count: int) -> None:
    """Weak scaling: the same four all-reduces of the same sizes on any number of devices, and nothing else.

    Mean and then variance of BatchNorm's 8 channels forward, and backward the gradients of what scales and shifts them;
    and in one piece the gradient of the kernels (3 * 3 * 3 * 8 and 3 * 3 * 8 * 1), the loss and the method's metric.
    The gradients of BatchNorm's own parameters are made of the sums that its statistics' gradients need.
    """
    mesh, method, optimizer = devices.make_mesh(device_count), tiny.make(), optax.sgd(0.1)
    state = init_state(method, optimizer, np.zeros((SIDE, SIDE, 3), np.uint8), seed=SEED)
    step = devices.compile_train_steps(make_step(method, optimizer, lambda step: 0.0 * step), mesh)
    rows = {name: np.repeat(rows, device_count, axis=0)[None] for name, rows in batch_of(0).items()}
    (batch,) = devices.prefetch([rows], mesh)
    program = step.lower(devices.replicate(state, mesh), batch, Shared(np.uint32(SEED), None)).compile()
    found = collectives(program.as_text())
    assert {kind for kind, _, _ in found} == {"all-reduce"}
    assert all(groups == [list(range(device_count))] for _, _, groups in found)
    assert sorted(sorted(sizes) for _, sizes, _ in found) == [[1, 1, 72, 216], [8], [8], [8, 8, 8]]


@pytest.mark.medium
def test_compiled_keeps_barriers_on_cpu() -> None:
    """What `layers.materialized` relies on; XLA's own pipeline for CPU drops them."""

    def function(x: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(2 * x) + 1

    x = jnp.ones(3)
    assert "opt-barrier" in devices.jit(function).lower(x).compile().as_text()
    assert "opt-barrier" not in jax.jit(function).lower(x).compile().as_text()
    mesh = devices.make_mesh(2)
    psum = functools.partial(jax.lax.psum, axis_name="batch")
    step = devices.compile_train_steps(lambda state, batch, _: (state, psum(Conv(2, 3).apply(state, batch))), mesh)
    image = jnp.ones((2, 4, 4, 1))
    state = Conv(2, 3).init(jax.random.key(0), image)
    assert "opt-barrier" in step.lower(state, image[None], None).compile().as_text()


@pytest.mark.medium
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has these switches")
def test_freed_memory_is_kept() -> None:
    """A freed block of 64 MB costs no page faults when a thread takes it again, unless the user's settings rule."""
    program = """if True:
        import resource, threading
        from jaxad.runtime import devices
        devices.keep_freed_memory()
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            bytearray(2**26)[::4096] = bytes(2**14)
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        found = []
        for _ in range(3):
            thread = threading.Thread(target=faults)
            thread.start()
            thread.join()
        print(found[-1])
    """
    command = [sys.executable, "-c", program]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    kept, returned = (
        int(subprocess.run(command, env=plain | more, capture_output=True, text=True, check=True).stdout)
        for more in ({}, {"MALLOC_ARENA_TEST": "8"})
    )
    assert kept < 1000 < returned


@pytest.mark.medium
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has these switches")
def test_memory_that_is_bounded_has_few_arenas() -> None:
    """Threads that all hold a block get arenas of their own, unless they are bounded."""
    program = """if True:
        import ctypes, os, sys, tempfile, threading
        from jaxad.runtime import devices
        if sys.argv[1] == "bounded":
            devices.bound_memory()
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
        held = threading.Barrier(8)
        def hold():
            libc.malloc(10_000)
            held.wait()
        threads = [threading.Thread(target=hold) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        with tempfile.NamedTemporaryFile() as file:
            stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
            libc.malloc_info(0, stream)
            libc.fclose(stream)
            print(file.read().decode().count("<heap "))
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    bounded, other = (
        int(subprocess.run([sys.executable, "-c", program, kind], env=plain, capture_output=True, check=True).stdout)
        for kind in ("bounded", "plain")
    )
    assert bounded <= 2 < other
