"""EfficientNet (Tan and Le, ICML 2019) without the classifier, with the padding of its TensorFlow weights.

EfficientNet-Lite, which Google published in 2020 for small devices, is built from the same parts. It has no squeeze and
excitation, and ReLU6 in place of swish. Its stem and top keep their width, its first and last stage their depth.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models.cpu.depthwise import depthwise_conv
from jaxad.models.layers import BatchNorm, Dropout, he_normal_fan_out


class Scale(NamedTuple):
    """How a variant scales the widths and depths of B0 (section 3.3), and whether it is one of EfficientNet-Lite."""

    width: float
    depth: float
    lite: bool = False


SCALES = {
    "b0": Scale(1.0, 1.0),
    "b1": Scale(1.0, 1.1),
    "b2": Scale(1.1, 1.2),
    "b3": Scale(1.2, 1.4),
    "b4": Scale(1.4, 1.8),
    "b5": Scale(1.6, 2.2),
    "b6": Scale(1.8, 2.6),
    "b7": Scale(2.0, 3.1),
    "lite0": Scale(1.0, 1.0, lite=True),
    "lite1": Scale(1.0, 1.1, lite=True),
    "lite2": Scale(1.1, 1.2, lite=True),
    "lite3": Scale(1.2, 1.4, lite=True),
    "lite4": Scale(1.4, 1.8, lite=True),
}


class Stage(NamedTuple):
    """A row of table 1: factor of the expansion, size and first stride of the depthwise convolution, output, blocks."""

    expansion: int
    size: int
    stride: int
    features: int
    blocks: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
LEVELS = (*(f"level{i + 1}" for i in range(len(STAGES))), "top")


def scaled_stages(variant: str) -> list[Stage]:
    """The seven stages of a variant: widths and depths scaled, depths rounded up, but not at either end of a Lite."""
    width, depth, lite = SCALES[variant]
    kept = (STAGES[0], STAGES[-1]) if lite else ()
    return [
        s._replace(features=scaled(s.features, width), blocks=math.ceil(s.blocks * (1 if s in kept else depth)))
        for s in STAGES
    ]


def end_features(variant: str) -> tuple[int, int]:
    """Channels of the stem and of the top of a variant."""
    width = 1.0 if SCALES[variant].lite else SCALES[variant].width
    return scaled(32, width), scaled(1280, width)


def scaled(features: int, width: float) -> int:
    """Scales a number of channels and rounds it to a multiple of 8, but not down by more than 10 %."""
    scaled = features * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class Pointwise(nn.Module):
    """1x1 convolution as a matrix product: ``nn.Conv`` with the same parameters."""

    features: int
    bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in) to (..., features)."""
        kernel = self.param("kernel", he_normal_fan_out, (1, 1, x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel[0, 0].astype(self.dtype)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class Depthwise(nn.Module):
    """Depthwise convolution without bias: ``nn.Conv`` with as many groups as channels and the same parameters."""

    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, c) to (b, ceil(h / stride), ceil(w / stride), c)."""
        init = nn.initializers.normal(math.sqrt(2) / self.size)  # He et al. 2015: one channel fans out to one
        kernel = self.param("kernel", init, (self.size, self.size, 1, x.shape[-1]))
        return depthwise_conv(x.astype(self.dtype), kernel, stride=self.stride)


class Block(nn.Module):
    """Mobile inverted bottleneck with squeeze and excitation (Sandler et al. 2018, Hu et al. 2018).

    Attributes:
      stage: What the block is built as; its stride is that of the first block of a stage.
      lite: Whether it is without squeeze and excitation, and has ReLU6 for swish.
      axis_name: See `EfficientNet`.
      dtype: See `EfficientNet`.
    """

    stage: Stage
    lite: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, drop: float, examples: jax.Array) -> jax.Array:
        """Maps (b, h, w, in) to (b, ceil(h / stride), ceil(w / stride), features).

        Args:
          x: (b, h, w, in)
          train: Whether BatchNorm takes the batch's statistics.
          drop: Probability with which an example skips the block, where there is a shortcut.
          examples: See ``layers.Dropout``.
        """
        expansion, size, stride, features, _ = self.stage
        activation = nn.relu6 if self.lite else nn.swish
        pointwise = functools.partial(Pointwise, dtype=self.dtype)
        norm = functools.partial(_Norm, self.axis_name)
        channels, y = x.shape[-1], x
        if expansion > 1:
            y = pointwise(channels * expansion, name="expand_conv")(y)
            y = activation(norm(name="expand_bn")(y, train=train))
        y = Depthwise(size, stride, self.dtype, name="depthwise_conv")(y)
        y = activation(norm(name="depthwise_bn")(y, train=train))
        if not self.lite:
            gate = y.mean((1, 2), keepdims=True)
            gate = nn.swish(pointwise(channels // 4, bias=True, name="reduce")(gate))
            y *= nn.sigmoid(pointwise(y.shape[-1], bias=True, name="expand")(gate))
        y = norm(name="project_bn")(pointwise(features, name="project_conv")(y), train=train)
        if x.shape != y.shape:
            return y
        if drop > 0:
            y *= Dropout(name="stochastic_depth")(jnp.ones((len(y), 1, 1, 1), y.dtype), drop, examples)
        return x + y


_Norm = functools.partial(BatchNorm, momentum=0.01, epsilon=1e-3)  # as the published weights were trained


class EfficientNet(nn.Module):
    """A variant of EfficientNet that returns its levels by name.

    Attributes:
      variant: "b0" to "b7", or "lite0" to "lite4".
      axis_name: Mapped axis over which BatchNorm takes the statistics of the global batch in training, if any.
      dtype: Dtype of the computation; parameters are float32.
      stochastic_depth: Probability with which an example skips the last block in training, growing linearly over the
        blocks (Huang et al. 2016, equation 4).
    """

    variant: str
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        frozen_norm: bool = False,
        examples: jax.Array | None = None,
        stages: int = len(LEVELS),
    ) -> dict[str, jax.Array]:
        """Computes the levels of normalised images.

        Args:
          x: (b, h, w, 3)
          train: Whether BatchNorm takes the batch's statistics (and updates the collection ``batch_stats``), and
            whether blocks are skipped, which draws from the stream ``dropout``.
          frozen_norm: Whether BatchNorm keeps to its running averages all the same.
          examples: int32 (b,), numbers by which each example draws which blocks it skips; None for its place in the
            batch.
          stages: How many of the eight levels behind the stem are computed.

        Returns:
          "stem" (b, h/2, w/2, c), the outputs of the seven stages "level1" (b, h/2, w/2, c), "level2" (h/4),
          "level3" (h/8), "level4" (h/16), "level5" (h/16), "level6" (h/32), "level7" (h/32), and "top" (h/32), the
          1x1 convolution behind them; sizes are rounded up.
        """
        examples = jnp.arange(len(x)) if examples is None else examples
        update = train and not frozen_norm
        lite, (stem, top) = SCALES[self.variant].lite, end_features(self.variant)
        activation = nn.relu6 if lite else nn.swish
        blocks, done = scaled_stages(self.variant), 0
        count = sum(stage.blocks for stage in blocks)
        norm = functools.partial(_Norm, self.axis_name)
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype)
        x = conv(stem, (3, 3), 2, name="stem_conv")(x)
        found = {"stem": activation(norm(name="stem_bn")(x, train=update))}
        x = found["stem"]
        for level, stage in zip(LEVELS[:stages], blocks, strict=False):
            for j in range(stage.blocks):
                done += 1
                drop = self.stochastic_depth * done / count if train else 0.0
                shape = stage._replace(stride=stage.stride if j == 0 else 1)
                block = Block(shape, lite, self.axis_name, self.dtype, name=f"{level}_{j}")
                x = block(x, train=update, drop=drop, examples=examples)
            found[level] = x
        if stages == len(LEVELS):
            x = Pointwise(top, dtype=self.dtype, name="top_conv")(x)
            found["top"] = activation(norm(name="top_bn")(x, train=update))
        return found


# Where the tensors of PyTorch's BatchNorm belong: the collection, and the name in it.
NORM_NAMES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def hugging_face_names(variant: str) -> dict[str, tuple[str, ...]]:
    """Where each tensor of a Hugging Face ``EfficientNetModel`` belongs in the variables of `EfficientNet`.

    Returns:
      From a tensor's name, without the prefix "efficientnet.", to its path in {"params": ..., "batch_stats": ...}.
      Kernels are (out, in, h, w) there and (h, w, in, out) here, also the depthwise ones, whose `in` is 1. Counters
      of batches (``num_batches_tracked``) and the classifier have no place here.
    """
    names = _conv("embeddings.convolution", "stem_conv") | _norm("embeddings.batchnorm", "stem_bn")
    for n, (block, expansion) in enumerate(_blocks(variant)):
        prefix = f"encoder.blocks.{n}"
        if expansion > 1:
            names |= _conv(f"{prefix}.expansion.expand_conv", block, "expand_conv")
            names |= _norm(f"{prefix}.expansion.expand_bn", block, "expand_bn")
        names |= _conv(f"{prefix}.depthwise_conv.depthwise_conv", block, "depthwise_conv")
        names |= _norm(f"{prefix}.depthwise_conv.depthwise_norm", block, "depthwise_bn")
        for name in ("reduce", "expand"):
            names |= _conv(f"{prefix}.squeeze_excite.{name}", block, name)
            names[f"{prefix}.squeeze_excite.{name}.bias"] = ("params", block, name, "bias")
        names |= _conv(f"{prefix}.projection.project_conv", block, "project_conv")
        names |= _norm(f"{prefix}.projection.project_bn", block, "project_bn")
    return names | _conv("encoder.top_conv", "top_conv") | _norm("encoder.top_bn", "top_bn")


def lite_names(variant: str) -> dict[str, tuple[str, ...]]:
    """Where each tensor of an ``EfficientNet`` of the package efficientnet-lite-pytorch belongs: `hugging_face_names`.

    The norms of a block are numbered in the order of their computation, also where the first is left out.
    """
    names = _conv("_conv_stem", "stem_conv") | _norm("_bn0", "stem_bn")
    for n, (block, expansion) in enumerate(_blocks(variant)):
        for i, part in enumerate(("expand", "depthwise", "project")):
            if part != "expand" or expansion > 1:
                names |= _conv(f"_blocks.{n}._{part}_conv", block, f"{part}_conv")
                names |= _norm(f"_blocks.{n}._bn{i}", block, f"{part}_bn")
    return names | _conv("_conv_head", "top_conv") | _norm("_bn1", "top_bn")


def _conv(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.weight": ("params", *ours, "kernel")}


def _norm(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.{name}": (kind, *ours, leaf) for name, (kind, leaf) in NORM_NAMES.items()}


def _blocks(variant: str) -> Iterator[tuple[str, int]]:
    """Name and expansion of each block in order."""
    for i, stage in enumerate(scaled_stages(variant)):
        for j in range(stage.blocks):
            yield f"level{i + 1}_{j}", stage.expansion
