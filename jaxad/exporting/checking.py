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
    as shares of `Detector.heat_range`.

    Args:
      found: The detector.
      exported: Its export.
      batches: uint8 (n, h, w, c) each, as they are scored; the first is the largest.

    Returns:
      What card.json holds of it.

    Raises:
      UserError: There is no image.
    """
    scores, map_difference, first = [], 0.0, None
    for images in batches:
        first = images if first is None else first
        ours, theirs = (one.score(images, batch=len(first)) for one in (found, exported))
        scores.append(np.stack([ours.image, theirs.image]))
        map_difference = max(map_difference, float(np.abs(ours.map - theirs.map).max()))
    if first is None:
        raise UserError("there is no image to check the export with; name some by --check")
    ours, theirs = np.concatenate(scores, axis=1).astype(np.float64)
    score_range, (low, high) = 4 * found.good_scores[1], found.heat_range
    shares = {
        "scores": float(np.abs(ours - theirs).max()) / (score_range or np.abs(ours).max() or 1.0),
        "maps": map_difference / ((high - low) or 1.0),
    }
    limit = max(TOLERANCES[exported.card["precision"]], TOLERANCES[exported.card["trained_in"]])
    decided = found.threshold is not None
    different = int(((ours > found.threshold) != (theirs > found.threshold)).sum()) if decided else None
    return {
        "images": len(ours),
        "computed_in": formats.computes_in(exported.card["format"], exported.card["precision"]),
        "largest_difference": shares,
        "tolerance": limit,
        "decisions_that_differ": different,
        "precision": exported.card["precision"],
        "passed": max(shares.values()) <= limit and not different,
        "images_per_s": _speeds(found, exported, first),
    }


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
    share, speed, decided = made["largest_difference"], made["images_per_s"], made["decisions_that_differ"]
    decisions = (
        "no decisions, since there is no threshold" if decided is None else f"{counted(decided, 'decision')} differ"
    )
    decisions = decisions.replace("1 decision differ", "1 decision differs")
    lines = []
    if made["computed_in"] == "float32" and made["precision"] == "bfloat16":
        lines.append(
            "this processor does not multiply in bfloat16: the export was run, and its speed measured, in float32"
        )
    lines += [
        f"checked with {made['images']} {made['with']}: scores differ by {share['scores']:.1e} of the range of good "
        f"scores at most, maps by {share['maps']:.1e} of the range of heatmaps; {decisions}",
        f"allowed are {made['tolerance']:.0e} and no other decision: {'passed' if made['passed'] else 'FAILED'}",
        *(
            f"images/s {how}: {speed[name]['export']:.1f} by the export, {speed[name]['jaxad']:.1f} by jaxad"
            for name, how in (("batch", f"{speed['batch_size']} together"), ("single", "one by one"))
        ),
    ]
    return "\n".join(lines)
