"""``python -m jaxad.sweep``: its runs, what it refuses, what it survives, and its engines."""

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from jaxad import config as configs
from jaxad import report
from jaxad.data.demo import source as demo
from jaxad.errors import Stopped
from jaxad.sweep import __main__ as sweep
from jaxad.sweep import launchers
from jaxad.training.log import read_history
from tests.parts import BASELINE, NSA, ROOT, SIZE, command, part, refusal, write, write_parts
from tests.refusals import refuses

DEADLINE = 600  # seconds; a sweep that hangs must not hang the suite
RAY = importlib.util.find_spec("ray") is not None


# What is run


@pytest.mark.parametrize("texts, grid", [
    ([], {}),
    (["config.optim.lr=0.1,0.03", "config.a=x"], {"optim.lr": ["0.1", "0.03"], "a": ["x"]}),
    (["config.mean=(0.5,0.4),(0,1)", "config.l=[1,2],none"], {"mean": ["(0.5,0.4)", "(0,1)"], "l": ["[1,2]", "none"]}),
    (["config.a=b=c"], {"a": ["b=c"]}),
])  # fmt: skip
def test_grids(texts, grid):
    assert sweep.read_grid(texts) == grid


@pytest.mark.parametrize("text", ["optim.lr=1", "config.a", "config.a=", "config.a=1,", "config.a=1,,2", "", "=1"])
def test_a_malformed_grid(text):
    with refuses("--grid", "config.KEY=VALUE,VALUE,..."):
        sweep.read_grid([text])


def expand(categories=("cap", "fabric"), *, file=BASELINE, seeds=2, grid=None, overrides=None, workdir="W"):
    return sweep.expand(file, categories, seeds=seeds, grid=grid or {}, overrides=overrides or {}, workdir=workdir)


def test_runs_are_categories_by_grid_by_seeds():
    grid = {"score.sigma": ["1", "2.5"], "score.reduction": ["max", "mean"]}
    root, runs = expand(grid=grid, overrides={"data.size": "64"}, workdir=None)
    assert root == Path("runs/baseline_mean") and len(runs) == 2 * 2 * 2 * 2
    points = [f"score.sigma={sigma},score.reduction={name}" for sigma in ("1", "2.5") for name in ("max", "mean")]
    assert [run.name for run, _ in runs] == [
        f"{category}/{point}/seed{seed}" for category in ("cap", "fabric") for point in points for seed in (0, 1)
    ]
    run, config = runs[3]
    assert run.workdir == root / run.name
    assert (config.category, config.score.sigma, config.score.reduction, config.seed) == ("cap", 1.0, "mean", 1)
    assert run.arguments == (
        "--config", f"{BASELINE}:cap",
        "--config.data.size=64", "--config.score.reduction=mean", "--config.score.sigma=1", "--config.seed=1",
    )  # fmt: skip


def test_a_value_with_a_slash_is_one_folder():
    _, runs = expand(["cap"], seeds=1, grid={"data.ground_truth": ["/a/b", "/a%2Fb"]})
    assert [len(Path(run.name).parts) for run, _ in runs] == [3, 3]
    assert runs[0][0].name != runs[1][0].name


@pytest.mark.parametrize("options, about, word", [
    ({"grid": {"score.sigm": ["1"]}}, "score.sigm", "config.score.sigma"),
    ({"grid": {"score.sigma": ["wide"]}}, "score.sigma", "float"),
    ({"grid": {"score.sigma": ["1", "1.0"]}}, "W/cap/score.sigma=1.0/seed0", "W/cap/score.sigma=1/seed0"),
    ({"grid": {"data.workers": ["0", "1"]}}, "W/cap/data.workers=1/seed0", "seed 0"),
    ({"grid": {"score.sigma": ["1"]}, "overrides": {"score.sigma": "2"}}, "score.sigma", "--grid"),
    ({"grid": {"seed": ["1", "2"]}}, "seed", "--seeds"),
    ({"overrides": {"category": "x"}}, "category", "--categories"),
    ({"file": NSA, "categories": ["botle"]}, "category", "'bottle'"),
    ({"grid": {"experiment": ["a", "b"]}}, "experiment", "--grid"),
    ({"categories": ["botle"], "overrides": {"data.source": "tfds"}}, "--categories", "'bottle'"),
])  # fmt: skip
def test_what_cannot_be_a_sweep(options, about, word):
    with refuses(about, word):
        expand(**options)


@pytest.mark.parametrize("category, near", [("botle", "bottle"), ("nutt", "nut"), ("fabrik", "fabric")])
def test_an_unknown_category(tmp_path, category, near):
    root = write_parts(tmp_path / "sets", train=1)
    expand(["bottle", "nut", "texture"], overrides={"data.root": str(root)})
    with refuses("--categories", repr(near)):
        expand(["nut", category], overrides={"data.root": str(root)})


# Sweeps of the baseline in this process


def arguments(folder, *more, categories="nut,bolt", seeds=1):
    flags = ["--config", BASELINE, f"--categories={categories}", f"--seeds={seeds}", "--workdir", folder / "W"]
    return [*flags, f"--config.data.root={folder / 'sets'}", f"--config.data.size={SIZE}", *more]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a sweep over a category and one without images; its exit status."""
    folder = tmp_path_factory.mktemp("swept")
    write_parts(folder / "sets")
    (folder / "sets" / "bolt").mkdir()
    return folder, command(sweep.main, *arguments(folder))


@pytest.mark.medium
def test_a_failing_category_does_not_stop_the_rest(swept, capsys):
    folder, status = swept
    assert status == 1
    sentence = f"folder '{folder / 'sets' / 'bolt'}' holds no images; put the good training images there"
    assert (folder / "W" / "bolt" / "seed0" / "error.txt").read_text() == f"{sentence}\n"
    text = (folder / "W" / "table.md").read_text()
    results, failed = text.split("\n\n")
    assert results + "\n" == report.markdown(report.gather([folder / "W"]))
    assert failed == f"| failed run | error |\n|---|---|\n| bolt/seed0 | {sentence} |\n"


@pytest.mark.slow
def test_the_same_command_skips_what_is_complete_and_repeats_what_failed(swept, capsys):
    folder, _ = swept
    results = folder / "W" / "nut" / "seed0" / "results.json"
    before = results.stat()
    assert command(sweep.main, *arguments(folder)) == 1
    assert "2 runs, 1 of them complete\n" in capsys.readouterr().out
    for number in range(3):
        write(folder / "sets" / "bolt" / "train" / "good" / f"{number}.png", part(number))
        write(folder / "sets" / "bolt" / "test" / "bent" / f"{number}.png", part(10 + number, spot=True))
    write(folder / "sets" / "bolt" / "test" / "good" / "0.png", part(20))
    # A sweep may grow.
    assert command(sweep.main, *arguments(folder, categories="nut,bolt,nut", seeds=2)) == 0
    printed = capsys.readouterr().out
    assert "4 runs, 1 of them complete\n" in printed and "bolt/seed0: image AUROC 100.00, pixel AUROC n/a" in printed
    assert [line[-6:] for line in printed.splitlines() if line.endswith(" left")] == ["2 left", "1 left", "0 left"]
    text = (folder / "W" / "table.md").read_text()
    assert text in printed and "failed" not in text
    assert [line.split(" | ")[1:3] for line in text.splitlines()[2:]] == [["bolt", "2"], ["nut", "2"]]
    assert results.stat() == before
    assert not (folder / "W" / "bolt" / "seed0" / "error.txt").exists()


@pytest.fixture
def trainings(monkeypatch):
    """Stands in for training; ``trainings(behaviour)`` sets what a run does with its workdir."""

    def replace(behaviour):
        monkeypatch.setattr(launchers, "train", lambda argv: behaviour(Path(argv[-1])))

    return replace


def results_for(workdir):
    """Writes the results of a complete run."""
    category, seed = workdir.parts[-2:]
    values = {"experiment": "x", "category": category, "seed": seed, "config": {"seed": seed}}
    metrics = {"auroc": 0.5, "aupro": None}
    workdir.mkdir(parents=True, exist_ok=True)
    results = values | {"image": metrics, "pixel": metrics, "reasons": {"pixel.aupro": "no masks"}}
    (workdir / "results.json").write_text(json.dumps(results))
    return True


def test_a_fault_of_the_program_is_kept_and_the_rest_goes_on(tmp_path, capsys, trainings):
    def fault(workdir):
        if workdir.name == "seed0":
            raise ValueError("broken | pipe\nand more")
        return results_for(workdir)

    trainings(fault)
    assert command(sweep.main, *arguments(tmp_path, categories="nut", seeds=2)) == 1
    printed = capsys.readouterr().out
    assert "nut/seed0: failed: ValueError: broken | pipe; 1 left\nnut/seed1: image AUROC 50.00" in printed
    assert printed.count("\n| nut/seed0 | ValueError: broken \\| pipe |\n") == 1
    kept = (tmp_path / "W" / "nut" / "seed0" / "error.txt").read_text().splitlines()
    assert kept[0] == "ValueError: broken | pipe" and 'raise ValueError("broken | pipe\\nand more")' in kept[-3]


def test_without_test_images_a_run_has_no_place_in_the_table(tmp_path, capsys, trainings):
    trainings(lambda workdir: True)
    assert command(sweep.main, *arguments(tmp_path, categories="nut")) == 1
    assert "nut/seed0: failed: there are no test images" in capsys.readouterr().out


def terminated(workdir):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(DEADLINE)


def interrupted(workdir):
    raise KeyboardInterrupt


def stopped(workdir):
    raise Stopped(signal.SIGTERM, "the training has saved its state")


@pytest.mark.parametrize("end, status", [(stopped, 143), (terminated, 143), (interrupted, 130)])
def test_a_sweep_that_is_stopped_says_so_and_resumes(tmp_path, capsys, trainings, end, status):
    trainings(lambda workdir: results_for(workdir) if workdir.name == "seed0" else end(workdir))
    assert command(sweep.main, *arguments(tmp_path, categories="nut", seeds=3)) == status
    assert "stopped with 1 of 3 runs complete; the same command resumes" in capsys.readouterr().out
    assert not list((tmp_path / "W").rglob("error.txt")) and not (tmp_path / "W" / "table.md").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    trainings(results_for)
    assert command(sweep.main, *arguments(tmp_path, categories="nut", seeds=3)) == 0
    assert "3 runs, 1 of them complete" in capsys.readouterr().out


def test_results_that_a_kill_has_cut_off_are_made_again(tmp_path, capsys, trainings):
    trainings(results_for)
    assert command(sweep.main, *arguments(tmp_path, categories="nut")) == 0
    path = tmp_path / "W" / "nut" / "seed0" / "results.json"
    path.write_text(path.read_text()[:20])
    assert command(sweep.main, *arguments(tmp_path, categories="nut")) == 0
    assert "1 run, 0 of them complete" in capsys.readouterr().out


@pytest.mark.slow
def test_the_log_of_a_run_takes_any_text_in_any_locale(tmp_path):
    program = f"""if True:
        from pathlib import Path
        from jaxad.sweep import launchers

        def fail(argv):
            print("gr\\u00fcn caf\\udce9")
            raise launchers.UserError("gr\\u00fcn caf\\udce9")

        launchers.train = fail
        launchers._execute_logged(launchers.Run("a", Path({str(tmp_path)!r}), ()), 1)
    """
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=os.environ | ascii_alone, check=True, cwd=tmp_path)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "gr\u00fcn caf\\udce9\n"
    assert (tmp_path / "error.txt").read_bytes() == "gr\u00fcn caf".encode() + b"\xe9\n"


def test_the_workdir_of_another_sweep(tmp_path, capsys, trainings):
    trainings(results_for)
    assert command(sweep.main, *arguments(tmp_path, categories="nut", seeds=2)) == 0
    kept = (tmp_path / "W" / "sweep.json").read_text()
    for other in (["--config.score.sigma=9"], ["--grid", "config.score.sigma=1,2"], ["--seeds=1"]):
        message = refusal(capsys, sweep.main, *arguments(tmp_path, *other, categories="nut", seeds=2))
        assert message.startswith(f"{tmp_path / 'W'} holds another sweep, python -m jaxad.sweep --config {BASELINE} ")
        assert "--categories=nut --seeds=2" in message and message.endswith("or choose another --workdir")
        assert (tmp_path / "W" / "sweep.json").read_text() == kept
    for text in ("", "[]", '{"runs": {', '{"runs": ["nut"]}'):
        (tmp_path / "W" / "sweep.json").write_text(text)
        message = refusal(capsys, sweep.main, *arguments(tmp_path, categories="nut", seeds=2))
        assert message.startswith(f"{tmp_path / 'W' / 'sweep.json'} is ")
        assert message.endswith("; remove it, and name all that the sweep has begun again, or choose another --workdir")


@pytest.mark.medium
def test_a_sweep_whose_images_were_not_found_has_claimed_nothing(tmp_path, capsys):
    given = arguments(tmp_path, categories="nut")
    assert command(sweep.main, *given) == 1
    sets = write_parts(tmp_path / "elsewhere")
    assert command(sweep.main, *given, f"--config.data.root={sets}") == 0
    assert str(sets) in (tmp_path / "W" / "sweep.json").read_text()
    assert "holds another sweep" in refusal(capsys, sweep.main, *given)


def test_a_run_that_was_trained_by_hand_with_another_config(tmp_path, capsys):
    configs.claim(tmp_path / "W" / "nut" / "seed0", configs.load(f"{BASELINE}:nut", {"score.sigma": "2"}))
    message = refusal(capsys, sweep.main, *arguments(tmp_path, categories="nut"))
    assert "was made with another config: data." in message and "score.sigma (2.0 there, 4.0 now)" in message


def test_two_sweeps_at_once(tmp_path, capsys, trainings):
    sentences = []
    second = arguments(tmp_path, categories="nut")

    def meanwhile(workdir):
        other = threading.Thread(target=lambda: sentences.append(refusal(capsys, sweep.main, *second)))
        other.start()
        other.join()
        return results_for(workdir)

    trainings(meanwhile)
    assert command(sweep.main, *second) == 0
    assert sentences == [
        f"{tmp_path / 'W'} is in use by another thread of process {os.getpid()}; wait until it has ended, or choose "
        "another --workdir"
    ]
    (tmp_path / "W" / "nut" / "seed0" / "results.json").unlink()
    trainings(results_for)
    assert command(sweep.main, *second) == 0  # the first has let go of it


@pytest.mark.parametrize("flags, words", [
    (["--engine=slurm"], "--engine must be local or ray, not 'slurm'"),
    (["--categories=nut,"], "--categories 'nut,' holds an empty name"),
    (["--categories="], "the value given for categories is empty"),
    (["--seeds=0"], "--seeds must be a whole number from 1 on, not '0'"),
    (["--seeds=two"], "--seeds must be a whole number from 1 on, not 'two'"),
    (["--processes=1.5"], "--processes must be a whole number from 1 on, not '1.5'"),
    (["--engine=ray", "--devices_per_run=1.5"], "--devices_per_run must be a number up to 1, or a whole one above"),
    (["--engine=ray", "--devices_per_run=nan"], "--devices_per_run must be a number up to 1, or a whole one above"),
    (["--engine=ray", "--processes=2"], "--processes is not for --engine ray; leave one of them out"),
    (["--ray_address=a:1"], "--ray_address is not for --engine local; leave one of them out"),
    (["--grid", "config.score.sigma=1", "config.score.sigma=2"], "--grid names config.score.sigma twice"),
    (["--config", BASELINE + ":cap"], "names a category; write --config " + BASELINE + " --categories=cap"),
])  # fmt: skip
def test_flags_that_cannot_be_used(tmp_path, capsys, flags, words):
    assert words in refusal(capsys, sweep.main, *arguments(tmp_path), *flags)
    assert not (tmp_path / "W").exists()


def test_all_is_the_experiments_table(tmp_path, trainings):
    trainings(results_for)
    assert command(sweep.main, *arguments(tmp_path, categories="all")) == 0
    rows = [line.split(" | ")[1] for line in (tmp_path / "W" / "table.md").read_text().splitlines()[2:]]
    assert len(rows) == 15 and {"carpet", "bottle", "zipper"} < set(rows)


# Ray, as far as it goes without


def test_ray_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refusal(capsys, sweep.main, *arguments(tmp_path), "--engine=ray")
    assert message.startswith("--engine ray needs Ray, which is not installed; run python3 -m pip install 'jaxad[ray]'")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_ray_cannot_be_reached(tmp_path, capsys, monkeypatch, scheme):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    message = refusal(capsys, sweep.main, *arguments(tmp_path), "--engine=ray", f"--ray_address={address}")
    assert message.startswith(f"the Ray cluster at {address} cannot be reached (")
    assert "ray start --head" in message and "--ray_address=HOST:PORT" in message
    message = refusal(capsys, sweep.main, *arguments(tmp_path), "--engine=ray", "--ray_address=nonsense")
    assert message.startswith("the Ray cluster at nonsense cannot be reached (")


@pytest.mark.parametrize("nodes, devices, needs", [
    ([{"CPU": 8}, {"CPU": 96, "GPU": 8}], 0.5, {"num_gpus": 0.5}),
    ([{"CPU": 8, "TPU": 4}], 4, {"resources": {"TPU": 4}}),
    ([{"CPU": 2}, {"CPU": 2}], 2, {"num_cpus": 2}),
])  # fmt: skip
def test_a_run_takes_what_the_cluster_has(nodes, devices, needs):
    assert launchers._needs(nodes, devices) == needs


@pytest.mark.parametrize("nodes, word", [([{"GPU": 2}, {"GPU": 2}], "2 GPU"), ([{}], "0 CPU")])
def test_a_run_takes_its_devices_from_one_host(nodes, word):
    with refuses("--devices_per_run", word):
        launchers._needs(nodes, 4)


def test_a_run_takes_as_many_tpu_chips_as_ray_can_give():
    with refuses("--devices_per_run", "chips"):
        launchers._needs([{"TPU": 4}], 3)


@pytest.mark.medium
def test_a_run_of_a_sweep_is_alone_where_the_environment_names_other_processes(tmp_path, monkeypatch):
    for name, value in {"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    write_parts(tmp_path / "sets")
    assert command(sweep.main, *arguments(tmp_path, categories="nut")) == 0


def test_what_becomes_of_the_tasks_of_ray(tmp_path, capsys, monkeypatch, trainings):
    def get(task):
        if "seed0" in str(task.args):
            raise RuntimeError("\x1b[36mray::task()\x1b[39m (pid=7, ip=10.0.0.7)\nOh: the \x1b[31mnode\x1b[39m died")
        if "seed2" not in str(task.args):  # what seed2 writes is not seen on this host
            task()

    def remote(**options):
        assert options == {"max_retries": launchers._RETRIES, "max_calls": 1, "num_cpus": 2}
        return lambda task: types.SimpleNamespace(remote=functools.partial(functools.partial, task))

    fake = types.ModuleType("ray")
    fake.init = lambda address, **options: None
    fake.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 2}}, {"Alive": False, "Resources": {"GPU": 8}}]
    fake.remote, fake.get, fake.shutdown = remote, get, lambda: None
    fake.wait = lambda pending, num_returns: (pending[:num_returns], pending[num_returns:])
    fake.exceptions = types.SimpleNamespace(RayError=RuntimeError)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(launchers, "_SHARING", 0)
    trainings(lambda workdir: print("trained") or results_for(workdir))
    flags = arguments(tmp_path, "--engine=ray", "--devices_per_run=2", categories="nut", seeds=3)
    assert command(sweep.main, *flags) == 1
    printed = capsys.readouterr().out
    assert "nut/seed0: failed: Ray gave up: RuntimeError: Oh: the node died; 2 left" in printed
    assert "nut/seed1: image AUROC 50.00" in printed and "trained" not in printed
    assert (tmp_path / "W" / "nut" / "seed1" / "log.txt").read_text() == "trained\n"
    assert "nut/seed2: failed: its task has ended, but " in printed and "all hosts must share the folder" in printed


# Sweeps in processes of their own

EXPERIMENT = f"""
from jaxad import config as configs, methods
from jaxad.reporting import html_report
from tests import tiny

methods.METHODS["tiny"] = tiny.create
html_report.write_html = lambda path, **parts: path.write_text("")  # half of the time of a run this small


def get_config(category):
    given = {{"method": "tiny", "experiment": "tiny", "data.size": "64", "view.crop": "64", "batch": "2",
             "epochs": "6", "log_every": "1", "checkpoint.every_steps": "4", "evaluate.batch": "8"}}
    return configs.load(f"{NSA}:{{category}}", given)
"""


class Sweep:
    """A sweep of a tiny network over the demo's categories, eight training images each, with two seeds.

    Attributes:
      folder: Where the experiment, the images, the workdirs and the logs lie.
      environment: Of its processes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "tiny.py").write_text(EXPERIMENT)
        for category in demo.CATEGORIES:
            dataset = demo.load(category, size=64, train=8, test_good=2, test_defective=1)
            for record in [*dataset.train, *dataset.test]:
                write(folder / "sets" / category / f"{record.id}.png", record.image)
                if record.label:
                    _, defect, name = record.id.split("/")
                    mask = folder / "sets" / category / "ground_truth" / defect / f"{name}_mask.png"
                    write(mask, 255 * record.mask)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        one_device = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
        self.environment = os.environ | one_device | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}

    def start(self, workdir: str, *flags: str) -> subprocess.Popen:
        """Starts the command; its output is appended to a file beside the workdir."""
        command = [sys.executable, "-m", "jaxad.sweep", "--config", str(self.folder / "tiny.py"), "--seeds=2"]
        command += ["--config.data.source=folder", f"--config.data.root={self.folder / 'sets'}"]
        command += ["--workdir", str(self.folder / workdir), *flags]
        with open(self.folder / f"{workdir}.log", "a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def log(self, workdir: str) -> str:
        return (self.folder / f"{workdir}.log").read_text()

    def finish(self, workdir: str, *flags: str) -> None:
        """Runs the command to its end, which must be a good one."""
        assert self.start(workdir, *flags).wait(DEADLINE) == 0, self.log(workdir)

    def wait_for(self, process: subprocess.Popen, workdir: str, run: str, *, step: int) -> None:
        """Waits until a run has logged a step."""
        end = time.monotonic() + DEADLINE
        while not any(row["step"] >= step for row in read_history(self.folder / workdir / run)):
            assert process.poll() is None and time.monotonic() < end, self.log(workdir)
            time.sleep(0.005)

    def kill(self, workdir: str, run: str, *flags: str, step: int) -> None:
        """Starts the command and kills it once a run has logged a step."""
        process = self.start(workdir, *flags)
        try:
            self.wait_for(process, workdir, run, step=step)
        finally:
            process.kill()
            process.wait()
        assert not (self.folder / workdir / run / "results.json").exists()

    def rows(self, workdir: str) -> list[list[str]]:
        """The table, without what tells when it was made: date, commit and command."""
        lines = (self.folder / workdir / "table.md").read_text().splitlines()
        return [line.split(" | ")[:8] for line in lines]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The sweep, of which ``complete`` was not interrupted."""
    tiny = Sweep(tmp_path_factory.mktemp("sweep"))
    tiny.finish("complete")
    return tiny


@pytest.mark.medium
@pytest.mark.parametrize("flags", [(), pytest.param(("--processes=2",), marks=pytest.mark.slow)])
def test_a_sweep_that_was_killed_twice_makes_the_same_table(tiny, flags):
    name = f"killed{len(flags)}"
    tiny.kill(name, "cap/seed1", *flags, step=9)
    tiny.kill(name, "wood_screw/seed0", *flags, step=13)
    tiny.finish(name, *flags)
    assert tiny.rows(name) == tiny.rows("complete")
    assert [row[1:3] for row in tiny.rows(name)[2:]] == [[category, "2"] for category in demo.CATEGORIES]
    counts = [int(count) for count in re.findall(r"6 runs, (\d) of them complete", tiny.log(name))]
    assert len(counts) == 3 and counts[0] == 0 <= counts[1] < counts[2] < 6
    logs = [tiny.log(name), *(path.read_text() for path in tiny.folder.glob(f"{name}/*/*/log.txt"))]
    assert "".join(logs).count("resuming at step") >= 2


@pytest.mark.slow
def test_sigterm_ends_the_processes_of_a_sweep(tiny):
    process = tiny.start("stopped", "--processes=2")
    tiny.wait_for(process, "stopped", "cap/seed0", step=3)
    process.terminate()
    assert process.wait(DEADLINE) == 143
    assert "of 6 runs complete; the same command resumes" in tiny.log("stopped")
    assert not list((tiny.folder / "stopped").rglob("error.txt"))


@pytest.mark.slow
def test_a_process_that_dies_fails_its_run_alone(tmp_path, capsys):
    dies = "import multiprocessing, os\nif multiprocessing.parent_process(): os._exit(7)\n"
    (tmp_path / "dies.py").write_text(Path(BASELINE).read_text() + dies)
    flags = arguments(tmp_path, "--processes=2", "--config", tmp_path / "dies.py", categories="nut")
    assert command(sweep.main, *flags) == 1
    error = f"its process ended early, with status 7; what it printed is in {tmp_path}/W/nut/seed0/log.txt"
    assert f"nut/seed0: failed: {error}; 0 left\n" in capsys.readouterr().out
    assert not multiprocessing.active_children()


def workdirs_on(node) -> list[Path]:
    """The workdirs of the runs on a node of a local Ray cluster: its workers have their log.txt open."""
    raylet = node.all_processes["raylet"][0].process.pid
    workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    opened = []
    for worker in workers:
        with contextlib.suppress(FileNotFoundError):  # a file that was closed in the meantime
            opened += [os.readlink(file) for file in Path(f"/proc/{worker}/fd").iterdir()]
    return [Path(file).parent for file in opened if file.endswith("/log.txt")]


@pytest.mark.slow
@pytest.mark.skipif(not RAY, reason="Ray is not installed: pip install 'jaxad[ray]'")
@pytest.mark.filterwarnings("ignore")  # of Ray's own code
def test_ray_survives_the_loss_of_a_node(tiny, monkeypatch):
    from ray.cluster_utils import Cluster

    for name, value in tiny.environment.items():  # the nodes' workers get it
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        process = tiny.start("ray", "--engine=ray", f"--ray_address={cluster.address}")
        lost, end = None, time.monotonic() + DEADLINE
        while lost is None:
            assert process.poll() is None and time.monotonic() < end, tiny.log("ray")
            lost = next((found for found in workdirs_on(node) if len(read_history(found)) >= 9), None)
            time.sleep(0.005)
        cluster.remove_node(node, allow_graceful=False)
        assert not (lost / "results.json").exists()
        assert process.wait(DEADLINE) == 0, tiny.log("ray")
    finally:
        cluster.shutdown()
    assert tiny.rows("ray") == tiny.rows("complete")
    printed = (lost / "log.txt").read_text()
    assert printed.count("workdir: ") == 2 and "resuming at step" in printed
