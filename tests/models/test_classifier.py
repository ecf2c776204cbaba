"""The classifier: which features it gives, what the head is, and that inference through `logits` is the same head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxad.models.classifier import Classifier, Head, pool


def shapes(**options):
    """Parameter shapes by path, without computing anything."""
    init = functools.partial(Classifier(**options).init, train=False)
    made = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(made["params"]).items()}


def test_the_encoder_is_torchvisions_resnet18():
    found = shapes(classes=3, depth=0, width=512)
    encoder = sum(np.prod(shape) for path, shape in found.items() if path.startswith("encoder/"))
    assert encoder == 11_689_512 - 513_000  # torchvision's count, without its classifier of 1,000 classes


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_head_has_so_many_layers(depth):
    found = {path: shape for path, shape in shapes(classes=4, depth=depth, width=7).items() if path.startswith("head/")}
    layers = [path for path in found if path.startswith("head/fc")]
    assert len(layers) == depth and all(path.endswith("kernel") for path in layers)  # BatchNorm has the bias
    assert found["head/classifier/kernel"] == (7 if depth else 512, 4)
    if depth:
        assert found["head/fc1/kernel"] == (512, 7) and found["head/bn1/scale"] == (7,)


@pytest.mark.medium
def test_a_head_by_hand():
    """Two inputs, one hidden unit x1 - x2, normalised by the running statistics 1 and 4, cut at 0, then (2y, 1 - y)."""
    head = Head(classes=2, depth=1, width=1)
    params = {
        "fc1": {"kernel": jnp.array([[1.0], [-1.0]])},
        "bn1": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "classifier": {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([0.0, 1.0])},
    }
    statistics = {"bn1": {"mean": jnp.ones(1), "var": jnp.full(1, 4.0)}}
    features = jnp.array([[7.0, 2.0], [1.0, 3.0]])  # hidden 5 and -2, normalised 2 and -1.5
    logits = head.apply({"params": params, "batch_stats": statistics}, features, train=False)
    np.testing.assert_allclose(logits, [[4.0, -1.0], [0.0, 1.0]], atol=1e-4)


def test_pooling_is_in_float32():
    stage = jnp.arange(24, dtype=jnp.bfloat16).reshape(1, 3, 4, 2)
    assert pool(stage).dtype == jnp.float32
    np.testing.assert_allclose(pool(stage), [[11, 12]])


@pytest.fixture(scope="module")
def made():
    model = Classifier(classes=3, depth=1, width=16)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 64, 3)), jnp.float32)
    options = {"xla_backend_optimization_level": 0}
    init = jax.jit(functools.partial(model.init, train=False), compiler_options=options)
    variables = init(jax.random.key(0), images)
    stages = jax.jit(functools.partial(model.apply, train=False), compiler_options=options)(variables, images)
    return model, variables, stages


@pytest.mark.slow
def test_stages_features_and_logits(made):
    _, _, stages = made
    assert {name: stage.shape for name, stage in stages.items()} == {
        "stem": (2, 10, 16, 64), "layer1": (2, 10, 16, 64), "layer2": (2, 5, 8, 128), "layer3": (2, 3, 4, 256),
        "layer4": (2, 2, 2, 512), "features": (2, 512), "logits": (2, 3),
    }  # fmt: skip
    np.testing.assert_allclose(stages["features"], np.asarray(stages["layer4"]).mean((1, 2)), rtol=1e-5)


@pytest.mark.slow
def test_logits_of_features_are_the_classifiers(made):
    model, variables, stages = made
    np.testing.assert_allclose(
        model.apply(variables, stages["features"], method="logits"), stages["logits"], rtol=1e-5, atol=1e-5
    )
