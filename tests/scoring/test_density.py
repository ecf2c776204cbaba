"""Densities against scikit-learn, the direct form in float64, loops over locations and values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from sklearn.preprocessing import normalize

from jaxad.runtime import checkpoint
from jaxad.scoring import density
from tests.refusals import refuses

KEY = jax.random.key(3)
# Jitted: one compilation a case instead of one per operation.
gaussian_score = jax.jit(density.gaussian_score)
kernel_score = jax.jit(density.kernel_score)
mixture_score = jax.jit(density.mixture_score)
SCORES = {"gaussian": gaussian_score, "kernel": kernel_score, "gaussian_mixture": mixture_score}


def draw(seed, *shape, condition=100.0):
    """Features around a mean far from zero, in turned axes whose variances spread over a factor `condition`."""
    rng = np.random.default_rng(seed)
    d = shape[-1]
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    spread = np.geomspace(1, condition**-0.5, d)
    return (rng.normal(size=shape) * spread @ turn + rng.normal(size=d)).astype(np.float32)


def queries(features, seed=9, count=40):
    """Some of the features themselves, new draws close to them and some far from all."""
    rng = np.random.default_rng(seed)
    picked = features[rng.integers(len(features), size=count)]
    step = rng.normal(size=picked.shape) * np.geomspace(0.01, 10, count)[:, None] * features.std()
    return np.concatenate([features[:5], picked + step]).astype(np.float32)


def half_mahalanobis(features, x, *, ridge):
    """The direct form in float64."""
    features, x = features.astype(np.float64), x.astype(np.float64)
    centred = features - features.mean(axis=0)
    covariance = centred.T @ centred / len(features) + ridge * np.eye(features.shape[1])
    x = x - features.mean(axis=0)
    return 0.5 * (x * np.linalg.solve(covariance, x.T).T).sum(axis=1)


def largest_relative(found, expected):
    found = np.asarray(found)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    return np.max(np.abs(found - expected) / np.abs(expected))


MIXTURE = {"components": 3, "ridge": 1e-2}
# Names and options of every density, in both forms where there are two.
ALL = {
    "gaussian": ("gaussian", {}),
    "gaussian ridge": ("gaussian", {"shrinkage": "ridge", "ridge": 0.01}),
    "kernel": ("kernel", {}),
    "diagonal mixture": ("gaussian_mixture", {**MIXTURE, "covariance": "diag"}),
    "full mixture": ("gaussian_mixture", {**MIXTURE, "covariance": "full"}),
}
each_density = pytest.mark.parametrize(("name", "options"), ALL.values(), ids=ALL)
each_form = pytest.mark.parametrize("n", [12, 40], ids=["n < d", "n > d"])


def test_gaussian_by_hand():
    # Mean (0, 0), S = diag(2, 1/2), ridge 1/2: x = (5, 3) scores (25 / 2.5 + 9 / 1) / 2 = 9.5.
    features = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], np.float32)
    fitted = density.fit_gaussian(features, shrinkage="ridge", ridge=0.5)
    assert isinstance(fitted, density.Gaussian)
    np.testing.assert_allclose(gaussian_score(fitted, jnp.array([5.0, 3.0])), 9.5, rtol=1e-6)


def test_low_rank_gaussian_by_hand():
    # Two points: S = 4 along the first axis, 0 across. With ridge 1, x - mean = (5, 1, 1) scores (25 / 5 + 2) / 2.
    features = np.array([[3, 7, 7], [-1, 7, 7]], np.float32)
    fitted = density.fit_gaussian(features, shrinkage="ridge", ridge=1.0)
    assert isinstance(fitted, density.LowRankGaussian)
    np.testing.assert_allclose(gaussian_score(fitted, jnp.array([6.0, 8.0, 8.0])), 3.5, rtol=1e-6)


def test_ledoit_wolf_by_hand():
    # Points (+-2, 0), (0, +-1): S = diag(2, 1/2), tr(S) / d = 5/4, delta^2 = (4 + 1/4) / 2 - 25/16 = 9/16,
    # mean |x|^4 = (16 + 1) / 2, beta^2 = (17/2 - 17/4) / (2 x 4) = 17/32, so s = 17/18 and the covariance is
    # diag(2 + 17 x 5/4, 1/2 + 17 x 5/4) / 18 = diag(93, 87) / 72. x = (1, 0) scores 36 / 93.
    features = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], np.float32)
    score = gaussian_score(density.fit_gaussian(features), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(score, 36 / 93, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(400, 64), (60, 64), (60, 512), (65, 64), (64, 64)])
def test_ledoit_wolf_matches_scikit_learn(n, d):
    features = draw(n, n, d, condition=1e4)
    expected = LedoitWolf().fit(features.astype(np.float64))
    assert np.linalg.cond(expected.covariance_) <= 1e4
    x = queries(features)
    scores = gaussian_score(density.fit_gaussian(features), x)
    assert largest_relative(2 * scores, expected.mahalanobis(x.astype(np.float64))) < 1e-4


@pytest.mark.medium
@pytest.mark.parametrize(("n", "d"), [(60, 512), (128, 128), (129, 128), (2000, 64)])
def test_ridge_matches_the_direct_form_at_condition_1e4(n, d):
    features = draw(n, n, d, condition=10.0)
    top = np.linalg.eigvalsh(np.cov(features, rowvar=False, bias=True))[-1]
    x = queries(features)
    fitted = density.fit_gaussian(features, shrinkage="ridge", ridge=float(top) / 0.9999e4)
    expected = half_mahalanobis(features, x, ridge=float(top) / 0.9999e4)
    assert largest_relative(gaussian_score(fitted, x), expected) < 1e-4


@pytest.mark.medium
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_sixty_images_of_512_dimensions_at_ridge_1e_3(scale):
    # At scale 30 the condition number is 3e7: formed in float32, Woodbury's difference would have no correct digit.
    features = scale * draw(1, 60, 512)
    x = np.concatenate([queries(features), features.mean(axis=0, keepdims=True) + features[1:2] - features[:1]])
    fitted = density.fit_gaussian(features, shrinkage="ridge", ridge=1e-3)
    scores = gaussian_score(fitted, x)
    assert largest_relative(scores, half_mahalanobis(features, x, ridge=1e-3)) < 1e-3
    mean = gaussian_score(fitted, features.mean(axis=0))
    assert np.isfinite(mean) and 0 <= mean < 1e-3 * scores.min()


@pytest.mark.slow
@pytest.mark.parametrize("shrinkage", ["ridge", "ledoit_wolf"])
@pytest.mark.parametrize("n", [2, 30, 48, 49, 300])
def test_low_rank_form_equals_that_of_the_whole_covariance(n, shrinkage):
    features = draw(n, n, 48)
    x, d = queries(features), features.shape[1]
    ridge = 1e-2
    low_rank = density._fit_low_rank(features, shrinkage, ridge, False)
    direct = density._fit_whitening(features, shrinkage, ridge, False)
    single = [[np.asarray(part, np.float32) for part in parts] for parts in (low_rank, direct)]
    first = gaussian_score(density.LowRankGaussian(np.asarray(False), *single[0]), x)
    second = gaussian_score(density.Gaussian(np.asarray(False), *single[1]), x)
    assert largest_relative(first, np.asarray(second, np.float64)) < 1e-4
    chosen = density.fit_gaussian(features, shrinkage=shrinkage, ridge=ridge)
    assert isinstance(chosen, density.LowRankGaussian if n <= d else density.Gaussian)
    assert sum(np.size(part) for part in chosen[1:]) <= d * (d + 2)


def test_repeated_images_leave_the_low_rank_basis_orthonormal():
    features = np.repeat(draw(2, 6, 40), 3, axis=0)  # rank 5 of 17
    fitted = density.fit_gaussian(features, shrinkage="ridge", ridge=1e-4)
    used = fitted.basis[np.abs(fitted.basis).sum(axis=1) > 0]
    assert len(used) == 5
    np.testing.assert_allclose(used @ used.T, np.eye(5), atol=1e-6)
    x = queries(features)
    assert largest_relative(gaussian_score(fitted, x), half_mahalanobis(features, x, ridge=1e-4)) < 1e-3


def test_many_rows_are_taken_in_pieces(monkeypatch):
    features = draw(4, 100, 8)
    whole = density.fit_gaussian(features)
    monkeypatch.setattr(density, "ROWS", 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), density.fit_gaussian(features), whole)


def test_kernel_density_by_hand():
    # One kernel at the plane's origin, bandwidth 2: -log(exp(-|x|^2 / 8) / (2 pi 4)) at x = (2, 2) is 1 + log(8 pi).
    fitted = density.fit_kernel(np.zeros((1, 2), np.float32), bandwidth=2)
    np.testing.assert_allclose(kernel_score(fitted, jnp.array([2.0, 2.0])), 1 + np.log(8 * np.pi), rtol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize(("n", "d"), [(100, 6), (60, 512)])
@pytest.mark.parametrize("bandwidth", [0.7, 3, "scott", "silverman"])
def test_kernel_density_matches_scikit_learn(n, d, bandwidth):
    features = draw(5, n, d)
    x = queries(features)
    # scikit-learn's rules are for unit variance; p(x) = p(x / sigma) / sigma^d.
    sigma = np.sqrt(features.astype(np.float64).var(axis=0).mean()) if isinstance(bandwidth, str) else 1.0
    # One leaf: with several, its sums for points far from all others are wrong in the first digits.
    reference = SklearnKernelDensity(bandwidth=bandwidth, leaf_size=n).fit(features / sigma)
    expected = d * np.log(sigma) - reference.score_samples(x / sigma)
    scores = kernel_score(density.fit_kernel(features, bandwidth=bandwidth), x)
    assert largest_relative(scores, expected) < 1e-4


def test_mixture_of_one_by_hand():
    # Mean 0, variance 1 + ridge 3 = 4 in one dimension: x = 2 scores log(2 pi 4) / 2 + 4 / 8.
    features = np.array([[1], [-1]], np.float32)
    for covariance in ("diag", "full"):
        fitted = density.fit_mixture(KEY, features, components=1, covariance=covariance, ridge=3.0)
        score = mixture_score(fitted, jnp.array([2.0]))
        np.testing.assert_allclose(score, 0.5 * np.log(8 * np.pi) + 0.5, rtol=1e-6)


def clusters(n, d, *, apart=6.0):
    """Three overlapping or separate groups of unequal size."""
    rng = np.random.default_rng(8)
    group = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    centres = apart * rng.normal(size=(3, d)) / np.sqrt(d)
    return (draw(7, n, d, condition=10.0) + centres[group]).astype(np.float32)


@pytest.mark.medium
@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize(("n", "d"), [(300, 5), (60, 40)])
def test_mixture_matches_scikit_learn(covariance, n, d):
    features = clusters(n, d)
    fitted = density.fit_mixture(KEY, features, components=3, covariance=covariance, ridge=1e-2)
    factors = fitted.factors.astype(np.float64)
    reference = SklearnMixture(3, covariance_type=covariance)
    reference.weights_ = np.exp(fitted.log_weights.astype(np.float64))
    reference.means_ = fitted.means.astype(np.float64)
    reference.precisions_cholesky_ = 1 / factors if covariance == "diag" else np.linalg.inv(factors).transpose(0, 2, 1)
    x = queries(features)
    scores = mixture_score(fitted, x)
    roots = [np.diag(factor) for factor in factors] if covariance == "diag" else factors
    assert max(np.linalg.cond(root @ root.T) for root in roots) <= 1e4
    assert largest_relative(scores, -reference.score_samples(x.astype(np.float64))) < 1e-4


@pytest.mark.medium
@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_mixture_finds_separate_groups_as_scikit_learn_does(covariance):
    features = clusters(400, 4, apart=60.0)
    fitted = density.fit_mixture(KEY, features, components=3, covariance=covariance, ridge=1e-3, tolerance=1e-8)
    reference = SklearnMixture(3, covariance_type=covariance, reg_covar=1e-3, tol=1e-8, random_state=0)
    reference.fit(features.astype(np.float64))
    ours, theirs = np.argsort(fitted.means[:, 0]), np.argsort(reference.means_[:, 0])
    np.testing.assert_allclose(fitted.means[ours], reference.means_[theirs], rtol=1e-4)
    np.testing.assert_allclose(np.exp(fitted.log_weights[ours]), reference.weights_[theirs], rtol=1e-4)
    x = queries(features)
    assert largest_relative(mixture_score(fitted, x), -reference.score_samples(x.astype(np.float64))) < 1e-4


def test_mixture_depends_on_its_key_alone():
    features = draw(6, 80, 5)
    fits = [density.fit_mixture(jax.random.key(seed), features, components=6, covariance="diag") for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].means, fits[1].means)
    assert not np.array_equal(fits[0].means, fits[2].means)


@pytest.mark.slow
@each_density
@each_form
def test_per_location_fit_equals_a_loop(name, options, n):
    fit, score = density.select(name)[0], SCORES[name]
    features = np.stack([draw(seed, n, 20) for seed in range(6)]).reshape(2, 3, n, 20)
    x = draw(50, 4, 5, 2, 3, 20)
    fitted = fit(KEY, features, **options)
    scores = score(fitted, x)
    assert scores.shape == (4, 5, 2, 3)
    for row, column in np.ndindex(2, 3):
        alone = fit(KEY, features[row, column], **options)
        jax.tree.map(
            lambda whole, part, at=(row, column): np.testing.assert_array_equal(
                whole[at] if whole.ndim else whole, part
            ),
            fitted,
            alone,
        )
        np.testing.assert_allclose(scores[..., row, column], score(alone, x[..., row, column, :]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(score(fitted, x[0, 0]), scores[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.medium
@each_density
@each_form
def test_scores_are_the_same_plain_vmapped_and_from_a_checkpoint(tmp_path, name, options, n):
    fit, score = density.select(name)[0], SCORES[name]
    features = draw(1, n, 20)
    x = draw(2, 7, 20)
    fitted = fit(KEY, features, l2_normalize=True, **options)
    jitted = score(fitted, x)
    assert jitted.shape == (7,) and score(fitted, x[0]).shape == ()
    checkpoint.write(tmp_path / "density.json", fitted, {})
    read, _ = checkpoint.load(tmp_path / "density.json")
    others = (density.select(name)[1](fitted, x), jax.jit(jax.vmap(score, (None, 0)))(fitted, x), score(read, x))
    for other in others:
        np.testing.assert_allclose(other, jitted, rtol=1e-5, atol=1e-5)
    assert isinstance(read, dict)


@each_density
@each_form
def test_l2_normalisation_is_part_of_the_density(name, options, n):
    fit, score = density.select(name)[0], SCORES[name]
    features, x = draw(1, n, 20), draw(2, 7, 20)
    inside = score(fit(KEY, features, l2_normalize=True, **options), x)
    outside = score(fit(KEY, normalize(features.astype(np.float64)), **options), normalize(x))
    np.testing.assert_allclose(inside, outside, rtol=1e-4, atol=1e-4)
    assert not np.allclose(inside, score(fit(KEY, features, **options), x), rtol=1e-2)


@pytest.mark.slow
@each_density
@each_form
def test_scores_of_float32_extremes_are_finite_and_have_gradients(name, options, n):
    fit, score = density.select(name)[0], SCORES[name]
    for l2_normalize in (False, True):
        fitted = fit(KEY, draw(1, n, 20), l2_normalize=l2_normalize, **options)
        x = np.stack([np.zeros(20), np.full(20, 1e-20), np.full(20, 1e6), draw(1, n, 20)[0]]).astype(np.float32)
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(score, 1), (None, 0)))(fitted, x)
        assert np.isfinite(values).all() and np.isfinite(gradients).all()


@pytest.mark.medium
def test_farther_is_more_anomalous():
    features = draw(1, 60, 20)
    away = features.mean(axis=0) + np.linspace(1, 50, 30)[:, None] * np.ones(20)
    for name, options in ALL.values():
        fit, score = density.select(name)[0], SCORES[name]
        assert (np.diff(score(fit(KEY, features, **options), away)) > 0).all()


def test_a_constant_location_needs_a_ridge_and_then_scores():
    features = np.stack([draw(1, 30, 40), np.full((30, 40), 0.3, np.float32)])
    with refuses("density.ridge", "singular"):
        density.fit_gaussian(features)
    fitted = density.fit_gaussian(features, ridge=1e-4)
    x = np.full((2, 40), 0.3, np.float32)
    x[1, 0] += 0.1
    score = gaussian_score(fitted, x)[1]
    np.testing.assert_allclose(score, 0.5 * 0.1**2 / 1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "features", "options", "about", "word"),
    [
        ("gaussian", np.ones((1, 3)), {}, None, "least 2"),
        ("gaussian", draw(0, 8, 8), {"shrinkage": "ridge"}, None, "least 9"),
        ("gaussian", draw(0, 8, 8), {"shrinkage": "oas"}, "density.shrinkage", "ledoit_wolf"),
        ("gaussian", draw(0, 8, 8), {"ridge": -1.0}, "density.ridge", "-1.0"),
        ("gaussian", draw(0, 8, 8), {"ridge": np.nan}, "density.ridge", "nan"),
        ("gaussian", np.ones((20, 3)), {}, "density.ridge", "singular"),
        ("gaussian", draw(0, 20, 3) * [1, 1, 0], {"shrinkage": "ridge"}, "density.ridge", "singular"),
        ("kernel", np.ones((0, 3)), {"bandwidth": 1.0}, None, "least 1"),
        ("kernel", np.ones((1, 3)), {}, None, "least 2"),
        ("kernel", np.ones((5, 3)), {}, "density.bandwidth", "differ"),
        ("kernel", draw(0, 8, 8), {"bandwidth": "wide"}, "density.bandwidth", "silverman"),
        ("kernel", draw(0, 8, 8), {"bandwidth": 0.0}, "density.bandwidth", "0.0"),
        ("gaussian_mixture", draw(0, 3, 8), {"components": 4}, None, "least 4"),
        ("gaussian_mixture", np.ones((9, 3)), {"components": 2}, "density.components", "only 1"),
        ("gaussian_mixture", draw(0, 8, 8), {"components": 0}, "density.ridge", "components"),
        ("gaussian_mixture", draw(0, 8, 8), {"components": 2, "ridge": 0.0}, "density.ridge", "0.0"),
        ("gaussian_mixture", draw(0, 8, 8), {"components": 2, "covariance": "tied"}, "density.covariance", "diag"),
    ],
)
def test_bad_input_is_told_in_one_sentence(name, features, options, about, word):
    with refuses(about, word):
        density.select(name)[0](KEY, features, **options)


@each_density
@each_form
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(name, options, n, value):
    features = draw(0, 2, n, 20)
    features[1, 7, 3] = value
    with refuses(None, "row 7"):
        density.select(name)[0](KEY, features, **options)


def test_an_unknown_name_is_told_the_names():
    with refuses("density.name", "gaussian, kernel, gaussian_mixture"):
        density.select("gauss")


def test_no_convergence_is_an_error(monkeypatch):
    monkeypatch.setattr(density, "ITERATIONS", 1)
    with refuses("density.tolerance", "converge"):
        density.fit_mixture(KEY, draw(0, 30, 3), components=2)


def test_a_density_of_another_version_is_refused():
    fitted = density.fit_gaussian(draw(0, 9, 3))._asdict()
    fitted["factor"] = fitted.pop("whitening")
    with refuses(about="density", word="it has factor, l2_normalize, mean"):
        gaussian_score(fitted, jnp.zeros(3))
