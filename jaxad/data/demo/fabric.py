"""Demo category ``fabric``: a twill woven of thick yarns, seen at an unknown phase and a slightly unknown angle."""

from typing import NamedTuple

import cv2
import numpy as np

from jaxad.data.demo.marks import patch, stroke
from jaxad.data.demo.render import Category, Rig, Surface, grid, mix, noise, smoothstep

_PITCH = 2 / 34  # distance between neighbouring yarns, half frames
_YARNS = 128  # more than can cross the frame at any angle
_ROUND = 0.020  # height of a yarn's cross-section, half frames
_WAVE = 0.016  # amplitude of a yarn's way over and under the others, half frames
_FLOOR = -0.06


class Yarns(NamedTuple):
    """One of the two systems of yarns.

    Attributes:
      slot: float32 (n, n), number of the place across the yarns.
      number: int32 (n, n), the yarn in that place.
      across: float32 (n, n), offset from that yarn's middle, in pitches.
      along: float32 (n, n), position along the yarns, in pitches.
      height: float32 (n, n), far below the floor between yarns.
      tone: float32 (n, n), brightness relative to the yarn's colour.
    """

    slot: np.ndarray
    number: np.ndarray
    across: np.ndarray
    along: np.ndarray
    height: np.ndarray
    tone: np.ndarray


def _spin(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, over: float) -> Yarns:
    """Lays yarns side by side; ``over`` is 1 for one system and -1 for the other, which is under where it is over."""
    n = len(across)
    width = (0.50 * (1 + 0.07 * rng.standard_normal(_YARNS))).astype(np.float32)
    shift = (0.05 * rng.standard_normal(_YARNS)).astype(np.float32)
    shade = (1 + 0.06 * rng.standard_normal(_YARNS)).astype(np.float32)
    slot = np.floor(across)
    number = slot.astype(np.int32) % _YARNS
    offset = across - slot - 0.5 - shift[number]
    thick = width[number] * (1 + 0.06 * noise(rng, n, cells=24))
    section = np.sqrt(np.maximum(1 - (offset / thick) ** 2, 0))
    ply = np.cos((2 * np.pi) * (0.9 * along + 0.9 * over * offset))
    height = section * _ROUND + over * _WAVE * np.sin((np.pi / 2) * (along + slot)) + 0.0012 * ply * section
    fibres = noise(rng, n, cells=130, octaves=2, stretch=3.0 if over < 0 else 1 / 3.0)
    tone = shade[number] * (1 + 0.07 * ply + 0.07 * fibres)
    return Yarns(slot, number, offset, along, np.where(section > 0, height, 2 * _FLOOR), tone)


def _window(along: np.ndarray, start: float, length: float) -> np.ndarray:
    """1 on the stretch of a yarn from ``start``, ``length`` pitches long, 0 elsewhere, with soft ends."""
    return smoothstep(0, 0.4, along - start) * smoothstep(0, 0.4, start + length - along)


def _spot(rng: np.random.Generator, margin: float = 0.72) -> tuple[float, float]:
    return rng.uniform(-margin, margin), rng.uniform(-margin, margin)


def _pixel(n: int, point: tuple[float, float]) -> tuple[int, int]:
    """Row and column of a point of the frame."""
    return int((point[1] + 1) * n / 2), int((point[0] + 1) * n / 2)


def _break(rng: np.random.Generator, yarns: Yarns) -> Yarns:
    """Takes a stretch of two or three neighbouring yarns out of the cloth."""
    place = _pixel(len(yarns.height), _spot(rng, 0.6))
    gone = np.zeros_like(yarns.height)
    for neighbour in range(rng.integers(2, 4)):
        length = rng.uniform(7, 14)
        start = yarns.along[place] - length / 2 + rng.uniform(-1.5, 1.5)
        gone += (yarns.number == (yarns.number[place] + neighbour) % _YARNS) * _window(yarns.along, start, length)
    return yarns._replace(height=np.where(gone > 0.5, np.float32(2 * _FLOOR), yarns.height))


def _slub(rng: np.random.Generator, yarns: Yarns) -> Yarns:
    """Swells a stretch of a yarn into a loosely spun lump that lies over its neighbours."""
    n = len(yarns.height)
    place = _pixel(n, _spot(rng))
    length, width = rng.uniform(2.4, 4.2), rng.uniform(1.2, 1.6)
    side = yarns.slot - yarns.slot[place] + yarns.across
    ball = 1 - ((yarns.along - yarns.along[place]) / length) ** 2 - (side / width) ** 2
    ball += 0.18 * noise(rng, n, cells=40, octaves=2)
    lump = np.sqrt(np.maximum(ball, 0))
    strands = np.cos(5.0 * (side + 0.35 * yarns.along) + noise(rng, n, cells=20))
    height = np.where(ball > 0, 0.030 + lump * (0.030 + 0.004 * strands), 0).astype(np.float32)
    tone = np.where(height > yarns.height, 1.22 + 0.12 * strands, yarns.tone).astype(np.float32)
    return yarns._replace(height=np.where(ball > 0, np.maximum(yarns.height, height), yarns.height), tone=tone)


_YARN_DEFECTS = {"broken_yarn": _break, "slub": _slub}


def _hole(rng: np.random.Generator, cloth: Surface) -> Surface:
    """Cut or worn through: the dark table below, and frayed ends that reach into the opening."""
    n = len(cloth.height)
    centre, radius = _spot(rng), rng.uniform(0.055, 0.085)
    opening = patch(rng, n, centre, radius, ragged=0.5, soft=0.08)
    frayed = np.zeros((n, n), np.float32)
    for direction in rng.uniform(0, 2 * np.pi, rng.integers(7, 13)):
        start = centre[0] + 1.25 * radius * np.cos(direction), centre[1] + 1.25 * radius * np.sin(direction)
        fibre = stroke(
            rng, n, start, direction + np.pi + rng.uniform(-0.8, 0.8), radius * rng.uniform(0.5, 1.2), width=0.009
        )
        frayed = np.maximum(frayed, fibre)
    height = cloth.height + (_FLOOR * 1.5 - cloth.height) * opening + 0.03 * frayed
    albedo = mix(mix(cloth.albedo, (0.11, 0.11, 0.115), opening), (0.45, 0.42, 0.36), 0.8 * frayed)
    return Surface(height, albedo, cloth.gloss, cloth.cover)


def _stain(rng: np.random.Generator, cloth: Surface) -> Surface:
    """A dried liquid: it tints the yarns, most at its outline."""
    n = len(cloth.height)
    film = patch(rng, n, _spot(rng), rng.uniform(0.09, 0.16), ragged=0.45, soft=0.1)
    inner = cv2.GaussianBlur(film, (0, 0), 0.012 * n)
    rim = film * (1 - inner)
    depth = np.clip(film * rng.uniform(0.45, 0.7) + 0.5 * rim, 0, 0.95) * np.clip(
        0.9 + 0.15 * noise(rng, n, cells=30, octaves=2), 0, 1.05
    )
    tint = (0.45, 0.30, 0.16) if rng.random() < 0.6 else (0.28, 0.29, 0.31)
    return cloth._replace(albedo=cloth.albedo * cv2.merge([1 - depth * (1 - t) for t in tint]))


def _draw(rng: np.random.Generator, n: int, defect: str | None, flaw: np.random.Generator) -> Surface:
    x, y = grid(n)
    angle = 0.07 * rng.uniform(-1, 1)
    scale = 1 / (_PITCH * (1 + 0.025 * rng.standard_normal()))
    c, s = np.cos(angle).item() * scale, np.sin(angle).item() * scale
    pull = 0.25 * noise(rng, n, cells=2.5, octaves=2), 0.25 * noise(rng, n, cells=2.5, octaves=2)
    across = c * x + s * y + pull[0] + (64 + 4 * rng.random())
    along = c * y - s * x + pull[1] + (64 + 4 * rng.random())
    warp, weft = _spin(rng, across, along, 1.0), _spin(rng, along, across, -1.0)
    if defect in _YARN_DEFECTS:
        damage = _YARN_DEFECTS[defect]
        warp, weft = (damage(flaw, warp), weft) if flaw.random() < 0.5 else (warp, damage(flaw, weft))
    height = np.maximum(np.maximum(warp.height, weft.height), _FLOOR)
    top = (warp.height >= weft.height).astype(np.float32)
    cover = (height > _FLOOR).astype(np.float32)
    dye = np.exp(0.15 * rng.standard_normal() + 0.012 * rng.standard_normal(3))
    colours = [(np.array(rgb) * dye).tolist() for rgb in ((0.34, 0.30, 0.23), (0.44, 0.41, 0.34))]
    tones = [warp.tone * top * cover, weft.tone * (1 - top) * cover]
    albedo = cv2.merge([tones[0] * a + tones[1] * b + 0.03 * (1 - cover) for a, b in zip(*colours, strict=True)])
    fuzz = 0.0010 * noise(rng, n, cells=200)
    cloth = Surface(height + fuzz, albedo, 0.03 * cover, np.ones((n, n), np.float32))
    if defect == "hole":
        return _hole(flaw, cloth)
    if defect == "stain":
        return _stain(flaw, cloth)
    return cloth


FABRIC = Category(
    _draw,
    Rig(azimuth=-2.4, swing=0.6, elevation=0.75, key=1.15, fill=0.65, shininess=10, lift=0.0, exposure=0.20),
    ("broken_yarn", "hole", "slub", "stain"),
)
