"""Demo category ``wood_screw``: a wood screw thrown anywhere, at any angle, on a pale table."""

import cv2
import numpy as np

from jaxad.data.demo.marks import patch
from jaxad.data.demo.render import Category, Rig, Surface, grid, mix, noise, smoothstep

# Outline of the screw: position along its axis and core radius, in half frames; the thread is added between two marks.
_AXIS = (-0.640, -0.636, -0.622, -0.608, -0.50, -0.47, -0.12, -0.08, 0.44, 0.62, 0.640)
_CORE = (0.000, 0.120, 0.165, 0.170, 0.072, 0.066, 0.066, 0.056, 0.056, 0.012, 0.000)
_THREAD = (-0.14, 0.60)
_PITCH = 0.062
_DEPTH = 0.034


def _profile(n: int, girth: float, along: np.ndarray, across: np.ndarray, flat: np.ndarray | float) -> np.ndarray:
    """Radius of the screw at each point, float32 (n, n); ``flat`` (0 to 1) wears the thread away."""
    table = np.interp(np.linspace(-1.5, 1.5, 3073), _AXIS, _CORE).astype(np.float32) * girth
    core = table[np.clip((along + 1.5) * 1024, 0, 3072).astype(np.int32)]
    begin, end = _THREAD
    taper = smoothstep(begin, begin + 0.06, along) * smoothstep(end, end - 0.16, along)
    phase = along / _PITCH + across * 4.2
    ridge = np.abs(2 * (phase - np.floor(phase)) - 1)
    return core + girth * _DEPTH * taper * (1 - flat) * smoothstep(0.25, 1.0, ridge)


def _body(n: int, radius: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height of a body of that radius around the axis, and its coverage of the frame."""
    height = np.sqrt(np.maximum(radius * radius - across * across, 0))
    cover = smoothstep(-0.75 * 2 / n, 0.75 * 2 / n, radius - np.abs(across)) * (radius > 0.004)
    return height, cover.astype(np.float32)


def _table(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Height and albedo (n, n, 3) of the table."""
    fine = noise(rng, n, cells=150, octaves=2)
    tone = np.clip(0.46 * (1 + 0.02 * noise(rng, n, cells=3, octaves=3) + 0.015 * fine), 0, 1)
    return 0.0005 * fine, cv2.merge([tone, tone * 1.005, tone * 0.99])


def _damage(
    rng: np.random.Generator, defect: str | None, part: Surface, ground: tuple[np.ndarray, np.ndarray], place
) -> Surface:
    """Defects of the surface: a chipped head, rust, a scratch; ``place(along, across)`` gives frame coordinates."""
    n = len(part.height)
    if defect == "chipped_head":
        centre = place(rng.uniform(-0.63, -0.59), rng.choice([-1.0, 1.0]) * rng.uniform(0.12, 0.16))
        gone = patch(rng, n, centre, rng.uniform(0.065, 0.095), ragged=0.22, soft=0.05)
        kept = 1 - gone
        height = part.height * kept + ground[0] * gone
        return Surface(height, mix(part.albedo, ground[1], gone), part.gloss * kept, part.cover * kept)
    if defect == "rust":
        centre = place(rng.uniform(-0.45, 0.4), rng.uniform(-0.03, 0.03))
        scale = patch(rng, n, centre, rng.uniform(0.08, 0.13), ragged=0.9, soft=0.25) * part.cover
        grain = noise(rng, n, cells=110, octaves=2)
        body = scale * np.clip(0.85 + 0.25 * grain, 0, 1)
        albedo = mix(part.albedo, (0.20, 0.075, 0.025), body)
        return Surface(part.height + 0.0025 * grain * scale, albedo, part.gloss * (1 - 0.92 * body), part.cover)
    return part


def _draw(rng: np.random.Generator, n: int, defect: str | None, flaw: np.random.Generator) -> Surface:
    x, y = grid(n)
    turn, centre = rng.uniform(0, 2 * np.pi), (0.14 * rng.uniform(-1, 1), 0.14 * rng.uniform(-1, 1))
    c, s = np.cos(turn).item(), np.sin(turn).item()
    girth, stretch = 1 + 0.03 * rng.standard_normal(), 1 + 0.02 * rng.standard_normal()
    along = (c * (x - centre[0]) + s * (y - centre[1])) / stretch
    across = c * (y - centre[1]) - s * (x - centre[0])
    flat = 0.0
    if defect == "bent":
        knee = flaw.uniform(0.05, 0.25)
        bow = np.maximum(along - knee, 0)
        across = across - flaw.choice([-1.0, 1.0]).item() * flaw.uniform(0.5, 0.9) * bow * bow / (0.2 + bow)
    if defect == "stripped_thread":
        start, length = flaw.uniform(-0.05, 0.2), flaw.uniform(0.12, 0.24)
        flat = smoothstep(start, start + 0.02, along) * smoothstep(start + length, start + length - 0.02, along)
        flat = flat * np.clip(0.9 + 0.3 * noise(flaw, n, cells=30), 0, 1)
    radius = _profile(n, girth, along + rng.uniform(0, 0.004), across, flat)
    height, cover = _body(n, radius, across)
    ground = _table(rng, n)
    marks = noise(rng, n, cells=40, octaves=3)
    tone = np.clip(1 + 0.05 * marks, 0, 2) * np.exp(0.10 * rng.standard_normal()).item()
    albedo = mix(ground[1], cv2.merge([0.26 * tone, 0.25 * tone, 0.23 * tone]), cover)
    height = ground[0] * (1 - cover) + (0.10 + height + 0.0006 * marks) * cover
    part = Surface(height, albedo, 0.75 * cover + 0.01, cover)
    return _damage(flaw, defect, part, ground, lambda u, v: (centre[0] + c * u - s * v, centre[1] + s * u + c * v))


SCREW = Category(
    _draw,
    Rig(azimuth=-2.0, swing=0.5, elevation=1.0, key=1.1, fill=0.6, shininess=14, lift=0.06, exposure=0.12),
    ("bent", "chipped_head", "rust", "stripped_thread"),
)
