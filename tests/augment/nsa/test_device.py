"""The synthesis on the device against the host's, piece by piece and as a distribution, and by hand."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp

from jaxad.augment.boxes import Box
from jaxad.augment.nsa import device, host, host_labels, sampling
from jaxad.augment.nsa.settings import Synthesis, settings
from tests.augment.nsa.test_host import disc, noise
from tests.augment.nsa.test_statistics import bottle_crop, named, tile_crop
from tests.augment.quick import quick_jit
from tests.refusals import refuses
from tests.shared import SHARED, needs_shared

COUNT = 24
SHAPE = (96, 128)  # not square, so that rows and columns cannot be mistaken for each other
OBJECT = settings("bottle").synthesis
TEXTURE = settings("texture").synthesis
# The paper's baselines and ablations.
CUTPASTE = OBJECT._replace(source="same", resized=False, blending="paste")
FPI = OBJECT._replace(resized=False, moved=False, blending="interpolate", factor=(0.05, 0.95))
PII = FPI._replace(blending="mixed")
CUTPASTE_BOXES = Synthesis(shape="cutpaste", resized=False, patches=1)
ELLIPSES = OBJECT._replace(shape="ellipses")


def small(seed: int) -> np.ndarray:
    """A disc on white, (96, 128, 3)."""
    return np.ascontiguousarray(cv2.resize(disc(seed), SHAPE[::-1], interpolation=cv2.INTER_AREA))


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)


@functools.cache
def batched(chosen: Synthesis, label: str = "logistic", jit=quick_jit):
    return jit(jax.vmap(functools.partial(device.random_synthesize, settings=chosen, label=label)))


@functools.cache
def made(chosen: Synthesis, label: str) -> tuple[np.ndarray, np.ndarray, device.Synthetic]:
    """Images, partners and what becomes of them."""
    images, partners = (np.stack([small(start + i % 4) for i in range(COUNT)]) for start in (0, 10))
    out = batched(chosen, label)(jax.random.split(key(5), COUNT), images, partners)
    return images, partners, jax.tree.map(np.asarray, out)


def window_mask(box: np.ndarray) -> np.ndarray:
    inside = np.zeros(SHAPE, bool)
    inside[host.Box(*box).slices] = True
    return inside


# Distribution


def device_statistics(
    chosen: Synthesis, images: np.ndarray, count: int, batch: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The statistics of `named` and the number of skipped patches of each image."""
    step, rng = batched(chosen, jit=jax.jit), np.random.default_rng(1)
    boxes, rows, skipped = [], [], []
    for number in range(count // batch):
        first, second = rng.integers(len(images), size=(2, batch))
        out = step(jax.random.split(jax.random.fold_in(key(), number), batch), images[first], images[second])
        out = jax.tree.map(np.asarray, out)
        boxes.append(out.boxes[out.boxes[..., 1] > 0])
        rows.append(np.stack([out.patches, (out.label > 0).mean(axis=(1, 2)), out.label.mean(axis=(1, 2))], axis=1))
        skipped.append(out.skipped)
    return named(np.concatenate(boxes), np.concatenate(rows)), np.concatenate(skipped)


def host_statistics(chosen: Synthesis, images: np.ndarray, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng, boxes, rows, skipped = np.random.default_rng(2), [], [], []
    for _ in range(count):
        first, second = rng.integers(len(images), size=2)
        out = host.random_synthesize(rng, images[first], images[second], settings=chosen)
        boxes.append(out.boxes)
        rows.append((len(out.boxes), (out.label > 0).mean(), out.label.mean()))
        skipped.append(out.skipped)
    return named(np.concatenate(boxes), np.array(rows)), np.array(skipped)


def same_counts(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of the chi-square test that two samples of small whole numbers have one distribution."""
    table = np.array([np.bincount(x.astype(int), minlength=8) for x in (first, second)])
    table = table[:, table.sum(axis=0) > 0]
    return chi2_contingency(table).pvalue if table.shape[1] > 1 else 1.0


def assert_same_distribution(found, expected) -> None:
    """False alarm at any fixed pair of seeds with a probability of at most 0.001: 0.001 is shared by all the tests."""
    (ours, our_skips), (theirs, their_skips) = found, expected
    p_values = {name: ks_2samp(ours[name], theirs[name]).pvalue for name in theirs if name != "count"}
    p_values["count"] = same_counts(ours["count"], theirs["count"])
    if their_skips is not None:
        p_values["skipped"] = same_counts(our_skips, their_skips)
    assert min(p_values.values()) > 0.001 / len(p_values), p_values


# An object in a corner: most places are refused, and some patches skipped.
CORNER = OBJECT._replace(object_fraction=0.95, overlap=0.95)


def corner(seed: int) -> np.ndarray:
    image = np.full((*SHAPE, 3), 255, np.uint8)
    image[: 40 + 5 * seed, 70 - 3 * seed :] = noise(seed)[: 40 + 5 * seed, : 58 + 3 * seed] // 3
    return image


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "image"), [(TEXTURE, small), (CORNER, corner)], ids=["texture", "corner"])
def test_distribution_is_the_hosts(chosen, image):
    images = np.stack([image(seed) for seed in range(6)])
    found, expected = device_statistics(chosen, images, 448, 64), host_statistics(chosen, images, 448)
    if image is corner:
        assert 0.1 < found[1].mean() < 1.5  # both outcomes are compared
    assert_same_distribution(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "crop", "category", "golden"),
    [
        pytest.param(
            ("mvtec_ad", "bottle"), bottle_crop, "bottle", "bottle", marks=needs_shared("data", "mvtec_ad", "bottle")
        ),
        # The reference drew its tiles with wood's logistic parameters.
        pytest.param(
            ("magnetic_tile", "tile"), tile_crop, "wood", "tile", marks=needs_shared("data", "magnetic_tile", "tile")
        ),
    ],
)
def test_5000_images_are_distributed_as_the_hosts_and_the_authors(folder, crop, category, golden):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    paths = sorted(SHARED.joinpath("data", *folder, "train", "good").iterdir())[:40]
    images = np.stack([crop(Image.open(path).convert("RGB")) for path in paths])
    chosen = settings(category).synthesis
    found, expected = device_statistics(chosen, images, 5000, 50), host_statistics(chosen, images, 5000)
    cv2.setNumThreads(threads)
    assert_same_distribution(found, expected)
    with np.load(SHARED / "golden" / f"nsa_patch_statistics_{golden}.npz", allow_pickle=False) as archive:
        reference = named(archive["boxes_top_bottom_left_right"], archive["per_image_patches_labelarea_labelmean"])
    assert_same_distribution(found, (reference, None))


# Resizing and blending


def test_resizing_is_opencvs():
    rng, window, count = np.random.default_rng(4), (90, 70), 150
    image = np.dstack([noise(1, (*SHAPE, 3)), (noise(2, (*SHAPE, 3))[..., 0] > 127).astype(np.uint8)])
    height, width = rng.integers(5, 80, (2, count))
    top, left = (rng.random((2, count)) * (np.array(SHAPE)[:, None] - (height, width))).astype(int)
    rows, columns = rng.integers(5, window[0] + 1, count), rng.integers(5, window[1] + 1, count)
    height[:10], width[:10], top[:10], left[:10] = rows[:10], columns[:10], 2, 3  # ten keep their size
    resize = jax.vmap(lambda box, size: device.resize(jnp.moveaxis(image, 2, 0), box, size, window))
    found = np.moveaxis(np.asarray(quick_jit(resize)(Box(top, left, height, width), (rows, columns))), 1, 3)
    wrong = []
    for i in range(count):
        part = image[top[i] : top[i] + height[i], left[i] : left[i] + width[i]]
        ours, size = found[i, : rows[i], : columns[i]], (int(rows[i]), int(columns[i]))
        expected = np.dstack([host.resize(part[..., :3].copy(), *size), host.resize(part[..., 3].copy(), *size)])
        difference = np.abs(ours - expected.astype(int))
        assert difference.max() <= 1 and (i >= 10 or difference.max() == 0)
        wrong.append([difference[..., :3].mean(), difference[..., 3].mean()])
    assert (np.mean(wrong, axis=0) < (1e-4, 1e-5)).all()  # weights half-way between multiples of 1/2048


@pytest.mark.medium
def test_object_mask_is_the_hosts():
    for image, background in (
        (small(1), (200.0, 60.0)),
        (noise(5)[:50, :70], (120.0, 20.0)),
        (small(2)[..., :1], (20.0, 20.0)),
    ):
        found = device.object_mask(jnp.asarray(image), background=background)
        np.testing.assert_array_equal(found, host.object_mask(image, background=background))
    assert device.object_mask(jnp.asarray(small(0)), background=None) is None


@pytest.mark.parametrize("side", [(9, 9), (12, 7), (4, 60), (5, 60), (5, 18), (5, 19)])
def test_smallest_blendable_masks_are_the_hosts(side):
    mask = np.zeros((20, 70), bool)
    mask[1 : side[0] - 1, 1 : side[1] - 1] = True
    assert device.is_blendable(jnp.asarray(mask)) == host.is_blendable(host.Box(0, side[0], 0, side[1]))


@pytest.mark.slow
@pytest.mark.parametrize("blending", ["source", "mixed"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_given_patch_becomes_what_the_host_makes_of_it(blending, channels, monkeypatch):
    chosen = OBJECT._replace(blending=blending, patches=1)
    image, partner = small(1)[..., :channels], small(2)[..., :channels]
    cut, size, place = host.Box(10, 50, 20, 75), (33, 47), host.Box(3, 36, 44, 91)
    box = Box(cut.top, cut.left, cut.bottom - cut.top, cut.right - cut.left)
    monkeypatch.setattr(sampling, "sample_source", lambda *_, **__: (Box(*map(jnp.int32, box)), True))
    monkeypatch.setattr(sampling, "sample_size", lambda *_, **__: tuple(map(jnp.int32, size)))
    there = Box(*map(jnp.int32, (place.top, place.left, *size)))
    monkeypatch.setattr(sampling, "sample_destination", lambda *_, **__: (there, True))
    found = quick_jit(functools.partial(device.random_synthesize, settings=chosen))(key(), image, partner)

    expected, mask = image.copy(), np.zeros(SHAPE, np.uint8)
    patch = host.resize(partner[cut.slices], *size)
    expected[place.slices] = host.blend_patch(patch, image[place.slices], gradients=blending)
    objects = [host.object_mask(x, background=chosen.background) for x in (partner, image)]
    mask[place.slices] = host.resize(objects[0][cut.slices], *size) | objects[1][place.slices]
    difference = np.abs(np.asarray(found.image, int) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.02  # a grey level each of resizing and truncation
    assert (np.asarray(found.mask) != mask).sum() <= 2
    label = host_labels.logistic(image, expected, mask, steepness=chosen.steepness, midpoint=chosen.midpoint)
    assert (np.abs(found.label - label) > 0.05).sum() < 10  # where a grey level decides
    assert np.abs(found.label - label).mean() < 1e-3 < label.mean()
    assert found.boxes.tolist() == [[*place]] and (found.patches, found.skipped) == (1, 0)


@pytest.mark.medium
def test_later_patches_overwrite_the_label_mask_and_refused_ones_change_nothing():
    window, image = (20, 24), jnp.full((*SHAPE, 1), 100, jnp.uint8)
    left = jnp.zeros(window, bool).at[:10, :6].set(True)
    patches = device.Patch(
        pixels=jnp.stack([jnp.full((*window, 1), value, jnp.uint8) for value in (10, 20, 30)]),
        box=Box(jnp.array([5, 5, 80]), jnp.array([5, 9, 110]), jnp.array([10, 10, 16]), jnp.array([12, 12, 18])),
        label=jnp.stack([jnp.ones(window, bool), left, left]),
        blend=jnp.zeros((3, *window), bool),
        accepted=jnp.array([True, True, False]),
    )
    patches = patches._replace(label=patches.label.at[0, :, 12:].set(False).at[0, 10:].set(False))
    image, mask = device._blend_all(image, patches, jnp.float32(1), CUTPASTE)
    expected_mask, expected = np.zeros(SHAPE, int), np.full(SHAPE, 100)
    expected[5:15, 5:17], expected_mask[5:15, 5:17] = 10, 1
    expected[5:15, 9:15] = 20
    expected_mask[5:15, 15:21] = 0  # of the second patch's rectangle only the left half is labelled
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(image[..., 0], expected)


@pytest.mark.slow
def test_what_finds_no_place_leaves_the_image_and_is_counted():
    tiny = Synthesis(half_height=(0.03, 0.03), half_width=(0.03, 0.03))
    image, plain = small(1), np.full((*SHAPE, 3), 255, np.uint8)
    for chosen, first, second in ((OBJECT, image, plain), (OBJECT, plain, image), (tiny, image, small(2))):
        images, partners = np.stack([first] * COUNT), np.stack([second] * COUNT)
        out = batched(chosen)(jax.random.split(key(), COUNT), images, partners)
        np.testing.assert_array_equal(out.image, images)
        assert not out.label.any() and not out.mask.any() and not out.boxes.any() and not out.patches.any()
        assert set(np.unique(out.skipped)) == {1, 2, 3}  # the first is always tried


# As a function


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_nor_on_compilation():
    images, partners, whole = made(OBJECT, "logistic")
    keys = jax.random.split(key(5), COUNT)
    turned = batched(OBJECT)(keys[::-1], images[::-1], partners[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), whole, turned)
    one = quick_jit(functools.partial(device.random_synthesize, settings=OBJECT))(keys[1], images[1], partners[1])
    np.testing.assert_array_equal(one.boxes, whole.boxes[1])
    np.testing.assert_array_equal(one.mask, whole.mask[1])
    assert np.abs(np.asarray(one.image, int) - whole.image[1]).max() <= 1  # the truncation of nearly whole levels


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [OBJECT, CUTPASTE, FPI, PII, CUTPASTE_BOXES, ELLIPSES], ids=range(6))
def test_images_change_inside_their_boxes_only(chosen):
    label = "factor" if chosen.factor != (1.0, 1.0) else "logistic" if chosen == OBJECT else "binary"
    images, _, out = made(chosen, label)
    assert out.image.dtype == out.mask.dtype == np.uint8 and out.label.dtype == np.float32
    for i in range(len(images)):
        inside = np.any([window_mask(box) for box in out.boxes[i]], axis=0)
        np.testing.assert_array_equal(out.image[i][~inside], images[i][~inside])
        assert not out.mask[i][~inside].any()
        assert out.patches[i] == (out.boxes[i, :, 1] > 0).sum() and out.patches[i] + out.skipped[i] >= 1
    assert (out.label > 0).any(axis=(1, 2)).mean() > 0.5


@pytest.mark.slow
def test_cutpaste_end_to_end_pastes_a_part_of_the_image_itself():
    images, partners, out = made(CUTPASTE, "binary")
    assert set(np.unique(out.label)) == {0, 1}
    others = batched(CUTPASTE, "binary")(jax.random.split(key(5), COUNT), images, partners[::-1])
    np.testing.assert_array_equal(others.image, out.image)
    i = np.flatnonzero(out.patches == 1)[0]
    box, image = host.Box(*out.boxes[i].max(axis=0)), images[i]
    objects = host.object_mask(image, background=CUTPASTE.background)
    height, width = box.bottom - box.top, box.right - box.left
    sources = [host.Box(r, r + height, c, c + width) for r in range(97 - height) for c in range(129 - width)]
    assert any(
        (np.where((objects[source.slices] | objects[box.slices])[..., None], image[source.slices], image[box.slices])
         == out.image[i][box.slices]).all()
        for source in sources
    )  # fmt: skip


def test_fpi_interpolates_at_one_place_and_labels_the_factor():
    images, partners, out = made(FPI, "factor")
    factors = out.label.max(axis=(1, 2))
    changed = factors > 0
    assert factors[changed].min() >= 0.05 and factors.max() <= 0.95 and len(np.unique(factors)) > 15
    for i in np.flatnonzero((out.patches == 1) & changed):
        assert set(np.unique(out.label[i])) == {0, factors[i]}
        change = factors[i] * (partners[i].astype(float) - images[i]) * out.mask[i][..., None]
        np.testing.assert_allclose(out.image[i], np.floor(images[i] + change + 1e-3), rtol=0, atol=1)
        assert np.mean(out.image[i] != np.floor(images[i] + change + 1e-4)) < 1e-3


def test_pii_gives_the_factor_to_the_masks_grey_level():
    images, partners, out = made(PII, "factor")
    factors = out.label.max(axis=(1, 2))
    for i in np.flatnonzero((out.patches == 1) & (factors > 0)):
        box = host.Box(*out.boxes[i].max(axis=0))
        mask = np.zeros((box.bottom - box.top, box.right - box.left), np.uint8)
        mask[1:-1, 1:-1] = np.ceil(255 * factors[i])
        patch, under = partners[i][box.slices], images[i][box.slices]
        expected = cv2.seamlessClone(patch, under, mask, (mask.shape[1] // 2, mask.shape[0] // 2), cv2.MIXED_CLONE)
        assert np.abs(out.image[i][box.slices].astype(int) - expected).max() <= 1


@pytest.mark.medium
def test_ellipses_fill_a_part_of_their_box_and_are_resized_with_it():
    box, least = Box(0, 0, 60, 90), (4, 4)
    keys = jax.random.split(key(), 200)

    def draw(size: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
        run = jax.vmap(lambda key: device.sample_ellipses(key, box, size, window, least=least))
        return np.asarray(quick_jit(run)(keys))

    small_mask, large_mask = draw((30, 45), (40, 50)), draw((60, 90), (60, 90))
    area = large_mask.mean(axis=(1, 2)) * 60 * 90
    assert area.min() > 0 and area.max() < 5 * np.pi * 15 * 22.5
    means = large_mask.reshape(200, 30, 2, 45, 2).mean(axis=(2, 4))
    assert np.mean((means > 0.5) == small_mask[:, :30, :45]) > 0.98
    round_ = np.asarray(device.sample_ellipses(key(3), Box(0, 0, 8, 8), (8, 8), (8, 8), least=(100, 100)))
    assert round_.all()  # five discs of radius 100 around centres in the box


@pytest.mark.slow
def test_labels_with_ellipses_are_no_rectangles():
    _, _, out = made(ELLIPSES, "binary")
    for mask, boxes, count in zip(out.mask, out.boxes, out.patches, strict=True):
        area = sum((bottom - top) * (right - left) for top, bottom, left, right in boxes)
        assert mask.sum() < area if count else not mask.any()


# Refusals


@pytest.mark.parametrize(
    ("changes", "about", "word"),
    [
        ({"source": "self"}, "synthesis.source", "other, same"),
        ({"shape": "disc"}, "synthesis.shape", "rectangle, cutpaste, ellipses"),
        ({"blending": "mix"}, "synthesis.blending", "source, mixed, paste, interpolate"),
        ({"gamma": (2.5, 0.05, 0.03)}, "synthesis.gamma", "config.data.synthesis"),
        ({"moved": False}, "synthesis.moved", "config.synthesis.resized"),
        ({"factor": (0.0, 0.5)}, "synthesis.factor", "(0.0, 0.5)"),
        ({"blending": "paste", "factor": (0.5, 0.5)}, "synthesis.blending", "factor"),
        ({"resized": False, "half_height": (0.4, 0.499)}, "synthesis.half_height", "96x102"),
    ],
)
def test_the_device_refuses_what_it_cannot_draw(changes, about, word):
    with refuses(about, word):
        device.random_synthesize(key(), small(0), small(1), settings=Synthesis(**changes), label="binary")


def test_unknown_labels_and_other_shapes_are_refused():
    with refuses("label", "binary, continuous, continuous_sigmoid, logistic, factor"):
        device.random_synthesize(key(), small(0), small(1), settings=OBJECT, label="logit")
    with pytest.raises(ValueError, match="shape"):
        device.random_synthesize(key(), small(0), small(1)[:50], settings=OBJECT)


@pytest.mark.parametrize(
    "changes",
    [{"source": "same"}, {"shape": "cutpaste"}, {"resized": False}, {"moved": False}, {"blending": "paste"},
     {"factor": (0.05, 0.95)}],
    ids=str,
)  # fmt: skip
def test_the_host_refuses_what_only_the_device_makes(changes):
    name = next(iter(changes))
    with refuses(f"synthesis.{name}", "config.data.synthesis"):
        host.random_synthesize(np.random.default_rng(0), small(0), small(1), settings=Synthesis(**changes))
