"""The small network that tells synthetic defects by the features of another one, position by position."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxad.models.layers import Conv

_FARTHEST = 8.0  # standard scores beyond it say no more
# Of the variance over all positions, what a position has at least: few images can make a feature look constant there.
_LEAST = 0.1
_TINY = 1e-6  # for a feature that is the same in all good images


class DefectHead(nn.Module):
    """Two dense layers with two 3x3 convolutions between them, on standard scores and features. All is float32.

    Attributes:
      width: Channels of the convolutions; the first layer has twice as many.
    """

    width: int = 64

    @nn.compact
    def __call__(self, features: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """The logit of a defect at each position.

        Args:
          features: float32 (b, rows, columns, c), levels of a network, joined.
          mean: What good images have at each position, (rows, columns, c).
          variance: Their variance there.

        Returns:
          float32 (b, rows, columns).
        """
        overall = mean.mean((0, 1))
        spread = variance.mean((0, 1)) + mean.var((0, 1)) + _TINY
        standard = (features - mean) * jax.lax.rsqrt(variance + _LEAST * spread)
        standard = jnp.clip(standard, -_FARTHEST, _FARTHEST)
        # The features themselves are seen too, in a scale that a layer can start with.
        x = jnp.concatenate([standard, jnp.abs(standard), (features - overall) * jax.lax.rsqrt(spread)], axis=-1)
        x = nn.relu(nn.Dense(2 * self.width, name="dense1")(x))
        for n in (1, 2):
            x = nn.relu(Conv(self.width, 3, name=f"conv{n}")(x))
        return nn.Dense(1, name="dense2")(x)[..., 0]
