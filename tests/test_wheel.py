"""A wheel built from the tree, installed outside the clone: it trains by name and from arrays, and loads."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.parts import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import numpy as np
import jaxad

assert jaxad.__file__.startswith(sys.argv[1])
config = jaxad.configs.load("baseline_mean", "object", data={"size": 32})
images = np.random.default_rng(0).integers(90, 110, (20, 48, 40, 3)).astype(np.uint8)
trained = jaxad.train(config, images, "mine")
loaded = jaxad.load("mine")
assert loaded.predict(images[0])[0].score == trained.predict(images[0])[0].score
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel, built in a copy."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("jaxad", "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-deps", "--wheel-dir", folder, folder / "source")
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel):
    """The folder that the wheel is installed in."""
    folder = wheel.parent / "site"
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(installed, folder, *command) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_the_experiments(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {f"jaxad/experiments/{file.name}" for file in (ROOT / "experiments").glob("*.py")}
    files |= {str(file.relative_to(ROOT)) for file in (ROOT / "jaxad").rglob("*.py")}
    files |= {"jaxad/py.typed", "jaxad/reporting/published.json", "jaxad/serving/page.html"}
    lists = {str(file.relative_to(ROOT)) for file in (ROOT / "jaxad/data/chest_xray_lists").iterdir()}
    assert len(lists) == 7  # with their licence
    files |= lists
    assert {name for name in names if ".dist-info/" not in name} == files


def test_it_trains_the_demo_by_name(installed, tmp_path):
    short = ["--config.epochs=1", "--config.data.size=64", "--config.view.crop=64", "--config.synthetic_every=0"]
    told = run(installed, tmp_path, installed / "bin" / "jaxad", "train", "nsa_logistic", *short)
    workdir = tmp_path / "runs" / "nsa_logistic" / "cap" / "seed0"
    assert told.startswith("workdir: runs/nsa_logistic/cap/seed0\n")
    assert json.loads((workdir / "results.json").read_text())["experiment"] == "nsa_logistic"


def test_it_trains_from_arrays_and_loads(installed, tmp_path):
    run(installed, tmp_path, "-c", PROGRAM, installed)


def test_every_experiment_loads_by_name(installed, tmp_path):
    names = [file.stem for file in (ROOT / "experiments").glob("*.py") if file.stem != "synthetic_anomalies"]
    run(installed, tmp_path, "-c", f"import jaxad; [jaxad.configs.load(name) for name in {names}]")
