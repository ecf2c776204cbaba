"""Gaussians from sums over the good images, so that neither fitting nor refitting holds their features in memory.

The sums determine mean, covariance and the shrinkage of Ledoit and Wolf (2004), whose error estimate is the mean fourth
power of the centered features' norm. They are taken around a fixed point near the mean, because the difference of two
large numbers would lose the digits of a small variance.
"""

import dataclasses

import numpy as np
from threadpoolctl import threadpool_limits

from jaxad.errors import UserError
from jaxad.scoring import density


@dataclasses.dataclass
class Statistics:
    """Sums over features x (*locations, n, d), less `shift`.

    Attributes:
      shift: float64 (*locations, d), what every feature is counted from.
      count: n
      first: float64 (*locations, d), sum of x.
      second: float64 (*locations, d, d), sum of x x^T.
      third: float64 (*locations, d), sum of |x|^2 x.
      fourth: float64 (*locations,), sum of |x|^4.
    """

    shift: np.ndarray
    count: int
    first: np.ndarray
    second: np.ndarray
    third: np.ndarray
    fourth: np.ndarray

    @classmethod
    def around(cls, shift: np.ndarray) -> "Statistics":
        """Those of no feature, around a shift (*locations, d)."""
        return cls(shift, 0, np.zeros_like(shift), np.zeros((*shift.shape, shift.shape[-1])), np.zeros_like(shift),
                   np.zeros(shift.shape[:-1]))  # fmt: skip

    def packed(self) -> dict[str, np.ndarray]:
        """The sums by name, of the symmetric `second` one half, (*locations, d (d + 1) / 2)."""
        rows, columns = np.triu_indices(self.shift.shape[-1])
        held = {field.name: np.asarray(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return held | {"second": self.second[..., rows, columns]}

    @classmethod
    def unpacked(cls, held: dict[str, np.ndarray]) -> "Statistics":
        """The statistics that `packed` returned."""
        d = held["shift"].shape[-1]
        rows, columns = np.triu_indices(d)
        second = np.empty((*held["shift"].shape, d))
        second[..., rows, columns] = second[..., columns, rows] = held["second"]
        return cls(**held | {"count": int(held["count"]), "second": second})

    def add(self, features: np.ndarray) -> None:
        """Adds features (*locations, n, d).

        Raises:
          UserError: A feature is not finite.
        """
        if not np.isfinite(features).all():
            raise UserError("the good images' features are not finite; give other weights")
        self.count += features.shape[-2]
        # One row of locations after the other, so that no second array of the size of `second` is made.
        for at in np.ndindex(self.shift.shape[:-2]):
            x = features[at].astype(np.float64) - self.shift[at][..., None, :]
            squares = (x**2).sum(axis=-1, keepdims=True)
            self.first[at] += x.sum(axis=-2)
            self.second[at] += np.swapaxes(x, -1, -2) @ x
            self.third[at] += (squares * x).sum(axis=-2)
            self.fourth[at] += (squares**2).sum(axis=(-2, -1))


def gaussian(sums: Statistics, *, shrinkage: str, ridge: float) -> density.Gaussian:
    """The Gaussian of the features, see `jaxad.scoring.density.fit_gaussian`.

    Raises:
      UserError: The covariance is singular, or there are fewer features than the Gaussian needs.
    """
    n, (*locations, d) = sums.count, sums.first.shape
    density.check_count(n, d, "gaussian", shrinkage=shrinkage, ridge=ridge)
    means, whitenings = np.empty((*locations, d), np.float32), np.empty((*locations, d, d), np.float32)
    # Threads gain nothing on matrices this small.
    with threadpool_limits(1 if locations else None):
        for at in np.ndindex(*locations):
            mean, second = sums.first[at] / n, sums.second[at]
            length = mean @ mean
            fourth = sums.fourth[at] + 4 * mean @ second @ mean - 4 * mean @ sums.third[at]
            fourth += 2 * length * np.trace(second) - 3 * n * length**2
            covariance = second / n - np.outer(mean, mean)
            whitenings[at] = density.shrunk_whitening(covariance, fourth / n, n, shrinkage, ridge)
            means[at] = sums.shift[at] + mean
    return density.Gaussian(np.asarray(False), means, whitenings)


def location_share(sums: Statistics, counted: np.ndarray | None = None) -> float:
    """How much of the features' variance their location explains, from 0 to 1, as a mean over the channels.

    Parts in the same position in every image have a share near 1, an even texture one near 0.

    Args:
      sums: Statistics with at least one axis of locations and two images.
      counted: bool, the locations that count, some at least; None for all.
    """
    n, counted = sums.count, ... if counted is None else counted
    offset, shift = (values[counted].reshape(-1, values.shape[-1]) for values in (sums.first / n, sums.shift))
    squares = np.diagonal(sums.second, axis1=-2, axis2=-1)[counted].reshape(offset.shape)
    within = squares / n - offset**2
    within = within.mean(axis=0) * n / (n - 1)  # unbiased: of few images each location's mean lies close to them
    between = (shift + offset).var(axis=0) - within / n
    total = within + between
    return float(np.clip(between[total > 0] / total[total > 0], 0, 1).mean()) if (total > 0).any() else 0.0
