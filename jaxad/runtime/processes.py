"""Several processes, such as those on the hosts of a TPU pod, that run one command together.

Each is started with the same command on files that all of them share, and works on its part; process 0 alone prints and
writes. Where one fails, all end. A single process, the usual case, passes through here untouched.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxad import errors
from jaxad.errors import Stopped, UserError

_JOIN_S = 120  # for all processes to be there; the runtime's own end of patience is an abort without a sentence
_HEARTBEAT_S = 60  # until a host that fell silent counts as lost; a process that ends is noticed at once on CPU
_NOTICE_S = 2  # for the reason of a failure to reach the other processes
_NONE = "none"  # the reason for the failure of a command that has not failed
_PIECE = 2**24  # bytes of a process that are gathered at a time
_LOST = ("Gloo", "UNAVAILABLE", "NCCL", "heartbeat", "Socket closed", "coordination service")

_ending = threading.Lock()  # held by the thread that ends the process
_commands = 0  # that were joined so far; the same number in all processes


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which processes run the command together; the environment gives their defaults."""
    group = parser.add_argument_group(
        "several processes",
        "the same command in each of them, with another --process_id; on the hosts of a TPU pod nothing is needed. "
        "Defaults: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID",
    )
    given = os.environ.get
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", default=given("JAX_COORDINATOR_ADDRESS"), help="process 0, a free port"
    )
    group.add_argument(
        "--processes", type=int, metavar="N", default=given("JAX_NUM_PROCESSES"), help="how many; 1: this one, alone"
    )
    group.add_argument("--process_id", type=int, metavar="K", default=given("JAX_PROCESS_ID"), help="0 to N - 1")


def count() -> int:
    """How many processes work together."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def local_slice(rows: int) -> slice:
    """This process's part of so many rows: contiguous, in the processes' order, empty where there are too few."""
    return slice(rows * jax.process_index() // count(), rows * (jax.process_index() + 1) // count())


def gather(value: Any) -> list:
    """The values of all processes, in their order; every process must call it.

    A value is an array, None, a boolean, a number, text, or a list, tuple or dict of values. What is no array travels
    as JSON; of a named tuple a plain one arrives.
    """
    if count() == 1:
        return [value]
    text = np.frombuffer(_packed(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(divmod(len(text), _PIECE), np.int32))
    lengths = [pieces * _PIECE + rest for pieces, rest in sizes.tolist()]
    step = min(_PIECE, 1 << max(lengths).bit_length())  # few different sizes, since each is compiled
    filled = np.zeros(-(-max(lengths) // step) * step, np.uint8)
    filled[: len(text)] = text
    pieces = [multihost_utils.process_allgather(filled[at : at + step]) for at in range(0, len(filled), step)]
    rows = np.concatenate(pieces, axis=1)
    return [_unpacked(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def _packed(value: Any) -> bytes:
    """A value of `gather` as bytes: a line of JSON, and behind it the arrays that it names by dtype and shape."""
    arrays = []

    def plain(part):
        if isinstance(part, np.ndarray | np.generic | jax.Array):
            array = np.asarray(part)
            if array.dtype.kind in "OV":
                raise TypeError(f"an array of {array.dtype} cannot be gathered")
            arrays.append(array.tobytes())
            return {"array": [array.dtype.str, array.shape]}
        if isinstance(part, tuple):
            return {"tuple": [plain(member) for member in part]}
        if isinstance(part, list):
            return [plain(member) for member in part]
        if isinstance(part, dict):
            return {"dict": [[plain(key), plain(member)] for key, member in part.items()]}
        return part

    return b"\n".join([json.dumps(plain(value)).encode("ascii"), b"".join(arrays)])


def _unpacked(content: bytes) -> Any:
    line, _, arrays = content.partition(b"\n")
    stream = io.BytesIO(arrays)

    def made(part):
        if isinstance(part, list):
            return [made(member) for member in part]
        if not isinstance(part, dict):
            return part
        [(kind, held)] = part.items()
        if kind == "array":
            dtype, shape = np.dtype(held[0]), tuple(held[1])
            return np.frombuffer(stream.read(dtype.itemsize * math.prod(shape)), dtype).reshape(shape).copy()
        return tuple(map(made, held)) if kind == "tuple" else {made(key): made(member) for key, member in held}

    return made(json.loads(line))


def barrier() -> None:
    """Returns when every process has come here."""
    gather(None)


def assert_equal_across_processes(what: str, value: Any) -> None:
    """Refuses processes that have different values; `what` names them in the sentence."""
    first, *others = gather(value)
    for process, other in enumerate(others, start=1):
        if other != first:
            raise UserError(
                f"{what} of process {process} is not that of process 0; "
                "start every process with the same command, on the same code and files"
            )


@contextlib.contextmanager
def run_distributed(
    flags: argparse.Namespace, overrides: dict[str, str] | None = None, *, resumes: bool = False
) -> Iterator:
    """Runs the body of a command together with the other processes, if the flags of `add_flags` name any.

    Where the body fails in one process, each prints a sentence with the reason, as far as it is known, and ends with
    a status other than 0. The runtime would abort without one, so the end is an immediate one: nothing after the body
    is run. Where process 0 is killed, the runtime may be faster than the sentence, with words of its own.

    Args:
      flags: The command's, which must be the same everywhere but for ``process_id``.
      overrides: What else was typed.
      resumes: The body looks for SIGTERM by itself (see `sigterm`). Otherwise it ends the process.

    Raises:
      UserError: The flags are inconsistent.
    """
    several = _start(flags) and count() > 1
    if not (several and resumes) and jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the runtime's handler only takes note of it
    if not several:
        yield
        return
    global _commands
    _commands += 1
    stopped = None
    watch = threading.Thread(target=_watch, args=(_reasons(),), daemon=True)
    watch.start()
    try:
        with (
            open(os.devnull, "w", errors="backslashreplace") as nowhere,
            contextlib.redirect_stdout(sys.stdout if is_main_process() else nowhere),
        ):
            _check_devices()
            typed = {name: value for name, value in vars(flags).items() if name != "process_id"}
            assert_equal_across_processes("the command line", typed | (overrides or {}))
            try:
                yield
            except Stopped as error:  # in all processes together, each of which ends by itself
                stopped = error
            barrier()
            if is_main_process():
                _runtime().client.key_value_set(_reasons(), _NONE)
            watch.join()  # a thread inside the runtime would not survive the end of the interpreter
            barrier()
    except BaseException as error:
        _fail(error)
    if stopped:
        raise stopped


def sigterm(call: int) -> bool:
    """Whether the processes stop after this call, since SIGTERM came to one of them; the answer is the same in all.

    Args:
      call: Counts the calls of this function, of which all processes make the same ones.
    """
    return multihost_utils.reached_preemption_sync_point(call)


def _start(flags: argparse.Namespace) -> bool:
    """Connects the processes, before JAX is used; says whether there are such, be it one."""
    if jax.distributed.is_initialized():  # by an earlier command of this process
        return True
    address, processes, process = values = flags.coordinator, flags.processes, flags.process_id
    if processes == 1:
        return False
    named = [value is not None for value in values]
    if any(named) and not all(named):
        raise UserError(
            "--coordinator, --processes and --process_id (or their variables) must be given together",
            about="--coordinator",
        )
    if any(named):
        if not 0 <= process < processes:
            raise UserError(
                f"--process_id is {process}; it must lie in 0 to {processes - 1} for --processes {processes}",
                about="--process_id",
            )
        _check_port(address, lead=process == 0)
    elif not _on_tpu_vm():
        return False
    _runtime()  # refuses a release of JAX without it while nothing waits yet
    told = f"not all processes are at {address}" if address else "the hosts of this TPU were not found"
    advice = "start every process with the same --coordinator and --processes and a --process_id of its own"
    advice += "" if address else ", or this one alone with --processes 1"
    late = threading.Timer(_JOIN_S, _end, (f"{told} after {_JOIN_S} s; {advice}", 2), {"tell": False})
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(address, processes, process, heartbeat_timeout_seconds=_HEARTBEAT_S)
    except Exception as error:  # what the metadata of a cloud can do is not known
        raise UserError(f"{told} ({errors.first_line(error)}); {advice}") from error
    finally:
        late.cancel()
    return True


def _on_tpu_vm() -> bool:
    if importlib.util.find_spec("libtpu") is None:
        return False
    with _within_jax("whether this is a TPU VM", "--processes 1, or all of --coordinator, --processes, --process_id"):
        from jax._src import cloud_tpu_init  # no public module tells

        on_vm = cloud_tpu_init.running_in_cloud_tpu_vm
    return on_vm and "tpu" in (jax.config.jax_platforms or "")


def _runtime():
    """What JAX knows of the connected processes, with the store of keys and values that they share."""
    with _within_jax("how to reach the other processes", "--processes 1"):
        from jax._src import distributed  # no public module gives access to the store

        state = distributed.global_state
        _ = state.client, state.process_id
    return state


@contextlib.contextmanager
def _within_jax(what: str, instead: str) -> Iterator[None]:
    """Turns the absence of something in JAX's private modules, which any release may change, into a sentence."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"jax {jax.__version__} does not tell {what} ({errors.first_line(error)}); give {instead}, or install a "
            "release of jax that jaxad's pyproject.toml names"
        ) from error


def _check_port(address: str, *, lead: bool) -> None:
    """Refuses a malformed address, or one at which process 0 cannot listen: the runtime would crash on it."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator is {address!r}; it must be HOST:PORT of process 0", about="--coordinator")
    if lead:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} ({error}); choose another --coordinator"
            ) from error


def _check_devices() -> None:
    """Refuses processes with different numbers of devices."""
    numbers = [sum(device.process_index == process for device in jax.devices()) for process in range(count())]
    if len(set(numbers)) > 1:
        raise UserError(f"the processes have {numbers} devices; each must have the same number of them")


def _reasons() -> str:
    """The key under which the first process to fail says why, and process 0 that none has."""
    return f"jaxad/{_commands}/failed"


def _watch(key: str) -> None:
    """Ends this process when another one says that it has failed, or when process 0 has gone."""
    reason = None
    while reason is None:
        try:
            reason = _runtime().client.blocking_key_value_get(key, 3_600_000)
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                reason = f"process 0 has ended ({errors.first_line(error)})"
    if reason != _NONE:
        _end(f"{reason}; this process ends with it", 1, tell=False)


def _fail(error: BaseException) -> None:
    """Says why this process fails, here and to the others, and ends it."""
    lost = _lost(error)
    if lost:
        time.sleep(_NOTICE_S)  # the lost process may have said why
    known = errors.user_message(error)
    if lost:
        sentence = f"another process has ended or cannot be reached ({lost}); start the same command again in all"
        status = 1
    elif known:
        sentence, status = known
    else:
        traceback.print_exception(error)
        sentence, status = traceback.format_exception_only(error)[-1].strip(), 1
    _end(sentence, status)


def _lost(error: BaseException | None) -> str | None:
    """The first line of an error by which the runtime tells that a process is gone, itself or as a cause."""
    while error is not None:
        if isinstance(error, ValueError | RuntimeError) and any(word in str(error) for word in _LOST):
            return errors.first_line(error)
        error = error.__cause__
    return None


def _end(sentence: str, status: int, *, tell: bool = True) -> None:
    """Prints a sentence, may tell it to the others, and ends the process; the first thread that comes here does."""
    with _ending:
        sys.stdout.flush()
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        runtime = _runtime()
        if runtime.client is not None:
            if tell:
                with contextlib.suppress(Exception):  # another one has said why already, or process 0 is gone
                    runtime.client.key_value_set(_reasons(), f"process {runtime.process_id} has failed: {sentence}")
            if runtime.process_id == 0:
                time.sleep(_NOTICE_S)  # with this process the others lose where they read it
        os._exit(status)
