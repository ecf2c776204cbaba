"""Operations rewritten for XLA's CPU backend, where its own form is slow; values are the same to rounding."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLAIN = contextvars.ContextVar("plain", default=False)


def preferred() -> bool:
    """Whether the rewritten form is computed instead of XLA's own; every operation that has both forms asks here."""
    return not _PLAIN.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Within it no form is rewritten: what is traced there is for another runtime than XLA's on CPU."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)
