"""Operations rewritten for XLA's CPU backend, where its own form is slow; values are the same to rounding."""

import jax


def preferred() -> bool:
    """Whether the rewritten form is computed instead of XLA's own; every operation that has both forms asks here."""
    return jax.default_backend() == "cpu"
