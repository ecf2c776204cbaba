"""A model of OpenVINO with the layers of its network in int8, calibrated on good images."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxad.errors import UserError, first_line

_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")


def quantized(model: Any, good: Sequence[np.ndarray]) -> Any:
    """An `openvino.Model` whose network's convolutions are computed in int8 (post-training quantization by NNCF).

    Distances to good features and what is done to maps stay in float32: a range of good images' scores would cut off
    those of defects.

    A convolution to a single channel, such as NSA's last one, stays in float32 too.

    Args:
      model: An export's, that takes images.
      good: Good images, uint8 (h, w, c) each, from which the ranges of activations are taken.

    Raises:
      UserError: NNCF cannot quantize the model.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it tells its makers over the network that it is used
    import nncf

    nncf.set_log_level(logging.ERROR)
    others = [node.get_friendly_name() for node in model.get_ops() if not _is_layer(node)]
    try:
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in good], lambda image: {"images": image}),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(good),
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )
    except Exception as error:  # it has its own kinds
        raise UserError(f"nncf cannot quantize the network ({first_line(error)}); choose another precision") from error


def _is_layer(node: Any) -> bool:
    """Whether a node is a convolution of images with several channels, as networks have and maps have not."""
    if node.get_type_name() not in _LAYERS:
        return False
    images, channels, *_ = node.get_output_partial_shape(0)
    return images.is_dynamic and channels.is_static and channels.get_length() > 1
