"""Where the runs of a sweep are run: in this process, in processes beside it, or as tasks of a Ray cluster.

An engine takes runs and yields each when it has ended; what became of it lies in its workdir.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxad.data import pipeline
from jaxad.errors import Stopped, UserError
from jaxad.runtime import disk
from jaxad.train import main as train

_TRACEBACK = 20  # lines that are kept of a failed run's
_GPU_MEMORY = 0.75  # share of a GPU's memory that JAX takes for a process
_RETRIES = 20  # of a run whose node was lost, or whose process crashed: Ray can't tell; each goes on from a checkpoint
_PATIENCE = 10  # seconds to reach a cluster's address
_SHARING = 60  # seconds until this host sees what another one wrote to a network folder


class Run(NamedTuple):
    """One training of a sweep.

    Attributes:
      name: Its folder below the sweep's workdir, such as ``cap/seed0``.
      workdir: Its workdir.
      arguments: What ``python -m jaxad.train`` is called with, besides the workdir.
    """

    name: str
    workdir: Path
    arguments: tuple[str, ...]

    def results(self) -> dict | None:
        """What results.json holds; None while the run is not complete."""
        try:
            return disk.read_json(self.workdir / "results.json", "")
        except (FileNotFoundError, NotADirectoryError, UserError):  # a damaged one is made again
            return None

    def began(self) -> bool:
        """Whether the workdir is this training's, or holds its results."""
        return any((self.workdir / name).exists() for name in ("config.json", "results.json"))

    def error(self) -> str | None:
        """Why the run failed, in one line; None where it did not."""
        path = self.workdir / "error.txt"
        return path.read_text(encoding="utf-8", errors="surrogateescape").partition("\n")[0] if path.is_file() else None

    def fail(self, text: str) -> None:
        """Keeps why the run failed; the first line of `text` says it."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        disk.write_text(self.workdir / "error.txt", f"{text}\n")


def execute(run: Run) -> None:
    """Runs to the end what ``python -m jaxad.train`` would; an error is kept with the run.

    Raises:
      KeyboardInterrupt: Ctrl-C ended it, or as `Stopped` a signal that let the training save its state.
    """
    # Alone, whatever the environment says of other processes: on a TPU pod, hosts share a sweep by Ray.
    try:
        train([*run.arguments, "--processes=1", "--workdir", str(run.workdir)])
        if run.results() is None:
            raise UserError("there are no test images, so the run has no place in a table of results")
    except UserError as error:
        failure = str(error)
    except Exception as error:  # whatever it is, the other runs go on
        summary = traceback.format_exception_only(error)[0].splitlines()[0]
        lines = "".join(traceback.format_exception(error)).splitlines()
        failure = "\n".join([summary, "", *lines[-_TRACEBACK:]])
    else:
        return
    if run.results() is None:
        run.fail(failure)


def in_this_process(runs: Sequence[Run]) -> Iterator[Run]:
    """Runs one after the other in this process; runs that differ in their seed alone share compiled programs.

    Raises:
      KeyboardInterrupt: As in `execute`.
    """
    for run in runs:
        execute(run)
        yield run


def side_by_side(runs: Sequence[Run], *, processes: int) -> Iterator[Run]:
    """Runs in so many processes at a time, a new one for each run; a run's output goes to its log.txt."""
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    waiting, running = list(runs), {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                process = context.Process(target=_child, args=(run, 1 / processes))
                process.start()
                running[process.sentinel] = run, process
            for sentinel in multiprocessing.connection.wait(running):
                run, process = running.pop(sentinel)
                process.join()
                if run.results() is None and run.error() is None:
                    log = run.workdir / "log.txt"
                    run.fail(f"its process ended early, with status {process.exitcode}; what it printed is in {log}")
                yield run
    finally:
        for _, process in running.values():
            process.terminate()  # a training saves a checkpoint first
        for _, process in running.values():
            process.join()


def _child(run: Run, share: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets ctrl-C too, ends its children by SIGTERM
    # Two processes must not train in one workdir: a sweep that is killed and restarted must not meet its children.
    pipeline.end_with_parent()
    try:
        _execute_logged(run, share)
    except Stopped as stopped:
        sys.exit(128 + stopped.number)


def _execute_logged(run: Run, share: float) -> None:
    """`execute` in a process that has `share` of the devices, with what is printed in log.txt."""
    if share < 1 and not any("CLIENT_MEM_FRACTION" in name for name in os.environ):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = f"{_GPU_MEMORY * share:.3f}"
    run.workdir.mkdir(parents=True, exist_ok=True)
    path = run.workdir / "log.txt"
    with open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:  # in any locale, any name
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            execute(run)


def on_ray(runs: Sequence[Run], *, address: str, devices: float) -> Iterator[Run]:
    """Runs as tasks of a Ray cluster whose hosts share the working directory; output goes to each run's log.txt.

    Args:
      runs: The runs.
      address: Of a running cluster, ``host:port`` or ``ray://host:port``; ``auto`` finds the one of this host.
      devices: What a run gets of one host: GPUs where the cluster has any, else TPU chips, else CPU cores. Several
        runs share a device where it is below one.

    Raises:
      UserError: Ray is not installed, there is no cluster, or none of its hosts has so many devices.
    """
    ray = _connect(address)
    try:
        needs = _needs([node["Resources"] for node in ray.nodes() if node["Alive"]], devices)
        # A worker is not used twice, so that a run leaves nothing on its devices.
        task = ray.remote(max_retries=_RETRIES, max_calls=1, **needs)(_ray_task)
        pending = {task.remote(run, os.getcwd(), devices): run for run in runs}
        while pending:
            [done], _ = ray.wait(list(pending), num_returns=1)
            run = pending.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                # Ray's text ends with the reason, in colour; before it stand the worker's traceback and address.
                reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
                run.fail(f"Ray gave up: {type(error).__name__}: {reason[-1]}")
            _wait_for(run)
            yield run
    finally:
        ray.shutdown()  # this ends the tasks that are left


def _connect(address: str):
    """The module ray, connected to a cluster."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--engine ray needs Ray, which is not installed; run python3 -m pip install 'jaxad[ray]', or leave "
            "--engine out",
            about="--engine",
        ) from error
    wanted = f"the Ray cluster at {address}" if address != "auto" else "a running Ray cluster"
    previous = signal.getsignal(signal.SIGTERM)
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        ray.init(address, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, SystemExit) as error:  # Ray exits where the cluster has just gone
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{wanted} cannot be reached ({reason}); start one with ray start --head, or name one with "
            "--ray_address=HOST:PORT"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, previous)
    return ray


def _needs(nodes: Sequence[dict[str, float]], devices: float) -> dict[str, Any]:
    """The options of a Ray task that takes `devices` of what the nodes, given by their resources, have for training."""
    most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in ("GPU", "TPU", "CPU")}
    kind = next((kind for kind, number in most.items() if number), "CPU")
    if devices > most[kind]:
        raise UserError(
            f"--devices_per_run is {devices:g}, but no host of the Ray cluster has more than {most[kind]:g} {kind}; "
            "a run takes its devices from one host",
            about="--devices_per_run",
        )
    if kind == "TPU" and devices not in (1, 2, 4, 8):
        raise UserError(
            f"--devices_per_run is {devices:g}; Ray gives a run 1, 2, 4 or 8 TPU chips", about="--devices_per_run"
        )
    options = {"GPU": {"num_gpus": devices}, "TPU": {"resources": {"TPU": devices}}, "CPU": {"num_cpus": devices}}
    return options[kind]


def _wait_for(run: Run) -> None:
    """Waits until what a run has written is seen here."""
    end = time.monotonic() + _SHARING
    while run.results() is None and run.error() is None:
        if time.monotonic() > end:
            run.fail(
                f"its task has ended, but {run.workdir} has no results on this host; all hosts must share the folder"
            )
        time.sleep(0.1)


def _ray_task(run: Run, directory: str, devices: float) -> None:
    os.chdir(directory)
    try:
        _execute_logged(run, devices)
    except Stopped:
        os._exit(1)  # the host is being taken away: for Ray a crash, so it tries again elsewhere
