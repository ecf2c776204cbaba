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
from jaxad.methods.method import Method, Scores, check_choices, compute_dtype, normalizer, reduce_map
from jaxad.models.encoder_decoder import EncoderDecoder
from jaxad.parallel import AXIS
from jaxad.samples import label_grid

STRIDE = 32  # of the encoder's last stage


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


def _check(config: ConfigDict) -> None:
    """Refuses what the synthesis or the network cannot take, before any image is read."""
    choices = {
        "label": (config.label, ("binary", "continuous", "logistic")),
        "synthesis.gradients": (config.synthesis.gradients, ("source", "mixed")),
    }
    check_choices(choices)
    if config.synthesis.patches < 1:
        raise UserError(f"config.synthesis.patches must be at least 1, not {config.synthesis.patches}")
    if config.synthesis.background is not None and len(config.synthesis.background) != 2:
        raise UserError("config.synthesis.background must be none or (brightness, threshold)")
    view, whole = config.view, config.data.size
    if view.center_crop > whole or view.crop > (view.center_crop or whole):
        raise UserError(
            f"config.view.crop {view.crop} does not fit into config.view.center_crop {view.center_crop or 'none'} "
            f"or config.data.size {whole}; lower the first or raise the last"
        )
    sides = {"view.crop": view.crop, "score.size (data.size unless set)": config.score.size}
    sides |= {"evaluate.crop": config.evaluate.crop} if config.evaluate.crop else {}
    for key, side in sides.items():
        if side < STRIDE or side % STRIDE:
            raise UserError(f"config.{key} is {side}, but the network takes multiples of {STRIDE} pixels only")
    _check_ranges(config)


def _check_ranges(config: ConfigDict) -> None:
    """Refuses distributions that cannot be drawn from."""
    made = config.synthesis
    for key in ("half_height", "half_width"):
        low, high = made[key]
        if not 0.5 / config.view.crop <= low <= high < 0.5:
            raise UserError(
                f"config.synthesis.{key} must be (low, high) with half a pixel <= low <= high < 0.5, not {made[key]}"
            )
    if not 0 < made.scale[0] <= made.scale[1]:
        raise UserError(f"config.synthesis.scale must be (low, high) with 0 < low <= high, not {made.scale}")
    if min(made.gamma[:2]) <= 0 or made.gamma[2] < 0:
        raise UserError(f"config.synthesis.gamma must be a shape and a scale above 0 and an offset, not {made.gamma}")
    for key in ("object_fraction", "overlap"):
        if not 0 <= made[key] < 1:
            raise UserError(f"config.synthesis.{key} must lie in [0, 1), not {made[key]}")


def create(config: ConfigDict) -> Method:
    """NSA with the synthesis and label type of ``config.synthesis`` and ``config.label``.

    Bounded labels (binary, logistic) are learnt with cross-entropy on a sigmoid (Equation 15), the continuous label
    with the squared error of a rectified output (Equation 16).

    Raises:
      UserError: A choice is unknown, or a size is none that the synthesis or the network can take.
    """
    _check(config)
    bounded = config.label != "continuous"
    model = EncoderDecoder(dtype=compute_dtype(config), axis_name=AXIS)
    normalized = normalizer(config)

    def loss(params, batch_stats, batch, key):
        images = normalized(batch["image"] / 255.0)
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
        logits = model.apply(variables, normalized(images), train=False)["logits"]
        maps = jax.nn.sigmoid(logits) if bounded else jax.nn.relu(logits)
        return Scores(reduce_map(maps, reduction=config.score.reduction, top=config.score.top), maps)

    return Method(
        example=HostExample(config),
        init=lambda key, image: model.init(key, image, train=False),
        corrupt=lambda keys, batch: batch,
        loss=loss,
        fit=lambda variables, good_images, key: {},
        score=score,
        samples=lambda batch: label_grid(batch["image"], batch["label"]),
    )
