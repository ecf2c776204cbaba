"""Shapes that the demo's defects are made of: irregular patches and strokes, as soft masks on a canvas."""

import math

import cv2
import numpy as np

from jaxad.data.demo.render import noise, smoothstep


def patch(
    rng: np.random.Generator,
    n: int,
    centre: tuple[float, float],
    radius: float,
    *,
    ragged: float = 0.35,
    soft: float = 0.15,
) -> np.ndarray:
    """Irregular spot, float32 (n, n) in [0, 1].

    Args:
      centre: x and y in half frames.
      radius: Mean radius in half frames.
      ragged: Strength of the outline's irregularity, relative to the radius.
      soft: Width of the edge, relative to the radius.
    """
    left, top = (round((c - 2 * radius + 1) * n / 2) for c in centre)
    side = round(2 * radius * n)  # four radii: the outline never reaches the window's border
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (4 / side) - 2
    dx, dy = np.meshgrid(axis, axis)
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(0.65, 1.0)
    along, across = math.cos(turn) * dx + math.sin(turn) * dy, math.cos(turn) * dy - math.sin(turn) * dx
    distance = cv2.magnitude(along * aspect, across / aspect) + 0.5 * ragged * noise(rng, side, cells=7, octaves=3)
    window = smoothstep(1 + soft, 1 - soft, distance)
    spot = np.zeros((n, n), np.float32)
    rows, columns = slice(max(top, 0), min(top + side, n)), slice(max(left, 0), min(left + side, n))
    spot[rows, columns] = window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return spot


def stroke(
    rng: np.random.Generator,
    n: int,
    start: tuple[float, float],
    heading: float,
    length: float,
    *,
    width: float,
    wander: float = 0.1,
) -> np.ndarray:
    """Meandering line that tapers towards its ends, float32 (n, n) in [0, 1], 1 along its middle.

    Args:
      start: x and y in half frames.
      heading: Initial direction, radians.
      length: Length along the line, half frames.
      width: Width in half frames.
      wander: Standard deviation of each of the 24 turns, radians.
    """
    turns = heading + np.cumsum(wander * rng.standard_normal(24))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 24
    points = np.array(start) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    pixels = np.rint(((points + 1) * n / 2 - 0.5) * 16).astype(np.int32)
    canvas = np.zeros((n, n), np.uint8)
    for k in range(24):
        taper = min(1.0, 0.35 + 0.13 * min(k, 23 - k)) * rng.uniform(0.75, 1.25)
        thickness = max(1, round(width * taper * n / 2))
        cv2.line(canvas, pixels[k].tolist(), pixels[k + 1].tolist(), 255, thickness, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), max(0.5, 0.12 * width * n / 2)).astype(np.float32) / 255
