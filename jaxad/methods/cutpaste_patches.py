"""CutPaste on patches: trained on crops, scored on a dense grid of patches (Li et al., CVPR 2021, Section 2.4,
Appendix A.5)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.augment.boxes import sample_place
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.errors import UserError
from jaxad.methods.cutpaste_training import (
    check_uncropped,
    density_functions,
    extract,
    highest,
    proxy_training,
    try_proxy,
)
from jaxad.methods.method import Method, Scores, options_of
from jaxad.methods.pretrained import backbone_of
from jaxad.runtime import devices
from jaxad.scoring import density as densities
from jaxad.scoring import localization


def random_crop(key: jax.Array, image: jax.Array, *, side: int) -> jax.Array:
    """A square of `side` pixels of an image (h, w, c), uniform over all places (Section 2.4)."""
    top, left = sample_place(key, image.shape, side, side)
    return jax.lax.dynamic_slice(image, (top, left, np.int32(0)), (side, side, image.shape[2]))


def patch_model(config: ConfigDict) -> Method:
    """The patch model: trained on crops, scored on a dense grid of patches (Section 2.4, Appendix A.5).

    The map is the grid of scores upsampled by its receptive field; the image score is the grid's maximum.

    Raises:
      UserError: A choice is unknown, or a size is none that the proxy task or the grid of patches can take.
    """
    settings = config.patch
    grid = {"patch": settings.size, "stride": settings.stride}
    places = math.prod(_check_patches(config))
    backbone = backbone_of(config)
    training = proxy_training(config)
    model, normalized = training.model, training.normalized
    fit_density, density_score, min_images = density_functions(config, backbone.stages[backbone.last].channels)

    def cropped(keys, batch):
        crop = functools.partial(random_crop, side=settings.crop)
        return batch | {"image": jax.vmap(crop)(keys, batch["image"])}

    def device_augment(keys, batch):
        crops, augmentations = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        return training.hooks.device_augment(augmentations, cropped(crops, batch))

    def samples(batch):
        keys = jax.random.split(jax.random.key(config.seed), len(batch["image"]))
        return training.hooks.samples(devices.to_host(devices.jit(cropped)(keys, batch)))

    def features(variables, images):
        def apply(patches):
            return model.apply(variables, patches, train=False)["features"]

        return localization.dense_features(apply, normalized(images), **grid, chunk=settings.chunk)

    def fit(variables, good_images, key):
        found = extract(features, variables, good_images, batch=config.evaluate.batch)
        found = np.moveaxis(found, 0, -2) if settings.per_location else found.reshape(-1, found.shape[-1])
        return fit_density(key, found)

    def score(variables, density, images, valid=None):
        made = localization.grid_size(images.shape[1:3], **grid)
        if settings.per_location:
            densities.check_places(density, made, images.shape[1:3])
        scores = density_score(density, features(variables, images))
        maps = localization.receptive_field_upsample(scores, **grid, size=images.shape[1:3])
        centers = [settings.size // 2 + settings.stride * np.arange(count) for count in made]
        return Scores(highest(scores, valid, *centers), maps)

    if not settings.per_location:  # every image gives a feature for each place
        min_images = -(-min_images // places)
    hooks = training.hooks._replace(
        min_images=min_images, device_augment=device_augment, samples=samples, per_position=settings.per_location
    )
    return Method(**training.functions, fit=fit, score=score, hooks=hooks)


def _check_patches(config: ConfigDict) -> tuple[int, int]:
    """Refuses crops that do not fit into the images and grids that do not cover them; returns the grid's size."""
    settings, side = config.patch, config.evaluate.crop or config.score.size
    seen = configs.frame(config, side)
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
        check_uncropped(config)
    try_proxy(config.proxy.task, options_of(config.proxy, CutPasteOptions), (settings.crop,) * 2)
    return localization.grid_size(seen, patch=settings.size, stride=settings.stride)
