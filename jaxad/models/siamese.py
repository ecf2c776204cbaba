"""The network of DLA (Yoa et al., Sections III-B and III-E): ResNet-18 with the heads of a Siamese network."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models.classifier import pool
from jaxad.models.layers import BatchNorm
from jaxad.models.resnet import DropoutSpec, ResNet18

DENSE_STAGE = "layer2"  # the paper's C3, of stride 8: its dense features are those of this stage


# How fully connected layers start: as Flax's, or as PyTorch's, on which SimSiam's program relies: uniform, with a third
# of the variance, and biases alike.
STARTS = {
    "lecun": nn.initializers.lecun_normal(),
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


def _linear(x: jax.Array, units: int, name: str, *, start: str, bias: bool = False) -> jax.Array:
    """A fully connected layer of the last axis."""
    limit = x.shape[-1] ** -0.5
    biases = nn.initializers.zeros
    if start == "torch":
        biases = functools.partial(jax.random.uniform, minval=-limit, maxval=limit)
    return nn.Dense(units, use_bias=bias, kernel_init=STARTS[start], bias_init=biases, name=name)(x)


class GlobalHeads(nn.Module):
    """Projection and prediction of a whole image (SimSiam, Section 3), in float32.

    The projection has three fully connected layers with BatchNorm, also behind the last, which alone has no ReLU. The
    prediction is a bottleneck of two layers with BatchNorm and ReLU between.

    Attributes:
      width: Units of the projection and of the prediction.
      bottleneck: Units inside the prediction.
      start: How the layers start: a name of `STARTS`.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
    """

    width: int
    bottleneck: int
    start: str = "lecun"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps features (b, d) to prediction and projection, (b, width) each."""
        z = features
        for i in range(1, 4):
            z = _linear(z, self.width, f"project{i}", start=self.start)
            z = BatchNorm(self.axis_name, name=f"bn{i}")(z, train=train)
            z = nn.relu(z) if i < 3 else z
        p = _linear(z, self.bottleneck, "predict1", start=self.start)
        p = nn.relu(BatchNorm(self.axis_name, name="bn_predict")(p, train=train))
        return _linear(p, self.width, "predict2", start=self.start, bias=True), z


class DenseHeads(nn.Module):
    """Projection and prediction of every position (DenseCL, Section 3.2), in float32.

    Two 1x1 convolutions each, which are fully connected layers of every position. DenseCL has only ReLU between them,
    since its negative samples prevent a collapse; here there are none, so BatchNorm stands where SimSiam's heads have
    it: without it, the dense loss fell to -0.9 of -1 within a hundred steps.

    Attributes:
      hidden: Channels between the two convolutions of each head.
      width: Channels of projection and prediction.
      start: How the layers start: a name of `STARTS`.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
    """

    hidden: int
    width: int
    start: str = "lecun"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps features (b, s, c) to prediction and projection, (b, s, width) each."""
        z = _linear(features, self.hidden, "project1", start=self.start)
        z = nn.relu(BatchNorm(self.axis_name, name="bn1")(z, train=train))
        z = _linear(z, self.width, "project2", start=self.start)
        z = BatchNorm(self.axis_name, name="bn2")(z, train=train)
        p = _linear(z, self.hidden, "predict1", start=self.start)
        p = nn.relu(BatchNorm(self.axis_name, name="bn_predict")(p, train=train))
        return _linear(p, self.width, "predict2", start=self.start, bias=True), z


class SiameseNetwork(nn.Module):
    """Backbone, global heads and dense heads.

    Attributes:
      width: See `GlobalHeads`.
      bottleneck: See `GlobalHeads`.
      dense_hidden: See `DenseHeads`.
      dense_width: See `DenseHeads`.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
      dtype: Dtype of the backbone's computation; parameters and heads are float32.
      remat: See `ResNet`.
      zero_init_residual: See `ResNet`.
      head_init: How the heads' layers start: a name of `STARTS`.
    """

    width: int
    bottleneck: int
    dense_hidden: int
    dense_width: int
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    zero_init_residual: bool = False
    head_init: str = "lecun"

    def setup(self):
        """Names the three parts."""
        options = {"remat": self.remat, "zero_init_residual": self.zero_init_residual}
        self.backbone = ResNet18(axis_name=self.axis_name, dtype=self.dtype, **options)
        self.heads = GlobalHeads(self.width, self.bottleneck, self.head_init, self.axis_name)
        self.dense_heads = DenseHeads(self.dense_hidden, self.dense_width, self.head_init, self.axis_name)

    def __call__(
        self, x: jax.Array, *, train: bool, thinning: DropoutSpec | None = None, dense: int = 1
    ) -> dict[str, jax.Array | tuple[jax.Array, jax.Array]]:
        """Computes predictions and projections of normalised images (b, h, w, 3).

        Args:
          x: The images.
          train: Whether BatchNorm takes the batch's statistics (and updates the collection ``batch_stats``).
          thinning: The backbone's dropout; None for none.
          dense: Of how many images, the first ones, the positions are predicted.

        Returns:
          "global", prediction and projection (b, width). With `dense` above 0 also "features" (dense, s, 128), the
          backbone's at the s positions of `DENSE_STAGE`, row by row and thinned like it, and "dense", prediction and
          projection (dense, s, dense_width).
        """
        stages = self.backbone(x, train=train, thinning=thinning)
        made = {"global": self.heads(pool(stages["layer4"]), train=train)}
        if dense:
            features = stages[DENSE_STAGE][:dense].astype(jnp.float32)
            made["features"] = features.reshape(dense, -1, features.shape[-1])
            made["dense"] = self.dense_heads(made["features"], train=train)
        return made

    def stages(self, x: jax.Array, *, thinning: DropoutSpec | None = None, count: int = 4) -> dict[str, jax.Array]:
        """The first `count` stages of normalised images (b, h, w, 3) in inference, by name."""
        return self.backbone(x, train=False, thinning=thinning, stages=count)
