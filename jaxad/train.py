"""``python -m jaxad.train``: trains a detector, evaluates it, and writes both to a workdir."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from jaxad import config as configs
from jaxad import data, errors, evaluate
from jaxad.runtime import devices, processes, provenance
from jaxad.training import loop, synthetic_validation


def main(argv: list[str] | None = None) -> None:
    """Runs the command; raises Stopped when Ctrl-C or SIGTERM stopped the training, which the same command resumes."""
    together([argv])


def together(argvs: Sequence[list[str] | None]) -> None:
    """Runs commands that differ in nothing but seed and workdir as one program, see `loop.train_seeds`; as `main`."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.train",
        description="Trains a detector, or resumes its training; any value of the config: --config.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:CATEGORY]", help="an experiment or its name")
    parser.add_argument("--workdir", help="default: runs/<experiment>/<category>/seed<N>")
    parser.add_argument(
        "--restart", action="store_true", help="begin anew; deletes the training that the workdir holds"
    )
    processes.add_flags(parser)
    given = [configs.arguments(parser, argv) for argv in argvs]
    devices.set_up_process()
    with processes.run_distributed(*given[0], resumes=True):
        _run(given, [provenance.command("jaxad.train", argv) for argv in argvs])


def _run(given: Sequence[tuple[argparse.Namespace, dict[str, str]]], commands: Sequence[str]) -> None:
    several, workdirs = [], []
    for flags, overrides in given:
        config = configs.load(flags.config, overrides)
        name = f"{config.experiment}/{evaluate.category_of(config)}/seed{config.seed}"
        several.append(config)
        workdirs.append(Path(flags.workdir or f"runs/{name}"))
        print(f"workdir: {workdirs[-1]}", flush=True)
    with contextlib.ExitStack() as held:
        detectors = loop.train_seeds(several, workdirs, commands=commands, restart=given[0][0].restart, held=held)
        for detector, workdir in zip(detectors, workdirs, strict=True):
            if len(data.load(detector.config).test):
                evaluate.evaluate(detector, workdir)
            else:
                print(synthetic_validation.summary(synthetic_validation.read(workdir, detector.config)))
                command = f"python -m jaxad.predict --workdir {workdir} PATH..."
                print(f"there are no test images; score images with: {command}")


if __name__ == "__main__":
    errors.run(main)
