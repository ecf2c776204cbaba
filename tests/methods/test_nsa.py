"""NSA's loss, scores and host examples against formulas written out here."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import config as configs
from jaxad import methods, parallel
from jaxad.augment import nsa as synthesis
from jaxad.augment.nsa_settings import settings
from jaxad.augment.views import random_view
from jaxad.methods import nsa
from tests.parts import NSA

SIZES = {"data.size": "64", "view.crop": "32", "view.center_crop": "0"}
# float32 logits of one, two images of two by two pixels
LOGITS = np.array([[[2.0, -1.0], [0.0, 3.0]], [[-2.0, 0.5], [1.0, -4.0]]], np.float32)
LABELS = np.array([[[1.0, 0.0], [0.25, 0.5]], [[0.0, 0.75], [0.0, 0.0]]], np.float32)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class FixedNetwork:
    """Stands in for the encoder-decoder: remembers what it sees, answers with fixed logits."""

    logits = LOGITS

    def __init__(self, **options):
        self.options, self.seen = options, None

    def apply(self, variables, images, *, train, mutable=None):
        self.seen = images
        stages = {"logits": jnp.asarray(self.logits)}
        return (stages, {"batch_stats": {"count": jnp.ones(())}}) if mutable else stages


@pytest.fixture
def network(monkeypatch):
    made = []
    monkeypatch.setattr(nsa, "EncoderDecoder", lambda **options: made.append(FixedNetwork(**options)) or made[-1])
    return made


def create(category="bottle", **overrides):
    return methods.create(configs.load(f"{NSA}:{category}", {k.replace("__", "."): v for k, v in overrides.items()}))


def batch(*, patches=(2, 1), skipped=(1, 0)):
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 2, 3)).astype(np.uint8)
    counts = {"patches": jnp.array(patches), "skipped": jnp.array(skipped)}
    return {"image": images, "label": LABELS, **counts}


def cross_entropy(logits, labels):
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(labels * np.log(probability) + (1 - labels) * np.log(1 - probability)).mean()


@pytest.mark.parametrize("label, expected", [
    ("logistic", cross_entropy(LOGITS, LABELS)),
    ("binary", cross_entropy(LOGITS, LABELS)),
    ("continuous", np.square(np.maximum(LOGITS, 0) - LABELS).mean()),
])  # fmt: skip
def test_loss(network, label, expected):
    value, (batch_stats, metrics) = create(label=label).loss({}, {}, batch(), None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert batch_stats == {"count": 1.0}
    np.testing.assert_allclose(metrics["skipped_patches"], 1 / 4)


def test_loss_by_hand(network, monkeypatch):
    # An indifferent network pays log 2 for every pixel, whatever its label.
    monkeypatch.setattr(FixedNetwork, "logits", np.zeros_like(LOGITS))
    value, _ = create().loss({}, {}, batch(), None)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_the_network_sees_normalised_images(network):
    method, examples = create(), batch()
    method.loss({}, {}, examples, None)
    np.testing.assert_allclose(network[0].seen, (examples["image"] / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)
    pixels = examples["image"].astype(np.float32) / 255
    method.score({}, {}, pixels)
    np.testing.assert_allclose(network[0].seen, (pixels - MEAN) / STD, rtol=1e-5, atol=1e-6)
    assert network[0].options == {"dtype": jnp.float32, "axis_name": parallel.AXIS}
    chest = create("chest_xray_male")
    chest.score({}, {}, pixels)
    np.testing.assert_array_equal(network[1].seen, pixels)


@pytest.mark.parametrize("label", ["logistic", "binary", "continuous"])
def test_scores(network, label):
    scores = create(label=label).score({}, {}, np.zeros((2, 2, 2, 3), np.float32))
    expected = np.maximum(LOGITS, 0) if label == "continuous" else 1 / (1 + np.exp(-LOGITS))
    np.testing.assert_allclose(scores.map, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.image, expected.mean((1, 2)), rtol=1e-5)


def test_the_reduction_is_the_configs(network):
    scores = create(score__reduction="max").score({}, {}, np.zeros((2, 2, 2, 3), np.float32))
    np.testing.assert_allclose(scores.image, 1 / (1 + np.exp([-3.0, -1.0])), rtol=1e-5)


def test_compute_dtype(network):
    create(dtype="bfloat16")
    assert network[0].options["dtype"] == jnp.bfloat16


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("category", ["bottle", "tile", "cap"])
def test_a_host_example_is_two_views_and_their_blend(category):
    config = configs.load(f"{NSA}:{category}", SIZES | {"synthesis.background": "none"})
    made = nsa.HostExample(config)(np.random.default_rng(3), picture(0), picture(1))
    rng, view = np.random.default_rng(3), dict(config.view)
    views = [random_view(rng, picture(number), **view) for number in (0, 1)]
    row = settings("object" if category == "cap" else category).synthesis._replace(background=None)
    expected = synthesis.synthesize(rng, *views, settings=row, label="logistic")
    np.testing.assert_array_equal(made["image"], expected.image)
    np.testing.assert_array_equal(made["label"], expected.label)
    assert (made["patches"], made["skipped"]) == (len(expected.boxes), expected.skipped)
    assert made["image"].dtype == np.uint8 and made["image"].shape == (32, 32, 3)
    assert made["label"].dtype == np.float32 and made["label"].shape == (32, 32)
    assert made["patches"].dtype == made["skipped"].dtype == np.int32


def test_a_host_example_travels_to_workers():
    example = nsa.HostExample(configs.load(f"{NSA}:bottle", SIZES))
    copy = pickle.loads(pickle.dumps(example))
    one, other = (e(np.random.default_rng(1), picture(0), picture(1)) for e in (example, copy))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_what_nsa_leaves_to_others(network):
    method = create()
    assert method.fit({}, [], jax.random.key(0)) == {}
    examples = batch()
    assert method.corrupt(None, examples) is examples


def test_shapes_with_the_real_network():
    method = methods.create(configs.load(NSA, SIZES))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(method.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_497_712
    scores = jax.eval_shape(method.score, variables, {}, images)
    assert scores.image.shape == (2,) and scores.map.shape == (2, 64, 64)
    assert scores.map.dtype == jnp.float32
