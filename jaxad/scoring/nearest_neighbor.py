"""Nearest neighbors: how far a feature lies from the closest one of the good images (Roth et al., CVPR 2022).

The features of the good images are a bank. `greedy_coreset` chooses a part of it that leaves no feature far from the
chosen ones, `nearest` searches it. Both compare features in matrix products, of bounded size, so that neither needs
memory for all pairs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.errors import UserError

CANDIDATES = 128  # of which a round of `greedy_coreset` chooses some
ROWS = 4096  # points of the bank that are compared at a time
PAIRS = 2**26  # distances that are held at a time


class Bank(NamedTuple):
    """Features of good images that new ones are compared with.

    Attributes:
      points: float32 (m, d).
      neighbors: int32 (m, k), the k points next to each one, itself the first.
    """

    points: jax.Array
    neighbors: jax.Array


def greedy_coreset(key: jax.Array, features: np.ndarray, *, count: int) -> np.ndarray:
    """Chooses features one after the other, each the one farthest from all that were chosen before.

    This is the greedy solution of the k-center problem (Gonzalez 1985), exact up to the rounding of float32. One pass
    over the features serves many choices: whatever is chosen, distances only shrink. So a candidate whose distance
    is still above the (CANDIDATES + 1)th largest one of the last pass is the farthest of all, and is chosen without
    looking at the others again.

    Args:
      key: Draws the first one.
      features: (n, d)
      count: How many to choose.

    Returns:
      int (count,), the rows that were chosen, in order.

    Raises:
      UserError: There are fewer features, or none is to be chosen.
    """
    n = len(features)
    if not 1 <= count <= n:
        raise UserError(f"a coreset of {count} features cannot be chosen from {n}; choose from 1 to {n}")
    # Around their mean, features are small, and so is the rounding of |x|^2 + |y|^2 - 2 x y.
    x = jnp.asarray(features - features.mean(axis=0, dtype=np.float64).astype(np.float32), jnp.float32)
    squares = (x**2).sum(axis=1)
    first = jax.random.randint(key, (), 0, n)
    distances = _shrunk(jnp.full(n, jnp.inf), x, squares, first[None], jnp.ones(1, bool))
    chosen = [np.asarray(first)[None]]
    made, width = 1, min(CANDIDATES, n - 1)
    while made < count:
        rows, taken, distances = _round(distances, x, squares, count - made, width=width)
        rows = np.asarray(rows)[: int(taken)]
        chosen.append(rows)
        made += len(rows)
    return np.concatenate(chosen)


@functools.partial(jax.jit, static_argnames="width")
def _round(
    distances: jax.Array, x: jax.Array, squares: jax.Array, most: jax.Array, *, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next rows, how many of them, at most `most`, were chosen, and the squared distances to all that are."""
    largest, candidates = jax.lax.top_k(distances, width + 1)
    candidates, outside = candidates[:width], largest[width]
    some = x[candidates]
    pairs = ((some[:, None] - some) ** 2).sum(axis=-1)

    def is_farthest(state):
        made, _, left = state
        return (made < jnp.minimum(most, width)) & ((made == 0) | (left.max() >= outside))

    def choose(state):
        made, order, left = state
        at = left.argmax().astype(jnp.int32)
        return made + 1, order.at[made].set(at), jnp.minimum(left, pairs[at]).at[at].set(-jnp.inf)

    made, order, _ = jax.lax.while_loop(is_farthest, choose, (0, jnp.zeros(width, jnp.int32), largest[:width]))
    rows, valid = candidates[order], jnp.arange(width) < made
    return rows, made, _shrunk(distances, x, squares, rows, valid)


def _shrunk(distances: jax.Array, x: jax.Array, squares: jax.Array, rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Squared distances of x (n, d) to the closest chosen feature, after some more rows were chosen where `valid`."""
    with jax.default_matmul_precision("highest"):
        products = x @ x[rows].T
    found = squares[:, None] + squares[rows] - 2 * products
    found = jnp.where(valid, found, jnp.inf).min(axis=1).clip(min=0)
    distances = jnp.minimum(distances, found)
    return distances.at[jnp.where(valid, rows, len(x))].set(-jnp.inf, mode="drop")  # none is chosen twice


def fit_bank(features: np.ndarray, *, neighbors: int = 1) -> Bank:
    """A bank of features (m, d), with so many neighbors of each point for `image_weight`.

    Raises:
      UserError: A feature is not finite, or there are fewer features than neighbors.
    """
    if not np.isfinite(features).all():
        raise UserError("the good images' features are not finite; give other weights")
    if neighbors > len(features):
        raise UserError(
            f"config.score.reweight is {neighbors}, but the bank has {len(features)} features; lower it",
            about="score.reweight",
        )
    near = np.arange(len(features), dtype=np.int32)[:, None]
    if neighbors > 1:
        points = jnp.asarray(features - features.mean(axis=0, dtype=np.float64).astype(np.float32))
        rows = max(1, min(ROWS, PAIRS // len(points)))
        starts = range(0, len(points), rows)
        near = np.concatenate([np.asarray(_neighbors(points, at, rows=rows, count=neighbors)) for at in starts])
        near = near[: len(points)]
    return Bank(np.asarray(features, np.float32), near)


@functools.partial(jax.jit, static_argnames=("rows", "count"))
def _neighbors(points: jax.Array, start: int, *, rows: int, count: int) -> jax.Array:
    """The `count` points (m, d) next to each of some (rows, d) of them, the closest first and itself before all.

    Past the last point, rows are repeated.
    """
    numbers = jnp.minimum(start + jnp.arange(rows), len(points) - 1)
    squares = _squared_distances(points[numbers], points).at[jnp.arange(rows), numbers].set(-jnp.inf)
    return jax.lax.top_k(-squares, count)[1]


def _squared_distances(x: jax.Array, points: jax.Array) -> jax.Array:
    """Squared distances of x (n, d) to points (m, d), up to rounding: (n, m)."""
    with jax.default_matmul_precision("highest"):
        products = x @ points.T
    return (x**2).sum(axis=1)[:, None] + (points**2).sum(axis=1) - 2 * products


def nearest(bank: Bank, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Euclidean distance to the closest point of the bank, and its number.

    The closest one is found in matrix products, which round; its distance is then that of the difference.

    Args:
      bank: A bank of m points.
      features: (..., d)

    Returns:
      float32 (...) and int32 (...).
    """
    known, (m, d) = jnp.asarray(bank.points), bank.points.shape
    x, center = features.reshape(-1, d).astype(jnp.float32), known.mean(axis=0)
    points, rows = known - center, min(ROWS, m)
    count = -(-m // rows)
    padded = jnp.pad(points, ((0, count * rows - m), (0, 0))).reshape(count, rows, d)

    def closest(part):
        number, some = part
        valid = number * rows + jnp.arange(rows) < m
        squares = jnp.where(valid, _squared_distances(x - center, some), jnp.inf)
        return squares.min(axis=1), number * rows + squares.argmin(axis=1).astype(jnp.int32)

    squares, found = jax.lax.map(closest, (jnp.arange(count, dtype=jnp.int32), padded))
    at = jnp.take_along_axis(found, squares.argmin(axis=0)[None], axis=0)[0]
    distances = jnp.sqrt(((x - known[at]) ** 2).sum(axis=-1))
    return distances.reshape(features.shape[:-1]), at.reshape(features.shape[:-1])


def image_weight(bank: Bank, features: jax.Array, distances: jax.Array, nearest_points: jax.Array) -> jax.Array:
    """PatchCore's factor of an image's score: small where its most anomalous feature lies in a dense part of the bank.

    Roth et al. 2022, Equation 7: 1 - exp |x - p| / sum_q exp |x - q|, with x the feature of the largest distance, p the
    point closest to x, and q the neighbors of p in the bank.

    Args:
      bank: A bank with neighbors.
      features: (b, n, d)
      distances: (b, n), of `nearest`.
      nearest_points: (b, n), of `nearest`.

    Returns:
      float32 (b,), in [0, 1].
    """
    points, neighbors = jnp.asarray(bank.points), jnp.asarray(bank.neighbors)

    def one(features, distances, nearest_points):
        at = distances.argmax()
        around = points[neighbors[nearest_points[at]]]
        away = jnp.sqrt(((features[at] - around) ** 2).sum(axis=-1))
        return 1 - jnp.exp(distances[at] - jax.nn.logsumexp(away))

    return jax.vmap(one)(features.astype(jnp.float32), distances, nearest_points)
