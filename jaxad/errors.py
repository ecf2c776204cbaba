"""Errors that are told to the user as one sentence, and the wrapper through which every command runs."""

import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """A mistake in the user's input, told in one sentence: what is wrong, where, and what to do.

    Attributes:
      about: What the sentence is about: a key of the config without ``config.``, an option such as ``--output``, or a
        path. Of several keys it is the first. None where it is about something else.
    """

    def __init__(self, sentence: str, *, about: str | os.PathLike[str] | None = None):
        super().__init__(sentence)
        self.about = None if about is None else str(about)


RETRAIN = "train anew, with --restart (from Python restart=True) or into another --workdir"


def other_version(what: str, why: str, remedy: str = RETRAIN, *, about: str | os.PathLike[str]) -> UserError:
    """The sentence on a file or folder that is whole, but not as this version of jaxad writes it.

    Args:
      what: The file or folder, in words.
      why: How that is known, such as "it lacks 'seed'".
      remedy: What to do.
      about: The path of the file or folder.
    """
    return UserError(f"{what} was written by another version of jaxad ({why}); {remedy}", about=about)


class Stopped(KeyboardInterrupt):
    """A signal has stopped a training, whose state was saved; the same call resumes it.

    Attributes:
      number: The signal, SIGINT or SIGTERM.
    """

    def __init__(self, number: int, sentence: str):
        super().__init__(sentence)
        self.number = number


_PLACE = "check its permissions or choose another place"
_SPACE = "free some space and run the same command again"
_DISK = "check the disk or its connection and run the same command again"
_OPEN = "allow more of them (ulimit -n) and run the same command again"
# What a file system can refuse; other OSErrors are faults of the program and keep their traceback.
_REMEDIES = {
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EROFS: _PLACE,
    errno.EEXIST: _PLACE,
    errno.EISDIR: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.ENAMETOOLONG: _PLACE,
    errno.ELOOP: _PLACE,
    errno.EFBIG: _PLACE,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ENOTCONN: _DISK,
    errno.EMFILE: _OPEN,
    errno.ENFILE: _OPEN,
}


def user_message(error: BaseException) -> tuple[str, int] | None:
    """The sentence that tells an error to the user, and the exit status; None for a fault of the program.

    A `UserError` has status 2, and so has what the file system refuses (no permission, no space left, ...); Ctrl-C has
    130. A training that was stopped has said so already, and has 130 or 143.
    """
    if isinstance(error, Stopped):
        return "", 128 + error.number
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_REMEDIES[error.errno]}", 2
    if isinstance(error, ValueError) and "embedded null" in str(error):  # of the system's calls
        return "a path holds a NUL character, which no name can have; check the paths", 2
    return ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else None


def refused(error: BaseException) -> str | None:
    """What the file system has refused, by its own error or in the text of a library's, else None."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return os.strerror(error.errno)
    return next((os.strerror(number) for number in _REMEDIES if os.strerror(number) in str(error)), None)


def counted(number: int, noun: str) -> str:
    """A number and what it counts, for a sentence: ``1 image``, but ``0 images`` and ``2 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """What went wrong, in one line; the libraries below add pages of context."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def end_on_interrupt(package: str) -> None:
    """`end_on_interrupt_now` where the process is a command ``python -m`` of `package`."""
    given = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
    if given and given[0].partition(".")[0] == package:
        end_on_interrupt_now()


def end_on_interrupt_now() -> None:
    """Lets Ctrl-C end a command at once until `run` begins it.

    It imports JAX first, which takes a second or more. An exception in there is printed with all its callers, or
    dropped by a callback of JAX, so that the command would go on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, _) -> None:
    os.write(sys.__stderr__.fileno(), b"interrupted\n")
    os._exit(128 + number)


def run(main: Callable[[], None]) -> None:
    """Runs a command: what `user_message` knows is printed as one sentence instead of a traceback.

    Names of files may hold what the terminal's encoding has not; such characters are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    previous, sys.unraisablehook = sys.unraisablehook, _on_dropped
    logging.getLogger("asyncio").addFilter(_is_news)
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except BaseException as error:
        if (known := user_message(error)) is None:
            raise
        # Where a save has failed, Orbax leaves what it has not begun.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        sentence, status = known
        if sentence:
            print(f"error: {sentence}" if status == 2 else sentence, file=sys.stderr)
        sys.exit(status)
    finally:
        sys.unraisablehook = previous


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio says more than the command's own sentence does.

    Where the disk is full, several writes of one save fail. One of them ends the command; asyncio would print each of
    the others with its callers. TensorStore raises ValueErrors for them that hold the system's words.
    """
    error = record.exc_info[1] if record.exc_info else None
    return error is None or refused(error) is None


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether a record of absl is none of Orbax's errors.

    What its threads raise reaches the user as one sentence; Orbax also logs pages of tracebacks for each.
    """
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts


def _on_dropped(dropped) -> None:
    """What Python would print and drop, since nobody can catch it: exceptions in finalizers and in library callbacks.

    Ctrl-C during a finalizer ends the command. A save that failed, such as on a full disk, is told by its own error;
    that its other writes then find Orbax's event loop closed is not.
    """
    error = dropped.exc_value
    if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
        return
    known = user_message(error) if isinstance(error, KeyboardInterrupt) else None
    if known is None:
        sys.__unraisablehook__(dropped)
        return
    sys.stdout.flush()
    print(known[0] or "interrupted", file=sys.stderr, flush=True)
    os._exit(known[1])  # an exception cannot leave a finalizer
