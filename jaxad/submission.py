"""``python -m jaxad.submission``: scores the private test images of MVTec AD 2 in the form that its benchmark takes.

The benchmark (benchmark.mvtec.com) takes a folder with all eight categories, each scored by a detector of its own. The
form is what MVTec's ``check_and_prepare_data_for_upload.py`` checks:

- ``anomaly_images/<category>/<split>/<stem>.tiff``: the score map at the image's own size, float16.
- ``anomaly_images_thresholded/<category>/<split>/<stem>.png``: 255 where the map exceeds a threshold, else 0.

Nothing else may lie there; while a category is not complete, a file ``unfinished`` does. Maps are normalized first (see
`Detector.normalize`), since a raw score may be too large for float16. Masks are made of the maps before they are
rounded.
"""

import argparse
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxad import config as configs
from jaxad import detector, errors, predict
from jaxad.data import layouts
from jaxad.data.folder import category_folder, unique_stems
from jaxad.data.image import find_images
from jaxad.data.layouts.by_defect import AD_2, PRIVATE
from jaxad.data.layouts.found import require, unpack
from jaxad.detector import Detector
from jaxad.errors import UserError, counted
from jaxad.methods.method import Scores
from jaxad.runtime import devices, disk

_CATEGORIES = ("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts")
_MAPS, _MASKS = "anomaly_images", "anomaly_images_thresholded"
_UNFINISHED = "unfinished"  # a file beside the maps of a category of which images are missing
_MOST = float(np.finfo(np.float16).max)


def write_category(found: Detector, output: Path, *, threshold: float) -> int:
    """Writes the maps and masks of a category's private test images, in place of those of an earlier call.

    Args:
      found: A detector whose config names the category's folder.
      output: The folder of the submission, which other categories may lie in.
      threshold: Pixels of the score map above it are anomalous.

    Returns:
      How many images were scored.

    Raises:
      UserError: The folder is no category of MVTec AD 2 or lacks its private images, one of these cannot be read, or
        `output` holds other files where the benchmark takes none.
      OSError: A file cannot be written.
    """
    tifffile = _library()
    folder = _folder(found)
    by_split = {split: _images(folder / split) for split in PRIVATE}
    places = {split: [output / tree / folder.name / split for tree in (_MAPS, _MASKS)] for split in PRIVATE}
    unfinished = output / _MAPS / folder.name / _UNFINISHED
    disk.refuse_nul(unfinished)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    for split, images in by_split.items():
        for place, suffix in zip(places[split], (".tiff", ".png"), strict=True):
            _prepare(place, {f"{image.stem}{suffix}" for image in images})
    count = 0
    for split, images in by_split.items():
        for seen, _, scored in predict.predictions(found, images, batch=predict.batch_of(found, images), side=None):
            if seen.reason is not None:
                raise UserError(seen.reason, about=seen.path)
            made = found.region.map_at(scored, seen.shape)
            _write(found, made, threshold, [place / seen.path.stem for place in places[split]], tifffile)
            count += 1
    unfinished.unlink()
    return count


def _is_whole(place: Path) -> bool:
    """Whether a category's folder of maps was written to the end."""
    return place.is_dir() and not (place / _UNFINISHED).exists()


def _library() -> Any:
    try:
        import tifffile
    except ModuleNotFoundError:
        raise UserError(
            "maps in float16 take an optional package to write; run python3 -m pip install 'jaxad[tiff]'"
        ) from None
    return tifffile


def _folder(found: Detector) -> Path:
    """The folder of the category, with its name."""
    data = found.config.data
    folder = Path(os.path.abspath(category_folder(data.root, data.category)))
    if not layouts.LAYOUTS["mvtec_ad_2"].is_here(folder):
        raise UserError(
            f"'{folder}' is no category of {AD_2}, whose private test images are scored; name one with "
            "--config.data.root=DIR",
            about=folder,
        )
    require(folder, AD_2, *PRIVATE)
    return folder


def _images(folder: Path) -> list[Path]:
    found = unique_stems(find_images(folder))
    if not found:
        raise UserError(f"folder '{folder}' holds no images of {AD_2}; {unpack(AD_2)}", about=folder)
    return found


def _prepare(place: Path, names: set[str]) -> None:
    """Makes a folder, and refuses one with files that are not written now."""
    disk.refuse_nul(place)
    place.mkdir(parents=True, exist_ok=True)
    disk.clean(place)
    if others := sorted(path for path in place.iterdir() if path.name not in names):
        raise UserError(
            f"'{others[0]}' belongs to no private test image of this category, and the benchmark takes no other files; "
            "remove it or choose another --output",
            about=others[0],
        )


def _write(found: Detector, made: np.ndarray, threshold: float, stems: list[Path], tifffile: Any) -> None:
    """Writes a map, float32 (h, w), and its mask; what is not judged has the map's lowest value."""
    mask = np.where(made > threshold, np.uint8(255), np.uint8(0))  # NaN, which is not judged, exceeds nothing
    made = np.where(np.isnan(made), np.nanmin(made), made)
    normalized = found.normalize(Scores(np.zeros(1, np.float32), made)).map.clip(-_MOST, _MOST).astype(np.float16)
    encoded = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(encoded[0], normalized)
    Image.fromarray(mask).save(encoded[1], "PNG")
    for stem, suffix, content in zip(stems, (".tiff", ".png"), encoded, strict=True):
        disk.write_bytes(stem.with_name(f"{stem.name}{suffix}"), content.getbuffer())


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.submission",
        description="Scores test_private and test_private_mixed of the category of MVTec AD 2 that a workdir was "
        "trained on, and writes maps and masks for the benchmark's server; one call for each category.",
    )
    parser.add_argument("--workdir", required=True, help="a directory that jaxad.train completed")
    parser.add_argument("--output", required=True, metavar="DIR", help="the submission, of all categories")
    flags, overrides = configs.arguments(parser, argv)
    devices.set_up_process()
    found, output = detector.load(flags.workdir, overrides), Path(flags.output)
    try:
        with disk.locked(flags.workdir):
            threshold, start = found.pixel_threshold, time.perf_counter()
            if threshold is None:
                raise UserError(f"there is no threshold for pixels to make masks by: {detector.NO_THRESHOLD}")
            count = write_category(found, output, threshold=threshold)
    except OSError as error:
        raise UserError(
            f"the submission cannot be written to {output} ({error.strerror or error}); make that possible or choose "
            "another --output",
            about=output,
        ) from error
    speed = count / (time.perf_counter() - start)
    print(f"{counted(count, 'image')}, pixels above {threshold:.4g} marked, {speed:.1f} images/s: {output}")
    if missing := [name for name in _CATEGORIES if not _is_whole(output / _MAPS / name)]:
        print(f"the benchmark takes all categories; missing or unfinished: {', '.join(missing)}")


if __name__ == "__main__":
    errors.run(main)
