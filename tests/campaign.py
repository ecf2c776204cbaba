"""Kills, full disks and loads beside retrainings, in numbers: ``python -m tests.campaign``.

Each part asserts that nothing was lost and nothing is there twice, that no command printed a traceback, and that the
detector, the metrics of every step and the scores of every test image are, to the bit, those of an undisturbed run. It
prints one line of counts for each part. Full disks are small file systems in memory, which take the right to mount.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxad.data.demo import source as demo
from jaxad.runtime import checkpoint
from jaxad.training.log import read_history
from tests.parts import NSA, ROOT, write, write_fabric

DEADLINE = 300  # seconds; a command that hangs is a failure
STEPS, EVERY, TEST = 60, 4, 24  # of the training; between checkpoints; test images
NEW = 300  # images to predict
LOAD = """
import sys, jax, numpy as np, jaxad
workdir, count, kinds = sys.argv[1], int(sys.argv[2]), {}
for made in range(count):
    print(made, flush=True)
    found = jaxad.load(workdir)
    # Each retraining has another threshold, range and set of weights; they must be of one and the same.
    number = round(found.threshold)
    assert found.heat_range == (number, number + 1) and found.good_scores == (number, number + 2), found.heat_range
    for leaf in jax.tree.leaves(found.variables):
        assert (np.asarray(leaf) == number).all(), number
    kinds[number] = kinds.get(number, 0) + 1
print(f"loads {sum(kinds.values())} of {len(kinds)} different detectors")
"""
SAVE = """
import pathlib, sys, jax, numpy as np, jaxad
from jaxad import detector
workdir, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
found = jaxad.load(workdir)
for number in range(1, count + 1):
    input()
    weights = jax.tree.map(lambda leaf: np.full_like(leaf, number), jax.device_get(found.variables))
    other = found.with_weights(weights, found.density)
    other.threshold, other.heat_range, other.good_scores = float(number), (number, number + 1), (number, number + 2)
    detector.write(other, workdir)
"""


class Campaign:
    """Commands on one small set of images, and the undisturbed run ``complete`` that all others must equal."""

    def __init__(self, folder: Path, *, seed: int):
        self.folder, self.rng, self.texts = folder, np.random.default_rng(seed), []
        write_fabric(folder / "parts" / "train" / "good", count=12)
        test = demo.load("fabric", size=64).test
        for number in range(0, len(test), max(1, len(test) // TEST)):
            kind = "good" if test[number].label == 0 else "spoilt"
            write(folder / "parts" / "test" / kind / f"{number:03d}.png", test[number].image)
            if kind != "good":
                mask = test[number].mask * np.uint8(255)
                write(folder / "parts" / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
        for number in range(NEW):
            write(folder / "new" / f"{number:03d}.png", test[number % len(test)].image)
        overrides = {"data.root": folder / "parts", "data.size": 64, "score.size": 64, "view.crop": 64, "batch": 2}
        overrides |= {"epochs": STEPS // 5, "data.holdout": 0.2, "log_every": 1, "evaluate.batch": 8, "method": "tiny"}
        overrides |= {"checkpoint.every_steps": EVERY, "checkpoint.keep": 2}
        self.training = ["tests.tiny", "--config", f"{NSA}:texture"]
        self.training += [f"--config.{key}={value}" for key, value in overrides.items()]
        own = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
        self.environment = os.environ | own | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
        self.finish(self.training, folder / "compiled")
        start = time.monotonic()
        self.finish(self.training, folder / "complete")
        self.seconds = time.monotonic() - start
        self.finish(self.prediction(folder / "predicted"), folder / "complete")

    def prediction(self, output: Path) -> list:
        """The command that predicts the new images."""
        return ["tests.tiny", "predict", self.folder / "new", "--output", output, "--maps", "npy"]

    def start(self, command: Sequence[str], workdir: Path) -> tuple[subprocess.Popen, Path]:
        """Starts ``python -m command --workdir WORKDIR``; returns it and the file of what it prints."""
        log = Path(tempfile.mkstemp(prefix="log", dir=self.folder)[1])
        with open(log, "w") as stream:
            arguments = [sys.executable, "-m", *map(str, command), "--workdir", str(workdir)]
            output = {"stdout": stream, "stderr": subprocess.STDOUT}
            return subprocess.Popen(arguments, cwd=self.folder, env=self.environment, **output), log

    def end(self, process: subprocess.Popen, log: Path) -> tuple[int, str]:
        """Waits for a command; its status and what it printed, which must be no traceback."""
        try:
            status = process.wait(DEADLINE)
        finally:
            process.kill()
        text = log.read_text()
        log.unlink()
        assert "Traceback" not in text and "Error:" not in text, text
        return status, text

    def finish(self, command: Sequence[str], workdir: Path) -> str:
        """Runs a command to its end, which must be a good one."""
        status, text = self.end(*self.start(command, workdir))
        assert status == 0, text
        return text

    def killed(self, command: Sequence[str], workdir: Path, seconds: float, number: int = signal.SIGKILL) -> int:
        """Starts a command and sends it a signal after so many seconds; its status, 0 where it was faster."""
        process, log = self.start(command, workdir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(number)
        status, text = self.end(process, log)
        assert status in (0, -number, 128 + number), text
        return status

    def assert_complete(self, workdir: Path) -> None:
        """The workdir holds what ``complete`` does, to the bit, and nothing else."""
        complete = self.folder / "complete"
        (tree, values), (expected, fitted) = (checkpoint.load(path / "detector.json") for path in (workdir, complete))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(expected))
        assert values == fitted, (values, fitted)
        rows, known = read_history(workdir), read_history(complete)
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), [row["step"] for row in rows]
        assert [row["loss"] for row in rows] == [row["loss"] for row in known]
        assert (workdir / "scores.csv").read_bytes() == (complete / "scores.csv").read_bytes()
        assert len(list(csv.reader(open(complete / "scores.csv")))) > TEST // 2  # noqa: SIM115
        found, known = (json.loads((path / "results.json").read_text()) for path in (workdir, complete))
        for name in ("image", "pixel", "threshold", "synthetic", "config", "command"):
            if name != "command":
                assert found[name] == known[name], name
        assert names(workdir) == names(complete), names(workdir) ^ names(complete)
        assert len(list((workdir / "detector").iterdir())) == 1
        assert (workdir / "report.html").read_text().endswith("</body></html>\n")

    def kill(self, count: int) -> str:
        """kill -9 at random moments of trainings, evaluations and predictions; the same command then completes each."""
        train, evaluate, workdirs = self.training, ["tests.tiny", "evaluate"], 0
        died, late, saving, predicting, seconds = 0, 0, 0, 0, 0.7 * self.seconds
        while died < count:
            workdir = self.folder / f"killed{workdirs}"
            workdirs += 1
            # Some kills hit the same training several times, some the moments behind its last step.
            for _ in range(int(self.rng.integers(1, 5))):
                if self.rng.random() < 0.4:
                    status = self.kill_at_the_end(workdir)
                    saving += status != 0
                else:
                    status = self.kill_at_a_step(workdir)
                died, late = died + (status != 0), late + (status == 0)
                if status == 0:
                    break
            self.finish(train, workdir)
            self.assert_complete(workdir)
            status = self.killed(evaluate, workdir, self.rng.uniform(0.3, 0.95) * seconds)
            died, late = died + (status != 0), late + (status == 0)
            start = time.monotonic()
            self.finish(evaluate, workdir)
            seconds = time.monotonic() - start
            self.assert_complete(workdir)
            status = self.kill_predictions(workdir)
            died, late, predicting = died + (status != 0), late + (status == 0), predicting + (status != 0)
        kills = f"{died} kills, {saving} of them from the last save on, {predicting} of predictions"
        return f"{kills} ({late} more came late), of {workdirs} trainings and their evaluations"

    def kill_at_a_step(self, workdir: Path) -> int:
        """Kills a training at a random moment of the steps that are left."""
        rows = read_history(workdir)
        if rows and rows[-1]["step"] == STEPS:
            return self.kill_at_the_end(workdir)
        step = int(self.rng.integers(rows[-1]["step"] if rows else 0, STEPS))
        process, log = self.start(self.training, workdir)
        while process.poll() is None and not any(row["step"] > step for row in read_history(workdir)[-9:]):
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0, 0.05))
        process.kill()
        return self.end(process, log)[0]

    def kill_at_the_end(self, workdir: Path) -> int:
        """Kills a training at a random moment from its last checkpoint on: sealing, density, detector, evaluation."""
        process, log = self.start(self.training, workdir)
        last = workdir / "checkpoints"
        while process.poll() is None and not any(last.glob(f"{STEPS}*")):
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.choice([self.rng.uniform(0, 0.05), self.rng.uniform(0, 0.4 * self.seconds)]))
        process.kill()
        return self.end(process, log)[0]

    def kill_predictions(self, workdir: Path) -> int:
        """Kills a prediction after a random row; the same command makes the same table and pictures of it."""
        output, rows = self.folder / f"predictions{workdir.name}", int(self.rng.integers(0, NEW))
        process, log = self.start(self.prediction(output), workdir)
        table = output / "predictions.csv"
        while process.poll() is None and not (table.exists() and table.read_bytes().count(b"\n") > rows):
            time.sleep(0.001)
        time.sleep(self.rng.uniform(0, 0.02))
        process.kill()
        status = self.end(process, log)[0]
        self.finish(self.prediction(output), workdir)
        known = {path.relative_to(self.folder / "predicted"): path for path in (self.folder / "predicted").rglob("*.*")}
        assert {path.relative_to(output) for path in output.rglob("*.*")} == known.keys()
        for name, path in known.items():
            assert name.name == "predict.json" or (output / name).read_bytes() == path.read_bytes(), name
        return status

    def stop(self, count: int) -> str:
        """Ctrl-C and SIGTERM at random moments of trainings."""
        stopped = 0
        for number in range(count):
            workdir, which = self.folder / f"stopped{number}", (signal.SIGINT, signal.SIGTERM)[number % 2]
            process, log = self.start(self.training, workdir)
            while process.poll() is None and not (workdir / "config.json").exists():
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.rng.uniform(0, 0.5) * self.seconds)
            process.send_signal(which)
            status, text = self.end(process, log)
            assert status in (0, 128 + which, -which), text
            # It may come when all is done, while the interpreter ends.
            assert status or (workdir / "results.json").exists(), text
            stopped += status != 0
            self.finish(self.training, workdir)
            self.assert_complete(workdir)
        return f"{stopped} of {count} signals stopped a training"

    def fill(self, count: int) -> str:
        """Disks that are full at random writes of a training, which goes on when there is space again."""
        full, size = 0, sum(path.stat().st_blocks * 512 for path in (self.folder / "complete").rglob("*"))
        number = 0
        while full < count:
            number += 1
            with disk_of(self.folder / "disk", int(self.rng.uniform(0.02, 1.3) * size)) as disk:
                status, text = self.end(*self.start(self.training, disk / "W"))
                assert status in (0, 2), text
                if status == 2:
                    full += 1
                    told = [line for line in text.splitlines() if line.startswith("error: ")]
                    assert len(told) == 1 and "No space left on device" in told[0], text
                subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
                self.finish(self.training, disk / "W")
                self.assert_complete(disk / "W")
                if status == 2:
                    continue
                self.full_evaluation(disk)
        return f"{full} full disks in {number} trainings"

    def full_evaluation(self, disk: Path) -> None:
        """An evaluation on a full disk leaves the results before it."""
        used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
        room = int(self.rng.uniform(0, 0.4) * used)
        subprocess.run(["mount", "-o", f"remount,size={used + room}", str(disk)], check=True)
        status, text = self.end(*self.start(["tests.tiny", "evaluate"], disk / "W"))
        assert status in (0, 2), text
        assert status == 0 or "No space left on device" in text, text
        self.assert_complete(disk / "W")

    def load(self, loads: int, saves: int) -> str:
        """Loads in one process beside a detector that another one replaces."""
        workdir = self.folder / "loaded"
        shutil.copytree(self.folder / "complete", workdir)
        self.begin(SAVE, workdir, 1).communicate("\n", timeout=DEADLINE)
        reader, writer = self.begin(LOAD, workdir, loads), self.begin(SAVE, workdir, saves)
        lines = []
        for made, line in enumerate(reader.stdout):
            lines.append(line)
            if made % max(1, loads // saves) == 0 and made // max(1, loads // saves) < saves:
                writer.stdin.write("\n")
                writer.stdin.flush()
        told = writer.communicate(timeout=DEADLINE)[0]
        assert (reader.wait(DEADLINE), writer.returncode) == (0, 0), "".join(lines) + told
        return lines[-1].strip() + f" beside {saves} retrainings"

    def begin(self, program: str, *arguments) -> subprocess.Popen:
        """Starts a program that reads from a pipe and prints to one."""
        prelude = "from jaxad import methods; from tests import tiny; methods.METHODS['tiny'] = tiny.create\n"
        given = [sys.executable, "-c", prelude + program, *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(given, cwd=self.folder, env=self.environment, **pipes)


def names(workdir: Path) -> set[str]:
    """What lies in a workdir and among its checkpoints."""
    return {path.relative_to(workdir).as_posix() for path in [*workdir.glob("*"), *workdir.glob("checkpoints/*")]}


@contextlib.contextmanager
def disk_of(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of so many bytes."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> None:
    """Runs the parts that have a count."""
    parser = argparse.ArgumentParser("python -m tests.campaign")
    for name, count in (("kills", 40), ("signals", 10), ("disks", 20), ("loads", 1000), ("retrainings", 10)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        campaign = Campaign(Path(folder), seed=flags.seed)
        print(f"an undisturbed training and evaluation: {campaign.seconds:.1f} s", flush=True)
        for count, part in (
            (flags.loads, lambda: campaign.load(flags.loads, flags.retrainings)),
            (flags.kills, lambda: campaign.kill(flags.kills)),
            (flags.signals, lambda: campaign.stop(flags.signals)),
            (flags.disks, lambda: campaign.fill(flags.disks)),
        ):
            if count:
                start = time.monotonic()
                print(f"{part()}: nothing lost, nothing twice, scores the same ({time.monotonic() - start:.0f} s)")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
