"""Scores images with the model beside this file, without jaxad: python runner.py --output predictions.csv IMAGE...

It needs numpy, Pillow and onnxruntime or openvino. Images are PNG, JPEG, BMP or WebP with 8 bits a channel.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Image.MAX_IMAGE_PIXELS = None  # the card says how many are too many
HERE, BATCH = Path(__file__).resolve().parent, 8
COLUMNS = [
    "path", "score", "threshold", "decision", "peak_row", "peak_column", "judged_top", "judged_left", "judged_bottom",
    "judged_right", "largest_value", "clipped_pixels", "heatmap", "reason", "sha256",
]  # fmt: skip
# Of image files, also of those that get the row `unreadable`, as in jaxad.predict.
SUFFIXES = [
    ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".exr", ".fits", ".gif", ".hdr", ".heic", ".heif",
    ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".mpo", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".png",
    ".pnm", ".ppm", ".psd", ".raw", ".tga", ".tif", ".tiff", ".webp",
]  # fmt: skip
HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16"}  # what OpenVINO computes in


def load(card):
    """images (n, h, w, c) -> scores (n,) and maps (n, h, w)."""
    if card["format"] == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda images: session.run(["score", "map"], {"images": images})
    import openvino

    options = {"INFERENCE_PRECISION_HINT": HINTS[card["precision"]]}
    program = openvino.Core().compile_model(HERE / "model.xml", "CPU", options)
    return lambda images: [program({"images": images})[name] for name in ("score", "map")]


def images_in(folder, above=()):
    """The image files of a folder, then those of its subfolders, as jaxad.predict finds them; hidden ones left out."""
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it lies in has no end
        return []
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in there if path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists())]
    return found + [path for below in there if below.is_dir() for path in images_in(below, (*above, place))]


def escaped(text):
    """As valid UTF-8: a backslash is doubled, and a byte of a name that is none becomes backslash, x and two digits."""
    return text.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read(data, card):
    """The pixels of an image, uint8 (h, w, c), turned as its metadata says; alpha is dropped. Refuses by ValueError."""
    image, channels = Image.open(io.BytesIO(data)), card["input"]["shape"][3]
    deep = image.format == "PNG" and data[24] == 16
    if image.format not in ("PNG", "JPEG", "BMP", "WEBP") or deep or image.mode[0] in "IF":
        raise ValueError("this runner reads PNG, JPEG, BMP and WebP of 8 bits a channel alone; use jaxad.predict")
    if min(image.size) < card["min_side"] or image.width * image.height > card["max_pixels"]:
        raise ValueError(f"{image.width} x {image.height} pixels are too few or too many")
    image = ImageOps.exif_transpose(image)
    image.info.pop("transparency", None)
    image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    if channels == 1 and image.mode == "RGB":
        red, green, blue = (np.array(band, np.int64) for band in image.split())
        return ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).astype(np.uint8)[..., None]  # OpenCV's luma
    return np.array(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)


def resized(image, size, tolerance):
    """The image at the size for scoring. Refuses another aspect ratio by ValueError, where training kept it."""
    scale = min(new / old for new, old in zip(size, image.shape, strict=False))
    if tolerance and any(new - round(old * scale) > tolerance for new, old in zip(size, image.shape, strict=False)):
        raise ValueError(f"its aspect ratio is not that of {size[1]} x {size[0]}; use jaxad.predict")
    if image.shape[:2] == size:
        return image
    flat = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.array(flat.resize(size[::-1], Image.Resampling.LANCZOS)).reshape(*size, image.shape[2])


def row(path, shape, score, scored, card, digest):
    """The image's row of the table."""
    threshold, borders = card["threshold"], card["border"]
    top, left = (min(round(b * n / m), (n - 1) // 2) for b, n, m in zip(borders, shape, scored.shape, strict=True))
    bottom, right = shape[0] - top, shape[1] - left
    inside = scored[borders[0] : scored.shape[0] - borders[0], borders[1] : scored.shape[1] - borders[1]]
    cells = np.unravel_index(inside.argmax(), inside.shape)
    places = [int((b + int(c) + 0.5) * n / m) for b, c, n, m in zip(borders, cells, shape, scored.shape, strict=True)]
    peak = [min(max(places[0], top), bottom - 1), min(max(places[1], left), right - 1)]
    decision = "n/a" if threshold is None else "defective" if score > threshold else "good"
    shown = "n/a" if threshold is None else threshold
    return [path, score, shown, decision, *peak, top, left, bottom, right, "", "", "", "", digest]


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files, or folders of images")
    parser.add_argument("--output", default="predictions.csv", help="the table to write (default predictions.csv)")
    flags = parser.parse_args()
    if Path(flags.output).resolve().parent == HERE:
        parser.error(f"--output {flags.output} lies in the folder of the model, which is kept as it is; name another")
    card, paths = json.loads((HERE / "card.json").read_text()), []
    for path in map(Path, flags.images):
        paths += images_in(path) if path.is_dir() else [path]
    run, size, rows = load(card), tuple(card["input"]["shape"][1:3]), {}
    for start in range(0, len(paths), BATCH):
        seen = []
        for number, path in enumerate(paths[start : start + BATCH], start):
            name, digest = escaped(str(path)), ""
            try:
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                image = read(data, card)
                scored = resized(image, size, card["aspect_tolerance"])
            except Exception as error:  # Pillow raises many kinds of what is damaged
                threshold = "n/a" if card["threshold"] is None else card["threshold"]
                rows[number] = [name, "", threshold, "unreadable", *[""] * 9, escaped(str(error)), digest]
                continue
            seen.append((number, name, digest, image.shape[:2], scored))
        scores, maps = run(np.stack([one[-1] for one in seen])) if seen else ((), ())
        for (number, name, digest, shape, _), score, scored in zip(seen, scores, maps, strict=True):
            rows[number] = row(name, shape, float(score), scored, card, digest)
    with open(flags.output, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *(rows[number] for number in range(len(paths)))])
    if failed := sum(made[3] == "unreadable" for made in rows.values()):
        sys.exit(f"error: {failed} of {len(paths)} images cannot be scored; {flags.output} says why")


if __name__ == "__main__":
    main()
