"""CutPaste: a network learns to tell good images from cut-and-pasted ones, and a density says what its features of
good images look like (Li et al., CVPR 2021).

Whole images are scored by how unlikely their pooled features are under the density (Equation 2), and localised by
GradCAM; or a network trained on crops scores the patches of a grid. The proxy task is one of `jaxad.augment.proxies`,
so the paper's baselines (rotation, Cutout, Scar, Confetti) are this method as well.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad import density as densities
from jaxad import localize, parallel
from jaxad.augment.grid import augmentation_grid
from jaxad.augment.proxies import classes, proxy_batch
from jaxad.augment.regions import Options
from jaxad.errors import UserError
from jaxad.methods.method import Method, Scores, compute_dtype, in_batches, normalizer, options_of
from jaxad.models.classifier import Classifier, pool

STRIDE, WIDTH = 32, 512  # of the encoder's last stage: pixels between positions, and channels


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
    return 0.5 * sum(jnp.square(leaf).sum() for path, leaf in leaves if path[-1].key == "kernel")


def density_functions(config: ConfigDict) -> tuple[Callable[..., Any], Callable[[Any, jax.Array], jax.Array], int]:
    """``fit(key, features)`` and ``score(density, features)`` of ``config.density``, and how many features it needs.

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
    return functools.partial(density.fit, **options), density.score, density.needed(WIDTH, **options)


def _number(text: str) -> float | str:
    """A bandwidth as a number where it is one, else the rule's name."""
    try:
        return float(text)
    except ValueError:
        return text


@functools.cache
def _try_proxy(task: str, options: Options, side: int) -> None:
    """Makes one batch in thought, which raises UserError where options do not fit together or into the image."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    jax.eval_shape(
        lambda images: proxy_batch(jax.random.split(jax.random.key(0), 1), images, proxy=task, options=options), images
    )


def _training(config: ConfigDict) -> tuple[Classifier, Callable[[jax.Array], jax.Array], dict[str, Callable]]:
    """The network, the normalisation of images in [0, 1], and what every record has of a training."""
    task, options = config.proxy.task, options_of(config.proxy, Options)
    model = Classifier(
        classes=len(classes(task)),
        depth=config.model.head_depth,
        width=config.model.head_width,
        axis_name=parallel.AXIS,
        dtype=compute_dtype(config),
    )
    normalized = normalizer(config)

    def corrupt(keys, batch):
        images, labels = proxy_batch(keys, batch["image"] / jnp.float32(255), proxy=task, options=options)
        return {"image": images, "label": labels}

    def loss(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        made, updated = model.apply(variables, normalized(batch["image"]), train=True, mutable=["batch_stats"])
        labels = batch["label"]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(made["logits"], labels).mean()
        accuracy = (made["logits"].argmax(axis=-1) == labels).mean()
        return cross_entropy + config.optim.l2 * l2_penalty(params), (updated["batch_stats"], {"accuracy": accuracy})

    def samples(batch):
        return augmentation_grid(jax.random.key(config.seed), batch["image"][:4], options=options)

    init = functools.partial(model.init, train=False)
    return model, normalized, {"init": init, "corrupt": corrupt, "loss": loss, "samples": samples}


def extract(
    features: Callable[[Any, jax.Array], jax.Array], variables: Any, images: Sequence[np.ndarray], *, batch: int
) -> np.ndarray:
    """Features of every image, computed on all devices.

    Args:
      features: ``(variables, images) -> features`` for float32 (b, h, w, 3) images in [0, 1], jittable.
      variables: Parameters and batch statistics.
      images: uint8 (h, w, 3) each.
      batch: Images in one call, whose last is padded.

    Returns:
      float32 (n, ...)
    """
    found, start = None, 0
    for made in in_batches(features, variables, images, batch=batch):
        if found is None:  # one array from the start: a patch model's features take over a gigabyte
            found = np.empty((len(images), *made.shape[1:]), np.float32)
        found[start : start + len(made)] = made
        start += len(made)
    return found


def create(config: ConfigDict) -> Method:
    """CutPaste on whole images, or on patches where the config has ``config.patch``.

    Raises:
      UserError: A choice is unknown, or a size is none that the proxy task, the grid of patches or GradCAM can take.
    """
    return _patches(config) if "patch" in config else _whole_images(config)


def _whole_images(config: ConfigDict) -> Method:
    """Density of pooled features and GradCAM maps (Sections 2.1 to 2.3, 4.2).

    ``config.score.gradcam`` chooses what the map explains: ``density``, the image score (of a Gaussian its square root,
    a distance), or ``classifier``, the log odds of the abnormal classes by the proxy's classifier.
    """
    _try_proxy(config.proxy.task, options_of(config.proxy, Options), config.data.size)
    if config.score.gradcam not in ("density", "classifier"):
        raise UserError(f"config.score.gradcam must be density or classifier, not {config.score.gradcam!r}")
    key = "evaluate.crop" if config.evaluate.crop else "score.size"
    if (side := config.evaluate.crop or config.score.size) <= STRIDE:
        raise UserError(
            f"config.{key} is {side}, but GradCAM needs more than {STRIDE} pixels: the network's last stage has one "
            "position for up to so many; choose a larger size"
        )
    model, normalized, training = _training(config)
    fit_density, density_score, least = density_functions(config)

    def fit(variables, good_images, key):
        def pooled(variables, images):
            return model.apply(variables, normalized(images), train=False)["features"]

        return fit_density(key, extract(pooled, variables, good_images, batch=config.evaluate.batch))

    def score(variables, density, images):
        def explained(stage):
            if config.score.gradcam == "density":
                found = density_score(density, pool(stage))
                # A Gaussian's squared distance would give an image twice as far away a map four times as high: within
                # an image nothing changes, but maps of several images could not be compared.
                tiny = jnp.finfo(found.dtype).tiny  # no gradient where the distance is zero
                return jnp.sqrt(jnp.maximum(found, tiny)) if config.density.name == "gaussian" else found
            logits = model.apply(variables, pool(stage), method="logits")
            return jax.nn.logsumexp(logits[:, 1:], axis=-1) - logits[:, 0]

        stages = model.apply(variables, normalized(images), train=False)
        maps = localize.gradcam_maps(explained, stages["layer4"].astype(jnp.float32), size=images.shape[1:3])
        return Scores(density_score(density, stages["features"]), maps)

    def embed(variables, density, keys, images):
        """Features of the classes of the proxy task (Figure 3), made of images as they are."""
        made = {
            name: jax.vmap(functools.partial(make, options=options_of(config.proxy, Options)))(keys, images)
            for name, make in classes(config.proxy.task).items()
        }
        return {name: model.apply(variables, normalized(made[name]), train=False)["features"] for name in made}

    return Method(**training, fit=fit, score=score, embed=embed, least=least)


def _patches(config: ConfigDict) -> Method:
    """The patch model: trained on crops, scored on a dense grid of patches (Section 2.4, Appendix A.5).

    The map is the grid of scores upsampled by its receptive field; the image score is the grid's maximum.
    """
    settings = config.patch
    grid = {"patch": settings.size, "stride": settings.stride}
    places = math.prod(_check_patches(config))
    model, normalized, training = _training(config)
    fit_density, density_score, least = density_functions(config)

    def features(variables, images):
        def apply(patches):
            return model.apply(variables, patches, train=False)["features"]

        return localize.dense_features(apply, normalized(images), **grid, chunk=settings.chunk)

    def fit(variables, good_images, key):
        found = extract(features, variables, good_images, batch=config.evaluate.batch)
        found = np.moveaxis(found, 0, -2) if settings.per_location else found.reshape(-1, found.shape[-1])
        return fit_density(key, found)

    def score(variables, density, images):
        made = localize.grid_size(images.shape[1:3], **grid)
        fitted = max((leaf.shape for leaf in jax.tree.leaves(density)), key=len)[:2]
        if settings.per_location and fitted != made:
            raise UserError(
                f"the density was fitted for each of {fitted[0]} x {fitted[1]} places, but an image of "
                f"{images.shape[1]} pixels has {made[0]} x {made[1]}; leave config.score.size and config.evaluate.crop "
                "as they were"
            )
        scores = density_score(density, features(variables, images))
        maps = localize.receptive_field_upsample(scores, **grid, size=images.shape[1:3])
        return Scores(scores.max(axis=(1, 2)), maps)

    if not settings.per_location:  # every image gives a feature for each place
        least = -(-least // places)
    return Method(example=RandomCrop(settings.crop), **training, fit=fit, score=score, least=least)


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
            "it from 1 to config.data.size"
        )
    _try_proxy(config.proxy.task, options_of(config.proxy, Options), settings.crop)
    return localize.grid_size((side, side), patch=settings.size, stride=settings.stride)
