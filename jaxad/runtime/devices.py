"""Devices, mesh, the per-device step, and every move of an array between host and devices."""

import ctypes
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jaxlib.version
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "batch"
_STEPS = PartitionSpec(None, AXIS)  # the batches of several steps, (k, b, ...)
_ALLOCATOR_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_")


def set_up_process(*, keeps_memory: bool = True) -> None:
    """Makes the settings of a command's process; the Python API leaves those of its caller alone.

    Args:
      keeps_memory: Whether memory that is freed is kept, see `keep_freed_memory` and `bound_memory`.
    """
    (keep_freed_memory if keeps_memory else bound_memory)()
    use_compilation_cache()


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second command of a user starts at once.

    ``JAX_COMPILATION_CACHE_DIR`` chooses the place; the default is ``~/.cache/jaxad``. Where the user has no home
    directory, or one that cannot be written to, as in many containers, programs are compiled each time. They are not
    kept in a place that others can write to, since what is loaded from it is run.
    """
    if jax.config.jax_compilation_cache_dir is None:
        try:
            folder = Path.home() / ".cache" / "jaxad"
            folder.mkdir(parents=True, exist_ok=True)
        except (RuntimeError, OSError):
            return
        if not os.access(folder, os.W_OK | os.X_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees. Commands call it first: before any computation, it is for good.

    A step on CPU takes gigabytes of scratch memory and gives them back. The C library hands blocks of this size to the
    system each time, and taking them again costs a page fault for every 4 KiB: 15 % of the time of a step with 64
    images of 224 pixels on two cores. Only glibc has these switches; elsewhere nothing is done, nor where the user has
    set ``GLIBC_TUNABLES`` or a ``MALLOC_`` variable.
    """
    _set_allocator(trim_threshold=-1, mmap_max=0, arena_max=1)  # the arenas of threads would ignore the first two


def bound_memory() -> None:
    """Holds less memory than `keep_freed_memory` does and is slower: for a process that runs for weeks beside others.

    Large blocks that are freed go back to the system, and two arenas hold the others, in place of one for each thread.
    """
    _set_allocator(arena_max=2)


def _set_allocator(**settings: int) -> None:
    """Makes settings of glibc's allocator, by their names in mallopt(3), where the user has made none."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(_ALLOCATOR_SETTINGS) for name in os.environ):
        return
    numbers = {"trim_threshold": -1, "mmap_max": -4, "arena_max": -8}
    libc = ctypes.CDLL(None)
    for name, value in settings.items():
        libc.mallopt(numbers[name], value)


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-dimensional mesh named ``batch`` over the first `devices` devices; all of them, of all hosts, by default.

    Those of a host lie beside each other, in the order of the processes.
    """
    chosen = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:devices]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """A mesh as that of `make_mesh` over this process's devices alone."""
    return Mesh(np.array(jax.local_devices()), (AXIS,), axis_types=(AxisType.Auto,))


def _cpu_options() -> dict[str, str]:
    """What XLA may hand to YNNPACK on CPU, as compiler options of one program; the process's own flags stay.

    It is chosen by release, since neither its numbers nor its speed are the same in all:

    - jaxlib 0.10, the last for Python 3.11: nothing. With anything else, rows of small products whose squares are
      summed can be wrong (jax-ml/jax#39103). What YNNPACK adds faster than XLA, `jaxad.models.cpu.sums` adds fast.
    - jaxlib 0.12: dots alone. Its numbers are right, but by default the gradient of a convolution's kernel, itself a
      convolution with a kernel as large as the image, takes so long that a whole training step takes twice the time.

    Other releases get no option, since one that they do not know would be an error.
    """
    kinds = {(0, 10): "", (0, 12): "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}.get(jaxlib.version.__version_info__[:2])
    if kinds is None or jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": kinds}


def jit(function: Callable, **options) -> Callable:
    """``jax.jit`` with the compiler's options for the networks of `jaxad.models`; `options` are others of ``jax.jit``.

    On CPU, XLA removes optimization barriers before it fuses; here they stay, for `layers.materialized`. JAX takes such
    options in the outermost call only: the function returned can neither be used inside another ``jax.jit`` nor be
    differentiated.
    """
    barriers = {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=_cpu_options() | barriers, **options)


def compile_train_steps(step: Callable, mesh: Mesh) -> Callable:
    """Compiles ``step(state, batch, shared) -> (state, metrics)``, written per device, over all devices of `mesh`.

    The function returned runs several steps: ``(state, batches, shared) -> (state, metrics)``, where the leaves of
    `batches` are (k, b, ...) and those of the metrics (k, ...). Inside, the axis is named ``batch``. State and `shared`
    are replicated, the state is donated, each batch is split along b. The step must differentiate ``pmean(loss)``: the
    gradient of the replicated parameters is then already summed over devices, and a further ``pmean`` of it would
    multiply it by their number. The function returned is `jit`, with its limits.
    """

    def steps(state, batches, shared):
        if len(jax.tree.leaves(batches)[0]) > 1:
            return jax.lax.scan(lambda state, batch: step(state, batch, shared), state, batches)
        # A loop of one step is written out: inside any loop, XLA's CPU backend takes 18 times as long for a step.
        state, metrics = step(state, jax.tree.map(lambda rows: rows[0], batches), shared)
        return state, jax.tree.map(lambda value: value[None], metrics)

    replicated = PartitionSpec()
    mapped = jax.shard_map(
        steps, mesh=mesh, in_specs=(replicated, _STEPS, replicated), out_specs=(replicated, replicated)
    )
    return jit(mapped, donate_argnums=0)


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, which inside `jax.shard_map` all vary over the mapped axes that any of them varies over.

    Arguments of a function with a gradient of its own need it: a gradient must vary over the axes that its argument
    varies over. The gradient of the cast, of a replicated kernel say, sums over the devices.
    """
    own = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    every = frozenset().union(*own)
    cast = jax.lax.pcast
    return tuple(cast(array, tuple(every - axes), to="varying") for array, axes in zip(arrays, own, strict=True))


def jit_unoptimized(function: Callable) -> Callable:
    """``jax.jit`` for a function that is called once, such as one that draws a network's parameters or a picture.

    XLA's optimisation of many small computations, random draws above all, would take longer than it saves; it is off.
    """
    return jax.jit(function, compiler_options=_cpu_options() | {"xla_backend_optimization_level": 0})


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree, mesh: Mesh):
    """Puts a pytree whole on every device; each process has all of it."""
    if not _spans_processes(mesh):
        return jax.device_put(tree, replicated(mesh))
    # Orbax refuses to save arrays that device_put has made from one device's to other processes'.
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(to_host(tree))


def replicate_sharded_load(load: Callable[[slice | np.ndarray], np.ndarray], rows: int, mesh: Mesh) -> jax.Array:
    """Puts an array whole on every device, of which each process loads a part; the devices pass the parts on.

    Args:
      load: Makes the rows with the numbers given, or with the slice ``:``, as an array (n, ...).
      rows: How many rows there are.
      mesh: The devices.
    """
    if not _spans_processes(mesh):
        return replicate(load(slice(None)), mesh)
    share = -(-rows // mesh.size) * mesh.local_mesh.size
    numbers = jax.process_index() * share + np.arange(share)
    part = load(np.minimum(numbers, rows - 1))  # parts are equal; the last row fills up the last ones
    split = _put_part(part, NamedSharding(mesh, PartitionSpec(AXIS)))
    return jax.jit(lambda array: array[:rows], out_shardings=replicated(mesh))(split)


def _spans_processes(mesh: Mesh) -> bool:
    return mesh.local_mesh.size < mesh.size


def _put_part(tree, sharding: NamedSharding):
    """Puts this process's part of a pytree of arrays on its devices."""
    with jax.transfer_guard("allow"):  # JAX takes this one for a transfer that nobody asked for
        return jax.make_array_from_process_local_data(sharding, tree)


def split(tree, mesh: Mesh):
    """Puts a pytree on the devices, split along each leaf's first dimension."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def prefetch(batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, ahead: int = 2) -> Iterator[dict[str, jax.Array]]:
    """Yields what `compile_train_steps` takes, leaves (k, b, ...), on the devices.

    `ahead` of them are under way at any time. Each process gives its part of the b rows.
    """
    queue, sharding = deque(), NamedSharding(mesh, _STEPS)
    put = _put_part if _spans_processes(mesh) else jax.device_put
    for batch in batches:
        queue.append(put(batch, sharding))
        if len(queue) >= ahead:
            yield queue.popleft()
    yield from queue


def to_host(tree):
    """Copies a pytree of device arrays to NumPy arrays."""
    return jax.device_get(tree)


def jit_per_example(function: Callable, mesh: Mesh) -> Callable:
    """Compiles ``(weights, rows) -> made``, which makes every row by itself, over all devices of `mesh`.

    The weights are replicated; rows and what is made of them, pytrees, are split along each leaf's first dimension.
    Each device runs the function on its own rows. Left to itself, the compiler would gather all rows on every device
    where the function's `jax.vmap` merges another dimension with theirs.
    """
    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    return jit(jax.shard_map(function, mesh=mesh, in_specs=(replicated, split), out_specs=split))


def call_padded(call: Callable, weights, rows, mesh: Mesh, *, batch: int):
    """Calls a function compiled by `jit_per_example`, always with the same number of rows, so that it compiles once.

    Args:
      call: ``(weights, rows) -> made``, which makes every row by itself.
      weights: A pytree that every device of `mesh` holds whole (see `replicate`).
      rows: A pytree of host arrays (n, ...), where n is at most `batch`; filled up with zeros.
      batch: Rows in the call, rounded up to a multiple of the devices.

    Returns:
      What `call` makes of the n rows, a pytree of NumPy arrays (n, ...).
    """
    count = len(jax.tree.leaves(rows)[0])
    padding = -(-batch // mesh.size) * mesh.size - count
    filled = jax.tree.map(lambda leaf: np.concatenate([leaf, np.zeros((padding, *leaf.shape[1:]), leaf.dtype)]), rows)
    return jax.tree.map(lambda leaf: leaf[:count], to_host(call(weights, split(filled, mesh))))


def device_names() -> str:
    """The devices in words, for the provenance of a result."""
    device = jax.devices()[0]
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}{processes}"
    model = "CPU"
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    simulated = f", {jax.device_count()} simulated devices{processes}" if jax.device_count() > 1 else ""
    return f"{len(os.sched_getaffinity(0))} cores of {model}{simulated}"
