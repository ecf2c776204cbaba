"""The network of the proxy tasks (CutPaste, Section 4): backbone, pooling, projection head, linear classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models.backbones import BACKBONES
from jaxad.models.layers import BatchNorm


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
    """A backbone with the head of a proxy task. What a density is fitted on are the features before the head.

    Attributes:
      classes: How many classes the proxy task has.
      depth: Number of layers of the projection head.
      width: Units of each of them.
      backbone: A name in `backbones.BACKBONES`; the paper's is ResNet-18.
      frozen_norm: Whether the backbone's BatchNorm keeps to its running averages in training (Appendix A.4).
      stochastic_depth: Of an EfficientNet, see there.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
      dtype: Dtype of the encoder's computation; parameters, features and head are float32.
    """

    classes: int
    depth: int
    width: int
    backbone: str = "resnet18"
    frozen_norm: bool = False
    stochastic_depth: float = 0.0
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Names the two parts, which `__call__` and `logits` share."""
        chosen = BACKBONES[self.backbone]
        drops = {"stochastic_depth": self.stochastic_depth} if chosen.drops else {}
        self.encoder = chosen.make(axis_name=self.axis_name, dtype=self.dtype, **drops)
        self.head = Head(self.classes, self.depth, self.width, self.axis_name)

    def __call__(self, x: jax.Array, *, train: bool, examples: jax.Array | None = None) -> dict[str, jax.Array]:
        """Computes the stages of normalised images (b, h, w, 3).

        Args:
          x: The images.
          train: Whether BatchNorm takes the batch's statistics, and whether blocks are skipped.
          examples: int32 (b,), numbers by which each example draws the blocks that it skips, from the stream
            ``dropout``; used with `stochastic_depth` alone.

        Returns:
          The backbone's stages by name, "features" float32 (b, d), and "logits" float32 (b, classes).
        """
        chosen = BACKBONES[self.backbone]
        drops = {"examples": examples} if chosen.drops else {}
        stages = self.encoder(x, train=train, frozen_norm=self.frozen_norm, **drops)
        features = pool(stages[chosen.last])
        return {**stages, "features": features, "logits": self.head(features, train=train)}

    def logits(self, features: jax.Array) -> jax.Array:
        """Logits (b, classes) of features (b, d) in inference, for what must be differentiated by the features."""
        return self.head(features, train=False)


def pool(stage: jax.Array) -> jax.Array:
    """Average pooling over all positions: (b, h, w, c) to float32 (b, c)."""
    return stage.astype(jnp.float32).mean((1, 2))
