"""A region of interest, from a file, as polygons and by itself, in training, evaluation, prediction and refits."""

import json

import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import config as configs
from jaxad import evaluate, predict
from jaxad.metrics import IGNORED
from tests.commands import train
from tests.parts import command, write
from tests.test_aspect_ratio import HEIGHT, METHODS, SMALL, WIDTH, load, surface

pytestmark = pytest.mark.medium

# A rectangle with its upper right corner cut off, and a hole, in pixels of the images: 144 x 72 of them.
REGION = "48,12 160,12 192,40 192,84 48,84; 120,60 136,60 136,72 120,72"
INSIDE, OUTSIDE = (40, 90), ((30, 20), (90, 120), (20, 184), (66, 128), (50, 210))  # (row, column) of spots
TINY = {
    "baseline_mean": METHODS["baseline_mean"],
    "lite": METHODS["lite"],
    "nsa_logistic": METHODS["nsa_logistic"],
    "cutpaste_3way": METHODS["cutpaste_3way"],
    "cutpaste_patch": METHODS["cutpaste_patch"],
}


def marked():
    """Which pixels of the images lie in the region."""
    rows, columns = np.indices((HEIGHT, WIDTH)) + 0.5
    inside = (rows > 12) & (rows < 84) & (columns > 48) & (columns < 192)
    inside &= ~((columns - 160) / 32 > (rows - 12) / 28)
    return inside & ~((columns > 120) & (columns < 136) & (rows > 60) & (rows < 72))


def spotted(number, place):
    """A surface with a white spot of 6 x 6 pixels at a place."""
    image = surface(number)
    image[place[0] - 3 : place[0] + 3, place[1] - 3 : place[1] + 3] = 255
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set of surfaces in MVTec AD's layout; of the defective ones, one has its defect outside the region too."""
    root = tmp_path_factory.mktemp("surfaces")
    for number in range(12):
        write(root / "train" / "good" / f"{number:02d}.png", surface(number))
    for number in range(3):
        write(root / "test" / "good" / f"{number}.png", surface(100 + number))
        spot, mask = (INSIDE[0], INSIDE[1] + 8 * number), np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[spot[0] - 3 : spot[0] + 3, spot[1] - 3 : spot[1] + 3] = 255
        image = spotted(200 + number, spot)
        if not number:  # a second defect, which does not count
            mask[60:72, 10:22], image[60:72, 10:22] = 255, 255
        write(root / "test" / "spot" / f"{number}.png", image)
        write(root / "ground_truth" / "spot" / f"{number}_mask.png", mask)
    return root


@pytest.mark.parametrize("name", TINY)
def test_nothing_outside_the_region_counts(name, root, tmp_path, capsys):
    config = load(name, "object" if name != "lite" else "auto", SMALL | TINY[name] | {"data.roi": REGION})
    found = jaxad.train(config, root, tmp_path)
    assert f"{100 * marked().mean():.1f} % of each image is trained on and scored" in capsys.readouterr().out
    assert found.region.size == (64, 128)  # 144 x 72: the box of the region
    again = jaxad.load(tmp_path)
    assert again.config.data.roi.startswith("0.1875,0.125 0.625,0.125 ") and again.config.data.aspect == 2
    plain, *others = again.predict([surface(50), *(spotted(50, place) for place in OUTSIDE)])
    for other in others:
        assert other.score == plain.score and other.peak == plain.peak
        np.testing.assert_array_equal(other.map, plain.map)
    np.testing.assert_array_equal(np.isnan(plain.map), ~marked())
    assert plain.judged == (12, 48, 84, 192) and marked()[plain.peak]
    bad = again.predict(spotted(50, INSIDE))[0]
    if name in ("baseline_mean", "lite"):
        assert bad.score > 2 * plain.score and np.abs(np.subtract(bad.peak, INSIDE)).max() <= 6
        assert bad.map[34:46, 84:96].max() > bad.map[marked() & (np.abs(np.indices(marked().shape)[1] - 90) > 40)].max()
    else:
        assert (bad.map[marked()] != plain.map[marked()]).any()
    results = evaluate.evaluate(again, tmp_path)
    assert results["counts"] == {"good": 3, "defective": 3, "with_mask": 3} and results["pixel"]["auroc"] is not None
    if name in ("baseline_mean", "lite"):
        assert results["pixel"]["auroc"] > 0.99  # the second defect of an image would be missed


def test_metrics_count_the_pixels_inside(root, tmp_path):
    config = load("baseline_mean", "object", SMALL | TINY["baseline_mean"] | {"data.roi": REGION})
    found = jaxad.train(config, root, tmp_path)
    records = evaluate.read_test_set(found.config, None)
    inside = found.region.geometry.valid(None)[0]
    assert inside.mean() == pytest.approx(marked().sum() / (144 * 72), abs=0.01)
    for record in records:
        np.testing.assert_array_equal(record.mask == IGNORED, ~inside)
    scores = evaluate.score_records(found, records)
    assert all((one[~inside] == 0).all() for one in scores.maps)
    # AUROC by hand: over the pixels inside alone.
    values = np.concatenate([one[inside] for one in scores.maps])
    truth = np.concatenate([record.mask[inside] for record in records])
    good, bad = np.sort(values[truth == 0]), values[truth == 1]
    below, upto = np.searchsorted(good, bad), np.searchsorted(good, bad, side="right")
    expected = (below + upto).sum() / 2 / len(good) / len(bad)
    results = evaluate.evaluate(found, tmp_path)
    assert results["pixel"]["auroc"] == pytest.approx(expected, abs=1e-6)
    # Every score that a threshold or a scale is made of lies inside.
    spoiled = scores.maps.copy()
    spoiled[:, ~inside] = 1e6
    given = type("Scores", (), {"image": scores.image_scores, "map": spoiled})
    found.fit_ranges(given)
    found.fit_thresholds(given, cross_fitted=False)
    assert found.heat_range[1] == scores.maps[:, inside].max() and max(found.calibration.peaks) < 1e6
    found.region.map_at(spoiled[0], (HEIGHT, WIDTH), sigma=2.0)
    assert np.nanmax(found.region.map_at(spoiled[0], (HEIGHT, WIDTH), sigma=2.0)) < 1e6


def test_predict_writes_what_is_inside(root, tmp_path):
    config = load("lite", "auto", SMALL | TINY["lite"] | {"data.roi": REGION})
    jaxad.train(config, root, tmp_path)
    write(tmp_path / "new" / "a.png", spotted(50, INSIDE))
    write(tmp_path / "new" / "b.png", spotted(51, OUTSIDE[0]))
    double = np.array(Image.fromarray(spotted(52, INSIDE)).resize((2 * WIDTH, 2 * HEIGHT)))
    write(tmp_path / "new" / "c.png", double)
    assert command(predict.main, tmp_path / "new", "--workdir", tmp_path, "--maps", "npy", "--masks") == 0
    folder = tmp_path / "predictions"
    maps, masks = (sorted((folder / name).iterdir()) for name in ("maps", "masks"))
    for path, mask, scale in zip(maps, masks, (1, 1, 2), strict=True):
        made, drawn = np.load(path), np.array(Image.open(mask))
        inside = np.kron(marked(), np.ones((scale, scale), bool))
        assert made.shape == drawn.shape == inside.shape
        assert (np.isnan(made) == ~inside).mean() > (0.999 if scale == 1 else 0.99)
        assert not drawn[np.isnan(made)].any()
    first, second, third = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    assert first["decision"] == third["decision"] == "defective" and first["regions"]
    assert second["regions"] == []
    row, column = first["regions"][0]["peak"]
    assert np.abs(np.subtract((row, column), INSIDE)).max() <= 6


def test_a_mask_file_is_needed_once(root, tmp_path, capsys):
    path, workdir = tmp_path / "part.png", tmp_path / "work"
    write(path, 255 * marked().astype(np.uint8))
    options = [
        "--config", f"{configs.experiment_file('baseline_mean')}:object", "--config.data.root", root,
        "--config.data.size=64", "--config.data.holdout=0.25", "--config.data.roi", path,
    ]  # fmt: skip
    assert command(train.main, *options, "--workdir", workdir) == 0
    assert f"trained on and scored, by the mask '{path}'" in capsys.readouterr().out
    text = json.loads((workdir / "config.json").read_text())["data"]["roi"]
    assert text.startswith("part.png = 0.") and str(tmp_path) not in text
    [first] = jaxad.load(workdir).predict(surface(50))
    path.unlink()
    assert command(train.main, *options, "--workdir", workdir) == 0
    assert "trained on and scored, by config.data.roi of part.png" in capsys.readouterr().out
    [again] = jaxad.load(workdir).predict(surface(50))
    np.testing.assert_array_equal(again.map, first.map)
    # Another mask of the same name is another config; without the file a new training cannot begin.
    write(path, np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert command(train.main, *options, "--workdir", workdir) == 2
    assert "was made with another config: data.roi ('part.png = 0." in (said := capsys.readouterr().err)
    assert len(said) < 600 + 3 * len(str(workdir))
    path.unlink()
    assert command(train.main, *options, "--workdir", tmp_path / "other") == 2
    assert "must be auto, polygons (x,y x,y x,y) or the path of a mask file" in capsys.readouterr().err


def parts(count, first=0):
    """Textured squares before a plain background."""
    made = []
    for number in range(first, first + count):
        image = np.full((96, 128, 3), 235, np.uint8)
        image[24:72, 32:96] = surface(number)[24:72, 32:96]
        made.append(image)
    return made


def test_auto_crossfitting_and_a_refit(tmp_path, capsys):
    options = {"data.size": 64, "data.roi": "auto", "density.name": "gaussian_per_location", "density.channels": 8}
    config = load("lite", "object", options)
    found = jaxad.train(config, parts(12), tmp_path)
    said = capsys.readouterr().out
    assert "by config.data.roi=auto: the rest is a plain background" in said and "were cross-fitted" in said
    text = found.config.data.roi
    assert text.startswith("auto = ") and found.region.geometry.roi.bounds == pytest.approx(
        (0.25, 0.25, 0.75, 0.75), abs=0.06
    )
    figures = json.loads((tmp_path / "synthetic.json").read_text())
    assert figures["synthetic_image_auroc"] > 0.9
    refitted = jaxad.refit(tmp_path, parts(4, first=12))
    assert refitted.config.data.roi == text
    dirty = parts(1, first=40)[0]
    dirty[2:14, 2:14] = 0
    clean, other = refitted.predict([parts(1, first=40)[0], dirty])
    assert clean.score == other.score and np.array_equal(clean.map, other.map, equal_nan=True)
    # The same call goes on with the region that it found.
    assert jaxad.train(config, parts(12), tmp_path / "same").config.data.roi == text
    assert jaxad.train(config, parts(12), tmp_path / "same").config.data.roi == text
    plain = jaxad.train(config, [surface(number) for number in range(6)])
    assert plain.config.data.roi == "" and "finds no region, and whole images count" in capsys.readouterr().out


@pytest.mark.parametrize("resize", ["squeeze", "pad", "crop"])
def test_every_way_to_resize_has_a_region(resize):
    options = {"data.size": 64, "data.resize": resize, "score.sigma": 1.0, "data.roi": REGION, "data.holdout": 0.25}
    found = jaxad.train(load("baseline_mean", "object", options), [surface(number) for number in range(8)])
    plain, *others, bad = found.predict([surface(50), *(spotted(50, place) for place in (*OUTSIDE, (40, 110)))])
    for other in others:
        assert other.score == plain.score
        np.testing.assert_array_equal(other.map, plain.map)
    expected = marked()
    if resize == "crop":
        assert plain.judged == (12, 84, 84, 156)
        expected[:, :84] = expected[:, 156:] = False
    np.testing.assert_array_equal(np.isnan(plain.map), ~expected)
    assert bad.score > 2 * plain.score and np.abs(np.subtract(bad.peak, (40, 110))).max() <= 6
    tall = found.predict(np.ascontiguousarray(surface(51, shape=(HEIGHT, 60))))[0]
    assert tall.map.shape == (HEIGHT, 60) and np.isfinite(tall.score) and np.isfinite(tall.map[tall.peak])


@pytest.mark.parametrize("name", ["baseline_mean:object", "lite:texture", "nsa_logistic:texture"])
def test_tiles_have_a_region(name):
    options = {"data.size": 64, "data.tile": 32, "data.tile_overlap": 0.25, "data.holdout": 0.25, "data.roi": REGION}
    experiment, category = name.split(":")
    options |= {"lite": {"density.channels": 8}, "nsa_logistic": TINY["nsa_logistic"] | {"view.crop": 32}}.get(
        experiment, TINY["baseline_mean"]
    )
    options.pop("score.size", None)
    found = jaxad.train(load(experiment, category, options), [surface(number) for number in range(12)])
    assert found.tiling is not None and found.region.size == (64, 128)
    plain, *others = found.predict([surface(50), *(spotted(50, place) for place in OUTSIDE)])
    for other in others:
        assert other.score == plain.score
        np.testing.assert_array_equal(other.map, plain.map)
    np.testing.assert_array_equal(np.isnan(plain.map), ~marked())


def test_values_that_do_not_fit_together_are_refused():
    config = load("nsa_logistic", "bottle", {"data.roi": "0,0 1,0 1,1", "data.source": "demo"})
    with pytest.raises(jaxad.UserError, match=r"config.evaluate.crop \d+ judges a part of what config.data.roi shows"):
        jaxad.train(config, [surface(1)] * 4)
    with pytest.raises(jaxad.UserError, match="spans 20 x 72 pixels"):
        options = {"data.roi": "48,12 68,12 68,84"}
        jaxad.train(load("baseline_mean", "object", options), [surface(number) for number in range(4)])
