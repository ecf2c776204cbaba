"""The networks that turn images into features, by name, with what the methods must know of their stages."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from jaxad.models import efficientnet
from jaxad.models.cpu.depthwise import padding
from jaxad.models.resnet import ResNet18, ResNet34, ResNet50


class Stage(NamedTuple):
    """One stage of a network.

    Attributes:
      stride: Pixels between its positions.
      channels: Features at each position.
    """

    stride: int
    channels: int


class Backbone(NamedTuple):
    """A network.

    Attributes:
      make: ``(*, axis_name, dtype) -> module``, which is called as ``(images, *, train, frozen_norm, stages)``. It
        gives the stem and so many stages, (b, h / stride, w / stride, channels), rounded up, by name; without `stages`
        all.
      stages: What they are, in the order of the computation; the last is pooled for the classifier.
      first: ``(stage, side) -> pixel``, on which its first position is centred in an image of so many pixels.
      drops: Whether `make` takes ``stochastic_depth`` and the module ``examples``, see `efficientnet.EfficientNet`.
    """

    make: Callable[..., nn.Module]
    stages: dict[str, Stage]
    first: Callable[[str, int], int]
    drops: bool = False

    @property
    def last(self) -> str:
        """The stage that is pooled for the classifier."""
        return list(self.stages)[-1]


def _resnet(make: Callable[..., nn.Module], *, expansion: int = 1, small_stem: bool = False) -> Backbone:
    """Its convolutions pad by half their kernel, so that the first position is always on the first pixel."""
    stem = 1 if small_stem else 4
    stages = {"stem": Stage(stem, 64)}
    stages |= {f"layer{n + 1}": Stage(stem * 2**n, 64 * 2**n * expansion) for n in range(4)}
    return Backbone(functools.partial(make, small_stem=small_stem), stages, lambda stage, side: 0)


def _efficientnet(variant: str) -> Backbone:
    make, (stem, top) = functools.partial(efficientnet.EfficientNet, variant), efficientnet.end_features(variant)
    stride, stages = 2, {"stem": Stage(2, stem)}
    for level, stage in zip(efficientnet.LEVELS, efficientnet.scaled_stages(variant), strict=False):
        stride *= stage.stride
        stages[level] = Stage(stride, stage.features)
    stages["top"] = Stage(stride, top)
    return Backbone(make, stages, _first_of_efficientnet, drops=True)


def _first_of_efficientnet(stage: str, side: int) -> int:
    """TensorFlow pads a convolution of stride 2 by less before the image than after it where the sizes ask for it."""
    first, stride = 0, 1
    rows = zip(efficientnet.LEVELS, efficientnet.STAGES, strict=False)  # all blocks but a stage's first have stride 1
    strided = [(level, row.size, row.stride) for level, row in rows]
    for name, size, step in [("stem", 3, 2), *strided]:
        before, _ = padding(side, size, step)
        first += stride * ((size - 1) // 2 - before)
        stride, side = stride * step, -(-side // step)
        if name == stage:
            break
    return first


BACKBONES = {
    "resnet18": _resnet(ResNet18),
    "resnet34": _resnet(ResNet34),
    "resnet50": _resnet(ResNet50, expansion=4),
    "resnet18_small": _resnet(ResNet18, small_stem=True),
    **{f"efficientnet_{variant}": _efficientnet(variant) for variant in efficientnet.SCALES},
}
