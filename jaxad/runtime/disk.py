"""Files that are replaced whole, JSON that says when it is damaged, and the lock of a folder.

A kill or a full disk leaves the old file or the new one, never a part of one. Text is UTF-8; bytes of file names that
are no UTF-8 are written as they are.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxad.errors import UserError, first_line

LOCK = "lock"  # the file of a folder that the lock is on; it names the process that holds it
# The threads that hold a folder's lock, by process (a forked one holds none) and folder.
_HELD: dict[tuple[int, Path], int] = {}
_GUARD = threading.Lock()  # of the dict
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def temporary(path: Path) -> Path:
    """A new name beside `path` for what is not complete yet, or no more; `clean` removes it after a kill."""
    return path.with_name(f".jaxad-{uuid.uuid4().hex}.tmp")


def clean(folder: Path) -> None:
    """Removes what killed processes left in a folder under names of `temporary`; nobody else may write there now."""
    for path in folder.glob(".jaxad-*.tmp"):
        if re.fullmatch(r"\.jaxad-[0-9a-f]{32}\.tmp", path.name):
            remove(path)


def remove(path: Path) -> None:
    """Removes a file or a directory. Of a directory nothing is seen any more, even where a part of it stays.

    On a network folder the files that another process has open stay, as ``.nfs*``.
    """
    if path.is_dir() and not path.is_symlink():
        aside = path if path.name.startswith(".jaxad-") else path.rename(temporary(path))
        shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "w", *, newline: str | None = None) -> Iterator[IO]:
    """Opens a file whose content takes the place of `path` when the body ends well; otherwise `path` stays as it is.

    What is no regular file, such as ``/dev/stdout``, is written to directly.

    Args:
      path: The file to write; its folder must be there.
      mode: ``w`` for text, ``wb`` for bytes.
      newline: As `open` takes it.

    Raises:
      OSError: It cannot be written, or the body raised one; the error names `path`.
    """
    given, path = path, Path(os.path.realpath(path))  # of a link, what it points to is replaced
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": newline}
    try:
        if path.exists() and not path.is_file():
            with open(path, mode, **text) as file:
                yield file
            return
        unfinished = temporary(path)
        try:
            with open(unfinished, mode.replace("w", "x"), **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                with contextlib.suppress(OSError):  # some network folders have no permissions to set
                    shutil.copymode(path, unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(given), None
        raise


def refuse_nul(path: str | Path) -> None:
    """Refuses a path with a NUL character, of which the system's calls raise a bare ValueError.

    Raises:
      UserError: It holds one.
    """
    if "\0" in os.fspath(path):
        raise UserError(
            f"the path {os.fspath(path)!r} holds a NUL character, which no name can have; check the path",
            about=os.fspath(path),
        )


def refuse_undecodable(folder: str | Path) -> None:
    """Refuses a workdir that Orbax cannot write to or read: it takes names of UTF-8 alone.

    Raises:
      UserError: A name on the way to it is no UTF-8, or holds a NUL character.
    """
    refuse_nul(folder)
    path = os.path.abspath(folder)
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the workdir {escaped(path)} has a name that is no UTF-8, which checkpoints cannot have; rename it, or "
            "choose another --workdir",
            about=path,
        ) from error


def escaped(text: str) -> str:
    """Text that may hold names of files, as valid UTF-8: ``\\xNN`` is a byte that is none, ``\\\\`` a backslash.

    So different names stay different, and `text` can be had back.
    """
    return text.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sync(folder: Path) -> None:
    """Brings the names of a folder's files to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file of text as `replacing` does."""
    with replacing(path) as file:
        file.write(text)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file of bytes as `replacing` does."""
    with replacing(path, "wb") as file:
        file.write(content)


def write_json(path: str | Path, values: Any) -> None:
    """Writes a file of JSON as `replacing` does."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def read_json(path: str | Path, remedy: str, *, kind: type = dict) -> Any:
    """Reads a file of JSON.

    Args:
      path: The file.
      remedy: What the user can do when it is damaged, for the sentence.
      kind: What it must hold.

    Raises:
      UserError: It is no JSON, or holds something else.
      OSError: It is not there, or cannot be read.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); {remedy}", about=path) from error
    if not isinstance(values, kind):
        raise UserError(
            f"{path} is damaged (it holds no JSON {'object' if kind is dict else kind.__name__}); {remedy}", about=path
        )
    return values


@contextlib.contextmanager
def locked(folder: str | Path, *, option: str = "--workdir") -> Iterator[None]:
    """While active, no other process works in a folder, which is made where it is missing. A thread may nest it.

    The system lets go of the lock when the process ends, however it ends. It is a POSIX lock, which network folders
    pass on to other hosts. Where a file system has no locks a line says so.

    Args:
      folder: The folder.
      option: By which option the user names it.

    Raises:
      UserError: Another process, or another thread of this one, works there, which the sentence names; or the folder
        cannot be written.
    """
    refuse_nul(folder)
    folder, thread = Path(folder), threading.get_ident()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.getpid(), folder.resolve()
        with _GUARD:
            owner = _HELD.get(held)
            if owner is None:
                file = _lock(folder, option)
                _HELD[held] = thread
    except OSError as error:
        raise UserError(
            f"folder {folder} cannot be written: {error.strerror}; choose another {option}", about=folder
        ) from error
    if owner == thread:
        yield
        return
    if owner is not None:
        raise _in_use(folder, f"another thread of process {os.getpid()}", option)
    try:
        clean(folder)
        yield
    finally:
        with _GUARD:
            del _HELD[held]
            file.close()


def _lock(folder: Path, option: str) -> IO:
    """The file of a folder's lock, locked; closing it, or any other descriptor of it in this process, unlocks it."""
    file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (open for as long as the lock is held)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise _in_use(folder, holder or "another process", option) from error
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        print(f"{folder} lies on a file system without locks; start nothing else there before this command has ended")
    return file


def _in_use(folder: Path, holder: str, option: str) -> UserError:
    return UserError(
        f"{folder} is in use by {holder}; wait until it has ended, or choose another {option}", about=folder
    )
