"""A model of OpenVINO with the layers of its network in int8, calibrated on good images."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")


def quantized(model: Any, good: Sequence[np.ndarray]) -> Any:
    """An `openvino.Model` whose network's convolutions are computed in int8 (post-training quantization by NNCF).

    Distances to good features and what is done to maps stay in float32: a range of good images' scores would cut off
    those of defects.

    Args:
      model: An export's, that takes images.
      good: Good images, uint8 (h, w, c) each, from which the ranges of activations are taken.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    others = [node.get_friendly_name() for node in model.get_ops() if not _is_layer(node)]
    return nncf.quantize(
        model,
        nncf.Dataset([np.asarray(image)[None] for image in good], lambda image: {"images": image}),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(good),
        ignored_scope=nncf.IgnoredScope(names=others, validate=False),
    )


def _is_layer(node: Any) -> bool:
    """Whether a node is a convolution of images with several channels, as networks have and maps have not."""
    if node.get_type_name() not in _LAYERS:
        return False
    images, channels, *_ = node.get_output_partial_shape(0)
    return images.is_dynamic and channels.is_static and channels.get_length() > 1
