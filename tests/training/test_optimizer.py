"""The optimiser of a config: what its keys say, step by step, and no key that it would not use."""

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.training import step as training
from tests.commands import train
from tests.parts import NSA, ROOT, refusal, write_parts
from tests.refusals import refuses

DLA = f"{ROOT}/experiments/dla.py"
CUTPASTE = f"{ROOT}/experiments/cutpaste_3way.py"


def first_step(**optim):
    """What the first step makes of a parameter of 2 whose gradient is 0.5."""
    optim = {"learning_rate": 0.1, "final_learning_rate": 0.1} | optim
    optimizer, _ = training.make_optimizer(ConfigDict({"epochs": 1, "optim": optim}), 10)
    params = jnp.float32(2)
    update, _ = optimizer.update(jnp.float32(0.5), optimizer.init(params), params)
    return float(params + update)


def test_first_steps_by_hand():
    assert first_step(name="sgd") == pytest.approx(2 - 0.1 * 0.5)
    assert first_step(name="sgd", weight_decay=0.2) == pytest.approx(2 - 0.1 * (0.5 + 0.2 * 2))
    assert first_step(name="adam") == pytest.approx(2 - 0.1, abs=1e-6)  # a gradient by its own size
    assert first_step(name="adam", momentum=0.0, weight_decay=0.0) == pytest.approx(2 - 0.1, abs=1e-6)
    assert first_step(name="adamw", weight_decay=0.2) == pytest.approx(2 - 0.1 - 0.1 * 0.2 * 2, abs=1e-6)
    assert first_step(name="adamw", weight_decay=0.2, momentum=0.0) == first_step(name="adamw", weight_decay=0.2)


@pytest.mark.parametrize("optim, about, others", [
    ({"name": "adam", "momentum": 0.9}, "optim.momentum", "config.optim.name=sgd"),
    ({"name": "adam", "weight_decay": 5e-4}, "optim.weight_decay", "config.optim.name=sgd or adamw"),
    ({"name": "adamw", "momentum": 0.9, "weight_decay": 0.1}, "optim.momentum", "config.optim.name=sgd"),
])  # fmt: skip
def test_what_an_optimizer_would_not_use_is_refused(optim, about, others):
    with refuses(about, others):
        first_step(**optim)


EXPERIMENTS = [path for path in sorted((ROOT / "experiments").glob("*.py")) if path.stem != "synthetic_anomalies"]


@pytest.mark.slow
def test_every_experiment_uses_what_it_sets():
    for file in EXPERIMENTS:
        for category in configs.categories(file):
            config = configs.load(f"{file}:{category}")
            if config.epochs:
                training.make_optimizer(config, 10)  # an error of it names the file


@pytest.mark.medium
def test_a_training_is_refused_before_its_workdir_is_made(tmp_path, capsys):
    root = write_parts(tmp_path / "sets")
    for file, name, words in (
        (DLA, "adam", "config.optim.momentum is 0.9, which adam does not use"),
        (CUTPASTE, "adam", "config.optim.momentum is 0.9, which adam does not use"),
        (NSA, "adamw", f"the config of {NSA} lacks config.optim.weight_decay; see experiments/ for examples"),
    ):
        flags = [f"--config.data.root={root / 'nut'}", f"--config.optim.name={name}", "--config.batch=8"]
        message = refusal(capsys, train.main, "--config", f"{file}:object", "--workdir", tmp_path / "w", *flags)
        assert message.startswith(words) and not (tmp_path / "w").exists()
