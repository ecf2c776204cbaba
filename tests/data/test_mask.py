"""Which pixels of a mask are marked, how it lies on a turned image, and what is left of it when it is made smaller."""

import io
import json
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from jaxad import evaluate
from jaxad.data import folder
from jaxad.data.mask import MASK_RULES, read_mask, resize_mask
from tests.commands import train
from tests.data.test_image import encoded, message, smooth, write
from tests.parts import baseline, command, refusal, write_parts

SPOT = np.zeros((32, 32), np.uint8)
SPOT[5:9, 20:24] = 1  # 16 pixels


def read(tmp_path, picture, kind="PNG", **options):
    return read_mask(write(tmp_path, encoded(picture, kind, **options)))


def values(tmp_path, row, dtype=np.uint8):
    data = cv2.imencode(".png", np.array([row], dtype))[1].tobytes()
    return read_mask(write(tmp_path, data))[0].tolist()


# Which pixels are marked


@pytest.mark.parametrize(
    "palette",
    [
        (255, 255, 255, 0, 0, 0),
        (0, 0, 0, 255, 255, 255),
        (200, 200, 200, 255, 0, 0),
        (0, 0, 0, 128, 0, 0),
        (9, 9, 9, 9, 9, 9),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_of_a_palette_every_index_but_0_is_marked(tmp_path, palette, kind):
    picture = Image.fromarray(SPOT, "L").copy()
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(palette)
    mask = read(tmp_path, picture, kind)
    assert mask.dtype == np.uint8 and mask.sum() == 16
    np.testing.assert_array_equal(mask, SPOT)


@pytest.mark.parametrize("spot", [0, 1, 2])
@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (255, 0, 0)])
@pytest.mark.parametrize("alpha", [128, 255])
def test_a_transparent_index_of_a_palette_is_not_marked(tmp_path, spot, color, alpha):
    """Editors put what is transparent at any index, be it the last one."""
    hidden = (spot + 1) % 3
    picture = Image.frombytes("P", (32, 32), np.where(SPOT, spot, hidden).astype(np.uint8).tobytes())
    picture.putpalette([part for index in range(3) for part in (color if index == spot else (255, 255, 255))])
    alphas = bytes(alpha if index == spot else 0 for index in range(3))
    np.testing.assert_array_equal(read(tmp_path, picture, transparency=alphas), SPOT)
    np.testing.assert_array_equal(read(tmp_path, picture, transparency=hidden), SPOT)


def test_of_a_palette_that_hides_index_0_every_other_one_is_marked_whatever_its_color(tmp_path):
    """Of 12 classes, six nearly black and six nearly white; by their brightness they would look like a saved JPEG."""
    index = np.arange(32 * 32).reshape(32, 32) % 13  # index 1 is black
    picture = Image.frombytes("P", (32, 32), index.astype(np.uint8).tobytes())
    picture.putpalette([level for level in (0, 0, *range(2, 7), *range(250, 256)) for _ in range(3)])
    np.testing.assert_array_equal(read(tmp_path, picture, transparency=0), index != 0)
    np.testing.assert_array_equal(read(tmp_path, picture), index != 0)


def test_a_palette_with_hidden_pixels_and_index_0_beside_others_is_refused(tmp_path):
    """A background of index 0 with an unknown region, or a drawing in several colors on nothing: nobody can tell."""
    picture = Image.frombytes("P", (4, 1), b"\0\1\2\3")
    picture.putpalette((0, 0, 0, 255, 0, 0, 0, 0, 9, 255, 255, 255))
    told = message(lambda: read(tmp_path, picture, transparency=b"\xff\xff\x80\0"))
    assert "cannot be told which are good" in told and "index 0" in told
    assert read(tmp_path, picture, transparency=b"\0\xff\x80\0").tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("alphas", [b"\xff\x80\xff", b"\0\0\0", b"\xff\xff\xff\0"])
def test_a_palette_that_hides_no_pixel_or_all_is_read_by_index(tmp_path, alphas):
    picture = Image.frombytes("P", (32, 32), (SPOT * 2).tobytes())
    picture.putpalette((255, 255, 255, 0, 0, 0, 0, 0, 0, 1, 1, 1))
    np.testing.assert_array_equal(read(tmp_path, picture, transparency=alphas), SPOT)


@pytest.mark.parametrize(
    "row",
    [
        [0, 255, 255, 0],
        [0, 100, 200, 0],  # two classes
        [0, 1, 2, 0],
        [0, 3, 128, 0],  # a class number above half of white beside a lower one
        [0, 1, 255, 0],
        [0, 127, 128, 0],  # an edge
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_in_lossless_grey_every_value_but_0_is_marked(tmp_path, row, dtype):
    assert values(tmp_path, row, dtype) == [0, 1, 1, 0]
    assert values(tmp_path, [value * (257 if dtype == np.uint16 else 1) for value in row], dtype) == [0, 1, 1, 0]


def test_an_empty_and_a_one_bit_mask(tmp_path):
    assert values(tmp_path, [0, 0, 0]) == [0, 0, 0]
    np.testing.assert_array_equal(read(tmp_path, Image.fromarray(SPOT > 0)), SPOT)


def test_of_colors_every_one_but_black_is_marked(tmp_path):
    colors = np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 3], [90, 90, 90]]], np.uint8)
    assert read(tmp_path, colors).tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("color", [(255, 255, 255), (255, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_mask_in_the_alpha_channel_of_one_color(tmp_path, color, kind):
    rgba = np.dstack([np.full((32, 32, 3), color, np.uint8), SPOT * 255])
    np.testing.assert_array_equal(read(tmp_path, rgba, kind), SPOT)
    rgba[SPOT == 0] = 7, 80, 9, 0  # what is not seen may have any color
    np.testing.assert_array_equal(read(tmp_path, rgba, kind), SPOT)


def test_grey_with_alpha_of_8_and_16_bits(tmp_path):
    grey = Image.merge("LA", [Image.new("L", (32, 32), 255), Image.fromarray(SPOT * 200)])
    np.testing.assert_array_equal(read(tmp_path, grey), SPOT)
    deep = np.dstack([np.full((32, 32, 3), 65535, np.uint16), SPOT * np.uint16(65535)])
    path = write(tmp_path, cv2.imencode(".png", deep)[1].tobytes())
    np.testing.assert_array_equal(read_mask(path), SPOT)


def test_of_several_visible_colors_black_is_not_marked(tmp_path):
    rgba = np.array([[[0, 0, 0, 255], [255, 0, 0, 255], [0, 0, 9, 128], [255, 255, 255, 0]]], np.uint8)
    assert read(tmp_path, rgba).tolist() == [[0, 1, 1, 0]]
    rgba[..., 3] = 255  # opaque: as without alpha
    assert read(tmp_path, rgba).tolist() == [[0, 1, 1, 1]]
    rgba[..., 3] = 0
    assert read(tmp_path, rgba).tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_transparent_color_is_not_marked(tmp_path, mode):
    """PNG's tRNS chunk names one color that is not seen, whatever it is: here white, beside black that is seen."""
    picture = Image.fromarray(255 - 255 * SPOT).convert(mode)
    hidden = (255, 255, 255) if mode == "RGB" else 255
    np.testing.assert_array_equal(read(tmp_path, picture, transparency=hidden), SPOT)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_is_not_marked(tmp_path, bits):
    """The chunk names it as it is stored, not scaled to 8 bits."""
    stored = np.where(SPOT, 0, 2**bits - 1).astype(np.uint8)
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in stored]
    header = struct.pack(">IIBBBBB", 32, 32, bits, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(">H", 2**bits - 1), b"IDAT": zlib.compress(b"\0" + b"\0".join(rows))}
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in (parts | {b"IEND": b""}).items():
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    np.testing.assert_array_equal(read_mask(write(tmp_path, data)), SPOT)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_color_of_16_bits_is_not_marked(tmp_path, channels):
    deep = np.where(SPOT, 300, 65535).astype(np.uint16)
    data = cv2.imencode(".png", np.dstack([deep] * channels))[1].tobytes()
    at = data.index(b"IDAT") - 4
    color = b"tRNS" + b"\xff\xff" * channels
    data = data[:at] + struct.pack(">I", 2 * channels) + color + struct.pack(">I", zlib.crc32(color)) + data[at:]
    np.testing.assert_array_equal(read_mask(write(tmp_path, data)), SPOT)


@pytest.mark.parametrize("white, tag", [
    (255, None), (4000, None), (4095, None), (65535, None),
    (4095, 4095), (1000, 1000), (3000, 3000),
    (255, 65535), (4095, 65535),  # a tag that says no more than that the file has 16 bits
])  # fmt: skip
def test_in_a_grey_scale_whose_0_is_white_the_largest_value_is_black(tmp_path, white, tag):
    stored = np.where(SPOT, 0, white).astype(np.uint8 if (white, tag) == (255, None) else np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, stored, photometric="miniswhite", extratags=[(281, 3, 1, tag, True)] if tag else [])
    np.testing.assert_array_equal(read_mask(write(tmp_path, stream.getvalue())), SPOT)


def shape_of(height=96, width=112):
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (50, 40), (30, 17), 20, 0, 360, 1, -1)
    cv2.line(mask, (10, 80), (100, 90), 1, 3)
    return mask


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("white", [255, 200])
def test_in_a_jpeg_what_exceeds_half_of_white_is_marked(tmp_path, quality, white):
    mask = shape_of()
    made = read(tmp_path, mask * np.uint8(white), "JPEG", quality=quality)
    assert (made != mask).sum() <= (2 if quality == 50 else 0)
    np.testing.assert_array_equal(read(tmp_path, mask * 0, "JPEG"), mask * 0)


def test_in_lossy_webp_and_in_a_tiff_with_jpeg_compression(tmp_path):
    mask = shape_of()
    np.testing.assert_array_equal(read(tmp_path, Image.fromarray(mask * 255).convert("RGB"), "WEBP", quality=80), mask)
    np.testing.assert_array_equal(read(tmp_path, mask * 255, "TIFF", compression="jpeg"), mask)
    classes = Image.fromarray(mask * 100).convert("RGB")
    np.testing.assert_array_equal(read(tmp_path, classes, "WEBP", lossless=True), mask)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_in_a_png_made_of_a_jpeg_too(tmp_path, quality):
    mask = shape_of()
    noisy = cv2.imdecode(cv2.imencode(".jpg", mask * 255, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)
    assert len(np.unique(noisy)) > 10
    np.testing.assert_array_equal(read(tmp_path, noisy), mask)


def test_a_smooth_edge_in_a_png_is_marked_to_its_last_pixel(tmp_path):
    drawn = cv2.GaussianBlur(shape_of() * 255, (0, 0), 2)
    np.testing.assert_array_equal(read(tmp_path, drawn), drawn > 0)


def test_classes_in_a_jpeg_are_refused(tmp_path):
    mask = shape_of() * 200
    mask[5:15, 80:110] = 100
    path = write(tmp_path, encoded(mask, "JPEG", quality=90), "mask.jpg")
    expected = (
        f"mask '{path}' is stored with loss and has other values than black and one brighter one, so that its defects "
        "cannot be told from noise; save it as PNG"
    )
    assert message(read_mask, path) == expected
    write(tmp_path, encoded(shape_of() * 40, "JPEG", quality=90), "mask.jpg")
    assert message(read_mask, path) == expected


def test_mask_errors_are_those_of_images(tmp_path):
    assert "is empty (zero bytes)" in message(read_mask, write(tmp_path, b""))
    path = write(tmp_path, encoded(SPOT, "PNG"))
    assert "more than the limit of 1,000 pixels" in message(read_mask, path, max_pixels=1000)


# Image and mask


def load(tmp_path, image, mask, *, tag=1, mask_tag=1, kind="JPEG"):
    """A category of one defective image with its mask, which carry EXIF orientations."""
    root = tmp_path / "nut"
    for name in ("train/good", "test/bent", "ground_truth/bent"):
        (root / name).mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if kind == "JPEG" else {}
    for path, array, value, form, more in (
        (root / "test/bent/0.img", image, tag, kind, options),
        (root / "ground_truth/bent/0.png", mask, mask_tag, "PNG", {}),
    ):
        exif = Image.Exif()
        if value != 1:
            exif[0x0112] = value
        path.with_suffix(".png").write_bytes(encoded(array, form, exif=exif, **more))
    (root / "train/good/0.png").write_bytes(encoded(image, "PNG"))
    return folder.load(tmp_path, "nut").test


def scene(height, width):
    """A smooth image with a bright spot in an odd place, and the mask of the spot."""
    image, mask = smooth(height, width) // 4, np.zeros((height, width), np.uint8)
    mask[8:16, 24:32] = 255
    image[mask > 0] = 255
    return image, mask


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_the_size_tells_how_a_mask_lies_on_a_turned_image(tmp_path, tag):
    image, mask = scene(48, 64)
    record = load(tmp_path, image, mask, tag=tag)[0]  # drawn on the pixels as they are stored
    assert record.image.shape == (64, 48, 3) and record.mask.shape == (64, 48)
    assert record.image[record.mask == 1].min() > 200 and record.image[record.mask == 0].max() < 200
    np.testing.assert_array_equal(load(tmp_path, image, record.mask * 255, tag=tag)[0].mask, record.mask)


@pytest.mark.parametrize("tag", range(2, 9))
def test_a_mask_with_an_orientation_of_its_own_is_turned_by_it(tmp_path, tag):
    image, mask = scene(64, 64)
    record = load(tmp_path, image, mask, tag=tag, mask_tag=tag)[0]
    assert record.mask.sum() == 64
    assert record.image[record.mask == 1].min() > 200 and record.image[record.mask == 0].max() < 200


@pytest.mark.parametrize(("tag", "size"), [(6, (64, 64)), (8, (64, 64)), (2, (48, 64)), (3, (48, 64)), (4, (64, 64))])
def test_a_mask_that_lies_in_two_ways_on_a_turned_image_is_refused(tmp_path, tag, size):
    image, mask = scene(*size)
    told = message(load(tmp_path, image, mask, tag=tag).__getitem__, 0)
    assert told == (
        f"image '{tmp_path / 'nut/test/bent/0.png'}' is turned by its EXIF orientation ({tag}), and whether its mask "
        f"'{tmp_path / 'nut/ground_truth/bent/0.png'}' was drawn before or after that cannot be told; save the image "
        "turned and without the orientation, with a mask to match"
    )


def test_a_mask_of_another_size_is_refused(tmp_path):
    image, _ = scene(48, 64)
    assert "make them the same size" in message(load(tmp_path, image, SPOT, tag=6).__getitem__, 0)


@pytest.mark.parametrize(
    ("good_rows", "told"),
    [
        (48, "marks no pixel of its defective image; it is used as it is"),
        (2, "marks 96 % of its defective image; invert it if the marked part is good"),
        (0, "marks 100 % of its defective image; invert it if the marked part is good"),
        (5, None),
    ],
)
def test_a_mask_that_marks_nothing_or_nearly_everything_is_told(tmp_path, caplog, good_rows, told):
    image, mask = scene(48, 64)
    mask = np.full_like(mask, 255)
    mask[:good_rows] = 0
    with caplog.at_level(logging.WARNING):
        load(tmp_path, image, mask)[0]
    path = tmp_path / "nut/ground_truth/bent/0.png"
    assert [record.getMessage() for record in caplog.records] == ([f"mask '{path}' {told}"] if told else [])


# Other sizes


def regions(mask):
    return ndimage.label(mask, np.ones((3, 3)))[1]


def covered(mask, size):
    """Each new pixel from its definition: any marked pixel that it covers, or when enlarging the nearest one."""
    made = np.zeros(size, np.uint8)
    for place in np.ndindex(*size):
        window = []
        for index, old, new in zip(place, mask.shape, size, strict=True):
            if new >= old:
                nearest = int((index + 0.5) * old / new)
                window.append(slice(nearest, nearest + 1))
            else:
                pixels = [p for p in range(old) if (p + 1) * new > index * old and p * new < (index + 1) * old]
                window.append(slice(pixels[0], pixels[-1] + 1))
        made[place] = mask[tuple(window)].any()
    return made


@pytest.mark.parametrize("size", [(7, 9), (10, 5), (4, 17), (1, 1), (19, 23), (20, 8), (26, 30), (13, 46)])
def test_a_smaller_pixel_is_marked_if_it_covers_any_marked_one(size):
    for seed in range(5):
        mask = (np.random.default_rng(seed).random((19, 23)) < 0.05).astype(np.uint8)
        made = resize_mask(mask, size)
        assert made.dtype == np.uint8 and made.flags.c_contiguous
        np.testing.assert_array_equal(made, covered(mask, size))


def test_thin_defects_stay():
    scratch = np.zeros((1024, 1024), np.uint8)
    scratch[100:900, 499:501] = 1  # between the pixels that nearest neighbours pick
    assert not np.array(Image.fromarray(scratch).resize((256, 256), Image.Resampling.NEAREST)).any()
    made = resize_mask(scratch, (256, 256))
    assert (made.any(axis=0).nonzero()[0].tolist(), made.sum()) == ([124, 125], 400) and regions(made) == 1

    oblique = np.zeros((1024, 1024), np.uint8)
    cv2.line(oblique, (100, 200), (800, 437), 1, 1)
    assert regions(oblique) == 1
    assert regions(np.array(Image.fromarray(oblique).resize((256, 256), Image.Resampling.NEAREST))) > 10
    assert regions(resize_mask(oblique, (256, 256))) == 1

    point = np.zeros((1000, 700), np.uint8)
    point[999, 0] = 1
    for size in [(256, 256), (3, 1), (999, 699)]:
        assert resize_mask(point, size)[-1, 0] == 1


@pytest.mark.parametrize("seed", range(5))
def test_what_is_connected_stays_connected(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((333, 401), np.uint8)
    cv2.line(mask, *[tuple(map(int, rng.integers(0, 333, 2))) for _ in range(2)], 1, 1)
    assert regions(mask) == 1 == regions(resize_mask(mask, tuple(map(int, rng.integers(20, 330, 2)))))


@pytest.mark.parametrize("size", [(7, 9), (10, 5), (1, 1), (18, 22), (19, 8), (38, 10), (3, 46)])
def test_rules_ask_for_a_share_of_the_area(size):
    """Repeated as often as the new mask has rows and columns, each new pixel is a block of whole pixels."""
    for seed in range(5):
        mask = (np.random.default_rng(seed).random((19, 23)) < 0.7).astype(np.uint8)
        share = mask.repeat(size[0], 0).repeat(size[1], 1).reshape(size[0], 19, size[1], 23).mean((1, 3))
        for rule, expected in (("any", share > 0), ("half", share > 0.5), ("all", share > 1 - 1e-9)):
            made = resize_mask(mask, size, rule=rule)
            assert made.dtype == np.uint8 and made.flags.c_contiguous
            np.testing.assert_array_equal(made, expected, err_msg=rule)


def test_rules_by_hand():
    # Four blocks of four pixels, of which 1, 2, 3 and 4 are marked; a half is not more than a half.
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1]], np.uint8)
    assert resize_mask(mask, (2, 2), rule="any").tolist() == [[1, 1], [1, 1]]
    assert resize_mask(mask, (2, 2), rule="half").tolist() == [[0, 0], [1, 1]]
    assert resize_mask(mask, (2, 2), rule="all").tolist() == [[0, 0], [0, 1]]
    # Of three pixels in two, the middle one is cut: 1 of 1.5 pixels is more than a half, 0.5 of 1.5 is not.
    assert resize_mask(np.array([[1, 0, 0]], np.uint8), (1, 2), rule="half").tolist() == [[1, 0]]
    assert resize_mask(np.array([[0, 1, 0]], np.uint8), (1, 2), rule="half").tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="any, half, all, not 'most'"):
        resize_mask(mask, (2, 2), rule="most")


@pytest.mark.parametrize("rule", MASK_RULES)
def test_larger_masks_take_the_nearest_pixel_and_equal_ones_are_free(rule):
    mask = np.array([[0, 1, 0], [1, 0, 0]], np.uint8)
    assert resize_mask(mask, (2, 3), rule=rule) is mask
    np.testing.assert_array_equal(resize_mask(mask, (4, 6), rule=rule), mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(resize_mask(mask.repeat(3, 0).repeat(3, 1), (2, 3)), mask)


@pytest.mark.medium
def test_commands_evaluate_with_palettes_and_refuse_what_cannot_be_told(tmp_path, capsys):
    root = write_parts(tmp_path)
    assert command(train.main, *baseline(root, tmp_path / "grey")) == 0
    expected = (tmp_path / "grey" / "results.json").read_text()
    for path in (root / "nut" / "ground_truth" / "spot").iterdir():
        picture = Image.open(path).point(lambda value: value > 0)
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette((255, 255, 255, 0, 0, 0))  # white is not marked, black is
        picture.save(path)
    assert command(train.main, *baseline(root, tmp_path / "palette")) == 0
    made = json.loads((tmp_path / "palette" / "results.json").read_text())
    assert made["pixel"] == json.loads(expected)["pixel"]
    assert made["pixel"]["auroc"] > 0.9

    exif = Image.Exif()
    exif[0x0112] = 3
    image = root / "nut" / "test" / "spot" / "001.png"
    Image.open(image).save(image, exif=exif)
    told = refusal(capsys, evaluate.main, "--workdir", tmp_path / "palette")
    assert told.startswith(f"image '{image}' is turned by its EXIF orientation (3), and whether its mask ")
