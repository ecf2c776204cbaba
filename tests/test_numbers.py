"""No program of jaxad holds what jaxlib 0.10.2 computes wrong, and the check finds it where XLA's flag is another."""

import os
import re
import subprocess
import sys

import jaxlib.version
import pytest

from jaxad.runtime import devices
from tests import parts, products

TYPE = "LIBRARY_FUSION_TYPE"
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WRONG = jaxlib.version.__version_info__[:2] == (0, 10)
wrong_release = pytest.mark.skipif(not WRONG, reason="the fault jax-ml/jax#39103 is in jaxlib 0.10.2 alone")


def process(program: str, **more: str) -> subprocess.CompletedProcess:
    """Runs a program on CPU with these variables, and without the tests' own flags."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", program], env=plain | more, capture_output=True, text=True, cwd=parts.ROOT, timeout=300
    )


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("name", products.PRODUCTS)
def test_products_of_few_numbers_for_many_rows_are_right(name: str) -> None:
    assert products.wrong([name]) == []


def test_the_installed_release_computes_the_known_case_right() -> None:
    devices.check_numbers()


@wrong_release
@pytest.mark.parametrize("types", ["", f"{TYPE}_DOT,{TYPE}_REDUCE", f"{TYPE}_REDUCE"])
def test_the_sweep_finds_the_public_case(types: str) -> None:
    """With XLA's own default (without the flag), as jaxad 0.1 had it until November 2026, and with reductions alone.

    What the wrong rows hold differs from machine to machine, and one of them may be right by chance.
    """
    program = "from jaxad.runtime import devices; from tests import products; print(products.wrong([products.PUBLIC]))"
    if not types:  # JAX reads its flags before jaxad sets them
        program = "import jax.numpy; jax.numpy.ones(1).block_until_ready(); " + program
    done = process(program, **({"XLA_FLAGS": f"{FLAG}={types}"} if types else {}))
    assert done.returncode == 0, done.stderr
    wrong = {int(rows): int(values) for rows, values in re.findall(r"public case, (\d+) x 3: (\d+) of", done.stdout)}
    assert wrong[32769] == 1
    assert 4000 < wrong[36864] <= 4096
    assert wrong.keys().isdisjoint({32767, 32768})


@wrong_release
@pytest.mark.parametrize("early", [False, True])
def test_a_process_that_would_compute_wrong_numbers_is_refused(early: bool) -> None:
    """Another value of the flag, or JAX in use before jaxad is imported: one sentence, status 2."""
    program = """if True:
        from jaxad import errors
        from jaxad.runtime import devices
        def command():
            devices.jit(lambda x: x)
        errors.run(command)
    """
    if early:
        program = "import jax.numpy; jax.numpy.ones(1).block_until_ready()\n" + program
    done = process(program, **({} if early else {"XLA_FLAGS": f"{FLAG}=LIBRARY_FUSION_TYPE_DOT"}))
    told = parts.sentence(done.returncode, done.stderr, done.stdout)
    assert told.startswith(f"jaxlib {jaxlib.version.__version__} computes wrong numbers on CPU (jax-ml/jax#39103)")
    assert "import jaxad before anything is computed with JAX" in told


def test_a_process_that_imports_jaxad_first_is_right() -> None:
    program = (
        "import jaxad, jax.numpy; jax.numpy.ones(1).block_until_ready(); from jaxad.runtime import devices; "
        "devices.jit(abs); from tests import products; print(products.wrong([products.PUBLIC]))"
    )
    done = process(program)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
