"""The picture of what a network is taught: synthetic training examples beside their labels."""

from pathlib import Path

import cv2
import numpy as np

from jaxad.runtime import disk


def rgb(image: np.ndarray) -> np.ndarray:
    """An image (h, w, 3), or a grey one (h, w, 1), as it is drawn: (h, w, 3)."""
    return image.repeat(3 // image.shape[2], axis=2)


def label_grid(images: np.ndarray, labels: np.ndarray, *, columns: int = 4, rows: int = 4) -> np.ndarray:
    """Draws a grid of training examples, each with its label to its right.

    Args:
      images: (b, h, w, c) in [0, 255], RGB or grey; the first ``columns * rows`` are drawn.
      labels: float32 (b, h, w) from 0 to the highest label, drawn from black to yellow.

    Returns:
      uint8 (height, width, 3), RGB.
    """
    tiles = []
    top = max(float(labels.max()), 1e-6)
    for image, label in list(zip(images.astype(np.uint8), labels, strict=True))[: columns * rows]:
        level = cv2.applyColorMap(np.uint8(255 * np.clip(label / top, 0, 1)), cv2.COLORMAP_INFERNO)
        tile = np.concatenate([rgb(image), level[..., ::-1]], axis=1)
        tiles.append(cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])


def write(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 (h, w, 3) RGB, as PNG."""
    disk.write_bytes(path, cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
