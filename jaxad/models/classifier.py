"""The network of the proxy tasks (CutPaste, Section 4): ResNet-18, pooling, projection head, linear classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models.layers import BatchNorm
from jaxad.models.resnet import ResNet18


class Head(nn.Module):
    """Fully connected layers, each with BatchNorm and ReLU, and a linear classifier, in float32.

    Attributes:
      classes: How many classes are told apart.
      depth: Number of layers before the classifier; 0 leaves the linear classifier alone.
      width: Units of each of them.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
    """

    classes: int
    depth: int
    width: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps features (b, d) to logits (b, classes)."""
        for i in range(1, self.depth + 1):
            features = nn.Dense(self.width, use_bias=False, name=f"fc{i}")(features)
            features = nn.relu(BatchNorm(self.axis_name, name=f"bn{i}")(features, train=train))
        return nn.Dense(self.classes, name="classifier")(features)


class Classifier(nn.Module):
    """ResNet-18 with the head of a proxy task. What a density is fitted on are the features before the head.

    Attributes:
      classes: How many classes the proxy task has.
      depth: Number of layers of the projection head.
      width: Units of each of them.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
      dtype: Dtype of the encoder's computation; parameters, features and head are float32.
    """

    classes: int
    depth: int
    width: int
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Names the two parts, which `__call__` and `logits` share."""
        self.encoder = ResNet18(axis_name=self.axis_name, dtype=self.dtype)
        self.head = Head(self.classes, self.depth, self.width, self.axis_name)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Computes the stages of normalised images (b, h, w, 3).

        Returns:
          The encoder's stages by name, "features" float32 (b, 512), and "logits" float32 (b, classes).
        """
        stages = self.encoder(x, train=train)
        features = pool(stages["layer4"])
        return {**stages, "features": features, "logits": self.head(features, train=train)}

    def logits(self, features: jax.Array) -> jax.Array:
        """Logits (b, classes) of features (b, 512) in inference, for what must be differentiated by the features."""
        return self.head(features, train=False)


def pool(stage: jax.Array) -> jax.Array:
    """Average pooling over all positions: (b, h, w, c) to float32 (b, c)."""
    return stage.astype(jnp.float32).mean((1, 2))
