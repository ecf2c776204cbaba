"""Ctrl-C and SIGTERM during a training: the step under way is completed and its state saved.

A second Ctrl-C ends the process at once. Python runs its own signal handlers between two instructions of the program,
which a compilation delays by minutes; so a thread watches the signals too, and answers the user.
"""

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from jaxad.runtime import processes

_FIRST = "stopping after the step under way, whose state is saved; Ctrl-C again ends at once"
_SECOND = "interrupted; what was not saved is lost, and the same command resumes at the last checkpoint"


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """While active, Ctrl-C and SIGTERM are only noted; yields a function that tells the signal to stop for, or 0.

    With several processes every one of them must make the same calls of it. It then tells in all of them after the
    same call that one was stopped; the number is SIGTERM in those that were not. Signals that are ignored stay so. In
    another thread than the main one nothing is noted, since Python hands signals to the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _asker(lambda: 0)
        return
    came: list[int] = []
    numbers = [signal.SIGINT] if processes.count() > 1 else [signal.SIGINT, signal.SIGTERM]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    with _watched():
        previous = {number: signal.signal(number, functools.partial(_note, came)) for number in numbers}
        try:
            yield _asker(lambda: came[0] if came else 0)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    if processes.count() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nobody looks any more for what the runtime's handler notes


@contextlib.contextmanager
def at_once() -> Iterator[Callable[[], int]]:
    """As `deferred`, but leaves the process's signal handlers alone: there is never a signal to stop for."""
    yield lambda: 0


def _note(came: list[int], number: int, _) -> None:
    came.append(number)
    if processes.count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)  # the runtime's handler of it tells the other processes


def _asker(own: Callable[[], int]) -> Callable[[], int]:
    """Turns what this process alone knows of a signal into the answer of all processes."""
    if processes.count() == 1:
        return own
    calls = itertools.count()
    return lambda: (own() or signal.SIGTERM) if processes.sigterm(next(calls)) else 0


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """While active, a thread answers the first Ctrl-C with a sentence and the second with the end of the process."""
    end, start = os.pipe()
    os.set_blocking(start, False)
    previous = signal.set_wakeup_fd(start, warn_on_full_buffer=False)  # the system's handler writes to it at once
    watch = threading.Thread(target=_watch, args=(end,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(start)
        watch.join()
        os.close(end)


def _watch(end: int) -> None:
    interrupts = 0
    while number := os.read(end, 1):
        if number[0] == signal.SIGINT:
            interrupts += 1
            with contextlib.suppress(OSError):
                print("\n" + (_SECOND if interrupts > 1 else _FIRST), file=sys.stderr, flush=True)
            if interrupts > 1:
                os._exit(128 + signal.SIGINT)
