"""card.json: what stands beside an exported model, so that who runs it needs nothing else of jaxad."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxad import config as configs
from jaxad.detector import Detector
from jaxad.errors import UserError, other_version
from jaxad.exporting.program import input_shape
from jaxad.runtime import disk, provenance

NAME, RUNNER = "card.json", "runner.py"
_WRITER = "jaxad.export"
# The files of a model by its format, the one that is opened first.
FILES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin"), "stablehlo": ("model.stablehlo",)}
# How far a score may lie from jaxad's, by the precision, as a share of the range of good scores; see docs/export.md.
TOLERANCES = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 1e-1, "int8": 3e-1}
PRECISIONS = {
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "float16", "bfloat16", "int8"),
    "stablehlo": ("float32", "bfloat16"),
}


def default_folder(workdir: str | Path, format: str) -> Path:
    """Where an export lies unless the user says otherwise."""
    return Path(workdir) / "export" / format


def described(found: Detector, *, format: str, precision: str, command: str) -> dict[str, Any]:
    """The card of a detector's export, without what is known of its files and without a check."""
    config, (height, width, channels) = found.config, input_shape(found)
    region = found.region
    return {
        "writer": _WRITER,
        "format": format,
        "precision": precision,
        "method": config.method,
        "experiment": config.experiment,
        "detector": fingerprint(found),
        "trained_in": config.get("dtype", "float32"),
        "input": {"name": "images", "dtype": "uint8", "shape": ["n", height, width, channels]},
        "outputs": {"score": ["n"], "map": ["n", height, width]},
        "resize": "Pillow's LANCZOS, of the whole image to height x width",
        "aspect_tolerance": configs.STEP // 2 if region.geometry.fills else None,
        "border": [region.border, region.border],
        "threshold": found.threshold,
        "heat_range": list(found.heat_range),
        "good_scores": dict(zip(("mean", "std"), found.good_scores, strict=True)),
        "white_level": found.white_level,
        "min_side": found.read_options["min_side"],
        "max_pixels": found.read_options["max_pixels"],
        "command": command,
        **provenance.collect(),
    }


def fingerprint(found: Detector) -> str:
    """A digest of what decides a detector's scores and maps."""
    seen = hashlib.sha256()
    for leaf in jax.tree.leaves((found.variables, found.density)):
        seen.update(np.ascontiguousarray(leaf))
    scored = found.config.score.to_dict(), found.config.evaluate.crop, found.region.geometry
    seen.update(json.dumps(scored, sort_keys=True).encode())
    return seen.hexdigest()


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder to build an export in, whose files take the place of an earlier export when the body ends well.

    An earlier export stays as it is when the body fails. A kill while files are moved leaves a card beside a model that
    it does not describe, which `read` tells and a further export replaces.

    Raises:
      UserError: The folder holds what is not ours.
    """
    ours = {NAME, RUNNER, *(name for names in FILES.values() for name in names)}
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder by --output", about=folder)
    folder.mkdir(parents=True, exist_ok=True)
    disk.clean(folder)
    there = {path.name for path in folder.iterdir()}
    if there and (NAME not in there or there - ours):
        raise UserError(
            f"{folder / min(there - ours or there)} was not written by jaxad.export; move it away or choose another "
            "--output",
            about=folder,
        )
    made = disk.temporary(folder / NAME)
    made.mkdir()
    try:
        yield made
        new = sorted((path.name for path in made.iterdir()), key=lambda name: name != NAME)
        for name in new:  # the card first, by which the folder is known as ours
            (made / name).replace(folder / name)
        for name in there.difference(new):
            (folder / name).unlink()
    finally:
        disk.remove(made)


def write(folder: Path, card: dict[str, Any]) -> None:
    """Writes the card of the model that lies in the folder."""
    sums = {name: digest(folder / name) for name in FILES[card["format"]]}
    disk.write_json(folder / NAME, card | {"sha256": sums})


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder: str | Path) -> dict[str, Any]:
    """The card of an export, whose files are those that it was written with.

    Raises:
      UserError: There is none, it is damaged, or it does not fit the model beside it.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file():
        raise UserError(f"{folder} holds no export, since it has no {NAME}; run jaxad.export first", about=folder)
    card = disk.read_json(folder / NAME, "run jaxad.export again")
    if card.get("writer") != _WRITER or card.get("format") not in FILES or not isinstance(card.get("sha256"), dict):
        raise other_version(str(folder / NAME), "it says other things", "run jaxad.export again", about=folder)
    for name in FILES[card["format"]]:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; run jaxad.export again", about=path)
        if card["sha256"].get(name) != digest(path):
            raise UserError(f"{path} is not the model that {NAME} describes; run jaxad.export again", about=path)
    return card
