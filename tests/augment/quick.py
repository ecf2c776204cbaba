"""Compilation for tests that compile far more than they run."""

import functools

import jax

# jax.jit in half the time: without the optimisation of the machine code, which changes no result.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def quick_compiled(function, **options):
    """`devices.jit` in half the time, for tests of small networks; the settings of other passes are its own."""
    settings = {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=settings, **options)
