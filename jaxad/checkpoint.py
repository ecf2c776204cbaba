"""Checkpoints with Orbax: written in the background, sealed with SHA-256, read back only when the seal holds.

Several processes save and restore together; process 0 alone seals, inspects and removes. A detector, of which each of
them has a copy, is written and read by one process for itself.

A checkpoint is the directory ``<step>`` with its seal ``<step>.sha256`` beside it (the format of ``sha256sum -c``). The
seal is written last, so a directory without one is a save that was cut off; Orbax itself would restore a flipped byte
without a word.
"""

import hashlib
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from jaxad import hosts, parallel
from jaxad.errors import UserError, first_line


class Checkpoints:
    """The checkpoints of one training run: asynchronous saves, the last `keep` kept.

    Use as a context manager; leaving it completes and seals the save under way.
    """

    def __init__(self, directory: Path, *, keep: int):
        if keep < 1:
            raise UserError(f"config.checkpoint.keep must be at least 1, not {keep}")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._writer = ocp.StandardCheckpointer()
        self._pending: int | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is not None and hosts.count() > 1:
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
            if hosts.lead():
                _remove(self._directory / str(step))
                self._directory.mkdir(parents=True, exist_ok=True)
            hosts.wait()
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
            if hosts.lead():
                seal(self._directory / str(step))
        except Exception as error:  # Orbax and TensorStore raise many types for a full disk
            raise self._failure(step, error) from error
        self._pending = None
        if hosts.lead():
            for old in self.steps()[: -self._keep]:
                _remove(self._directory / str(old))

    def restore(self, like) -> tuple[int, object] | None:
        """Reads the newest intact checkpoint; says which newer ones were passed over, and removes those.

        Args:
          like: A pytree of arrays with the structure, shapes and shardings to restore to.

        Returns:
          Its step and state, or None where there is no checkpoint to start from.
        """
        step = self.newest()
        return None if step is None else (step, self.read(step, like))

    def newest(self, *, last: int | None = None) -> int | None:
        """The newest intact step, up to `last`; says which ones after it are damaged, and removes those."""
        return hosts.gather(self._newest(last) if hosts.lead() else None)[0]

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints after a step from which the training goes on, or its start, 0."""
        if hosts.lead():
            for later in [found for found in self.steps() if found > step]:
                _remove(self._directory / str(later))

    def _newest(self, last: int | None) -> int | None:
        # A save that was cut off leaves a directory that was never sealed.
        unsealed = [p for p in self._directory.glob("*") if p.is_dir() and not p.with_name(f"{p.name}.sha256").exists()]
        for path in unsealed:
            shutil.rmtree(path)
        for step in reversed([step for step in self.steps() if last is None or step <= last]):
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
            raise UserError(
                f"checkpoint {step} in {self._directory} does not fit the network of this code; "
                "go back to the code that wrote it, or choose another --workdir"
            ) from error

    def _failure(self, step: int, error: Exception) -> UserError:
        self._pending = None
        _remove(self._directory / str(step))
        kept = f"the last complete one is step {self.steps()[-1]}" if self.steps() else "there is no complete one"
        return UserError(f"checkpoint {step} cannot be written to {self._directory} ({first_line(error)}); {kept}")


def write(path: Path, tree) -> None:
    """Writes and seals a pytree at `path`, replacing what is there.

    Raises:
      UserError: It cannot be written.
    """
    path = Path(path).absolute()
    try:
        _remove(path)
        for cut_off in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):  # of a process that was killed
            shutil.rmtree(cut_off)
        with _alone() as writer:
            writer.save(path, parallel.to_host(tree))
            writer.wait_until_finished()
        seal(path)
    except Exception as error:  # as above: many types for one cause
        raise UserError(f"{path} cannot be written ({first_line(error)})") from error


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
    lines = [f"{_digest(file)}  {file.relative_to(path.parent)}\n" for file in _files(path)]
    temporary = path.with_name(f"{path.name}.seal-tmp")
    temporary.write_text("".join(lines))
    temporary.replace(path.with_name(f"{path.name}.sha256"))


def inspect(path: Path) -> str | None:
    """What is wrong with a sealed directory, in words; None when every byte is as it was written."""
    seal_file = path.with_name(f"{path.name}.sha256")
    if not path.is_dir() or not seal_file.is_file():
        return "it is missing or incomplete"
    sealed = dict(reversed(line.split("  ", 1)) for line in seal_file.read_text().splitlines() if "  " in line)
    present = {str(file.relative_to(path.parent)): file for file in _files(path)}
    if missing := sealed.keys() - present.keys():
        return f"{sorted(missing)[0]} is missing"
    if not sealed or present.keys() - sealed.keys():
        return "its seal does not cover its files"
    changed = [name for name, file in present.items() if _digest(file) != sealed[name]]
    return f"{changed[0]} was changed" if changed else None


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Removes a checkpoint; its seal first, so that a cut-off removal does not look complete."""
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
