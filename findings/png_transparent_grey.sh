#!/usr/bin/env bash
# A grey PNG can name one grey level as transparent (chunk tRNS). What two readers make of it depends on the bit depth:
# - Pillow 13.0.0 scales greys of 2 and 4 bits to 8 bits, but leaves info["transparency"] as it is stored, so that
#   convert("LA") finds no such pixel and calls every pixel opaque. With 1 and 8 bits it is right.
# - OpenCV 5.0.0 with IMREAD_UNCHANGED makes an alpha channel of a transparent color of RGB in 16 bits, and drops a
#   transparent grey of 16 bits without a word.
# Seen: of 4 pixels, of which 2 have the transparent level, Pillow finds 2, 0, 0 and 2 at 1, 2, 4 and 8 bits; OpenCV
# returns 4 channels for RGB and 1 for grey.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def png(bits, kind, hidden, pixels):
    """One row of 4 pixels of a color type, of which those with the level `hidden` are transparent."""
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, kind, 0, 0, 0)),
        (b"tRNS", hidden),
        (b"IDAT", zlib.compress(b"\0" + pixels)),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data


found = []
for bits in (1, 2, 4, 8):
    white = 2**bits - 1
    row = 0
    for level in (white, 0, white, 0):
        row = row << bits | level
    width = max(8, 4 * bits)  # whole bytes
    row <<= width - 4 * bits
    picture = Image.open(io.BytesIO(png(bits, 0, struct.pack(">H", white), row.to_bytes(width // 8, "big"))))
    picture.load()
    alpha = np.array(picture.convert("LA").getchannel("A"))
    print(f"Pillow, {bits} bits: mode {picture.mode}, transparent level {picture.info['transparency']}, "
          f"{(alpha == 0).sum()} transparent pixels")
    found.append(int((alpha == 0).sum()))
assert found == [2, 0, 0, 2], "Pillow's reading has changed"

channels = []
for kind, count in ((2, 3), (0, 1)):
    pixels = np.repeat(np.array([65535, 0, 65535, 0], ">u2"), count).tobytes()
    data = np.frombuffer(png(16, kind, b"\xff\xff" * count, pixels), np.uint8)
    read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    channels.append(1 if read.ndim == 2 else read.shape[2])
    print(f"OpenCV, 16 bits, {count} stored channels: {channels[-1]} channels")
assert channels == [4, 1], "OpenCV's reading has changed"
PYTHON
echo "as described"
