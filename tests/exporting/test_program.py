"""The pure function that is exported of a detector."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxad import config as configs
from jaxad.detector import Detector
from jaxad.exporting import program
from jaxad.models import cpu
from tests.parts import BASELINE


def test_plain_forms_hold_within_alone():
    assert cpu.preferred()
    with program.tracing():
        assert not cpu.preferred()
    assert cpu.preferred()


def test_an_image_by_hand():
    """Every pixel lies 51 grey levels from the mean; std and floor are 0.1 and 10 levels."""
    config = configs.load(f"{BASELINE}:bottle", {"data.size": "32", "score.sigma": "1.0", "score.floor": "10.0"})
    shape = (32, 32, 3)
    density = {"mean": jnp.full(shape, 0.4, jnp.float32), "std": jnp.full(shape, 0.1, jnp.float32)}
    found = Detector(config, {}, density)
    assert program.input_shape(found) == shape
    with program.tracing():
        made = jax.jit(program.program(found))(np.full(shape, 153, np.uint8))  # 0.6
    expected = 0.2 / (0.1 + 10 / 255)
    np.testing.assert_allclose(made["map"], np.full((32, 32), expected), rtol=1e-5)
    np.testing.assert_allclose(made["score"], expected, rtol=1e-5)
