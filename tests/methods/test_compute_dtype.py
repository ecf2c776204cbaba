"""What a network computes in."""

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import methods
from jaxad.errors import UserError
from jaxad.methods.method import compute_dtype
from jaxad.training import intake
from tests.parts import NSA


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_named_dtype_is_taken(dtype: str) -> None:
    assert compute_dtype(ConfigDict({"dtype": dtype})) == jnp.dtype(dtype)


@pytest.mark.parametrize(("on_cpu", "multiplies", "processes", "expected"), [
    (True, True, 1, jnp.bfloat16),
    (False, True, 1, jnp.float32),
    (True, False, 1, jnp.float32),
    (True, True, 2, jnp.float32),  # the others' processors may differ
])  # fmt: skip
def test_auto_is_what_a_processor_multiplies_in(monkeypatch, on_cpu, multiplies, processes, expected) -> None:
    monkeypatch.setattr("jaxad.models.cpu.preferred", lambda: on_cpu)
    known = {jnp.bfloat16} if multiplies else set()
    monkeypatch.setattr("jaxad.models.cpu.onednn.library.multiplies", known.__contains__)
    monkeypatch.setattr("jaxad.runtime.processes.count", lambda: processes)
    assert compute_dtype(ConfigDict({"dtype": "auto"})) == expected


def test_another_is_refused() -> None:
    with pytest.raises(UserError, match=r"config\.dtype must be one of auto, float32, bfloat16, not 'float16'"):
        compute_dtype(ConfigDict({"dtype": "float16"}))


def test_a_training_keeps_to_what_auto_was_at_its_start(monkeypatch, tmp_path, capsys) -> None:
    """On another machine it is resumed in the first one's dtype, and a sweep that says auto still knows it."""
    monkeypatch.setattr("jaxad.training.intake.compute_dtype", lambda config: jnp.dtype(jnp.bfloat16))
    config = configs.load(NSA, {"dtype": "auto"}, rules_of=methods.rules_of)
    begun = intake.with_dtype(config, tmp_path, restart=False)
    assert begun.dtype == "bfloat16" and "computes in bfloat16" in capsys.readouterr().out
    configs.claim(tmp_path, begun)
    monkeypatch.setattr("jaxad.training.intake.compute_dtype", lambda config: jnp.dtype(jnp.float32))
    assert intake.with_dtype(config, tmp_path, restart=False).dtype == "bfloat16"
    assert intake.with_dtype(config, tmp_path, restart=True).dtype == "float32"
    configs.claim(tmp_path, config)
    named = configs.override(config, {"dtype": "float32"}, rules_of=methods.rules_of)
    assert intake.with_dtype(named, tmp_path, restart=False).dtype == "float32"
    with pytest.raises(UserError, match="dtype"):
        configs.claim(tmp_path, named)
