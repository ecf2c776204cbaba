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
from jaxad.methods.method import Hooks, check_choices, compute_dtype, in_batches, normalizer, options_of
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES, Backbone
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
def try_proxy(task: str, options: CutPasteOptions, side: int) -> None:
    """Traces one batch of the proxy task for images of `side` pixels.

    Raises:
      UserError: Options do not fit together, or into the image.
    """
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    jax.eval_shape(
        lambda images: proxy_batch(jax.random.split(jax.random.key(0), 1), images, proxy=task, options=options), images
    )


def backbone_of(config: ConfigDict) -> Backbone:
    """The network of ``config.model.backbone``.

    Raises:
      UserError: There is no such network, or an option of it is out of place.
    """
    settings = config.model
    check_choices({"model.backbone": (settings.backbone, tuple(BACKBONES))})
    backbone = BACKBONES[settings.backbone]
    if settings.stochastic_depth and not backbone.drops:
        raise UserError(
            f"config.model.stochastic_depth is {settings.stochastic_depth}, but {settings.backbone} has no blocks to "
            "skip; set it to 0",
            about="model.stochastic_depth",
        )
    if settings.sha256 and not settings.weights:
        raise UserError(
            "config.model.sha256 is set, but config.model.weights is empty; name a file, or empty both",
            about="model.sha256",
        )
    if (config.optim.head_epochs or settings.frozen_norm) and not settings.weights:
        raise UserError(
            "config.optim.head_epochs and config.model.frozen_norm are for published weights, but config.model.weights "
            "is empty; name them, or set config.optim.head_epochs=0 and config.model.frozen_norm=false",
            about="optim.head_epochs",
        )
    if config.optim.head_epochs and not settings.frozen_norm:
        raise UserError(
            "config.optim.head_epochs leaves the backbone as it is at first, but config.model.frozen_norm=false lets "
            "its statistics change; set config.model.frozen_norm=true or config.optim.head_epochs=0",
            about="optim.head_epochs",
        )
    return backbone


def _param_labels(params: Any, *, frozen_norm: bool) -> Any:
    """`Hooks.param_labels`: the head is new, the backbone loaded, and its BatchNorm frozen with `frozen_norm`."""

    def label(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> str:
        part, *_, layer, _ = (key.key for key in path)
        if part == "head":
            return "new"
        return "frozen" if frozen_norm and "bn" in layer else "loaded"

    return jax.tree_util.tree_map_with_path(label, params)


def _pretrained(config: ConfigDict) -> Hooks:
    """The hooks of ``config.model.weights``: how they are put in place, and what they are."""
    settings, source = config.model, config.model.weights
    if not source:
        return Hooks()

    def load(variables):
        encoder = {name: tree["encoder"] for name, tree in variables.items()}
        encoder = weights.load(source, encoder, model=settings.backbone, sha256=settings.sha256)
        return {name: tree | {"encoder": encoder[name]} for name, tree in variables.items()}

    return Hooks(
        load_pretrained=load, pretrained_checksums=lambda: {source: weights.find(source, sha256=settings.sha256)[1]}
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

    hooks = _pretrained(config)._replace(device_augment=device_augment, samples=samples)
    if config.optim.head_epochs or settings.frozen_norm:
        hooks = hooks._replace(param_labels=functools.partial(_param_labels, frozen_norm=settings.frozen_norm))
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
