"""Compilation for tests that compile far more than they run."""

import functools

import jax

# jax.jit in half the time: without the optimisation of the machine code, which changes no result.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
