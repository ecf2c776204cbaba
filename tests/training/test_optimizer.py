"""The optimiser of a config: what its keys say, step by step, and no key that it would not use."""

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.errors import UserError
from jaxad.training import step as training
from tests.commands import train
from tests.parts import NSA, ROOT, refusal, write_parts

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


@pytest.mark.parametrize("optim, words", [
    ({"name": "adam", "momentum": 0.9},
     "config.optim.momentum is 0.9, which adam does not use; set config.optim.momentum=0 or config.optim.name=sgd"),
    ({"name": "adam", "weight_decay": 5e-4},
     "config.optim.weight_decay is 0.0005, which adam does not use; set config.optim.weight_decay=0 or "
     "config.optim.name=sgd or adamw"),
    ({"name": "adamw", "momentum": 0.9, "weight_decay": 0.1},
     "config.optim.momentum is 0.9, which adamw does not use; set config.optim.momentum=0 or config.optim.name=sgd"),
])  # fmt: skip
def test_what_an_optimizer_would_not_use_is_refused(optim, words):
    with pytest.raises(UserError) as caught:
        first_step(**optim)
    assert str(caught.value) == words


EXPERIMENTS = [path for path in sorted((ROOT / "experiments").glob("*.py")) if path.stem != "synthetic_anomalies"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_uses_what_it_sets(file):
    for category in configs.categories(file):
        config = configs.load(f"{file}:{category}")
        if config.epochs:
            training.make_optimizer(config, 10)


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
