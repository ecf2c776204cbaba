import pickle

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxad.data.demo import source as demo
from jaxad.data.demo.marks import patch, stroke
from jaxad.data.demo.render import Rig, Surface, grid, mix, noise, shade, smoothstep
from tests.refusals import refuses

DEFECTS = {category: demo.load(category, train=0).test.defects[40::15] for category in demo.CATEGORIES}
PAIRS = [(category, defect) for category, defects in DEFECTS.items() for defect in defects]


def test_categories_and_their_defects():
    assert len(demo.CATEGORIES) >= 3 and demo.CATEGORIES[0] == "cap"
    assert all(len(set(defects)) == len(defects) >= 3 for defects in DEFECTS.values())


@pytest.mark.parametrize("category", demo.CATEGORIES)
def test_fields_are_known_without_rendering_and_match_the_records(category, monkeypatch):
    train, test = demo.load(category, size=48, train=3, test_good=2, test_defective=2)
    with monkeypatch.context() as patched:
        patched.setattr(demo, "photograph", None)
        assert train.ids == ["train/good/000", "train/good/001", "train/good/002"]
        assert (len(train), len(test)) == (3, 2 + 2 * len(DEFECTS[category]))
        assert test.labels == [0, 0] + [1, 1] * len(DEFECTS[category])
        assert len(set(train.ids + test.ids)) == len(train) + len(test)
    for source in (train, test):
        for index, record in enumerate(source):
            assert record.image.shape == (48, 48, 3) and record.image.dtype == np.uint8
            assert record.mask.shape == (48, 48) and record.mask.dtype == np.uint8
            assert (record.id, record.label, record.defect) == (
                source.ids[index], source.labels[index], source.defects[index],
            )  # fmt: skip
            assert record.mask.max() == record.label


@pytest.mark.medium
@pytest.mark.parametrize("category", demo.CATEGORIES)
def test_a_picture_depends_on_category_split_index_seed_and_size_alone(category):
    few = demo.load(category, size=64, train=3, test_good=1, test_defective=2)
    many = pickle.loads(pickle.dumps(demo.load(category, size=64, train=5, test_good=3, test_defective=4)))
    for a, b in zip(few, many, strict=True):
        for index in reversed(range(len(a))):  # another order of access
            first, second = a[index], b[b.ids.index(a.ids[index])]
            assert np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)
    images = [few.train[0], few.train[1], few.test[0], demo.load(category, size=64, seed=1).train[0]]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.abs(one.image.astype(float) - other.image).mean() > 1


def test_a_fingerprint_tells_the_words_that_a_picture_is_made_of():
    sources = [demo.load("cap", size=64, train=3), demo.load("fabric", size=64), demo.load("cap", size=96)]
    sources.append(demo.load("cap", size=64, seed=1))
    found = [source.train.fingerprint(index)["sha256"] for source in sources for index in (0, 1)]
    found += [sources[0].test.fingerprint(0)["sha256"]]
    assert len(set(found)) == 9
    assert demo.load("cap", size=64).train.fingerprint(1)["sha256"] == found[1]
    assert sources[0].train.fingerprint(0)["bytes"] == sources[0].train[0].image.nbytes


@pytest.mark.parametrize("category", demo.CATEGORIES)
def test_a_part_looks_the_same_at_every_size(category):
    small, large = (demo.load(category, size=size, seed=3).train[0].image.astype(np.float32) for size in (64, 128))
    blurred = [
        cv2.GaussianBlur(i, (0, 0), 2) for i in (small, cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA))
    ]
    assert np.corrcoef(blurred[0].ravel(), blurred[1].ravel())[0, 1] > 0.95


@pytest.mark.medium
@pytest.mark.parametrize(("category", "defect"), PAIRS)
def test_masks_are_exact(category, defect):
    for index in range(4):
        good, defective, mask = demo.render_pair(category, defect, index, size=128)
        change = np.abs(defective.astype(int) - good).max(axis=2)
        assert not change[mask == 0].any()
        assert 0.0015 < mask.mean() < 0.08
        # A median hides sensor noise and the few pixels that closing the mask's gaps has added.
        assert np.median(change[mask == 1]) > 8
        kept = demo.load(category, size=128, test_good=0, test_defective=4).test
        record = kept[kept.ids.index(f"test/{defect}/{index:03d}")]
        assert np.array_equal(record.image, defective) and np.array_equal(record.mask, mask)


def test_visible_keeps_changes_above_the_threshold_fills_gaps_and_drops_specks():
    good = np.full((32, 32, 3), 100, np.float32)
    defective = good.copy()
    defective[4:12, 4:12, 1] += 7
    defective[8, 8, 1] = 100  # a pinhole
    defective[20, 20] += 50  # a stray pixel
    defective[24:30, 24:30] += 3.9  # too faint
    expected = np.zeros((32, 32), np.uint8)
    expected[4:12, 4:12] = 1
    assert np.array_equal(demo._visible(good, defective), expected)
    assert not demo._visible(good, good).any()


@pytest.mark.slow
@pytest.mark.parametrize("category", demo.CATEGORIES)
def test_distance_to_the_mean_picture_does_not_solve_it(category):
    train, test = demo.load(category, size=128, train=60, test_good=30, test_defective=10)
    good = np.stack([record.image for record in train]).astype(np.float32) / 255
    mean, std = good.mean(axis=0), good.std(axis=0)
    for spread in (1.0, std + 1e-3):
        scores = []
        for record in test:
            distance = (np.abs(record.image / np.float32(255) - mean) / spread).mean(axis=2)
            heat = cv2.GaussianBlur(distance, (0, 0), 4)
            scores.append((heat.mean(), heat.max()))
        for score in np.array(scores).T:
            assert roc_auc_score(test.labels, score) <= 0.80


def test_user_mistakes():
    with refuses("data.category", "'fabric'"):
        demo.load("fabrik")
    with refuses("data.category", "mean"):
        demo.load("")
    with refuses("data.size", "32"):
        demo.load("cap", size=16)
    with pytest.raises(IndexError):
        demo.load("cap", train=2).train[2]


def test_grid_and_smoothstep():
    x, y = grid(4)
    assert np.allclose(x[0], [-0.75, -0.25, 0.25, 0.75]) and np.array_equal(y, x.T)
    assert np.allclose(smoothstep(2, 4, np.array([1.0, 2, 2.5, 3, 4, 5])), [0, 0, 0.15625, 0.5, 1, 1])
    assert np.allclose(smoothstep(4, 2, np.array([2.0, 2.5, 4])), [1, 0.84375, 0])


def test_noise_is_standardised_and_mix_interpolates():
    field = noise(np.random.default_rng(0), 256, cells=32, octaves=3)
    assert field.dtype == np.float32 and abs(field.mean()) < 0.1 and 0.8 < field.std() < 1.2
    black, weight = np.zeros((1, 2, 3), np.float32), np.array([[0.25, 1.0]], np.float32)
    expected = [[[0.05, 0.1, 0.2], [0.2, 0.4, 0.8]]]
    assert np.allclose(mix(black, (0.2, 0.4, 0.8), weight), expected)
    assert np.allclose(mix(black, np.full((1, 2, 3), (0.2, 0.4, 0.8), np.float32), weight), expected)


def test_shade_of_planes_is_lamberts_law():
    rig = Rig(0, 0, 0, key=2.0, fill=0.0, shininess=10, lift=0, exposure=0)
    x, _ = grid(64)
    one, zero = np.ones((64, 64), np.float32), np.zeros((64, 64), np.float32)
    grey = np.full((64, 64, 3), 0.5, np.float32)
    level = shade(Surface(zero, grey, zero, one), rig, 0.0, np.pi / 6)
    assert np.allclose(level, 0.5 * 2 * 0.5, atol=1e-5)  # albedo, lamp, sine of the elevation
    # A plane that falls at 60 degrees towards the lamp faces it: its normal is (sin 60, 0, cos 60).
    facing = shade(Surface(-np.tan(np.pi / 3).astype(np.float32) * x, grey, zero, one), rig, 0.0, np.pi / 6)
    assert np.allclose(facing[8:-8, 8:-8], 1.0, atol=1e-4)
    away = shade(Surface(np.tan(np.pi / 3).astype(np.float32) * x, grey, zero, one), rig, 0.0, np.pi / 6)
    assert np.allclose(away[8:-8, 8:-8], 0.0)


def test_part_casts_its_shadow_away_from_the_lamp():
    rig = Rig(0, 0, 0, key=1.0, fill=0.0, shininess=10, lift=0.3, exposure=0)
    flat, grey = np.zeros((128, 128), np.float32), np.full((128, 128, 3), 0.5, np.float32)
    cover = np.zeros((128, 128), np.float32)
    cover[48:80, 48:80] = 1
    light = shade(Surface(flat, grey, flat, cover), rig, 0.0, np.pi / 4)[..., 0]
    assert light[64, 40] < 0.5 * light[64, 90] and np.isclose(light[64, 64], light[64, 110])


def test_patch_and_stroke_lie_where_they_are_asked_to():
    rng = np.random.default_rng(0)
    spot = patch(rng, 200, (0.5, -0.2), 0.1)
    rows, columns = np.nonzero(spot > 0.5)
    assert abs(columns.mean() - 150) < 5 and abs(rows.mean() - 80) < 5
    assert 0.5 < (spot > 0.5).sum() / (np.pi * 10**2) < 1.5
    assert patch(rng, 64, (0.99, -0.99), 0.2).shape == (64, 64)
    line = stroke(rng, 200, (-0.5, 0.0), 0.0, 1.0, width=0.04, wander=0.0)
    rows, columns = np.nonzero(line > 0.5)
    assert abs(columns.min() - 50) < 4 and abs(columns.max() - 150) < 4 and np.ptp(rows) <= 8
