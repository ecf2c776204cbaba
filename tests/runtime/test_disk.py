"""Files are replaced whole, damaged JSON is told, and a folder is locked by one process."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxad.errors import UserError
from jaxad.runtime import disk
from tests.parts import ROOT
from tests.refusals import refuses


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def no_space():
    """Files of this process cannot grow beyond 100 bytes, as on a full disk; that of pytest's own report neither."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    disk.write_json(path, [1])
    with pytest.raises(OSError, match="File too large") as told, no_space():
        disk.write_json(path, ["x" * 1000])
    assert told.value.filename == str(path)
    assert json.loads(path.read_text()) == [1] and names(tmp_path) == {"a.json"}


@pytest.mark.parametrize("at", ["body", "fsync"])
def test_what_is_interrupted_leaves_what_was_there(tmp_path, monkeypatch, at):
    disk.write_text(tmp_path / "a", "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    if at == "fsync":
        monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt), disk.replacing(tmp_path / "a") as file:
        file.write("new")
        if at == "body":
            interrupt()
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == {"a"}


def test_a_file_keeps_its_permissions_its_links_and_its_long_name(tmp_path):
    path, link = tmp_path / ("ä" * 125 + ".json"), tmp_path / "link"
    disk.write_text(path, "first")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    path.chmod(0o640)
    link.symlink_to(path.name)
    disk.write_text(link, "grün \udcff")  # a byte of a file name that is no UTF-8
    assert link.is_symlink() and path.read_bytes() == "grün ".encode() + b"\xff"
    assert path.stat().st_mode & 0o777 == 0o640


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_is_no_regular_file_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    disk.write_text(tmp_path / "pipe", "text")
    reader.join()
    assert found == ["text"] and names(tmp_path) == {"pipe"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError) as told:
        disk.write_text(tmp_path / "missing" / "a", "text")
    assert told.value.filename == str(tmp_path / "missing" / "a")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000], ids=range(5))
def test_damaged_json_is_told(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with refuses(tmp_path / "a.json", "restore it"):
        disk.read_json(tmp_path / "a.json", "restore it")


# The lock

HOLD = "import sys; from jaxad.runtime import disk\nwith disk.locked(sys.argv[1]):\n print('held', flush=True); input()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder ``W``."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "W"], cwd=ROOT, **pipes, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refusal(folder: Path) -> str | None:
    """What a second one is told, None where it gets the lock."""
    try:
        with disk.locked(folder):
            return None
    except UserError as error:
        return str(error)


@pytest.mark.medium
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_the_lock_of_another_process(tmp_path, holder, end):
    """It is named, and lets go of the lock however it ends."""
    advice = "wait until it has ended, or choose another --workdir"
    assert refusal(tmp_path / "W") == (
        f"{tmp_path / 'W'} is in use by process {holder.pid} on {socket.gethostname()}; {advice}"
    )
    assert refusal(tmp_path / "W") is not None  # being refused lets go of nothing
    if end is None:
        holder.communicate("")
    else:
        holder.send_signal(end)
        holder.wait()
    assert refusal(tmp_path / "W") is None


def in_child(folder: Path, results) -> None:
    results.put(refusal(folder))


@pytest.mark.slow
def test_the_lock_of_this_process(tmp_path):
    """Its thread may nest it; other threads and a child are refused until the outermost one has ended."""
    context, found = multiprocessing.get_context("spawn"), []

    def in_thread() -> str | None:
        thread = threading.Thread(target=lambda: found.append(refusal(tmp_path)))
        thread.start()
        thread.join()
        return found.pop()

    def in_process() -> str | None:
        results = context.SimpleQueue()
        process = context.Process(target=in_child, args=(tmp_path, results))
        process.start()
        process.join()
        return results.get()

    with disk.locked(tmp_path):
        with disk.locked(tmp_path / "." / ""):
            pass
        assert f"is in use by another thread of process {os.getpid()};" in in_thread()
        assert f"is in use by process {os.getpid()} on " in in_process()
    assert in_thread() is None and in_process() is None


@pytest.mark.medium
def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    with disk.locked(tmp_path):
        program = "import os, sys; from jaxad.runtime import disk; from tests.runtime.test_disk import refusal\n"
        program += "with disk.locked(sys.argv[1]):\n"
        program += " if not os.fork(): os._exit(refusal(sys.argv[1]) is not None)\n"
        program += " sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
        forked = subprocess.run([sys.executable, "-c", program, tmp_path / "W"], cwd=ROOT)
    assert forked.returncode == 1


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert refusal(tmp_path) is None
    assert f"{tmp_path} lies on a file system without locks" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    message = refusal(tmp_path / "file" / "W")
    assert str(tmp_path / "file" / "W") in message and "Not a directory" in message and "--workdir" in message


def test_what_a_kill_has_left_is_removed_and_nothing_else(tmp_path):
    left = disk.temporary(tmp_path / "a.json")
    left.write_text("x")
    disk.temporary(tmp_path / "a").mkdir()
    for name in (".jaxad-notes.tmp", "mine.tmp"):
        (tmp_path / name).write_text("x")
    assert refusal(tmp_path) is None
    assert names(tmp_path) == {".jaxad-notes.tmp", "mine.tmp", "lock"}
