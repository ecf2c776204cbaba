"""CIFAR-10 with one class as the good one (CutPaste, Section 5.4): its settings, and its commands on TFDS's format."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import config as configs
from jaxad import data, evaluate, methods
from jaxad.augment.cutpaste.proxy_tasks import classes as proxy_classes
from jaxad.data import tfds
from jaxad.models.backbones import BACKBONES, Backbone, Stage
from jaxad.runtime import devices
from jaxad.sweep import __main__ as sweep
from jaxad.training.log import read_history
from tests.augment.quick import quick_compiled
from tests.commands import train
from tests.data.test_tfds import classes, needs_tfds  # noqa: F401  a fixture
from tests.methods.test_cutpaste import SmallEncoder
from tests.parts import ROOT, command, write

EXPERIMENT = f"{ROOT}/experiments/cifar10_oneclass.py"
SHORT = {"epochs": "1", "steps_per_epoch": "2", "batch": "8", "model.head_width": "8", "evaluate.batch": "8"}


def flags(values):
    return [f"--config.{key}={value}" for key, value in values.items()]


def test_the_settings_at_32_pixels():
    config, base = configs.load(EXPERIMENT), configs.load(f"{ROOT}/experiments/cutpaste_3way.py:airplane")
    assert configs.categories(EXPERIMENT) == tfds.CATEGORIES["cifar10"]
    flat, others = configs.flatten(config), configs.flatten(base)
    assert {key: flat[key] for key in flat if flat[key] != others[key]} == {
        "experiment": "cifar10_oneclass", "data.source": "tfds", "data.size": 32, "score.size": 32,
        "model.backbone": "resnet18_small", "proxy.task": "rotation", "proxy.translation": 0.125,
        "proxy.scar_width": [8, 24], "proxy.scar_length": [40, 96], "evaluate.batch": 256,
    }  # fmt: skip
    assert (config.category, config.data.category, config.data.holdout) == ("airplane", "airplane", 0)
    assert configs.load(f"{EXPERIMENT}:truck").data.category == "truck"


@pytest.mark.medium
@pytest.mark.parametrize("task", ["rotation", "cutpaste", "cutout_grey", "cutpaste_3way", "scar"])
def test_every_proxy_fits_into_32_pixels(task):
    config = configs.load(EXPERIMENT, {"proxy.task": task})
    assert methods.create(config).loss is not None and len(proxy_classes(task)) in (2, 3, 4)


def test_the_network_has_sixteen_positions_at_32_pixels():
    method, images = methods.create(configs.load(EXPERIMENT)), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(method.init, jax.random.key(0), images)
    assert variables["params"]["encoder"]["conv1"]["kernel"].shape == (3, 3, 3, 64)
    encoder = BACKBONES["resnet18_small"].make(axis_name=None, dtype=jnp.float32)
    weights = {name: tree["encoder"] for name, tree in variables.items()}
    stages = jax.eval_shape(lambda weights, x: encoder.apply(weights, x, train=False), weights, images)
    assert stages["layer4"].shape == (1, 4, 4, 512)


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_its_docstring_gives_the_commands(name):
    text = (ROOT / "experiments" / "cifar10_oneclass.py").read_text().split('"""')[1]
    assert f"python -m jaxad.{name} --config experiments/cifar10_oneclass.py" in text
    assert "tfds build cifar10 --data_dir=DIR --file_format=array_record" in text


def test_the_sweep_of_the_table_is_ten_runs_for_each_proxy():
    _, runs = sweep.expand(
        EXPERIMENT, configs.categories(EXPERIMENT), seeds=1, grid={"proxy.task": ["rotation", "cutpaste"]},
        overrides={"data.root": "DIR"}, workdir=None,
    )  # fmt: skip
    assert [run.name for run, _ in runs][:3] == [
        "airplane/proxy.task=rotation/seed0", "airplane/proxy.task=cutpaste/seed0",
        "automobile/proxy.task=rotation/seed0",
    ]  # fmt: skip
    assert len(runs) == len({run.workdir for run, _ in runs}) == 20


def test_a_folder_of_classes_does_as_well(tmp_path):
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        for place in ("train/good", "test/good", "test/bird"):
            write(tmp_path / "airplane" / place / f"{number}.png", image)
    config = configs.load(EXPERIMENT, {"data.source": "folder", "data.root": str(tmp_path)})
    dataset = data.load(config)
    assert len(dataset.train) == 2 and list(dataset.test.defects) == ["bird", "bird", "good", "good"]
    assert dataset.test[0].mask is None


@pytest.fixture
def small(monkeypatch):
    """A network of one layer in place of the small-image ResNet-18, compiled in half the time."""
    stand_in = Backbone(SmallEncoder, {"layer4": Stage(4, 6)}, lambda stage, side: 0)
    monkeypatch.setitem(BACKBONES, "resnet18_small", stand_in)
    monkeypatch.setattr(devices, "jit", quick_compiled)


def check_training_and_evaluation(root, workdir, capsys):
    """Three airplanes are learnt; two more are tested against two frogs, and the test set can be scored again."""
    values = SHORT | {"data.root": root}
    assert command(train.main, "--config", EXPERIMENT, "--workdir", workdir, *flags(values)) == 0
    assert "pixel AUROC n/a (no ground-truth masks for the anomalous test images)" in capsys.readouterr().out
    results = json.loads((workdir / "results.json").read_text())
    assert results["counts"] == {"good": 2, "defective": 2, "with_mask": 0}
    assert (results["category"], set(results["by_defect"])) == ("airplane", {"frog"})
    with open(workdir / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"].rpartition("/")[0] for row in rows) == ["test/frog"] * 2 + ["test/good"] * 2
    scores = {label: [float(row["score"]) for row in rows if row["label"] == label] for label in "01"}
    assert results["image"]["auroc"] == np.mean([high > low for high in scores["1"] for low in scores["0"]])
    last = read_history(workdir)[-1]
    assert last["step"] == 2 and 0 <= last["accuracy"] <= 1
    (workdir / "results.json").unlink()
    assert command(evaluate.main, "--workdir", workdir) == 0
    assert json.loads((workdir / "results.json").read_text())["image"] == results["image"]


@pytest.mark.slow
@needs_tfds
def test_training_and_evaluation_on_tfds_format(small, classes, tmp_path, capsys):  # noqa: F811
    check_training_and_evaluation(classes, tmp_path, capsys)


@pytest.mark.slow
@needs_tfds
def test_training_and_evaluation_of_the_whole_network(classes, tmp_path, capsys):  # noqa: F811
    check_training_and_evaluation(classes, tmp_path, capsys)
