"""A tiny data set of parts in the MVTec AD layout, and the commands run on it inside this process."""

import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxad import errors
from jaxad.data.demo import source as demo
from jaxad.runtime import devices
from jaxad.training import step as training
from jaxad.training.log import Log

ROOT = Path(__file__).resolve().parents[1]
BASELINE = f"{ROOT}/experiments/baseline_mean.py"
NSA = f"{ROOT}/experiments/nsa_logistic.py"

HEIGHT, WIDTH = 48, 40  # unlike each other and unlike the size that the detector sees
SIZE = 32
SPOT = (slice(30, 36), slice(9, 15))  # where defective parts are bright, in pixels of the image


def part(number: int, *, spot: bool = False) -> np.ndarray:
    """A noisy grey part, uint8 (HEIGHT, WIDTH, 3), another one for each number."""
    image = np.random.default_rng(number).integers(90, 110, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    if spot:
        image[SPOT] = 255
    return image


def write(path: Path, image: np.ndarray) -> Path:
    """Writes an image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def write_parts(root: Path, *, train: int = 6) -> Path:
    """Writes the category ``nut`` below `root`: training parts, two good and three spotted test parts with masks."""
    for number in range(train):
        write(root / "nut" / "train" / "good" / f"{number:03d}.png", part(number))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[SPOT] = 255
    for number in range(3):
        write(root / "nut" / "test" / "spot" / f"{number:03d}.png", part(100 + number, spot=True))
        write(root / "nut" / "ground_truth" / "spot" / f"{number:03d}_mask.png", mask)
    for number in range(2):
        write(root / "nut" / "test" / "good" / f"{number:03d}.png", part(200 + number))
    return root


def write_fabric(folder: Path, *, count: int, seed: int = 0) -> Path:
    """Writes so many good images of the demo's fabric, of 64 pixels, into a folder."""
    for number, record in enumerate(demo.load("fabric", size=64, train=count, seed=seed).train):
        write(folder / f"{number:02d}.png", record.image)
    return folder


def baseline(root: Path, workdir: Path, **overrides) -> list[str]:
    """Arguments that fit the baseline to the parts; overrides name keys with ``__`` for the dot."""
    given = {"data__root": root, "data__size": SIZE, "score__sigma": 1.0} | overrides
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    return ["--config", f"{BASELINE}:nut", "--workdir", str(workdir), *flags]


def one_step(step, mesh, *, seed: int = 0):
    """A training step compiled for a mesh, of single batches: ``(state, batch) -> (state, metrics)``."""
    compiled = devices.compile_train_steps(step, mesh)
    shared = training.Shared(devices.replicate(np.uint32(seed), mesh), None)
    # Jitted, so that tests can forbid transfers.
    as_first = jax.jit(lambda tree: jax.tree.map(lambda rows: rows[None], tree))
    first = jax.jit(lambda tree: jax.tree.map(lambda rows: rows[0], tree))

    def call(state, batch):
        state, metrics = compiled(state, as_first(batch), shared)
        return state, first(metrics)

    return call


def command(main, *arguments) -> int:
    """Runs a command as ``python -m`` does; returns its exit status."""
    try:
        errors.run(lambda: main([str(argument) for argument in arguments]))
    except SystemExit as status:
        return status.code
    return 0


def refusal(capsys, main, *arguments) -> str:
    """Runs a command that must be refused with exit status 2 and one sentence, which is returned."""
    capsys.readouterr()
    status = command(main, *arguments)
    printed = capsys.readouterr()
    return sentence(status, printed.err, printed.out)


def sentence(status: int, stderr: str, stdout: str = "") -> str:
    """The one sentence that a refused command has printed, without its prefix."""
    assert status == 2, (status, stdout, stderr)
    assert "Traceback" not in stderr + stdout
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and stderr.rstrip().endswith(lines[0]), stderr
    return lines[0].removeprefix("error: ")


def interrupt(monkeypatch, step: int, act) -> None:
    """Calls `act` when that step's metrics are logged."""
    add = Log.add

    def watching(self, number, metrics):
        add(self, number, metrics)
        if number == step:
            act()

    monkeypatch.setattr(Log, "add", watching)


def interrupted(monkeypatch, step: int, run, number: signal.Signals = signal.SIGTERM) -> None:
    """Checks that `run` is stopped by a signal that comes when that step is logged."""
    with monkeypatch.context() as patch, pytest.raises(errors.Stopped, match="the same command resumes there") as told:
        interrupt(patch, step, lambda: os.kill(os.getpid(), number))
        run()
    assert told.value.number == number
