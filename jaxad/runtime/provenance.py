"""Where a number comes from: command, code, versions and machine."""

import datetime
import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path

from jaxad.errors import UserError
from jaxad.runtime import devices, disk, processes


def command(module: str, argv: list[str] | None) -> str:
    """The command line that runs `module` with `argv` (by default this process's own arguments)."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])


def commit() -> str | None:
    """The commit of the source tree, with ``+`` when files differ from it; None outside a git checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository, which does not track it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", folder) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def collect() -> dict:
    """Commit, date, device and versions, as they are now."""
    names = ("jaxad", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless",
             "onednn-cpu-gomp")  # fmt: skip
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None  # run from a source tree that was not installed
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "device": devices.device_names(),
        "versions": {"python": sys.version.split()[0], **versions},
    }


def record(workdir: Path, command: str, **more: object) -> None:
    """Adds a row to ``provenance.json``: what makes the weights of a workdir from now on. A resumed run has several.

    Args:
      workdir: The workdir.
      command: What the user typed.
      more: What else there is to say.
    """
    if not processes.is_main_process():
        return
    rows = [*recorded(workdir), {"command": command, **more, **collect()}]
    disk.write_json(workdir / "provenance.json", rows)


def add(workdir: Path, **more: object) -> None:
    """Says more in the row that `record` wrote last."""
    if processes.is_main_process():
        *rows, last = recorded(workdir)
        disk.write_json(workdir / "provenance.json", [*rows, last | more])


def recorded(workdir: Path) -> list[dict]:
    """The rows that `record` wrote, oldest first; none where there is no such file.

    Raises:
      UserError: The file was damaged.
    """
    path = Path(workdir) / "provenance.json"
    remedy = "restore it, or move it away: results then don't say which command and commit trained the detector"
    rows = disk.read_json(path, remedy, kind=list) if path.is_file() else []
    if not all(isinstance(row, dict) and "command" in row for row in rows):
        raise UserError(f"{path} is damaged (a row of it names no command); {remedy}", about=path)
    return rows


def every(rows: list[dict], field: str) -> str | None:
    """The different values of `field` in the rows, in order, joined by commas; None where there is none."""
    return ", ".join(dict.fromkeys(str(row[field]) for row in rows if row.get(field))) or None
