"""CutPaste: a network learns to tell good images from cut-and-pasted ones, and a density says what its features of
good images look like (Li et al., CVPR 2021).

Whole images are scored by how unlikely their pooled features are under the density (Equation 2), and localised by
GradCAM; or a network trained on crops scores the patches of a grid. The proxy task is one of
`jaxad.augment.cutpaste.proxy_tasks`, so the paper's baselines (rotation, Cutout, Scar, Confetti) are this method as
well.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.augment.cutpaste.proxy_tasks import classes, proxy_batch
from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.method import Hooks, Method, Scores, check_choices, compute_dtype, in_batches, normalizer, options_of
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES, Backbone
from jaxad.models.classifier import Classifier, pool
from jaxad.models.cpu import sums
from jaxad.reporting.augmentation_grid import augmentation_grid
from jaxad.runtime import devices
from jaxad.scoring import density as densities
from jaxad.scoring import localization

POOL = "pool"  # the level of the features that the classifier sees: the backbone's last stage, averaged

KEYS = Keys(
    meanings=explained("""
steps_per_epoch: Steps of an epoch, in place of once through the images. The learning rate is constant in one.
proxy.task: What is told apart; the proxy task.
model.backbone: The network; `resnet18_small` is for images of 32 pixels.
model.weights: A safetensors file of published weights, FILE or `hf:OWNER/REPO`; empty to train from scratch.
model.sha256: SHA-256 that the file of weights must have, where jaxad does not know it.
model.frozen_norm: BatchNorm stays as it was published.
model.stochastic_depth: Share of blocks that a training step skips (EfficientNet).
model.head_depth: Layers of the projection head.
model.head_width: Channels of the projection head.
optim.l2: Factor of the kernels' squared norm in the loss.
optim.head_epochs: Epochs that train the head alone, before all layers.
optim.head_learning_rate: Learning rate of these.
density.levels: Stages that a density is fitted on, with commas between; `pool` is the last one, averaged.
density.per_location: Each position has a density of its own, for parts that lie alike in every image.
density.name: The density of the good images' features.
density.l2_normalize: Features are divided by their norm first.
density.shrinkage: How the Gaussian's covariance is made invertible.
density.ridge: What is added to every variance, in squared units of the features.
density.bandwidth: Bandwidth of the kernel density.
density.components: Components of the mixture.
density.covariance: Covariances of the mixture.
density.tolerance: Gain in log likelihood at which the fit of the mixture ends.
score.level: The one of `density.levels` that scores.
score.gradcam: What the map explains: the density's score or the classifier's log odds.
patch.crop: Patch model: side in pixels of the random training crops.
patch.size: Patch model: side in pixels of the patches that are scored.
patch.stride: Patch model: pixels between two patches.
patch.per_location: Patch model: each place has a density of its own.
patch.chunk: Patch model: patches that are computed at once. No score depends on it.
"""),
    at_least={
        "steps_per_epoch": 1,
        "model.head_depth": 0,
        "model.head_width": 1,
        "optim.l2": 0.0,
        "optim.head_epochs": 0,
        "optim.head_learning_rate": 0.0,
        "patch.chunk": 1,
    },
    shares={"model.stochastic_depth": "[0, 1)"},
    used_with={
        "optim.head_learning_rate": ("optim.head_epochs", None),
        "density.shrinkage": ("density.name", "gaussian"),
        "density.bandwidth": ("density.name", "kernel"),
        "density.components": ("density.name", "gaussian_mixture"),
        "density.covariance": ("density.name", "gaussian_mixture"),
        "density.tolerance": ("density.name", "gaussian_mixture"),
    },
    task="proxy.task",
    unfitted=("density.", "score.level"),
)


class RandomCrop:
    """``(rng, image, partner) -> example``: a random square of the image, on the host (Section 2.4)."""

    def __init__(self, side: int):
        self._side = side

    def __call__(self, rng: np.random.Generator, image: np.ndarray, partner: np.ndarray) -> dict[str, np.ndarray]:
        """Returns ``image`` uint8 (side, side, 3)."""
        top, left = (int(rng.integers(length - self._side + 1)) for length in image.shape[:2])
        return {"image": image[top : top + self._side, left : left + self._side]}


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
def _try_proxy(task: str, options: CutPasteOptions, side: int) -> None:
    """Makes one batch in thought, which raises UserError where options do not fit together or into the image."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    jax.eval_shape(
        lambda images: proxy_batch(jax.random.split(jax.random.key(0), 1), images, proxy=task, options=options), images
    )


def _backbone(config: ConfigDict) -> Backbone:
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


class _Training(NamedTuple):
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


def _training(config: ConfigDict) -> _Training:
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
    return _Training(model, normalized, {"init": functools.partial(model.init, train=False), "loss": loss}, hooks)


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


def create(config: ConfigDict) -> Method:
    """CutPaste on whole images, or on patches where the config has ``config.patch``.

    Raises:
      UserError: A choice is unknown, or a size is none that the proxy task, the grid of patches or GradCAM can take.
    """
    return _patches(config) if "patch" in config else _whole_images(config)


def _whole_images(config: ConfigDict) -> Method:
    """Density of the features of whole images (Sections 2.1 to 2.3, 4.2, 4.3).

    ``config.density.levels`` are those that a density is fitted on: ``pool``, or stages of the backbone by name; by
    ``config.score.level`` images are scored. With ``config.density.per_location`` every position of the stage has a
    density of its own, whose scores are the map, and their maximum is the image score (as in Defard et al., ICPR
    2021, there with several stages). Else the features are averaged over the positions, and the map is GradCAM of
    what ``config.score.gradcam`` chooses: ``density``, the image score (of a Gaussian its square root, a distance), or
    ``classifier``, the log odds of the abnormal classes by the proxy's classifier.
    """
    _try_proxy(config.proxy.task, options_of(config.proxy, CutPasteOptions), config.data.size)
    backbone, per_location = _backbone(config), config.density.per_location
    stages = _levels(config, backbone)
    stage = stages[config.score.level]
    mapped = backbone.last if config.score.gradcam == "classifier" and not per_location else stage
    training = _training(config)
    model, normalized = training.model, training.normalized
    made = {level: density_functions(config, backbone.stages[name].channels) for level, name in stages.items()}
    _, density_score, _ = made[config.score.level]

    def distance(scores):
        # A Gaussian's squared distance would give an image twice as far away a map four times as high: within an image
        # nothing changes, but maps of several images could not be compared.
        tiny = jnp.finfo(scores.dtype).tiny  # no gradient where the distance is zero
        return jnp.sqrt(jnp.maximum(scores, tiny)) if config.density.name == "gaussian" else scores

    def features(variables, images):
        found = model.apply(variables, normalized(images), train=False)
        return {level: _summary(found[name], per_location) for level, name in stages.items()}

    def fit(variables, good_images, key):
        found = extract(features, variables, good_images, batch=config.evaluate.batch)
        placed = {level: np.moveaxis(values, 0, -2) for level, values in found.items()}
        return {level: fit_density(key, placed[level]) for level, (fit_density, _, _) in made.items()}

    def score(variables, density, images):
        found, own = model.apply(variables, normalized(images), train=False), density[config.score.level]
        seen = found[mapped].astype(jnp.float32)
        grid = {"size": images.shape[1:3], "first": tuple(backbone.first(mapped, side) for side in images.shape[1:3])}
        if per_location:
            _check_places(own, seen.shape[1:3], images.shape[1:3])
            scores = distance(density_score(own, seen))
            return Scores(scores.max(axis=(1, 2)), localization.upsample_stage(scores, **grid))

        def explained(values):
            if config.score.gradcam == "density":
                return distance(density_score(own, pool(values)))
            logits = model.apply(variables, pool(values), method="logits")
            return jax.nn.logsumexp(logits[:, 1:], axis=-1) - logits[:, 0]

        return Scores(density_score(own, pool(found[stage])), localization.gradcam_maps(explained, seen, **grid))

    def embed(variables, density, keys, images):
        """Features of the classes of the proxy task (Figure 3), made of images as they are."""
        made = {
            name: jax.vmap(functools.partial(make, options=options_of(config.proxy, CutPasteOptions)))(keys, images)
            for name, make in classes(config.proxy.task).items()
        }
        return {name: pool(model.apply(variables, normalized(made[name]), train=False)[stage]) for name in made}

    min_images = max(needed for _, _, needed in made.values())
    hooks = training.hooks._replace(embed=embed, min_images=min_images)
    return Method(**training.functions, fit=fit, score=score, hooks=hooks)


def _summary(stage: jax.Array, per_location: bool) -> jax.Array:
    """What a density is fitted on: float32 (b, h, w, c) as it is, or averaged over the positions, (b, c)."""
    return stage.astype(jnp.float32) if per_location else pool(stage)


def _levels(config: ConfigDict, backbone: Backbone) -> dict[str, str]:
    """The stage of each of ``config.density.levels``.

    Raises:
      UserError: There is no such level, or the map that is asked for cannot be made of it.
    """
    known = (POOL, *backbone.stages)
    levels = [level.strip() for level in config.density.levels.split(",")]
    for level in levels:
        check_choices({"density.levels": (level, known)})
    if config.score.level not in levels:
        raise UserError(
            f"config.score.level {config.score.level!r} is none that a density is fitted on, which are "
            f"config.density.levels={config.density.levels}",
            about="score.level",
        )
    check_choices({"score.gradcam": (config.score.gradcam, ("density", "classifier"))})
    stages = {level: backbone.last if level == POOL else level for level in levels}
    if config.density.per_location:
        _check_uncropped(config)
        return stages
    name = backbone.last if config.score.gradcam == "classifier" else stages[config.score.level]
    key, stride = "evaluate.crop" if config.evaluate.crop else "score.size", backbone.stages[name].stride
    if (side := config.evaluate.crop or config.score.size) <= stride:
        raise UserError(
            f"config.{key} is {side}, but GradCAM needs more than {stride} pixels: the network's stage {name} has one "
            "position for up to so many; choose a larger size",
            about=key,
        )
    return stages


def _check_uncropped(config: ConfigDict) -> None:
    """Refuses to cut images after densities were fitted for the places of whole ones."""
    if config.evaluate.crop not in (0, config.score.size):
        raise UserError(
            f"config.evaluate.crop is {config.evaluate.crop}, but every place has a density of its own, fitted on "
            "whole images; set config.evaluate.crop=0",
            about="evaluate.crop",
        )


def _check_places(density: Any, made: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuses a density that was fitted for other places than those of an image of this size."""
    fitted = max((leaf.shape for leaf in jax.tree.leaves(density)), key=len)[:2]
    if fitted != made:
        raise UserError(
            f"the density was fitted for each of {fitted[0]} x {fitted[1]} places, but an image of {size[0]} pixels "
            f"has {made[0]} x {made[1]}; leave config.score.size and config.evaluate.crop as they were"
        )


def _patches(config: ConfigDict) -> Method:
    """The patch model: trained on crops, scored on a dense grid of patches (Section 2.4, Appendix A.5).

    The map is the grid of scores upsampled by its receptive field; the image score is the grid's maximum.
    """
    settings = config.patch
    grid = {"patch": settings.size, "stride": settings.stride}
    places = math.prod(_check_patches(config))
    backbone = _backbone(config)
    training = _training(config)
    model, normalized = training.model, training.normalized
    fit_density, density_score, min_images = density_functions(config, backbone.stages[backbone.last].channels)

    def features(variables, images):
        def apply(patches):
            return model.apply(variables, patches, train=False)["features"]

        return localization.dense_features(apply, normalized(images), **grid, chunk=settings.chunk)

    def fit(variables, good_images, key):
        found = extract(features, variables, good_images, batch=config.evaluate.batch)
        found = np.moveaxis(found, 0, -2) if settings.per_location else found.reshape(-1, found.shape[-1])
        return fit_density(key, found)

    def score(variables, density, images):
        made = localization.grid_size(images.shape[1:3], **grid)
        if settings.per_location:
            _check_places(density, made, images.shape[1:3])
        scores = density_score(density, features(variables, images))
        maps = localization.receptive_field_upsample(scores, **grid, size=images.shape[1:3])
        return Scores(scores.max(axis=(1, 2)), maps)

    if not settings.per_location:  # every image gives a feature for each place
        min_images = -(-min_images // places)
    hooks, host_augment = training.hooks._replace(min_images=min_images), RandomCrop(settings.crop)
    return Method(**training.functions, fit=fit, score=score, host_augment=host_augment, hooks=hooks)


def _check_patches(config: ConfigDict) -> tuple[int, int]:
    """Refuses crops that do not fit into the images and grids that do not cover them; returns the grid's size."""
    settings, side = config.patch, config.evaluate.crop or config.score.size
    if config.density.name == "kernel" and not settings.per_location:
        raise UserError(
            "the kernel density keeps every feature, which are too many when all places share it; set "
            "config.patch.per_location=true or choose another config.density.name"
        )
    if not 1 <= settings.crop <= config.data.size:
        raise UserError(
            f"config.patch.crop is {settings.crop}, which is no crop of images of {config.data.size} pixels; choose "
            "it from 1 to config.data.size",
            about="patch.crop",
        )
    if settings.per_location:
        _check_uncropped(config)
    _try_proxy(config.proxy.task, options_of(config.proxy, CutPasteOptions), settings.crop)
    return localization.grid_size((side, side), patch=settings.size, stride=settings.stride)
