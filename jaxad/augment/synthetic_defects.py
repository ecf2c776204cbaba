"""Synthetic defects in good images, by which detectors can be compared without one real defect.

They depend on nothing that is compared: they are made on the host, with a seed of their own, at places and sizes that
are shares of the image's side. They are of three kinds, and say nothing of how well other defects are found.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from jaxad.augment.nsa import host
from jaxad.augment.nsa.host_labels import channel_sum
from jaxad.augment.nsa.settings import Synthesis
from jaxad.data.geometry import IGNORED, Geometry

MOST = 64  # held-out images that take part; more would take time and change the figures little
_PIXELS = 2**26  # in these together; of very large images fewer take part
_SEED = 20_220_727
_TRIES = 100
_VISIBLE = 4.0  # smallest mean change of a defect, in grey levels
_NARROWEST = 32  # pixels of a side in which there is room for a defect
_SMALLEST = 0.0005  # smallest share of an image that a defect changes
_BLENDING = Synthesis(half_height=(0.05, 0.35), half_width=(0.05, 0.35), patches=1)
_JITTER = 0.1  # largest change of the brightness of what is pasted, as in CutPaste (Li et al. 2021, Appendix A.2)


class SyntheticSet(NamedTuple):
    """Good images, and each of them again with one defect of every kind.

    Attributes:
      images: uint8 (m, h, w, c); good ones first.
      masks: uint8 (m, h, w) of 0 and 1, where an image differs from the good one by more than one grey level, averaged
        over the channels; elsewhere the two are bit-identical. `IGNORED` where pixels do not count, see `make`.
      labels: int (m,), 0 for good and 1 for defective.
      kinds: "good", or one of `KINDS`, for each image.
      sources: int (m,), the number of the good image that each was made of.
      boxes: int (m, 4), where each image lies in its frame, see `jaxad.data.record.Record`; None where all fill it.
    """

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    kinds: list[str]
    sources: np.ndarray
    boxes: np.ndarray | None = None


def random_paste(rng: np.random.Generator, image: np.ndarray, *, size: tuple[float, float], angle: float) -> np.ndarray:
    """Pastes a rectangle of an image at another place of it, turned and brighter or darker.

    Args:
      rng: Source of randomness of both places, uniform over those where the rectangle lies in the image either way, and
        of the change of brightness.
      image: uint8 (h, w, c).
      size: Height and width of the rectangle in pixels; its diagonal is at most the image's shorter side.
      angle: Rotation in radians.

    Returns:
      uint8 (h, w, c), each pasted pixel from the nearest one.
    """
    shape = image.shape[:2]
    cosine, sine = math.cos(angle), math.sin(angle)
    # Half of the upright rectangle that holds the turned one, and so the upright one is cut away from the border too.
    reach = [max(size[k], abs(cosine) * size[k] + abs(sine) * size[1 - k]) / 2 for k in (0, 1)]
    ends = list(zip(reach, shape, strict=True))
    source, target = ([rng.uniform(r, side - r) for r, side in ends] for _ in range(2))
    down, right = (pixels + 0.5 - centre for pixels, centre in zip(np.indices(shape), target, strict=True))
    along, across = cosine * down + sine * right, cosine * right - sine * down
    inside = (np.abs(along) < size[0] / 2) & (np.abs(across) < size[1] / 2)
    row, column = (
        np.clip(centre + offset[inside], 0, side - 1).astype(int)
        for centre, offset, side in zip(source, (along, across), shape, strict=True)
    )
    pasted = image.copy()
    pasted[inside] = np.minimum(np.rint(image[row, column] * rng.uniform(1 - _JITTER, 1 + _JITTER)), 255)
    return pasted


def _blend(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return host.random_synthesize(rng, image, other, settings=_BLENDING, label="binary").image


def _patch(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return random_paste(rng, image, size=tuple(min(image.shape[:2]) * rng.uniform(0.06, 0.25, 2)), angle=0.0)


def _scar(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    length, width = side * rng.uniform(0.08, 0.25), side * rng.uniform(0.01, 0.06)
    return random_paste(rng, image, size=(length, max(width, 2.0)), angle=rng.uniform(0, math.pi))


# NSA's Poisson-blended patch of another image, CutPaste's patch and CutPaste's scar.
KINDS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {
    "blend": _blend,
    "patch": _patch,
    "scar": _scar,
}


def _defective(
    rng: np.random.Generator,
    kind: str,
    image: np.ndarray,
    others: Sequence[np.ndarray],
    box: Sequence[int],
    counted: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """An image with a defect that can be seen, and its mask; None where none of many draws could be seen.

    In a box that is too small there is none. The defect lies inside the box, (top, left, bottom, right), and is made as
    if there were nothing else. Only pixels that are counted, bool (h, w), are changed by it.
    """
    if min(box[2] - box[0], box[3] - box[1]) < _NARROWEST:
        return None
    inside = slice(box[0], box[2]), slice(box[1], box[3])
    seen = np.ascontiguousarray(image[inside])
    for _ in range(_TRIES):
        other = np.ascontiguousarray(others[int(rng.integers(len(others)))][inside])
        changed = KINDS[kind](rng, seen, other)
        difference = channel_sum(cv2.absdiff(changed, seen).reshape(seen.shape)) / seen.shape[2]
        mask = difference > 1 if counted is None else (difference > 1) & counted[inside]
        if mask.mean() >= _SMALLEST and difference[mask].mean() >= _VISIBLE:
            made = image.copy()
            made[inside] = np.where(mask[..., None], changed, seen)
            marked = np.zeros(image.shape[:2], np.uint8)
            marked[inside] = mask
            return made, marked
    return None


def make(
    good: np.ndarray,
    others: Sequence[np.ndarray],
    *,
    crop: int = 0,
    boxes: np.ndarray | None = None,
    geometry: Geometry | None = None,
) -> SyntheticSet:
    """Makes the set from held-out good images; the same images give the same set.

    The defects of image number i depend on i, on this image and on `others`, and on nothing else. Of more than `MOST`
    images, evenly spaced ones are used. An image in which no defect of a kind can be seen, such as a blank one, has
    none of this kind.

    Args:
      good: uint8 (n, h, w, c) with n > 0, c = 3 or 1 and sides of at least 32.
      others: uint8 (h, w, c) good images, such as those of the training, from which patches are blended in.
      crop: What becomes of the shorter side where the defects lie in the center alone, what their size is a share of; 0
        for the whole image.
      boxes: int (n, 4), where images lie in their frames, in which the defects lie then; None where they fill them.
      geometry: Of the frames, where it has a region of interest, in which the defects lie then.

    Raises:
      ValueError: There are no images, or no others.
    """
    if not len(good) or not len(others):
        raise ValueError(f"need held-out images and others, not {len(good)} and {len(others)}")
    height, width = good.shape[1:3]
    most = int(np.clip(_PIXELS // (height * width), 4, MOST))
    chosen = np.linspace(0, len(good) - 1, min(len(good), most)).round().astype(int)
    good = good[chosen]
    border = (min(height, width) - crop) // 2 if crop else 0
    whole = border, border, height - border, width - border
    places = np.tile(whole, (len(good), 1)) if boxes is None else boxes[chosen]
    valid = None if boxes is None else (geometry or Geometry((height, width))).valid(places)
    inner = np.clip(places, 0, (height, width, height, width))
    images, masks = list(good), [np.zeros(good.shape[1:3], np.uint8)] * len(good)
    kinds, sources = ["good"] * len(good), list(range(len(good)))
    for code, kind in enumerate(KINDS):
        for number, image in enumerate(good):
            rng, counted = np.random.default_rng((_SEED, code, number)), None if valid is None else valid[number]
            made = _defective(rng, kind, image, others, inner[number], counted)
            if made is not None:
                images.append(made[0])
                masks.append(made[1])
                kinds.append(kind)
                sources.append(number)
    labels, masks, sources = np.array([int(kind != "good") for kind in kinds]), np.stack(masks), np.array(sources)
    if valid is not None:
        masks = np.where(valid[sources], masks, np.uint8(IGNORED))
    return SyntheticSet(np.stack(images), masks, labels, kinds, sources, None if valid is None else places[sources])
