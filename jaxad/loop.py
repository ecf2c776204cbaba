"""The training loop: ``train(config, workdir)``.

It knows a method by its record alone. The step is compiled once; nothing moves between host and devices inside the loop
but what is fed and the metrics that are logged. Where the training images fit on the devices they stay there, and what
is fed are their numbers.
"""

import contextlib
import functools
import itertools
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, hosts, methods, parallel, provenance, samples, synthetic
from jaxad.checkpoint import Checkpoints
from jaxad.data import pipeline
from jaxad.data.record import Source
from jaxad.detector import Detector, fit_threshold
from jaxad.errors import UserError
from jaxad.log import Log, NoLog
from jaxad.methods.method import Method

_SHOWN = 16  # examples in the picture of what is taught


class TrainState(NamedTuple):
    """Everything that a step changes; this is what a checkpoint holds."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of ``config.optim`` and its learning rate by step.

    The rate follows one cosine from ``learning_rate`` to ``final_learning_rate``, constant within an epoch.
    """
    settings = config.optim

    def schedule(step):
        progress = (step // steps_per_epoch) / config.epochs
        cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
        return settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * cosine

    momentum = settings.momentum if "momentum" in settings else None  # without the key, plain SGD
    optimizers = {"adam": optax.adam, "sgd": functools.partial(optax.sgd, momentum=momentum)}
    if settings.name not in optimizers:
        raise UserError(f"config.optim.name must be one of {', '.join(optimizers)}, not {settings.name!r}")
    optimizer = optimizers[settings.name](schedule)
    if "weight_decay" in settings:  # of all parameters, added to the gradient, as in PyTorch's SGD
        optimizer = optax.chain(optax.add_decayed_weights(settings.weight_decay), optimizer)
    return optimizer, schedule


def make_step(
    method: Method, optimizer: optax.GradientTransformation, schedule: optax.Schedule, *, seed: int
) -> Callable:
    """The training step as one device sees it, for `parallel.pmapped`: ``(state, batch, images) -> (state, metrics)``.

    With `images`, all training images as uint8 (n, h, w, c), the batch holds numbers of them where it has images
    otherwise. Keys are folded from seed, step and the examples' positions in the stream, so what an example becomes
    does not depend on the number of devices.
    """

    def step(state: TrainState, batch, images: jax.Array | None):
        if images is not None:
            batch = batch | {name: images[batch[name]] for name in ("image", "partner")}
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        batch = method.corrupt(keys, batch)

        def global_loss(params):
            loss, (batch_stats, metrics) = method.loss(params, state.batch_stats, batch, key)
            return jax.lax.pmean(loss, parallel.AXIS), (batch_stats, metrics)

        (loss, (batch_stats, metrics)), gradient = jax.value_and_grad(global_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **jax.lax.pmean(metrics, parallel.AXIS)}
        metrics["learning_rate"] = schedule(state.step)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def init_state(method: Method, optimizer, image: np.ndarray, *, seed: int) -> TrainState:
    """A fresh state for images like `image`, (h, w, c)."""
    shape = jnp.zeros((1, *image.shape), jnp.float32)
    variables = parallel.once(method.init)(jax.random.key(seed), shape)
    params = variables["params"]
    return TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params))


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """While active, SIGTERM only sets a flag; yields a function, for each call, that tells whether to stop for it."""
    if hosts.count() > 1:
        yield functools.partial(lambda calls: hosts.sigterm(next(calls)), itertools.count())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nobody looks any more for what the runtime's handler notes
        return
    came = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _checked(done: int, metrics, checkpoints: Checkpoints) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Fetches the metrics (k,) of the k steps that ended with step `done`, and yields each step with its own.

    Raises:
      UserError: The loss is not finite, or its gradient, which would spoil the state that is saved next.
    """
    metrics = parallel.to_host(metrics)
    count = len(metrics["loss"])
    for row in range(count):
        step, values = done - count + 1 + row, {name: value[row] for name, value in metrics.items()}
        for name, words in (("loss", "the loss"), ("gradient_norm", "the norm of the gradient")):
            if not np.isfinite(values[name]):
                checkpoints.settle(wait=True)
                kept = checkpoints.steps()
                where = f"the last good checkpoint is step {kept[-1]}" if kept else "there was no checkpoint yet"
                advice = "start again with a lower config.optim.learning_rate and another --workdir"
                raise UserError(f"{words} is {values[name]} at step {step}; {where}; {advice}")
        yield step, values


class Plan(NamedTuple):
    """What a training run will do, settled before anything is written.

    Attributes:
      mesh: The devices.
      per_epoch: Steps in an epoch.
      steps: Steps in all.
      optimizer: The optimiser.
      schedule: Its learning rate by step.
    """

    mesh: jax.sharding.Mesh
    per_epoch: int
    steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def plan(config: ConfigDict, images: int) -> Plan:
    """The plan of a training with a number of images.

    Raises:
      UserError: The batch cannot be split over the devices, or there is no such optimiser.
    """
    mesh = parallel.make_mesh()
    if config.batch % mesh.size:
        raise UserError(f"config.batch is {config.batch}; it must be a multiple of the {mesh.size} devices")
    if config.batch > images:
        print(f"batch {config.batch} is larger than the {images} training images: images repeat within a batch")
    per_epoch = configs.steps_per_epoch(config, images)
    return Plan(mesh, per_epoch, config.epochs * per_epoch, *make_optimizer(config, per_epoch))


def steps_per_call(config: ConfigDict, *, done: int, steps: int) -> int:
    """How many steps are handed to the devices at once: what divides everything that happens at a certain step.

    On a CPU a call costs nothing beside a step, and a loop of steps is slow there. Accelerators would wait for the host
    between steps.
    """
    most = config.steps_per_call or (1 if jax.default_backend() == "cpu" else 16)
    common = math.gcd(done, steps, config.log_every, config.checkpoint.every_steps, config.synthetic_every)
    return max(count for count in range(1, most + 1) if common % count == 0)


def stay(config: ConfigDict, method: Method, images: pipeline.Images) -> bool:
    """Whether all training images are put on every device: they fit, and no step works on them on the host first."""
    return method.example is None and images.nbytes <= config.data.device_gib * 2**30


def feed(
    config: ConfigDict, method: Method, images: pipeline.Images, mesh: jax.sharding.Mesh, *, start: int, stop: int
) -> tuple[jax.Array | None, Iterator[dict[str, jax.Array]]]:
    """What the steps from `start` to `stop` work on, put on the devices ahead of them.

    Returns:
      All training images, uint8 (n, h, w, c) on every device, or None where they don't `stay` there; and what each
      call takes, see `parallel.pmapped`. Of both, each process makes its part.
    """
    resident = parallel.collect(images.stack, len(images), mesh) if stay(config, method, images) else None
    # Numbers are drawn, shuffled and batched as the images themselves would be. Images are streamed step by step, since
    # those of several steps could take gigabytes.
    source = images if resident is None else np.arange(len(images), dtype=np.int32)
    per_call = 1 if resident is None else steps_per_call(config, done=start, steps=stop)
    calls = pipeline.batches(
        source,
        method.example,
        seed=config.seed,
        batch=config.batch,
        start=start,
        stop=stop,
        per_call=per_call,
        part=(jax.process_index(), hosts.count()),
        workers=config.data.workers if resident is None else 0,
    )
    return resident, parallel.prefetch(calls, mesh)


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _fit_weights(
    config: ConfigDict,
    workdir: Path,
    method: Method,
    images: pipeline.Images,
    settled: Plan,
    command: str,
    measure: Callable[[dict[str, Any]], dict[str, float]] | None,
) -> TrainState | None:
    """Runs the steps that are left, and logs what `measure` says of the variables; None when SIGTERM stopped them."""
    mesh, per_epoch, steps, optimizer, schedule = settled
    first = next(pipeline.batches(images, method.example, seed=config.seed, batch=_SHOWN, start=0, stop=1))
    first = {name: rows[0] for name, rows in first.items()}
    state = parallel.replicate(init_state(method, optimizer, first["image"][0], seed=config.seed), mesh)
    saved = workdir / "checkpoints"
    with Checkpoints(saved, keep=config.checkpoint.keep) as checkpoints, _stop_on_sigterm() as stopping:
        done = 0
        if restored := checkpoints.restore(state):
            done, state = restored
            print(f"resuming at step {done} of {steps}")
        if done == steps:
            return state
        provenance.record(workdir, command)
        if not done and method.samples is not None and hosts.lead():  # so that a user sees what is taught
            samples.write(workdir / "samples.png", method.samples(first))
        train_steps = parallel.pmapped(make_step(method, optimizer, schedule, seed=config.seed), mesh)
        resident, calls = feed(config, method, images, mesh, start=done, stop=steps)
        log = NoLog()
        if hosts.lead():
            log = Log(workdir, config, start=done, steps=steps, per_epoch=per_epoch, warn=method.warn)
        with contextlib.closing(log), jax.transfer_guard("disallow"):
            waiting = None
            for batches in calls:
                state, metrics = train_steps(state, batches, resident)
                # Metrics are fetched one call late, so that the devices never wait for the host.
                if waiting is not None:
                    log.add_all(_checked(done, waiting, checkpoints))
                waiting, done = metrics, done + len(batches["index"])
                stop = stopping()
                due = done == steps or done % config.checkpoint.every_steps == 0 or stop
                # The last figures are those of the complete detector, see `train`.
                measured = measure is not None and done < steps and done % config.synthetic_every == 0
                if due or measured:
                    log.add_all(_checked(done, waiting, checkpoints))
                    waiting = None
                with jax.transfer_guard("allow"):  # both copy the state to the host on purpose
                    if due:
                        checkpoints.save(done, state)
                    if stop and done < steps:
                        print(f"stopped at step {done} of {steps}; the same command resumes there")
                        return None
                    if measured:
                        log.add_synthetic(done, functools.partial(measure, _variables(state)))
                checkpoints.settle()
    return state


def _training_images(config: ConfigDict, method: Method, source: Source, numbers: np.ndarray) -> pipeline.Images:
    """The images of a training, kept in the host's memory if they fit there and don't `stay` on the devices."""
    open_images = functools.partial(pipeline.Images, source, numbers, size=config.data.size)
    images = open_images(cache_bytes=0)
    if stay(config, method, images):
        return images
    return open_images(cache_bytes=config.data.cache_gib * 2**30 / (1 + config.data.workers))


def _claim(workdir: Path, config: ConfigDict, images: int) -> None:
    """`jaxad.config.claim` for all processes, which must see the same config, number of images and workdir."""
    hosts.same("the config, or the number of training images,", (config.to_json(), images))
    if hosts.lead():
        configs.claim(workdir, config)
    hosts.wait()
    if not (workdir / "config.json").exists():
        raise UserError(f"process 0 has made the workdir {workdir}, which is not seen here; choose one that all share")


def train(config: ConfigDict, workdir: str | Path, *, command: str = "jaxad.loop.train") -> Detector | None:
    """Trains a detector, or resumes its training, and writes it to `workdir`.

    Args:
      config: A locked config as experiments make it.
      workdir: A directory to create, or one made with the same config.
      command: What the user typed, for the provenance of the results.

    Returns:
      The detector; None when SIGTERM stopped the training, which the same call then resumes.

    Raises:
      UserError: The config or the data cannot be used, the workdir cannot be written or belongs to another config, or
        the loss is no longer finite.
    """
    workdir = Path(workdir)
    method = methods.create(config)
    dataset = data.load(config)
    fitted, held = pipeline.split_holdout(len(dataset.train), holdout=config.data.holdout, seed=config.seed)
    if len(fitted) < method.least:
        raise UserError(
            f"the density of {config.method} needs at least {method.least} good images besides the held-out part, and "
            f"there are {len(fitted)}; add images or choose another density"
        )
    settled = None if method.loss is None else plan(config, len(fitted))
    # Only now, when nothing in the config is left to be refused: a workdir takes no other config afterwards.
    _claim(workdir, config, len(dataset.train))
    parallel.use_compilation_cache()
    # Each is looked at a few times at most.
    good = functools.partial(pipeline.Images, dataset.train, size=config.score.size, cache_bytes=0)
    # A sample of the training images shows how good images score where none were held out.
    seen = good(held if len(held) else fitted[:32]).stack()
    made = synthetic.make(seen, good(fitted)) if len(held) else None
    scorer = None

    def fit(variables: dict[str, Any]) -> Detector:
        nonlocal scorer
        # From here on one device holds the weights; scoring spreads images, not weights.
        variables = parallel.to_host(variables)
        density = method.fit(variables, good(fitted), jax.random.key(config.seed))
        scorer = scorer.with_weights(variables, density) if scorer else Detector(config, variables, density)
        return scorer

    def measure(detector: Detector) -> dict[str, float]:
        return synthetic.measure(detector.score(made.images), made)

    variables = {}
    if settled is None:
        provenance.record(workdir, command)
    else:
        during = None
        if config.synthetic_every and made is None:
            print("no good images are held out (config.data.holdout): the training is not watched by synthetic defects")
        elif config.synthetic_every and made.labels.any():

            def during(variables: dict[str, Any]) -> dict[str, float]:
                return measure(fit(variables))

        images = _training_images(config, method, dataset.train, fitted)
        state = _fit_weights(config, workdir, method, images, settled, command, during)
        if state is None:
            return None
        variables = _variables(state)
    detector = fit(variables)
    scores = detector.score(seen)
    detector.fit_ranges(scores)
    if len(held):
        detector.threshold = fit_threshold(scores.image, false_alarm_rate=config.threshold.false_alarm_rate)
    if hosts.lead():
        detector.save(workdir)
        if len(held):
            # How it finds synthetic defects in good images that it has not seen, for `jaxad.evaluate`.
            synthetic.write(workdir, measure(detector))
    hosts.wait()
    return detector
