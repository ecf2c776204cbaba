#!/usr/bin/env bash
# Pillow 13.0.0 reads an 8-bit BMP with a palette of black and white as if it had one bit a pixel. The file is valid
# (BITMAPINFOHEADER, 8 bits, biClrUsed = 2); OpenCV 5.0.0 reads it right. Pillow writes such a file itself, from a palette
# image of these two colors, and then does not get its own picture back.
# Seen: of a checkerboard of 8 x 8 pixels, 32 of them white, 4 white pixels are left, without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import struct

import cv2
import numpy as np
from PIL import Image

side = 8
board = (np.indices((side, side)).sum(0) % 2).astype(np.uint8)
palette = bytes([0, 0, 0, 0, 255, 255, 255, 0])
start = 14 + 40 + len(palette)
header = struct.pack("<2sIHHI", b"BM", start + board.size, 0, 0, start)
header += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 0, board.size, 2835, 2835, 2, 0)
with open("by_hand.bmp", "wb") as file:
    file.write(header + palette + board[::-1].tobytes())

own = Image.new("P", (side, side))
own.putdata(board.ravel().tolist())
own.putpalette([0, 0, 0, 255, 255, 255])
own.save("by_pillow.bmp")

for name in ("by_hand.bmp", "by_pillow.bmp"):
    opencv = cv2.imread(name)[..., 0]
    with Image.open(name) as image:
        mode, pillow = image.mode, np.array(image.convert("L"))
    print(f"{name}: {(opencv == 255).sum()} white pixels in OpenCV, {(pillow == 255).sum()} in Pillow (mode {mode})")
    assert np.array_equal(opencv, 255 * board), "OpenCV reads the file otherwise"
    assert (mode, (pillow == 255).sum()) == ("1", 4), "Pillow's reading has changed"
PYTHON
echo "as described"
