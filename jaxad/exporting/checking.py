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
    A detector that was trained in bfloat16 stands here with its numbers computed in float32, as they are exported;
    decisions are its own.

    Args:
      found: The detector.
      exported: Its export.
      batches: uint8 (n, h, w, c) each, as they are scored; the first is the largest.

    Returns:
      What card.json holds of it; a difference that is no finite number is None.

    Raises:
      UserError: There is no image.
    """
    score_range, (low, high) = 4 * found.good_scores[1] or 1.0, found.heat_range
    map_range, scores, first, exact = (high - low) or 1.0, [], None, _in_float32(found)
    detectors = (found,) if exact is found else (exact, found)
    of_maps = np.zeros((len(detectors), 2))
    for images in batches:
        first = images if first is None else first
        theirs, *ours = (one.score(images, batch=len(first)) for one in (exported, *detectors))
        scores.append(np.stack([one.image for one in (theirs, *ours)]))
        of_maps = np.maximum(of_maps, [_shares(one.map, theirs.map, low, map_range) for one in ours])
    if first is None:
        raise UserError("there is no image to check the export with; name some by --check")
    theirs, *ours = np.concatenate(scores, axis=1).astype(np.float64)
    of_scores = np.array([_shares(one, theirs, found.good_scores[0], score_range) for one in ours])
    limit, decided = TOLERANCES[exported.card["precision"]], found.threshold is not None
    different = int(((ours[-1] > found.threshold) != (theirs > found.threshold)).sum()) if decided else None
    return {
        "images": len(theirs),
        "computed_in": formats.computes_in(exported.card["format"], exported.card["precision"]),
        "largest_difference": _named(of_scores[0, 0], of_maps[0, 0]),
        "largest_difference_by_distance": _named(of_scores[0, 1], of_maps[0, 1]),
        "largest_difference_as_trained": None if exact is found else _named(of_scores[1, 0], of_maps[1, 0]),
        "tolerance": limit,
        "decisions_that_differ": different,
        "precision": exported.card["precision"],
        "passed": bool(of_scores[0, 1] <= limit and of_maps[0, 1] <= limit and not different),  # NaN is not
        "images_per_s": _speeds(found, exported, first),
    }


def _in_float32(found: Detector) -> Detector:
    """The detector with its network computed in float32; itself where it is."""
    if found.config.get("dtype", "float32") == "float32":
        return found
    config = found.config.copy_and_resolve_references()
    config.dtype = "float32"
    return Detector(config, found.variables, found.density)


def _named(scores: float, maps: float) -> dict[str, float | None]:
    """Differences as JSON can hold them."""
    return {name: float(of) if np.isfinite(of) else None for name, of in (("scores", scores), ("maps", maps))}


def _shares(ours: np.ndarray, theirs: np.ndarray, good: float, extent: float) -> np.ndarray:
    """The largest difference as a share of an extent, and of the distance from a good value where that is larger."""
    with np.errstate(invalid="ignore"):  # of infinities, whose difference is NaN
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
        f"checked with {made['images']} {made['with']}: scores differ by {_told(share['scores'])} of the range of good "
        f"scores at most, maps by {_told(share['maps'])} of the range of heatmaps; {decisions}",
        f"by the distance from good images, where that is larger: {_told(far['scores'])} and {_told(far['maps'])}; "
        f"allowed are {made['tolerance']:.0e} and no other decision: {'passed' if made['passed'] else 'FAILED'}",
    ]
    if trained := made["largest_difference_as_trained"]:
        lines.append(
            "these differences are from the detector computed in float32; from the detector as it was trained, scores "
            f"differ by {_told(trained['scores'])} and maps by {_told(trained['maps'])}"
        )
    lines += [
        *(
            f"images/s {how}: {speed[name]['export']:.1f} by the export, {speed[name]['jaxad']:.1f} by jaxad"
            for name, how in (("batch", f"{speed['batch_size']} together"), ("single", "one by one"))
        ),
    ]
    return "\n".join(lines)


def _told(difference: float | None) -> str:
    return "no finite number" if difference is None else f"{difference:.1e}"
