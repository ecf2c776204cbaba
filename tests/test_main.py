"""The command ``jaxad``: its help, its refusals, and that it does what ``python -m`` does."""

import importlib
import signal
import subprocess
import sys

import pytest

from jaxad import __main__ as program
from jaxad.runtime import provenance
from tests.parts import BASELINE, ROOT, SIZE, sentence, write_parts


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxad", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def here(monkeypatch):
    """Runs the command in this process; returns its exit status."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["jaxad", *arguments])
        handler = signal.getsignal(signal.SIGINT)
        try:
            program.main()
        except SystemExit as status:
            return status.code
        finally:
            signal.signal(signal.SIGINT, handler)
        return 0

    return call


@pytest.mark.medium
@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_help_has_a_line_for_each_command(arguments):
    done = run(*arguments)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert (done.returncode, done.stderr, list(rows)) == (0, "", list(program.COMMANDS))
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_every_command_is_a_module_with_help(here, capsys):
    for name, (module, takes_experiment, _) in program.COMMANDS.items():
        assert callable(importlib.import_module(module).main)
        assert here(name, "--help") == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: python -m jaxad.{name}")
        assert ("--config FILE" in printed) == takes_experiment


@pytest.mark.medium
@pytest.mark.parametrize("name, word", [("trian", "did you mean train?"), ("xyz", "evaluate, predict")])
def test_a_misspelt_command_is_refused_with_the_nearest(name, word):
    done = run(name)
    assert word in sentence(done.returncode, done.stderr, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["baseline_mean:nut", f"{BASELINE}:nut"], ids=["name", "file"])
@pytest.mark.parametrize("flag", [[], ["--config"]], ids=["first", "flag"])
def test_an_experiment_is_trained_by_name_or_file(here, tmp_path, experiment, flag):
    root, workdir = write_parts(tmp_path / "sets"), tmp_path / "w"
    flags = [f"--config.data.root={root}", f"--config.data.size={SIZE}", "--config.score.sigma", "1.0"]
    assert here("train", *flag, experiment, *flags, "--workdir", str(workdir)) == 0
    assert (workdir / "results.json").exists()
    [row] = provenance.recorded(workdir)
    assert row["command"].split()[:5] == ["python", "-m", "jaxad.train", "--config", experiment]


def test_a_misspelt_experiment_is_refused_with_the_nearest(here, capsys):
    assert here("train", "nsa_logistik") == 2
    assert capsys.readouterr().err == "error: there is no experiment 'nsa_logistik'; did you mean nsa_logistic?\n"
    assert here("sweep", "nsa_logistik", "--categories=all") == 2
    assert "did you mean nsa_logistic?" in capsys.readouterr().err
    assert here("sweep", "nsa_logistic:cap") == 2
    assert "write --config nsa_logistic --categories=cap" in capsys.readouterr().err
