import cv2
import numpy as np
import pytest
from scipy import ndimage

from jaxad.augment.nsa import host
from jaxad.augment.nsa.host import Box
from jaxad.augment.nsa.settings import Synthesis, settings
from tests.refusals import refuses

SHAPE = (224, 224)
BOUNDS = {"half_height": (0.03, 0.40), "half_width": (0.03, 0.40)}
GAMMA = (2.0, 0.05, 0.03)
PLAIN = Synthesis()  # no background, so nothing is rejected
TINY = Synthesis(half_height=(0.03, 0.03), half_width=(0.03, 0.03))  # 7x7 after resizing: always skipped


def noise(seed: int, shape: tuple[int, ...] = (224, 224, 3)) -> np.ndarray:
    return ndimage.uniform_filter(np.random.default_rng(seed).integers(0, 256, shape), 3).astype(np.uint8)


def disc(seed: int, channels: int = 3) -> np.ndarray:
    """A textured dark disc on a white background."""
    image = np.full((224, 224, channels), 255, np.uint8)
    rows, columns = np.mgrid[:224, :224]
    inside = (rows - 112) ** 2 + (columns - 112) ** 2 < 90**2
    image[inside] = 20 + noise(seed, (224, 224, channels))[inside] // 3
    return image


def source(rng, partner_object, object_fraction=0.7):
    return host.sample_source_box(rng, SHAPE, partner_object, gamma=GAMMA, object_fraction=object_fraction, **BOUNDS)


def destination(rng, size, patch_object, image_object, object_fraction=0.7, overlap=0.25):
    return host.sample_destination_box(
        rng, size, SHAPE, patch_object, image_object, object_fraction=object_fraction, overlap=overlap
    )


@pytest.mark.parametrize(("hit", "accepted"), [(1, True), (198, True), (199, True), (200, False), (201, False)])
def test_a_hit_on_the_200th_try_is_discarded(hit, accepted):
    tries = iter(range(1, 1000))
    box = Box(1, 2, 3, 4)
    found = host.first_accepted(lambda: box, lambda _: next(tries) == hit)
    assert found == (box if accepted else None)


def test_object_mask_by_hand():
    image = np.full((60, 60, 3), 200, np.uint8)
    image[10:40, 10:40] = (140, 140, 139)  # 60.33 below the background on average
    image[50:56, 50:56] = 140  # exactly at the threshold: still background
    image[5, 50] = 0  # a grain
    expected = np.zeros((60, 60), np.uint8)
    expected[10:40, 10:40] = 1
    expected = ndimage.median_filter(expected, 7, mode="nearest")
    found = host.object_mask(image, background=(200.0, 60.0))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    assert found[25, 25] == 1 and found[10, 10] == 0  # the median rounds the corners


@pytest.mark.parametrize("channels", [1, 3])
def test_object_mask_equals_its_definition(channels):
    image = noise(5, (50, 70, channels))
    literal = (np.abs(image.mean(axis=2) - 120) > 20).astype(np.uint8)
    found = host.object_mask(image, background=(120.0, 20.0))
    np.testing.assert_array_equal(found, ndimage.median_filter(literal, 7, mode="nearest"))


def test_no_background_no_mask():
    assert host.object_mask(noise(0), background=None) is None


def test_source_sizes_and_centres_stay_in_bounds():
    rng = np.random.default_rng(0)
    boxes = np.array([source(rng, None) for _ in range(4000)])
    height = boxes[:, 1] - boxes[:, 0]
    assert height.max() <= 180 and height.min() >= 14  # centres keep the smallest half-size, 7, from the border
    assert boxes.min() == 0 and boxes.max() == 224  # larger patches are clipped there
    inner = boxes[(boxes[:, 0] > 0) & (boxes[:, 1] < 224)]
    assert ((inner[:, 1] - inner[:, 0]) % 2 == 0).all()


def test_clipped_box_by_hand():
    assert host.clipped_box(50, 60, (10, 20), (224, 224)) == (40, 60, 40, 80)
    assert host.clipped_box(5, 220, (10, 20), (224, 224)) == (0, 15, 200, 224)


def test_source_must_show_more_than_the_fraction_of_object():
    rng = np.random.default_rng(0)
    everywhere, nowhere = np.ones(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    assert source(rng, everywhere, 0.99) is not None
    assert source(rng, everywhere, 1.0) is None  # a share equal to the bound is not enough
    assert source(rng, nowhere, 0.0) is None
    left = np.zeros(SHAPE, np.uint8)
    left[:, :112] = 1
    boxes = [source(rng, left) for _ in range(200)]
    assert all(host.object_share(left[box.slices]) > 0.7 for box in boxes if box is not None)
    assert any(box.right > 112 for box in boxes if box is not None)  # up to 30 % may lie outside


def test_destination_keeps_a_margin_of_one_pixel():
    rng = np.random.default_rng(0)
    odd = np.array([destination(rng, (151, 91), None, None) for _ in range(2000)])
    assert odd.min(axis=0).tolist() == [1, 152, 1, 92] and odd.max(axis=0).tolist() == [72, 223, 132, 223]
    even = np.array([destination(rng, (150, 90), None, None) for _ in range(2000)])
    assert even.min(axis=0).tolist() == [1, 151, 1, 91] and even.max(axis=0).tolist() == [72, 222, 132, 222]


def test_destination_tests_the_resized_patch_for_its_object():
    rng = np.random.default_rng(0)
    everywhere = np.ones(SHAPE, np.uint8)
    patch = np.zeros((20, 20), np.uint8)
    patch[:14] = 1  # 70 %
    assert destination(rng, (20, 20), patch, everywhere, object_fraction=0.7) is None
    assert destination(rng, (20, 20), patch, everywhere, object_fraction=0.69) is not None


def test_destination_object_must_overlap_the_patchs():
    rng = np.random.default_rng(0)
    patch = np.ones((20, 20), np.uint8)
    left = np.zeros(SHAPE, np.uint8)
    left[:, :112] = 1
    boxes = [destination(rng, (20, 20), patch, left, overlap=0.25) for _ in range(400)]
    assert max(box.left for box in boxes) == 106  # 6 of 20 columns overlap; 5 are exactly 25 %, which is not enough
    assert destination(rng, (20, 20), patch, np.zeros(SHAPE, np.uint8), overlap=0.0) is None
    assert destination(rng, (20, 20), patch, np.ones(SHAPE, np.uint8), overlap=1.0) is None


def test_object_overlap_by_hand():
    patch = np.array([[1, 1, 1, 1, 0]], np.uint8)
    assert host.object_overlap(patch, np.array([[1, 0, 0, 0, 1]], np.uint8)) == 0.25
    assert host.object_share(patch) == 0.8


@pytest.mark.parametrize(
    ("height", "width", "scale", "size"),
    [
        (100, 50, 0.8, (80, 40)),
        (100, 50, 1.3, (90, 45)),  # 130 is cut to the *half*-height's bound, 0.4 x 224
        (100, 180, 1.0, (50, 90)),  # the height follows when the width is cut
        (14, 14, 0.4, (7, 7)),
        (180, 14, 1.0, (90, 7)),
        (33, 21, 0.7, (22, 14)),  # 23.1 x 14.7, and the height again from the whole width
    ],
)
def test_resized_size_by_hand(height, width, scale, size):
    assert host.resized_size(Box(0, height, 0, width), scale, SHAPE, **BOUNDS) == size


def test_resized_object_mask_stays_binary():
    mask = (np.random.default_rng(0).random((40, 30)) < 0.5).astype(np.uint8)
    assert set(np.unique(host.resize(mask, 23, 51))) == {0, 1}
    assert host.resize(noise(0, (40, 30, 1)), 23, 51).shape == (23, 51, 1)


def test_boxes_need_50_pixels_inside_their_ring():
    assert not host.is_blendable(Box(0, 9, 0, 9))  # 49
    assert host.is_blendable(Box(0, 12, 0, 7))  # 50


@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_a_patch_too_narrow_for_opencv_is_not_blendable(gradients):
    for side in range(3, 8):
        box = Box(0, side, 0, 60)
        assert host.is_blendable(box) == (side >= 5)
        if host.is_blendable(box):
            blended = host.blend_patch(noise(0)[:side, :60], noise(1)[:side, :60], gradients=gradients)
            assert blended.shape == (side, 60, 3)


@pytest.mark.slow
def test_synthesis_in_a_small_image_never_fails():
    rng = np.random.default_rng(0)
    for _ in range(300):
        made = host.random_synthesize(rng, noise(1)[:64, :64], noise(2)[:64, :64], settings=PLAIN)
        assert all(min(bottom - top, right - left) >= 5 for top, bottom, left, right in made.boxes)


@pytest.mark.parametrize("gradients", ["source", "mixed"])
@pytest.mark.parametrize("box", [Box(1, 41, 1, 61), Box(30, 61, 20, 43), Box(50, 90, 183, 223)])
def test_blending_the_rectangle_equals_cloning_into_the_whole_image(gradients, box):
    image, patch = noise(1), noise(2)[: box.bottom - box.top, : box.right - box.left]
    before = image.copy(), patch.copy()
    flag = {"source": cv2.NORMAL_CLONE, "mixed": cv2.MIXED_CLONE}[gradients]
    height, width = patch.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    mask[1:-1, 1:-1] = 255
    centre = (box.left + 1 + (width - 2) // 2, box.top + 1 + (height - 2) // 2)
    whole = cv2.seamlessClone(patch, image, mask, centre, flag)
    found = image.copy()
    found[box.slices] = host.blend_patch(patch, image[box.slices], gradients=gradients)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(patch, before[1])


def test_blending_keeps_the_ring_and_the_boundary_values():
    under = np.full((30, 40, 3), 90, np.uint8)
    patch = np.full((30, 40, 3), 200, np.uint8)
    # A constant patch has no gradients: only the boundary's value is left.
    blended = host.blend_patch(patch, under, gradients="source")
    assert np.abs(blended.astype(int) - 90).max() <= 1
    textured = host.blend_patch(noise(3)[:30, :40], under, gradients="source")
    assert textured.std() > 5
    for ring in (textured[:2], textured[-2:], textured[:, :2], textured[:, -2:]):
        assert np.abs(ring.astype(int) - 90).max() <= 1


def test_mixed_gradients_keep_the_texture_under_a_flat_patch():
    under, patch = noise(4)[:40, :40], np.full((40, 40, 3), 90, np.uint8)
    mixed = host.blend_patch(patch, under, gradients="mixed").astype(int)
    smooth = host.blend_patch(patch, under, gradients="source").astype(int)
    assert np.abs(mixed - under).max() <= 1
    assert np.abs(smooth[8:-8, 8:-8] - under[8:-8, 8:-8]).mean() > 10


@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_grey_blending_equals_each_channel_alone(gradients):
    patch, under = noise(5)[:40, :50], noise(6)[:40, :50]
    colour = host.blend_patch(patch, under, gradients=gradients)
    grey = host.blend_patch(patch[..., 1:2], under[..., 1:2], gradients=gradients)
    assert grey.shape == (40, 50, 1)
    np.testing.assert_array_equal(grey[..., 0], colour[..., 1])


def test_unknown_gradients_and_label_are_refused():
    with refuses("synthesis.blending", "both"):
        host.blend_patch(noise(0)[:20, :20], noise(1)[:20, :20], gradients="both")
    with refuses("label", "logistic"):
        host.random_synthesize(np.random.default_rng(0), noise(0), noise(1), settings=PLAIN, label="logit")
    with pytest.raises(ValueError, match="shape"):
        host.random_synthesize(np.random.default_rng(0), noise(0), noise(1)[:100], settings=PLAIN)


@pytest.mark.parametrize("category", ["bottle", "texture", "chest_xray_male"])
@pytest.mark.parametrize("channels", [1, 3])
def test_synthesis_changes_the_image_inside_its_boxes_only(category, channels):
    image, partner = disc(1, channels), disc(2, channels)
    before, changed = (image.copy(), partner.copy()), 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        made = host.random_synthesize(rng, image, partner, settings=settings(category).synthesis)
        assert made.image.shape == image.shape and made.image.dtype == np.uint8
        assert made.label.shape == made.mask.shape == (224, 224)
        assert made.label.dtype == np.float32 and made.mask.dtype == np.uint8
        inside = np.zeros((224, 224), bool)
        for box in made.boxes:
            inside[Box(*box).slices] = True
        np.testing.assert_array_equal(made.image[~inside], image[~inside])
        assert not made.mask[~inside].any()
        assert made.label.min() >= 0 and made.label.max() <= 1
        changed += made.label.any()
    assert changed >= 8  # mixed gradients let a flat patch disappear
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(partner, before[1])


def test_label_kinds_agree_with_each_other():
    image, partner = disc(1), disc(2)
    binary, continuous, logistic = (
        host.random_synthesize(
            np.random.default_rng(8), image, partner, settings=settings("bottle").synthesis, label=kind
        )
        for kind in ("binary", "continuous", "logistic")
    )
    np.testing.assert_array_equal(binary.image, logistic.image)
    assert set(np.unique(binary.label)) == {0, 1} and binary.label.dtype == np.float32
    assert continuous.label.max() > 5
    np.testing.assert_array_equal(logistic.label > 0, binary.label > 0)
    expected = binary.label / (1 + np.exp(-(continuous.label - 24) / 12))
    np.testing.assert_allclose(logistic.label, expected, atol=1e-6)


def test_synthesis_is_determined_by_the_seed():
    image, partner = disc(1), disc(2)
    first, again, other = (
        host.random_synthesize(np.random.default_rng(seed), image, partner, settings=settings("bottle").synthesis)
        for seed in (5, 5, 6)
    )
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.image != other.image).any()


def test_skipped_patches_leave_the_image_and_an_empty_label():
    image = disc(1)
    plain = np.full_like(image, 255)  # a partner without an object
    for chosen, partner in ((settings("bottle").synthesis, plain), (TINY, disc(2))):
        made = host.random_synthesize(np.random.default_rng(0), image, partner, settings=chosen)
        np.testing.assert_array_equal(made.image, image)
        assert not made.label.any() and not made.mask.any()
        assert made.boxes.shape == (0, 4) and made.skipped >= 1


def test_first_patch_is_always_tried_and_each_further_one_half_of_the_time():
    rng = np.random.default_rng(0)
    image, partner = disc(1), disc(2)
    tried = np.array([host.random_synthesize(rng, image, partner, settings=TINY).skipped for _ in range(800)])
    shares = np.bincount(tried, minlength=4) / 800
    np.testing.assert_allclose(shares, [0, 0.25, 0.5, 0.25], atol=0.06)
    assert shares[0] == 0


def test_label_mask_is_source_or_destination_object_and_later_patches_overwrite(monkeypatch):
    """Two patches at one place: the second one shows less object, and its mask replaces the first one's."""
    image, partner = np.full((224, 224, 3), 255, np.uint8), np.full((224, 224, 3), 255, np.uint8)
    partner[:100] = noise(1)[:100] // 4  # the source's object: the upper rows
    image[:, :110] = noise(2)[:, :110] // 4  # the destination's object: the left columns
    sources = iter([Box(20, 60, 20, 60), Box(80, 120, 20, 60)])  # full of object, upper half object
    place = Box(100, 140, 90, 130)
    monkeypatch.setattr(host, "sample_source_box", lambda *_, **__: next(sources))
    monkeypatch.setattr(host, "sample_destination_box", lambda *_, **__: place)
    chosen = Synthesis(background=(255.0, 60.0), patches=2, scale=(1.0, 1.0))
    made = host.random_synthesize(np.random.default_rng(1), image, partner, settings=chosen)  # the coin adds the second
    assert made.boxes.tolist() == [[*place]] * 2
    expected = np.zeros((224, 224), np.uint8)
    expected[100:120, 90:130] = 1  # the second source's object
    expected[120:140, 90:110] = 1  # the destination's object
    np.testing.assert_array_equal(made.mask, expected)
    assert (made.image[102:118, 92:128] != image[102:118, 92:128]).any()


def test_object_masks_come_from_the_images_before_the_first_patch(monkeypatch):
    seen = []
    original = host.sample_destination_box

    def spy(rng, size, shape, patch_object, image_object, **options):
        seen.append(image_object.copy())
        return original(rng, size, shape, patch_object, image_object, **options)

    monkeypatch.setattr(host, "sample_destination_box", spy)
    image = disc(1)
    chosen = settings("bottle").synthesis._replace(patches=6)
    host.random_synthesize(np.random.default_rng(0), image, disc(2), settings=chosen)
    assert len(seen) >= 3
    expected = host.object_mask(image, background=chosen.background)
    assert all((mask == expected).all() for mask in seen)
