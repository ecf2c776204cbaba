"""``python -m jaxad.train``: trains a detector, evaluates it, and writes both to a workdir."""

import argparse
from pathlib import Path

from jaxad import config as configs
from jaxad import data, errors, evaluate, loop, parallel, provenance


def main(argv: list[str] | None = None) -> bool:
    """Runs the command; False when SIGTERM stopped the training, which the same command then resumes."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.train",
        description="Trains a detector, or resumes its training; any value of the config: --config.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:CATEGORY]", help="an experiment, see experiments/")
    parser.add_argument("--workdir", help="default: runs/<experiment>/<category>/seed<N>")
    flags, overrides = configs.arguments(parser, argv)
    parallel.keep_freed_memory()
    config = configs.load(flags.config, overrides)
    name = f"{config.experiment}/{evaluate.category_of(config)}/seed{config.seed}"
    workdir = Path(flags.workdir or f"runs/{name}")
    print(f"workdir: {workdir}", flush=True)
    detector = loop.train(config, workdir, command=provenance.command("jaxad.train", argv))
    if detector is None:
        return False
    if len(data.load(config).test):
        evaluate.evaluate(detector, workdir)
    else:
        print(f"there are no test images; score images with: python -m jaxad.predict --workdir {workdir} PATH...")
    return True


if __name__ == "__main__":
    errors.run(main)
