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

MOST = 64  # held-out images that take part; more would take time and change the figures little
_SEED = 20_220_727
_TRIES = 100
_VISIBLE = 4.0  # smallest mean change of a defect, in grey levels
_SMALLEST = 0.0005  # smallest share of an image that a defect changes
_BLENDING = Synthesis(half_height=(0.05, 0.35), half_width=(0.05, 0.35), patches=1)
_JITTER = 0.1  # largest change of the brightness of what is pasted, as in CutPaste (Li et al. 2021, Appendix A.2)


class SyntheticSet(NamedTuple):
    """Good images, and each of them again with one defect of every kind.

    Attributes:
      images: uint8 (m, s, s, c); good ones first.
      masks: uint8 (m, s, s) of 0 and 1, where an image differs from the good one by more than one grey level, averaged
        over the channels; elsewhere the two are bit-identical.
      labels: int (m,), 0 for good and 1 for defective.
      kinds: "good", or one of `KINDS`, for each image.
      sources: int (m,), the number of the good image that each was made of.
    """

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    kinds: list[str]
    sources: np.ndarray


def random_paste(rng: np.random.Generator, image: np.ndarray, *, size: tuple[float, float], angle: float) -> np.ndarray:
    """Pastes a rectangle of an image at another place of it, turned and brighter or darker.

    Args:
      rng: Source of randomness of both places, uniform over those where the rectangle lies in the image either way, and
        of the change of brightness.
      image: uint8 (s, s, c).
      size: Height and width of the rectangle in pixels; its diagonal is at most s.
      angle: Rotation in radians.

    Returns:
      uint8 (s, s, c), each pasted pixel from the nearest one.
    """
    side = len(image)
    cosine, sine = math.cos(angle), math.sin(angle)
    # Half of the upright rectangle that holds the turned one, and so the upright one is cut away from the border too.
    reach = [max(size[k], abs(cosine) * size[k] + abs(sine) * size[1 - k]) / 2 for k in (0, 1)]
    source, target = ([rng.uniform(r, side - r) for r in reach] for _ in range(2))
    down, right = (pixels + 0.5 - centre for pixels, centre in zip(np.indices((side, side)), target, strict=True))
    along, across = cosine * down + sine * right, cosine * right - sine * down
    inside = (np.abs(along) < size[0] / 2) & (np.abs(across) < size[1] / 2)
    row, column = (
        np.clip(centre + offset[inside], 0, side - 1).astype(int)
        for centre, offset in zip(source, (along, across), strict=True)
    )
    pasted = image.copy()
    pasted[inside] = np.minimum(np.rint(image[row, column] * rng.uniform(1 - _JITTER, 1 + _JITTER)), 255)
    return pasted


def _blend(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return host.random_synthesize(rng, image, other, settings=_BLENDING, label="binary").image


def _patch(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return random_paste(rng, image, size=tuple(len(image) * rng.uniform(0.06, 0.25, 2)), angle=0.0)


def _scar(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    length, width = len(image) * rng.uniform(0.08, 0.25), len(image) * rng.uniform(0.01, 0.06)
    return random_paste(rng, image, size=(length, max(width, 2.0)), angle=rng.uniform(0, math.pi))


# NSA's Poisson-blended patch of another image, CutPaste's patch and CutPaste's scar.
KINDS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {
    "blend": _blend,
    "patch": _patch,
    "scar": _scar,
}


def _defective(
    rng: np.random.Generator, kind: str, image: np.ndarray, others: Sequence[np.ndarray], border: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """An image with a defect that can be seen, and its mask; None where none of many draws could be seen.

    The defect lies inside a border of this width, and is made as if there were nothing else.
    """
    inside = (slice(border, len(image) - border),) * 2
    seen = np.ascontiguousarray(image[inside])
    for _ in range(_TRIES):
        other = np.ascontiguousarray(others[int(rng.integers(len(others)))][inside])
        changed = KINDS[kind](rng, seen, other)
        difference = channel_sum(cv2.absdiff(changed, seen).reshape(seen.shape)) / seen.shape[2]
        mask = difference > 1
        if mask.mean() >= _SMALLEST and difference[mask].mean() >= _VISIBLE:
            made = image.copy()
            made[inside] = np.where(mask[..., None], changed, seen)
            return made, np.pad(mask, border).astype(np.uint8)
    return None


def make(good: np.ndarray, others: Sequence[np.ndarray], *, crop: int = 0) -> SyntheticSet:
    """Makes the set from held-out good images; the same images give the same set.

    The defects of image number i depend on i, on this image and on `others`, and on nothing else. Of more than `MOST`
    images, evenly spaced ones are used. An image in which no defect of a kind can be seen, such as a blank one, has
    none of this kind.

    Args:
      good: uint8 (n, s, s, c) with n > 0, c = 3 or 1 and s at least 32.
      others: uint8 (s, s, c) good images, such as those of the training, from which patches are blended in.
      crop: Side of the central square in which the defects lie, what their size is a share of; 0 for the whole image.

    Raises:
      ValueError: There are no images, or no others.
    """
    if not len(good) or not len(others):
        raise ValueError(f"need held-out images and others, not {len(good)} and {len(others)}")
    good = good[np.linspace(0, len(good) - 1, min(len(good), MOST)).round().astype(int)]
    border = (good.shape[1] - crop) // 2 if crop else 0
    images, masks = list(good), [np.zeros(good.shape[1:3], np.uint8)] * len(good)
    kinds, sources = ["good"] * len(good), list(range(len(good)))
    for code, kind in enumerate(KINDS):
        for number, image in enumerate(good):
            made = _defective(np.random.default_rng((_SEED, code, number)), kind, image, others, border)
            if made is not None:
                images.append(made[0])
                masks.append(made[1])
                kinds.append(kind)
                sources.append(number)
    labels = np.array([int(kind != "good") for kind in kinds])
    return SyntheticSet(np.stack(images), np.stack(masks), labels, kinds, np.array(sources))
