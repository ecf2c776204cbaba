"""DLA: self-supervised features of good images, contrasted with dynamic local augmentations (Yoa et al., IEEE Access
2021).

A Siamese network learns that all good images are alike, as wholes and position by position, and that a locally
augmented image is not. An image is scored by how far its feature maps lie from the mean maps of the good images
(regression error, Equation 9), and how far the variance of these maps under dropout lies from its mean (uncertainty,
Equation 11). With ``config.score.standardize``, which is jaxad's and not the paper's, both are divided by how much good
images vary there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.augment.dla import local, views
from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.method import (
    Hooks,
    Method,
    Scores,
    check_choices,
    compute_dtype,
    in_batches,
    normalizer,
    options_of,
    reduce_map,
)
from jaxad.models import siamese_loss
from jaxad.models.resnet import PLACES, DropoutSpec
from jaxad.models.siamese import STARTS, SiameseNetwork
from jaxad.reporting.augmentation_grid import local_grid
from jaxad.runtime import devices
from jaxad.scoring import localization

STAGES = ("layer1", "layer2", "layer3", "layer4")  # of strides 4, 8, 16 and 32
CHANNELS = ("sum", "mean")
BATCH_NORM = ("shared", "apart")
# What never varies in good images may not count without bound: this share of a stage's mean variance is added to each
# variance. On synthetic defects in held-out bottles, shares from 0.001 to 0.1 differ by less than a point.
FLOOR = 0.01
COLLAPSED = 0.1  # the spread of projections below which a warning is due; chosen, the papers have no number

KEYS = Keys(
    meanings=explained("""
model.width: Channels of the projection and of the prediction.
model.bottleneck: Channels between the two layers of the prediction.
model.dense_hidden: Channels between the two layers of the dense heads.
model.dense_width: Channels of the dense heads.
model.zero_init_residual: Residual blocks start as their shortcuts, as in SimSiam's program.
model.head_init: How the heads' layers start: as Flax's, or as PyTorch's.
model.batch_norm: Whether the views, the images and their augmentations of a step share BatchNorm's statistics.
model.dropout: Rate of the dropout, in training and in the passes of the scoring.
model.dropout_place: Dropout inside the blocks or behind the stages.
model.remat: Computes the blocks again in the gradient, so that the paper's batch needs less memory.
objective.global_weight: Weight of the global loss; 0 switches it off.
objective.dense_weight: Weight of the dense loss.
objective.negative_weight: Weight of the loss of negative samples.
objective.pairs: Positive pairs: of all images of a batch, or of an image with itself alone.
objective.reverse: Equation 14 recomputed, or as it is printed.
optim.weight_decay: Weight decay.
score.stages: Stages that are compared, with commas between.
score.channels: Sum, as printed, or mean of the squared differences over the channels.
score.standardize: Squared differences are divided by their variance over good images; the paper's are not.
score.passes: Dropout passes.
score.regression_weight: Weight of the regression error.
score.uncertainty_weight: Weight of the uncertainty; 0 saves the passes.
"""),
    at_least={
        "model.width": 1,
        "model.bottleneck": 1,
        "model.dense_hidden": 1,
        "model.dense_width": 1,
        "objective.global_weight": 0.0,
        "objective.dense_weight": 0.0,
        "objective.negative_weight": 0.0,
        "optim.weight_decay": 0.0,
        "score.regression_weight": 0.0,
        "score.uncertainty_weight": 0.0,
    },
    shares={"model.dropout": "[0, 1)"},
    used_with={
        "model.dense_hidden": ("objective.dense_weight", None),
        "model.dense_width": ("objective.dense_weight", None),
        "model.dropout_place": ("model.dropout", None),
        "objective.reverse": ("objective.dense_weight", None),
        "score.passes": ("score.uncertainty_weight", None),
        **{f"local.{name}": ("objective.negative_weight", None) for name in local.LocalOptions._fields},
    },
)


def stages_of(config: ConfigDict) -> list[str]:
    """The stages that are scored, by name, from the text ``config.score.stages``.

    Raises:
      UserError: There is none, or one that the network lacks, or one twice.
    """
    names = [name.strip() for name in config.score.stages.split(",") if name.strip()]
    if not names or not set(names) <= set(STAGES) or len(set(names)) < len(names):
        raise UserError(
            f"config.score.stages must be one or several of {', '.join(STAGES)}, each once and with commas between, "
            f"not {config.score.stages!r}",
            about="score.stages",
        )
    return names


def _check(config: ConfigDict) -> None:
    """Refuses what the training or the scoring cannot take, before any image is read."""
    choices = {
        "objective.pairs": (config.objective.pairs, siamese_loss.PAIRS),
        "objective.reverse": (config.objective.reverse, siamese_loss.REVERSE),
        "model.dropout_place": (config.model.dropout_place, PLACES),
        "model.head_init": (config.model.head_init, STARTS),
        "model.batch_norm": (config.model.batch_norm, BATCH_NORM),
        "score.channels": (config.score.channels, CHANNELS),
    }
    check_choices(choices)
    weights = {name: config.objective[name] for name in ("global_weight", "dense_weight", "negative_weight")}
    if not any(weights.values()):
        raise UserError(
            f"one of config.objective.{', '.join(weights)} must be above 0; all are 0", about="objective.global_weight"
        )
    if config.batch < 2:
        raise UserError(
            f"config.batch must be at least 2 for {config.method}, not {config.batch}: BatchNorm and the pairs of "
            "different images need several",
            about="batch",
        )
    _check_scoring(config)
    image = jax.ShapeDtypeStruct((*configs.frame(config, config.data.size), 3), jnp.float32)
    jax.eval_shape(functools.partial(augment, config=config), jax.random.key(0), image)


def _check_scoring(config: ConfigDict) -> None:
    scoring = config.score
    if not scoring.regression_weight and not scoring.uncertainty_weight:
        raise UserError(
            "one of config.score.regression_weight and config.score.uncertainty_weight must be above 0",
            about="score.regression_weight",
        )
    if scoring.uncertainty_weight and scoring.passes < 2:
        raise UserError(
            f"config.score.passes must be at least 2, not {scoring.passes}: there is no variance over fewer; set "
            "config.score.uncertainty_weight=0 to score without uncertainty",
            about="score.passes",
        )
    if scoring.uncertainty_weight and not config.model.dropout:
        raise UserError(
            "config.model.dropout is 0, which makes all passes the same; raise it or set "
            "config.score.uncertainty_weight=0 to score without uncertainty",
            about="model.dropout",
        )
    if config.evaluate.crop or scoring.size != config.data.size:
        raise UserError(
            f"{config.method} compares whole images position by position: config.evaluate.crop must be 0, not "
            f"{config.evaluate.crop}, and config.score.size that of config.data.size, {config.data.size}, "
            f"not {scoring.size}",
            about="evaluate.crop",
        )


def _used(config: ConfigDict) -> tuple[views.ViewOptions | None, local.LocalOptions | None]:
    """How the global views and the local augmentations are made; None where the objective does not use them."""
    weights = config.objective
    with_views, with_negatives = weights.global_weight or weights.dense_weight, weights.negative_weight
    chosen = options_of(config.view, views.ViewOptions) if with_views else None
    return chosen, options_of(config.local, local.LocalOptions) if with_negatives else None


def augment(key: jax.Array, image: jax.Array, *, config: ConfigDict) -> jax.Array:
    """What one image becomes in training: two global views, itself, and its local augmentation (Section III-C2).

    Args:
      key: Source of randomness.
      image: float32 (h, w, 3) in [0, 1].
      config: ``view`` and ``local``, and ``objective``, which tells what is needed.

    Returns:
      float32 (k, h, w, 3) in [0, 1]: the two views where the objective has a global or a dense term, then the image and
      its augmentation where it has a negative one.
    """
    view_options, local_options = _used(config)
    view_key, negative_key = jax.random.split(key)
    made = []
    if view_options:
        made.append(views.random_view_pair(view_key, image, options=view_options))
    if local_options:
        negative = local.random_local_augmentation(negative_key, image, options=local_options)
        made.append(jnp.stack([image, negative.image]))
    return jnp.concatenate(made)


def objective(
    made: dict[str, Any], settings: ConfigDict, *, axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss (Equation 8) of what the network makes of the images of `augment`.

    Args:
      made: What `SiameseNetwork` returns, split into the k batches: leaves (k, b, ...), dense ones (2, b, ...).
      settings: ``config.objective``: the weights of the terms, and what the terms leave open.
      axis_name: Mapped axis over which the batch is split, if any.

    Returns:
      The loss, and its terms by name, none of them weighted; the negative term counts with the other sign.
    """
    whole = list(zip(*made["global"], strict=True))  # prediction and projection of each of the k batches
    siamese = functools.partial(siamese_loss.siamese_loss, pairs=settings.pairs, axis_name=axis_name)
    terms, total = {}, 0.0
    if settings.global_weight:
        terms["loss_global"] = siamese(whole[0], whole[1])
        total += settings.global_weight * terms["loss_global"]
    if settings.dense_weight:
        dense = zip(*made["dense"], strict=True)
        indices = siamese_loss.correspondences(*made["features"])
        terms["loss_dense"] = siamese_loss.dense_loss(*dense, indices, reverse=settings.reverse, axis_name=axis_name)
        total += settings.dense_weight * terms["loss_dense"]
    if settings.negative_weight:
        terms["loss_negative"] = siamese(whole[-2], whole[-1])
        total -= settings.negative_weight * terms["loss_negative"]
    return total, terms


def warn_of_collapse(metrics: dict[str, float]) -> str | None:
    """A sentence when nearly all images of a step, or all their positions, have the same projection.

    Good images that are alike while locally augmented ones are not are no collapse but what the objective asks for.
    """
    for key, what in (("projection_spread", "images"), ("dense_spread", "positions of images")):
        if key in metrics and not metrics[key] >= COLLAPSED:
            return (
                f"the network has collapsed ({key} is {metrics[key]:.3f} of 1): it maps all {what} of a step to nearly "
                "the same vector; lower config.optim.learning_rate"
            )
    return None


def dropout_variance(maps: jax.Array) -> jax.Array:
    """The variance over dropout passes (Equation 10), computed from deviations: the difference of squares, as which the
    paper writes it, loses its digits where the mean is large. It is exactly 0 where all passes agree, since the first
    one is subtracted before: the rounded mean of equal numbers may differ from them.

    Args:
      maps: (t, b, h, w, c), a stage in each of t passes.

    Returns:
      (b, h, w, c), divided by t.
    """
    return (maps - maps[:1]).var(axis=0)


def deviation(maps: jax.Array, mean: jax.Array, variance: jax.Array | None) -> jax.Array:
    """How far maps (b, h, w, c) lie from those of good images at every position, by channel.

    Args:
      maps: One stage, or its variances over the dropout passes.
      mean: Their mean over good images, (h, w, c).
      variance: Their variance over good images, (h, w, c), by which, with `FLOOR`, each squared deviation is divided:
        what differs among good images too counts little. A stage that does not vary at all, as under the dropout of
        blocks that are still silent, is not divided. None for deviations as they are in the equations.

    Returns:
      (b, h, w, c)
    """
    deviations = maps - mean
    if variance is None:
        return deviations
    divisor = variance + FLOOR * variance.mean()
    return deviations * jax.lax.rsqrt(jnp.where(divisor > 0, divisor, 1))


def _squared_norm(deviations: jax.Array, channels: str) -> jax.Array:
    """Over the last axis: ``sum``, as printed, which counts a stage the more the more channels it has; or ``mean``, the
    mean difference of which the paper's text speaks."""
    squares = jnp.square(deviations)
    return squares.sum(axis=-1) if channels == "sum" else squares.mean(axis=-1)


def regression_error(deviations: jax.Array, *, size: tuple[int, int], channels: str) -> jax.Array:
    """A stage's term of Equation 9: squared norms of the deviations, then upsampled as Section III-D1 says.

    Args:
      deviations: (b, h, w, c), of a stage.
      size: Height and width of the images.
      channels: ``sum``, the squared norm as it is printed, or ``mean``.

    Returns:
      (b, *size)
    """
    return localization.upsample_stage(_squared_norm(deviations, channels), size=size)


def uncertainty(deviations: jax.Array, *, size: tuple[int, int], channels: str) -> jax.Array:
    """A stage's term of Equation 11: upsampled first, as Section III-D2 says, then the squared norm.

    The maps are upsampled as deviations from their mean, which is the same, since upsampling is linear. They are large,
    so images take turns.

    Args:
      deviations: (b, h, w, c), of the variances of a stage over the dropout passes.
      size: Height and width of the images.
      channels: ``sum``, the squared norm as it is printed, or ``mean``.

    Returns:
      (b, *size)
    """

    def one(image: jax.Array) -> jax.Array:
        upsampled = localization.upsample_stage(jnp.moveaxis(image, -1, 0), size=size)
        return _squared_norm(jnp.moveaxis(upsampled, 0, -1), channels)

    return jax.lax.map(one, deviations)


def _network(config: ConfigDict) -> SiameseNetwork:
    settings = config.model
    return SiameseNetwork(
        width=settings.width,
        bottleneck=settings.bottleneck,
        dense_hidden=settings.dense_hidden,
        dense_width=settings.dense_width,
        axis_name=devices.AXIS,
        dtype=compute_dtype(config),
        remat=settings.remat,
        zero_init_residual=settings.zero_init_residual,
        head_init=settings.head_init,
    )


def _joined(outputs: Sequence[dict[str, Any]], name: str) -> Any:
    """What the network made of several batches, as if they were one."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *(made[name] for made in outputs if name in made))


def _make_loss(config: ConfigDict, model: SiameseNetwork) -> Callable:
    """``Method.loss`` for batches of `augment`, ``image`` (k, b, h, w, 3).

    All k b images share one set of BatchNorm statistics, or each of the k batches has its own
    (``config.model.batch_norm``). With its own, the projection's last BatchNorm gives good and augmented images the
    same mean, and of all pairs (``config.objective.pairs``) nothing can be learnt.
    """
    normalized, settings = normalizer(config), config.model

    def forward(params, batch_stats, images, numbers, key, dense):
        thinning = DropoutSpec(settings.dropout, numbers, settings.dropout_place) if settings.dropout else None
        variables = {"params": params, "batch_stats": batch_stats}
        options = {"thinning": thinning, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return model.apply(variables, normalized(images), train=True, dense=dense, **options)

    def loss(params, batch_stats, batch, key):
        images = batch["image"]
        groups, count = images.shape[:2]
        numbers = batch["index"] * groups + jnp.arange(groups, dtype=jnp.int32)[:, None]
        views = 2 if config.objective.dense_weight else 0
        if settings.batch_norm == "shared":
            images, numbers = images.reshape(-1, *images.shape[2:]), numbers.reshape(-1)
            made, updated = forward(params, batch_stats, images, numbers, key, views * count)
        else:
            parts = [
                forward(params, batch_stats, images[k], numbers[k], key, count if k < views else 0)
                for k in range(groups)
            ]
            outputs, updates = zip(*parts, strict=True)
            # The first has all that there is. Running statistics, by which images are scored, are those of the images,
            # or of a view where there are views alone.
            made, updated = {name: _joined(outputs, name) for name in outputs[0]}, updates[-2]
        projections = {"projection_spread": made["global"][1]}
        if "dense" in made:
            projections["dense_spread"] = made["dense"][1].reshape(-1, settings.dense_width)
        spreads = {name: siamese_loss.spread(rows, axis_name=devices.AXIS) for name, rows in projections.items()}
        made = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]), made)
        value, terms = objective(made, config.objective, axis_name=devices.AXIS)
        return value, (updated["batch_stats"], terms | spreads)

    return loss


def _make_statistics(config: ConfigDict, model: SiameseNetwork) -> Callable:
    """``(variables, keys, images) -> (maps, variances)``: the scored stages of images (b, h, w, 3) in [0, 1] by name,
    and their variances over the dropout passes, {} where there are none. The keys are data, uint32 (1 + t, ...)."""
    normalized, names = normalizer(config), stages_of(config)
    model = model.clone(dtype=jnp.float32)  # the rounding of bfloat16 is larger than many of the variances
    count = 1 + max(STAGES.index(name) for name in names)

    def statistics(variables, keys, images):
        inputs = normalized(images)
        # The plain pass is one at rate 0. Under vmap all passes share what comes before the first dropout.
        rates = np.float32([0] + [config.model.dropout] * (len(keys) - 1))

        def one(key, rate):
            # One mask for all images, so that a score does not depend on where in which batch an image stands.
            thinning = DropoutSpec(rate, None, config.model.dropout_place) if len(keys) > 1 else None
            rngs = {"dropout": key}
            stages = model.apply(variables, inputs, thinning=thinning, count=count, rngs=rngs, method="stages")
            return {name: stages[name].astype(jnp.float32) for name in names}

        stages = jax.vmap(one)(jax.random.wrap_key_data(keys), rates)
        plain = {name: maps[0] for name, maps in stages.items()}
        return plain, {name: dropout_variance(maps[1:]) for name, maps in stages.items()} if len(keys) > 1 else {}

    return statistics


def moments(statistics: Callable, variables: Any, images: Sequence[np.ndarray], *, batch: int) -> tuple[Any, Any]:
    """Mean and variance over images of what `statistics` makes of each, on all devices, without keeping any of it.

    Args:
      statistics: ``(variables, images) -> pytree`` with leaves (b, ...), for float32 (b, h, w, 3) images in [0, 1].
      variables: Parameters and batch statistics, or whatever the function takes.
      images: uint8 (h, w, 3) each.
      batch: Images in one call, whose last is padded.

    Returns:
      The pytree twice, with float32 leaves (...): of means, and of variances, which are divided by the number of
      images. Sums are float64, in which the squares of float32 numbers are exact.
    """
    total = None
    for made in in_batches(statistics, variables, images, batch=batch):
        sums = jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=np.float64), made)
        squares = jax.tree.map(lambda leaf: np.square(leaf, dtype=np.float64).sum(axis=0), made)
        total = (sums, squares) if total is None else jax.tree.map(np.add, total, (sums, squares))
    means, squares = jax.tree.map(lambda leaf: leaf / len(images), total)
    variances = jax.tree.map(lambda mean, square: np.maximum(square - mean**2, 0), means, squares)
    return jax.tree.map(np.float32, (means, variances))


def _check_density(config: ConfigDict, density: Any, names: list[str], *, passes: int) -> None:
    """Refuses to score by what a density was not fitted for."""
    if unknown := set(names) - set(density["maps"]):
        raise UserError(
            f"config.score.stages has {', '.join(sorted(unknown))}, but the training fitted only "
            f"{', '.join(density['maps'])}; choose among these, or train into another workdir",
            about="score.stages",
        )
    fitted = len(density["keys"]) - 1
    if passes not in (0, fitted):
        raise UserError(
            f"config.score.passes is {config.score.passes} and config.score.uncertainty_weight "
            f"{config.score.uncertainty_weight}, but the training fitted the variances of {fitted} passes; leave "
            "both as they were, or set config.score.uncertainty_weight=0",
            about="score.passes",
        )


def create(config: ConfigDict) -> Method:
    """DLA with the objective, the augmentations and the scoring of the config.

    ``config.score``: ``stages``; ``channels``, see `regression_error`; ``standardize``, see `deviation`; the number of
    dropout ``passes`` T; ``regression_weight`` and ``uncertainty_weight`` (Equation 12; an uncertainty without weight
    saves the passes). The paper has no image score: here it is the map's, by ``reduction`` and ``top``.

    Raises:
      UserError: A choice is unknown, or values do not fit together.
    """
    _check(config)
    names, scoring, model = stages_of(config), config.score, _network(config)
    passes = scoring.passes if scoring.uncertainty_weight else 0
    statistics = _make_statistics(config, model)

    def device_augment(keys, batch):
        make = functools.partial(augment, config=config)
        images = jax.vmap(make, out_axes=1)(keys, batch["image"] / jnp.float32(255))
        return {"image": images, "index": batch["index"]}

    def call(given, images):
        variables, keys = given
        return statistics(variables, keys, images)

    def fit(variables, good_images, key):
        keys = np.asarray(jax.random.key_data(jax.random.split(key, 1 + passes)))
        made = moments(call, (variables, keys), good_images, batch=config.evaluate.batch)
        (maps, variances), (of_maps, of_variances) = made
        over_images = {"maps": of_maps, "variances": of_variances}
        # Good images and those to score are passed with the same masks, whose keys therefore are part of the density.
        return {"maps": maps, "variances": variances, "variance_over_images": over_images, "keys": keys}

    def map_terms(variables, density, images):
        _check_density(config, density, names, passes=passes)
        maps, variances = statistics(variables, density["keys"][: 1 + passes], images)

        def term(equation, found, kind):
            mean, size = density[kind], images.shape[1:3]
            variance = density["variance_over_images"][kind] if scoring.standardize else dict.fromkeys(names)
            deviations = [deviation(found[name], mean[name], variance[name]) for name in names]
            return sum(equation(each, size=size, channels=scoring.channels) for each in deviations) / len(names)

        found = {"regression error": scoring.regression_weight * term(regression_error, maps, "maps")}
        if scoring.uncertainty_weight:
            found["uncertainty"] = scoring.uncertainty_weight * term(uncertainty, variances, "variances")
        return found

    def score(variables, density, images, valid=None):
        maps = sum(map_terms(variables, density, images).values())
        return Scores(reduce_map(maps, reduction=scoring.reduction, top=scoring.top, valid=valid), maps)

    def samples(batch):
        view_options, local_options = _used(config)
        return local_grid(jax.random.key(config.seed), batch["image"][:4], view=view_options, local=local_options)

    return Method(
        init=functools.partial(model.init, train=False),
        loss=_make_loss(config, model),
        fit=fit,
        score=score,
        hooks=Hooks(
            device_augment=device_augment,
            samples=samples,
            map_terms=map_terms,
            warn=warn_of_collapse,
            per_position=True,
        ),
    )
