"""Densities of good images' features, fitted on the host in float64 and scored on the device in float32.

CutPaste's detector is a Gaussian on the features of the good images (Li et al. 2021, Section 2.3); its footnote names a
kernel density and a Gaussian mixture as alternatives. Each is a fit function, which returns a pytree of NumPy arrays,
and a score function of that pytree, which can be jitted and differentiated. Larger scores are more anomalous.

Features (*locations, n, d) give one density per location, as the patch model needs for aligned objects (Appendix A.5);
such a density scores features (*batch, *locations, d) into (*batch, *locations). Without leading axes the density is
one for all. Every density holds `l2_normalize`, whether features are scaled to unit length first, so that fit and score
cannot disagree. A density read from a checkpoint, where it is a dict, scores as it did before.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular as solve_on_device
from scipy.linalg import lapack, solve_triangular
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from jaxad.errors import UserError, other_version
from jaxad.scoring import gaussian_mixture

Array = np.ndarray | jax.Array
ROWS = 8192  # features converted to float64 at a time
ITERATIONS = 1000  # of expectation maximisation, at most
SINGULAR = 1e-10  # smallest variance, relative to the mean one, that float32 scores resolve


class Gaussian(NamedTuple):
    """A Gaussian by the inverse of the lower Cholesky factor L of its covariance L L^T.

    The inverse is computed in float64. To multiply by it is several times as fast as to solve with L.
    """

    l2_normalize: Array  # bool ()
    mean: Array  # (*locations, d)
    whitening: Array  # (*locations, d, d) L^-1


class LowRankGaussian(NamedTuple):
    """A Gaussian with m variances of its own, and one variance for every direction across their m."""

    l2_normalize: Array  # bool ()
    mean: Array  # (*locations, d)
    basis: Array  # (*locations, m, d) orthonormal rows, and rows of zeros
    precision_root: Array  # (*locations, m) 1 / standard deviation along each row
    floor_root: Array  # (*locations,) 1 / standard deviation across the rows


class KernelDensity(NamedTuple):
    """A mean of isotropic Gaussian kernels."""

    l2_normalize: Array  # bool ()
    points: Array  # (*locations, n, d) the kernels' centres
    bandwidth: Array  # (*locations,) the kernels' standard deviation


class GaussianMixture(NamedTuple):
    """A mixture of k Gaussians."""

    l2_normalize: Array  # bool ()
    log_weights: Array  # (*locations, k)
    means: Array  # (*locations, k, d)
    factors: Array  # (*locations, k, d) standard deviations, or (*locations, k, d, d) lower Cholesky factors


def unit_length(features: Array) -> Array:
    """Features (..., d) divided by their Euclidean norm, or by 1e-12 where that is smaller."""
    # Clipped inside the root: the root's gradient at zero would be infinite.
    return features / (features**2).sum(axis=-1, keepdims=True).clip(min=1e-24) ** 0.5


def _rows(features: np.ndarray, normalize: bool) -> Iterator[np.ndarray]:
    """Some rows of (n, d) after another, in float64."""
    for start in range(0, len(features), ROWS):
        rows = np.asarray(features[start : start + ROWS], np.float64)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            where = f"row {start + finite.argmin()} of the good images' features"
            raise UserError(f"{where} is not finite; train again with a lower learning rate")
        yield unit_length(rows) if normalize else rows


def _per_location(kind: type, fit: Callable, features: Array, l2_normalize: bool):
    """A density whose arrays `fit` gives for each location's (n, d); float64 is held for one location at a time."""
    features = np.asarray(features)
    locations = features.shape[:-2]
    whole: list[np.ndarray] = []
    # Threads gain nothing on matrices this small, and slow each other down tenfold where another program runs.
    with threadpool_limits(1 if locations else None):
        for at in np.ndindex(locations):
            parts = fit(features[at])
            whole = whole or [np.empty((*locations, *np.shape(part)), np.float32) for part in parts]
            for array, part in zip(whole, parts, strict=True):
                array[at] = part
    return kind(np.asarray(l2_normalize), *whole)


def _score(score: Callable[..., jax.Array], density: tuple, features: jax.Array, *, locations: int) -> jax.Array:
    """Maps `score`, of one location's arrays and features (b, d), over the `locations` leading axes of a density."""
    features = jnp.asarray(features, jnp.float32)
    features = jnp.where(density.l2_normalize, unit_length(features), features)
    split = features.ndim - 1 - locations
    stacked = jnp.moveaxis(features.reshape(-1, *features.shape[split:]), 0, locations)
    for _ in range(locations):
        score = jax.vmap(score)
    with jax.default_matmul_precision("highest"):
        scores = score(*density[1:], stacked)
    return jnp.moveaxis(scores, -1, 0).reshape(features.shape[:-1])


def _record(density: Any, *kinds: type) -> Any:
    """The density itself; checkpoints give a named tuple back as a dict of its fields."""
    if not isinstance(density, dict):
        return density
    for kind in kinds:
        if set(kind._fields) == set(density):
            return kind(**density)
    raise other_version("the density", f"it has {', '.join(sorted(density))}", about="density")


def check_places(density: Any, made: tuple[int, int], size: tuple[int, int]) -> None:
    """Checks that a density was fitted for the places of an image of this size.

    Args:
      density: A density for each place: a pytree whose largest leaves are (rows, columns, ...).
      made: Rows and columns of places that the image has.
      size: Height and width of the image in pixels.

    Raises:
      UserError: It was fitted for other places.
    """
    fitted = max((leaf.shape for leaf in jax.tree.leaves(density)), key=len)[:2]
    if fitted != made:
        raise UserError(
            f"the density was fitted for each of {fitted[0]} x {fitted[1]} places, but an image of {size[0]} pixels "
            f"has {made[0]} x {made[1]}; leave config.score.size and config.evaluate.crop as they were"
        )


def check_count(n: int, d: int, name: str, **options: Any) -> None:
    """Refuses to fit a density to n features of d channels, with a UserError, where it needs more."""
    least = DENSITIES[name].needed(d, **options)
    if n < least:
        given = ", ".join(f"{key} {value}" for key, value in options.items())
        count = f"needs at least {least} good images, not {n}"
        raise UserError(f"the {name} density ({given}) {count}; add images")


def fit_gaussian(
    features: Array, *, shrinkage: str = "ledoit_wolf", ridge: float = 0.0, l2_normalize: bool = False
) -> Gaussian | LowRankGaussian:
    """Fits mean and covariance (1 - s) S + (s tr(S) / d + ridge) I, where S = X^T X / n of the centred features X.

    ``ridge`` sets s = 0, ``ledoit_wolf`` the s with the least expected squared error (Ledoit & Wolf 2004). The latter
    is the default because it needs no number that fits the features' scale. With n <= d images the result is a
    `LowRankGaussian` of (n - 1) x d numbers, else a `Gaussian` of d x d: the same distribution in the smaller form.

    Args:
      features: (*locations, n, d)
      shrinkage: ``ledoit_wolf`` or ``ridge``.
      ridge: Added to every variance, in squared units of the features; at least 0. Features that are constant at some
        location, such as an empty background's, need it above 0.
      l2_normalize: Whether to scale features to unit length, here and when scoring.

    Raises:
      UserError: Too few images, non-finite features, a singular covariance or an option out of range.
    """
    n, d = features.shape[-2:]
    if shrinkage not in ("ledoit_wolf", "ridge"):
        raise UserError(
            f"config.density.shrinkage must be ledoit_wolf or ridge, not {shrinkage!r}", about="density.shrinkage"
        )
    if not 0 <= ridge < np.inf:
        raise UserError(f"config.density.ridge must be a number of at least 0, not {ridge}", about="density.ridge")
    check_count(*features.shape[-2:], "gaussian", shrinkage=shrinkage, ridge=ridge)
    kind, fit = (LowRankGaussian, _fit_low_rank) if n <= d else (Gaussian, _fit_whitening)
    return _per_location(kind, lambda one: fit(one, shrinkage, ridge, l2_normalize), features, l2_normalize)


def _fit_whitening(features: np.ndarray, shrinkage: str, ridge: float, l2_normalize: bool) -> tuple[np.ndarray, ...]:
    """Mean and whitening matrix of features (n, d)."""
    n, d = features.shape
    mean = sum(rows.sum(axis=0) for rows in _rows(features, l2_normalize)) / n
    covariance, fourth = np.zeros((d, d)), 0.0
    for rows in _rows(features, l2_normalize):
        rows = rows - mean
        covariance += rows.T @ rows
        fourth += ((rows**2).sum(axis=1) ** 2).sum()
    return mean, shrunk_whitening(covariance / n, fourth / n, n, shrinkage, ridge)


def shrunk_whitening(covariance: np.ndarray, fourth: float, n: int, shrinkage: str, ridge: float) -> np.ndarray:
    """The inverse Cholesky factor, lower float64 (d, d), of a covariance that is made invertible, see `fit_gaussian`.

    Args:
      covariance: S of n centered features.
      fourth: The mean of their norms' fourth power.
      n: How many they are.
      shrinkage: ``ledoit_wolf`` or ``ridge``.
      ridge: Added to every variance.

    Raises:
      UserError: It is singular all the same.
    """
    d = len(covariance)
    shrunk, floor = _shrink(covariance, fourth, n, d, shrinkage, ridge)
    covariance = (1 - shrunk) * covariance + floor * np.eye(d)
    variance = np.trace(covariance) / d
    # No eigenvalue is below the floor; to compute them takes ten times as long as the factor.
    _check_resolved(floor if floor > SINGULAR * variance else np.linalg.eigvalsh(covariance)[0], variance, ridge)
    inverse, _ = lapack.dtrtri(np.linalg.cholesky(covariance), lower=1)
    return inverse


def _fit_low_rank(features: np.ndarray, shrinkage: str, ridge: float, l2_normalize: bool) -> tuple[np.ndarray, ...]:
    """Mean, orthonormal basis and roots of the precisions of features (n, d), from their n x n Gram matrix.

    Woodbury's identity gives x^T C^-1 x = (|x|^2 - x^T X^T (X X^T + n floor I)^-1 X x) / floor (for s = 0), where up to
    log10(condition number) digits cancel, as many as float32 has. The eigenvectors U of the same Gram matrix
    X X^T = n U diag(v) U^T give the rows of B = diag(n v)^(-1/2) U^T X, orthonormal directions in which the variance is
    (1 - s) v + floor; in every other one it is `floor`. So the same x^T C^-1 x is a sum of squares,
    |diag((1 - s) v + floor)^(-1/2) B x|^2 + |x - B^T B x|^2 / floor: rounding of the order eps |x| before the squares
    costs a relative error of eps sqrt(condition number), as in a Cholesky solve, and nothing becomes negative.
    """
    n, d = features.shape
    rows = np.concatenate(list(_rows(features, l2_normalize)))
    mean = rows.mean(axis=0)
    rows -= mean
    gram = rows @ rows.T / n
    shrunk, floor = _shrink(gram, (np.diagonal(gram) ** 2).sum() * n, n, d, shrinkage, ridge)
    _check_resolved(floor, np.trace(gram) / d, ridge)
    # Centring leaves n - 1 directions. Where their variance is below a 1e-5th of the floor they count as the others:
    # the score changes by 1e-5 at most, and dividing by it would spoil the directions' orthogonality.
    values, vectors = (part[..., 1:] for part in np.linalg.eigh(gram))
    used = (1 - shrunk) * values > 1e-5 * floor
    values = np.where(used, values, 1.0)
    basis = (used / np.sqrt(n * values))[:, None] * (vectors.T @ rows)
    return mean, basis, 1 / np.sqrt((1 - shrunk) * values + floor), 1 / np.sqrt(floor)


def _shrink(second: np.ndarray, fourth: float, n: int, d: int, shrinkage: str, ridge: float) -> tuple[float, float]:
    """The shrinkage s and the variance added in every direction.

    `second` is X^T X / n or X X^T / n, whose trace and norm are the same, and `fourth` the mean of |x|^4.
    """
    if shrinkage == "ridge":
        return 0.0, ridge
    variance = np.trace(second) / d
    square = (second**2).sum()
    distance = square / d - variance**2  # of S from its multiple of the identity, squared (delta^2 in the paper)
    error = min((fourth - square) / (d * n), distance)  # expected, of S from the true covariance (beta^2)
    shrunk = error / distance if error > 0 else 0.0
    return shrunk, shrunk * variance + ridge


def _check_resolved(smallest: float, variance: float, ridge: float) -> None:
    if not smallest > max(SINGULAR * variance, np.finfo(np.float32).tiny):
        raise UserError(
            "the covariance of the good images' features is singular, because they are too few or don't differ; "
            f"raise config.density.ridge, now {ridge}",
            about="density.ridge",
        )


def gaussian_score(density: Gaussian | LowRankGaussian | dict, features: jax.Array) -> jax.Array:
    """Half the squared Mahalanobis distance (Equation 2; without the log-determinant, as there).

    From features (*batch, *locations, d): float32 (*batch, *locations), at least 0.
    """
    density = _record(density, Gaussian, LowRankGaussian)

    def whitened(mean, whitening, x):
        # In this order: with x on the left, XLA's batched product on a CPU can take several times as long.
        return 0.5 * ((whitening @ (x - mean).T) ** 2).sum(axis=0)

    def low_rank(mean, basis, precision_root, floor_root, x):
        x = x - mean
        inside = x @ basis.T
        outside = x - inside @ basis
        return 0.5 * (((inside * precision_root) ** 2).sum(axis=-1) + ((outside * floor_root) ** 2).sum(axis=-1))

    score = whitened if isinstance(density, Gaussian) else low_rank
    return _score(score, density, features, locations=density.mean.ndim - 1)


def fit_kernel(features: Array, *, bandwidth: str | float = "scott", l2_normalize: bool = False) -> KernelDensity:
    """Keeps the features and chooses the kernels' bandwidth.

    Scott's rule is sigma n^(-1 / (d + 4)), Silverman's sigma (n (d + 2) / 4)^(-1 / (d + 4)), sigma^2 being the mean of
    the features' d variances. (scikit-learn's rules of these names leave sigma out: for standardised features.)

    Args:
      features: (*locations, n, d)
      bandwidth: ``scott``, ``silverman``, or the kernels' standard deviation, above 0.
      l2_normalize: Whether to scale features to unit length, here and when scoring.

    Raises:
      UserError: Too few images, non-finite features, features that don't differ, or an option out of range.
    """
    n, d = features.shape[-2:]
    number = isinstance(bandwidth, int | float) and 0 < bandwidth < np.inf
    if not number and bandwidth not in ("scott", "silverman"):
        raise UserError(
            f"config.density.bandwidth must be scott, silverman or a number above 0, not {bandwidth!r}",
            about="density.bandwidth",
        )
    check_count(*features.shape[-2:], "kernel", bandwidth=bandwidth)

    def fit_one(one: np.ndarray) -> tuple[np.ndarray, ...]:
        points = np.concatenate(list(_rows(one, l2_normalize)))
        if number:
            return points, np.asarray(bandwidth)
        sigma = np.sqrt(points.var(axis=0).mean())
        if not sigma > 0:
            raise UserError(
                "the good images' features don't differ; set config.density.bandwidth to a number",
                about="density.bandwidth",
            )
        return points, sigma * (n if bandwidth == "scott" else n * (d + 2) / 4) ** (-1 / (d + 4))

    return _per_location(KernelDensity, fit_one, features, l2_normalize)


def kernel_score(density: KernelDensity | dict, features: jax.Array) -> jax.Array:
    """Negative log density in nats, float32; shapes as in `gaussian_score`."""
    density = _record(density, KernelDensity)
    n, d = density.points.shape[-2:]

    def score(points, bandwidth, x):
        # Differences, not |x|^2 + |p|^2 - 2 x p: that cancels for neighbours, which are what counts here.
        squares = (((x[:, None] - points) / bandwidth) ** 2).sum(axis=-1)
        constant = np.log(n) + d * (0.5 * gaussian_mixture.LOG_2PI + jnp.log(bandwidth))
        return constant - jax.nn.logsumexp(-0.5 * squares, axis=-1)

    return _score(score, density, features, locations=density.points.ndim - 2)


def fit_mixture(
    key: jax.Array,
    features: Array,
    *,
    components: int,
    covariance: str = "full",
    ridge: float = 1e-3,
    tolerance: float = 1e-3,
    l2_normalize: bool = False,
) -> GaussianMixture:
    """Fits a Gaussian mixture by expectation maximisation, started from k-means.

    Args:
      key: Draws k-means' first centres, the same way at every location.
      features: (*locations, n, d)
      components: Number of Gaussians, 1 to n.
      covariance: ``diag`` or ``full``.
      ridge: Added to every variance, in squared units of the features; above 0.
      tolerance: The mean log-likelihood's increase, in nats, below which the iteration ends; above 0.
      l2_normalize: Whether to scale features to unit length, here and when scoring.

    Raises:
      UserError: Too few (different) images, non-finite features, no convergence or an option out of range.
    """
    if covariance not in ("diag", "full"):
        raise UserError(
            f"config.density.covariance must be diag or full, not {covariance!r}", about="density.covariance"
        )
    if not (ridge > 0 and tolerance > 0 and components >= 1):
        given = f"{ridge}, {tolerance} and {components}"
        raise UserError(
            f"config.density.ridge, tolerance and components must be above 0, not {given}", about="density.ridge"
        )
    check_count(*features.shape[-2:], "gaussian_mixture", components=components)
    seed = np.asarray(jax.random.key_data(key)).ravel()

    def fit_one(one: np.ndarray) -> tuple[np.ndarray, ...]:
        x = np.concatenate(list(_rows(one, l2_normalize)))
        memberships, likelihood = gaussian_mixture.k_means(np.random.default_rng(seed), x, components), -np.inf
        for _ in range(ITERATIONS):
            fitted = gaussian_mixture.maximise(x, memberships, covariance, ridge)
            joint = gaussian_mixture.log_joint(np, solve_triangular, *fitted, x)
            evidence = logsumexp(joint, axis=1)
            memberships = np.exp(joint - evidence[:, None])
            previous, likelihood = likelihood, evidence.mean()
            if likelihood - previous < tolerance:
                return fitted
        raise UserError(
            f"the mixture did not converge in {ITERATIONS} iterations; raise config.density.tolerance",
            about="density.tolerance",
        )

    return _per_location(GaussianMixture, fit_one, features, l2_normalize)


def mixture_score(density: GaussianMixture | dict, features: jax.Array) -> jax.Array:
    """Negative log density in nats, float32; shapes as in `gaussian_score`."""
    density = _record(density, GaussianMixture)

    def score(log_weights, means, factors, x):
        joint = gaussian_mixture.log_joint(jnp, solve_on_device, log_weights, means, factors, x)
        return -jax.nn.logsumexp(joint, axis=-1)

    return _score(score, density, features, locations=density.means.ndim - 2)


class Density(NamedTuple):
    """One kind of density.

    Attributes:
      fit: ``(key, features, **options) -> density``.
      score: ``(density, features) -> scores``.
      options: What of ``config.density`` the fit takes.
      needed: ``(d, **options) -> number``, how many features of d channels the fit needs for each location.
    """

    fit: Callable[..., Any]
    score: Callable[[Any, jax.Array], jax.Array]
    options: tuple[str, ...]
    needed: Callable[..., int]


DENSITIES = {
    "gaussian": Density(
        lambda key, features, **options: fit_gaussian(features, **options),
        gaussian_score,
        ("shrinkage", "ridge", "l2_normalize"),
        lambda d, shrinkage, ridge, **_: d + 1 if shrinkage == "ridge" and not ridge else 2,
    ),
    "kernel": Density(
        lambda key, features, **options: fit_kernel(features, **options),
        kernel_score,
        ("bandwidth", "l2_normalize"),
        lambda d, bandwidth, **_: 2 if isinstance(bandwidth, str) else 1,
    ),
    "gaussian_mixture": Density(
        fit_mixture,
        mixture_score,
        ("components", "covariance", "ridge", "tolerance", "l2_normalize"),
        lambda d, components, **_: components,
    ),
}


# The densities whose fit takes an option.
NAMES_WITH = {
    option: tuple(name for name, density in DENSITIES.items() if option in density.options)
    for option in dict.fromkeys(option for density in DENSITIES.values() for option in density.options)
}


def select(name: str) -> Density:
    """The density of a name; UserError if it is not in `DENSITIES`."""
    if name not in DENSITIES:
        raise UserError(
            f"config.density.name must be one of {', '.join(DENSITIES)}, not {name!r}", about="density.name"
        )
    return DENSITIES[name]
