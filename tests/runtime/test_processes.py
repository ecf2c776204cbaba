"""Two processes on this machine, connected as two hosts would be, give what one process with two devices gives."""

import csv
import json
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

from jaxad import evaluate, predict
from jaxad.runtime import checkpoint, processes
from jaxad.training.log import read_history
from tests.commands import train
from tests.parts import NSA, ROOT, SIZE, baseline, command, part, refusal, write, write_parts

STEPS, EVERY = 60, 2
DEADLINE = 300  # seconds; processes that wait for each other for ever must not hang the suite


def start(program: str, arguments, log: Path, *, devices: int = 1) -> subprocess.Popen:
    """Starts ``python -m program`` on simulated devices; its output is written to `log`."""
    own = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    with open(log, "w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", program, *map(str, arguments)],
            cwd=ROOT, env=os.environ | own, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip


def test_what_is_gathered_arrives_as_it_was() -> None:
    value = {
        "none": None,
        "truth": (True, False, np.bool_(True)),
        "numbers": [1, -(2**70), 0.1, float("inf"), np.float32(0.1), np.int64(7)],
        "names": ("\udcff.png", "grün", ""),
        3: {"nested": [{}, [], ()]},
        "arrays": [np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2], np.zeros((0, 4), np.uint8), np.float64(1 / 3)],
    }
    found = processes._unpacked(processes._packed(value))
    arrays, expected = found.pop("arrays"), value.pop("arrays")
    assert found == value
    for one, other in zip(arrays, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), b"bytes"])
def test_what_cannot_be_gathered(value) -> None:
    with pytest.raises(TypeError):
        processes._packed([value])


class Pair:
    """Two processes that run one command; the second may be given other arguments and devices."""

    def __init__(self, program: str, arguments, folder: Path, *, other=None, devices: int = 1):
        with socket.create_server(("127.0.0.1", 0)) as found:
            address = f"127.0.0.1:{found.getsockname()[1]}"
        self._logs = [folder / f"process{k}.log" for k in range(2)]
        self.processes = [
            start(
                program,
                [*given, "--coordinator", address, "--processes", 2, "--process_id", k],
                self._logs[k],
                devices=(1, devices)[k],
            )
            for k, given in enumerate((arguments, other or arguments))
        ]

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def logs(self) -> list[str]:
        return [log.read_text() for log in self._logs]

    def ends(self, seconds: float = DEADLINE) -> list[int]:
        """Waits for both; their exit statuses."""
        return [process.wait(seconds) for process in self.processes]

    def signal(self, number: signal.Signals, seen) -> None:
        """Sends the second process a signal as soon as `seen` says so."""
        end = time.monotonic() + DEADLINE
        while not seen():
            assert all(process.poll() is None for process in self.processes), self.logs()
            assert time.monotonic() < end, self.logs()
            time.sleep(0.005)
        self.processes[1].send_signal(number)

    def finish(self) -> None:
        assert self.ends() == [0, 0], self.logs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    write_parts(folder / "sets", train=13)  # of which one is held out, so that the processes' parts are unequal
    return folder


def training(folder: Path, workdir: str) -> list[str]:
    """Arguments that train the small network for `STEPS` steps, 6 in an epoch, with images that stay on the devices."""
    overrides = {"data.root": folder / "sets" / "nut", "data.size": SIZE, "score.size": SIZE, "view.crop": SIZE}
    overrides |= {"method": "tiny", "batch": 2, "epochs": STEPS // 6, "log_every": 1, "evaluate.batch": 2}
    overrides |= {"evaluate.crop": 0, "checkpoint.every_steps": EVERY, "checkpoint.keep": STEPS, "data.holdout": 0.1}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return ["--config", f"{NSA}:object", "--workdir", str(folder / workdir), *flags]


@pytest.fixture(scope="module")
def one(folder) -> Path:
    """The workdir of one process that was trained on two simulated devices."""
    log = folder / "one.log"
    process = start("tests.tiny", training(folder, "one"), log, devices=2)
    assert process.wait(DEADLINE) == 0, log.read_text()
    return folder / "one"


def assert_same_state(one: Path, two: Path, step: int) -> None:
    states = [jax.device_get(checkpoint.read(workdir / "checkpoints" / str(step))) for workdir in (one, two)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *states)


@pytest.mark.slow
def test_two_processes_train_lose_one_stop_resume_and_end_as_one_does(folder, one) -> None:
    workdir, arguments = folder / "two", training(folder, "two")

    def reached(step: int) -> bool:
        return (workdir / "checkpoints" / f"{step}.sha256").exists()

    with Pair("tests.tiny", arguments, folder) as pair:
        pair.signal(signal.SIGKILL, lambda: reached(2))
        assert pair.processes[1].wait() == -signal.SIGKILL
        assert pair.ends(60)[0] == 1, pair.logs()
        assert "error: another process has ended or cannot be reached" in pair.logs()[0]
        assert "Traceback" not in pair.logs()[0]
    assert_same_state(one, workdir, 2)
    assert not (workdir / "detector.json").exists()

    for number, statuses in ((signal.SIGTERM, [143, 143]), (signal.SIGINT, [143, 130])):
        before = max(row["step"] for row in read_history(workdir))
        with Pair("tests.tiny", arguments, folder) as pair:
            pair.signal(number, lambda before=before: reached(before + before % EVERY + EVERY))
            assert pair.ends() == statuses, pair.logs()
            printed, silent = pair.logs()
        assert "resuming at step" in printed and "the same command resumes there" in printed
        silent = silent.replace("steps", "").replace("stopping after the step under way", "")
        assert "step" not in silent and "Traceback" not in silent  # process 0 alone prints

    with Pair("tests.tiny", arguments, folder) as pair:
        pair.finish()
        assert "resuming at step" in pair.logs()[0]
    assert_same_state(one, workdir, STEPS)
    found, rows = (read_history(path) for path in (workdir, one))
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in rows], rtol=0, atol=1e-6)
    assert len(json.loads((workdir / "provenance.json").read_text())) == 4
    assert_same_results(one, workdir)


def assert_same_results(one: Path, two: Path) -> None:
    results = [json.loads((workdir / "results.json").read_text()) for workdir in (one, two)]
    for level in ("image", "pixel"):
        assert results[1][level] == pytest.approx(results[0][level], abs=1e-6)
    tables = [rows(workdir / "scores.csv") for workdir in (one, two)]
    assert len(tables[0]) == len(tables[1]) == 5  # two good and three spotted parts: processes' shares are unequal
    for a, b in zip(*tables, strict=True):
        assert_same_row(a, b)


def rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def assert_same_row(one: dict[str, str], two: dict[str, str]) -> None:
    """The scores may differ in their last bit, since the compiler sees other numbers of rows on a device."""
    assert float(two["score"]) == pytest.approx(float(one["score"]), rel=1e-6)
    assert two | {"score": ""} == one | {"score": ""}


@pytest.fixture(scope="module")
def fitted(folder) -> Path:
    """A workdir of the baseline, with the results that this process has found."""
    arguments = baseline(folder / "sets", folder / "fitted", data__holdout=0.3)
    assert command(train.main, *arguments) == 0
    return folder / "fitted"


@pytest.mark.medium
def test_evaluation_is_that_of_one_process(folder, fitted) -> None:
    overrides = ["--config.score.reduction=max"]
    assert command(evaluate.main, "--workdir", fitted, *overrides) == 0
    other = folder / "copy"
    other.mkdir()
    for name in ("results.json", "scores.csv"):
        (fitted / name).rename(other / name)
    with Pair("jaxad.evaluate", ["--workdir", fitted, *overrides], folder) as pair:
        pair.finish()
        assert "image AUROC" in pair.logs()[0] and "image AUROC" not in pair.logs()[1]
    assert_same_results(other, fitted)


@pytest.mark.slow
def test_predictions_are_those_of_one_process_and_an_unreadable_image_has_a_row(folder, fitted) -> None:
    images = [write(folder / "new" / f"{number}.png", part(50 + number, spot=number > 2)) for number in range(5)]
    arguments = ["--workdir", fitted, "--maps", "npy", *images]
    assert command(predict.main, *arguments, "--output", folder / "alone") == 0
    with Pair("jaxad.predict", [*arguments, "--output", folder / "both"], folder) as pair:
        pair.finish()
        assert "5 images" in pair.logs()[0]
    for a, b in zip(*(rows(folder / name / "predictions.csv") for name in ("alone", "both")), strict=True):
        assert_same_row(a, b)
    names = sorted(path.relative_to(folder / "alone") for path in (folder / "alone").rglob("*.*"))
    assert names == sorted(path.relative_to(folder / "both") for path in (folder / "both").rglob("*.*"))
    assert len(names) == 2 + 5 + 5
    for name in (name for name in names if name.suffix == ".npy"):
        maps = [np.load(folder / output / name) for output in ("alone", "both")]
        np.testing.assert_allclose(*maps, rtol=1e-5)

    images[-1].write_bytes(b"broken")
    with Pair("jaxad.predict", [*arguments, "--output", folder / "broken"], folder) as pair:
        assert pair.ends() == [1, 1]
        first, second = pair.logs()
    assert "error: 1 of 5 images cannot be read" in first and "error: " not in second
    decisions = [row["decision"] for row in rows(folder / "broken" / "predictions.csv")]
    assert "unreadable" not in decisions[:4] and decisions[4] == "unreadable"


@pytest.mark.slow
@pytest.mark.parametrize("different", ["seed", "devices"])
def test_processes_that_differ_are_refused(folder, different) -> None:
    arguments = baseline(folder / "sets", folder / "refused")
    seed = {"other": [*arguments, "--config.seed=5"]} if different == "seed" else {"devices": 2}
    with Pair("jaxad.train", arguments, folder, **seed) as pair:
        statuses = pair.ends()
        told = [log for status, log in zip(statuses, pair.logs(), strict=True) if status == 2]
    assert 0 not in statuses and told
    expected = (
        "the command line of process 1 is not that of process 0" if different == "seed" else "have [1, 2] devices"
    )
    assert expected in told[0]
    assert not (folder / "refused").exists()


def flags_of(address: str | None, process_count: int | None, process: int | None) -> list[str]:
    named = {"--coordinator": address, "--processes": process_count, "--process_id": process}
    return [text for name, value in named.items() if value is not None for text in (name, str(value))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("localhost:1234", None, None), "must be given together"),
        ((None, 2, 0), "must be given together"),
        ((None, 2, None), "must be given together"),
        (("localhost:1234", 2, 2), "--process_id is 2; it must lie in 0 to 1"),
        (("localhost:1234", 2, -1), "--process_id is -1"),
        (("localhost", 2, 0), "it must be HOST:PORT of process 0"),
        (("localhost:99999", 2, 0), "it must be HOST:PORT of process 0"),
    ],
)
@pytest.mark.parametrize("main", [train.main, evaluate.main, predict.main])
def test_inconsistent_flags_are_refused(main, given, expected, folder, capsys) -> None:
    arguments = ["image.png"] if main is predict.main else ["--config", NSA] if main is train.main else []
    assert expected in refusal(capsys, main, *arguments, "--workdir", folder / "no", *flags_of(*given))


def test_a_port_in_use_is_refused(folder, capsys) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--workdir", folder / "no", *flags_of(f"localhost:{port}", 2, 0)]
        assert f"process 0 cannot listen on port {port}" in refusal(capsys, evaluate.main, *arguments)


@pytest.mark.medium
def test_one_process_is_what_it_is_without_flags(folder, fitted, monkeypatch, capsys) -> None:
    assert command(evaluate.main, "--workdir", fitted, "--processes", 1) == 0
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")  # the environment gives the flags' defaults
    assert "must be given together" in refusal(capsys, evaluate.main, "--workdir", fitted)


def without(monkeypatch, module: str) -> None:
    """Lets JAX be a release whose private module of that name is gone."""
    monkeypatch.setitem(sys.modules, f"jax._src.{module}", None)
    monkeypatch.delattr(f"jax._src.{module}")


def test_a_release_of_jax_that_hides_tpu_vms_is_named(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)  # libtpu is installed
    without(monkeypatch, "cloud_tpu_init")
    told = refusal(capsys, train.main, *baseline(write_parts(tmp_path), tmp_path / "work"))
    assert told.startswith(f"jax {jax.__version__} does not tell whether this is a TPU VM (")
    assert "--processes 1" in told and "pyproject.toml" in told
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("gone", ["module", "attribute"])
def test_a_release_of_jax_that_hides_its_processes_is_named(capsys, tmp_path: Path, monkeypatch, gone: str) -> None:
    if gone == "module":
        without(monkeypatch, "distributed")
    else:
        from jax._src import distributed

        monkeypatch.setattr(distributed, "global_state", object())
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    flags = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process_id", "0"]
    told = refusal(capsys, train.main, *baseline(write_parts(tmp_path), tmp_path / "work"), *flags)
    assert told.startswith(f"jax {jax.__version__} does not tell how to reach the other processes (")
    assert "--processes 1" in told
