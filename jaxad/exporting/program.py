"""What is exported of a detector: a pure function from the pixels of one image to its score and its map."""

import contextlib
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxad import config as configs
from jaxad import methods
from jaxad.detector import Detector
from jaxad.errors import UserError
from jaxad.models import cpu
from jaxad.runtime import devices

RESIZES = ("squeeze", "keep")  # of ``config.data.resize``, by which an export can be used


def input_shape(found: Detector) -> tuple[int, int, int]:
    """(height, width, channels) of the images that are scored, behind the resizing."""
    return *found.region.size, found.channels


def refuse_unexportable(found: Detector) -> None:
    """Refuses a detector of which a fixed program from a frame to its score is not the whole.

    Raises:
      UserError: It scores tiles, a region of interest, or frames of which a part is filled or was cut off.
    """
    resize = configs.resize(found.config)
    if found.tiling is not None:
        raise UserError(
            "a detector that scores in tiles (config.data.tile) cannot be exported; train one without",
            about="data.tile",
        )
    if configs.roi(found.config):
        raise UserError(
            "a detector with a region of interest (config.data.roi) cannot be exported; train one without",
            about="data.roi",
        )
    if resize not in RESIZES:
        raise UserError(
            f"a detector with config.data.resize={resize} cannot be exported; train one with {' or '.join(RESIZES)}",
            about="data.resize",
        )


def refuse_unfilled(found: Detector, shape: tuple[int, int], path: str | os.PathLike, remedy: str) -> None:
    """Refuses an image, of this (height, width), that leaves a part of its frame to be filled, which must not count.

    Raises:
      UserError: It has another aspect ratio than the frame, which a detector with ``config.data.resize=keep`` keeps.
    """
    if found.region.geometry.valid([found.region.geometry.box(shape)]) is not None:
        height, width = found.region.size
        raise UserError(
            f"image '{path}' has another aspect ratio than {width} x {height} (width x height), which an export cannot "
            f"score; {remedy}",
            about=path,
        )


def program(found: Detector, dtype: str = "float32") -> Callable[[jax.Array], dict[str, jax.Array]]:
    """``image -> {"score": (), "map": (h, w)}``, float32, for uint8 (h, w, c).

    All is in it: the division by 255, the region that is judged, the normalization, the network, the density and the
    reduction; the map is zero outside the region. It is traced within `tracing`. The network computes in `dtype`,
    whatever it was trained in.
    """
    config = found.config.copy_and_resolve_references()
    if "dtype" in config:
        config.dtype = dtype
    method = methods.create(config)
    variables, density = devices.to_host((found.variables, found.density))
    border = found.region.border

    def scored(image: jax.Array) -> dict[str, jax.Array]:
        height, width = image.shape[:2]
        seen = image[border : height - border, border : width - border]
        scores = method.score(variables, density, seen[None].astype(jnp.float32) / np.float32(255))
        maps = jnp.pad(scores.map, ((0, 0), (border, border), (border, border)))
        return {"score": scores.image[0], "map": maps[0]}

    return scored


@contextlib.contextmanager
def tracing():
    """Within it functions are traced as they are exported: in plain forms, in float32, their constants on the CPU."""
    with cpu.plain_forms(), jax.enable_x64(False), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield
