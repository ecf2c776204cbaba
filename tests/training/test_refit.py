"""A detector that takes in more good images, against one that was fitted to all of them at once."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

import jaxad
from jaxad import detector as detectors
from jaxad import evaluate, methods
from jaxad.augment import synthetic_defects
from jaxad.runtime import arrays, disk
from jaxad.scoring.threshold import fit_threshold
from jaxad.training import loop, synthetic_validation
from jaxad.training import refit as refits
from tests.commands import refit, train
from tests.methods.test_features import config_of, pictures, shifted, small  # noqa: F401
from tests.parts import baseline, command, refusal, write_parts
from tests.refusals import refuses

pytestmark = pytest.mark.medium


def write(path, images, start=0):
    path.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, start):
        cv2.imwrite(str(path / f"{number:03}.png"), image[..., ::-1])
    return path


def run(tmp_path, name="nearest_neighbor", count=20, **changes):
    """A workdir of a detector of some images, with a quarter of them held out, however few they are."""
    write(tmp_path / "old", shifted(count))
    given = {"density__name": name, "data__root": tmp_path / "old", "data__holdout": 0.25}
    given |= {"threshold__cross_fit_below": 0} | changes
    loop.train(config_of("auto", **given), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["gaussian_per_location", "gaussian", "nearest_neighbor"])
def test_density_and_threshold_are_those_of_all_images(name, tmp_path):
    workdir = run(tmp_path, name)
    old, config = shifted(20), detectors.load(workdir).config
    first = refits._read(workdir)
    shutil.rmtree(tmp_path / "old")
    new = write(tmp_path / "new", shifted(12, seed=1))
    found = jaxad.refit(workdir, new)

    kept = refits._read(workdir)
    assert (first.fitted, len(first.seen), kept.fitted, len(kept.seen)) == (15, 5, 24, 8)
    held = {image.tobytes() for image in kept.seen}
    assert {image.tobytes() for image in first.seen} < held
    fitted = [image for image in [*old, *shifted(12, seed=1)] if image.tobytes() not in held]
    expected = methods.create(config).fit({}, fitted, jax.random.key(config.seed))
    for one, other in zip(jax.tree.leaves(found.density), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    threshold = fit_threshold(found.score(kept.seen).image, false_alarm_rate=config.threshold.false_alarm_rate)
    assert found.threshold == threshold
    loaded = jaxad.load(workdir)
    assert (loaded.threshold, loaded.heat_range, loaded.good_scores) == (threshold, found.heat_range, found.good_scores)
    np.testing.assert_array_equal(loaded.score(pictures(3)).map, found.score(pictures(3)).map)


def test_what_was_chosen_stays_and_old_results_go(tmp_path, capsys):
    workdir = run(tmp_path, "auto", count=28)
    (workdir / "results.json").write_text("{}")
    scorer = set(jaxad.load(workdir).density["features"]["scorer"])
    jaxad.refit(workdir, shifted(9, seed=1))
    assert set(jaxad.load(workdir).density["features"]["scorer"]) == scorer
    assert not (workdir / "results.json").exists()  # synthetic.json is another one by now
    told = capsys.readouterr().out
    assert "9 new images; the detector has 37 now, of which 9 are held out" in told
    assert "before: results.json\n" in told
    assert "of new good images, about 1 in 10 will exceed a threshold from 9; " in told
    found, kept = jaxad.load(workdir), refits._read(workdir)
    fitted = [image for image in shifted(9, seed=1) if not (kept.seen == image).all((1, 2, 3)).any()]
    made = synthetic_defects.make(kept.seen, fitted)
    figures = synthetic_validation.measure(found.score(made.images), made)
    assert json.loads((workdir / "synthetic.json").read_text()) == figures


def test_without_held_out_images_there_is_no_threshold(tmp_path):
    workdir = run(tmp_path, data__holdout=0.0)
    found = jaxad.refit(workdir, shifted(20, seed=1))
    kept = refits._read(workdir)
    assert found.threshold is None and kept.fitted == 40 and len(kept.seen) == refits.SAMPLE
    np.testing.assert_array_equal(kept.seen[20:], shifted(20, seed=1)[:12])


def test_the_first_held_out_image_takes_the_place_of_the_sample(tmp_path, capsys):
    """A tenth of four images is less than half a one, so that none was held out at first."""
    workdir = run(tmp_path, count=4, data__holdout=0.1)
    assert jaxad.load(workdir).threshold is None and len(refits._read(workdir).seen) == 4
    found = jaxad.refit(workdir, shifted(16, seed=1))
    kept = refits._read(workdir)
    assert (kept.fitted, len(kept.seen)) == (18, 2) and found.threshold is not None
    assert not any((kept.seen == image).all((1, 2, 3)).any() for image in shifted(4))


def test_what_lies_beside_the_images_is_told(tmp_path, capsys):
    workdir, new = run(tmp_path), write(tmp_path / "new", shifted(3, seed=1))
    write(new / "more", shifted(5, seed=2))
    (new / "notes.txt").write_text("hello")
    jaxad.refit(workdir, new)
    told = capsys.readouterr().out
    assert "3 new images" in told and "WARNING: 5 images beside these 3 are NOT trained on" in told
    assert "notes.txt" in told
    assert "refit20/train/good/002" in json.loads((workdir / "images.json").read_text())["images"]


def test_results_name_the_training_and_the_refits(tmp_path):
    workdir = run(tmp_path)
    jaxad.refit(workdir, shifted(3, seed=1))
    jaxad.refit(workdir, shifted(2, seed=2))
    made = evaluate.origin([workdir], detectors.load(workdir).config, command=None)
    assert made["command"] == "jaxad.training.loop.train && jaxad.refit && jaxad.refit"
    rows = json.loads((workdir / "provenance.json").read_text())
    assert [row.get("refit") for row in rows] == [None, 3, 2]
    assert evaluate._train_seconds(workdir) == pytest.approx(sum(row["fit_s"] for row in rows))


def test_a_detector_of_before_is_not_saved_over_a_newer_one(tmp_path):
    workdir = run(tmp_path)
    old = jaxad.load(workdir)
    old.save(workdir)
    jaxad.refit(workdir, shifted(9, seed=1))
    with refuses(workdir, "another detector"):
        old.save(workdir)
    jaxad.load(workdir).save(workdir)


def test_single_images_are_held_out_in_turn(tmp_path):
    workdir = run(tmp_path)
    for image in shifted(8, seed=1):
        jaxad.refit(workdir, image)
    kept = refits._read(workdir)
    assert (kept.fitted, len(kept.seen)) == (21, 7)


def test_images_that_are_in_already_are_left_out(tmp_path, capsys):
    workdir = run(tmp_path)
    density = jaxad.load(workdir).density
    write(tmp_path / "old", shifted(3, seed=1), start=20)
    jaxad.refit(workdir, tmp_path / "old")
    told = capsys.readouterr().out
    assert "3 new images" in told and "20 images of those given were among them before" in told
    jaxad.refit(workdir, tmp_path / "old")
    assert "0 new images" in capsys.readouterr().out
    assert refits._read(workdir).fitted + len(refits._read(workdir).seen) == 23
    changed = jaxad.load(workdir).density["features"]["scorer"]["points"]
    assert changed.shape != density["features"]["scorer"]["points"].shape


@pytest.mark.parametrize("cut", ["images.json", "refit.npz", "detector.json"])
def test_a_call_that_was_cut_off_is_completed_by_the_same_call(cut, tmp_path, monkeypatch):
    workdir = run(tmp_path)
    whole, config = shutil.copytree(workdir, tmp_path / "whole"), detectors.load(workdir).config
    writers = {"images.json": (disk, "write_json"), "refit.npz": (arrays, "write")}
    writers["detector.json"] = detectors, "write"
    with monkeypatch.context() as patch:
        patch.setattr(*writers[cut], lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            jaxad.refit(workdir, shifted(9, seed=1))
    assert jaxad.load(workdir).threshold is not None  # that of before
    if cut != "images.json":
        with refuses(workdir, "has added 9 images"):
            loop.train(config, workdir)
    again, expected = (jaxad.refit(place, shifted(9, seed=1)) for place in (workdir, whole))
    for one, other in zip(jax.tree.leaves(again.density), jax.tree.leaves(expected.density), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.threshold == expected.threshold
    assert len(refits._read(workdir).fingerprints) == len(refits._read(whole).fingerprints) == 29


def test_the_training_command_does_not_undo_it_unasked(tmp_path):
    workdir = run(tmp_path)
    jaxad.refit(workdir, shifted(9, seed=1))
    config = detectors.load(workdir).config
    with refuses(workdir, "has added 9 images"):
        loop.train(config, workdir)
    loop.train(config, workdir, restart=True)
    assert refits._read(workdir).fitted == 15


def test_the_command(tmp_path, capsys):
    workdir = run(tmp_path)
    new = write(tmp_path / "new", shifted(4, seed=1))
    assert "one folder" in refusal(capsys, refit.main, new, tmp_path / "old", "--workdir", workdir)
    assert command(refit.main, *sorted(new.glob("*.png")), "--workdir", workdir) == 0
    told = capsys.readouterr().out
    assert "4 new images; the detector has 24 now, of which 6 are held out" in told
    assert "thresholds from 6 good images that were held out: " in told and "evaluate" in told
    rows = json.loads((workdir / "provenance.json").read_text())
    assert "jaxad.refit" in str(rows)


def test_files_of_16_bits_are_read_by_the_old_white_level(tmp_path, capsys):
    workdir = run(tmp_path)
    deep = shifted(1, seed=1)[0].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    jaxad.refit(workdir, [tmp_path / "deep.png"])
    assert "no training image had" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "text"])
def test_a_damaged_memory_is_told(damage, tmp_path):
    workdir = run(tmp_path)
    path = workdir / refits.FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    made = {"missing": None, "cut": content[: len(content) // 2], "flipped": content, "text": b"hello"}[damage]
    path.unlink()
    if made is not None:
        path.write_bytes(made)
    with refuses(path, "refit.npz"):
        jaxad.refit(workdir, shifted(1, seed=1))
    assert jaxad.load(workdir).threshold is not None


def test_what_cannot_be_taken_in_is_refused(tmp_path, capsys):
    workdir = run(tmp_path)
    before, rows = (workdir / refits.FILE).read_bytes(), (workdir / "provenance.json").read_text()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with refuses(tmp_path / "broken.png", "broken.png"):
        jaxad.refit(workdir, [tmp_path / "broken.png"])
    with refuses(tmp_path / "nowhere", "does not exist"):
        jaxad.refit(workdir, tmp_path / "nowhere")
    with refuses(None, "not Detector"):
        jaxad.refit(jaxad.load(workdir), tmp_path / "old")
    with refuses(None, "no images were given"):
        jaxad.refit(workdir, [])
    assert (workdir / refits.FILE).read_bytes() == before and (workdir / "provenance.json").read_text() == rows
    write_parts(tmp_path / "sets", train=6)
    assert command(train.main, *baseline(tmp_path / "sets", tmp_path / "mean")) == 0
    assert "baseline_mean" in refusal(capsys, refit.main, tmp_path / "old", "--workdir", tmp_path / "mean")
