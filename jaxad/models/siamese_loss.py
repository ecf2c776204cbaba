"""Objectives of Siamese networks: cosine similarities with a stop-gradient (Chen & He, CVPR 2021), in the form that
Yoa et al. (IEEE Access 2021) give them for anomaly detection.

Every function is written per device. With ``axis_name`` a mean over the batch is one over the global batch, so a loss
does not depend on how many devices share it.
"""

import jax
import jax.numpy as jnp
from jax import lax

PAIRS = ("all", "same")
REVERSE = ("recomputed", "literal")


def normalize(x: jax.Array) -> jax.Array:
    """Vectors (..., d) of length 1; of a zero vector zero, with a finite gradient."""
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


def _batch_mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    mean = x.mean(axis=0)
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def negative_cosine(p: jax.Array, z: jax.Array, *, pairs: str, axis_name: str | None = None) -> jax.Array:
    """Mean negative cosine similarity D of two batches of vectors (Equation 1).

    Args:
      p: (b, d)
      z: (b, d)
      pairs: ``same``, row i with row i; or ``all``, every row of the one with every row of the other, which is the
        product of the two mean unit vectors and costs no more.
      axis_name: Mapped axis over which the batch is split, if any.

    Returns:
      A number in [-1, 1].

    Raises:
      ValueError: `pairs` is none of these.
    """
    if pairs not in PAIRS:
        raise ValueError(f"pairs must be one of {', '.join(PAIRS)}, not {pairs!r}")
    p, z = normalize(p), normalize(z)
    if pairs == "all":
        return -(_batch_mean(p, axis_name) * _batch_mean(z, axis_name)).sum()
    return -_batch_mean((p * z).sum(axis=-1), axis_name)


def siamese_loss(
    first: tuple[jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array],
    *,
    pairs: str,
    axis_name: str | None = None,
) -> jax.Array:
    """The symmetric similarity of two batches of images (Equations 2 and 7): each prediction against the other's
    projection, which is a constant.

    Args:
      first: predictions p and projections z of one batch, (b, d) each.
      second: the same of the other batch.
      pairs: As in `negative_cosine`.
      axis_name: Mapped axis over which the batch is split, if any.

    Returns:
      A number in [-1, 1].
    """
    (p, z), (other_p, other_z) = first, second
    forward = negative_cosine(p, lax.stop_gradient(other_z), pairs=pairs, axis_name=axis_name)
    backward = negative_cosine(other_p, lax.stop_gradient(z), pairs=pairs, axis_name=axis_name)
    return (forward + backward) / 2


def correspondences(features: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which position of the other view is most alike, by cosine similarity (Equation 13), in both directions.

    All similarities (b, s, s) are in memory at once: 0.5 GB for 200 images of 784 positions.

    Args:
      features: (b, s, c), a stage of the backbone at every position of one view.
      others: (b, s, c), the same of the other view of the same images.

    Returns:
      int32 (b, s) twice: for each position of the one the index in the other, and the reverse. Of equals the first.
    """
    features, others = lax.stop_gradient((features, others))  # an index has no gradient
    exact = lax.Precision.HIGHEST  # neighbours are so alike that a reduced precision would choose at random
    similarity = jnp.einsum("bsc,btc->bst", normalize(features), normalize(others), precision=exact)
    return similarity.argmax(axis=2).astype(jnp.int32), similarity.argmax(axis=1).astype(jnp.int32)


def dense_loss(
    first: tuple[jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array],
    indices: tuple[jax.Array, jax.Array],
    *,
    reverse: str,
    axis_name: str | None = None,
) -> jax.Array:
    """The symmetric similarity of corresponding positions of two views (Equation 14).

    Args:
      first: dense predictions and projections of one view, (b, s, d) each.
      second: the same of the other view of the same images.
      indices: What `correspondences` returned.
      reverse: The indices of the second term. ``recomputed``: for each position of the second view its own most similar
        one in the first. ``literal``: as the equation is printed, the indices of the first term again, although they
        point into the second view.
      axis_name: Mapped axis over which the batch is split, if any.

    Returns:
      A number in [-1, 1].

    Raises:
      ValueError: `reverse` is none of these.
    """
    if reverse not in REVERSE:
        raise ValueError(f"reverse must be one of {', '.join(REVERSE)}, not {reverse!r}")
    (p, z), (other_p, other_z) = first, second
    forward, backward = indices

    def similarity(predicted, projected, chosen):
        target = jnp.take_along_axis(lax.stop_gradient(projected), chosen[..., None], axis=1)
        return (normalize(predicted) * normalize(target)).sum(axis=-1).mean(axis=1)

    back = backward if reverse == "recomputed" else forward
    both = similarity(p, other_z, forward) + similarity(other_p, z, back)
    return -_batch_mean(both, axis_name) / 2


def spread(projections: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """How far unit vectors are spread: 1 when they point everywhere alike, 0 when all are the same, a collapse.

    The root mean square over dimensions of their standard deviation, times sqrt(d) (Chen & He, Section 4.1, plot the
    standard deviation itself, which is 1 / sqrt(d) without a collapse).

    Args:
      projections: (b, d)
      axis_name: Mapped axis over which the batch is split, if any.

    Returns:
      A number in [0, 1].
    """
    unit = normalize(projections)
    mean = _batch_mean(unit, axis_name)
    return jnp.sqrt(_batch_mean(jnp.square(unit - mean), axis_name).sum())
