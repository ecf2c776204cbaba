"""What CutPaste on whole images and on patches share: the training on a proxy task, and the density of features."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.augment.cutpaste.proxy_tasks import classes, proxy_batch
from jaxad.errors import UserError
from jaxad.methods.method import Hooks, compute_dtype, in_batches, normalizer, options_of
from jaxad.methods.pretrained import trained_encoder
from jaxad.models.classifier import Classifier
from jaxad.models.cpu import sums
from jaxad.reporting.augmentation_grid import augmentation_grid
from jaxad.runtime import devices
from jaxad.scoring import density as densities


def l2_penalty(params: Any) -> jax.Array:
    """Half the sum of squares of every kernel, of convolutions and of fully connected layers.

    The paper does not say what its L2 regularisation covers. Biases and BatchNorm's scales and shifts are left free.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return 0.5 * sum(sums.total(jnp.square(leaf)) for path, leaf in leaves if path[-1].key == "kernel")


def density_functions(
    config: ConfigDict, channels: int
) -> tuple[Callable[..., Any], Callable[[Any, jax.Array], jax.Array], int]:
    """``fit(key, features)`` and ``score(density, features)`` of ``config.density``, and how many features it needs.

    Args:
      config: The config.
      channels: Length of a feature.

    Raises:
      UserError: The name or an option is none that a density takes.
    """
    density = densities.select(config.density.name)
    options = {name: config.density[name] for name in density.options}
    if "bandwidth" in options:
        options["bandwidth"] = _number(options["bandwidth"])
    # A rehearsal on a few points: a wrong option must not wait for the end of the training.
    points = 1000 * np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    few = {"components": min(options["components"], 4)} if "components" in options else {}
    density.fit(jax.random.key(0), points, **options | few | {"l2_normalize": False})
    return functools.partial(density.fit, **options), density.score, density.needed(channels, **options)


def _number(text: str) -> float | str:
    """A bandwidth as a number where it is one, else the rule's name."""
    try:
        return float(text)
    except ValueError:
        return text


@functools.cache
def try_proxy(task: str, options: CutPasteOptions, size: tuple[int, int]) -> None:
    """Traces one batch of the proxy task for images of this height and width.

    Raises:
      UserError: Options do not fit together, or into the image.
    """
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    jax.eval_shape(
        lambda images: proxy_batch(jax.random.split(jax.random.key(0), 1), images, proxy=task, options=options), images
    )


class ProxyTraining(NamedTuple):
    """What both models have of a training.

    Attributes:
      model: The network.
      normalized: The normalisation of images in [0, 1].
      functions: `Method.init` and `Method.loss`.
      hooks: Those of the training.
    """

    model: Classifier
    normalized: Callable[[jax.Array], jax.Array]
    functions: dict[str, Callable]
    hooks: Hooks


def proxy_training(config: ConfigDict) -> ProxyTraining:
    """The training on ``config.proxy.task``: the cross entropy of its classes (Equation 1) and a penalty."""
    task, options, settings = config.proxy.task, options_of(config.proxy, CutPasteOptions), config.model
    model = Classifier(
        classes=len(classes(task)),
        depth=settings.head_depth,
        width=settings.head_width,
        backbone=settings.backbone,
        frozen_norm=settings.frozen_norm,
        stochastic_depth=settings.stochastic_depth,
        axis_name=devices.AXIS,
        dtype=compute_dtype(config),
    )
    normalized = normalizer(config)

    def device_augment(keys, batch):
        images, labels = proxy_batch(keys, batch["image"] / jnp.float32(255), proxy=task, options=options)
        return {"image": images, "label": labels, "index": jnp.tile(batch["index"], len(classes(task)))}

    def loss(params, batch_stats, batch, key):
        variables, labels = {"params": params, "batch_stats": batch_stats}, batch["label"]
        made, updated = model.apply(
            variables,
            normalized(batch["image"]),
            train=True,
            examples=batch["index"] * len(classes(task)) + labels,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(made["logits"], labels).mean()
        accuracy = (made["logits"].argmax(axis=-1) == labels).mean()
        return cross_entropy + config.optim.l2 * l2_penalty(params), (updated["batch_stats"], {"accuracy": accuracy})

    def samples(batch):
        return augmentation_grid(jax.random.key(config.seed), batch["image"][:4], options=options)

    hooks = trained_encoder(config)._replace(device_augment=device_augment, samples=samples)
    return ProxyTraining(model, normalized, {"init": functools.partial(model.init, train=False), "loss": loss}, hooks)


def extract(
    features: Callable[[Any, jax.Array], Any], variables: Any, images: Sequence[np.ndarray], *, batch: int
) -> Any:
    """Features of every image, computed on all devices.

    Args:
      features: ``(variables, images) -> features``, a pytree, for float32 (b, h, w, 3) images in [0, 1], jittable.
      variables: Parameters and batch statistics.
      images: uint8 (h, w, 3) each.
      batch: Images in one call, whose last is padded.

    Returns:
      The pytree of NumPy arrays float32 (n, ...).
    """
    found, start = None, 0
    for made in in_batches(features, variables, images, batch=batch):
        if found is None:  # one array from the start: a patch model's features take over a gigabyte
            found = jax.tree.map(lambda leaf: np.empty((len(images), *leaf.shape[1:]), np.float32), made)
        for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(made), strict=True):
            whole[start : start + len(part)] = part
        start += len(part)
    return found


def highest(scores: jax.Array, valid: jax.Array | None, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """The highest score of each image at the positions of a grid that count.

    Args:
      scores: float32 (b, h, w).
      valid: bool (b, height, width), which pixels count, see `Method.score`; None for all.
      rows: int (h,), the pixel that each row of positions is centered on.
      columns: int (w,), likewise.

    Returns:
      float32 (b,). Of an image in which no position counts, such as a thin one, all positions do.
    """
    if valid is None:
        return scores.max(axis=(1, 2))
    counted = valid[:, rows][:, :, columns]
    counted |= ~counted.any(axis=(1, 2), keepdims=True)
    return jnp.where(counted, scores, -jnp.inf).max(axis=(1, 2))


def check_uncropped(config: ConfigDict) -> None:
    """Checks that images are not cut after densities were fitted for the places of whole ones.

    Raises:
      UserError: They would be.
    """
    if config.evaluate.crop not in (0, config.score.size):
        raise UserError(
            f"config.evaluate.crop is {config.evaluate.crop}, but every place has a density of its own, fitted on "
            "whole images; set config.evaluate.crop=0",
            about="evaluate.crop",
        )
