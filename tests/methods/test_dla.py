"""DLA's record: what an image becomes, objective, mean maps, regression error, uncertainty; then the commands."""

import functools
import json
import shutil
from pathlib import Path

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.typing import DTypeLike

import jaxad
from jaxad import config as configs
from jaxad import detector as detectors
from jaxad import evaluate, methods, predict, report
from jaxad.augment.dla import local, views
from jaxad.methods import dla
from jaxad.methods.method import Hooks, options_of
from jaxad.models import siamese
from jaxad.models.layers import BatchNorm, Conv, Dropout
from jaxad.models.resnet import DropoutSpec
from jaxad.runtime import devices
from jaxad.training import step as training
from jaxad.training.log import read_history
from tests.augment.quick import quick_compiled, quick_jit
from tests.commands import train
from tests.parts import ROOT, command, one_step, write_parts
from tests.refusals import refuses

FILE = f"{ROOT}/experiments/dla.py"
EXPERIMENTS = sorted((ROOT / "experiments").glob("dla*.py"))
SMALL = {
    "data.size": "64", "evaluate.batch": "4", "batch": "4", "model.width": "8", "model.bottleneck": "4",
    "model.dense_hidden": "6", "model.dense_width": "5", "score.passes": "3",
}  # fmt: skip
# What has no effect in an experiment, and is refused there.
DENSE = ("model.dense_hidden", "model.dense_width")
WITHOUT = {"dla_global_neg": DENSE, "dla_global_only": DENSE, "dla_untrained": ("score.passes",)}
WITHOUT["dla_standardized"] = WITHOUT["dla_untrained"]
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
WEIGHTS = ("global_weight", "dense_weight", "negative_weight")


class SmallBackbone(nn.Module):
    """Stands in for ResNet-18: four stages of the same strides, one layer of a few channels each."""

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, thinning: DropoutSpec | None = None, stages: int = 4):
        found = {}
        for i, stride in list(enumerate((4, 2, 2, 2), start=1))[:stages]:
            x = Conv(2 + i, 5, stride, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(self.axis_name, name=f"bn{i}")(x, train=train))
            if thinning is not None:
                x = Dropout(name=f"dropout{i}")(x, thinning.rate, thinning.examples)
            found[f"layer{i}"] = x
        return found


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(siamese, "ResNet18", SmallBackbone)
    monkeypatch.setattr(devices, "jit", quick_compiled)


def config_of(file=FILE, category="texture", **overrides):
    given = SMALL | {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return configs.load(f"{file}:{category}", given)


def pictures(count, *, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


@functools.cache
def drawn():
    """Weights of the small network as they are drawn, with running statistics that are not those of a fresh one."""
    variables = devices.jit_unoptimized(methods.create(config_of()).init)(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))
    generator = np.random.default_rng(2)
    stats = jax.tree.map(lambda s: jnp.asarray(generator.uniform(0.5, 2, s.shape), s.dtype), variables["batch_stats"])
    return variables | {"batch_stats": stats}


def in_axis(call, *arguments):
    """A call with the axis of devices bound, on one of them."""
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], arguments)
    return jax.tree.map(lambda leaf: leaf[0], jax.vmap(call, axis_name=devices.AXIS)(*one))


@functools.cache
def augmenting(augment, options):
    """An augmentation of one image, compiled once for all keys."""
    return quick_jit(functools.partial(augment, options=options))


# What an image becomes


@pytest.mark.slow
@pytest.mark.parametrize("weights, groups", [((1, 0.1, 0.5), 4), ((1, 0, 0), 2), ((0, 1, 0), 2), ((0, 0, 1), 2)])
def test_an_example_becomes_what_the_objective_needs(small, weights, groups):
    config = config_of(**{f"objective__{name}": weight for name, weight in zip(WEIGHTS, weights, strict=True)})
    keys, images = jax.random.split(jax.random.key(3), 3), pictures(3)
    made = quick_jit(methods.create(config).augment)(keys, {"image": images, "index": jnp.arange(7, 10)})
    assert made["image"].shape == (groups, 3, 64, 64, 3) and made["index"].tolist() == [7, 8, 9]
    assert made["image"].min() >= 0 and 0.9 < made["image"].max() <= 1
    floats = jnp.asarray(images) / jnp.float32(255)
    for number, key in enumerate(keys):
        view_key, local_key = jax.random.split(key)
        if weights[0] or weights[1]:
            options = options_of(config.view, views.ViewOptions)
            expected = augmenting(views.random_view_pair, options)(view_key, floats[number])
            np.testing.assert_allclose(made["image"][:2, number], expected, atol=1e-5)
        if weights[2]:
            options = options_of(config.local, local.LocalOptions)
            negative = augmenting(local.random_local_augmentation, options)(local_key, floats[number])
            np.testing.assert_allclose(made["image"][-2, number], floats[number], atol=1e-7)
            np.testing.assert_allclose(made["image"][-1, number], negative.image, atol=1e-5)
            changed = (made["image"][-1, number] != made["image"][-2, number]).any(-1)
            assert 0 < changed.sum() <= negative.box.height * negative.box.width


# The network


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [True, False])
def test_how_residual_blocks_start_is_the_configs(chosen):
    config = config_of(model__zero_init_residual=chosen)
    made = quick_jit(methods.create(config).init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    blocks = [block for name, block in made["params"]["backbone"].items() if name.startswith("layer")]
    assert len(blocks) == 8 and all((block["bn2"]["scale"] == (not chosen)).all() for block in blocks)


# The objective


def made_of(seed=0, groups=4, count=3):
    """What a network could make of a batch: predictions and projections, of images and of 5 positions."""
    draw = np.random.default_rng(seed).standard_normal
    return {
        "global": (draw((groups, count, 6)), draw((groups, count, 6))),
        "features": draw((2, count, 5, 7)),
        "dense": (draw((2, count, 5, 4)), draw((2, count, 5, 4))),
    }


def cosine(a, b):
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.medium
@pytest.mark.parametrize("weights", [(1, 0.1, 0.5), (1, 0, 0), (1, 0.1, 0), (1, 0, 0.5), (0, 0.3, 0.7)])
def test_the_objective_is_equation_8(weights):
    settings = config_of(
        objective__pairs="same", **{f"objective__{name}": w for name, w in zip(WEIGHTS, weights, strict=True)}
    ).objective
    made = made_of()
    value, terms = dla.objective(made, settings, axis_name=None)
    p, z = made["global"]
    d = {"loss_global": -(cosine(p[0], z[1]) + cosine(p[1], z[0])).mean() / 2}
    d["loss_negative"] = -(cosine(p[2], z[3]) + cosine(p[3], z[2])).mean() / 2
    dense_p, dense_z = made["dense"]
    between = cosine(made["features"][0][:, :, None], made["features"][1][:, None])  # (b, s, s')
    forth, back = between.argmax(2), between.argmax(1)
    images = np.arange(3)[:, None]
    d["loss_dense"] = (
        -(cosine(dense_p[0], dense_z[1][images, forth]) + cosine(dense_p[1], dense_z[0][images, back])).mean() / 2
    )
    total = weights[0] * d["loss_global"] + weights[1] * d["loss_dense"] - weights[2] * d["loss_negative"]
    np.testing.assert_allclose(value, total, rtol=1e-5)
    names = ("loss_global", "loss_dense", "loss_negative")
    assert set(terms) == {name for name, weight in zip(names, weights, strict=True) if weight}
    for name in terms:
        np.testing.assert_allclose(terms[name], d[name], rtol=1e-5)


@pytest.mark.slow
def test_without_a_term_its_weight_changes_nothing(small):
    """Each term is switched by its weight alone: gradients of heads that no term reaches are zero."""
    config = config_of(objective__dense_weight=0, objective__negative_weight=0)
    method = methods.create(config)
    variables = drawn()
    batch = {"image": np.float32(pictures(8).reshape(2, 4, 64, 64, 3) / 255), "index": np.arange(4, dtype=np.int32)}

    def value(params):
        return in_axis(lambda batch: method.loss(params, variables["batch_stats"], batch, jax.random.key(0)), batch)[0]

    gradient = quick_jit(jax.grad(value))(variables["params"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["dense_heads"]))
    assert all((np.abs(leaf) > 0).any() for leaf in jax.tree.leaves(gradient["heads"]["project3"]))


def stepped(brightness, **overrides):
    """Metrics and running statistics after a step with two views, 3 images and their augmentations, as bright as said,
    and these images (4, 3, 64, 64, 3)."""
    images = np.float32(brightness)[:, None, None, None, None] * np.float32(pictures(12).reshape(4, 3, 64, 64, 3) / 255)
    batch = {"image": images, "index": np.arange(3, dtype=np.int32)}
    method, variables = methods.create(config_of(**overrides)), drawn()

    def call(batch):
        return method.loss(variables["params"], variables["batch_stats"], batch, jax.random.key(0))

    _, (updated, metrics) = quick_jit(functools.partial(in_axis, call))(batch)
    return metrics, updated, images


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm, seen", [("shared", slice(0, 12)), ("apart", slice(6, 9))])
def test_whose_statistics_run_is_the_configs(small, batch_norm, seen):
    """BatchNorm of the first layer sees the 12 together, or its running statistics are those of the 3 images."""
    _, updated, images = stepped([0.2, 0.5, 0.8, 1], model__batch_norm=batch_norm)
    kernel, old = drawn()["params"]["backbone"]["conv1"]["kernel"], drawn()["batch_stats"]["backbone"]["bn1"]
    inputs = (images.reshape(12, 64, 64, 3)[seen] - MEAN) / STD
    first = np.asarray(Conv(3, 5, 4).apply({"params": {"kernel": kernel}}, inputs)).reshape(-1, 3)
    new = updated["backbone"]["bn1"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * first.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * first.var(0, ddof=1), rtol=1e-4)


@pytest.mark.slow
def test_statistics_of_batches_apart_do_not_touch_each_other(small):
    """How bright the images and their augmentations are changes the views' losses where statistics are shared alone."""
    for batch_norm, changes in (("shared", True), ("apart", False)):
        (dark, *_), (bright, *_) = (
            stepped([1, 1, level, level], model__batch_norm=batch_norm, objective__pairs="same") for level in (0.3, 0.9)
        )
        for name in ("loss_global", "loss_dense"):
            assert np.isclose(dark[name], bright[name], rtol=1e-5) != changes, (batch_norm, name)
        assert not np.isclose(dark["loss_negative"], bright["loss_negative"], rtol=1e-5)


@pytest.mark.slow
def test_one_step_on_eight_devices_equals_one(small):
    """On images as `device_augment` could make them, whose own rounding is tested with the augmentations."""
    # Without the dense term: in float32, in which the network computes, rounding decides between positions that
    # are nearly alike. Of one and eight devices it is compared in tests/models/test_siamese_loss.py.
    config = config_of(batch=8, objective__dense_weight=0, optim__weight_decay=0.01, optim__learning_rate=0.1)
    method = methods.create(config)
    by_view = Hooks(device_augment=lambda keys, batch: batch | {"image": jnp.moveaxis(batch["image"], 1, 0)})
    method = method._replace(hooks=by_view)
    optimizer, schedule = training.make_optimizer(config, 1)
    images = np.random.default_rng(0).uniform(size=(8, 4, 64, 64, 3)).astype(np.float32)
    state, made = devices.to_host(training.init_state(method, optimizer, pictures(1)[0], seed=0)), []
    for device_count in (1, 8):
        mesh = devices.make_mesh(device_count)
        step = one_step(training.make_step(method, optimizer, schedule), mesh)
        batch = devices.split({"image": images, "index": np.arange(8, dtype=np.int32)}, mesh)
        made.append(devices.to_host(step(devices.replicate(state, mesh), batch)))
    (one, metrics), (eight, others) = made
    assert metrics["gradient_norm"] > 1e-3
    for a, b in zip(jax.tree.leaves((one, metrics)), jax.tree.leaves((eight, others)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)


def test_weight_decay_is_that_of_all_parameters(small):
    """The first step of SGD with momentum is -rate (gradient + decay parameter), of biases and scales too."""
    config = config_of(optim__learning_rate=0.5, optim__weight_decay=0.01)
    optimizer, _ = training.make_optimizer(config, 1)
    params, gradient = {"scale": jnp.array([2.0, -4.0])}, {"scale": jnp.array([1.0, 1.0])}
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["scale"], [-0.5 * 1.02, -0.5 * 0.96], rtol=1e-6)
    updates, _ = optimizer.update(gradient, state, optax.apply_updates(params, updates))
    expected = -0.5 * (0.9 * np.array([1.02, 0.96]) + 1 + 0.01 * np.array([2 - 0.51, -4 - 0.48]))
    np.testing.assert_allclose(updates["scale"], expected, rtol=1e-4)  # the rate has hardly begun to fall


# Mean maps and scores


def test_variance_of_the_passes_is_stable():
    maps = np.random.default_rng(0).standard_normal((7, 2, 3, 4, 5)) + 1e4
    found = dla.dropout_variance(jnp.asarray(maps, jnp.float32))
    np.testing.assert_allclose(found, np.float32(maps).astype(np.float64).var(axis=0), rtol=1e-3)
    naive = np.square(np.float32(maps)).mean(0) - np.square(np.float32(maps).mean(0))  # as Equation 10 is printed
    assert np.abs(naive - maps.var(axis=0)).max() > 1
    constant = np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert (jax.jit(dla.dropout_variance)(np.stack([constant] * 10)) == 0).all()
    assert (np.stack([constant] * 10).var(axis=0) > 0).any()  # the mean of equal numbers is another one


@functools.partial(quick_jit, static_argnames="rate")
def stages_by_hand(variables, images, key=None, rate=0.0):
    """All stages of images in [0, 1] in one pass."""
    thinning = None if key is None else DropoutSpec(rate)
    network = siamese.SiameseNetwork(8, 4, 6, 5)
    rngs = {} if key is None else {"dropout": key}
    return network.apply(variables, (images - MEAN) / STD, thinning=thinning, rngs=rngs, method="stages")


@pytest.mark.parametrize("count", [3, 4, 9])
def test_moments_over_batches_are_those_of_all_images(count):
    """Of images that fill the batches of 4 or do not, also where the means are large: as NumPy's two passes."""
    images, seen = pictures(count, size=8), []

    def statistics(variables, images):
        seen.append(images.shape)
        return {"shifted": images + variables["offset"], "pair": (images.sum(-1), images * 1000 + 1e4)}

    means, variances = dla.moments(statistics, {"offset": jnp.float32(5)}, images, batch=4)
    floats = images / 255
    wanted = {"shifted": floats + 5, "pair": (floats.sum(-1), floats * 1000 + 1e4)}
    for mean, variance, rows in zip(*map(jax.tree.leaves, (means, variances, wanted)), strict=True):
        assert mean.dtype == variance.dtype == np.float32
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(variance, rows.var(0), rtol=1e-4, atol=1e-7)
    assert seen == [(1, 8, 8, 3)]  # on each of eight devices; compiled once


def upsampled(maps, size=64):
    """(b, h, w, ...) in NumPy: cell i of a stage of stride s lies on pixel s i, and the last one's value holds on."""
    for axis in (1, 2):
        positions = np.arange(0, size, size // maps.shape[axis])
        maps = np.apply_along_axis(lambda cells, at=positions: np.interp(np.arange(size), at, cells), axis, maps)
    return maps


OTHERS = {"score__stages": " layer4, layer2", "score__uncertainty_weight": 3.0, "score__regression_weight": 0.7}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dla", "dla_standardized"])
@pytest.mark.parametrize("given", [{}, OTHERS], ids=["the file's", "others"])
def test_scores_are_equations_9_to_12(small, name, given):
    """Of dla.py as they are printed, in NumPy; of dla_standardized.py divided and averaged over channels."""
    standardize = name == "dla_standardized"
    given = given or ({"score__uncertainty_weight": 0.1} if standardize else {})
    config = config_of(f"{ROOT}/experiments/{name}.py", **given)
    method = methods.create(config)
    variables, good, images = drawn(), pictures(6), pictures(6, seed=5)
    density = jax.tree.map(jnp.asarray, method.fit(variables, list(good), jax.random.key(4)))
    names = dla.stages_of(config)
    weights = (0.7, 3.0) if given is OTHERS else (1.0, 0.1)  # alpha_1 and alpha_2, Section IV

    def passes(images):
        keys = jax.random.split(jax.random.key(4), 4)
        plain = stages_by_hand(variables, np.float32(images / 255))
        made = [stages_by_hand(variables, np.float32(images / 255), keys[t], 0.1) for t in (1, 2, 3)]
        stack = {name: np.stack([np.asarray(stages[name], np.float64) for stages in made]) for name in names}
        variances = {n: np.square(stack[n]).mean(axis=0) - stack[n].mean(axis=0) ** 2 for n in names}  # Equation 10
        return {n: np.asarray(plain[n], np.float64) for n in names}, variances

    def deviation(found, of_good):
        deviations = found - of_good.mean(0)
        if standardize:
            deviations /= np.sqrt(of_good.var(0) + 0.01 * of_good.var(0).mean()) if of_good.var(0).any() else 1
        return deviations

    def squared_norm(deviations):
        return np.square(deviations).mean(-1) if standardize else np.square(deviations).sum(-1)

    (train_maps, train_vars), (maps, variances) = passes(good), passes(images)
    error, uncertainty = 0, 0
    for name in names:
        np.testing.assert_allclose(density["maps"][name], train_maps[name].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(density["variances"][name], train_vars[name].mean(0), rtol=1e-3, atol=1e-6)
        error += upsampled(squared_norm(deviation(maps[name], train_maps[name]))) / len(names)
        uncertainty += squared_norm(upsampled(deviation(variances[name], train_vars[name]))) / len(names)
    found = method.hooks.map_terms(variables, density, images / np.float32(255))
    np.testing.assert_allclose(found["regression error"], weights[0] * error, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["uncertainty"], weights[1] * uncertainty, rtol=1e-2, atol=1e-7)
    assert found["uncertainty"].max() > 1e-5
    scores = method.score(variables, density, images / np.float32(255))
    np.testing.assert_allclose(scores.map, weights[0] * error + weights[1] * uncertainty, rtol=1e-3, atol=1e-4)
    highest = np.sort(np.asarray(scores.map).reshape(6, -1), axis=1)[:, -41:]  # 1 % of 64 x 64 pixels
    np.testing.assert_allclose(scores.image, highest.mean(1), rtol=1e-5)


@pytest.mark.medium
def test_what_never_varies_counts_within_bounds():
    mean = variance = jnp.zeros((2, 3, 4))
    assert (dla.deviation(jnp.full((5, 2, 3, 4), 10.0), mean, variance) == 10).all()
    # One of 24 values varies, by 24: their mean is 1, so everywhere else 0.01 divides the square.
    found = jnp.square(dla.deviation(jnp.ones((1, 2, 3, 4)), mean, variance.at[0, 0, 0].set(24.0)))
    np.testing.assert_allclose(found[0, 0], [[1 / 24.01, 100, 100, 100], [100] * 4, [100] * 4], rtol=1e-5)


@pytest.mark.slow
def test_scores_are_computed_in_float32(small):
    """Also for a training in bfloat16, whose rounding is larger than many variances under dropout."""
    half, full = (methods.create(config_of(dtype=dtype)) for dtype in ("bfloat16", "float32"))
    variables, good, images = drawn(), list(pictures(4)), pictures(2) / np.float32(255)
    density = half.fit(variables, good, jax.random.key(0))
    wanted = full.score(variables, full.fit(variables, good, jax.random.key(0)), images)
    np.testing.assert_array_equal(half.score(variables, density, images).map, wanted.map)


@pytest.mark.slow
def test_scores_are_those_of_the_seed_and_of_the_image_alone(small):
    method = methods.create(config_of())
    variables, good, images = drawn(), list(pictures(4)), pictures(3, seed=5) / np.float32(255)
    first, again, other = (method.fit(variables, good, jax.random.key(seed)) for seed in (1, 1, 2))
    score = quick_jit(method.score)
    np.testing.assert_array_equal(score(variables, first, images).map, score(variables, again, images).map)
    assert not np.allclose(score(variables, first, images).map, score(variables, other, images).map, rtol=1e-4)
    together, alone = score(variables, first, images), score(variables, first, images[2:])
    np.testing.assert_allclose(together.map[2], alone.map[0], rtol=1e-4, atol=1e-5)


@pytest.mark.medium
def test_without_uncertainty_there_is_one_pass(small):
    config = config_of(score__uncertainty_weight=0, score__passes=0, model__dropout=0)
    method = methods.create(config)
    variables = drawn()
    density = method.fit(variables, list(pictures(4)), jax.random.key(0))
    assert density["variances"] == {}
    assert set(method.hooks.map_terms(variables, density, pictures(2) / np.float32(255))) == {"regression error"}


def flops(call, *arguments):
    return quick_jit(call).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_ten_passes_cost_at_most_eleven(monkeypatch):
    """With the real network: ten dropout passes and the plain one cost less than eleven times as much as one alone."""
    monkeypatch.setattr("jaxad.models.cpu.preferred", lambda: False)  # XLA counts the operations of its own layers
    images, costs = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32), []
    maps = {f"layer{i + 1}": jax.ShapeDtypeStruct((16 >> i, 16 >> i, 64 << i), jnp.float32) for i in range(3)}
    both = {"maps": maps, "variances": maps}
    density = both | {"variance_over_images": both, "keys": jax.ShapeDtypeStruct((11, 2), jnp.uint32)}
    for given in ({"score__passes": 10}, {"score__uncertainty_weight": 0}):
        method = methods.create(config_of(**given))
        variables = jax.eval_shape(method.init, jax.random.key(0), images)
        costs.append(flops(method.score, variables, density, images))
    assert 5 < costs[0] / costs[1] < 11


# The commands


@pytest.fixture
def run(small, tmp_path):
    """Runs the training command on tiny parts; gives their folder and the workdir."""

    def train_on_parts(file=FILE, *, into="run", **overrides):
        root, workdir = write_parts(tmp_path / "sets", train=9) / "nut", tmp_path / into
        given = SMALL | {"epochs": "2", "batch": "8", "evaluate.batch": "8", "data.root": root}
        given = {key: value for key, value in given.items() if key not in WITHOUT.get(Path(file).stem, ())}
        given |= {"log_every": "1", "data.holdout": "0.3"}
        given |= {key.replace("__", "."): value for key, value in overrides.items()}
        flags = [f"--config.{key}={value}" for key, value in given.items()]
        assert command(train.main, "--config", f"{file}:texture", "--workdir", workdir, *flags) == 0
        return root, workdir

    return train_on_parts


def assert_usable(root, workdir):
    """Results are there, `predict` writes a row for each test image, and what `jaxad.load` gives scores images."""
    results = json.loads((workdir / "results.json").read_text())
    assert all(0 <= results[level]["auroc"] <= 1 for level in ("image", "pixel"))
    assert command(predict.main, "--workdir", workdir, root / "test") == 0
    assert len((workdir / "predictions" / "predictions.csv").read_text().splitlines()) == 1 + 5
    detector = jaxad.load(workdir)
    assert detector.threshold is not None
    found = detector.score(pictures(3))
    assert found.map.shape == (3, 64, 64) and np.isfinite(found.image).all() and np.isfinite(found.map).all()


@pytest.mark.slow
def test_the_commands(run):
    """Six training images and a batch of 16: an epoch is one step, in which images repeat."""
    root, workdir = run(batch=16)
    rows = read_history(workdir)
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 2)]
    np.testing.assert_allclose(rows[0]["learning_rate"], 16 * 0.02 / 256, rtol=1e-5)
    assert all(-1 <= row[f"loss_{name}"] <= 1 for row in rows for name in ("global", "dense", "negative"))
    assert all(0 <= row["projection_spread"] <= 1 for row in rows)
    assert_usable(root, workdir)
    assert cv2.imread(str(workdir / "samples.png")).shape[1] == (3 + len(local.LOCAL) + 1) * (64 + 4)
    page = (workdir / "report.html").read_text()
    assert "regression error" in page and "uncertainty" in page
    plain = detectors.load(workdir, {"score.uncertainty_weight": "0"})
    assert plain.threshold is None
    parts = jaxad.load(workdir).map_terms(pictures(2))
    np.testing.assert_allclose(plain.score(pictures(2)).map, parts["regression error"], rtol=1e-4, atol=1e-6)
    divided = detectors.load(workdir, {"score.standardize": "true"})
    method = methods.create(config_of(score__standardize=True))
    wanted = method.score(divided.variables, divided.density, pictures(2) / np.float32(255)).map
    np.testing.assert_allclose(divided.score(pictures(2)).map, wanted, rtol=1e-4, atol=1e-6)
    assert not np.allclose(wanted, sum(parts.values()), rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_resumes_and_is_usable(run, tmp_path, capsys, file):
    untrained = "untrained" in file.name
    settings = {"epochs": 0} if untrained else {"checkpoint__every_steps": 1}
    root, workdir = run(file, **settings)
    resumed = shutil.copytree(workdir, tmp_path / "resumed")
    for name in ("detector.json", "results.json", "scores.csv", "checkpoints/2.sha256"):
        (resumed / name).unlink(missing_ok=untrained)
    shutil.rmtree(resumed / "detector")
    capsys.readouterr()
    run(file, into="resumed", **settings)
    assert ("resuming at step 1 of 2" in capsys.readouterr().out) is not untrained
    assert (resumed / "scores.csv").read_bytes() == (workdir / "scores.csv").read_bytes()
    assert_usable(root, resumed)
    assert command(evaluate.main, "--workdir", resumed) == 0 and command(report.main, resumed) == 0
    assert f"| {file.stem} | nut |" in capsys.readouterr().out


def test_a_collapse_is_told():
    assert dla.warn_of_collapse({"projection_spread": 0.1}) is None
    assert dla.warn_of_collapse({"projection_spread": 0.1, "dense_spread": 0.1}) is None
    sentence = dla.warn_of_collapse({"projection_spread": 0.0712})
    assert sentence.startswith("the network has collapsed (projection_spread is 0.071 of 1): it maps all images of")
    assert "dense_spread is 0.000 of 1" in dla.warn_of_collapse({"projection_spread": 0.9, "dense_spread": 0.0})


# What cannot be used


@pytest.mark.medium
@pytest.mark.parametrize(
    "given, about, word",
    [
        ({"local.size": "50,300"}, "local.size", "64x64"),
        ({"batch": "1"}, "batch", "BatchNorm"),
        ({"score.passes": "0"}, "score.passes", "variance"),
        ({"score.passes": "1"}, "score.passes", "variance"),
        ({"model.dropout": "0.0"}, "model.dropout", "same"),
        ({"model.dropout": "1.0"}, "model.dropout", "[0, 1)"),
        ({"model.width": "0"}, "model.width", "least"),
        ({"optim.weight_decay": "-1.0"}, "optim.weight_decay", "least"),
        ({"objective.dense_weight": "-0.1"}, "objective.dense_weight", "least"),
        ({"score.stages": ""}, "score.stages", "layer1, layer2, layer3, layer4"),
        ({"score.stages": "layer5"}, "score.stages", "layer5"),
        ({"score.stages": "layer1,layer1"}, "score.stages", "once"),
        ({"score.uncertainty_weight": "0", "score.regression_weight": "0"}, "score.regression_weight", "above"),
        ({f"objective.{name}": "0" for name in WEIGHTS}, "objective.global_weight", "negative_weight"),
        ({"objective.pairs": "some"}, "objective.pairs", "all, same"),
        ({"objective.reverse": "no"}, "objective.reverse", "recomputed, literal"),
        ({"model.dropout_place": "x"}, "model.dropout_place", "blocks, stages"),
        ({"evaluate.crop": "32"}, "evaluate.crop", "32"),
        ({"score.size": "32"}, "evaluate.crop", "config.score.size"),
        ({"view.area": "0.5,2"}, "view.area", "(0.5, 2)"),
        ({"local.mode": "x"}, "local.mode", "dynamic, static, rotation"),
        ({"dtype": "float16"}, "dtype", "float32, bfloat16"),
    ],
    ids=str,
)
def test_bad_values_are_refused(given, about, word):
    with refuses(about, word):
        methods.create(configs.load(f"{FILE}:texture", SMALL | given))


@functools.cache
def fitted():
    """Variables of the small network, and a density of two stages and three passes."""
    method = methods.create(config_of(score__stages="layer1,layer3"))
    variables = drawn()
    return variables, method.fit(variables, list(pictures(4)), jax.random.key(0))


@pytest.mark.medium
@pytest.mark.parametrize(
    "given, about, word",
    [
        ({"score.stages": "layer4,layer1"}, "score.stages", "layer1, layer3"),
        ({"score.passes": "20"}, "score.passes", "3 passes"),
        ({"score.stages": "layer3", "score.uncertainty_weight": "0"}, None, ""),
        ({"score.stages": "layer1", "score.channels": "mean"}, None, ""),
        ({"score.standardize": "true"}, None, ""),
    ],
    ids=str,
)
def test_what_a_density_was_not_fitted_for_is_refused(small, given, about, word):
    variables, density = fitted()
    method = methods.create(configs.load(f"{FILE}:texture", SMALL | {"score.stages": "layer1,layer3"} | given))
    images = pictures(2) / np.float32(255)
    if about is None:
        assert np.isfinite(method.score(variables, density, images).map).all()
        return
    with refuses(about, word):
        method.score(variables, density, images)


def test_uncertainty_needs_its_variances(small):
    method = methods.create(config_of(score__uncertainty_weight=0))
    variables = drawn()
    density = method.fit(variables, list(pictures(4)), jax.random.key(0))
    with refuses("score.passes", "0 passes"):
        methods.create(config_of()).score(variables, density, pictures(2) / np.float32(255))


@pytest.mark.medium
def test_an_untrained_network_is_scored_alike(small):
    """`dla_untrained` keeps the network that it draws with its mean maps; parts and scores are those of `dla`."""
    trained, floor = methods.create(config_of()), methods.create(config_of(method="dla_untrained", epochs=0))
    assert floor.loss is None
    density = floor.fit({}, list(pictures(4)), jax.random.key(3))
    images = pictures(2) / np.float32(255)
    variables, of_good = density["variables"], density["features"]
    np.testing.assert_array_equal(floor.score({}, density, images).map, trained.score(variables, of_good, images).map)
    assert set(floor.hooks.map_terms({}, density, images)) == {"regression error", "uncertainty"}


@pytest.mark.medium
def test_scoring_on_eight_devices_gathers_nothing(small):
    """Each device passes its own images; what XLA makes of the passes' vmap by itself would gather all on each."""
    method, mesh = methods.create(config_of()), devices.make_mesh(8)
    variables = drawn()
    weights = (variables, method.fit(variables, list(pictures(4)), jax.random.key(0)))
    call = devices.jit_per_example(lambda weights, images: method.score(*weights, images), mesh)
    images = devices.split(pictures(8) / np.float32(255), mesh)
    program = call.lower(devices.replicate(weights, mesh), images).compile().as_text()
    assert "convolution" in program and "all-gather" not in program and "all-reduce" not in program
