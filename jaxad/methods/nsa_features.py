"""A small network learns from NSA's synthetic defects on the features of published weights, which stay as they are.

What it sees at each position are the features and their standard scores, by what good images have there. It says how
likely a synthetic defect is. The distance from the good images, which `jaxad.methods.features` scores by, is raised
where it says so: the network knows defects like NSA's, the distance knows whatever is unlike the good images. Good
images that are added later (`jaxad.refit`) renew the distance alone. This is ours, no row of a paper.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.features import KEYS as FEATURES_KEYS
from jaxad.methods.features import MIN_IMAGES, Scoring, scoring, upsampler
from jaxad.methods.features_fitting import AUTO
from jaxad.methods.features_summary import PER_LOCATION
from jaxad.methods.method import Method, Refit, in_batches
from jaxad.methods.nsa import KEYS as NSA_KEYS
from jaxad.methods.nsa import check_synthesis, objective, with_examples
from jaxad.methods.pretrained import check_channels, encoder_variables, loaded_encoder
from jaxad.models.defect_head import DefectHead

# What is only fitted after the training. Levels and their grid are what the head sees.
_FITTED_LATER = ("name", "neighborhood", "channels", "shrinkage", "ridge", "patches", "bank")
OWN = Keys(
    meanings=explained("""
score.emphasis: How far a defect that the network is sure of raises the distance: the map is distance x
  (1 + emphasis x prediction). 0 leaves the distance alone.
"""),
    at_least={"score.emphasis": 0.0},
    unfitted=(*(f"density.{name}" for name in _FITTED_LATER), "score."),
)
KEYS = OWN.joined_with(FEATURES_KEYS).joined_with(NSA_KEYS)


def create(config: ConfigDict) -> Method:
    """NSA's examples for a head on the features of ``config.model``, and the scorer of ``config.density`` beside it.

    Raises:
      UserError: As `create` of `jaxad.methods.features` and of `jaxad.methods.nsa`; images are not trained on and
        scored as they are, at one size; or the label has no bound.
    """
    check_synthesis(config)
    parts, upsampled = scoring(config), upsampler(config)
    _check(config)
    head, goal, settings = DefectHead(), objective(config), config.score

    def seen(variables, images):
        return parts.joined(encoder_variables(variables), images)

    def logits(variables, found):
        good = variables["batch_stats"]["good"]
        return upsampled(head.apply({"params": variables["params"]["head"]}, found, good["mean"], good["variance"]))

    def prepare(variables, good_images):
        # The density is fitted behind the training; what cannot be fitted must not wait for that.
        parts.check(encoder_variables(variables), good_images)
        print(f"features of the {len(good_images)} images, for their means and variances", flush=True)
        mean, variance = _moments(in_batches(seen, variables, good_images, batch=config.evaluate.batch))
        good = {"mean": mean, "variance": variance}
        return variables | {"batch_stats": variables["batch_stats"] | {"good": good}}

    def loss(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        # Nothing is computed for the encoder's gradient, which would be set to zero anyway.
        found = jax.lax.stop_gradient(seen(variables, batch["image"] / 255.0))
        return goal.loss(logits(variables, found), batch["label"]), (batch_stats, goal.metrics(batch))

    def score(variables, density, images, valid=None):
        found = seen(variables, images)
        factor = 1 + settings.emphasis * goal.predicted(logits(variables, found))
        return parts.score(density, found, images.shape[1:3], factor, valid)

    def map_terms(variables, density, images):
        found = seen(variables, images)
        distance = parts.score(density, found, images.shape[1:3], 1.0, None).map
        raised = settings.emphasis * goal.predicted(logits(variables, found))
        return {"distance": distance, "synthetic defects": distance * raised}

    refit = Refit(
        fit=lambda variables, *given: parts.refit.fit(encoder_variables(variables), *given),
        extend=lambda variables, *given: parts.refit.extend(encoder_variables(variables), *given),
        again=lambda variables, *given: parts.refit.again(encoder_variables(variables), *given),
    )
    hooks = loaded_encoder(config)._replace(
        min_images=MIN_IMAGES, prepare=prepare, param_labels=_param_labels, map_terms=map_terms, refit=refit,
        per_position=config.density.name == PER_LOCATION,
    )
    init = functools.partial(_init, parts=parts, head=head)
    method = Method(init=init, loss=loss, fit=lambda *given: refit.fit(*given)[0], score=score, hooks=hooks)
    return with_examples(config, method)


def _init(key: jax.Array, image: jax.Array, *, parts: Scoring, head: DefectHead) -> dict[str, Any]:
    """`Method.init`: the encoder, the head, and room for the means and variances that `Hooks.prepare` computes."""
    first, second = jax.random.split(key)
    encoder = parts.init(first, image)
    like = jax.eval_shape(parts.joined, encoder, image)
    mean = jnp.zeros(like.shape[1:])
    params = head.init(second, jnp.zeros(like.shape), mean, jnp.ones_like(mean))["params"]
    good = {"mean": mean, "variance": jnp.ones_like(mean)}
    return {
        "params": {"encoder": encoder["params"], "head": params},
        "batch_stats": {"encoder": encoder["batch_stats"], "good": good},
    }


def _check(config: ConfigDict) -> None:
    """Refuses what the head cannot be taught with, and what only the fit behind the training would refuse."""
    check_channels(config)
    size, view = config.data.size, config.view
    sides = {"view.crop": (view.crop, size), "score.size": (config.score.size, size)}
    still = {"view.rotation": (view.rotation, 0), "view.flip": (view.flip, False)}
    for key, (value, needed) in (sides | still).items():
        if value != needed:
            raise UserError(
                f"config.{key} is {value}, but features are judged by their position in whole images of "
                f"config.data.size={size}; set it to {needed}",
                about=key,
            )
    if config.label == "continuous":
        raise UserError(
            "config.label is continuous, whose predictions are grey levels, but config.score.emphasis raises a "
            "distance by predictions in [0, 1]; choose another label",
            about="label",
        )
    if config.score.reweight and config.density.name == AUTO:
        raise UserError(
            f"config.score.reweight is {config.score.reweight}, but density.name=auto may take Gaussians, which have "
            "no neighbors; set it to 0, or config.density.name=nearest_neighbor",
            about="score.reweight",
        )


def _moments(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of features (b, rows, columns, c) at each position, float32 (rows, columns, c)."""
    count, total, squares = 0, 0.0, 0.0
    for batch in batches:
        count += len(batch)
        total = total + batch.sum(axis=0, dtype=np.float64)
        squares = squares + np.square(batch, dtype=np.float64).sum(axis=0)
    mean = total / count
    return mean.astype(np.float32), np.maximum(squares / count - mean**2, 0).astype(np.float32)


def _param_labels(params: dict[str, Any]) -> dict[str, Any]:
    """`Hooks.param_labels`: the head alone is trained."""
    words = {"encoder": "frozen", "head": "new"}
    return {part: jax.tree.map(lambda leaf, word=words[part]: word, tree) for part, tree in params.items()}
