"""The steps of expectation maximisation for a Gaussian mixture, on the host in float64, and its log density."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
from scipy.spatial.distance import cdist

from jaxad.errors import UserError, counted

LOG_2PI = float(np.log(2 * np.pi))
ROUNDS = 20  # of k-means, which only starts the mixture


def k_means(rng: np.random.Generator, x: np.ndarray, k: int) -> np.ndarray:
    """Lloyd's algorithm from k-means++ centres (Arthur & Vassilvitskii 2007); the assignment as (n, k) of 0 and 1."""
    centres = x[[rng.integers(len(x))]]
    for _ in range(k - 1):
        distance = cdist(x, centres, "sqeuclidean").min(axis=1)
        if not distance.any():
            different = f"{counted(len(centres), 'image')} {'have' if len(centres) > 1 else 'has'} different features"
            raise UserError(f"config.density.components is {k}, but only {different}", about="density.components")
        centres = np.concatenate([centres, x[[rng.choice(len(x), p=distance / distance.sum())]]])
    for _ in range(ROUNDS):
        nearest = cdist(x, centres, "sqeuclidean").argmin(axis=1)
        filled = np.unique(nearest)  # a centre that lost all its images stays where it is
        centres[filled] = [x[nearest == j].mean(axis=0) for j in filled]
    return np.eye(k)[nearest]


def maximise(x: np.ndarray, memberships: np.ndarray, covariance: str, ridge: float) -> tuple[np.ndarray, ...]:
    """Log weights, means and factors, as `GaussianMixture` holds them, of x (n, d) by memberships (n, k)."""
    # A component without members keeps a weight whose logarithm is finite, and its mean is the origin.
    counts = memberships.sum(axis=0) + 10 * np.finfo(np.float64).eps
    means = memberships.T @ x / counts[:, None]
    factors = []
    for weights, count, mean in zip(memberships.T, counts, means, strict=True):
        weighted = np.sqrt(weights / count)[:, None] * (x - mean)
        if covariance == "diag":
            factors.append(np.sqrt((weighted**2).sum(axis=0) + ridge))
        else:
            factors.append(np.linalg.cholesky(weighted.T @ weighted + ridge * np.eye(x.shape[1])))
    return np.log(counts / len(x)), means, np.stack(factors)


def log_joint(xp: ModuleType, solve: Callable, log_weights, means, factors, x):
    """Logs of weight times normal density, (n, k), of x (n, d) by NumPy or jax.numpy and its triangular solve."""
    joint = []
    for log_weight, mean, factor in zip(log_weights, means, factors, strict=True):
        if factor.ndim == 1:
            whitened, scales = ((x - mean) / factor).T, factor
        else:
            whitened, scales = solve(factor, (x - mean).T, lower=True), factor.diagonal()
        log_scale = 0.5 * LOG_2PI * len(mean) + xp.log(scales).sum()
        joint.append(log_weight - log_scale - 0.5 * (whitened**2).sum(axis=0))
    return xp.stack(joint, axis=-1)
