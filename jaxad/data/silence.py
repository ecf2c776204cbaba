"""Keeps the lines of the decoding libraries off the screen: the user reads one sentence about a file, or none."""

import contextlib
import ctypes
import functools
import logging
import threading
import warnings
from collections.abc import Iterator

import cv2
from PIL import Image

_LOCK = threading.Lock()


@contextlib.contextmanager
def pillow_silence() -> Iterator[None]:
    """Within it, Pillow warns of nothing, such as sloppy metadata in intact files; one thread at a time is in it."""
    with _LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@functools.cache
def silence_libtiff() -> None:
    """Keeps Pillow's libtiff from writing on the screen: Pillow turns off its warnings, but not its errors."""
    with contextlib.suppress(AttributeError, OSError):  # a Pillow that is built in another way
        handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)


# Python prints what is logged as an error unless a handler is there. Handlers of the user get it as before.
for _name in ("PIL", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class _OpenCVSilence:
    """While any thread is in it, OpenCV writes nothing on the screen; afterwards its log level is what it was."""

    def __init__(self):
        self._inside, self._level = 0, None

    def __enter__(self):
        logs = cv2.utils.logging
        with _LOCK:
            if not self._inside:
                self._level = logs.setLogLevel(logs.LOG_LEVEL_SILENT)
            self._inside += 1

    def __exit__(self, *_: object):
        with _LOCK:
            self._inside -= 1
            if not self._inside:
                cv2.utils.logging.setLogLevel(self._level)


opencv_silence = _OpenCVSilence()
