"""Published weights in CutPaste: fine-tuning in two phases, densities on any stage, and one for each position."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from jaxad import config as configs
from jaxad import evaluate, methods
from jaxad.errors import UserError
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES, Backbone, Stage
from jaxad.models.layers import BatchNorm, Conv
from jaxad.runtime import devices
from jaxad.runtime.checkpoint import Checkpoints
from jaxad.scoring import density as densities
from jaxad.scoring import localization
from jaxad.training import loop
from jaxad.training import step as training
from tests.augment.quick import quick_compiled
from tests.commands import train
from tests.parts import ROOT, command, interrupted, part, write_parts
from tests.refusals import refuses

WHOLE, FINETUNE = (f"{ROOT}/experiments/{name}.py" for name in ("cutpaste_3way", "efficientnet_finetune"))
HEAD_STEPS, STEPS = 6, 12


class TwoStages(nn.Module):
    """Stands in for a published network: "early" with 5 channels at stride 4, "late" with 6 at stride 8."""

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, frozen_norm: bool = False) -> dict[str, jax.Array]:
        norm = functools.partial(BatchNorm, self.axis_name)
        train = train and not frozen_norm
        early = nn.relu(norm(name="bn1")(Conv(5, 5, 4, dtype=self.dtype, name="conv1")(x), train=train))
        late = nn.relu(norm(name="bn2")(Conv(6, 3, 2, dtype=self.dtype, name="conv2")(early), train=train))
        return {"early": early, "late": late}


def published(source, variables, *, model, sha256=""):
    """Stands in for a file: every tensor is drawn by its own shape."""
    draw = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: draw.uniform(0.1, 0.4, leaf.shape).astype(np.float32), variables)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        stages = {"early": Stage(4, 5), "late": Stage(8, 6)}
        patch.setitem(BACKBONES, "resnet18", Backbone(TwoStages, stages, lambda stage, side: 0))
        patch.setattr(devices, "jit", quick_compiled)
        patch.setattr(weights, "load", published)
        patch.setattr(weights, "find", lambda source, *, sha256: (source, f"hash of {source}"))
        yield


FLAGS = {
    "data.size": 32, "model.head_width": 8, "model.head_depth": 1, "batch": 8, "model.backbone": "resnet18",
    "model.stochastic_depth": 0.0, "density.levels": "pool, early", "epochs": 4, "optim.head_epochs": 2,
    "steps_per_epoch": 3, "checkpoint.every_steps": 1, "checkpoint.keep": 20, "log_every": 1, "evaluate.batch": 4,
    "optim.learning_rate": 0.01, "data.holdout": 0.0,
}  # fmt: skip


def config_of(root="", **changes):
    given = FLAGS | {"data.root": root} | {key.replace("__", "."): value for key, value in changes.items()}
    return configs.load(f"{FINETUNE}:texture", {key: str(value) for key, value in given.items()})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts")) / "nut"


@pytest.fixture(scope="module")
def complete(root, tmp_path_factory):
    """The workdir of an uninterrupted fine-tuning."""
    workdir = tmp_path_factory.mktemp("complete") / "run"
    assert loop.train(config_of(root), workdir) is not None
    return workdir


def states_of(workdir, root, *steps):
    config = config_of(root)
    method = methods.create(config)
    plan = training.plan(config, method, 6)
    like = training.init_state(method, plan.optimizer, np.zeros((32, 32, 3), np.uint8), seed=0)
    with Checkpoints(workdir / "checkpoints", keep=20) as checkpoints:
        return like, [devices.to_host(checkpoints.read(step, like)) for step in steps]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.medium
def test_training_starts_from_the_published_weights(root):
    start, _ = states_of(root, root)
    shapes = {"params": start.params["encoder"], "batch_stats": start.batch_stats["encoder"]}
    assert_same(shapes, published("", shapes, model="resnet18"))
    drawn = methods.create(config_of(root, model__weights="", optim__head_epochs=0, model__frozen_norm="false"))
    drawn = drawn.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, start.params["head"], drawn["params"]["head"])


@pytest.mark.slow
def test_the_first_phase_changes_the_head_alone(complete, root):
    start, (one, last) = states_of(complete, root, 1, HEAD_STEPS)
    for state in (one, last):
        assert_same(state.params["encoder"], start.params["encoder"])
        assert_same(state.batch_stats["encoder"], start.batch_stats["encoder"])
    for path, moved in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b).max(), last.params["head"],
                                                              start.params["head"])):  # fmt: skip
        assert moved > 1e-4, path
    assert (last.batch_stats["head"]["bn1"]["mean"] != start.batch_stats["head"]["bn1"]["mean"]).any()
    # What waits has gathered no momentum either.
    waiting = [np.abs(leaf).max() for leaf in jax.tree.leaves(last.opt_state.inner_states["loaded"]) if leaf.size > 1]
    assert len(waiting) == 2 and max(waiting) == 0


@pytest.mark.slow
def test_the_second_phase_changes_all_but_the_normalisation(complete, root):
    start, (boundary, first, last) = states_of(complete, root, HEAD_STEPS, HEAD_STEPS + 1, STEPS)
    for state in (first, last):
        for name in ("bn1", "bn2"):
            assert_same(state.params["encoder"][name], start.params["encoder"][name])
        assert_same(state.batch_stats["encoder"], start.batch_stats["encoder"])
        for name in ("conv1", "conv2"):
            moved = state.params["encoder"][name]["kernel"] - boundary.params["encoder"][name]["kernel"]
            assert np.abs(moved).max() > 1e-6
    assert np.abs(last.params["head"]["fc1"]["kernel"] - boundary.params["head"]["fc1"]["kernel"]).max() > 1e-6


def test_rates_of_the_two_phases():
    """Two epochs by half a cosine from 0.03, then two from 0.01, each to 0; three steps an epoch."""
    config = config_of(optim__head_learning_rate=0.03)
    _, schedule = training.make_optimizer(config, 3, param_labels=methods.create(config).hooks.param_labels)
    np.testing.assert_allclose(
        [schedule(step) for step in range(12)], np.repeat([0.03, 0.015, 0.01, 0.005], 3), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("at", [HEAD_STEPS - 1, HEAD_STEPS, HEAD_STEPS + 1])
def test_it_resumes_across_the_boundary_of_the_phases(complete, root, tmp_path, monkeypatch, at):
    interrupted(monkeypatch, at - 1, lambda: loop.train(config_of(root), tmp_path / "run"))
    assert loop.train(config_of(root), tmp_path / "run") is not None
    (_, [expected]), (_, [found]) = (states_of(workdir, root, STEPS) for workdir in (complete, tmp_path / "run"))
    assert_same(found, expected)


@pytest.mark.slow
def test_without_a_first_phase_and_with_free_normalisation_all_is_trained(root, tmp_path):
    config = config_of(root, optim__head_epochs=0, model__frozen_norm="false", epochs=1)
    method = methods.create(config)
    assert method.hooks.param_labels is None
    start = training.init_state(method, training.plan(config, method, 6).optimizer, part(0), seed=0)
    found = loop.train(config, tmp_path / "run").variables
    for path, moved in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b).max(), found["params"],
                                                              devices.to_host(start.params))):  # fmt: skip
        assert moved > 0, path
    assert (found["batch_stats"]["encoder"]["bn1"]["mean"] != start.batch_stats["encoder"]["bn1"]["mean"]).all()


@pytest.mark.medium
def test_a_first_phase_that_is_all_is_refused(root, tmp_path):
    with refuses("optim.head_epochs", "config.epochs=4"):
        loop.train(config_of(root, optim__head_epochs=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_was_started_needs_no_file_any_more(root, tmp_path, monkeypatch, capsys):
    """A training resumes, and a detector scores, where the published file cannot be had."""
    config = config_of(root)
    interrupted(monkeypatch, 2, lambda: loop.train(config, tmp_path / "run"))
    for name in ("load", "find"):
        monkeypatch.setattr(weights, name, lambda *_, **__: pytest.fail("the file was read"))
    assert loop.train(config, tmp_path / "run") is not None
    assert "resuming at step 3 of 12" in capsys.readouterr().out
    rows = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [row.get("sha256") for row in rows] == [{config.model.weights: f"hash of {config.model.weights}"}, None]
    assert command(evaluate.main, "--workdir", tmp_path / "run", "--config.score.level=early") == 0


@pytest.mark.medium
def test_weights_that_cannot_be_used_claim_no_workdir(root, tmp_path, monkeypatch, capsys):
    def refuse(source, variables, *, model, sha256):
        raise UserError(f"there is no file '{source}' for {model}", about=source)

    monkeypatch.setattr(weights, "load", refuse)
    for method, epochs in (("cutpaste", 4), ("cutpaste_untrained", 0)):
        config = config_of(root, model__weights="x.safetensors", method=method, epochs=epochs)
        with refuses("x.safetensors", "resnet18"):
            loop.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_restart_with_weights_that_cannot_be_used_deletes_nothing(root, tmp_path, monkeypatch):
    loop.train(config_of(root), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def refuse(source, variables, *, model, sha256):
        raise UserError(f"there is no file '{source}' for {model}", about=source)

    monkeypatch.setattr(weights, "load", refuse)
    with refuses("x.safetensors", "resnet18"):
        loop.train(config_of(root, model__weights="x.safetensors"), tmp_path / "run", restart=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


# Densities


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def stages_of(images, side=32):
    """Stages of the published network, computed alone; images in [0, 1]."""
    shapes = jax.eval_shape(
        functools.partial(TwoStages().init, train=False), jax.random.key(0), jnp.zeros((1, side, side, 3))
    )
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return TwoStages().apply(published("", shapes, model=""), (images - mean) / std, train=False)


def pretrained(**changes):
    config = config_of(method="cutpaste_untrained", epochs=0, optim__head_epochs=0, **changes)
    method = methods.create(config)
    return method, method.fit({}, pictures(9), jax.random.key(3))


@pytest.mark.slow
def test_images_are_scored_by_the_level_that_is_asked_for():
    good, images = pictures(9) / np.float32(255), pictures(3, seed=1) / np.float32(255)
    for level, stage in (("pool", "late"), ("early", "early")):
        method, density = pretrained(score__level=level)
        assert sorted(density["features"]) == ["early", "pool"]
        fitted = densities.fit_gaussian(np.asarray(stages_of(good)[stage]).mean((1, 2)), ridge=1e-6)
        expected = densities.gaussian_score(fitted, np.asarray(stages_of(images)[stage]).mean((1, 2)))
        found = method.score({}, density, images)
        np.testing.assert_allclose(found.image, expected, rtol=2e-3)
        assert found.map.shape == (3, 32, 32)


@pytest.mark.slow
def test_every_position_can_have_a_density():
    """The map at the pixel of each position is the distance there, and the image score their maximum."""
    method, density = pretrained(score__level="early", density__per_location="true")
    good, images = pictures(9) / np.float32(255), pictures(3, seed=1) / np.float32(255)
    features, seen = (np.asarray(stages_of(some)["early"]) for some in (good, images))
    assert features.shape[1:] == (8, 8, 5)
    found = method.score({}, density, images)
    distances = np.empty((3, 8, 8))
    for row, column in np.ndindex(8, 8):
        fitted = densities.fit_gaussian(features[:, row, column], ridge=1e-6)
        distances[:, row, column] = np.sqrt(densities.gaussian_score(fitted, seen[:, row, column]))
    np.testing.assert_allclose(found.map[:, ::4, ::4], distances, rtol=5e-3)
    np.testing.assert_allclose(found.image, distances.max((1, 2)), rtol=5e-3)
    with refuses(None, "8 x 8"):
        method.score({}, density, np.zeros((1, 40, 40, 3), np.float32))


@pytest.mark.medium
def test_a_defect_is_found_where_it_is():
    good = np.stack([part(n)[:32, :32] for n in range(12)])
    image = part(50)[:32, :32].astype(np.float32) / 255
    image[20:24, 8:12] = 1
    config = config_of(method="cutpaste_untrained", epochs=0, optim__head_epochs=0, score__level="early",
                       density__per_location="true")  # fmt: skip
    method = methods.create(config)
    density = method.fit({}, good, jax.random.key(0))
    row, column = np.unravel_index(np.asarray(method.score({}, density, image[None]).map[0]).argmax(), (32, 32))
    assert abs(row - 21.5) <= 4 and abs(column - 9.5) <= 4


@pytest.mark.slow
def test_a_published_network_needs_no_training(root, tmp_path, capsys):
    """The command fits a density and evaluates."""
    given = {"data.root": root, "data.size": 32, "model.weights": "x", "density.levels": "pool,early"}
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    file = f"{ROOT}/experiments/resnet18_pretrained.py:texture"
    assert command(train.main, "--config", file, "--workdir", tmp_path / "run", *flags) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained"][0]["sha256"] == {"x": "hash of x"}
    assert results["experiment"] == "resnet18_pretrained" and results["image"]["auroc"] is not None


@pytest.mark.parametrize("name, side, stage, first", [
    ("resnet18", 64, "early", 0),
    ("efficientnet_b0", 64, "level1", 1),  # the stem pads by 0 before and 1 after: pixels 0 to 2
    ("efficientnet_b0", 64, "level7", 31),
    ("efficientnet_b0", 63, "stem", 0),  # of odd sides it pads by 1 and 1
    ("efficientnet_b4", 380, "level7", 1 + 2 + 0 + 8 + 16),  # 380, 190, 95, 48, 24, 12: one step pads evenly
])  # fmt: skip
def test_the_first_position_of_a_stage(name, side, stage, first):
    assert BACKBONES[name].first(stage, side) == first


def test_a_map_begins_where_its_first_position_lies():
    """Cells of 16 pixels, the first on pixel 15: one is highest on its own pixel and half as high 8 pixels away."""
    maps = jnp.zeros((1, 4, 4)).at[0, 1, 2].set(1.0)
    found = localization.upsample_stage(maps, size=(64, 64), first=(15, 15))
    assert np.unravel_index(np.asarray(found[0]).argmax(), (64, 64)) == (31, 47)
    np.testing.assert_allclose(found[0, 23, 47], 0.5)
