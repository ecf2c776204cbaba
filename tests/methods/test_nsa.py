"""NSA's loss and scores against formulas written out here, and its examples, made on the host and on the device."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxad import config as configs
from jaxad import methods
from jaxad.augment.nsa import device, host_views, views
from jaxad.augment.nsa import host as on_host
from jaxad.augment.nsa.settings import Synthesis, settings
from jaxad.methods import nsa
from jaxad.reporting.sample_grid import label_grid
from jaxad.runtime import devices
from jaxad.training.log import Log, read_history
from tests.augment.quick import quick_jit
from tests.parts import NSA, ROOT
from tests.refusals import refuses

SIZES = {
    "data.size": "72", "view.crop": "64", "view.center_crop": "0", "score.size": "64", "evaluate.crop": "0",
}  # fmt: skip
# lite_nsa.py has another network, which takes other sizes.
ROWS = [
    path
    for path in sorted(ROOT.glob("experiments/*.py"))
    if "nsa_logistic" in path.read_text() and path.stem != "lite_nsa"
]
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
    ("factor", cross_entropy(LOGITS, LABELS)),
    ("continuous", np.square(np.maximum(LOGITS, 0) - LABELS).mean()),
    ("continuous_sigmoid", np.square(1 / (1 + np.exp(-LOGITS)) - LABELS).mean()),
])  # fmt: skip
def test_loss(network, label, expected):
    value, (batch_stats, metrics) = create(label=label, synthesis__factor="(0.05, 0.95)").loss({}, {}, batch(), None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert batch_stats == {"count": 1.0}
    np.testing.assert_allclose(metrics["skipped_patches"], 1 / 4)


def test_loss_by_hand(network, monkeypatch):
    # An indifferent network pays log 2 for every pixel, whatever its label.
    monkeypatch.setattr(FixedNetwork, "logits", np.zeros_like(LOGITS))
    value, _ = create().loss({}, {}, batch(), None)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_the_network_sees_normalised_images(network):
    method, examples = create(dtype="float32"), batch()
    method.loss({}, {}, examples, None)
    np.testing.assert_allclose(network[0].seen, (examples["image"] / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)
    pixels = examples["image"].astype(np.float32) / 255
    method.score({}, {}, pixels)
    np.testing.assert_allclose(network[0].seen, (pixels - MEAN) / STD, rtol=1e-5, atol=1e-6)
    assert network[0].options == {"dtype": jnp.float32, "axis_name": devices.AXIS}
    chest = create("chest_xray_male")
    chest.score({}, {}, pixels)
    np.testing.assert_array_equal(network[1].seen, pixels)


@pytest.mark.parametrize("label", ["logistic", "binary", "continuous", "continuous_sigmoid", "factor"])
def test_scores(network, label):
    scores = create(label=label, synthesis__factor="(0.05, 0.95)").score({}, {}, np.zeros((2, 2, 2, 3), np.float32))
    expected = np.maximum(LOGITS, 0) if label == "continuous" else 1 / (1 + np.exp(-LOGITS))
    np.testing.assert_allclose(scores.map, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.image, expected.mean((1, 2)), rtol=1e-5)


def test_the_reduction_is_the_configs(network):
    scores = create(score__reduction="max").score({}, {}, np.zeros((2, 2, 2, 3), np.float32))
    np.testing.assert_allclose(scores.image, 1 / (1 + np.exp([-3.0, -1.0])), rtol=1e-5)


def test_compute_dtype(network):
    create(dtype="bfloat16")
    assert network[0].options["dtype"] == jnp.bfloat16


def picture(seed, channels=3):
    """A dark noisy disc on white, so that no place is right for every patch."""
    image = np.random.default_rng(seed).integers(20, 120, (72, 72, channels)).astype(np.uint8)
    image[np.hypot(*(np.indices((72, 72)) - 35.5)) > 26] = 255
    return image


def pictures(channels=3, *, count=12):
    """Images and their partners, as the loop hands them to the device."""
    image, partner = (np.stack([picture(start + n, channels) for n in range(count)]) for start in (0, 100))
    return {"image": image, "partner": partner}


def config_of(file=NSA, category="bottle", **overrides):
    return configs.load(f"{file}:{category}", SIZES | {k.replace("__", "."): v for k, v in overrides.items()})


def host_examples(config, batch):
    """What the data workers make of a batch."""
    example, pairs = nsa.HostExample(config), zip(batch["image"], batch["partner"], strict=True)
    made = [example(np.random.default_rng(number), *pair) for number, pair in enumerate(pairs)]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}


@functools.cache
def device_step(file, category, **overrides):
    return quick_jit(nsa.device_examples(config_of(file, category, **overrides)))


def device_examples(batch, *, file=NSA, category="bottle", seed=3, **overrides):
    keys = jax.random.split(jax.random.key(seed), len(batch["image"]))
    return jax.tree.map(np.asarray, device_step(file, category, **overrides)(keys, batch))


@pytest.fixture
def asked(monkeypatch):
    """What the synthesis on the device is asked for; it darkens images and makes labels of partners instead."""
    calls = []

    def synthesize(key, image, partner, **options):
        calls.append({"shape": image.shape, "dtype": image.dtype, **options})
        boxes, counts = jnp.zeros((3, 4), int), (jnp.int32(2), jnp.int32(1))
        return device.Synthetic(image // 2, partner[..., 0] / 255.0, partner[..., 0], boxes, *counts)

    monkeypatch.setattr(device, "random_synthesize", synthesize)
    return calls


@pytest.mark.parametrize("category", ["bottle", "tile", "cap", "chest_xray_male"])
def test_a_host_example_is_two_views_and_their_blend(category):
    channels = 1 if category == "chest_xray_male" else 3
    sizes = {"half_height": (0.2, 0.4), "half_width": (0.2, 0.4), "background": None}  # none too small to blend
    config = config_of(category=category, **{f"synthesis__{name}": str(value) for name, value in sizes.items()})
    made = nsa.HostExample(config)(np.random.default_rng(3), picture(0, channels), picture(1, channels))
    rng, view = np.random.default_rng(3), nsa.view_options(config)
    seen = [host_views.random_view(rng, picture(number, channels), **view) for number in (0, 1)]
    row = settings(category).synthesis._replace(**sizes)
    expected = on_host.random_synthesize(rng, *seen, settings=row, label="logistic")
    assert len(expected.boxes)
    np.testing.assert_array_equal(made["image"], expected.image)
    np.testing.assert_array_equal(made["label"], expected.label)
    assert (made["patches"], made["skipped"]) == (len(expected.boxes), expected.skipped)


def test_a_host_example_travels_to_workers():
    example = nsa.HostExample(config_of())
    copy = pickle.loads(pickle.dumps(example))
    one, other = (e(np.random.default_rng(1), picture(0), picture(1)) for e in (example, copy))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
@pytest.mark.parametrize("category, channels", [("bottle", 3), ("chest_xray_male", 1)])
def test_both_places_make_examples_of_the_same_form(category, channels):
    batch = pictures(channels)
    host, on_device = host_examples(config_of(category=category), batch), device_examples(batch, category=category)
    assert host.keys() == on_device.keys() == {"image", "label", "patches", "skipped"}
    most = settings(category).synthesis.patches
    for made in (host, on_device):
        assert made["image"].shape == (12, 64, 64, channels) and made["image"].dtype == np.uint8
        assert made["label"].shape == (12, 64, 64) and made["label"].dtype == np.float32
        assert made["label"].min() == 0 and 0 < made["label"].max() <= 1
        assert made["patches"].shape == made["skipped"].shape == (12,)
        assert made["patches"].dtype == made["skipped"].dtype == np.int32
        assert made["patches"].min() >= 0 and made["skipped"].min() >= 0 and made["patches"].max() > 0
        tried = made["patches"] + made["skipped"]
        assert tried.min() >= 1 and tried.max() <= most
        # Nothing is labelled where nothing was blended.
        assert not made["label"][made["patches"] == 0].any()


@pytest.mark.slow
def test_an_example_on_the_device_depends_on_its_key_and_its_images_alone():
    batch = pictures()
    whole, other = device_examples(batch), device_examples(batch, seed=4)
    assert len({image.tobytes() for image in (*whole["image"], *other["image"])}) == 24
    keys = jax.random.split(jax.random.key(3), 12)[::-1]
    turned = device_step(NSA, "bottle")(keys, {name: rows[::-1] for name, rows in batch.items()})
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.asarray(turned[name])[::-1], rows)


@pytest.mark.slow
def test_examples_do_not_depend_on_the_number_of_devices():
    batch = pictures(count=8) | {"index": np.arange(8)}
    example = nsa.device_examples(config_of())

    def own(seed, rows):  # as in a training step
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(rows["index"])
        return example(keys, rows)

    mesh, rows = devices.make_mesh(), PartitionSpec(devices.AXIS)
    assert mesh.size == 8
    by_rows = jax.shard_map(own, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows)
    made, expected = (quick_jit(function)(np.int32(7), batch) for function in (by_rows, own))
    for name, rows in expected.items():
        np.testing.assert_array_equal(np.asarray(made[name]), rows)


@pytest.mark.slow
def test_both_places_have_the_same_statistics():
    """Means of 480 examples, whose standard errors are 4 to 8 % of most; 4 of them are allowed."""
    batch, count = pictures(), 40
    example, rng = nsa.HostExample(config_of()), np.random.default_rng(0)
    host = [example(rng, *pair) for pair in zip(batch["image"], batch["partner"], strict=True) for _ in range(count)]
    on_device = [device_examples(batch, seed=seed) for seed in range(count)]
    host = {name: np.stack([one[name] for one in host]) for name in host[0]}
    on_device = {name: np.concatenate([one[name] for one in on_device]) for name in on_device[0]}
    figures = {
        "patches": lambda made: made["patches"],
        "skipped": lambda made: made["skipped"],
        "labelled area": lambda made: (made["label"] > 0).mean((1, 2)),
        "label": lambda made: made["label"].mean((1, 2)),
        "brightness": lambda made: made["image"].mean((1, 2, 3)),
    }
    for name, figure in figures.items():
        ours, theirs = figure(on_device), figure(host)
        error = np.sqrt((ours.var() + theirs.var()) / len(ours))
        assert abs(ours.mean() - theirs.mean()) < 4 * error, (name, ours.mean(), theirs.mean(), error)
    assert 0.05 < host["skipped"].mean() < 1  # both outcomes are compared


@pytest.mark.slow
@pytest.mark.parametrize("file", ROWS, ids=lambda file: file.stem)
def test_the_settings_of_every_experiment_reach_the_synthesis(asked, file):
    for category in ("bottle", "tile", "chest_xray_female", "cap"):
        config = configs.load(f"{file}:{category}")
        channels, side = config.data.channels, config.view.crop
        image = jax.ShapeDtypeStruct((2, config.data.size, config.data.size, channels), jnp.uint8)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        asked.clear()
        jax.eval_shape(methods.create(config).augment, keys, {"image": image, "partner": image})
        (call,) = asked
        found = call["shape"], call["dtype"], call["label"]
        assert found == ((side, side, channels), jnp.uint8, config.label), category
        assert isinstance(call["settings"], Synthesis)
        expected = {name: config.synthesis[name] for name in Synthesis._fields}
        assert call["settings"]._asdict() == expected, category
        hash(call["settings"])  # values that JAX can take as static


def test_values_read_back_from_json_reach_the_synthesis(asked, tmp_path):
    config = config_of(ROOT / "experiments" / "fpi.py")
    configs.claim(tmp_path, config)
    for one in (config, configs.read(tmp_path)):
        jax.eval_shape(nsa.device_examples(one), jax.random.split(jax.random.key(0), 2), pictures(count=2))
    assert asked[0] == asked[1] and asked[1]["settings"].factor == (0.05, 0.95)


@pytest.mark.slow
def test_a_device_example_is_two_views_and_their_blend(asked):
    config = config_of(category="tile")
    keys, images = jax.random.split(jax.random.key(5), 3), pictures(count=3)
    made = nsa.device_examples(config)(keys, images)
    for number, key in enumerate(keys):
        first, second, _ = jax.random.split(key, 3)
        view, source = (
            views.random_view(one, jnp.asarray(images[name][number]), **config.view)
            for one, name in ((first, "image"), (second, "partner"))
        )
        np.testing.assert_array_equal(made["image"][number], view // 2)
        np.testing.assert_array_equal(made["label"][number], source[..., 0] / 255.0)
    assert made.keys() == {"image", "label", "patches", "skipped"}
    assert (made["patches"].tolist(), made["skipped"].tolist()) == ([2, 2, 2], [1, 1, 1])


@pytest.mark.slow
def test_fpi_teaches_the_factor():
    batch = pictures()
    made = device_examples(batch, file=ROOT / "experiments" / "fpi.py")
    levels = [np.unique(label) for label in made["label"]]
    assert all(len(values) <= 2 and values[0] == 0 for values in levels)
    factors = np.array([values[1] for values in levels if len(values) == 2])
    assert len(factors) > 6 and len(set(factors)) == len(factors)
    assert factors.min() >= 0.05 and factors.max() <= 0.95


def test_where_examples_are_made(network):
    on_device, host = create(), create(data__synthesis="host")
    assert on_device.host_augment is None and isinstance(host.host_augment, nsa.HostExample)
    examples = batch()
    assert host.augment(None, examples) is examples
    for method in (on_device, host):
        assert method.fit({}, [], jax.random.key(0)) == {}


def test_the_picture_of_what_is_taught(asked):
    on_device, host = (methods.create(config_of(data__synthesis=place)) for place in nsa.PLACES)
    made = host_examples(config_of(), pictures(count=2))
    np.testing.assert_array_equal(host.hooks.samples(made), label_grid(made["image"], made["label"]))
    drawn = on_device.hooks.samples(pictures(count=2))
    assert drawn.dtype == np.uint8 and drawn.shape == host.hooks.samples(made).shape
    assert len(asked) == 1  # it shows what the device makes
    np.testing.assert_array_equal(drawn, on_device.hooks.samples(pictures(count=2)))


# Patches without a place


def test_no_place_leaves_the_image_and_is_counted(network, tmp_path, capsys):
    white = {name: np.full_like(rows, 255) for name, rows in pictures().items()}
    config = config_of()
    method = methods.create(config)
    for made in (host_examples(config, white), device_examples(white)):
        assert (made["image"] == 255).all() or config.view.rotation  # turned corners are black
        assert not made["label"].any() and not made["patches"].any() and (made["skipped"] >= 1).all()
        counts = {"patches": jnp.asarray(made["patches"]), "skipped": jnp.asarray(made["skipped"])}
        _, (_, metrics) = method.loss({}, {}, batch() | counts, None)
        assert metrics["skipped_patches"] == 1
    log = Log(tmp_path, config, start=0, steps=2, per_epoch=1, warn=method.hooks.warn)
    for step in (1, 2):
        log.add(step, {"loss": np.float32(0.5), **jax.tree.map(np.asarray, metrics)})
    log.close()
    assert [row["skipped_patches"] for row in read_history(tmp_path)] == [1.0]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 1
    assert "100% of the patches find no place" in warnings[0] and "config.synthesis.background" in warnings[0]


def test_the_share_of_skipped_patches_counts_patches_and_not_images(network):
    for patches, skipped, share in (((3, 1), (0, 0), 0), ((3, 0), (0, 1), 1 / 4), ((1, 0), (0, 3), 3 / 4)):
        _, (_, metrics) = create().loss({}, {}, batch(patches=patches, skipped=skipped), None)
        np.testing.assert_allclose(metrics["skipped_patches"], share)


def test_from_a_quarter_on_the_user_is_told():
    method = create()
    assert method.hooks.warn({"skipped_patches": 0.0}) is None and method.hooks.warn({"skipped_patches": 0.249}) is None
    assert method.hooks.warn({"skipped_patches": 0.25}).startswith("25% of the patches")


# Configs that are refused before any image is read


@pytest.mark.parametrize("overrides, about, word", [
    ({"label": "factor"}, "label", "config.synthesis.factor"),
    ({"label": "factor", "synthesis.blending": "paste"}, "label", "config.synthesis.factor"),
    ({"label": "factor", "data.synthesis": "host"}, "label", "device"),
    ({"synthesis.blending": "paste", "synthesis.factor": "(0.5, 0.9)"}, "synthesis.blending", "factor"),
    ({"synthesis.factor": "(0.5, 1.2)"}, "synthesis.factor", "(0.5, 1.2)"),
    ({"synthesis.factor": "(0.0, 0.5)"}, "synthesis.factor", "(0.0, 0.5)"),
    ({"synthesis.factor": "(0.9, 0.5)"}, "synthesis.factor", "(0.9, 0.5)"),
    ({"synthesis.moved": "false"}, "synthesis.moved", "config.synthesis.resized"),
    ({"synthesis.source": "same", "synthesis.moved": "false", "synthesis.resized": "false"},
     "synthesis.source", "config.synthesis.moved"),
    ({"synthesis.resized": "false", "synthesis.half_width": "(0.03, 0.499)"}, "synthesis.half_height", "moved"),
    ({"synthesis.gamma": "(2.5, 0.05, 0.03)"}, "synthesis.gamma", "2.5"),
    ({"synthesis.half_height": "(0.0078125, 0.4)"}, "synthesis.half_height", "pixel"),
    ({"synthesis.source": "mine"}, "synthesis.source", "other, same"),
    ({"synthesis.shape": "round"}, "synthesis.shape", "rectangle, cutpaste, ellipses"),
    ({"synthesis.blending": "mix"}, "synthesis.blending", "source, mixed, paste, interpolate"),
    ({"synthesis.size_bounds": "full", "synthesis.shape": "cutpaste"}, "synthesis.size_bounds", "cutpaste"),
    ({"synthesis.object_test": "destination", "synthesis.moved": "false", "synthesis.resized": "false"},
     "synthesis.object_test", "config.synthesis.moved"),
    ({"synthesis.size_bounds": "whole"}, "synthesis.size_bounds", "half, full"),
    ({"synthesis.object_test": "both"}, "synthesis.object_test", "source, destination"),
    ({"synthesis.tolerance": "-1"}, "synthesis.tolerance", "grey levels"),
    ({"synthesis.tolerance": "0", "data.synthesis": "host"}, "synthesis.tolerance", "device"),
    ({"synthesis.size_bounds": "full", "data.synthesis": "host"}, "synthesis.size_bounds", "device"),
    ({"synthesis.object_test": "destination", "data.synthesis": "host"}, "synthesis.object_test", "device"),
    ({"label": "logstic"}, "label", "binary, continuous, continuous_sigmoid, logistic, factor"),
    ({"data.synthesis": "gpu"}, "data.synthesis", "device, host"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(overrides, about, word):
    with refuses(about, word):
        methods.create(configs.load(f"{NSA}:bottle", SIZES | overrides))


@pytest.mark.parametrize("file", ROWS, ids=lambda file: file.stem)
def test_the_host_makes_what_it_can_and_refuses_the_rest(file):
    config = config_of(file, data__synthesis="host")
    defaults = Synthesis()
    own = ("source", "shape", "resized", "moved", "factor")
    changed = [name for name in own if getattr(defaults, name) != config.synthesis[name]]
    if not changed and config.synthesis.blending in ("source", "mixed"):
        made = host_examples(config, pictures(count=6))
        assert made["patches"].sum() and made["label"].any()
        if config.label == "binary":
            assert set(np.unique(made["label"])) == {0, 1}
        return
    with refuses(f"synthesis.{changed[0]}", "host"):
        methods.create(config)


def test_shapes_with_the_real_network():
    method = methods.create(configs.load(NSA, SIZES))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(method.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_497_712
    scores = jax.eval_shape(method.score, variables, {}, images)
    assert scores.image.shape == (2,) and scores.map.shape == (2, 64, 64)
    assert scores.map.dtype == jnp.float32
