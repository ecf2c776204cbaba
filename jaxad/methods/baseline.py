"""The smallest filling of the record: how far each pixel lies from the mean of the good images.

It learns nothing, and its row beside a method's gives that method's numbers their meaning.
"""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.method import Hooks, Method, Scores, reduce_map
from jaxad.scoring.localization import gaussian_blur

KEYS = Keys(
    meanings=explained("""
score.sigma: Standard deviation in pixels of the blur.
score.floor: What is added to every standard deviation, in grey levels.
"""),
)


def create(config: ConfigDict) -> Method:
    """The per-pixel baseline: blurred mean over channels of |x - mean| / (std + floor).

    Args:
      config: ``score.sigma`` (pixels), ``score.floor`` (grey levels of 255; keeps constant pixels from dividing by
        zero), ``score.reduction`` and ``score.top``.
    """
    settings = config.score
    if not 0 < settings.sigma <= settings.size:
        raise UserError(
            f"config.score.sigma must be positive and at most config.score.size, not {settings.sigma}",
            about="score.sigma",
        )
    if not settings.floor > 0:
        raise UserError(f"config.score.floor must be positive, not {settings.floor}", about="score.floor")
    if config.evaluate.crop or settings.size != config.data.size:
        raise UserError(
            "baseline_mean compares whole images pixel by pixel: config.evaluate.crop must be 0 "
            f"and config.score.size the same as config.data.size, not {config.evaluate.crop} and {settings.size}",
            about="evaluate.crop",
        )

    def fit(variables, good_images, key):
        # Sums of integers are exact, so the variance loses nothing to cancellation.
        total = sum(image.astype(np.int64) for image in good_images)
        squares = sum(image.astype(np.int64) ** 2 for image in good_images)
        count = len(good_images)
        mean, std = total / count / 255, np.sqrt(count * squares - total**2) / count / 255
        return {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}

    def score(variables, density, images, valid=None):
        distance = jnp.abs(images - density["mean"]) / (density["std"] + settings.floor / 255)
        maps = gaussian_blur(distance.mean(axis=-1), sigma=settings.sigma)
        return Scores(reduce_map(maps, reduction=settings.reduction, top=settings.top, valid=valid), maps)

    return Method(
        init=lambda key, image: {},
        loss=None,
        fit=fit,
        score=score,
        hooks=Hooks(per_position=True),
    )
