"""Native functions that programs of JAX call."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numba import cfunc, types

from jaxad.models.cpu.onednn import native
from jaxad.runtime import foreign

NAME = "jaxad_test_copy"
made = []


def copy(call):
    """Copies words from the argument to the result; fails if the first integer is 13."""
    if native._is_question(call):
        return 0
    numbers = native._numbers(call)
    if native._word(numbers, 0) == 13:
        return native._answer(call, True)
    start, end = native._data(native._argument(call, 0)), native._data(native._result(call, 0))
    for place in range(native._leading(native._argument(call, 0), 0) // 2):
        native._write(end + 8 * place, native._word(start, place))
    return 0


def handler():
    made.append(cfunc(types.int64(types.int64), nopython=True)(copy))
    return made[-1]


def copied(x: jax.Array, number: int = 1) -> jax.Array:
    foreign.register(NAME, handler)
    return foreign.call(NAME, [x], [jax.ShapeDtypeStruct(x.shape, x.dtype)], (number,), shared=True)[0]


@pytest.mark.medium
def test_a_function_is_registered_once_and_called_from_everywhere() -> None:
    x = jnp.arange(8.0).reshape(2, 4)
    threads = [threading.Thread(target=foreign.register, args=(NAME, handler)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for function in (copied, jax.jit(copied), jax.vmap(copied)):
        np.testing.assert_array_equal(function(x), x)
    assert len(made) == 1
    assert copied(jnp.zeros((0, 4))).shape == (0, 4)


@pytest.mark.medium
@pytest.mark.parametrize("compiled", [False, True])
def test_a_failure_is_told_and_others_go_on(compiled: bool) -> None:
    function = jax.jit(copied, static_argnums=1) if compiled else copied
    with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN refused"):
        jax.block_until_ready(function(jnp.ones(4), 13))
    np.testing.assert_array_equal(function(jnp.ones(4), 1), jnp.ones(4))
