"""The switch between the formulations for CPU and those for accelerators reaches each operation that has both."""

import jax
import jax.numpy as jnp
import pytest

from jaxad.models import cpu
from jaxad.models.cpu import sums
from jaxad.models.cpu.depthwise import depthwise_conv
from jaxad.models.layers import Conv, conv, materialized
from tests.parts import ROOT


def test_on_cpu_the_rewritten_form_is_computed() -> None:
    assert jax.default_backend() == "cpu" and cpu.preferred()


def wide(x: jax.Array) -> jax.Array:
    return Conv(128, 3).apply({"params": {"kernel": jnp.ones((3, 3, 128, 128))}}, x)


@pytest.mark.parametrize(("function", "shape", "xlas_own", "rewritten"), [
    (materialized, (3,), "", "optimization_barrier"),
    (sums.channel_sum, (800, 3), "", "concatenate"),
    (lambda x: conv(x, jnp.ones((7, 7, 2, 2)), padding=(3, 3)), (1, 2, 2, 2), "conv_general_dilated", "dot_general"),
    (lambda x: depthwise_conv(x, jnp.ones((3, 3, 1, 2))), (1, 8, 8, 2), "conv_general_dilated", "custom_vjp"),
    (wide, (8, 16, 16, 128), "conv_general_dilated", "dot_general"),
])  # fmt: skip
def test_the_switch_reaches(formulation: str, function, shape: tuple[int, ...], xlas_own: str, rewritten: str) -> None:
    program = str(jax.make_jaxpr(lambda x: function(x))(jnp.ones(shape)))
    found, other = (rewritten, xlas_own) if formulation == "cpu" else (xlas_own, rewritten)
    assert found in program
    assert not other or other not in program


def test_nothing_else_in_the_networks_asks_for_the_backend() -> None:
    files = [file for file in (ROOT / "jaxad" / "models").rglob("*.py") if "default_backend" in file.read_text()]
    assert files == [ROOT / "jaxad" / "models" / "cpu" / "__init__.py"]
