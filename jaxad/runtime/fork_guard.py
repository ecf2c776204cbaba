"""Forked processes cannot use JAX after the process that they were forked from has: they end in a sentence here."""

import os

from jaxad.errors import UserError

_process: int | None = None  # that put the first detector on devices


def refuse_forked() -> None:
    """Refuses to compute in a process that was forked after JAX was used: JAX's threads are not there any more.

    Raises:
      UserError: It is such a process. Without this, it would wait for ever.
    """
    global _process
    _process = _process or os.getpid()
    if os.getpid() != _process:
        raise UserError(
            "this process was forked from one that has a detector, without the threads that JAX computes with, and "
            'would wait for ever; start workers by multiprocessing.get_context("spawn"), and pass them the detector or '
            "load it there"
        )
