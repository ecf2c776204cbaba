"""Demo category ``cap``: a moulded, printed closure that a fixture presents nearly aligned, on a conveyor belt."""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from jaxad.data.demo.marks import patch, stroke
from jaxad.data.demo.render import Category, Rig, Surface, grid, mix, noise, smoothstep

_PRINT_SIDE = 1024
_BELT_DEPTH = -0.12


class Pose(NamedTuple):
    """Where the cap lies: centre in half frames, angle in radians, radius in half frames."""

    x: float
    y: float
    angle: float
    radius: float

    def at(self, distance: float, direction: float) -> tuple[float, float]:
        """Frame coordinates of a point given by its distance from the centre, in radii, and its direction."""
        reach = distance * self.radius
        return self.x + reach * np.cos(direction + self.angle), self.y + reach * np.sin(direction + self.angle)


@functools.lru_cache(maxsize=1)
def _print() -> np.ndarray:
    """The ink of a perfect cap, float32 (1024, 1024) in [0, 1], spanning [-1, 1] cap radii."""
    ink = np.zeros((_PRINT_SIDE, _PRINT_SIDE), np.uint8)
    middle = _PRINT_SIDE // 2
    for turn in (0, 180):
        cv2.ellipse(ink, (middle, middle), (262, 262), turn, 200, 318, 255, 34, cv2.LINE_AA)
        tip = np.radians(turn + 336)
        radial, tangent = np.array([np.cos(tip), np.sin(tip)]), np.array([-np.sin(tip), np.cos(tip)])
        base = middle + 262 * np.array([np.cos(tip - 0.3), np.sin(tip - 0.3)])
        head = np.stack([base - 46 * radial, base + 46 * radial, middle + 258 * radial + 14 * tangent])
        cv2.fillPoly(ink, [np.rint(head).astype(np.int32)], 255, cv2.LINE_AA)
    for text, row, scale, weight in (("PUSH", -34, 2.9, 19), ("& TURN", 66, 2.1, 15)):
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
        corner = (middle - width // 2, middle + row + height // 2)
        cv2.putText(ink, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, weight, cv2.LINE_AA)
    return cv2.GaussianBlur(ink, (0, 0), 1.5).astype(np.float32) / 255


def _ink(rng: np.random.Generator, n: int, pose: Pose) -> np.ndarray:
    """The print as this cap carries it: placed with a tolerance, worn a little; float32 (n, n)."""
    offset, turn = 0.008 * rng.standard_normal(2), np.degrees(pose.angle) + 1.0 * rng.standard_normal()
    scale = pose.radius * n / _PRINT_SIDE
    matrix = cv2.getRotationMatrix2D((_PRINT_SIDE / 2, _PRINT_SIDE / 2), -turn, scale)
    matrix[:, 2] += (np.array([pose.x, pose.y]) + offset + 1) * n / 2 - _PRINT_SIDE / 2
    smooth = cv2.GaussianBlur(_print(), (0, 0), max(0.6, 0.45 / scale))
    ink = cv2.warpAffine(smooth, matrix, (n, n), flags=cv2.INTER_LINEAR)
    return ink * np.clip(0.93 + 0.06 * noise(rng, n, cells=60, octaves=2), 0, 1)


def _relief(rng: np.random.Generator, n: int, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Height of the cap above its top plane and its coverage of the frame, both float32 (n, n)."""
    x, y = grid(n)
    distance, angle = cv2.cartToPolar(x - np.float32(pose.x), y - np.float32(pose.y))
    rho = distance / pose.radius
    teeth = 0.5 + 0.5 * np.cos(72 * (angle - pose.angle))
    skirt = smoothstep(0.885, 0.93, rho)
    outline = 1 - 0.022 * teeth
    height = 0.035 * (1 - rho * rho) - 0.05 * smoothstep(0.86, 1.0, rho) ** 2 - 0.02 * skirt * teeth
    height -= 0.016 * smoothstep(0.83, 0.805, rho) - 0.010 * smoothstep(0.735, 0.71, rho)
    height += 0.006 * np.exp(-(((rho - 0.42) / 0.012) ** 2))
    warp = 0.004 * noise(rng, n, cells=3)
    height += warp + 0.00022 * noise(rng, n, cells=170, octaves=2)
    cover = smoothstep(0.006, -0.006, rho - outline)
    return height, cover


def _belt(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Height and albedo (n, n, 3) of the rubber belt under the cap."""
    fine = noise(rng, n, cells=110, octaves=2)
    wear = noise(rng, n, cells=4, octaves=3)
    tone = np.clip(0.11 * (1 + 0.16 * wear + 0.08 * fine), 0.02, 1)
    return _BELT_DEPTH + 0.0012 * fine, cv2.merge([tone * 1.0, tone * 1.02, tone * 1.06])


def _misprint(rng: np.random.Generator, ink: np.ndarray, pose: Pose) -> np.ndarray:
    """Ink missing from, or smeared over, a part of the print."""
    n = len(ink)
    if rng.random() < 0.5:
        centre = pose.at(0.51, rng.choice([0.0, np.pi]) + rng.uniform(3.6, 5.3))
    else:
        centre = pose.at(rng.uniform(0.05, 0.28), rng.choice([0.0, np.pi]) + rng.uniform(-0.3, 0.3))
    spot = patch(rng, n, centre, rng.uniform(0.13, 0.19), ragged=0.4, soft=0.1)
    if rng.random() < 0.55:
        return ink * (1 - spot)
    drag = rng.uniform(0.05, 0.09) * n / 2
    way = rng.uniform(0, 2 * np.pi)
    smear = ink.copy()
    for step in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        move = np.array([[1, 0, drag * step * np.cos(way)], [0, 1, drag * step * np.sin(way)]])
        smear = np.maximum(smear, (1 - 0.35 * step) * cv2.warpAffine(ink, move, (n, n)))
    return ink + (smear - ink) * spot


def _chip(rng: np.random.Generator, part: Surface, belt: tuple[np.ndarray, np.ndarray], pose: Pose) -> Surface:
    """A piece broken off the rim: the belt shows, and the fracture is rough and pale."""
    n = len(part.height)
    centre = pose.at(rng.uniform(0.95, 1.01), rng.uniform(0, 2 * np.pi))
    radius = rng.uniform(0.075, 0.13)
    state = rng.bit_generator.state
    gone = patch(rng, n, centre, radius, ragged=0.28, soft=0.04)
    rng.bit_generator.state = state  # the fracture runs along the same outline, a little outside it
    torn = patch(rng, n, centre, radius * 1.25, ragged=0.28, soft=0.1) * part.cover * (1 - gone)
    rough = noise(rng, n, cells=90, octaves=2)
    height = part.height - torn * (0.03 + 0.006 * rough)
    albedo = mix(part.albedo, part.albedo * 0.5 + 0.26, torn * 0.85)
    cover = part.cover * (1 - gone)
    gloss = part.gloss * (1 - gone) * (1 - torn)
    return Surface(height + (belt[0] - height) * gone, mix(albedo, belt[1], gone), gloss, cover)


def _contamination(rng: np.random.Generator, part: Surface, pose: Pose) -> Surface:
    """Grease or dried residue on the top, with spatters around it."""
    n = len(part.height)
    distance, direction = 0.72 * np.sqrt(rng.uniform(0.02, 1)), rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.055, 0.10)
    film = patch(rng, n, pose.at(distance, direction), radius, ragged=0.6, soft=0.2)
    for _ in range(rng.integers(1, 4)):
        near = pose.at(distance + rng.uniform(-0.22, 0.22), direction + rng.uniform(-0.3, 0.3))
        film = np.maximum(film, patch(rng, n, near, radius * rng.uniform(0.16, 0.35), soft=0.3))
    film *= part.cover
    dark = rng.random() < 0.6
    strength = rng.uniform(0.8, 1.2)
    colour = tuple(strength * c for c in ((0.035, 0.028, 0.02) if dark else (0.42, 0.36, 0.24)))
    body = film * np.clip(0.82 + 0.13 * noise(rng, n, cells=50, octaves=2), 0, 1)
    height = part.height + 0.010 * cv2.GaussianBlur(film, (0, 0), 0.006 * n)
    return Surface(
        height, mix(part.albedo, colour, body), part.gloss * (1 + (0.6 if dark else -0.8) * film), part.cover
    )


def _scratch(rng: np.random.Generator, part: Surface, pose: Pose) -> Surface:
    """A gouge across the top: a groove with thrown-up lips and pale, stressed plastic."""
    n = len(part.height)
    start = pose.at(rng.uniform(0.2, 0.75), rng.uniform(0, 2 * np.pi))
    inward = np.arctan2(pose.y - start[1], pose.x - start[0]) + rng.uniform(-0.9, 0.9)
    length, width = rng.uniform(0.3, 0.65), rng.uniform(0.028, 0.044)
    groove = stroke(rng, n, start, inward, length, width=width, wander=0.06) * part.cover
    lips = cv2.GaussianBlur(groove, (0, 0), 0.4 * width * n / 2)
    height = part.height - 0.016 * groove + 0.010 * lips
    rough = np.clip(0.85 + 0.15 * noise(rng, n, cells=120), 0, 1)
    return Surface(
        height, mix(part.albedo, (0.46, 0.53, 0.60), 0.92 * groove * rough), part.gloss * (1 - 0.7 * groove), part.cover
    )


def _draw(rng: np.random.Generator, n: int, defect: str | None, flaw: np.random.Generator) -> Surface:
    pose = Pose(
        0.018 * rng.uniform(-1, 1),
        0.018 * rng.uniform(-1, 1),
        0.044 * rng.uniform(-1, 1),
        0.80 * (1 + 0.008 * rng.standard_normal()),
    )
    belt = _belt(rng, n)
    height, cover = _relief(rng, n, pose)
    ink = _ink(rng, n, pose)
    if defect == "misprint":
        ink = _misprint(flaw, ink, pose)
    pigment = np.array((0.030, 0.165, 0.40)) * np.exp(0.16 * rng.standard_normal() + 0.05 * rng.standard_normal(3))
    tone = 1 + 0.035 * noise(rng, n, cells=6, octaves=3)
    plastic = cv2.merge([tone * c for c in pigment.tolist()])
    white = (0.80, 0.80, 0.77)
    albedo = mix(belt[1], mix(plastic, white, ink), cover)
    height = belt[0] + (height + 0.0015 * ink - belt[0]) * cover
    gloss = (0.34 - 0.12 * ink) * rng.uniform(0.75, 1.25) * cover + 0.015
    part = Surface(height, albedo, gloss, cover)
    if defect == "chip":
        return _chip(flaw, part, belt, pose)
    if defect == "contamination":
        return _contamination(flaw, part, pose)
    if defect == "scratch":
        return _scratch(flaw, part, pose)
    return part


CAP = Category(
    _draw,
    Rig(azimuth=-2.2, swing=0.45, elevation=0.95, key=1.25, fill=0.45, shininess=38, lift=0.10, exposure=0.13),
    ("chip", "contamination", "misprint", "scratch"),
)
