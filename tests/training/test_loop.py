"""``loop.train`` from start to end: schedule, records, interruptions, divergence, refusals."""

import json
import math
import shutil
import signal
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import config as configs
from jaxad import data, detector, methods
from jaxad.augment import synthetic_defects
from jaxad.data import pipeline
from jaxad.data.geometry import Geometry
from jaxad.runtime import devices
from jaxad.runtime.checkpoint import Checkpoints
from jaxad.training import loop, synthetic_validation
from jaxad.training import step as training
from jaxad.training.log import read_history
from tests import tiny
from tests.parts import NSA, interrupt, interrupted, write_fabric
from tests.refusals import refuses
from tests.tiny import environment  # noqa: F401 (a fixture)

IMAGES, STEPS = 12, 8  # one image is held out; 11 images in batches of 8 make 2 steps an epoch


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_fabric(folder / "train" / "good", count=IMAGES)
    return folder


@pytest.fixture
def config_of(root):
    return lambda **changes: make_config(root, **changes)


def make_config(root: Path, **changes):
    """The experiment with the tiny method, 8 steps, a checkpoint after every third; changes write ``__`` for a dot."""
    given = {"data__root": root, "data__size": 64, "view__crop": 64, "method": "tiny", "batch": 8, "epochs": 4}
    given |= {"log_every": 1, "checkpoint__every_steps": 3, "checkpoint__keep": 2, "evaluate__batch": 8}
    given |= {"data__synthesis": "host"} | changes
    return configs.load(f"{NSA}:texture", {key.replace("__", "."): str(value) for key, value in given.items()})


@pytest.fixture(scope="module")
def complete(root, tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run, not to be changed."""
    workdir = tmp_path_factory.mktemp("complete") / "run"
    assert loop.train(make_config(root), workdir) is not None
    return workdir


def variables_of(workdir: Path):
    return jax.device_get(detector.load(workdir).variables)


def assert_ends_as(complete: Path, workdir: Path) -> None:
    """Same parameters bit for bit, and every step logged once with the same loss."""
    jax.tree.map(np.testing.assert_array_equal, variables_of(workdir), variables_of(complete))
    expected, found = read_history(complete), read_history(workdir)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]


def fail() -> None:
    raise RuntimeError("power cut")


@pytest.mark.parametrize(
    ("done", "steps", "most", "count"),
    [(0, 1280, 16, 10), (0, 1280, 4, 2), (0, 1280, 0, 1), (100, 1280, 16, 10), (7, 1280, 16, 1), (6, 1282, 16, 2)],
)
def test_steps_of_a_call_end_where_something_happens(config_of, done: int, steps: int, most: int, count: int) -> None:
    """A line of the log every 10 steps and a checkpoint every 100; 0 lets a CPU take one step at a time."""
    config = config_of(log_every=10, checkpoint__every_steps=100, steps_per_call=most)
    assert training.steps_per_call(config, done=done, steps=steps) == count
    watched = config_of(log_every=10, checkpoint__every_steps=100, steps_per_call=most, synthetic_every=5)
    assert training.steps_per_call(watched, done=done, steps=steps) == math.gcd(count, 5)


@pytest.mark.slow
def test_images_on_the_devices_and_several_steps_a_call_train_alike(config_of, tmp_path) -> None:
    """Streamed and looked up by number, one step and two a call: the same examples and the same training."""
    found = []
    for name, changes in {
        "streamed": {"data__device_gib": 0.0},
        "resident": {},
        "calls": {"steps_per_call": 2, "log_every": 2, "checkpoint__every_steps": 2},
    }.items():
        assert loop.train(config_of(data__synthesis="device", **changes), tmp_path / name) is not None
        found.append(variables_of(tmp_path / name))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[0], other)
    rows = read_history(tmp_path / "calls")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    expected = [row["loss"] for row in read_history(tmp_path / "streamed")]
    np.testing.assert_allclose([row["loss"] for row in rows], np.mean(np.reshape(expected, (4, 2)), 1), rtol=1e-4)


@pytest.mark.medium
def test_synthetic_defects_watch_a_training_and_change_nothing(config_of, complete, tmp_path) -> None:
    config = config_of(synthetic_every=3)
    assert loop.train(config, tmp_path / "run") is not None
    jax.tree.map(np.testing.assert_array_equal, variables_of(tmp_path / "run"), variables_of(complete))
    rows = read_history(tmp_path / "run")
    watched = {row["step"]: row for row in rows if "synthetic_pixel_auroc" in row}
    assert list(watched) == [3, 6] and [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    # The figures after step 6 are those of a detector with the weights of its checkpoint.
    method, source = methods.create(config), data.load(config).train
    fitted, held = pipeline.split_holdout(source.ids, holdout=0.1, seed=0)
    good = [pipeline.Images(source, part, geometry=Geometry((64, 64)), cache_bytes=0) for part in (held, fitted)]
    state = training.init_state(method, training.plan(config, method, len(fitted)).optimizer, good[1][0], seed=0)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=2) as checkpoints:
        step = checkpoints.newest()
        kept = checkpoints.read(step, devices.replicate(state, devices.make_mesh()))
    assert step == 6
    made = synthetic_defects.make(good[0].stack(), good[1])
    alone = detector.Detector(config, {"params": kept.params, "batch_stats": kept.batch_stats}, None)
    figures = synthetic_validation.measure(alone.score(made.images), made)
    assert {name: value for name, value in watched[6].items() if name in figures} == pytest.approx(figures, abs=1e-6)
    assert len(figures) >= 4


@pytest.mark.slow
def test_a_training_that_holds_nothing_out_says_that_it_is_not_watched(config_of, tmp_path, capsys) -> None:
    assert loop.train(config_of(synthetic_every=3, data__holdout=0.0, epochs=1), tmp_path / "run") is not None
    assert "no good images are held out (config.data.holdout)" in capsys.readouterr().out
    assert not any("synthetic_pixel_auroc" in row for row in read_history(tmp_path / "run"))


def test_what_is_fed_stays_on_the_devices_where_it_fits(config_of, root) -> None:
    images = pipeline.Images(
        data.load(config_of()).train, np.arange(IMAGES), geometry=Geometry((64, 64)), cache_bytes=0
    )
    gib = images.nbytes / 2**30
    for changes, stays in (({}, True), ({"data__device_gib": gib}, True), ({"data__device_gib": 0.99 * gib}, False)):
        config = config_of(data__synthesis="device", **changes)
        shared, calls = training.input_stream(
            config, tiny.create(config), images, np.arange(IMAGES), devices.make_mesh(), start=2, stop=4
        )
        call = next(calls)
        assert (shared.images is not None) == stays and shared.seed == 0
        assert call["image"].shape == ((1, 8) if stays else (1, 8, 64, 64, 3))
        if stays:
            np.testing.assert_array_equal(shared.images, images.stack())
            assert shared.images.sharding.is_fully_replicated


def test_steps_of_an_epoch_reach_over_its_end(config_of) -> None:
    config = config_of()
    assert [configs.steps_per_epoch(config, images) for images in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


def test_learning_rate_is_one_cosine_constant_within_an_epoch(config_of) -> None:
    """Epochs 0 to 3 of 4: cos(0), cos(pi / 4), cos(pi / 2), cos(3 pi / 4), from 1 down to 0.2."""
    config = config_of(optim__learning_rate=1.0, optim__final_learning_rate=0.2)
    _, schedule = training.make_optimizer(config, 3)
    half = math.sqrt(0.5)
    by_hand = [1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)]
    np.testing.assert_allclose([schedule(step) for step in range(12)], np.repeat(by_hand, 3), rtol=1e-6)


@pytest.mark.medium
def test_complete_run_leaves_its_records(complete) -> None:
    rows = read_history(complete)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["epoch"] for row in rows] == [step / 2 for step in range(1, STEPS + 1)]
    cosine = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], np.repeat(cosine, 2), rtol=1e-4)
    assert all(row["images_per_second"] > 0 and row["gradient_norm"] > 0 for row in rows)
    assert rows[-1]["seconds"] > rows[0]["seconds"] > 0
    assert list((complete / "tensorboard").glob("events.out.tfevents.*"))
    assert cv2.imread(str(complete / "samples.png")).shape == (4 * 68, 4 * (2 * 64 + 4), 3)  # 4 a row
    assert json.loads((complete / "provenance.json").read_text())[0]["command"] == "jaxad.training.loop.train"


@pytest.mark.medium
def test_complete_run_leaves_a_detector_and_the_last_checkpoints(complete, config_of) -> None:
    method = tiny.create(config_of())
    optimizer, _ = training.make_optimizer(config_of(), 2)
    fresh = training.init_state(method, optimizer, np.zeros((64, 64, 3), np.uint8), seed=0)
    with Checkpoints(complete / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps() == [6, 8]
        step = checkpoints.newest()
        state = checkpoints.read(step, fresh)
    found = detector.load(complete)
    assert step == state.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, found.variables["params"], state.params)
    jax.tree.map(np.testing.assert_array_equal, found.variables["batch_stats"], state.batch_stats)
    assert np.abs(state.params["conv1"]["kernel"] - fresh.params["conv1"]["kernel"]).max() > 1e-3
    assert 0 < found.threshold < 1


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_resumes(complete, config_of, tmp_path, monkeypatch, capsys, number) -> None:
    before = signal.getsignal(number)
    interrupted(monkeypatch, 4, lambda: loop.train(config_of(), tmp_path / "run"), number)
    assert signal.getsignal(number) == before
    assert "stopped at step 5 of 8; the same command resumes there" in capsys.readouterr().out
    assert not (tmp_path / "run" / "detector.json").exists()
    assert loop.train(config_of(), tmp_path / "run") is not None
    assert "resuming at step 5 of 8" in capsys.readouterr().out
    assert_ends_as(complete, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("step", [STEPS - 1, STEPS])
def test_sigterm_after_the_last_step_stops_before_the_rest(
    complete, config_of, tmp_path, monkeypatch, capsys, step
) -> None:
    """The last step is under way, or has just been logged; the same call then fits the density and no weights."""
    interrupted(monkeypatch, step, lambda: loop.train(config_of(), tmp_path / "run"))
    assert "stopped at step 8 of 8; the same command resumes there" in capsys.readouterr().out
    assert not (tmp_path / "run" / "detector.json").exists()
    assert loop.train(config_of(), tmp_path / "run") is not None
    assert "resuming at step 8 of 8" in capsys.readouterr().out
    assert_ends_as(complete, tmp_path / "run")


@pytest.mark.medium
def test_crash_resumes_from_the_last_checkpoint_and_logs_no_step_twice(
    complete, config_of, tmp_path, monkeypatch, capsys
) -> None:
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, 5, fail)
        with pytest.raises(RuntimeError, match="power cut"):
            loop.train(config_of(), workdir)
    assert [row["step"] for row in read_history(workdir)] == [1, 2, 3, 4, 5]
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a line that a kill cut off
    samples = (workdir / "samples.png").stat().st_mtime_ns
    loop.train(config_of(), workdir)
    assert "resuming at step 3 of 8" in capsys.readouterr().out
    assert (workdir / "samples.png").stat().st_mtime_ns == samples
    assert_ends_as(complete, workdir)


@pytest.mark.medium
def test_damaged_checkpoint_costs_steps_but_not_the_result(complete, config_of, tmp_path, capsys) -> None:
    workdir = shutil.copytree(complete, tmp_path / "run")
    newest = max((workdir / "checkpoints" / "8").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    loop.train(config_of(), workdir)
    printed = capsys.readouterr().out
    assert "checkpoint 8 in" in printed and "falling back" in printed and "resuming at step 6 of 8" in printed
    assert_ends_as(complete, workdir)


@pytest.mark.medium
def test_complete_run_called_again_trains_no_further(complete, config_of, tmp_path, monkeypatch) -> None:
    workdir = shutil.copytree(complete, tmp_path / "run")
    interrupt(monkeypatch, STEPS, fail)
    shutil.rmtree(workdir / "detector")
    assert loop.train(config_of(), workdir) is not None  # and rewrites the detector
    assert_ends_as(complete, workdir)


@pytest.mark.medium
def test_workdir_of_another_config_is_refused(complete, config_of, tmp_path) -> None:
    workdir = shutil.copytree(complete, tmp_path / "run")
    with refuses(workdir, "optim.learning_rate (0.001 there, 0.5 now), seed (0 there, 1 now)"):
        loop.train(config_of(optim__learning_rate=0.5, seed=1), workdir)
    assert_ends_as(complete, workdir)


def falling(value) -> methods.Method:
    """One weight that starts at 3 and falls by 1 a step, for a loss that is `value` of it with slope 1."""
    return methods.Method(
        host_augment=lambda rng, image, partner: {"image": image},
        init=lambda key, image: {"params": {"w": jnp.float32(3)}},
        loss=lambda params, stats, batch, key: (value(params["w"]) + 0 * batch["image"].mean(), (stats, {})),
        fit=None,
        score=None,
    )


DIVERGENCES = {
    # step 5 sees -1
    "loss": (lambda w: jnp.where(w < 0, jnp.nan, w), "loss", 5, 4),
    # step 4 sees 0: the loss is 0, the slope of the square root is infinite, and the state after it is spoilt
    "gradient": (lambda w: w + 0 * jnp.sqrt(w), "gradient", 4, 2),
}


@pytest.mark.medium
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(config_of, tmp_path, monkeypatch, kind) -> None:
    value, word, step, kept = DIVERGENCES[kind]
    monkeypatch.setitem(methods.METHODS, "tiny", lambda config: falling(value))
    config = config_of(
        optim__name="sgd", optim__learning_rate=1.0, optim__final_learning_rate=1.0, checkpoint__every_steps=2
    )
    with refuses(None, word) as caught:
        loop.train(config, tmp_path / "run")
    assert f"step {step}; " in str(caught.value) and f"step {kept}; " in str(caught.value)
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=2) as checkpoints:
        optimizer, _ = training.make_optimizer(config, 2)
        fresh = training.init_state(falling(value), optimizer, np.zeros((64, 64, 3), np.uint8), seed=0)
        step = checkpoints.newest()
        state = checkpoints.read(step, fresh)
    assert (step, float(state.params["w"])) == (kept, 3 - kept)


@pytest.mark.medium
def test_divergence_before_any_checkpoint(config_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(methods.METHODS, "tiny", lambda config: falling(lambda w: w * jnp.nan))
    with refuses(None, "step 1"):
        loop.train(config_of(), tmp_path / "run")


@pytest.mark.medium
def test_nothing_moves_to_the_device_unasked(config_of, tmp_path, monkeypatch) -> None:
    interrupt(monkeypatch, 2, lambda: jnp.sin(np.ones(3, np.float32)))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(config_of(), tmp_path / "run")


@pytest.mark.slow
def test_batch_larger_than_the_data_repeats_images_and_says_so(config_of, tmp_path, capsys) -> None:
    loop.train(config_of(batch=16, epochs=2), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "batch 16 is larger than the 11 training images: images repeat within a batch" in printed
    assert "step 2/2  loss" in printed and "images/s" in printed and "s left" in printed
    assert [row["step"] for row in read_history(tmp_path / "run")] == [1, 2]


@pytest.mark.medium
def test_batch_that_the_devices_cannot_share_is_refused(config_of, tmp_path) -> None:
    with refuses("batch", "multiple"):
        loop.train(config_of(batch=12), tmp_path / "run")


@pytest.mark.medium
def test_unknown_optimiser_is_refused(config_of, tmp_path) -> None:
    with refuses("optim.name", "adamw"):
        loop.train(config_of(optim__name="rmsprop"), tmp_path / "run")
