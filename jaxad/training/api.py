"""``jaxad.train``: a training as a function of a config and images."""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import methods
from jaxad.data import GIVEN, MIN_SIDE, layouts
from jaxad.data.given import Given, training_source
from jaxad.data.record import Source
from jaxad.detector import Detector
from jaxad.errors import UserError
from jaxad.training import loop


def train(
    config: ConfigDict,
    images: str | os.PathLike[str] | np.ndarray | Iterable[Given] | Source | None = None,
    workdir: str | os.PathLike[str] | None = None,
    *,
    restart: bool = False,
) -> Detector:
    """Trains a detector on good images, or resumes its training.

    A share ``config.data.holdout`` of the images is held out, and the thresholds are fitted on it; few images are
    cross-fitted instead where nothing is trained (``config.threshold.cross_fit_below``). Neither signal handlers
    nor JAX's settings are changed, and programs are kept on disk only where JAX is set to. While it computes, OpenCV's
    threads are off.

    Args:
      config: Of an experiment, see `jaxad.configs.load`.
      images: What to train on in place of what ``config.data`` names: an array uint8 (n, h, w, 3) or (n, h, w), or an
        iterable of arrays and images of Pillow of any sizes, or of paths; see `Detector.predict` for what one image may
        be. Or a folder of good images, or one in a layout that ``config.data.source`` names or, where it is ``folder``,
        that is recognized. Or a source, see `jaxad.data.record.Source`.
      workdir: Where checkpoints, the log and the detector are kept; the same call resumes a training that was
        interrupted. By default nothing is kept: the training cannot be resumed, and `Detector.save` writes the
        detector.
      restart: Begins anew, with any config and images; a training that the workdir holds is deleted.

    Returns:
      The detector.

    Raises:
      UserError: The config or the images cannot be used, the workdir cannot be written, is in use or was made with
        another config or other images, or the loss is no longer finite.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"config must be one that jaxad.configs.load returns, not {config!r}")
    folder = isinstance(images, str | os.PathLike)
    given = images is not None and not folder
    named = config.data.source if config.data.source in layouts.SOURCES else layouts.AUTOMATIC
    changed = {"data.source": named, "data.root": images, "data.category": ""} if folder else {}
    changed |= {"data.source": GIVEN} if given else {}
    config = configs.override(config, changed, rules_of=methods.rules_of)  # a copy: the caller may change its own
    source = None
    if given:
        kind = {"min_side": MIN_SIDE, "channels": configs.channels(config)}
        source = training_source(images, max_pixels=configs.max_pixels(config), **kind)
    options = {"command": "jaxad.train", "source": source, "defer_signals": False}
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))  # also in a process that computes in float64
        if workdir is not None:
            return loop.train(config, workdir, restart=restart, **options)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxad-")))
        detector = loop.train(config, scratch / "workdir", resumable=False, **options)
        return detector.with_weights(detector.variables, detector.density)  # one that is in no workdir
