"""``python -m jaxad.check``: says what is wrong with a folder of images before anything is trained on it."""

import argparse
import collections
import os
import sys
from pathlib import Path

import cv2
import numpy as np

from jaxad import config as configs
from jaxad import errors
from jaxad.data.findings import ERROR, LEVELS, Finding, findings
from jaxad.data.folder import FolderSource
from jaxad.data.survey import Look, Survey, survey, without_warnings
from jaxad.errors import UserError, counted
from jaxad.reporting.charts import outline
from jaxad.reporting.contact_sheet import SIDE, Tile, contact_sheet
from jaxad.reporting.sample_grid import write as write_picture
from jaxad.runtime import disk

_SHOWN = 5  # files, or groups of them, that a sentence names
_ERRORS = 20  # sentences of errors that are printed
_DRAWN = 16  # tiles of a section
_UNDRAWN = ("refused", "stopped", "passed over", "left out", "test", "aspect ratio")


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.check",
        description="Looks at every image and mask of a folder as a training would: damaged and misplaced files, "
        "copies between training and test images, blur, exposure, masks. It exits with 1 where a training or an "
        "evaluation would refuse the folder, and changes nothing in it.",
    )
    parser.add_argument("folder", help="a folder of good images, of one category of a data set, or a table (CSV)")
    parser.add_argument("--test", default=None, help="another folder of test images, as config.data.test")
    parser.add_argument("--ground-truth", default=None, help="their masks, as config.data.ground_truth")
    parser.add_argument("--output", help="directory to write check.json and check.png to (default: nothing is written)")
    flags = parser.parse_args(argv)
    configs.refuse_empty(parser, flags)
    if not os.path.exists(flags.folder):
        raise UserError(f"folder '{flags.folder}' does not exist; check the path", about=flags.folder)
    if flags.output:
        _check_output(flags.output, [flags.folder, flags.test, flags.ground_truth])
    seen = survey(flags.folder, test=flags.test or "", ground_truth=flags.ground_truth or "")
    found = findings(seen)
    print(report(seen, found, whole="check.json" if flags.output else "--output DIR"), flush=True)
    if flags.output:
        _write(Path(flags.output), flags.folder, seen, found)
    if any(finding.level == ERROR for finding in found):
        sys.exit(1)


def _check_output(output: str, data: list[str | None]) -> None:
    """Refuses to write among the images, which the next training would read."""
    disk.refuse_nul(output)
    place = Path(os.path.realpath(output))
    for folder in data:
        if folder and Path(os.path.realpath(folder)) in (place, *place.parents):
            raise UserError(
                f"--output {output} lies in '{folder}', from which images are read; name a place outside of it",
                about="--output",
            )


def report(seen: Survey, found: list[Finding], *, whole: str) -> str:
    """The lines that are printed: what is there, the problems by importance, and the outcome.

    Args:
      seen: The survey.
      found: Its findings.
      whole: Where all files are named, for a sentence that leaves some out.
    """
    lines = _overview(seen)
    failed = [finding for finding in found if finding.level == ERROR]
    lines += [f"error: {finding.problem}" for finding in failed[:_ERRORS]]
    if len(failed) > _ERRORS:
        lines.append(f"error: {counted(len(failed) - _ERRORS, 'more file')} cannot be used; {whole} tells all")
    lines += [_line(finding, whole) for finding in found if finding.level != ERROR]
    counts = ", ".join(counted(sum(one.level == level for one in found), level) for level in LEVELS)
    refused = "a training or its evaluation would refuse this" if failed else "a training would take this"
    return "\n".join([*lines, f"{counts}: {refused}"])


def _overview(seen: Survey) -> list[str]:
    if seen.train is None:
        return []
    lines = [f"training images from {seen.train.place}"]
    by_split: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for look in seen.looks:
        by_split[look.split][look.defect] += 1
    for split, defects in by_split.items():
        parts = ", ".join(f"{number} {defect}" for defect, number in defects.items())
        lines.append(f"{split}: {counted(defects.total(), 'image')} ({parts})")
    usable = [look for look in seen.looks if look.measures is not None]
    sizes = collections.Counter((look.measures.width, look.measures.height) for look in usable)
    if len(sizes) > _SHOWN:
        widths, heights = ([size[axis] for size in sizes] for axis in (0, 1))
        span = f"widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
        lines.append(f"sizes: {len(sizes)} different, {span} pixels")
    elif sizes:
        named = ", ".join(f"{width} x {height} ({number})" for (width, height), number in sizes.most_common())
        lines.append(f"sizes (width x height): {named}")
    kinds = collections.Counter(_kind(look) for look in usable)
    if kinds:
        lines.append("pixels: " + ", ".join(f"{kind} ({number})" for kind, number in kinds.most_common()))
    return [*lines, *([seen.white] if seen.white else [])]


def _kind(look: Look) -> str:
    return f"{'color' if look.measures.color else 'grey'}, {look.bits} bits"


def _line(finding: Finding, whole: str) -> str:
    named = "; ".join(" and ".join(f"'{path}'" for path in group) for group in finding.files[:_SHOWN])
    more = f"; and {len(finding.files) - _SHOWN} more, which {whole} names" if len(finding.files) > _SHOWN else ""
    where = f": {named}{more}" if named else ""
    return f"{finding.level}: {finding.problem}{where}" + (f"; {finding.advice}" if finding.advice else "")


def _write(output: Path, folder: str, seen: Survey, found: list[Finding]) -> None:
    """Writes check.json, and check.png where there is something to see."""
    output.mkdir(parents=True, exist_ok=True)
    rows = [_row(look) for look in seen.looks]
    told = [finding._asdict() for finding in found]
    refused = any(finding.level == ERROR for finding in found)
    values = {"folder": disk.escaped(folder), "refused": refused, "findings": _escaped(told), "images": rows}
    disk.write_json(output / "check.json", values)
    written = "check.json"
    if sections := _sections(seen, found):
        write_picture(output / "check.png", contact_sheet(sections))
        written += " and check.png"
    else:
        disk.remove(output / "check.png")  # of an earlier call
    print(f"written to {output}: {written}")


def _escaped(values: object) -> object:
    """Values of JSON whose texts any page or file can hold."""
    if isinstance(values, str):
        return disk.escaped(values)
    if isinstance(values, dict):
        return {key: _escaped(value) for key, value in values.items()}
    return [_escaped(value) for value in values] if isinstance(values, list | tuple) else values


def _row(look: Look) -> dict[str, object]:
    """What check.json says of an image."""
    row: dict[str, object] = {"path": disk.escaped(str(look.path)), "split": look.split, "defect": look.defect}
    if look.measures is None:
        return row | {"refusals": [disk.escaped(sentence) for sentence in look.refusals]}
    kept = {name: value for name, value in look.measures._asdict().items() if name not in ("thumbnail", "digest")}
    return row | {"bits": look.bits, "mask": look.mask, **kept}


def _sections(seen: Survey, found: list[Finding]) -> list[tuple[str, list[Tile]]]:
    """The tiles of each finding; their images are decoded once more."""
    places = {}
    for source in (seen.train, seen.test):
        for index, path in enumerate(source.paths if source else ()):
            places[str(path)] = source, index
    sections = []
    for finding in found:
        if finding.kind in _UNDRAWN or not finding.files:
            continue
        tiles = [_tile(group, places) for group in finding.files[:_DRAWN]]
        more = f" ({_DRAWN} of {len(finding.files)})" if len(finding.files) > _DRAWN else ""
        headline = f"{finding.level}: {finding.problem.partition(' (')[0]}"
        sections.append((f"{headline}{more}", tiles))
    return sections


def _tile(group: tuple[str, ...], places: dict[str, tuple[FolderSource, int]]) -> Tile:
    shown = group[:4]  # of as many as there may be of the same pixels
    names = [f"{places[path][0].ids[places[path][1]]}" for path in shown]
    return Tile([_small(*places[path]) for path in shown], names)


def _small(source: FolderSource, index: int) -> np.ndarray:
    """An image with its defect outlined, as small as it is drawn; grey where it can no longer be read."""
    try:
        with without_warnings():
            record = source[index]
    except UserError:
        return np.full((SIDE, SIDE, 3), 200, np.uint8)
    shrink = min(1.0, SIDE / max(record.image.shape[:2]))
    size = [max(1, round(side * shrink)) for side in record.image.shape[1::-1]]
    image = cv2.resize(record.image, size, interpolation=cv2.INTER_AREA)
    if record.mask is None or not record.mask.any():
        return image
    mask = cv2.resize(record.mask, size, interpolation=cv2.INTER_NEAREST)
    return outline(image, mask)


if __name__ == "__main__":
    errors.run(main)
