"""The switch between the formulations, for CPU and for accelerators, reaches each operation that has several."""

import jax
import jax.numpy as jnp
import pytest

from jaxad.models import cpu
from jaxad.models.cpu import sums
from jaxad.models.cpu.depthwise import depthwise_conv
from jaxad.models.layers import Conv, conv, materialized, max_pool
from tests.parts import ROOT


def test_on_cpu_the_rewritten_form_is_computed() -> None:
    assert jax.default_backend() == "cpu" and cpu.preferred()


def wide(x: jax.Array) -> jax.Array:
    return Conv(128, 3).apply({"params": {"kernel": jnp.ones((3, 3, 128, 128))}}, x)


@pytest.mark.parametrize(("function", "shape", "names"), [
    (materialized, (3,), {"onednn": "optimization_barrier", "cpu": "optimization_barrier", "accelerator": ""}),
    (sums.channel_sum, (800, 3), {"onednn": "concatenate", "cpu": "concatenate", "accelerator": ""}),
    (lambda x: conv(x, jnp.ones((7, 7, 2, 2)), padding=(3, 3)), (1, 2, 2, 2),
     {"onednn": "jaxad_onednn_convolution", "cpu": "dot_general", "accelerator": "conv_general_dilated"}),
    (lambda x: depthwise_conv(x, jnp.ones((3, 3, 1, 2))), (1, 8, 8, 2),
     {"onednn": "jaxad_onednn_convolution", "cpu": "slice", "accelerator": "conv_general_dilated"}),
    (wide, (8, 16, 16, 128),
     {"onednn": "jaxad_onednn_convolution", "cpu": "dot_general", "accelerator": "conv_general_dilated"}),
    (max_pool, (1, 8, 8, 2),
     {"onednn": "jaxad_onednn_max_pool", "cpu": "reduce_window", "accelerator": "reduce_window"}),
])  # fmt: skip
def test_the_switch_reaches(formulation: str, function, shape: tuple[int, ...], names: dict[str, str]) -> None:
    program = str(jax.make_jaxpr(lambda x: function(x))(jnp.ones(shape)))
    assert names[formulation] in program
    assert not any(other in program for other in set(names.values()) - {names[formulation], ""})


def test_nothing_else_in_the_networks_asks_for_the_backend() -> None:
    files = [file for file in (ROOT / "jaxad" / "models").rglob("*.py") if "default_backend" in file.read_text()]
    assert files == [ROOT / "jaxad" / "models" / "cpu" / "__init__.py"]
