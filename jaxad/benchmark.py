"""``python -m jaxad.benchmark``: how fast synthesis, training, inference and evaluation are on this machine.

Every figure is in images/s, and as a fraction of the matrix-product peak of the same devices in the same dtype: a large
product and the work are timed in turn, so a machine whose speed drifts gives an honest ratio. The operations of the
work are those of its layers in their direct form (`jaxad.models.flops`), however they are computed: Winograd's form,
or a border of zeros left out, takes fewer than are counted. The training step is timed alone, on examples that are made
already; the loop is the whole of it as `jaxad.training.loop` runs it. Where PyTorch is installed, NSA's network is
timed in it too.
"""

import argparse
import itertools
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, detector, errors, evaluate, methods, metrics, pytorch_peer, report
from jaxad.data import binding, geometry, levels, pipeline
from jaxad.errors import UserError
from jaxad.methods.method import Method, compute_dtype
from jaxad.models import flops
from jaxad.runtime import devices, disk, provenance
from jaxad.training import step as training

_SAMPLE_S = 0.1  # what is faster is called several times for one sample
_ENOUGH_S = 30.0  # no further sample of a figure after so long
_SIDES = (1024, 2048, 3072, 4096, 8192)  # of the matrices, tried until a product takes _SLOW_S
_SLOW_S = 0.2
_FILLING = 2  # first calls of the training loop, which wait for the first batches
_CALLS = 3  # calls of the training loop in one sample

Figure = dict[str, Any]


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Seconds for one of `calls` calls; the next is handed to the devices while one runs, and all are waited for."""
    waiting, start = None, time.perf_counter()
    for _ in range(calls):
        made = call()
        jax.block_until_ready(waiting)
        waiting = made
    jax.block_until_ready(waiting)
    return (time.perf_counter() - start) / calls


def _calls_for(once: float) -> int:
    """How many calls of so many seconds make one sample."""
    return max(1, min(100, round(_SAMPLE_S / once)))


class Yardstick:
    """The matrix-product peak of all devices of a mesh, timed in turn with what is measured.

    Args:
      mesh: The devices, each of which multiplies matrices of its own.
      dtype: Of the matrices.
      repeats: Samples of each figure, at most.
    """

    def __init__(self, mesh: jax.sharding.Mesh, dtype: jnp.dtype, repeats: int):
        self._repeats = repeats
        product = devices.jit_per_example(lambda _, rows: rows @ rows, mesh)
        fastest = 0.0
        for side in _SIDES:
            # Random numbers: products of constants draw less power, which some accelerators turn into speed.
            rows = np.random.default_rng(0).standard_normal((1, side, side), np.float32).astype(dtype)
            rows = devices.split(np.repeat(rows, mesh.size, axis=0), mesh)
            call, operations = (lambda rows=rows: product((), rows)), mesh.size * 2 * side**3
            seconds(call, 1)
            once = min(seconds(call, 1) for _ in range(3))
            if operations / once > fastest:
                fastest, self._product = operations / once, (call, operations, _calls_for(once))
            if once > _SLOW_S:
                break

    def peak(self) -> float:
        """One sample of the peak, in operations per second."""
        call, operations, calls = self._product
        return operations / seconds(call, calls)

    def measure(self, call: Callable[[], Any], *, images: int, operations: int | None) -> Figure:
        """The `figure` of a call, whose first run is not counted."""
        calls = _calls_for(min(seconds(call, 1) for _ in range(2)))
        found, peaks, start = [], [], time.perf_counter()
        while len(found) < self._repeats and (not found or time.perf_counter() - start < _ENOUGH_S):
            peaks.append(self.peak())
            found.append(seconds(call, calls))
        return figure(found, peaks, images=images, operations=operations)

    def measure_loop(self, calls: Iterator[Any], *, images: int, operations: int | None) -> Figure:
        """The `figure` of an iterator's work for each item, which is not halted: the peak is taken before and after."""
        peaks = [self.peak() for _ in range(self._repeats)]
        times, start = [], time.perf_counter()
        for _ in itertools.islice(calls, _FILLING + _CALLS * self._repeats):
            times.append(time.perf_counter())
            if len(times) > _FILLING + 1 and times[-1] - start > _ENOUGH_S:
                break
        each = np.diff(times[_FILLING - 1 :])
        if not len(each):
            return missing(f"a training of {len(times)} calls is too short to be timed")
        self.peak()  # waits for the calls that the loop had already begun
        peaks += [self.peak() for _ in range(self._repeats)]
        samples = [part.mean() for part in np.array_split(each, min(self._repeats, -(-len(each) // _CALLS)))]
        return figure(samples, peaks, images=images, operations=operations)


def figure(samples: list[float], peaks: list[float], *, images: int, operations: int | None) -> Figure:
    """What the results hold of one measurement.

    Args:
      samples: Seconds for `images` images, one number for each repeat.
      peaks: Operations per second of the matrix product, timed in turn with them.
      images: Images in one call.
      operations: Operations for one image; None or 0 where the work has no layers to count.

    Returns:
      Seconds and images/s with their quartiles, the median peak, and the fraction of it that the median reaches.
    """
    lower, median, upper = (float(value) for value in np.quantile(samples, (0.25, 0.5, 0.75)))
    peak = float(np.median(peaks))
    return {
        "images": images,
        "repeats": len(samples),
        "seconds": {"lower": lower, "median": median, "upper": upper},
        "images_per_s": {"lower": images / upper, "median": images / median, "upper": images / lower},
        "operations_per_image": operations or None,
        "peak_operations_per_s": peak,
        "fraction": operations * images / median / peak if operations else None,
    }


def missing(reason: str) -> Figure:
    """What stands in place of a `figure` that cannot be had."""
    return {"images_per_s": None, "fraction": None, "reason": reason}


def training_operations(method: Method, state: training.TrainState, batch: dict[str, np.ndarray]) -> int:
    """Operations of one training step, gradients included, on a batch of host examples."""

    def forward(params, batch_stats, batch):
        keys = jax.random.split(jax.random.key(0), len(batch["index"]))
        return method.loss(params, batch_stats, method.augment(keys, batch), keys[0])[0]

    everywhere = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        forward, mesh=devices.make_mesh(1), in_specs=everywhere, out_specs=everywhere, check_vma=False
    )
    given = (state.params, state.batch_stats, batch)
    return flops.training(mapped, *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given))


def _host_synthesis(config: ConfigDict, method: Method, images: pipeline.Images, yardstick: Yardstick) -> Figure:
    """Examples as a data worker makes them, by one thread."""
    if method.host_augment is None:
        return missing("nothing is made on the host")
    count, positions = min(config.batch, 16), itertools.count()
    cv2.setNumThreads(1)  # as the data workers do

    def call():
        for position in itertools.islice(positions, count):
            pair = images[position % len(images)], images[(position + 1) % len(images)]
            method.host_augment(np.random.default_rng((config.seed, position)), *pair)

    return yardstick.measure(call, images=count, operations=None)


def _device_synthesis(
    config: ConfigDict, method: Method, batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh, yardstick: Yardstick
) -> tuple[Figure, dict[str, np.ndarray] | None]:
    """The part of the step that makes its examples, alone, every call with other random numbers; and one such batch."""

    def keys_of(call, rows):
        key = jax.random.fold_in(jax.random.key(config.seed), call)
        return jax.vmap(lambda index: jax.random.fold_in(key, index))(rows["index"])

    if method.hooks.device_augment is None:
        return missing("nothing is made on the devices"), None
    made = devices.jit_per_example(lambda call, rows: method.augment(keys_of(call, rows), rows), mesh)
    numbers, rows = itertools.count(), devices.split(batch, mesh)

    def call():
        return made(np.int32(next(numbers)), rows)

    found = yardstick.measure(call, images=config.batch, operations=None)
    # A method may number its examples itself, as CutPaste does, which makes several of an image.
    return found, {"index": batch["index"]} | devices.to_host(call())


def _memory_of(compiled: jax.stages.Compiled) -> dict[str, int] | None:
    """Bytes that a compiled program takes on each device, as the compiler plans them; None where it does not say."""
    found = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp")
    return found and {name: getattr(found, f"{name}_size_in_bytes") for name in names}


def _run(step: Callable, state: training.TrainState, calls: Iterator[Any], shared: training.Shared) -> Iterator[None]:
    """The training loop: yields when a call's metrics are on the host, while the devices already run the next."""
    waiting = None
    for batches in calls:
        state, made = step(state, batches, shared)
        if waiting is not None:
            devices.to_host(waiting)
            yield
        waiting = made
    devices.to_host(waiting)
    yield


def _training(config: ConfigDict, method: Method, images: pipeline.Images, yardstick: Yardstick) -> dict[str, Any]:
    """Measures synthesis and training: the part of the results that tells of them, and the trained ``variables``."""
    plan = training.plan(config, method, len(images))
    first = next(pipeline.batches(images, method.host_augment, seed=config.seed, batch=config.batch, start=0, stop=1))
    first = {name: rows[0] for name, rows in first.items()}
    figures = {"host synthesis": _host_synthesis(config, method, images, yardstick)}
    figures["device synthesis"], made = _device_synthesis(config, method, first, plan.mesh, yardstick)
    state = training.init_state(method, plan.optimizer, first["image"][0], seed=config.seed)
    operations = training_operations(method, state, first) // config.batch
    state = devices.replicate(state, plan.mesh)

    def feed():
        numbers = np.arange(len(images))
        return training.input_stream(config, method, images, numbers, plan.mesh, start=0, stop=plan.steps)

    def compiled(method, batches, shared):
        step = training.make_step(method, plan.optimizer, plan.schedule)
        return devices.compile_train_steps(step, plan.mesh).lower(state, batches, shared).compile()

    shared, calls = feed()
    batches, start = next(calls), time.perf_counter()
    whole = compiled(method, batches, shared)
    compile_s = time.perf_counter() - start
    alone = whole
    if made is not None:  # the step without its synthesis, on as many batches in a call
        count = len(batches["index"])
        repeated = {name: np.broadcast_to(rows, (count, *rows.shape)) for name, rows in made.items()}
        batches, shared = next(devices.prefetch([repeated], plan.mesh)), shared._replace(images=None)
        alone = compiled(method._replace(hooks=method.hooks._replace(device_augment=None)), batches, shared)

    def call():
        nonlocal state
        state, metrics = alone(state, batches, shared)  # the state is donated, as in training
        return metrics

    work = {"images": len(batches["index"]) * config.batch, "operations": operations}
    figures["training step"] = yardstick.measure(call, **work)
    variables = devices.to_host({"params": state.params, "batch_stats": state.batch_stats})
    # A new stream: of the old one, batches have been made ahead in the meantime.
    shared, calls = feed()
    figures["training loop"] = yardstick.measure_loop(_run(whole, state, calls, shared), **work)
    return {
        "image": (first if made is None else made)["image"].shape[-3:],
        "steps_per_call": len(batches["index"]),
        "figures": figures,
        "compile_s": {"training step": compile_s},
        "step_memory": _memory_of(whole),
        "variables": variables,
    }


def _untrained(config: ConfigDict) -> dict[str, Any]:
    """What `_training` finds of a method without one."""
    names = ("host synthesis", "device synthesis", "training step", "training loop")
    figures = {name: missing(f"{config.method} is not trained") for name in names}
    return {"figures": figures, "compile_s": {}, "variables": {}}


def _scoring(
    config: ConfigDict, method: Method, found: detector.Detector, good: pipeline.Images, yardstick: Yardstick
) -> tuple[dict[str, Figure], float]:
    """Figures of inference and evaluation, and the seconds to the first score."""

    def operations() -> int:
        size = (found.tiling.side,) * 2 if found.tiling else found.region.seen_size
        images = jax.ShapeDtypeStruct((1, *size, found.channels), jnp.float32)
        return flops.forward(method.score, found.variables, found.density, images)

    start = time.perf_counter()
    found.prepare(config.evaluate.batch)
    compile_s = time.perf_counter() - start
    count = 4 * config.evaluate.batch
    images = np.stack([good[number % len(good)] for number in range(count)])
    operations_seen = operations()
    inference = yardstick.measure(lambda: found.score(images), images=count, operations=operations_seen)
    if not len(data.load(config).test):
        return {"inference": inference, "evaluation": missing("there are no test images")}, compile_s
    records = evaluate.read_test_set(config, found.white_level)

    def call():
        return metrics.evaluate(evaluate.score_records(found, records), pro_limit=config.evaluate.pro_limit)

    evaluation = yardstick.measure(call, images=len(records), operations=operations_seen)
    return {"inference": inference, "evaluation": evaluation}, compile_s


def _pytorch(
    config: ConfigDict, made: dict[str, Any], operations: dict[str, Any], dtype: jnp.dtype, yardstick: Yardstick
) -> dict[str, Figure]:
    """Figures of the same network in PyTorch, on CPU, where it is installed and the network is NSA's own."""
    if not pytorch_peer.installed() or jax.default_backend() != "cpu" or config.method != "nsa" or "model" in config:
        return {}
    scored = {"scored": config.evaluate.crop or config.score.size, "scored_batch": config.evaluate.batch}
    calls = pytorch_peer.calls(batch=config.batch, size=made["image"][0], dtype=str(dtype), **scored)
    images = {"training step": config.batch, "inference": config.evaluate.batch}
    return {
        f"PyTorch: {name}": yardstick.measure(call, images=images[name], operations=operations[name])
        for name, call in calls.items()
        if name in made["figures"]
    }


def _relate(figures: dict[str, Figure]) -> None:
    """Adds to each figure of training its time as a share of the step's, both in matrix products of their own time."""

    def products(name: str) -> float | None:
        found = figures[name]
        return found["peak_operations_per_s"] / found["images_per_s"]["median"] if found["images_per_s"] else None

    step = products("training step")
    for name in ("device synthesis", "training loop"):
        own = products(name)
        figures[name]["of_step"] = own / step if own and step else None
    for name in figures:
        if name.startswith("PyTorch: "):
            figures[name]["of_ours"] = products(name) / products(name.removeprefix("PyTorch: "))


def peak_memory() -> dict[str, Any]:
    """The most bytes that were in use at once: on one accelerator, or on CPU in this process."""
    cards = jax.devices()
    if cards[0].platform == "cpu":
        return {"bytes": _peak_of_process(), "of": "process"}
    return {"bytes": max(device.memory_stats()["peak_bytes_in_use"] for device in cards), "of": "device"}


def _peak_of_process() -> int:
    # On Linux getrusage would also count what the process that started this one had used.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"(?m)^VmHWM:\s+(\d+) kB$", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(config: ConfigDict, *, repeats: int, scoring: bool = True) -> dict[str, Any]:
    """Measures a config's method on its data.

    Args:
      config: A locked config as experiments make it.
      repeats: Samples of each figure; fewer where they take long.
      scoring: Whether a density is fitted, and inference and evaluation are measured.

    Returns:
      ``figures`` by name (see `figure` and `missing`), and under what conditions they were found.

    Raises:
      UserError: The config or the data cannot be used, or nothing is left to be measured.
    """
    method = methods.create(config)
    if method.loss is None and not scoring:
        raise UserError(f"{config.method} is not trained; leave --training out", about="--training")
    dataset = data.load(config)
    white_level = levels.choose(binding.fingerprints(dataset.train, {}), configs.white_level(config)).value
    dataset = data.load(config, white_level=white_level)
    fitted, _ = pipeline.split_holdout(dataset.train.ids, **configs.split_options(config))
    dtype = compute_dtype(config) if "dtype" in config else jnp.dtype(jnp.float32)
    yardstick = Yardstick(devices.make_mesh(), dtype, repeats)
    cache = {"cache_bytes": config.data.cache_gib * 2**30}
    if method.loss is None:
        made = _untrained(config)
    else:
        images = pipeline.Images(dataset.train, fitted, geometry=geometry.trained(config), **cache)
        made = _training(config, method, images, yardstick)
    variables, memory = made.pop("variables"), {"training step": made.pop("step_memory", None)}
    if scoring:
        good = pipeline.Images(dataset.train, fitted, geometry=geometry.scored(config), **cache)
        density = method.fit(variables, good, jax.random.key(config.seed))
        found = detector.Detector(config, variables, density, white_level=white_level)
        figures, made["compile_s"]["inference"] = _scoring(config, method, found, good, yardstick)
        made["figures"] |= figures
    memory["peak"] = peak_memory()  # before PyTorch takes some
    operations = {name: figure.get("operations_per_image") for name, figure in made["figures"].items()}
    made["figures"] |= _pytorch(config, made, operations, dtype, yardstick)
    _relate(made["figures"])
    return {
        "experiment": config.experiment,
        "category": evaluate.category_of(config),
        **provenance.collect(),
        "dtype": str(dtype),
        "batch": config.get("batch"),
        "repeats": repeats,
        **made,
        "memory": memory,
        "config": json.loads(config.to_json()),
    }


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.benchmark",
        description="Measures synthesis, training, inference and evaluation of a config's method on this machine, in "
        "images/s and as a fraction of its matrix-product peak; any value of the config: --config.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:CATEGORY]", help="an experiment or its name")
    parser.add_argument("--output", metavar="FILE.json", help="write the figures there, for jaxad.report")
    parser.add_argument("--repeats", default="7", metavar="N", help="samples of each figure, 7 by default")
    parser.add_argument("--training", action="store_true", help="leave out inference and evaluation")
    flags, overrides = configs.arguments(parser, argv)
    if not flags.repeats.isdecimal() or int(flags.repeats) < 1:
        raise UserError(f"--repeats must be a whole number from 1 on, not {flags.repeats!r}", about="--repeats")
    devices.keep_freed_memory()
    config = configs.load(flags.config, overrides, rules_of=methods.rules_of)
    output = Path(flags.output) if flags.output else None
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()  # a place that cannot be written to must not cost the measurement
    typed = ["--config", flags.config, *(f"--config.{key}={value}" for key, value in overrides.items())]
    typed += [f"--repeats={flags.repeats}", *(["--training"] if flags.training else [])]
    command = provenance.command("jaxad.benchmark", typed)
    results = {"command": command, **measure(config, repeats=int(flags.repeats), scoring=not flags.training)}
    if output:
        disk.write_json(output, results)
    print(report.benchmarks([results]), end="")


if __name__ == "__main__":
    errors.run(main)
