"""Puts the parts of the server together, and runs them until the process is stopped."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

from jaxad.data.room import Room
from jaxad.detector import Detector
from jaxad.runtime import disk
from jaxad.serving import app, server
from jaxad.serving.options import Limits
from jaxad.serving.scorer import Scorer
from jaxad.serving.watch import Folders, Watcher, folders, locked

__all__ = ["Limits", "folders", "run"]

_MOST_READERS = 4


def run(
    detectors: dict[str, Detector], *, address: tuple[str, int], limits: Limits, batch: int, wait: float,
    watched: Folders | None, poll: float,
) -> None:  # fmt: skip
    """Serves until Ctrl-C or SIGTERM.

    Args:
      detectors: By name; the first is the default, and the one of the folder.
      address: Host and port.
      limits: What is taken of requests.
      batch: The most images that are scored together.
      wait: Seconds that an image waits for others.
      watched: The folders of what is watched; None for nothing.
      poll: Seconds between two looks at them.

    Raises:
      UserError: It cannot listen there, or another process works in a folder.
    """
    room, scorer = Room(), Scorer(batch=batch, wait=wait)
    readers = ThreadPoolExecutor(min(_MOST_READERS, os.cpu_count() or 1), "reader")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(server.listen(*address))
        watcher = None
        if watched is not None:
            stack.enter_context(disk.locked(watched.done, option="--done"))
            stack.enter_context(disk.locked(watched.watched, option="--watch"))
            stack.enter_context(locked(watched.results))
            name, found = next(iter(detectors.items()))
            watcher = Watcher(watched, name, found, scorer, readers, room, batch=batch, every=poll)
        scorer.start(list(detectors.values()))
        stack.callback(scorer.stop)
        if watcher is not None:
            watcher.start()
            stack.callback(watcher.stop)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{', '.join(detectors)}: http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
        service = app.Service(detectors, scorer, readers, room, limits)
        server.create(app.create(service), read=limits.read, queue=limits.queue).run(sockets=[listening])
