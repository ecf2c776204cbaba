"""Exports a trained detector in several formats and precisions, and checks each on images, for docs/export.md.

python3 -m docs.exports WORKDIR FILE.json IMAGES onnx:float32 openvino:bfloat16 ...
"""

import argparse
import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxad import errors, export, report
from jaxad.exporting import card as cards
from jaxad.exporting import formats
from jaxad.runtime import provenance


def exported(workdir: Path, place: Path, kind: str, *options: str) -> None:
    """Exports a detector to a folder in a ``FORMAT:PRECISION``, whether the check of it is passed or not."""
    format, precision = kind.split(":")
    asked = ["--format", format, "--precision", precision, "--output", str(place)]
    try:
        export.main(["--workdir", str(workdir), *asked, *options])
    except SystemExit as status:  # of a check that was not passed, which the tables shall show
        if status.code != 1:
            raise


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.exports", description="Checks exports of a detector.")
    parser.add_argument("workdir", type=Path, help="where it was trained")
    parser.add_argument("output", type=Path, metavar="FILE.json")
    parser.add_argument("images", help="a folder of images to check with")
    parser.add_argument("kinds", nargs="+", metavar="FORMAT:PRECISION")
    flags = parser.parse_args(argv)
    trained = json.loads((flags.workdir / "provenance.json").read_text())[-1]
    call = ["WORKDIR", "FILE.json", "DIR", *flags.kinds]
    made = {
        "command": report.portable(trained["command"]),
        "trained": trained["commit"],
        "compared_by": f"python -m docs.exports {shlex.join(call)}",
        "compared_with": "/".join(Path(flags.images).resolve().parts[-2:]),
        **provenance.collect(),
    }
    made["versions"] |= {name: formats.version(name) for name in ("onnx", "onnxruntime", "openvino")}
    rows = []
    for kind in flags.kinds:
        format, precision = kind.split(":")
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "export"
            exported(flags.workdir, place, kind, "--check", flags.images)
            card = json.loads((place / cards.NAME).read_text())
            size = sum((place / name).stat().st_size for name in cards.FILES[format])
        check = {key: value for key, value in card["check"].items() if key != "with"}
        rows.append({"format": format, "precision": precision, "method": card["method"], "bytes": size, **check})
        flags.output.write_text(json.dumps(made | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
