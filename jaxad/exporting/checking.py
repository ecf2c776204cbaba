"""Whether an export says what its detector says, and how fast each is."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxad.detector import Detector
from jaxad.errors import UserError, counted
from jaxad.exporting import formats
from jaxad.exporting.card import TOLERANCES
from jaxad.exporting.exported import ExportedDetector

_ROUNDS = 3  # of which the fastest counts


def compare(found: Detector, exported: ExportedDetector, batches: Iterable[np.ndarray]) -> dict[str, Any]:
    """Scores images by both.

    Scores are compared as shares of the range of good scores, for which four of their standard deviations stand; maps
    as shares of `Detector.heat_range`. What is allowed grows with the distance from good images where that is larger
    than the range: numbers of float32 are rounded by a share of themselves, and defects may score a thousand ranges.

    Args:
      found: The detector.
      exported: Its export.
      batches: uint8 (n, h, w, c) each, as they are scored; the first is the largest.

    Returns:
      What card.json holds of it.

    Raises:
      UserError: There is no image.
    """
    score_range, (low, high) = 4 * found.good_scores[1] or 1.0, found.heat_range
    map_range, scores, of_maps, first = (high - low) or 1.0, [], np.zeros(2), None
    for images in batches:
        first = images if first is None else first
        ours, theirs = (one.score(images, batch=len(first)) for one in (found, exported))
        scores.append(np.stack([ours.image, theirs.image]))
        of_maps = np.maximum(of_maps, _shares(ours.map, theirs.map, low, map_range))
    if first is None:
        raise UserError("there is no image to check the export with; name some by --check")
    ours, theirs = np.concatenate(scores, axis=1).astype(np.float64)
    of_scores = _shares(ours, theirs, found.good_scores[0], score_range)
    of_range, of_distance = ({"scores": float(of_scores[n]), "maps": float(of_maps[n])} for n in range(2))
    limit = max(TOLERANCES[exported.card["precision"]], TOLERANCES[exported.card["trained_in"]])
    decided = found.threshold is not None
    different = int(((ours > found.threshold) != (theirs > found.threshold)).sum()) if decided else None
    return {
        "images": len(ours),
        "computed_in": formats.computes_in(exported.card["format"], exported.card["precision"]),
        "largest_difference": of_range,
        "largest_difference_by_distance": of_distance,
        "tolerance": limit,
        "decisions_that_differ": different,
        "precision": exported.card["precision"],
        "passed": max(of_distance.values()) <= limit and not different,
        "images_per_s": _speeds(found, exported, first),
    }


def _shares(ours: np.ndarray, theirs: np.ndarray, good: float, extent: float) -> np.ndarray:
    """The largest difference as a share of an extent, and of the distance from a good value where that is larger."""
    difference = np.abs(ours - theirs)
    distance = np.maximum(np.abs(ours - good), extent)
    return np.array([difference.max() / extent, (difference / distance).max()])


def _speeds(found: Detector, exported: ExportedDetector, images: np.ndarray) -> dict[str, dict[str, float]]:
    """Images per second of both, in turns, together and one by one."""
    both, made = {"jaxad": found, "export": exported}, {}
    for name, batch in (("batch", len(images)), ("single", 1)):
        rows = images if batch > 1 else images[:4]
        taken = {kind: [] for kind in both}
        for _ in range(1 + _ROUNDS):  # the first one compiles
            for kind, one in both.items():
                start = time.perf_counter()
                one.score(rows, batch=batch)
                taken[kind].append(time.perf_counter() - start)
        made[name] = {kind: round(len(rows) / min(times[1:]), 2) for kind, times in taken.items()}
    return made | {"batch_size": len(images)}


def summary(made: dict[str, Any]) -> str:
    """What a check found, for a user to read."""
    share, far = made["largest_difference"], made["largest_difference_by_distance"]
    speed, decided = made["images_per_s"], made["decisions_that_differ"]
    verb = "differs" if decided == 1 else "differ"
    decisions = "no decisions, without a threshold" if decided is None else f"{counted(decided, 'decision')} {verb}"
    lines = []
    if made["computed_in"] == "float32" and made["precision"] == "bfloat16":
        lines.append(
            "this processor does not multiply in bfloat16: the export was run, and its speed measured, in float32"
        )
    lines += [
        f"checked with {made['images']} {made['with']}: scores differ by {share['scores']:.1e} of the range of good "
        f"scores at most, maps by {share['maps']:.1e} of the range of heatmaps; {decisions}",
        f"by the distance from good images, where that is larger: {far['scores']:.1e} and {far['maps']:.1e}; allowed "
        f"are {made['tolerance']:.0e} and no other decision: {'passed' if made['passed'] else 'FAILED'}",
        *(
            f"images/s {how}: {speed[name]['export']:.1f} by the export, {speed[name]['jaxad']:.1f} by jaxad"
            for name, how in (("batch", f"{speed['batch_size']} together"), ("single", "one by one"))
        ),
    ]
    return "\n".join(lines)
