"""Residual networks for images (He et al., CVPR 2016), in torchvision's variant, without the classifier."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models.layers import BatchNorm, Conv, Dropout, max_pool

PLACES = ("blocks", "stages")


class Thinning(NamedTuple):
    """Where and how much dropout thins a network, in training or in inference; it draws from the stream ``dropout``.

    Attributes:
        rate: probability of each value to be zeroed, in [0, 1); may be traced.
        examples: see ``layers.Dropout``.
        place: ``blocks``, between the two convolutions of every residual block; or ``stages``, behind each stage, so
            that what a stage returns is thinned itself.
    """

    rate: jax.Array | float
    examples: jax.Array | None = None
    place: str = "blocks"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes (section 3.3)."""

    features: int
    stride: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, thinning: Thinning | None = None) -> jax.Array:
        """Maps (b, h, w, in) to (b, h / stride, w / stride, features)."""
        conv = functools.partial(Conv, self.features, dtype=self.dtype)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name)
        shortcut = x
        y = nn.relu(norm(name="bn1")(conv(3, self.stride, name="conv1")(x), train=train))
        if thinning is not None:
            y = Dropout(name="dropout")(y, thinning.rate, thinning.examples)
        y = norm(name="bn2")(conv(3, name="conv2")(y), train=train)
        if shortcut.shape != y.shape:
            shortcut = conv(1, self.stride, name="downsample_conv")(x)
            shortcut = norm(name="downsample_bn")(shortcut, train=train)
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """A residual network that returns its stages by name.

    Attributes:
        blocks: number of residual blocks of each of the four stages.
        axis_name: mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
        dtype: dtype of the computation; parameters are float32.
        remat: whether the gradient computes the inside of each block again instead of keeping it in memory.
    """

    blocks: tuple[int, int, int, int]
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, thinning: Thinning | None = None, stages: int = 4
    ) -> dict[str, jax.Array]:
        """Computes the stages of normalised images.

        Args:
            x: (b, h, w, c)
            train: whether BatchNorm takes the batch's statistics (and updates the collection ``batch_stats``).
            thinning: the dropout; None for none.
            stages: how many of the four stages are computed.

        Returns:
            "stem" (b, h/4, w/4, 64) after pooling, "layer1" (b, h/4, w/4, 64), "layer2" (b, h/8, w/8, 128),
            "layer3" (b, h/16, w/16, 256) and "layer4" (b, h/32, w/32, 512); sizes are rounded up.
        """
        inside = thinning if thinning and thinning.place == "blocks" else None

        def run(block: BasicBlock, x: jax.Array) -> jax.Array:
            return block(x, train=train, thinning=inside)

        run = nn.remat(run) if self.remat else run
        x = Conv(64, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(self.axis_name, name="bn1")(x, train=train))
        x = max_pool(x)
        found = {"stem": x}
        for i, blocks in enumerate(self.blocks[:stages]):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                block = BasicBlock(64 * 2**i, stride, self.axis_name, self.dtype, name=f"layer{i + 1}_{j}")
                x = run(block, x)
            if thinning is not None and thinning.place == "stages":
                x = Dropout(name=f"dropout{i + 1}")(x, thinning.rate, thinning.examples)
            found[f"layer{i + 1}"] = x
        return found


ResNet18 = functools.partial(ResNet, (2, 2, 2, 2))
