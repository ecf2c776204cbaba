"""NSA: natural synthetic anomalies (Schlüter et al., ECCV 2022).

Patches of other good images are Poisson-blended into good images on the host; an encoder-decoder learns to predict, for
every pixel, how much the blending changed it, and this prediction is the anomaly map.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad.augment import nsa as synthesis
from jaxad.augment.nsa_settings import Synthesis
from jaxad.augment.views import random_view
from jaxad.errors import UserError
from jaxad.methods.method import Method, Scores, reduce_map
from jaxad.models.encoder_decoder import EncoderDecoder
from jaxad.parallel import AXIS


class HostExample:
    """``(rng, image, partner) -> example``: two training views and their blend, on the host (Section 3)."""

    def __init__(self, config: ConfigDict):
        self._view = dict(config.view)
        self._label = config.label
        self._settings = Synthesis(**config.synthesis)

    def __call__(self, rng: np.random.Generator, image: np.ndarray, partner: np.ndarray) -> dict[str, np.ndarray]:
        """Returns ``image`` uint8 (h, w, 3), ``label`` float32 (h, w), and the counts ``patches`` and ``skipped``."""
        view = random_view(rng, image, **self._view)
        source = random_view(rng, partner, **self._view)
        made = synthesis.synthesize(rng, view, source, settings=self._settings, label=self._label)
        counts = {"patches": np.int32(len(made.boxes)), "skipped": np.int32(made.skipped)}
        return {"image": made.image, "label": made.label, **counts}


def create(config: ConfigDict) -> Method:
    """NSA with the synthesis and label type of ``config.synthesis`` and ``config.label``.

    Bounded labels (binary, logistic) are learnt with cross-entropy on a sigmoid (Equation 15), the continuous label with
    the squared error of a rectified output (Equation 16).
    """
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype must be float32 or bfloat16, not {config.dtype!r}")
    bounded = config.label != "continuous"
    model = EncoderDecoder(dtype=jnp.dtype(config.dtype), axis_name=AXIS)
    mean, std = jnp.asarray(config.normalize.mean), jnp.asarray(config.normalize.std)

    def loss(params, batch_stats, batch, key):
        images = (batch["image"] / 255.0 - mean) / std
        variables = {"params": params, "batch_stats": batch_stats}
        stages, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        if bounded:
            value = optax.sigmoid_binary_cross_entropy(stages["logits"], batch["label"]).mean()
        else:
            value = jnp.square(jax.nn.relu(stages["logits"]) - batch["label"]).mean()
        tried = batch["patches"] + batch["skipped"]
        skipped = batch["skipped"].sum() / tried.sum()
        return value, (updated["batch_stats"], {"skipped_patches": skipped})

    def score(variables, density, images):
        logits = model.apply(variables, (images - mean) / std, train=False)["logits"]
        maps = jax.nn.sigmoid(logits) if bounded else jax.nn.relu(logits)
        return Scores(reduce_map(maps, reduction=config.score.reduction, top=config.score.top), maps)

    return Method(
        example=HostExample(config),
        init=lambda key, image: model.init(key, image, train=False),
        corrupt=lambda keys, batch: batch,
        loss=loss,
        fit=lambda variables, good_images, key: {},
        score=score,
    )
