"""Patch statistics of 1,500 synthetic images against those of the authors' program."""

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp

from jaxad.augment.nsa import host
from jaxad.augment.nsa.settings import settings
from tests.shared import SHARED, needs_shared


def bottle_crop(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[16:240, 16:240]


def tile_crop(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((264, 264), Image.Resampling.LANCZOS))[4:260, 4:260]


def statistics(images: list[np.ndarray], category: str, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    boxes, rows = [], []
    for _ in range(count):
        image, partner = (images[i] for i in rng.integers(len(images), size=2))
        made = host.random_synthesize(rng, image, partner, settings=settings(category).synthesis)
        boxes.append(made.boxes)
        rows.append((len(made.boxes), (made.label > 0).mean(), made.label.mean()))
    return named(np.concatenate(boxes), np.array(rows))


def named(boxes: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    top, bottom, left, right = boxes.T
    count, area, mean = rows.T
    names = "top", "left", "height", "width", "count", "labelled_area", "label_mean"
    return dict(zip(names, (top, left, bottom - top, right - left, count, area, mean), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("category", "crop", "golden"),
    [
        pytest.param("bottle", bottle_crop, "bottle", marks=needs_shared("data", "mvtec_ad", "bottle"), id="bottle"),
        # The reference drew its tiles with wood's logistic parameters.
        pytest.param("wood", tile_crop, "tile", marks=needs_shared("data", "magnetic_tile", "tile"), id="tile"),
    ],
)
def test_patch_statistics(category, crop, golden):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    folder = {"bottle": "mvtec_ad/bottle", "tile": "magnetic_tile/tile"}[golden]
    paths = sorted((SHARED / "data" / folder / "train" / "good").iterdir())[:40]
    images = [np.ascontiguousarray(crop(Image.open(path).convert("RGB"))) for path in paths]
    found = statistics(images, category, 1500)
    cv2.setNumThreads(threads)
    with np.load(SHARED / "golden" / f"nsa_patch_statistics_{golden}.npz", allow_pickle=False) as archive:
        reference = named(archive["boxes_top_bottom_left_right"], archive["per_image_patches_labelarea_labelmean"])
    p_values = {name: ks_2samp(found[name], reference[name]).pvalue for name in reference}
    assert min(p_values.values()) > 0.001, p_values
