"""Draws the pictures of the documentation: ``python3 -m docs.pictures``.

Those of docs/augmentations.md are made from the embedded demo images, the curves of docs/dla.md from result files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxad.augment import nsa
from jaxad.augment.cutpaste import CutPasteOptions
from jaxad.augment.dla import LocalOptions, ViewOptions
from jaxad.data.demo import source
from jaxad.reporting import charts
from jaxad.reporting.augmentation_grid import augmentation_grid, local_grid
from jaxad.reporting.sample_grid import label_grid
from jaxad.runtime import devices

FOLDER = Path(__file__).parent / "images"
RESULTS = Path(__file__).parents[1] / "results" / "jax_0.12"
# The panels of the curves: the key of a row in history.json, and what it is called.
PANELS = {
    "loss_global": "global loss",
    "loss_dense": "dense loss",
    "loss_negative": "negative loss",
    "projection_spread": "spread of projections",
    "synthetic_image_auroc": "image AUROC, synthetic",
    "synthetic_pixel_auroc": "pixel AUROC, synthetic",
}
SIDE = 96
# The rows of nsa.jpg, each with its label.
SYNTHESES = (
    (nsa.Synthesis(blending="source", steepness=1 / 3, midpoint=7.0), "logistic"),
    (nsa.Synthesis(blending="mixed", steepness=1 / 3, midpoint=7.0), "logistic"),
    (nsa.Synthesis(shape="ellipses", half_height=(0.2, 0.4), half_width=(0.2, 0.4)), "continuous"),
    (nsa.Synthesis(shape="cutpaste", resized=False, patches=1), "binary"),
    (nsa.Synthesis(source="same", blending="paste"), "binary"),
    (nsa.Synthesis(blending="interpolate", resized=False, moved=False, factor=(0.05, 0.95)), "factor"),
    (nsa.Synthesis(blending="mixed", resized=False, moved=False, factor=(0.05, 0.95)), "factor"),
)


def synthesis_rows(key: jax.Array, images: np.ndarray) -> np.ndarray:
    """One row for each of `SYNTHESES`: four examples, each beside its label."""
    rows = []
    for number, (settings, label) in enumerate(SYNTHESES):

        @devices.jit_unoptimized
        @jax.vmap
        def make(key, image, partner, settings=settings, label=label):
            return nsa.random_synthesize(key, image, partner, settings=settings, label=label)

        keys = jax.random.split(jax.random.fold_in(key, number), 4)
        made = devices.to_host(make(keys, images[:4], images[4:8]))
        rows.append(label_grid(made.image, made.label))
    return np.vstack(rows)


def view_rows(key: jax.Array, images: np.ndarray) -> np.ndarray:
    """Eight training views of NSA: turned by up to 5 degrees, cropped, and upside down for half of the draws."""

    @devices.jit_unoptimized
    @jax.vmap
    def make(key, image):
        return nsa.random_view(key, image, rotation=5.0, center_crop=0, crop=SIDE - 8, flip=True)

    return np.hstack(devices.to_host(make(jax.random.split(key, len(images)), images)))


def training_curves(histories: Mapping[str, Sequence[dict[str, float]]]) -> Figure:
    """A panel for each of `PANELS`, over the steps, with a line for each of some trainings.

    Args:
      histories: The rows of history.json by the name of the training.
    """
    figure = Figure(figsize=(9, 4.8))
    for panel, (key, title) in zip(figure.subplots(2, 3, sharex=True).T.ravel(), PANELS.items(), strict=True):
        for name, rows in histories.items():
            points = np.array([(row["step"], row[key]) for row in rows if key in row]).reshape(-1, 2)
            marker = "o" if key.startswith("synthetic") else ""
            panel.plot(*points.T, marker=marker, markersize=3, linewidth=1.2, label=name)
        panel.set(ylabel=title, xlabel="step")
    figure.axes[0].legend()
    return figure


def _write_curves() -> None:
    files = sorted(RESULTS.glob("dla*/bottle/*/history.json"))
    histories = {f"{file.parts[-4]}, {file.parts[-2]}": json.loads(file.read_text()) for file in files}
    with matplotlib.rc_context(charts.STYLE):
        training_curves(histories).savefig(FOLDER / "dla_training.png", dpi=110)


def main() -> None:
    """Writes the pictures."""
    trains = [source.load(category, size=SIDE, train=8).train for category in ("cap", "fabric")]
    caps, fabrics = (np.stack([train[number].image for number in range(8)]) for train in trains)
    mixed, key = np.concatenate([caps[:1], fabrics[:1]]), jax.random.key(0)
    pictures = {
        "cutpaste": augmentation_grid(key, mixed, options=CutPasteOptions()),
        "dla": local_grid(key, mixed, view=ViewOptions(flip=0.5, grey=0.2, blur=0.5), local=LocalOptions()),
        "nsa": synthesis_rows(key, caps),
        "nsa_views": view_rows(key, caps),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        cv2.imwrite(str(FOLDER / f"{name}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    _write_curves()


if __name__ == "__main__":
    main()
