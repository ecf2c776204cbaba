"""Residual networks for images (He et al., CVPR 2016), in torchvision's variant, without the classifier."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models.layers import BatchNorm, Conv, Dropout, max_pool

PLACES = ("blocks", "stages")


class DropoutSpec(NamedTuple):
    """Where and how much dropout thins a network, in training or in inference; it draws from the stream ``dropout``.

    Attributes:
      rate: Probability of each value to be zeroed, in [0, 1); may be traced.
      examples: See ``layers.Dropout``.
      place: One of ``PLACES``: ``blocks``, before the last convolution of every residual block; or ``stages``, behind
        each stage, so that what a stage returns is thinned itself.
    """

    rate: jax.Array | float
    examples: jax.Array | None = None
    place: str = "blocks"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes (section 3.3).

    With ``zero_init_residual`` the convolutions add nothing before the training: see `ResNet`.
    """

    features: int
    stride: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, thinning: DropoutSpec | None = None) -> jax.Array:
        """Maps (b, h, w, in) to (b, h / stride, w / stride, features)."""
        conv = functools.partial(Conv, self.features, dtype=self.dtype)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name)
        last = functools.partial(norm, first_scale=0.0 if self.zero_init_residual else 1.0)
        shortcut = x
        y = nn.relu(norm(name="bn1")(conv(3, self.stride, name="conv1")(x), train=train))
        if thinning is not None:
            y = Dropout(name="dropout")(y, thinning.rate, thinning.examples)
        y = last(name="bn2")(conv(3, name="conv2")(y), train=train)
        if shortcut.shape != y.shape:
            shortcut = conv(1, self.stride, name="downsample_conv")(x)
            shortcut = norm(name="downsample_bn")(shortcut, train=train)
        return nn.relu(y + shortcut)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 beside a shortcut (Figure 5); the 3x3 one has the stride, as in torchvision."""

    features: int
    stride: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, thinning: DropoutSpec | None = None) -> jax.Array:
        """Maps (b, h, w, in) to (b, h / stride, w / stride, 4 features)."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name)
        last = functools.partial(norm, first_scale=0.0 if self.zero_init_residual else 1.0)
        shortcut = x
        y = nn.relu(norm(name="bn1")(conv(self.features, 1, name="conv1")(x), train=train))
        y = nn.relu(norm(name="bn2")(conv(self.features, 3, self.stride, name="conv2")(y), train=train))
        if thinning is not None:
            y = Dropout(name="dropout")(y, thinning.rate, thinning.examples)
        y = last(name="bn3")(conv(4 * self.features, 1, name="conv3")(y), train=train)
        if shortcut.shape != y.shape:
            shortcut = conv(4 * self.features, 1, self.stride, name="downsample_conv")(x)
            shortcut = norm(name="downsample_bn")(shortcut, train=train)
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """A residual network that returns its stages by name.

    Attributes:
      blocks: Number of residual blocks of each of the four stages.
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
      dtype: Dtype of the computation; parameters are float32.
      remat: Whether the gradient computes the inside of each block again instead of keeping it in memory.
      bottleneck: Whether the blocks are `Bottleneck`, whose stages have four times the channels, or `BasicBlock`.
      small_stem: Whether the stem is one for small images: a 3x3 convolution of stride 1 without pooling behind it.
      zero_init_residual: Whether each block's last BatchNorm starts with a scale of 0, so that before the training a
        block hands on what its shortcut does (Goyal et al. 2017, section 5.1); torchvision's option of this name.
    """

    blocks: tuple[int, int, int, int]
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    bottleneck: bool = False
    small_stem: bool = False
    zero_init_residual: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        frozen_norm: bool = False,
        thinning: DropoutSpec | None = None,
        stages: int = 4,
    ) -> dict[str, jax.Array]:
        """Computes the stages of normalised images.

        Args:
          x: (b, h, w, c)
          train: Whether BatchNorm takes the batch's statistics (and updates the collection ``batch_stats``).
          frozen_norm: Whether it takes the running statistics, and leaves them as they are, even so.
          thinning: The dropout; None for none.
          stages: How many of the four stages are computed.

        Returns:
          "stem" (b, h/4, w/4, 64) after pooling, "layer1" (b, h/4, w/4, 64), "layer2" (b, h/8, w/8, 128),
          "layer3" (b, h/16, w/16, 256) and "layer4" (b, h/32, w/32, 512); sizes are rounded up. Behind the small stem
          heights and widths are four times as large, and layers of bottlenecks have four times the channels.

        Raises:
          ValueError: The place of `thinning` is none of `PLACES`.
        """
        if thinning is not None and thinning.place not in PLACES:
            raise ValueError(f"thinning.place must be one of {', '.join(PLACES)}, not {thinning.place!r}")
        train = train and not frozen_norm  # nothing else depends on it
        inside = thinning if thinning and thinning.place == "blocks" else None

        def run(block: BasicBlock | Bottleneck, x: jax.Array) -> jax.Array:
            return block(x, train=train, thinning=inside)

        run = nn.remat(run) if self.remat else run
        size, stride = (3, 1) if self.small_stem else (7, 2)
        x = Conv(64, size, stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(self.axis_name, name="bn1")(x, train=train))
        x = x if self.small_stem else max_pool(x)
        found, kind = {"stem": x}, Bottleneck if self.bottleneck else BasicBlock
        for i, blocks in enumerate(self.blocks[:stages]):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"layer{i + 1}_{j}"
                block = kind(64 * 2**i, stride, self.axis_name, self.dtype, self.zero_init_residual, name=name)
                x = run(block, x)
            if thinning is not None and thinning.place == "stages":
                x = Dropout(name=f"dropout{i + 1}")(x, thinning.rate, thinning.examples)
            found[f"layer{i + 1}"] = x
        return found


ResNet18 = functools.partial(ResNet, (2, 2, 2, 2))
ResNet34 = functools.partial(ResNet, (3, 4, 6, 3))
ResNet50 = functools.partial(ResNet, (3, 4, 6, 3), bottleneck=True)
