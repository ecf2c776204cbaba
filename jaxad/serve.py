"""``python -m jaxad.serve``: answers over HTTP what trained detectors say of images, and watches a folder."""

import argparse
import math
from pathlib import Path

from jaxad import config as configs
from jaxad import detector, errors
from jaxad.detector import Detector
from jaxad.errors import UserError
from jaxad.runtime import devices


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.serve",
        description="Answers over HTTP with scores, decisions, regions and heatmaps of images, and shows a page to try "
        "it on. Nobody is asked for a password, so it listens on this machine alone unless --host says otherwise.",
    )
    parser.add_argument(
        "--workdir", required=True, action="append", metavar="[NAME=]W",
        help="a directory that jaxad.train completed, and the name of its detector (default: the name of the folder); "
        "may be given several times, and requests that name no detector ask the first",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", default="8000", metavar="N", help="port to listen on (default 8000); 0 for a free one"
    )
    parser.add_argument("--batch", default="8", metavar="N", help="most images that are scored together (default 8)")
    parser.add_argument(
        "--wait-ms", default="5", metavar="MS", help="how long an image waits for others to be scored with (default 5)"
    )
    parser.add_argument("--max-upload-mib", default="32", metavar="N", help="largest request in MiB (default 32)")
    parser.add_argument(
        "--max-megapixels", default="100", metavar="N", help="the largest images that are read (default 100)"
    )
    parser.add_argument("--max-files", default="16", metavar="N", help="most images of a request (default 16)")
    parser.add_argument(
        "--queue", default="64", metavar="N",
        help="requests that are worked on at a time (default 64); others are told to come again",
    )  # fmt: skip
    parser.add_argument(
        "--read-timeout", default="30", metavar="S", help="seconds in which a request must have come (default 30)"
    )
    parser.add_argument("--watch", metavar="DIR", help="folder whose image files are scored by the first detector")
    parser.add_argument("--done", metavar="DIR", help="where they are moved then; on the same file system")
    parser.add_argument("--results", metavar="FILE", help="lines of watched files (default: results.jsonl in --done)")
    parser.add_argument("--poll", default="1", metavar="S", help="seconds between two looks at --watch (default 1)")
    flags = parser.parse_args(argv)
    configs.refuse_empty(parser, flags)
    if (flags.watch is None) != (flags.done is None):
        raise UserError("--watch and --done stand together: where files come from, and where they go", about="--watch")
    if flags.results and not flags.watch:
        raise UserError("--results is for --watch, which is not given; leave it out", about="--results")
    _run(flags)


def _run(flags: argparse.Namespace) -> None:
    """Loads what the flags name, and serves until the process is stopped."""
    whole = {
        name: _number(flags, name, whole=True)
        for name in ("port", "batch", "max_upload_mib", "max_megapixels", "max_files", "queue")
    }
    seconds = {name: _number(flags, name) for name in ("wait_ms", "read_timeout", "poll")}
    workdirs = _named(flags.workdir)
    serving = _package()
    devices.set_up_process(keeps_memory=False)
    largest = {"data.max_megapixels": str(whole["max_megapixels"])}
    found: dict[str, Detector] = {name: detector.load(workdir, largest) for name, workdir in workdirs.items()}
    watched = serving.folders(flags.watch, flags.done, flags.results) if flags.watch else None
    serving.run(
        found,
        address=(flags.host, whole["port"]),
        limits=serving.Limits(
            upload=whole["max_upload_mib"] * 2**20,
            files=whole["max_files"],
            queue=whole["queue"],
            read=seconds["read_timeout"],
        ),
        batch=whole["batch"],
        wait=seconds["wait_ms"] / 1000,
        watched=watched,
        poll=seconds["poll"],
    )


def _package():
    """What serves, whose packages are optional."""
    try:
        from jaxad.serving import run as server
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == "jaxad":
            raise
        raise UserError(
            f"the server takes optional packages ({name} is missing); run python3 -m pip install 'jaxad[serve]'"
        ) from None
    return server


def _number(flags: argparse.Namespace, name: str, *, whole: bool = False) -> int | float:
    """The number that an option was given.

    Raises:
      UserError: It is none, or out of its range.
    """
    text, option = getattr(flags, name), f"--{name.replace('_', '-')}"
    least, most = {"port": (0, 65535), "wait_ms": (0, 60_000)}.get(name, (1 if whole else 0.01, 1_000_000))
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{option} must be {kind} from {least} to {most}, not {text!r}", about=option)
    return number


def _named(given: list[str]) -> dict[str, Path]:
    """The workdirs by the names of their detectors, in the order in which they were given."""
    found: dict[str, Path] = {}
    for text in given:
        # A folder may have the sign in its name too.
        name, sign, workdir = ("", "", text) if Path(text).is_dir() else text.partition("=")
        if not sign:
            name, workdir = Path(text).resolve().name, text
        if name in found:
            raise UserError(f"two workdirs have the name {name!r}; name each as --workdir NAME=W", about="--workdir")
        found[name] = Path(workdir)
    return found


if __name__ == "__main__":
    errors.run(main)
