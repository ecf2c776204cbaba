"""Gaussians from sums over the good images, so that neither fitting nor refitting holds their features in memory.

The sums determine mean, covariance and the shrinkage of Ledoit and Wolf (2004), whose error estimate is the mean fourth
power of the centered features' norm. They are taken around a fixed point near the mean, because the difference of two
large numbers would lose the digits of a small variance.
"""

from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from jaxad.errors import UserError
from jaxad.scoring import density


class Statistics(NamedTuple):
    """Sums over features x (*locations, n, d), less `shift`.

    Attributes:
      count: n
      shift: float64 (*locations, d), what every feature is counted from.
      first: float64 (*locations, d), sum of x.
      second: float64 (*locations, d, d), sum of x x^T.
      third: float64 (*locations, d), sum of |x|^2 x.
      fourth: float64 (*locations,), sum of |x|^4.
    """

    count: int
    shift: np.ndarray
    first: np.ndarray
    second: np.ndarray
    third: np.ndarray
    fourth: np.ndarray

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of all features of both, which must have the same `shift`."""
        return Statistics(
            self.count + other.count, self.shift, *(a + b for a, b in zip(self[2:], other[2:], strict=True))
        )


def statistics(features: np.ndarray, shift: np.ndarray) -> Statistics:
    """The statistics of features (*locations, n, d) around a shift (*locations, d).

    Raises:
      UserError: A feature is not finite.
    """
    if not np.isfinite(features).all():
        raise UserError("the good images' features are not finite; give other weights")
    x = features.astype(np.float64) - shift[..., None, :]
    squares = (x**2).sum(axis=-1, keepdims=True)
    second = np.swapaxes(x, -1, -2) @ x
    return Statistics(
        x.shape[-2], shift, x.sum(axis=-2), second, (squares * x).sum(axis=-2), (squares**2).sum((-2, -1))
    )


def gaussian(sums: Statistics, *, shrinkage: str, ridge: float) -> density.Gaussian:
    """The Gaussian of the features, see `jaxad.scoring.density.fit_gaussian`.

    Raises:
      UserError: The covariance is singular, or there are fewer features than the Gaussian needs.
    """
    n, (*locations, d) = sums.count, sums.first.shape
    density.check_count(n, d, "gaussian", shrinkage=shrinkage, ridge=ridge)
    means, factors = np.empty((*locations, d), np.float32), np.empty((*locations, d, d), np.float32)
    # Threads gain nothing on matrices this small.
    with threadpool_limits(1 if locations else None):
        for at in np.ndindex(*locations):
            mean, second = sums.first[at] / n, sums.second[at]
            length = mean @ mean
            fourth = sums.fourth[at] + 4 * mean @ second @ mean - 4 * mean @ sums.third[at]
            fourth += 2 * length * np.trace(second) - 3 * n * length**2
            covariance = second / n - np.outer(mean, mean)
            factors[at] = density.shrunk_factor(covariance, fourth / n, n, shrinkage, ridge)
            means[at] = sums.shift[at] + mean
    return density.Gaussian(np.asarray(False), means, factors)


def location_share(sums: Statistics) -> float:
    """How much of the features' variance their location explains, from 0 to 1, as a mean over the channels.

    Parts in the same position in every image have a share near 1, an even texture one near 0.

    Args:
      sums: Statistics with at least one axis of locations and two images.
    """
    n, d = sums.count, sums.first.shape[-1]
    offset, shift = (sums.first / n).reshape(-1, d), sums.shift.reshape(-1, d)
    within = np.diagonal(sums.second, axis1=-2, axis2=-1).reshape(-1, d) / n - offset**2
    within = within.mean(axis=0) * n / (n - 1)  # unbiased: of few images each location's mean lies close to them
    between = (shift + offset).var(axis=0) - within / n
    total = within + between
    return float(np.clip(between[total > 0] / total[total > 0], 0, 1).mean()) if (total > 0).any() else 0.0
