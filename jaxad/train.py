"""``python -m jaxad.train``: trains a detector, evaluates it, and writes both to a workdir."""

import argparse
import contextlib
from pathlib import Path

from jaxad import config as configs
from jaxad import data, errors, evaluate, methods
from jaxad.runtime import devices, processes, provenance
from jaxad.training import loop, synthetic_validation


def main(argv: list[str] | None = None) -> None:
    """Runs the command; raises Stopped when Ctrl-C or SIGTERM stopped the training, which the same command resumes."""
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
    flags, overrides = configs.arguments(parser, argv)
    devices.set_up_process()
    with processes.run_distributed(flags, overrides, resumes=True):
        _run(flags, overrides, provenance.command("jaxad.train", argv))


def _run(flags: argparse.Namespace, overrides: dict[str, str], command: str) -> None:
    config = configs.load(flags.config, overrides, rules_of=methods.rules_of)
    name = f"{config.experiment}/{evaluate.category_of(config)}/seed{config.seed}"
    workdir = Path(flags.workdir or f"runs/{name}")
    print(f"workdir: {workdir}", flush=True)
    with contextlib.ExitStack() as held:
        detector = loop.train(config, workdir, command=command, restart=flags.restart, held=held)
        if len(data.load(config).test):
            evaluate.evaluate(detector, workdir)
        else:
            print(synthetic_validation.summary(synthetic_validation.read(workdir, config)))
            print(f"there are no test images; score images with: python -m jaxad.predict --workdir {workdir} PATH...")


if __name__ == "__main__":
    errors.run(main)
