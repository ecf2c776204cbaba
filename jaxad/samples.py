"""The picture of what a network is taught: synthetic training examples beside their labels."""

from pathlib import Path

import cv2
import numpy as np


def sample_grid(path: Path, images: np.ndarray, labels: np.ndarray | None, *, columns: int = 4, rows: int = 4) -> None:
    """Writes a grid of training examples as PNG, each with its label to its right.

    Args:
      path: The file to write.
      images: (b, h, w, c) in [0, 255], c = 3 or 1; the first ``columns * rows`` are drawn.
      labels: float32 (b, h, w) from 0 to the highest label, drawn from black to yellow; None draws images alone.
    """
    tiles = []
    top = max(float(labels.max()), 1e-6) if labels is not None else 1.0
    for number, image in enumerate(images[: columns * rows].astype(np.uint8)):
        tile = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_GRAY2BGR)
        if labels is not None:
            level = np.uint8(255 * np.clip(labels[number] / top, 0, 1))
            tile = np.concatenate([tile, cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)], axis=1)
        tiles.append(cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    grid = np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])
    path.write_bytes(cv2.imencode(".png", grid)[1].tobytes())
