"""The threshold between good and defective image scores, from good images that were not trained on."""

import numpy as np

from jaxad.errors import UserError

# The share of the largest score that rounding may change: other devices, threads and batch sizes add up in another
# order. The largest change seen was 3e-6, of a Gaussian's squared distances.
ROUNDING = 3e-5


def fit_threshold(scores: np.ndarray, *, false_alarm_rate: float) -> float | None:
    """A threshold that new good scores exceed with at most a probability `false_alarm_rate`, midway between two scores.

    It lies above the conformal quantile (Lei et al., JASA 2018, Section 2). Of n held-out scores and a new one, each is
    as likely to be the highest, and so on: the new one exceeds the m-th highest with probability m / (n + 1). So
    m - 1 scores may lie above, where m is ``floor(false_alarm_rate * (n + 1))``. Below 1 / (n + 1) no threshold of n
    scores keeps the rate: none lies above then, and the probability is up to 1 / (n + 1).

    No rounding brings a score to the other side: scores closer than `ROUNDING` of the largest magnitude count as one,
    so that fewer may lie above. Where none does, the threshold exceeds the highest score by half the mean distance
    between neighbours, or by `ROUNDING` where that is more, as it is for a single score.

    Args:
      scores: (n,) image scores of good images that were not trained on; None is returned when there are none.
      false_alarm_rate: Target in [0, 1).

    Raises:
      UserError: The rate lies outside [0, 1), or a score is not finite.
    """
    if not 0 <= false_alarm_rate < 1:
        raise UserError(
            f"config.threshold.false_alarm_rate must lie in [0, 1), not {false_alarm_rate}",
            about="threshold.false_alarm_rate",
        )
    if not len(scores):
        return None
    ordered = np.sort(np.asarray(scores, np.float64))
    if not np.isfinite(ordered).all():
        raise UserError(
            "a held-out good image has a score that is not finite, so there is no threshold; train with a lower "
            "config.optim.learning_rate, or choose another density"
        )
    closest = max(ROUNDING * np.abs(ordered).max(), np.finfo(np.float32).tiny)
    above = max(int(false_alarm_rate * (len(ordered) + 1) + 1e-9) - 1, 0)  # 0.29 of 100 is 28.999...
    gaps = np.diff(ordered)
    for index in range(len(gaps) - above, len(gaps)):
        if gaps[index] > closest:
            return float((ordered[index] + ordered[index + 1]) / 2)
    return float(ordered[-1] + max(gaps.mean() / 2 if len(gaps) else 0.0, closest))
