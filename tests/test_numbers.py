"""No program of jaxad holds what jaxlib 0.10.2 computes wrong, whatever XLA's flags are and whenever JAX starts."""

import os
import re
import subprocess
import sys

import jaxlib.version
import pytest

from tests import parts, products

TYPE = "LIBRARY_FUSION_TYPE"
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WRONG = jaxlib.version.__version_info__[:2] == (0, 10)
wrong_release = pytest.mark.skipif(not WRONG, reason="the fault jax-ml/jax#39103 is in jaxlib 0.10.2 alone")
each_flag = pytest.mark.parametrize("types", ["", f"{TYPE}_DOT,{TYPE}_REDUCE", f"{TYPE}_REDUCE"])


def public_case(types: str, *, compiled: str) -> str:
    """What a process finds wrong in the public case, where JAX was in use before jaxad was imported.

    Args:
      types: The value of XLA's flag; XLA's own default where it is empty.
      compiled: What compiles the case, ``jax.jit`` or ``devices.jit``.
    """
    program = f"""if True:
        import jax
        jax.numpy.ones(1).block_until_ready()
        from jaxad.runtime import devices
        from tests import products
        print(products.wrong([products.PUBLIC], {compiled}))
    """
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    own = {"XLA_FLAGS": f"{FLAG}={types}"} if types else {}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain | own, capture_output=True, text=True, cwd=parts.ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("name", products.PRODUCTS)
def test_products_of_few_numbers_for_many_rows_are_right(name: str) -> None:
    assert products.wrong([name]) == []


@pytest.mark.medium
@wrong_release
@each_flag
def test_the_sweep_finds_the_public_case(types: str) -> None:
    """In a program of JAX's own: with XLA's default, with what jaxad 0.1 once allowed, and with reductions alone.

    What the wrong rows hold differs from machine to machine, and one of them may be right by chance.
    """
    told = public_case(types, compiled="jax.jit")
    wrong = {int(rows): int(values) for rows, values in re.findall(r"public case, (\d+) x 3: (\d+) of", told)}
    assert wrong[32769] == 1
    assert 4000 < wrong[36864] <= 4096
    assert wrong.keys().isdisjoint({32767, 32768})


@pytest.mark.medium
@each_flag
def test_programs_of_jaxad_are_right_whatever_the_process_has_set(types: str) -> None:
    assert public_case(types, compiled="devices.jit") == "[]"
