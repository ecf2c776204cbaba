"""Checkpoints with Orbax: written in the background, sealed with SHA-256, read back only when the seal holds.

Several processes save and restore together; process 0 alone seals, inspects and removes. A detector, of which each of
them has a copy, is written and read by one process for itself.

A checkpoint is the directory ``<step>`` with its seal ``<step>.sha256`` beside it (the format of ``sha256sum -c``). The
seal is written last, so a directory without one is a save that was cut off; Orbax itself would restore a flipped byte
without a word. Only sealed files count: what file managers, network folders and users put beside them is let be.

A detector is replaced while others read it. So each one that is written gets a directory of its own, and one JSON file
names it and holds the seal. This file is replaced last, and only then is the directory before it removed.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from jaxad.errors import RETRAIN, UserError, first_line, other_version, refused
from jaxad.runtime import devices, disk, processes

_UNSEALED = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")  # what a save that was cut off leaves
_VERSION = re.compile(r"[0-9a-f]{32}(\.orbax-checkpoint-tmp.*)?")  # a directory of `write`
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # of file managers; the others' begin with . or @
_TRIES = 50  # to read what others replace meanwhile


class Checkpoints:
    """The checkpoints of one training run: asynchronous saves, the last `keep` kept.

    Use as a context manager; leaving it completes and seals the save under way.
    """

    def __init__(self, directory: Path, *, keep: int):
        if keep < 1:
            raise UserError(f"config.checkpoint.keep must be at least 1, not {keep}", about="checkpoint.keep")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._writer = ocp.StandardCheckpointer()
        self._pending: int | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is not None and processes.count() > 1:
            return  # a save under way would wait for processes that may be gone; all of them end
        try:
            self.settle(wait=True)
        except UserError:
            # A failed save must not hide the error that is already on its way to the user.
            if exception_type is None:
                raise
        finally:
            self._writer.close()

    def steps(self) -> list[int]:
        """The sealed steps, oldest first."""
        return sorted(int(seal.stem) for seal in self._directory.glob("*.sha256") if seal.stem.isdigit())

    def save(self, step: int, state) -> None:
        """Starts writing `state` as checkpoint `step`, replacing one of that step; returns once it is copied.

        Raises:
          UserError: This save or the one before cannot be written.
        """
        self.settle(wait=True)
        self._pending = step
        try:
            if processes.is_main_process():
                _remove(self._directory / str(step))
                self._directory.mkdir(parents=True, exist_ok=True)
            processes.barrier()
            self._writer.save(self._directory / str(step), state)
        except Exception as error:
            raise self._failure(step, error) from error

    def settle(self, *, wait: bool = False) -> None:
        """Seals the save under way if it has finished (or after waiting for it) and removes the oldest checkpoints.

        Raises:
          UserError: The save under way could not be written.
        """
        if self._pending is None or not (wait or (self._directory / str(self._pending)).exists()):
            return
        step = self._pending
        try:
            self._writer.wait_until_finished()
            if processes.is_main_process():
                seal(self._directory / str(step))
        except Exception as error:  # Orbax and TensorStore raise many types for a full disk
            raise self._failure(step, error) from error
        self._pending = None
        if processes.is_main_process():
            for old in self.steps()[: -self._keep]:
                _remove(self._directory / str(old))

    def newest(self) -> int | None:
        """The newest intact step; says which ones after it are damaged, and removes those."""
        return processes.gather(self._newest() if processes.is_main_process() else None)[0]

    def _newest(self) -> int | None:
        disk.clean(self._directory)
        for path in list(self._directory.glob("*")):
            if path.is_dir() and _UNSEALED.fullmatch(path.name) and not _seal_of(path).exists():
                disk.remove(path)
        for step in reversed(self.steps()):
            path = self._directory / str(step)
            damage = inspect(path)
            if damage is None:
                return step
            print(f"checkpoint {step} in {self._directory} is damaged ({damage}); falling back to the one before it")
            _remove(path)
        return None

    def read(self, step: int, like):
        """The state of a sealed step, with the structure, shapes and shardings of `like`.

        Raises:
          UserError: It was written by a network of other parts.
        """
        try:
            return read(self._directory / str(step), like)
        except (ValueError, KeyError, TypeError) as error:
            raise other_version(
                f"checkpoint {step} in {self._directory}",
                "it does not fit the network of this one",
                f"go back to that version, or {RETRAIN}",
                about=self._directory,
            ) from error

    def _failure(self, step: int, error: Exception) -> UserError:
        self._pending = None
        _remove(self._directory / str(step))
        kept = f"the last complete one is step {self.steps()[-1]}" if self.steps() else "there is no complete one"
        return UserError(
            f"checkpoint {step} cannot be written to {self._directory} ({_reason(error)}); {kept}",
            about=self._directory,
        )


class NoCheckpoints:
    """What takes the place of `Checkpoints` in a training that keeps none."""

    def __enter__(self) -> "NoCheckpoints":
        return self

    def __exit__(self, *error) -> None:
        pass

    def steps(self) -> list[int]:
        """None."""
        return []

    def newest(self) -> None:
        """None."""

    def save(self, step: int, state) -> None:
        """Does nothing."""

    def settle(self, *, wait: bool = False) -> None:
        """Does nothing."""


def write(pointer: Path, tree, values: dict) -> None:
    """Writes a pytree of arrays and JSON values as one: readers find what was there before, or all of it.

    Args:
      pointer: A JSON file, such as ``detector.json``; the arrays go below ``detector/``. One process writes at a time.
      tree: Nested dicts of arrays.
      values: What JSON can hold.

    Raises:
      UserError: It cannot be written; what was there before still is.
    """
    pointer = Path(pointer).absolute()
    folder, name = pointer.with_suffix(""), uuid.uuid4().hex
    try:
        with _alone() as writer:
            writer.save(folder / name, devices.to_host(tree))
            writer.wait_until_finished()
        disk.write_json(pointer, {"arrays": name, "sha256": _digests(folder / name), "values": values})
    except Exception as error:  # as above: many types for one cause
        _remove_versions(folder, keep=_named(pointer))
        raise UserError(f"{pointer} cannot be written ({_reason(error)})", about=pointer) from error
    _remove_versions(folder, keep=name)


def load(pointer: Path) -> tuple[dict, dict]:
    """Reads what `write` wrote: the pytree as nested dicts on the first device, and the values.

    Another process may replace it meanwhile; what is read is always of one `write`.

    Raises:
      FileNotFoundError: There is none.
      ValueError: It is damaged; the text says how.
      KeyError: It is whole, but another version of jaxad wrote it.
    """
    pointer = Path(pointer).absolute()
    for _ in range(_TRIES):
        content = pointer.read_bytes()
        try:
            return _load(pointer, content)
        except Exception:
            if content == pointer.read_bytes():
                raise
    raise ValueError("it is replaced faster than it can be read")


def _load(pointer: Path, content: bytes) -> tuple[dict, dict]:
    try:
        held = json.loads(content)
        path, sealed, values = pointer.with_suffix("") / str(held["arrays"]), dict(held["sha256"]), held["values"]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{pointer.name} is not what jaxad writes") from error
    if damage := _compare(path, sealed):
        raise ValueError(damage)
    tree = read(path)
    if pointer.read_bytes() != content:
        raise ValueError("it was replaced while it was read")  # and its files may have gone before they were read
    return tree, values


def _reason(error: Exception) -> str:
    """Why a save has failed: what the file system says, or the first line of Orbax's pages."""
    return refused(error) or first_line(error)


def _named(pointer: Path) -> str | None:
    """The directory that a pointer names."""
    try:
        return json.loads(pointer.read_bytes())["arrays"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_versions(folder: Path, *, keep: str | None) -> None:
    disk.clean(folder)
    for path in list(folder.glob("*")):
        if _VERSION.fullmatch(path.name) and path.name != keep:
            disk.remove(path)


def read(path: Path, like=None):
    """Reads the pytree at `path` into the structure and shardings of `like`.

    Without `like` the tree is read as nested dicts onto the first device, whatever devices it was written from.
    """
    path = Path(path).absolute()
    with _alone() if like is None else ocp.StandardCheckpointer() as reader:
        if like is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                reader.metadata(path).item_metadata.tree,
            )
        else:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return reader.restore(path, abstract)


def _alone() -> ocp.StandardCheckpointer:
    """A checkpointer that waits for no other process."""
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(own, active_processes={own}, barrier_sync_key_prefix=f"process{own}")
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def seal(path: Path) -> None:
    """Writes the SHA-256 of every file below `path` to ``<path>.sha256``."""
    lines = [f"{digest}  {path.name}/{name}\n" for name, digest in _digests(path).items()]
    disk.write_text(_seal_of(path), "".join(lines))


def inspect(path: Path) -> str | None:
    """What is wrong with a sealed directory, in words; None when every byte is as it was written."""
    if not _seal_of(path).is_file():
        return "it is missing or incomplete"
    lines = _seal_of(path).read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.split("  ", 1) for line in lines if "  " in line]
    return _compare(path, {name.removeprefix(f"{path.name}/"): digest for digest, name in pairs})


def _compare(path: Path, sealed: Mapping[str, str]) -> str | None:
    """What is wrong with a directory whose files had these digests, by name."""
    if not path.is_dir():
        return "it is missing or incomplete"
    if not sealed:
        return "its seal names no files"
    for name, digest in sealed.items():
        if not (path / name).is_file():
            return f"{path.name}/{name} is missing"
        if _digest(path / name) != digest:
            return f"{path.name}/{name} was changed"
    return None


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digests(path: Path) -> dict[str, str]:
    """The SHA-256 of every file below a directory that was just written, by name; they are on the disk afterwards."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = {file: file.relative_to(path) for file in files}
    return {name.as_posix(): _digest(file, sync=True) for file, name in names.items() if not _is_litter(name)}


def _is_litter(name: Path) -> bool:
    return any(part.startswith((".", "@")) or part.lower() in _LITTER for part in name.parts)


def _digest(file: Path, *, sync: bool = False) -> str:
    with open(file, "rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Removes a checkpoint; its seal first, so that a cut-off removal does not look complete."""
    _seal_of(path).unlink(missing_ok=True)
    disk.remove(path)
