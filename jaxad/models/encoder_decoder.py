"""The encoder-decoder that NSA trains to find its synthetic anomalies (Schlueter et al., ECCV 2022, section 3.4)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.errors import UserError
from jaxad.models.backbones import BACKBONES
from jaxad.models.layers import BatchNorm, Conv, ConvTranspose, upsample_bilinear

STRIDE = 32  # of the stage that is decoded


class UpBlock(nn.Module):
    """A residual block that doubles the resolution by transposed convolutions."""

    features: int
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (b, h, w, in) to (b, 2h, 2w, features)."""
        norm = functools.partial(BatchNorm, axis_name=self.axis_name)
        y = ConvTranspose(self.features, 3, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train=train))
        y = Conv(self.features, 3, dtype=self.dtype, name="conv2")(y)
        y = norm(name="bn2")(y, train=train)
        shortcut = ConvTranspose(self.features, 1, dtype=self.dtype, name="upsample_conv")(x)
        shortcut = norm(name="upsample_bn")(shortcut, train=train)
        return nn.relu(y + shortcut)


class EncoderDecoder(nn.Module):
    """A ResNet-18, or another network, whose last stage is brought back to the image's resolution.

    There are no skip connections.

    Attributes:
      backbone: A name in `backbones.BACKBONES`; the paper's is ResNet-18.
      stage: The one of its stages that is decoded, of stride 32.
      frozen_norm: Whether the backbone's BatchNorm keeps to its running averages in training.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
        Initialisation ignores it.
      dtype: Dtype of the computation; parameters are float32, and so (at least) is the head's work.
    """

    backbone: str = "resnet18"
    stage: str = "layer4"
    frozen_norm: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Computes all stages and the logits of normalised images.

        Args:
          x: (b, h, w, c), sides multiples of 32, any number of channels.
          train: Whether BatchNorm takes the batch's statistics (and updates the collection ``batch_stats``).

        Returns:
          The encoder's stages by name ("stem", "layer1" ... "layer4" of ResNet-18), "squeeze" (b, h/32, w/32, 128),
          "up1" (b, h/16, w/16, 64), "up2" (b, h/8, w/8, 32), "up3" (b, h/4, w/4, 16), and "logits" (b, h, w), to
          which the caller applies a sigmoid or ReLU.

        Raises:
          UserError: A side of the images is not a multiple of 32.
        """
        height, width = x.shape[1:3]
        if height % STRIDE or width % STRIDE:
            raise UserError(
                f"The input is {height} pixels high and {width} wide, but the encoder-decoder takes only multiples "
                f"of {STRIDE}: choose such an input size."
            )
        encoder = BACKBONES[self.backbone].make(axis_name=self.axis_name, dtype=self.dtype, name="encoder")
        count = list(BACKBONES[self.backbone].stages).index(self.stage)  # the stem is none of them
        stages = encoder(x, train=train, frozen_norm=self.frozen_norm, stages=count)
        y = stages[self.stage]
        for i, features in enumerate((256, 128)):
            y = nn.relu(Conv(features, 1, dtype=self.dtype, name=f"squeeze{i + 1}")(y))
        stages["squeeze"] = y
        for i, features in enumerate((64, 32, 16)):
            y = UpBlock(features, self.axis_name, self.dtype, name=f"up{i + 1}")(y, train=train)
            stages[f"up{i + 1}"] = y
        # A map whose values have the 8 bits of bfloat16 is full of ties; the head costs next to nothing.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = ConvTranspose(1, 7, dtype=wide, name="head")(upsample_bilinear(y.astype(wide)))[..., 0]
        return stages | {"logits": logits}
