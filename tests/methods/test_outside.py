"""A method in a file outside jaxad: it trains, resumes, evaluates and predicts."""

import json
import os
import re
import subprocess
import sys

import pytest

from jaxad import config as configs
from jaxad import methods
from tests.parts import BASELINE, ROOT, SIZE, part, write, write_parts
from tests.refusals import refuses

METHOD = """
import os
import signal

import jax.numpy as jnp
from jaxad.config_keys import Keys
from jaxad.methods.method import Hooks, Method, Scores

KEYS = Keys(shares={"model.start": "[0, 1)"}, used_with={"model.start": ("model.blank", ("no",))})


def create(config):
    def loss(params, batch_stats, batch, key):
        error = ((batch["image"] / 255 - params["mean"]) ** 2).mean()
        return error, (batch_stats, {})

    def warn(metrics):
        if "STOPPED" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)

    def score(variables, density, images):
        maps = ((images - variables["params"]["mean"]) ** 2).sum(-1)
        return Scores(maps.max((1, 2)), maps)

    return Method(
        init=lambda key, image: {"params": {"mean": jnp.full(image.shape[1:], config.model.start)}, "batch_stats": {}},
        loss=loss,
        fit=lambda variables, good_images, key: {},
        score=score,
        hooks=Hooks(warn=warn),
    )
"""
EXPERIMENT = f"""
from jaxad import config as configs

BASE = {str(ROOT / "experiments" / "nsa_logistic.py")!r}


def get_config(category="texture"):
    size = {SIZE}
    config = configs.load(f"{{BASE}}:{{category}}", {{
        "method": "my_method:create", "experiment": "mine", "data.size": size, "score.size": size, "view.crop": size,
        "batch": 2, "epochs": 4, "log_every": 1, "checkpoint.every_steps": 2, "optim.learning_rate": 0.05}})
    with config.unlocked():
        config.model = {{"start": 0.25, "blank": "no"}}
    return config
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_method.py").write_text(METHOD)
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    write_parts(tmp_path / "sets")
    return tmp_path


def run(folder, *arguments, status=0, **variables):
    """What a command prints in the folder, in which Python finds the method."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.medium
def test_it_trains_resumes_evaluates_and_predicts(folder):
    train = ["jaxad.train", "--config", "mine.py", f"--config.data.root={folder / 'sets' / 'nut'}", "--workdir"]
    run(folder, *train, "complete")
    results = json.loads((folder / "complete" / "results.json").read_text())
    assert results["experiment"] == "mine" and results["image"]["auroc"] > 0.9
    stopped = run(folder, *train, "again", status=143, STOPPED="yes")
    words = re.search(r"stopped at step (\d+) of (\d+); the same command resumes there", stopped)
    step, last = map(int, words.groups())
    assert step < last
    assert f"resuming at step {step} of {last}\n" in run(folder, *train, "again")
    assert (folder / "again" / "scores.csv").read_bytes() == (folder / "complete" / "scores.csv").read_bytes()
    assert "image AUROC" in run(folder, "jaxad.evaluate", "--workdir", "again")
    write(folder / "new.png", part(3, spot=True))
    assert "1 image" in run(folder, "jaxad.predict", "--workdir", "again", "new.png")


@pytest.mark.slow
def test_its_keys_have_the_rules_that_it_declares(folder):
    train = ["jaxad.train", "--config", "mine.py", "--workdir", "W"]
    assert "config.model.start must lie in [0, 1), not 1.0" in run(folder, *train, "--config.model.start=1", status=2)
    changes = ["--config.model.blank=yes", "--config.model.start=0.5"]
    assert "config.model.start has no effect while config.model.blank is yes" in run(folder, *train, *changes, status=2)
    (folder / "mine.py").write_text(EXPERIMENT.replace("0.25", "1.5"))
    assert "config.model.start must lie in [0, 1), not 1.5" in run(folder, *train, status=2)
    assert not (folder / "W").exists()


def test_its_keys_must_be_declared_as_such(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "odd_method.py").write_text("KEYS = {'at_least': {}}\n\n\ndef create(config):\n    return None\n")
    with refuses("method", "KEYS"):
        methods.create(configs.load(f"{BASELINE}:nut", {"method": "odd_method:create"}))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no_such_module:create", "imported"),
        ("cut_off:create", "SyntaxError"),
        ("json:create", "module json has no"),
        ("json:loads", "json:create"),
        ("venv:create", "jaxad.methods.method.Method"),
        ("nsaa", "'nsa'"),
    ],
)
def test_what_is_no_method_is_refused(name, word, monkeypatch, tmp_path):
    import venv

    (tmp_path / "cut_off.py").write_text("def create(config:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(venv, "create", lambda config: None)
    with refuses("method", word):
        methods.create(configs.load(f"{BASELINE}:nut", {"method": name}))
