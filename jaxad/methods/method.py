"""The record of pure functions that every method fills; nothing else of a method is known to the rest of jaxad."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad.errors import UserError
from jaxad.models import cpu
from jaxad.models.cpu.onednn import library
from jaxad.runtime import devices, processes

Batch = dict[str, jax.Array]
DTYPES = ("auto", "float32", "bfloat16")
REDUCTIONS = ("mean", "max", "top")


class Scores(NamedTuple):
    """How anomalous images are.

    Attributes:
      image: float32 (b,), one score per image; larger is more anomalous.
      map: float32 (b, h, w), one score per pixel.
    """

    image: jax.Array
    map: jax.Array


class Refit(NamedTuple):
    """How a method's density takes in more good images after its fit, as if it had been fitted to all.

    Attributes:
      fit: ``(variables, good_images, key) -> (density, kept)``: what `Method.fit` returns, and nested dicts of NumPy
        arrays, from which `extend` goes on without the images.
      extend: ``(variables, density, kept, new_images, key) -> (density, kept)``, with the same key.
      again: ``(variables, density, good_images, key) -> (density, kept)``: as `fit`, of other images, with what was
        chosen when this density was made. It says nothing.
    """

    fit: Callable[[dict[str, Any], Sequence[np.ndarray], jax.Array], tuple[Any, dict[str, Any]]]
    extend: Callable[[dict[str, Any], Any, dict[str, Any], Sequence[np.ndarray], jax.Array], tuple[Any, dict[str, Any]]]
    again: Callable[[dict[str, Any], Any, Sequence[np.ndarray], jax.Array], tuple[Any, dict[str, Any]]]


class Hooks(NamedTuple):
    """What a method may have besides; each is None where there is nothing of it.

    Attributes:
      device_augment: ``(keys, batch) -> batch``, the part of a training example that the devices make inside the jitted
        step; one key per example. Without it, a batch is trained on as the host gives it.
      min_images: How many good images `Method.fit` and `prepare` need.
      samples: ``batch -> picture``, what the network is taught, uint8 (h, w, 3) RGB, from the first batch of host
        examples.
      embed: ``(variables, density, keys, images) -> {name: features}``, float32 (b, d) for each way in which images are
        changed in training, the first being unchanged ones; one key and one float32 (h, w, c) image in [0, 1] for each.
        The report draws them.
      map_terms: ``(variables, density, images) -> {name: maps}``, float32 (b, h, w) each, the terms of which the score
        map is the sum, for the report.
      warn: ``metrics -> sentence or None``, what to tell the user of a training whose logged metrics, floats, have gone
        wrong.
      load_pretrained: ``shapes -> variables``, which puts published weights in the place of some of the variables that
        `Method.init` would draw, given as ``jax.ShapeDtypeStruct``.
      prepare: ``(variables, good_images) -> variables``, what the training starts from once the good images that it
        trains on are known, from what `Method.init` and `load_pretrained` made, in the same shapes; the images as in
        `Method.fit`.
      pretrained_checksums: ``() -> {source: SHA-256}``, of the files that `load_pretrained` reads, for the records.
      param_labels: ``params -> labels``, a pytree of the same structure with a word for each parameter: ``new``
        (trained from the first step), ``loaded`` (not in the first ``config.optim.head_epochs``) or ``frozen``. Without
        it all are trained alike.
      refit: Takes in more good images later.
      per_position: Whether the density holds what good images have at each position. Of tiles of large images, each
        then has a density of its own.
    """

    device_augment: Callable[[jax.Array, Batch], Batch] | None = None
    min_images: int = 1
    samples: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None
    embed: Callable[[dict[str, Any], Any, jax.Array, jax.Array], dict[str, jax.Array]] | None = None
    map_terms: Callable[[dict[str, Any], Any, jax.Array], dict[str, jax.Array]] | None = None
    warn: Callable[[dict[str, float]], str | None] | None = None
    load_pretrained: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    prepare: Callable[[dict[str, Any], Sequence[np.ndarray]], dict[str, Any]] | None = None
    pretrained_checksums: Callable[[], dict[str, str]] | None = None
    param_labels: Callable[[Any], Any] | None = None
    refit: Refit | None = None
    per_position: bool = False


class Method(NamedTuple):
    """One method: five functions, and hooks that a method can do without.

    The c channels of images are 3, or 1 where `jaxad.config.channels` says so.

    Attributes:
      init: ``(key, image) -> variables``; parameters and batch statistics for images like float32 (1, h, w, c).
      loss: ``(params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))``, per device with the axis ``batch``
        bound, for a batch as `augment` returns it. None for a method that only fits a density; ``config.epochs`` is
        then 0.
      fit: ``(variables, good_images, key) -> density``; what "normal" is, a pytree that may be empty, from a sequence
        of uint8 (h, w, c) images on the host.
      score: ``(variables, density, images, valid=None) -> Scores`` for float32 (b, h, w, c) images in [0, 1];
        deterministic. Where frames are filled beside images, `valid`, bool (b, h, w), says which pixels are the
        images': an image score that is made of a map counts these alone (`reduce_map`).
      host_augment: ``(rng, image, partner) -> arrays``, the part of a training example that the data workers make
        on the host. `image` and `partner` (another training image) are uint8 (h, w, c); the arrays must hold ``image``.
        None where all is done on the devices: an example is then ``image`` and ``partner``, and the images can stay
        there.
      hooks: The optional ones.
    """

    init: Callable[[jax.Array, jax.Array], dict[str, Any]]
    loss: Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]] | None
    fit: Callable[[dict[str, Any], Sequence[np.ndarray], jax.Array], Any]
    score: Callable[..., Scores]
    host_augment: Callable[[np.random.Generator, np.ndarray, np.ndarray], dict[str, np.ndarray]] | None = None
    hooks: Hooks = Hooks()

    def augment(self, keys: jax.Array, batch: Batch) -> Batch:
        """What the devices make of a batch before the loss, with one key per example."""
        return batch if self.hooks.device_augment is None else self.hooks.device_augment(keys, batch)


def begin(
    key: jax.Array, method: Method, image: np.ndarray, good_images: Sequence[np.ndarray] | None = None
) -> dict[str, Any]:
    """The variables that a training starts from, for images like `image`, (h, w, c).

    `Hooks.prepare` is called where there are `good_images`, uint8 (h, w, c) each.
    """
    variables = _drawn(key, method, image)
    if good_images is None or method.hooks.prepare is None:
        return variables
    return method.hooks.prepare(variables, good_images)


def _drawn(key: jax.Array, method: Method, image: np.ndarray) -> dict[str, Any]:
    """What `Method.init` draws, with published weights in its place where there are any."""
    given = key, jnp.zeros((1, *image.shape), jnp.float32)
    if method.hooks.load_pretrained is None:
        return devices.jit_unoptimized(method.init)(*given)
    leaves, tree = jax.tree.flatten(method.hooks.load_pretrained(jax.eval_shape(method.init, *given)))
    left = [n for n, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]
    # To draw all would take a minute to compile for EfficientNet-B4.
    drawn = devices.jit_unoptimized(lambda key, x: [jax.tree.leaves(method.init(key, x))[n] for n in left])(*given)
    for n, leaf in zip(left, drawn, strict=True):
        leaves[n] = leaf
    return jax.tree.unflatten(tree, leaves)


def options_of(section: ConfigDict, kind: type) -> Any:
    """A section of the config as the named tuple that takes its values; JSON's lists are tuples again."""
    values = {name: section[name] for name in kind._fields}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_choices(choices: dict[str, tuple[str, Sequence[str]]]) -> None:
    """Refuses values, by key of the config, that are not among the known ones beside them, with a `UserError`."""
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"config.{key} must be one of {', '.join(known)}, not {value!r}", about=key)


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """What a network computes in, by ``config.dtype``; its parameters are float32.

    ``auto`` is bfloat16 where the processor multiplies in it, and float32 elsewhere. Several processes, whose
    processors may differ, take float32. A training replaces it by what it is, so that a detector keeps to that.

    Raises:
      UserError: There is no such type.
    """
    check_choices({"dtype": (config.dtype, DTYPES)})
    if config.dtype != "auto":
        return jnp.dtype(config.dtype)
    fast = cpu.preferred() and library.multiplies(jnp.bfloat16) and processes.count() == 1
    return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)


def normalizer(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """``images -> images``: (b, h, w, c) in [0, 1], by mean and deviation of the channels in ``config.normalize``."""
    # NumPy, not JAX: a closed-over device array would be fetched when the step is compiled, unasked.
    mean, std = (np.asarray(config.normalize[name], np.float32) for name in ("mean", "std"))
    return lambda images: (images - mean) / std


def in_batches(
    function: Callable[[Any, jax.Array], Any], variables: Any, images: Sequence[np.ndarray], *, batch: int
) -> Iterator[Any]:
    """What a function makes of images, `batch` of them at a time, on all devices of this process.

    Args:
      function: ``(variables, images) -> pytree`` with leaves (b, ...), for float32 (b, h, w, c) images in [0, 1].
      variables: Parameters and batch statistics, or whatever the function takes.
      images: uint8 (h, w, c) each.
      batch: Images in one call, whose last is padded.

    Yields:
      The pytree of the next images, of NumPy arrays (n, ...) with n up to `batch`.
    """
    mesh = devices.local_mesh()
    weights = devices.replicate(variables, mesh)
    call = _compiled(function, mesh)
    for start in range(0, len(images), batch):
        rows = np.stack([images[number] for number in range(start, min(start + batch, len(images)))])
        yield devices.call_padded(call, weights, rows, mesh, batch=batch)


@functools.lru_cache(4)  # the same function may be called with many sets of images, such as the tiles of each position
def _compiled(function: Callable[[Any, jax.Array], Any], mesh: jax.sharding.Mesh) -> Callable:
    return devices.jit_per_example(lambda weights, images: function(weights, images / jnp.float32(255)), mesh)


def reduce_map(maps: jax.Array, *, reduction: str, top: float, valid: jax.Array | None = None) -> jax.Array:
    """Image scores from score maps.

    Args:
      maps: float32 (b, h, w).
      valid: bool (b, h, w), the pixels that count, at least one of each map; None for all.
      reduction: ``mean`` (NSA, Section 4.2), ``max``, or ``top``, the mean of the highest pixels.
      top: The share of pixels in (0, 1] that ``top`` takes.

    Returns:
      float32 (b,).

    Raises:
      UserError: The reduction is unknown or the share lies outside (0, 1].
    """
    flat = maps.reshape(maps.shape[0], -1)
    counted = None if valid is None else valid.reshape(flat.shape)
    if reduction == "mean":
        return flat.mean(axis=1) if counted is None else flat.mean(axis=1, where=counted)
    if counted is not None:
        flat = jnp.where(counted, flat, -jnp.inf)
    if reduction == "max":
        return flat.max(axis=1)
    if reduction != "top":
        raise UserError(f"config.score.reduction must be mean, max or top, not {reduction!r}", about="score.reduction")
    if not 0 < top <= 1:
        raise UserError(f"config.score.top must lie in (0, 1], not {top}", about="score.top")
    highest = jax.lax.top_k(flat, max(1, round(top * flat.shape[1])))[0]
    if counted is None:
        return highest.mean(axis=1)
    # The same share of fewer pixels.
    taken = jnp.maximum(1, jnp.round(top * counted.sum(axis=1, keepdims=True)))
    return highest.mean(axis=1, where=jnp.arange(highest.shape[1]) < taken)


def untrained(method: Method) -> Method:
    """The same scoring by the network as a training starts, which `fit` makes: what the training has to beat."""

    def drawn(good_images, key):
        return devices.to_host(begin(key, method, good_images[0], good_images))

    def fit(variables, good_images, key):
        variables = drawn(good_images, key)
        return {"variables": variables, "features": method.fit(variables, good_images, key)}

    def fit_kept(variables, good_images, key):
        variables = drawn(good_images, key)
        density, kept = method.hooks.refit.fit(variables, good_images, key)
        return {"variables": variables, "features": density}, kept

    def extend(variables, density, kept, images, key):
        extended, kept = method.hooks.refit.extend(density["variables"], density["features"], kept, images, key)
        return density | {"features": extended}, kept

    def again(variables, density, images, key):
        fitted, kept = method.hooks.refit.again(density["variables"], density["features"], images, key)
        return density | {"features": fitted}, kept

    def of(function):
        @functools.wraps(function)  # whose parameters tell whether it takes `valid`
        def apart(variables, density, *rest):
            return function(density["variables"], density["features"], *rest)

        return apart

    hooks = {name: of(f) for name in ("embed", "map_terms") if (f := getattr(method.hooks, name)) is not None}
    hooks |= dict.fromkeys(("device_augment", "samples", "param_labels", "prepare"))
    hooks |= {"refit": method.hooks.refit and Refit(fit_kept, extend, again)}
    return method._replace(loss=None, fit=fit, score=of(method.score), hooks=method.hooks._replace(**hooks))
