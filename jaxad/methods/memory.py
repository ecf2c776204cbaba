"""Refuses sizes that no memory can hold, by the least that they need, before anything is allocated.

The system would kill the process without a word. The estimates count only what surely lies in memory at one time, so
nothing that could work is refused.
"""

import contextlib
import math
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.errors import UserError, counted
from jaxad.methods.method import Method
from jaxad.runtime import devices, processes

_FLOAT = 4  # bytes of a float32
_SMALL = 0.02  # share of the memory: in all of jaxad's networks the first stage is less than 50 times its images
_CGROUPS = Path("/sys/fs/cgroup")


def check_training(config: ConfigDict, method: Method) -> None:
    """Refuses a size or a batch of images with which a training step cannot run.

    Where the step makes its examples on the device, it holds the images and their partners of a batch. Otherwise the
    host decodes an image and a partner of full size for each example.

    Raises:
      UserError: They need more than all memory of the host, or of a device.
    """
    image = math.prod(configs.frame(config, config.data.size)) * configs.channels(config)
    seen = math.prod(configs.seen_size(config)) * configs.channels(config)
    size = f"config.data.size={config.data.size}"
    pair = f"an image and its partner of {size} pixels a side"
    _check(2 * image, pair, "config.data.size", host_memory(), "this machine")
    if method.loss is not None and method.host_augment is None:
        batch = 2 * config.batch * seen // jax.device_count()
        what = f"a device's part of config.batch={config.batch} images and partners of {size} pixels a side"
        _check(batch, what, "config.batch or config.data.size", *_device_memory())


def check_scoring(config: ConfigDict) -> None:
    """Refuses a size or a batch of images that cannot be scored: the images in float32, with a map for each.

    Raises:
      UserError: They need more than all memory of a device.
    """
    batch, side = config.evaluate.batch, configs.tile(config) or config.score.size
    pixels = side**2 if configs.tile(config) else math.prod(configs.frame(config, side))
    need = -(-batch // jax.local_device_count()) * pixels * (configs.channels(config) + 1) * _FLOAT
    key = "data.tile" if configs.tile(config) else "score.size"
    images = f"{counted(batch, 'image')} (config.evaluate.batch) of config.{key}={side} pixels a side"
    _check(need, f"a device's part of {images}", f"config.evaluate.batch or config.{key}", *_device_memory())


def check_test_set(config: ConfigDict, images: int) -> None:
    """Refuses a size at which the test images cannot be kept together with their maps, which are float32.

    Raises:
      UserError: They need more than all memory of the host.
    """
    key = "data.size" if configs.tile(config) else "score.size"
    side = config.data.size if configs.tile(config) else config.score.size
    need = images * math.prod(configs.frame(config, side)) * (configs.channels(config) + _FLOAT // processes.count())
    maps = "its map" if images == 1 else "their maps"
    what = f"{counted(images, 'test image')} of config.{key}={side} pixels a side and {maps}"
    _check(need, what, f"config.{key}", host_memory(), "this machine")


def check_bank(features: int, channels: int) -> None:
    """Refuses a bank of more features than can be chosen from: they are held twice, in float32.

    Raises:
      UserError: They need more than all memory of the host.
    """
    what = f"{features:,} features of {channels} channels, from which a bank is chosen,"
    _check(2 * features * channels * _FLOAT, what, "config.density.patches", host_memory(), "this machine")


def check_gaussians(count: int, channels: int) -> None:
    """Refuses Gaussians whose sums, in float64, and matrices, in float32, cannot be held.

    Raises:
      UserError: They need more than all memory of the host.
    """
    what = f"{counted(count, 'Gaussian')} of {channels} channels, one for each position,"
    settings = "config.score.size, or set config.density.channels"
    _check(3 * count * channels**2 * _FLOAT, what, settings, host_memory(), "this machine")


def check_tiles(density: Any, tiles: int) -> None:
    """Refuses densities of tiles that cannot be held, by that of the first: but for a network, which all share.

    Raises:
      UserError: They need more than all memory of the host.
    """
    own = {key: value for key, value in density.items() if key != "variables"} if isinstance(density, dict) else density
    need = tiles * sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(own))
    settings = "config.data.size, raise config.data.tile, or choose a density that all tiles share"
    _check(need, f"densities of {counted(tiles, 'tile')}", settings, host_memory(), "this machine")


def check_step(config: ConfigDict, make: Callable[[], tuple[Callable, tuple]]) -> None:
    """Refuses a training step for images so large that a single result of its network is beyond all memory.

    The step is traced, which takes seconds, only where its images take more than a small share of the memory.

    Args:
      config: The config.
      make: Gives the step as one device sees it, with the axis ``batch``, and the shapes of its arguments.

    Raises:
      UserError: A result needs more than all memory of a device.
    """
    batch, side = config.batch // jax.device_count(), config.data.size
    most, where = _device_memory()
    if batch * math.prod(configs.seen_size(config)) * configs.channels(config) * _FLOAT < most * _SMALL:
        return
    axis = [(devices.AXIS, jax.device_count())]
    step, arguments = make()
    need = _largest(jax.make_jaxpr(step, axis_env=axis)(*arguments).jaxpr)
    what = f"the values of one layer for a device's {batch} of config.batch images of config.data.size={side} pixels"
    _check(need, what, "config.batch or config.data.size", most, where)


def _largest(jaxpr: Any) -> int:
    """The most bytes that a convolution, matrix product or foreign call returns; these are never fused away."""
    most = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general", "ffi_call"):
            most = max(most, *(math.prod(out.aval.shape) * out.aval.dtype.itemsize for out in equation.outvars))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if inner := getattr(value, "jaxpr", value if hasattr(value, "eqns") else None):
                most = max(most, _largest(inner))
    return most


def _check(need: int, what: str, settings: str, most: int, where: str) -> None:
    if need > most:
        raise UserError(f"{what} take at least {_gib(need)} of memory, and {where} has {_gib(most)}; lower {settings}")


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _device_memory() -> tuple[int, str]:
    """The memory of a device in bytes, and its name; simulated devices and CPUs share the host's."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return (limit, f"a {device.device_kind}") if limit else (host_memory(), "this machine")


def host_memory() -> int:
    """The bytes of memory and swap that this process may use at most: of the machine, its container, or its limit."""
    swap = _swap()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [] if own == resource.RLIM_INFINITY else [own]
    return min(total + swap, *limits, *(limit + swap for limit in _container_limits()))


def _swap() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal:"))


def _container_limits() -> Iterator[int]:
    """The limits of the control groups that this process is in, of both versions of Linux's cgroups."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root, file = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, file = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(name.lstrip("/"))  # a container sees its own group as the root
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # it is not there, or says max
                yield int((root / folder / file).read_text())
