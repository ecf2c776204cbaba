"""The training step: its state, its optimiser, and what it is fed."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data import pipeline
from jaxad.errors import UserError
from jaxad.methods.method import Method, begin
from jaxad.models.cpu import sums
from jaxad.runtime import devices, processes


class TrainState(NamedTuple):
    """Everything that a step changes; this is what a checkpoint holds."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def make_optimizer(
    config: ConfigDict, steps_per_epoch: int, *, param_labels: Callable[[Any], Any] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of ``config.optim`` and its learning rate by step.

    ``sgd`` is PyTorch's SGD: with ``momentum``, and ``weight_decay`` added to the gradient. ``adam`` has neither.
    ``adamw`` is Adam whose ``weight_decay`` is decoupled from the gradient (Loshchilov and Hutter, ICLR 2019): each
    parameter shrinks by the rate times ``weight_decay`` times itself.

    The rate follows one cosine from ``learning_rate`` to ``final_learning_rate``, constant within an epoch. With
    `param_labels`, new parameters alone are trained in the first ``head_epochs`` epochs, by a cosine of their own from
    ``head_learning_rate``; then all that are not frozen (CutPaste, Appendix A.4).

    Args:
      config: The config.
      steps_per_epoch: Optimiser steps in an epoch.
      param_labels: `Hooks.param_labels`.

    Raises:
      UserError: There is no such optimiser, it does not use what the config sets, or the first epochs are all there
        are.
    """
    settings, make = config.optim, _optimizer(config.optim)
    first = settings.get("head_epochs", 0) if param_labels else 0
    if first >= max(config.epochs, 1):
        raise UserError(
            f"config.optim.head_epochs is {first}; it must be smaller than config.epochs={config.epochs}",
            about="optim.head_epochs",
        )

    highest, final = settings.learning_rate, settings.final_learning_rate

    def cosine(rate: float, progress: jax.Array) -> jax.Array:
        return final + (rate - final) * (1 + jnp.cos(jnp.pi * progress)) / 2

    def schedule(step):
        epoch = step // steps_per_epoch
        later = cosine(highest, (epoch - first) / (config.epochs - first))
        return jnp.where(epoch < first, cosine(settings.head_learning_rate, epoch / first), later) if first else later

    if param_labels is None:
        return make(schedule), schedule
    start = first * steps_per_epoch
    # What waits has neither momentum nor a step of its own until it is trained.
    waiting = optax.transforms.conditionally_mask(make(lambda step: schedule(step + start)), lambda step: step >= start)
    by_label = {"new": make(schedule), "loaded": waiting, "frozen": optax.set_to_zero()}
    return optax.partition(by_label, param_labels), schedule


# The keys of ``config.optim`` that an optimiser uses, beside those of the learning rate.
_USED = {"sgd": ("momentum", "weight_decay"), "adam": (), "adamw": ("weight_decay",)}


def _optimizer(settings: ConfigDict) -> Callable[[optax.Schedule], optax.GradientTransformation]:
    """The optimiser of ``config.optim`` for any learning rate; raises UserError as `make_optimizer`."""
    name = settings.name
    if name not in _USED:
        raise UserError(f"config.optim.name must be one of {', '.join(_USED)}, not {name!r}", about="optim.name")
    for key in ("momentum", "weight_decay"):
        if settings.get(key) and key not in _USED[name]:
            others = " or ".join(other for other, keys in _USED.items() if key in keys)
            raise UserError(
                f"config.optim.{key} is {settings[key]}, which {name} does not use; set config.optim.{key}=0 or "
                f"config.optim.name={others}",
                about=f"optim.{key}",
            )
    if name == "adam":
        return optax.adam
    if name == "adamw":
        return functools.partial(optax.adamw, weight_decay=settings.weight_decay)
    decay, momentum = settings.get("weight_decay"), settings.get("momentum")  # without the key, plain SGD

    def sgd(schedule: optax.Schedule) -> optax.GradientTransformation:
        optimizer = optax.sgd(schedule, momentum)
        return optimizer if decay is None else optax.chain(optax.add_decayed_weights(decay), optimizer)

    return sgd


class Shared(NamedTuple):
    """What all steps of a training share.

    Attributes:
      seed: uint32 ().
      images: All training images, uint8 (n, h, w, c), where batches hold numbers of them; else None.
    """

    seed: jax.Array
    images: jax.Array | None


def make_step(method: Method, optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Callable:
    """The training step as one device sees it: ``(state, batch, shared) -> (state, metrics)``.

    `devices.compile_train_steps` compiles it for all of them.

    With `Shared.images`, the batch holds numbers of images where it has images otherwise. Keys are folded from seed,
    step and the examples' positions in the stream, so what an example becomes does not depend on the number of devices.
    The norm of the gradient that is logged is that of all parameters, also of those that are frozen or wait.

    Args:
      method: What is trained.
      optimizer: See `make_optimizer`.
      schedule: Its learning rate, to be logged.
    """

    def step(state: TrainState, batch, shared: Shared):
        if shared.images is not None:
            batch = batch | {name: shared.images[batch[name]] for name in ("image", "partner")}
        key = jax.random.fold_in(jax.random.key(shared.seed), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        batch = method.augment(keys, batch)

        def global_loss(params):
            loss, (batch_stats, metrics) = method.loss(params, state.batch_stats, batch, key)
            return jax.lax.pmean(loss, devices.AXIS), (batch_stats, metrics)

        (loss, (batch_stats, metrics)), gradient = jax.value_and_grad(global_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": sums.norm(gradient), **jax.lax.pmean(metrics, devices.AXIS)}
        metrics["learning_rate"] = schedule(state.step)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def init_state(
    method: Method, optimizer, image: np.ndarray, *, seed: int, good_images: Sequence[np.ndarray] | None = None
) -> TrainState:
    """A fresh state for images like `image`, (h, w, c); for `good_images` see `begin`."""
    return _state(begin(jax.random.key(seed), method, image, good_images), optimizer)


def _state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    params = variables["params"]
    return TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params))


def abstract_state(method: Method, optimizer, image: np.ndarray, mesh: jax.sharding.Mesh) -> TrainState:
    """What `init_state` makes, and `devices.replicate` puts on the devices, as ``jax.ShapeDtypeStruct``."""
    shape, sharding = jax.ShapeDtypeStruct((1, *image.shape), jnp.float32), devices.replicated(mesh)
    made = jax.eval_shape(lambda *given: _state(method.init(*given), optimizer), jax.random.key(0), shape)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), made)


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


def plan(config: ConfigDict, method: Method, images: int) -> Plan:
    """The plan of a training of a method with a number of images.

    Raises:
      UserError: The batch cannot be split over the devices, or there is no such optimiser.
    """
    mesh = devices.make_mesh()
    if config.batch % mesh.size:
        raise UserError(
            f"config.batch is {config.batch}; it must be a multiple of the {mesh.size} devices", about="batch"
        )
    if config.batch > images:
        print(f"batch {config.batch} is larger than the {images} training images: images repeat within a batch")
    per_epoch = configs.steps_per_epoch(config, images)
    optimizer, schedule = make_optimizer(config, per_epoch, param_labels=method.hooks.param_labels)
    return Plan(mesh, per_epoch, config.epochs * per_epoch, optimizer, schedule)


def steps_per_call(config: ConfigDict, *, done: int, steps: int) -> int:
    """How many steps are handed to the devices at once: what divides everything that happens at a certain step.

    On a CPU a call costs nothing beside a step, and a loop of steps is slow there. Accelerators would wait for the host
    between steps.
    """
    most = config.steps_per_call or (1 if jax.default_backend() == "cpu" else 16)
    common = math.gcd(done, steps, config.log_every, config.checkpoint.every_steps, config.synthetic_every)
    return max(count for count in range(1, most + 1) if common % count == 0)


def fits_on_device(config: ConfigDict, method: Method, images: pipeline.Images) -> bool:
    """Whether all training images are put on every device: they fit, and no step works on them on the host first."""
    return method.host_augment is None and images.nbytes <= config.data.device_gib * 2**30


def input_stream(
    config: ConfigDict,
    method: Method,
    images: pipeline.Images,
    fitted: np.ndarray,
    mesh: jax.sharding.Mesh,
    *,
    start: int,
    stop: int,
) -> tuple[Shared, Iterator[dict[str, jax.Array]]]:
    """What the steps from `start` to `stop` work on, put on the devices ahead of them.

    Args:
      config: The config.
      method: What is trained.
      images: All training images.
      fitted: The numbers of the images that it trains on.
      mesh: The devices.
      start: First step.
      stop: One past the last step.

    Returns:
      What all steps share, with all images on every device where `fits_on_device` says so; and what each call takes,
      see `devices.compile_train_steps` and `make_step`. Of both, each process makes its part.
    """
    resident = None
    if fits_on_device(config, method, images):
        resident = devices.replicate_sharded_load(images.stack, len(images), mesh)
    # Numbers are drawn, shuffled and batched as the images themselves would be. Images are streamed step by step, since
    # those of several steps could take gigabytes.
    calls = pipeline.batches(
        pipeline.Chosen(images, fitted) if resident is None else fitted.astype(np.int32),
        method.host_augment,
        seed=config.seed,
        batch=config.batch,
        start=start,
        stop=stop,
        per_call=1 if resident is None else steps_per_call(config, done=start, steps=stop),
        part=(jax.process_index(), processes.count()),
        workers=config.data.workers if resident is None else 0,
    )
    seed = devices.replicate(np.uint32(config.seed), mesh)
    return Shared(seed, resident), devices.prefetch(calls, mesh)
