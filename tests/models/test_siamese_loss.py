"""The Siamese objectives against loops over the paper's equations, their gradients, and cases derived by hand."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.models.siamese_loss import correspondences, dense_loss, negative_cosine, normalize, siamese_loss, spread
from jaxad.runtime import devices
from tests.parts import one_step

Vectors = np.ndarray
Branch = tuple[Vectors, Vectors]  # predictions and projections

BATCH, POSITIONS, WIDTH = 5, 7, 3
DTYPES = [(np.float32, 1e-6), (np.float64, 1e-13)]


@pytest.fixture(autouse=True)
def double_precision():
    """Arrays that a test makes in float64 stay so."""
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int) -> Vectors:
    """Random vectors of unlike lengths, and not centred: their mean direction is not zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 0.3) * rng.uniform(0.1, 10, (*shape[:-1], 1))


def branches(*shape: int) -> tuple[Branch, Branch]:
    return (normal(0, *shape), normal(1, *shape)), (normal(2, *shape), normal(3, *shape))


def cosine(a: Vectors, b: Vectors) -> float:
    return float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


def distance(p: Vectors, z: Vectors, pairs: str) -> float:
    """The mean of Equation 1 over all pairs (i, j), or over those with i = j."""
    chosen = [(i, j) for i in range(len(p)) for j in range(len(z)) if pairs == "all" or i == j]
    return sum(-cosine(p[i], z[j]) for i, j in chosen) / len(chosen)


def symmetric(first: Branch, second: Branch, pairs: str) -> float:
    """Equations 2 and 7."""
    (p, z), (other_p, other_z) = first, second
    return 0.5 * distance(p, other_z, pairs) + 0.5 * distance(z, other_p, pairs)


def most_similar(features: Vectors, others: Vectors) -> np.ndarray:
    """Equation 13 for one image: for each position of the one the first of the most similar of the other."""
    found = np.zeros(len(features), int)
    for s in range(len(features)):
        for t in range(len(others)):
            if cosine(features[s], others[t]) > cosine(features[s], others[found[s]]):
                found[s] = t
    return found


def dense(first: Branch, second: Branch, features: Vectors, others: Vectors, reverse: str) -> float:
    """Equation 14, its mean over the images."""
    (p, z), (other_p, other_z) = first, second
    images, positions = p.shape[:2]
    total = 0.0
    for i in range(images):
        c = most_similar(features[i], others[i])
        back = c if reverse == "literal" else most_similar(others[i], features[i])
        for s in range(positions):
            total -= cosine(p[i, s], other_z[i, c[s]]) / (2 * positions)
            total -= cosine(z[i, back[s]], other_p[i, s]) / (2 * positions)
    return total / images


def differences(f: Callable[[Vectors], float], x: Vectors) -> Vectors:
    """The gradient of f by central differences."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-5
        gradient[place] = (f(x + step) - f(x - step)) / 2e-5
    return gradient


def assert_constant(gradient: jax.Array) -> None:
    assert not np.asarray(gradient).any()


# Values


@pytest.mark.medium
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("pairs", ["all", "same"])
def test_losses_of_images_equal_the_equations(pairs: str, dtype: type, tolerance: float) -> None:
    first, second = branches(BATCH, WIDTH)
    ours, others = jax.tree.map(lambda v: jnp.asarray(v, dtype), (first, second))
    single = negative_cosine(ours[0], others[1], pairs=pairs)
    both = siamese_loss(ours, others, pairs=pairs)
    assert single.dtype == both.dtype == dtype and single.shape == both.shape == ()
    np.testing.assert_allclose(single, distance(first[0], second[1], pairs), rtol=0, atol=tolerance)
    np.testing.assert_allclose(both, symmetric(first, second, pairs), rtol=0, atol=tolerance)
    assert abs(symmetric(first, second, "all") - symmetric(first, second, "same")) > 0.01


@pytest.mark.medium
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("reverse", ["recomputed", "literal"])
def test_the_dense_loss_equals_its_equation(reverse: str, dtype: type, tolerance: float) -> None:
    first, second = branches(BATCH, POSITIONS, WIDTH)
    features, others = normal(4, BATCH, POSITIONS, 4), normal(5, BATCH, POSITIONS, 4)
    indices = correspondences(jnp.asarray(features, dtype), jnp.asarray(others, dtype))
    ours, theirs = jax.tree.map(lambda v: jnp.asarray(v, dtype), (first, second))
    value = dense_loss(ours, theirs, indices, reverse=reverse)
    assert value.dtype == dtype and value.shape == ()
    np.testing.assert_allclose(value, dense(first, second, features, others, reverse), rtol=0, atol=tolerance)
    forms = [dense(first, second, features, others, form) for form in ("recomputed", "literal")]
    assert abs(forms[0] - forms[1]) > 0.01


@pytest.mark.parametrize(("pairs", "expected"), [("same", -(0.6 + 0) / 2), ("all", -(0.6 + 1 + 0.8 + 0) / 4)])
def test_pairs_by_hand(pairs: str, expected: float) -> None:
    """Cosines of p with z: (1, 0) has 0.6 with (3, 4) and 1 with (1, 0); (0, 2) has 0.8 and 0."""
    p, z = jnp.array([[1.0, 0], [0, 2]]), jnp.array([[3.0, 4], [1, 0]])
    np.testing.assert_allclose(negative_cosine(p, z, pairs=pairs), expected, atol=1e-15)


@pytest.mark.parametrize(("reverse", "expected"), [("recomputed", -(1 + 1.6) / 4), ("literal", -(1 + 0.6) / 4)])
def test_two_positions_by_hand(reverse: str, expected: float) -> None:
    """Features (1, 0) and (0, 1) beside (2, 1) and (3, 1).

    (1, 0) is nearer to (3, 1), (0, 1) nearer to (2, 1): forward (1, 0). Both others are nearer to (1, 0): backward
    (0, 0). Forward term: p_0 z'_1 + p_1 z'_0 = 1 + 0. Reverse term: recomputed p'_0 z_0 + p'_1 z_0 = 1 + 0.6, literal
    p'_0 z_1 + p'_1 z_0 = 0 + 0.6. Their sum is divided by two terms and two positions.
    """
    indices = correspondences(jnp.array([[[1.0, 0], [0, 1]]]), jnp.array([[[2.0, 1], [3, 1]]]))
    assert [index.tolist() for index in indices] == [[[1, 0]], [[0, 0]]]
    p, z = jnp.array([[[1.0, 0], [1, 0]]]), jnp.array([[[1.0, 0], [0, 1]]])
    other_p, other_z = jnp.array([[[1.0, 0], [3, 4]]]), jnp.array([[[0.0, 1], [1, 0]]])
    value = dense_loss((p, z), (other_p, other_z), indices, reverse=reverse)
    np.testing.assert_allclose(value, expected, atol=1e-15)


@pytest.mark.medium
def test_both_forms_agree_where_correspondence_is_mutual() -> None:
    """A swap of two positions is its own inverse: then the literal indices are the recomputed ones."""
    features = jnp.asarray(normal(0, 1, 3, 8))
    indices = correspondences(features, features[:, jnp.array([1, 0, 2])])
    assert [index.tolist() for index in indices] == [[[1, 0, 2]]] * 2
    literal, recomputed = (dense_loss(*branches(1, 3, 4), indices, reverse=form) for form in ("literal", "recomputed"))
    assert float(literal) == float(recomputed)


# Gradients


@pytest.mark.medium
@pytest.mark.parametrize("pairs", ["all", "same"])
def test_gradients_of_cosines_equal_differences(pairs: str) -> None:
    """By both arguments: `negative_cosine` alone stops nothing."""
    p, z = normal(0, BATCH, WIDTH), normal(1, BATCH, WIDTH)
    by_p, by_z = jax.grad(functools.partial(negative_cosine, pairs=pairs), argnums=(0, 1))(p, z)
    np.testing.assert_allclose(by_p, differences(lambda p: distance(p, z, pairs), p), atol=1e-8)
    np.testing.assert_allclose(by_z, differences(lambda z: distance(p, z, pairs), z), atol=1e-8)
    assert np.abs(by_z).min() > 1e-6


@pytest.mark.parametrize("pairs", ["all", "same"])
def test_projections_of_images_are_constants(pairs: str) -> None:
    first, second = (p, z), (other_p, other_z) = branches(BATCH, WIDTH)
    by_first, by_second = jax.grad(functools.partial(siamese_loss, pairs=pairs), argnums=(0, 1))(first, second)
    assert_constant(by_first[1])
    assert_constant(by_second[1])
    by_p = differences(lambda p: symmetric((p, z), second, pairs), p)
    by_other_p = differences(lambda other_p: symmetric(first, (other_p, other_z), pairs), other_p)
    np.testing.assert_allclose(by_first[0], by_p, atol=1e-8)
    np.testing.assert_allclose(by_second[0], by_other_p, atol=1e-8)
    assert min(np.abs(by_p).min(), np.abs(by_other_p).min()) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("reverse", ["recomputed", "literal"])
def test_dense_projections_and_features_are_constants(reverse: str) -> None:
    first, second = (p, z), (other_p, other_z) = branches(2, POSITIONS, WIDTH)
    views = normal(4, 2, POSITIONS, 4), normal(5, 2, POSITIONS, 4)

    def loss(first: Branch, second: Branch, features: Vectors, others: Vectors) -> jax.Array:
        return dense_loss(first, second, correspondences(features, others), reverse=reverse)

    by_first, by_second, *by_views = jax.grad(loss, argnums=(0, 1, 2, 3))(first, second, *views)
    for gradient in (by_first[1], by_second[1], *by_views):
        assert_constant(gradient)
    by_p = differences(lambda p: dense((p, z), second, *views, reverse), p)
    by_other_p = differences(lambda other_p: dense(first, (other_p, other_z), *views, reverse), other_p)
    np.testing.assert_allclose(by_first[0], by_p, atol=1e-8)
    np.testing.assert_allclose(by_second[0], by_other_p, atol=1e-8)
    assert min(np.abs(by_p).max(), np.abs(by_other_p).max()) > 1e-3


def test_an_encoder_learns_by_its_predictions_alone() -> None:
    """With z = x w and p = z v the gradient by w is that of a loss whose projections stay where they are."""
    x, other_x, w, v = normal(0, BATCH, 4), normal(1, BATCH, 4), normal(2, 4, WIDTH), normal(3, WIDTH, WIDTH)

    def loss(w: jax.Array) -> jax.Array:
        return siamese_loss((x @ w @ v, x @ w), (other_x @ w @ v, other_x @ w), pairs="all")

    stopped = differences(lambda u: symmetric((x @ u @ v, x @ w), (other_x @ u @ v, other_x @ w), "all"), w)
    through = differences(lambda u: symmetric((x @ u @ v, x @ u), (other_x @ u @ v, other_x @ u), "all"), w)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(w)), stopped, atol=1e-8)
    assert np.abs(stopped - through).max() > 1e-3


# Correspondences


@pytest.mark.medium
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_correspondences_equal_a_search(dtype: type) -> None:
    features, others = normal(0, 3, 7, 5), normal(1, 3, 11, 5)
    forward, backward = correspondences(jnp.asarray(features, dtype), jnp.asarray(others, dtype))
    assert forward.dtype == backward.dtype == jnp.int32
    images = list(zip(features, others, strict=True))
    np.testing.assert_array_equal(forward, [most_similar(one, other) for one, other in images])
    np.testing.assert_array_equal(backward, [most_similar(other, one) for one, other in images])
    assert len(np.unique(forward)) > 2 and len(np.unique(backward)) > 2


@pytest.mark.medium
def test_of_equal_positions_the_first_corresponds() -> None:
    """Axes 0 1 2 0 beside 2 0 0 1 2; (5, 0, 0) is the axis 0, whose length must not count."""
    axes = jnp.eye(3)
    features = axes[jnp.array([[0, 1, 2, 0]])].at[0, 3].mul(5)
    forward, backward = correspondences(features, axes[jnp.array([[2, 0, 0, 1, 2]])].at[0, 2].mul(5))
    assert forward.tolist() == [[1, 3, 0, 1]]
    assert backward.tolist() == [[2, 0, 0, 1, 2]]


def test_correspondences_are_computed_in_full_precision() -> None:
    """Accelerators would round the factors of a product in the default precision."""
    features = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    assert "HIGHEST" in str(jax.make_jaxpr(correspondences)(features, features))


# Lengths and limits


def all_losses(first: Branch, second: Branch) -> list[jax.Array]:
    """Every loss of batches (b, s, d), the ones of images on their first positions."""
    images = jax.tree.map(lambda v: v[:, 0], (first, second))
    indices = jnp.arange(first[0].shape[1]) * jnp.ones((len(first[0]), 1), jnp.int32)
    both = [siamese_loss(*images, pairs=pairs) for pairs in ("all", "same")]
    single = [negative_cosine(images[0][0], images[1][1], pairs=pairs) for pairs in ("all", "same")]
    positions = [dense_loss(first, second, (indices, indices), reverse=form) for form in ("recomputed", "literal")]
    return both + single + positions


def test_losses_don_t_depend_on_lengths() -> None:
    first, second = branches(BATCH, POSITIONS, WIDTH)
    lengths = iter(np.random.default_rng(9).uniform(1e-3, 1e3, (4, BATCH, POSITIONS, 1)))
    scaled = jax.tree.map(lambda v: v * next(lengths), (first, second))
    np.testing.assert_allclose(all_losses(*scaled), all_losses(first, second), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_of_equal_and_of_opposite_vectors(sign: int) -> None:
    """-1 where all predictions point as all projections do, 1 where they point against them: the limits."""
    z = normal(0, 1, 1, WIDTH) * np.random.default_rng(1).uniform(0.1, 10, (BATCH, POSITIONS, 1))
    np.testing.assert_allclose(all_losses((sign * z, z), (sign * z, z)), -sign, rtol=1e-14)


def test_unit_vectors() -> None:
    np.testing.assert_allclose(normalize(jnp.array([[3.0, 4], [0, -2], [0, 0]])), [[0.6, 0.8], [0, -1], [0, 0]])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_vectors_give_numbers(dtype: type) -> None:
    """A zero vector is like no other: cosine 0, and no NaN in the gradient, which all others share."""
    first, second = jax.tree.map(lambda v: jnp.asarray(v, dtype), branches(BATCH, POSITIONS, WIDTH))
    first, second = jax.tree.map(lambda v: v.at[0].set(0), (first, second))

    def total(first: Branch, second: Branch) -> jax.Array:
        return sum(all_losses(first, second))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(first, second)
    assert jnp.isfinite(value) and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    zeros = jax.tree.map(jnp.zeros_like, (first, second))
    np.testing.assert_array_equal(all_losses(*zeros), 0)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(*zeros)))
    assert [index.tolist() for index in correspondences(zeros[0][0], first[0])] == [[[0] * POSITIONS] * BATCH] * 2


@pytest.mark.parametrize("unknown", ["some", ""])
def test_unknown_choices(unknown: str) -> None:
    first, second = branches(2, 2, WIDTH)
    with pytest.raises(ValueError, match=rf"^pairs must be one of all, same, not '{unknown}'$"):
        negative_cosine(first[0], second[1], pairs=unknown)
    with pytest.raises(ValueError, match=rf"^reverse must be one of recomputed, literal, not '{unknown}'$"):
        dense_loss(first, second, (jnp.zeros((2, 2), int),) * 2, reverse=unknown)


# Collapse


@pytest.mark.medium
def test_spread_by_hand() -> None:
    """The mean of the axes and their opposites is 0; of two axes (1/2, 1/2), so that 1 - 1/2 remains."""
    axes = jnp.eye(4)
    np.testing.assert_allclose(spread(jnp.concatenate([axes, -3 * axes])), 1, rtol=1e-14)
    np.testing.assert_allclose(spread(axes[:2] * 7), np.sqrt(0.5), rtol=1e-14)
    np.testing.assert_allclose(spread(jnp.ones((6, 4)) * jnp.arange(1.0, 7)[:, None]), 0, atol=1e-7)


def test_spread_is_the_scaled_standard_deviation() -> None:
    z = normal(0, 9, WIDTH) + 3
    unit = np.array([v / np.linalg.norm(v) for v in z])
    expected = np.sqrt(WIDTH) * np.sqrt(np.mean([np.mean((u - u.mean()) ** 2) for u in unit.T]))
    assert 0.1 < expected < 0.95
    np.testing.assert_allclose(spread(jnp.asarray(z)), expected, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-3])
def test_a_collapse_is_seen_in_float32(value: float) -> None:
    """Also one to the zero vector, which has no direction."""
    assert float(spread(jnp.full((32, 2048), value, jnp.float32))) < 1e-5


# Devices


def on_devices(loss: Callable, params: dict, batch: dict, device_count: int) -> tuple[dict, jax.Array]:
    """Gradient and value of a loss by replicated parameters, differentiated as the training step does."""

    def step(params: dict, batch: dict, shared: None) -> tuple[dict, jax.Array]:
        value, gradient = jax.value_and_grad(lambda params: jax.lax.pmean(loss(params, batch), devices.AXIS))(params)
        return gradient, value

    mesh = devices.make_mesh(device_count)
    call = one_step(step, mesh)
    return devices.to_host(call(devices.replicate(params, mesh), devices.split(batch, mesh)))


def encode(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    z = jnp.tanh(x @ params["project"])
    return z @ params["predict"], z


def of_images(pairs: str, axis_name: str | None) -> Callable:
    def loss(params: dict, batch: dict) -> jax.Array:
        first, second = (encode(params, batch[name][:, 0]) for name in ("view", "other"))
        return siamese_loss(first, second, pairs=pairs, axis_name=axis_name)

    return loss


def of_positions(reverse: str, axis_name: str | None) -> Callable:
    def loss(params: dict, batch: dict) -> jax.Array:
        first, second = (encode(params, batch[name]) for name in ("view", "other"))
        indices = correspondences(batch["view"], batch["other"])
        return dense_loss(first, second, indices, reverse=reverse, axis_name=axis_name)

    return loss


def of_spread(_: str, axis_name: str | None) -> Callable:
    return lambda params, batch: spread(encode(params, batch["view"][:, 0])[1], axis_name=axis_name)


CASES = [(of_images, "all"), (of_images, "same"), (of_positions, "recomputed"), (of_positions, "literal")]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "choice"), [*CASES, (of_spread, "")])
def test_eight_devices_equal_one(make: Callable, choice: str) -> None:
    """Images differ more between devices than within one, so that a mean of each device's loss is another number."""
    centres = 2 * np.random.default_rng(0).standard_normal((8, 1, 4)).repeat(2, axis=0)
    batch = {name: centres + normal(seed, 16, 3, 4) / 10 for seed, name in enumerate(("view", "other"), 1)}
    params = {"project": normal(3, 4, 5) / 10, "predict": normal(4, 5, 5) / 10}
    value, gradient = jax.value_and_grad(make(choice, None))(params, batch)
    found_gradient, found = on_devices(make(choice, devices.AXIS), params, batch, 8)
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), found_gradient, gradient)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3
    if choice == "all" or make is of_spread:  # the others are means over images either way
        _, apart = on_devices(make(choice, None), params, batch, 8)
        assert abs(apart - value) > 1e-3
