"""Small renderer behind the demo data: noise, relief shading, and a camera with its imperfections.

Scenes are relief maps seen from straight above. Lengths are in half frames: the picture spans [-1, 1] in x (to the
right) and y (downwards), so a scene looks the same at every size. Surfaces are drawn at twice the size of the picture.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

SUPERSAMPLING = 2


class Surface(NamedTuple):
    """What a camera looks at, on an (n, n) canvas.

    Attributes:
      height: float32 (n, n), relief in half frames.
      albedo: float32 (n, n, 3), linear reflectance in [0, 1], RGB.
      gloss: float32 (n, n), strength of the mirror-like reflection.
      cover: float32 (n, n), 1 on the part and 0 on what it lies on; the part casts a shadow.
    """

    height: np.ndarray
    albedo: np.ndarray
    gloss: np.ndarray
    cover: np.ndarray


class Rig(NamedTuple):
    """Lamp and lens of an inspection station; every picture deviates a little from it.

    Attributes:
      azimuth: Direction the lamp's light comes from, radians.
      swing: Largest deviation of the azimuth, radians.
      elevation: Angle of the lamp above the table, radians.
      key: Strength of the lamp.
      fill: Strength of the diffuse light from all around.
      shininess: Exponent of the mirror-like reflection.
      lift: Height of the part above the table, which sets the length of its shadow, half frames.
      exposure: Standard deviation of the logarithm of the exposure.
    """

    azimuth: float
    swing: float
    elevation: float
    key: float
    fill: float
    shininess: float
    lift: float
    exposure: float


class Category(NamedTuple):
    """A kind of part: how it is drawn, lit and damaged.

    Attributes:
      draw: ``(rng, n, defect, flaw) -> Surface`` on an (n, n) canvas. ``rng`` decides everything about the good part
        and ``flaw`` everything about the defect (None: a good part), so equal ``rng`` give the same part.
      rig: The station that photographs it.
      defects: Names of its defect types.
    """

    draw: Callable[[np.random.Generator, int, str | None, np.random.Generator], Surface]
    rig: Rig
    defects: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (x, y) of an (n, n) canvas in half frames, float32 and read-only."""
    axis = ((np.arange(n, dtype=np.float32) + 0.5) * 2 / n - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Rises from 0 at ``low`` to 1 at ``high`` with level ends; falls where ``low > high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, n: int, *, cells: float, octaves: int = 1, stretch: float = 1.0) -> np.ndarray:
    """Smooth random field, float32 (n, n), mean about 0 and standard deviation about 1.

    Args:
      cells: Grid cells along the canvas's height in the coarsest octave; each further one doubles them, half as strong.
      stretch: How much longer than high the grains are.
    """
    field = np.zeros((2, 2), np.float32)
    for octave in range(octaves):
        rows = max(2, round(cells * 2**octave))
        columns = max(2, round(rows / stretch))
        field = cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC)
        field += 0.5**octave * rng.standard_normal((rows, columns), dtype=np.float32)
    power = sum(0.25**octave for octave in range(octaves))
    field *= 1.35 / power**0.5  # interpolation lowers the variance of the lattice
    return cv2.resize(field, (n, n), interpolation=cv2.INTER_CUBIC)


def mix(a: np.ndarray, b: np.ndarray | tuple[float, ...], weight: np.ndarray) -> np.ndarray:
    """``a`` where weight (n, n) is 0 and ``b`` where it is 1; a is (n, n, 3), b the same or one colour."""
    if isinstance(b, tuple):
        return a * cv2.merge([1 - weight] * 3) + cv2.merge([weight * c for c in b])
    return a + (b - a) * cv2.merge([weight] * 3)


def _shadows(surface: Surface, rig: Rig, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the lamp's and of the diffuse light that arrives at each point, both (n, n)."""
    n = len(surface.height)
    small = max(16, n // 4)
    low = cv2.resize(surface.height, (small, small), interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(low, (0, 0), 0.012 * small), (n, n), interpolation=cv2.INTER_LINEAR)
    open_sky = 1 / (1 + np.clip(around - surface.height, 0, None) * 14)
    reach = -rig.lift * light[:2] / light[2] * small / 2
    shift = np.array([[1, 0, reach[0]], [0, 1, reach[1]]], np.float32)
    cover = cv2.resize(surface.cover, (small, small), interpolation=cv2.INTER_AREA)
    cast = cv2.GaussianBlur(cv2.warpAffine(cover, shift, (small, small)), (0, 0), 0.012 * small)
    contact = cv2.GaussianBlur(cover, (0, 0), 0.03 * small)
    table = 1 - surface.cover
    lit = 1 - 0.85 * table * cv2.resize(cast, (n, n), interpolation=cv2.INTER_LINEAR)
    open_sky *= 1 - 0.75 * table * cv2.resize(contact, (n, n), interpolation=cv2.INTER_LINEAR)
    return lit, open_sky


def shade(surface: Surface, rig: Rig, azimuth: float, elevation: float) -> np.ndarray:
    """Linear light that leaves the surface towards the camera, float32 (n, n, 3).

    Lambert's law for the lamp and the surroundings, Blinn's half-vector model for the gloss, a soft cast shadow, and
    less diffuse light in hollows.
    """
    light = np.array(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], np.float32
    )
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    n = len(surface.height)
    slope_x = cv2.Sobel(surface.height, cv2.CV_32F, 1, 0, ksize=3, scale=n / 16)
    slope_y = cv2.Sobel(surface.height, cv2.CV_32F, 0, 1, ksize=3, scale=n / 16)
    upright = 1 / cv2.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = np.maximum((light[2] - light[0] * slope_x - light[1] * slope_y) * upright, 0)
    mirror = np.maximum((half[2] - half[0] * slope_x - half[1] * slope_y) * upright, 0)
    lit, open_sky = _shadows(surface, rig, light)
    diffuse = rig.fill * open_sky * (0.4 + 0.6 * upright) + rig.key * facing * lit
    glint = rig.key * surface.gloss * lit * cv2.pow(mirror, rig.shininess) + 0.12 * rig.fill * surface.gloss * open_sky
    return surface.albedo * cv2.merge([diffuse] * 3) + cv2.merge([glint] * 3)


def photograph(rng: np.random.Generator, surface: Surface, rig: Rig, size: int) -> np.ndarray:
    """Picture of a surface without sensor noise, float32 (size, size, 3), sRGB-like levels in [0, 255].

    Lamp direction, exposure, white balance, unevenness of the light, vignetting and focus are drawn from ``rng``, with
    the same draws whatever the surface: two surfaces seen with equal generators are seen under equal conditions.
    """
    azimuth = rig.azimuth + rig.swing * rng.uniform(-1, 1)
    elevation = rig.elevation + 0.06 * rng.standard_normal()
    balance = np.exp(rig.exposure * rng.standard_normal() + 0.012 * rng.standard_normal(3))
    tilt_x, tilt_y = 0.14 * rng.uniform(-1, 1), 0.14 * rng.uniform(-1, 1)
    vignette = rng.uniform(0.05, 0.16)
    focus = rng.uniform(0.35, 0.7) * size / 256
    light = cv2.resize(shade(surface, rig, azimuth, elevation), (size, size), interpolation=cv2.INTER_AREA)
    light = cv2.GaussianBlur(light, (0, 0), focus)
    x, y = grid(size)
    field = (1 + tilt_x * x + tilt_y * y) * (1 - vignette * (x * x + y * y))
    light *= cv2.merge([field * b for b in balance.tolist()])
    light /= 1 + 0.25 * light * light  # highlights roll off before they clip
    return np.clip(cv2.pow(np.maximum(light, 0), 1 / 2.2) * 255, 0, 255)


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise of one exposure, float32 (size, size, 3), relative to the level's standard deviation."""
    return np.float32(rng.uniform(0.7, 1.3)) * rng.standard_normal((size, size, 3), dtype=np.float32)


def expose(picture: np.ndarray, speckle: np.ndarray) -> np.ndarray:
    """Levels (h, w, 3) with read and photon noise, quantised to uint8; ``speckle`` comes from ``grain``."""
    return np.clip(np.rint(picture + speckle * (1.0 + 0.09 * cv2.sqrt(picture))), 0, 255).astype(np.uint8)
