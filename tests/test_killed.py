"""Training in processes of its own that are killed: the same command ends with exactly the same parameters."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxad.runtime import checkpoint
from jaxad.training.log import read_history
from tests.parts import NSA, ROOT, write_fabric

pytestmark = pytest.mark.medium

KILLS = 5
DEADLINE = 600  # seconds; a run that hangs must not hang the suite
# The small network by default; the encoder-decoder through the real command takes minutes on two busy cores.
PROGRAMS = ["tests.tiny", pytest.param("jaxad.train", marks=pytest.mark.slow)]


class Runs:
    """Training commands of one program, which differ in their workdir alone: 12 images, one CPU device.

    Attributes:
      folder: Where the workdirs and logs lie.
      every: Steps between checkpoints.
      steps: Steps of a whole run; one of the images is held out, so six are an epoch.
    """

    def __init__(self, program: str, folder: Path):
        small = program == "tests.tiny"
        self.folder, self.every = folder, 4 if small else 2
        epochs = 24 if small else 6
        self.steps = 6 * epochs
        write_fabric(folder / "parts" / "train" / "good", count=12)
        overrides = {"data.root": folder / "parts", "data.size": 64, "view.crop": 64, "batch": 2, "epochs": epochs}
        overrides |= {"log_every": 1, "checkpoint.every_steps": self.every, "checkpoint.keep": 2, "evaluate.batch": 2}
        overrides |= {"method": "tiny" if small else "nsa"}
        self.command = [sys.executable, "-m", program, "--config", f"{NSA}:texture"]
        self.command += [f"--config.{key}={value}" for key, value in overrides.items()]
        one_device = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        self.environment = os.environ | one_device | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
        self.environment["PYTHONPATH"] = str(ROOT)

    def start(self, workdir: str) -> subprocess.Popen:
        """Starts the command; its output is appended to a file beside the workdir."""
        with open(self.folder / f"{workdir}.log", "a") as log:
            return subprocess.Popen(
                [*self.command, "--workdir", str(self.folder / workdir)],
                cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def log(self, workdir: str) -> str:
        return (self.folder / f"{workdir}.log").read_text()

    def finish(self, workdir: str) -> None:
        """Runs the command to its end, which must be a good one."""
        assert self.start(workdir).wait(DEADLINE) == 0, self.log(workdir)

    def interrupt(self, workdir: str, *, step: int, delay: float, number: signal.Signals) -> int:
        """Starts the command and sends a signal `delay` seconds after it has logged `step`; returns its exit status."""
        process = self.start(workdir)
        try:
            end = time.monotonic() + DEADLINE
            while self.reached(workdir) < step:
                assert process.poll() is None and time.monotonic() < end, self.log(workdir)
                time.sleep(0.005)
            time.sleep(delay)
            process.send_signal(number)
            return process.wait(DEADLINE)
        finally:
            process.kill()
            process.wait()

    def reached(self, workdir: str) -> int:
        """The last step in the workdir's metrics, 0 without any."""
        rows = read_history(self.folder / workdir)
        return rows[-1]["step"] if rows else 0

    def result(self, workdir: str):
        """The detector's variables and threshold as they lie on disk."""
        return jax.device_get(checkpoint.load(self.folder / workdir / "detector.json"))

    def assert_same(self, workdir: str, expected: str) -> None:
        jax.tree.map(np.testing.assert_array_equal, self.result(workdir), self.result(expected))
        histories = [read_history(self.folder / name) for name in (workdir, expected)]
        found, rows = ([row for row in history if "loss" in row] for history in histories)
        assert [row["step"] for row in found] == list(range(1, self.steps + 1))
        assert [row["loss"] for row in found] == [row["loss"] for row in rows]


@pytest.fixture(scope="module", params=PROGRAMS)
def runs(request, tmp_path_factory) -> Runs:
    """The runs of a program, of which ``complete`` was not interrupted."""
    runs = Runs(request.param, tmp_path_factory.mktemp("runs"))
    runs.finish("complete")
    return runs


@pytest.mark.slow
def test_sigkill_at_random_steps_changes_nothing(runs) -> None:
    rng = np.random.default_rng()
    for _ in range(KILLS):
        # Past the last kill by at least one checkpoint, at any moment of a step or of a save.
        step = runs.reached("killed") + int(rng.integers(runs.every, 3 * runs.every))
        status = runs.interrupt("killed", step=step, delay=rng.uniform(0, 0.03), number=signal.SIGKILL)
        assert status == -signal.SIGKILL, (step, runs.log("killed"))
        assert not (runs.folder / "killed" / "detector.json").exists()
    runs.finish("killed")
    # On a busy machine several kills may come before the first checkpoint is complete.
    assert "resuming at step" in runs.log("killed")
    runs.assert_same("killed", "complete")


@pytest.mark.slow
def test_two_trainings_in_one_workdir(runs) -> None:
    """The second is refused, whenever it comes, and the first is not disturbed."""
    first = runs.start("shared")
    while runs.reached("shared") < 5:
        assert first.poll() is None, runs.log("shared")
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)  # for as long as the second takes to start
    with open(runs.folder / "second.log", "w") as log:
        where = {"cwd": runs.folder, "env": runs.environment}
        second = subprocess.run([*runs.command, "--workdir", "shared"], **where, stderr=log)
    first.send_signal(signal.SIGCONT)
    assert first.wait(DEADLINE) == 0, runs.log("shared")
    [sentence] = (runs.folder / "second.log").read_text().splitlines()
    assert second.returncode == 2
    assert sentence.startswith(f"error: shared is in use by process {first.pid} on {socket.gethostname()}; wait until")
    runs.assert_same("shared", "complete")


STUCK = """
import time
from jaxad.runtime import stopping
with stopping.deferred() as asked:
    print("ready", flush=True)
    time.sleep(600)  # a step that takes long
"""


def test_a_second_interrupt_ends_at_once() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STUCK], cwd=ROOT, **pipes, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline().startswith("stopping after the step under way, whose state is saved; Ctrl-C")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "what was not saved is lost" in process.stderr.read()


DROPPED = """
import os, signal, time, weakref
from jaxad import errors
class Thing: pass
def main():
    thing = Thing()
    weakref.finalize(thing, lambda: None)
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    time.sleep(60)
errors.run(main)
"""


def test_an_interrupt_during_a_finalizer_is_not_dropped() -> None:
    result = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


@pytest.mark.medium
@pytest.mark.parametrize("later", [0.0, 0.2, 0.5, 1.0])
def test_an_interrupt_while_a_command_imports_ends_it(tmp_path, later) -> None:
    """From the first library of JAX on, whose callbacks drop exceptions; the command itself would wait for long."""
    (tmp_path / "slow.py").write_text("import time\ndef get_config():\n    time.sleep(600)\n")
    given = [sys.executable, "-m", "jaxad.train", "--config", str(tmp_path / "slow.py")]
    with subprocess.Popen(given, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        time.sleep(later)
        process.send_signal(signal.SIGINT)
        assert (process.stderr.read(), process.wait()) == ("interrupted\n", 130)


@pytest.mark.medium
@pytest.mark.parametrize("command", [["jaxad.train"], ["jaxad.predict"], ["jaxad.sweep"], ["jaxad", "train"]], ids=str)
@pytest.mark.parametrize("module", ["argparse", "numpy", "jax", "jaxad.config"])
def test_an_interrupt_at_the_import_of_a_module_ends_the_command(tmp_path, command, module) -> None:
    """From the first module on that a command imports."""
    (tmp_path / "sitecustomize.py").write_text(f"""if True:
        import os, signal, sys

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r} and "jaxad" in sys.modules:
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Finder())
    """)
    more = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    given = [sys.executable, "-m", *command, "--help"]
    done = subprocess.run(given, env=os.environ | more, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_program_that_imports_jaxad_keeps_its_interrupt(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import jaxad\n")
    (tmp_path / "mine" / "score.py").write_text(
        "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    more = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    given = [sys.executable, "-m", "mine.score"]
    done = subprocess.run(given, env=os.environ | more, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("message, told", [("Event loop is closed", False), ("something else", True)])
def test_a_closed_event_loop_of_a_failed_save_is_not_told(message, told) -> None:
    program = f"""if True:
        from jaxad import errors
        class Thing:
            def __del__(self):
                raise RuntimeError({message!r})
        errors.run(lambda: Thing() and None)
    """
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert result.returncode == 0 and (message in result.stderr) == told


@pytest.mark.parametrize(
    "error, told",
    [
        ('OSError(28, "refused")', False),
        ('ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")', False),
        ('OSError(9, "refused")', True),
        ('ValueError("the shape is wrong")', True),
    ],
)
def test_writes_that_fail_beside_the_one_that_ends_a_command_are_not_told(error, told) -> None:
    """Of a full disk the sentence says enough, also in TensorStore's words; another error of a task is a fault."""
    program = f"""if True:
        import asyncio, gc
        from jaxad import errors

        async def write():
            raise {error}

        async def save():
            for _ in range(3):
                asyncio.create_task(write())
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        def main():
            kept = write()  # which is never awaited
            asyncio.run(save())
            gc.collect()
            raise OSError(28, "No space left on device")

        errors.run(main)
    """
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    *more, sentence = result.stderr.splitlines()
    assert result.returncode == 2
    assert sentence == "error: No space left on device; free some space and run the same command again"
    assert ("Task exception was never retrieved" in result.stderr) == told and bool(more) == told


@pytest.mark.medium
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_resumes(runs, number, status) -> None:
    workdir = f"stopped{status}"
    assert runs.interrupt(workdir, step=7, delay=0, number=number) == status, runs.log(workdir)
    assert "the same command resumes there" in runs.log(workdir) and "Traceback" not in runs.log(workdir)
    runs.finish(workdir)
    assert "resuming at step" in runs.log(workdir)
    runs.assert_same(workdir, "complete")
