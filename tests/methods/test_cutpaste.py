"""CutPaste's record: examples, loss, densities of features, GradCAM, patches; then the commands, on a small encoder."""

import functools
import json
import shutil

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.typing import DTypeLike
from sklearn.covariance import LedoitWolf

import jaxad
from jaxad import config as configs
from jaxad import detector as detectors
from jaxad import evaluate, methods, predict, report
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.augment.cutpaste.proxy_tasks import PROXIES, proxy_batch
from jaxad.methods import cutpaste_patches, cutpaste_training
from jaxad.methods.cutpaste_training import highest
from jaxad.methods.method import options_of
from jaxad.models.backbones import BACKBONES, Backbone, Stage
from jaxad.models.layers import BatchNorm, Conv
from jaxad.reporting.augmentation_grid import AUGMENTATIONS
from jaxad.runtime import devices
from jaxad.scoring import density as densities
from jaxad.scoring import localization
from jaxad.training import step as training
from jaxad.training.log import read_history
from tests.augment.quick import quick_compiled, quick_jit
from tests.commands import train
from tests.parts import ROOT, command, one_step, write_parts
from tests.refusals import refuses

# Those that this file's network can take the place in: neither published weights nor images of other sizes.
OTHERS = ("pretrained", "finetune", "oneclass", "anomalies")
PROXY_FILES = [
    path
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "cutpaste_3way" in path.read_text() and not path.stem.endswith(OTHERS)
]
WHOLE, PATCH = (f"{ROOT}/experiments/{name}.py" for name in ("cutpaste_3way", "cutpaste_patch"))
SMALL = {"data.size": "48", "model.head_width": "8", "model.head_depth": "1", "evaluate.batch": "4", "batch": "8"}
GRID = {"patch.crop": "32", "patch.size": "32", "patch.stride": "8", "patch.chunk": "5"}  # 3 x 3 patches
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class SmallEncoder(nn.Module):
    """Stands in for ResNet-18: one layer of 6 channels, a quarter of the size."""

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, frozen_norm: bool = False) -> dict[str, jax.Array]:
        train = train and not frozen_norm
        x = BatchNorm(self.axis_name, name="bn")(Conv(6, 5, 4, dtype=self.dtype, name="conv")(x), train=train)
        return {"layer4": nn.relu(x)}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", Backbone(SmallEncoder, {"layer4": Stage(4, 6)}, lambda stage, side: 0))
    monkeypatch.setattr(devices, "jit", quick_compiled)


def config_of(file=WHOLE, category="texture", **overrides):
    given = SMALL | (GRID if file == PATCH else {})
    return configs.load(f"{file}:{category}", given | {k.replace("__", "."): str(v) for k, v in overrides.items()})


def pictures(count, *, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def variables_of(method, *, size=48):
    return method.init(jax.random.key(1), jnp.zeros((1, size, size, 3)))


def stage_of(variables, images):
    """The last stage, from the encoder alone; images in [0, 1]."""
    collections = {name: tree["encoder"] for name, tree in variables.items()}
    return np.asarray(SmallEncoder().apply(collections, (images - MEAN) / STD, train=False)["layer4"])


# Training


def test_the_penalty_covers_kernels_alone():
    params = {"a": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([5.0])}, "b": {"scale": jnp.array([7.0])}}
    assert cutpaste_training.l2_penalty(params | {"c": {"kernel": jnp.array([[3.0]])}}) == (1 + 4 + 9) / 2


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cutout_grey", "rotation"])
def test_an_example_becomes_every_class_on_the_device(small, task):
    config = config_of(proxy__task=task)
    keys, images = jax.random.split(jax.random.key(3), 2), pictures(2)
    made = quick_jit(methods.create(config).augment)(keys, {"image": images, "index": jnp.arange(2)})
    options = options_of(config.proxy, CutPasteOptions)
    run = quick_jit(lambda keys, images: proxy_batch(keys, images / 255, proxy=task, options=options))
    expected = run(keys, images)
    np.testing.assert_allclose(made["image"], expected[0], atol=1e-6)
    assert made["label"].tolist() == sorted(2 * list(range(len(PROXIES[task]))))
    assert made["image"].min() >= 0 and 0.9 < made["image"].max() <= 1


def test_options_are_the_configs_also_when_read_from_json(tmp_path):
    config = config_of(proxy__area="0.02,0.1", proxy__jitter=0.3)
    configs.claim(tmp_path, config)
    for one in (config, configs.read(tmp_path)):
        options = options_of(one.proxy, CutPasteOptions)
        assert (options.area, options.scar_length, options.jitter) == ((0.02, 0.1), (10, 25), 0.3)


def loss_of(method, params, batch_stats, batch):
    """The loss with the axis of devices bound, on one of them."""
    one = jax.tree.map(lambda leaf: leaf[None], batch)
    one["index"] = jnp.arange(len(batch["label"]), dtype=jnp.int32)[None]
    key = jax.random.key(0)
    call = jax.vmap(lambda batch: method.loss(params, batch_stats, batch, key), axis_name=devices.AXIS)
    return jax.tree.map(lambda leaf: leaf[0], quick_jit(call)(one))


@pytest.mark.medium
def test_loss_by_hand(small):
    """An indifferent classifier of three classes pays log 3 and finds class 0 alone; kernels pay 0.01 / 2 each."""
    method = methods.create(config_of(optim__l2=0.01, model__head_depth=0))
    variables = variables_of(method)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["encoder"]["conv"]["kernel"] += 1  # 5 x 5 x 3 x 6 weights of one
    batch = {"image": pictures(6) / np.float32(255), "label": jnp.array([0, 0, 1, 1, 2, 2])}
    value, (batch_stats, metrics) = loss_of(method, params, variables["batch_stats"], batch)
    np.testing.assert_allclose(value, np.log(3) + 0.01 / 2 * 450, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], 1 / 3, rtol=1e-6)
    assert (batch_stats["encoder"]["bn"]["mean"] != 0).all()


@pytest.mark.slow
def test_the_network_is_trained_on_normalised_images(small):
    """The running mean moves by a tenth of the convolution's mean over the normalised images."""
    method = methods.create(config_of())
    variables, images = variables_of(method), pictures(4) / np.float32(255)
    batch = {"image": images, "label": jnp.array([0, 1, 2, 0])}
    _, (batch_stats, _) = loss_of(method, variables["params"], variables["batch_stats"], batch)
    convolved = Conv(6, 5, 4).apply({"params": variables["params"]["encoder"]["conv"]}, (images - MEAN) / STD)
    np.testing.assert_allclose(batch_stats["encoder"]["bn"]["mean"], 0.1 * convolved.mean((0, 1, 2)), atol=1e-6)


@pytest.mark.slow
def test_one_device_and_eight_take_the_same_step(small):
    """The classes are made inside the step: with the batch on the devices nothing moves from or to the host."""
    method, optimizer = methods.create(config_of()), optax.sgd(0.1, momentum=0.9)
    batch = {"image": pictures(8), "index": np.arange(8, dtype=np.int32)}
    start, ends = devices.to_host(training.init_state(method, optimizer, pictures(1)[0], seed=0)), []
    for device_count in (1, 8):
        mesh = devices.make_mesh(device_count)
        state = devices.replicate(start, mesh)
        on_devices = devices.split(batch, mesh)
        step = one_step(training.make_step(method, optimizer, lambda step: 0.1 + 0 * step), mesh)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, on_devices)
        ends.append(jax.device_get((state.params, state.batch_stats, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *ends)


def test_momentum_by_hand():
    """Two gradients of 1 at a rate of 0.1: the second step is 1.9 times the first; without the key both are alike."""
    for file, expected in ((WHOLE, [-0.1, -0.19]), (f"{ROOT}/experiments/nsa_logistic.py", [-0.1, -0.1])):
        overrides = {"optim.name": "sgd", "optim.learning_rate": "0.1"}
        optimizer, _ = training.make_optimizer(configs.load(file, overrides), 100)
        state, made = optimizer.init(jnp.zeros(())), []
        for _ in range(2):
            update, state = optimizer.update(jnp.ones(()), state)
            made.append(update)
        np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_an_epoch_is_as_long_as_the_config_says():
    assert [configs.steps_per_epoch(config_of(steps_per_epoch=256), images) for images in (1, 1000)] == [256, 256]


# Whole images


@functools.cache
def fit(count=10, **overrides):
    """Fits a config to ten images: the method, its variables, its density, none of which is to be changed."""
    method = methods.create(config_of(**overrides))
    variables = variables_of(method)
    return method, variables, method.fit(variables, pictures(count, seed=5), jax.random.key(0))


@pytest.fixture
def fitted(small):
    """`fit`, of the small encoder."""
    return fit


@pytest.mark.slow
def test_image_scores_against_scikit_learn(fitted):
    method, variables, density = fitted()
    good = stage_of(variables, pictures(10, seed=5) / np.float32(255)).mean((1, 2))
    images = pictures(3) / np.float32(255)
    features = stage_of(variables, images).mean((1, 2))
    reference = LedoitWolf().fit(good)
    reference_scores = 0.5 * reference.mahalanobis(features)
    np.testing.assert_allclose(method.score(variables, density, images).image, reference_scores, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    {"density__name": "kernel"},
    {"density__name": "kernel", "density__bandwidth": "0.25"},
    {"density__name": "gaussian_mixture"},
    {"density__shrinkage": "ridge", "density__ridge": 0.01},
    {"density__l2_normalize": True},
], ids=str)  # fmt: skip
def test_every_density_is_a_choice(fitted, overrides):
    method, variables, density = fitted(**overrides)
    usual = fitted()
    images = pictures(3) / np.float32(255)
    found, other = method.score(variables, density, images).image, usual[0].score(*usual[1:], images).image
    assert np.isfinite(found).all() and not np.allclose(found, other, rtol=1e-3)
    if overrides.get("density__bandwidth"):
        assert density["pool"].bandwidth == 0.25
    assert bool(density["pool"].l2_normalize) is overrides.get("density__l2_normalize", False)


def test_features_do_not_depend_on_the_batch(fitted):
    _, variables, density = fitted()
    alone = methods.create(config_of(evaluate__batch=1)).fit(variables, pictures(10, seed=5), jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), density, alone)


def upsampled(maps):
    """12 x 12 positions, the first on pixel 0 and 4 pixels apart, to 48 x 48 pixels."""
    places = np.arange(48) / 4
    for axis in (1, 2):
        maps = np.apply_along_axis(lambda line: np.interp(places, np.arange(12), line), axis, maps)
    return maps


@pytest.mark.slow
def test_gradcam_of_the_density_by_hand(fitted):
    """Every position's gradient is C^-1 (f - mean) / positions by twice the score's root, f the pooled features."""
    method, variables, density = fitted(density__shrinkage="ridge", density__ridge=0.01)
    images = pictures(2) / np.float32(255)
    stage = stage_of(variables, images)
    good = stage_of(variables, pictures(10, seed=5) / np.float32(255)).mean((1, 2))
    covariance = np.cov(good.T, bias=True) + 0.01 * np.eye(6)
    centred = stage.mean((1, 2)) - good.mean(0)
    slopes = np.linalg.solve(covariance, centred.T).T / 144
    slopes /= 2 * np.sqrt(0.5 * (144 * slopes * centred).sum(axis=1, keepdims=True))
    maps = np.maximum(np.einsum("bhwc,bc->bhw", stage, slopes), 0)
    expected = upsampled(maps)
    assert maps.max() > 0
    found = method.score(variables, density, images).map
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * float(expected.max()))


@pytest.mark.slow
def test_gradcam_of_an_image_like_the_mean_is_zero(small):
    method = methods.create(config_of(density__shrinkage="ridge", density__ridge=1e-6))
    variables, images = jax.tree.map(jnp.zeros_like, variables_of(method)), pictures(1)  # all features are exactly zero
    density = method.fit(variables, pictures(4), jax.random.key(0))
    found = method.score(variables, density, images / np.float32(255))
    assert found.image[0] == 0 and (np.asarray(found.map) == 0).all()


@pytest.mark.slow
def test_gradcam_of_the_classifier_by_hand(fitted):
    """Without a projection head the log odds of two classes are linear, with the difference of their weights."""
    method, variables, density = fitted(score__gradcam="classifier", model__head_depth=0, proxy__task="cutpaste")
    images = pictures(2) / np.float32(255)
    stage, kernel = stage_of(variables, images), variables["params"]["head"]["classifier"]["kernel"]
    maps = np.maximum(stage @ np.asarray(kernel[:, 1] - kernel[:, 0]) / 144, 0)
    found = method.score(variables, density, images)
    np.testing.assert_allclose(found.map, upsampled(maps), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_untrained_network_is_kept_with_its_density(small):
    method = methods.create(config_of(method="cutpaste_untrained", epochs=0))
    assert method.loss is None
    density = method.fit({}, pictures(6), jax.random.key(7))
    trained = methods.create(config_of())
    drawn = trained.init(jax.random.key(7), jnp.zeros((1, 48, 48, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), density["variables"], drawn)
    images = pictures(2, seed=1) / np.float32(255)
    expected = trained.score(drawn, trained.fit(drawn, pictures(6), None), images)
    np.testing.assert_allclose(method.score({}, density, images).image, expected.image, rtol=1e-3)


@pytest.mark.slow
def test_embedded_are_the_classes_of_the_task(fitted):
    method, variables, density = fitted(proxy__task="rotation")
    images, keys = pictures(3) / np.float32(255), jax.random.split(jax.random.key(0), 3)
    found = method.hooks.embed(variables, density, keys, images)
    assert list(found) == ["normal", "rotation 90", "rotation 180", "rotation 270"]
    for turns, features in enumerate(found.values()):
        expected = stage_of(variables, np.rot90(images, turns, axes=(1, 2))).mean((1, 2))
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    untrained = methods.create(config_of(method="cutpaste_untrained", epochs=0, proxy__task="rotation"))
    both = {"variables": variables, "features": density}
    np.testing.assert_array_equal(untrained.hooks.embed({}, both, keys, images)["normal"], found["normal"])


# Patches


def test_crops_are_parts_of_the_image_everywhere_alike():
    """Each of six places, as often as the host's generator drew it: uniform by a chi-square test at 0.001."""
    image = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    crop = functools.partial(cutpaste_patches.random_crop, image=jnp.asarray(image), side=4)
    made = np.asarray(quick_jit(jax.vmap(crop))(jax.random.split(jax.random.key(0), 3000)))
    top, left = np.divmod(made[:, 0, 0, 0] // 3, 5)
    for one, row, column in zip(made, top, left, strict=True):
        np.testing.assert_array_equal(one, image[row : row + 4, column : column + 4])
    counts = np.zeros((3, 2), int)
    np.add.at(counts, (top, left), 1)
    assert (np.square(counts - 500) / 500).sum() < 20.5  # 5 degrees of freedom


@pytest.mark.medium
def test_the_proxy_task_is_made_of_crops_on_the_device():
    """A normal example is a crop of its image, the other classes of it are changed in a part."""
    plain = {"proxy__translation": 0, "proxy__image_jitter": 0}
    method, images = methods.create(config_of(PATCH, **plain)), pictures(4)
    assert method.host_augment is None  # which keeps the images on the devices
    batch = {"image": images, "partner": images, "index": np.arange(4, dtype=np.int32)}
    made = quick_jit(method.augment)(jax.random.split(jax.random.key(7), 4), batch)
    assert made["image"].shape == (12, 32, 32, 3) and made["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    normal, *others = np.rint(255 * np.asarray(made["image"])).reshape(3, 4, 32, 32, 3)
    places = []
    for image, crop in zip(images, normal, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, crop.shape)[:, :, 0]
        [place] = np.argwhere((windows == crop).all(axis=(2, 3, 4)))
        places.append(tuple(place))
    assert len(set(places)) > 1
    for other in others:
        changed = (other != normal).any(-1).mean((1, 2))
        assert (changed > 0).all() and (changed < 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("per_location", [False, True])
def test_patches_are_scored_one_by_one(small, per_location):
    config = config_of(PATCH, patch__per_location=per_location)
    method = methods.create(config)
    variables = variables_of(method, size=32)

    def features(images):
        places = [(row, column) for row in (0, 8, 16) for column in (0, 8, 16)]
        patches = [images[:, row : row + 32, column : column + 32] for row, column in places]
        return np.stack([stage_of(variables, patch).mean((1, 2)) for patch in patches])  # (9, n, 6)

    good, images = pictures(10, seed=5), pictures(2) / np.float32(255)
    density = method.fit(variables, good, jax.random.key(0))
    known, seen = features(good / np.float32(255)), features(images)
    scores = np.empty((2, 9), np.float32)
    for place in range(9):
        one = densities.fit_gaussian(known[place] if per_location else known.reshape(-1, 6), ridge=1e-6)
        scores[:, place] = densities.gaussian_score(one, seen[place])
    found = method.score(variables, density, images)
    np.testing.assert_allclose(found.image, scores.max(axis=1), rtol=2e-3)
    maps = localization.receptive_field_upsample(scores.reshape(2, 3, 3), patch=32, stride=8, size=(48, 48))
    np.testing.assert_allclose(found.map, maps, rtol=2e-3)


def test_scars_of_crops_are_as_large_as_those_of_images():
    assert options_of(config_of(PATCH).proxy, CutPasteOptions).side == 48


def test_densities_of_places_are_for_images_of_their_size(small):
    method = methods.create(config_of(PATCH, patch__per_location=True))
    variables = variables_of(method, size=32)
    density = method.fit(variables, pictures(6), jax.random.key(0))
    with refuses(None, "3 x 3"):
        method.score(variables, density, pictures(1, size=40) / np.float32(255))


# Refusals


@pytest.mark.parametrize("file, overrides, about, word", [
    (WHOLE, {"dtype": "float16"}, "dtype", "float32, bfloat16"),
    (WHOLE, {"proxy__task": "cutpast"}, "proxy.task", "cutpaste, "),
    (WHOLE, {"proxy__area": "0.2,0.1"}, "proxy.area", "(0.2, 0.1)"),
    (WHOLE, {"proxy__area": "0.02,0.9"}, "proxy.area", "48x48"),
    (WHOLE, {"proxy__jitter": 0.7}, "proxy.jitter", "[0, 0.5]"),
    (WHOLE, {"model__head_depth": -1}, "model.head_depth", "least"),
    (WHOLE, {"model__head_width": 0}, "model.head_width", "least"),
    (WHOLE, {"optim__l2": -1.0}, "optim.l2", "least"),
    (WHOLE, {"density__name": "gauss"}, "density.name", "gaussian, kernel, gaussian_mixture"),
    (WHOLE, {"density__shrinkage": "oas"}, "density.shrinkage", "ledoit_wolf"),
    (WHOLE, {"density__name": "kernel", "density__bandwidth": "wide"}, "density.bandwidth", "silverman"),
    (WHOLE, {"density__name": "gaussian_mixture", "density__covariance": "tied"}, "density.covariance", "diag"),
    (WHOLE, {"density__name": "gaussian_mixture", "density__components": 0}, "density.ridge", "components"),
    (WHOLE, {"score__gradcam": "logits"}, "score.gradcam", "density, classifier"),
    (WHOLE, {"model__backbone": "resnet19"}, "model.backbone", "resnet18, resnet34, "),
    (WHOLE, {"model__stochastic_depth": 0.2}, "model.stochastic_depth", "resnet18"),
    (WHOLE, {"model__sha256": "00"}, "model.sha256", "config.model.weights"),
    (WHOLE, {"optim__head_epochs": 1}, "optim.head_epochs", "config.model.weights"),
    (WHOLE, {"model__frozen_norm": "true"}, "optim.head_epochs", "config.model.weights"),
    (WHOLE, {"model__weights": "x", "optim__head_epochs": 1}, "optim.head_epochs", "config.model.frozen_norm"),
    (WHOLE, {"density__per_location": "true", "evaluate__crop": 40}, "evaluate.crop", "place"),
    (WHOLE, {"density__per_location": "true", "score__gradcam": "x"}, "score.gradcam", "density"),
    (PATCH, {"patch__per_location": "true", "evaluate__crop": 40}, "evaluate.crop", "place"),
    (WHOLE, {"density__levels": "pool,layer5"}, "density.levels", "pool, stem, layer1, "),
    (WHOLE, {"score__level": "layer3"}, "score.level", "config.density.levels"),
    (WHOLE, {"score__size": 32}, "score.size", "GradCAM"),
    (WHOLE, {"evaluate__crop": 32}, "evaluate.crop", "GradCAM"),
    (WHOLE, {"epochs": 0}, "epochs", "least"),
    (WHOLE, {"method": "cutpaste_untrained"}, "epochs", "cutpaste_untrained"),
    (PATCH, {"patch__crop": 49}, "patch.crop", "48"),
    (PATCH, {"patch__size": 49}, None, "larger"),
    (PATCH, {"patch__stride": 7}, None, "divide"),
    (PATCH, {"density__name": "kernel", "patch__per_location": "false"}, None, "config.patch.per_location=true"),
    (PATCH, {"patch__chunk": 0}, "patch.chunk", "least"),
], ids=str)  # fmt: skip
def test_what_no_training_can_use_is_refused_before_it(file, overrides, about, word):
    with refuses(about, word):
        methods.create(config_of(file, **overrides))


@pytest.mark.parametrize("key, value, word", [("steps_per_epoch", 0, "least"), ("optim__momentum", 1.0, "[0, 1)")])
def test_lengths_and_momenta_out_of_range(key, value, word):
    with refuses(key.replace("__", "."), word):
        methods.create(config_of(**{key: value}))


def test_too_few_images_for_a_density(fitted):
    with refuses(None, "7"):
        fitted(6, density__shrinkage="ridge", density__ridge=0.0)
    with refuses(None, "9"):
        fitted(8, density__name="gaussian_mixture", density__components=9)


@pytest.mark.medium
def test_too_few_images_are_refused_before_the_training(small, tmp_path, capsys):
    root, workdir = write_parts(tmp_path) / "nut", tmp_path / "run"
    flags = [f"--config.{key}={value}" for key, value in (SMALL | {"data.root": root, "density.ridge": 0}).items()]
    flags.append("--config.density.shrinkage=ridge")
    assert command(train.main, "--config", f"{WHOLE}:texture", "--workdir", workdir, *flags) == 2
    assert "needs at least 7 good images besides the held-out part, and there are 5; add" in capsys.readouterr().err
    assert not workdir.exists()


@pytest.mark.slow
def test_a_density_that_fails_can_be_changed_without_training_again(run, tmp_path, capsys):
    with pytest.raises(AssertionError):  # command's status 2
        run(WHOLE, density__shrinkage="ridge", density__ridge=1e-30)
    assert "singular" in capsys.readouterr().err
    _, workdir = run(WHOLE, density__shrinkage="ridge", density__ridge=1e-2)
    assert "resuming at step 4 of 4" in capsys.readouterr().out
    assert configs.read(workdir).density.ridge == 1e-2
    with pytest.raises(AssertionError):
        run(WHOLE, density__shrinkage="ledoit_wolf", density__ridge=1e-2)
    assert "density.shrinkage ('ridge' there, 'ledoit_wolf' now); choose another --workdir" in capsys.readouterr().err


def test_features_that_are_not_finite(small):
    method = methods.create(config_of())
    variables = variables_of(method)
    variables["params"]["encoder"]["conv"]["kernel"] += jnp.inf
    with refuses(None, "row 0"):
        method.fit(variables, pictures(4), jax.random.key(0))


# The commands


@pytest.fixture
def run(small, tmp_path):
    """Runs the training command on tiny parts; gives their folder and the workdir."""

    def train_on_parts(file, *, into="run", **overrides):
        root, workdir = write_parts(tmp_path / "sets", train=9) / "nut", tmp_path / into
        given = SMALL | (GRID if file == PATCH else {}) | {"epochs": "2", "steps_per_epoch": "2", "data.root": root}
        given |= {"log_every": "1", "data.holdout": "0.3", "evaluate.batch": "8"}
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
    assert found.map.shape == (3, 48, 48) and np.isfinite(found.image).all() and np.isfinite(found.map).all()


@pytest.mark.slow
def test_the_commands_on_whole_images(run):
    root, workdir = run(WHOLE)
    rows = read_history(workdir)
    np.testing.assert_allclose([row["learning_rate"] for row in rows], [0.03, 0.03, 0.015, 0.015], rtol=1e-5)
    assert [row["epoch"] for row in rows] == [0.5, 1, 1.5, 2] and all(0 <= row["accuracy"] <= 1 for row in rows)
    assert_usable(root, workdir)
    assert cv2.imread(str(workdir / "samples.png")).shape[1] == len(AUGMENTATIONS) * (48 + 4)
    assert "(t-SNE)" in (workdir / "report.html").read_text()
    gradcam = [detectors.load(workdir, {"score.gradcam": choice}) for choice in ("density", "classifier")]
    assert gradcam[0].threshold is not None and gradcam[1].threshold is None
    found = [detector.score(pictures(2)) for detector in gradcam]
    np.testing.assert_array_equal(found[0].image, found[1].image)
    assert not np.allclose(found[0].map, found[1].map)


@pytest.mark.slow
def test_the_commands_on_patches(run):
    assert_usable(*run(PATCH, patch__per_location="true", proxy__task="cutout_grey"))


@pytest.mark.medium
def test_the_commands_on_an_untrained_network(run):
    assert_usable(*run(WHOLE, method="cutpaste_untrained", epochs=0))


@pytest.mark.slow
@pytest.mark.parametrize("file", PROXY_FILES, ids=str)
def test_every_experiment_resumes_and_is_usable(run, tmp_path, capsys, file):
    settings = {"epochs": 0} if "untrained" in file.name else {"checkpoint__every_steps": 1}
    settings |= GRID if "patch" in file.name else {}
    root, workdir = run(file, **settings)
    resumed = shutil.copytree(workdir, tmp_path / "resumed")
    for name in ("detector.json", "results.json", "scores.csv", *(f"checkpoints/{step}.sha256" for step in (3, 4))):
        (resumed / name).unlink(missing_ok="untrained" in file.name)
    shutil.rmtree(resumed / "detector")
    capsys.readouterr()
    run(file, into="resumed", **settings)
    assert ("resuming at step 2 of 4" in capsys.readouterr().out) is ("untrained" not in file.name)
    assert (resumed / "scores.csv").read_bytes() == (workdir / "scores.csv").read_bytes()
    assert_usable(root, resumed)
    assert command(evaluate.main, "--workdir", resumed) == 0 and command(report.main, resumed) == 0
    assert f"| {file.stem} | nut |" in capsys.readouterr().out


def test_the_highest_position_that_counts_is_the_same_beside_any_other_image():
    scores = np.float32([[[1, 2], [3, 9]], [[4, 3], [2, 1]]])
    rows = columns = np.array([1, 3])
    valid = np.ones((2, 4, 4), bool)
    assert highest(scores, None, rows, columns).tolist() == highest(scores, valid, rows, columns).tolist() == [9, 4]
    valid[0, 3] = False  # the lower positions of the first image are no part of it
    assert highest(scores, valid, rows, columns).tolist() == [2, 4]
    valid[1] = False
    valid[1, :, 0] = True  # too thin for any position
    assert highest(scores, valid, rows, columns).tolist() == [2, 4]
