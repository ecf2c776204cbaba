"""``python -m jaxad.refit``: a trained detector takes in more good images, without those that it was trained on."""

import argparse
from pathlib import Path

from jaxad import config as configs
from jaxad import errors
from jaxad.errors import UserError
from jaxad.runtime import devices, provenance
from jaxad.training.refit import refit


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.refit",
        description="Adds good images to what a detector was fitted to, and fits its density and its threshold again. "
        "The images of before are not needed. For detectors of experiments/lite.py and lite_nsa.py.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="good images, or one folder as a training reads it")
    parser.add_argument("--workdir", required=True, help="a directory that jaxad.train completed")
    flags = parser.parse_args(argv)
    configs.refuse_empty(parser, flags)
    devices.set_up_process()
    refit(flags.workdir, _images(flags.paths), command=provenance.command("jaxad.refit", argv))
    print(f"score images with: python -m jaxad.predict --workdir {flags.workdir} PATH...")
    print(f"where there are test images: python -m jaxad.evaluate --workdir {flags.workdir}")


def _images(paths: list[str]) -> str | list[str]:
    """The folder, or the files."""
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return paths[0]
    if folders := [path for path in paths if Path(path).is_dir()]:
        raise UserError(f"{folders[0]} is a folder; give one folder, or files", about=folders[0])
    return paths


if __name__ == "__main__":
    errors.run(main)
