"""The training loop: ``train(config, workdir)``.

It knows a method by its record alone. The step is compiled once; nothing moves between host and devices inside the loop
but the batch that is fed and the metrics that are logged.
"""

import contextlib
import functools
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
from jaxad import data, methods, parallel, provenance, samples
from jaxad.checkpoint import Checkpoints
from jaxad.data import pipeline
from jaxad.detector import Detector, fit_threshold
from jaxad.errors import UserError
from jaxad.log import Log
from jaxad.methods.method import Method


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
    """The training step as one device sees it, for `parallel.pmapped`: ``(state, batch) -> (state, metrics)``.

    Keys are folded from seed, step and the examples' positions in the stream, so what an example becomes does not
    depend on the number of devices.
    """

    def step(state: TrainState, batch):
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
    """A fresh state for images like `image`, uint8 (h, w, 3)."""
    shape = jnp.zeros((1, *image.shape), jnp.float32)
    variables = parallel.once(method.init)(jax.random.key(seed), shape)
    params = variables["params"]
    return TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params))


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """While active, SIGTERM only sets a flag; yields a function that tells whether it came."""
    came = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _checked(step: int, metrics, checkpoints: Checkpoints) -> dict[str, np.ndarray]:
    """Fetches a step's metrics.

    Raises:
      UserError: The loss is not finite, or its gradient, which would spoil the state that is saved next.
    """
    metrics = parallel.to_host(metrics)
    for name, words in (("loss", "the loss"), ("gradient_norm", "the norm of the gradient")):
        if not np.isfinite(metrics[name]):
            checkpoints.settle(wait=True)
            kept = checkpoints.steps()
            where = f"the last good checkpoint is step {kept[-1]}" if kept else "there was no checkpoint yet"
            advice = "start again with a lower config.optim.learning_rate and another --workdir"
            raise UserError(f"{words} is {metrics[name]} at step {step}; {where}; {advice}")
    return metrics


class _Plan(NamedTuple):
    """What a training run will do, settled before anything is written."""

    mesh: jax.sharding.Mesh
    per_epoch: int
    steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def _plan(config: ConfigDict, images: int) -> _Plan:
    mesh = parallel.make_mesh()
    if config.batch % mesh.size:
        raise UserError(f"config.batch is {config.batch}; it must be a multiple of the {mesh.size} devices")
    if config.batch > images:
        print(f"batch {config.batch} is larger than the {images} training images: images repeat within a batch")
    per_epoch = configs.steps_per_epoch(config, images)
    return _Plan(mesh, per_epoch, config.epochs * per_epoch, *make_optimizer(config, per_epoch))


def _fit_weights(
    config: ConfigDict, workdir: Path, method: Method, images: pipeline.Images, plan: _Plan, command: str
) -> TrainState | None:
    """Runs the steps that are left; None when SIGTERM stopped them."""
    mesh, per_epoch, steps, optimizer, schedule = plan
    example = method.example(np.random.default_rng(config.seed), images[0], images[1])
    state = parallel.replicate(init_state(method, optimizer, example["image"], seed=config.seed), mesh)
    saved = workdir / "checkpoints"
    with Checkpoints(saved, keep=config.checkpoint.keep) as checkpoints, _stop_on_sigterm() as stopping:
        done = 0
        if restored := checkpoints.restore(state):
            done, state = restored
            print(f"resuming at step {done} of {steps}")
        if done == steps:
            return state
        provenance.record(workdir, command)
        which = {"seed": config.seed, "batch": config.batch, "start": done, "stop": steps}
        stream = pipeline.batches(images, method.example, **which, workers=config.data.workers)
        train_step = parallel.pmapped(make_step(method, optimizer, schedule, seed=config.seed), mesh)
        log = Log(workdir, config, start=done, steps=steps, per_epoch=per_epoch, warn=method.warn)
        with contextlib.closing(log), jax.transfer_guard("disallow"):
            waiting = None
            for batch in parallel.prefetch(_with_picture(stream, workdir, method, draw=done == 0), mesh):
                state, metrics = train_step(state, batch)
                done += 1
                # Metrics are fetched one step late, so that the device never waits for the host.
                if waiting is not None:
                    log.add(done - 1, _checked(done - 1, waiting, checkpoints))
                waiting = metrics
                if done == steps or done % config.checkpoint.every_steps == 0 or stopping():
                    log.add(done, _checked(done, waiting, checkpoints))
                    waiting = None
                    with jax.transfer_guard("allow"):  # a save copies the state to the host on purpose
                        checkpoints.save(done, state)
                    if stopping() and done < steps:
                        print(f"stopped at step {done} of {steps}; the same command resumes there")
                        return None
                checkpoints.settle()
    return state


def _with_picture(stream, workdir: Path, method: Method, *, draw: bool) -> Iterator[dict[str, np.ndarray]]:
    """Passes the batches on; the first of a fresh run is also drawn to samples.png, so a user sees what is taught."""
    for batch in stream:
        if draw and method.samples is not None:
            with jax.transfer_guard("allow"):  # a picture made on the device is fetched on purpose
                samples.write(workdir / "samples.png", method.samples(batch))
        draw = False
        yield batch


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
    plan = None if method.loss is None else _plan(config, len(fitted))
    # Only now, when nothing in the config is left to be refused: a workdir takes no other config afterwards.
    configs.claim(workdir, config)
    parallel.use_compilation_cache()
    cache_bytes = config.data.cache_gib * 2**30 / (1 + config.data.workers)
    variables = {}
    if plan is None:
        provenance.record(workdir, command)
    else:
        images = pipeline.Images(dataset.train, fitted, size=config.data.size, cache_bytes=cache_bytes)
        state = _fit_weights(config, workdir, method, images, plan, command)
        if state is None:
            return None
        variables = {"params": state.params, "batch_stats": state.batch_stats}
    # From here on one device holds the weights; scoring spreads images, not weights.
    variables = parallel.to_host(variables)
    good = {"size": config.score.size, "cache_bytes": 0}  # each is looked at once or twice at most
    density = method.fit(variables, pipeline.Images(dataset.train, fitted, **good), jax.random.key(config.seed))
    detector = Detector(config, variables, density)
    # A sample of the training images shows how good images score where none were held out.
    scores = detector.score(pipeline.Images(dataset.train, held if len(held) else fitted[:32], **good).stack())
    detector.fit_ranges(scores)
    if len(held):
        detector.threshold = fit_threshold(scores.image, false_alarm_rate=config.threshold.false_alarm_rate)
    detector.save(workdir)
    return detector
