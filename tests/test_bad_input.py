"""The user's mistakes: each ends a command with exit status 2 and one sentence, and costs nothing that was there."""

import csv
import errno
import os
import pathlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from jaxad import errors, evaluate, methods, predict, report
from jaxad.data import image as images
from jaxad.methods.method import Method, Scores
from jaxad.runtime import disk
from tests.commands import train
from tests.parts import (
    BASELINE,
    HEIGHT,
    NSA,
    ROOT,
    WIDTH,
    baseline,
    command,
    part,
    refusal,
    sentence,
    write,
    write_parts,
)

pytestmark = pytest.mark.medium

FULL = pathlib.Path("/dev/full")  # every write to it fails for want of space
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def root(tmp_path):
    return write_parts(tmp_path / "sets")


@pytest.fixture
def good(root):
    return root / "nut" / "train" / "good"


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "work"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A workdir with a fitted baseline, not to be changed, and the root of its data."""
    folder = tmp_path_factory.mktemp("fitted")
    write_parts(folder / "sets")
    assert command(train.main, *baseline(folder / "sets", folder / "work", data__holdout=0.3)) == 0
    return folder


@pytest.fixture
def copy(fitted, tmp_path):
    """A copy of that workdir that a test may damage."""
    return shutil.copytree(fitted / "work", tmp_path / "copy")


@pytest.fixture
def brightness(monkeypatch):
    """A method of three parameters that trains in no time: learns the weights of the channels that give one half."""

    def loss(params, batch_stats, batch, key):
        return jnp.square((batch["image"] / 255.0) @ params["w"] - 0.5).mean(), (batch_stats, {})

    def score(variables, density, pixels):
        maps = jnp.abs(pixels @ variables["params"]["w"] - 0.5)
        return Scores(maps.mean((1, 2)), maps)

    method = Method(
        host_augment=lambda rng, image, partner: {"image": image},
        init=lambda key, image: {"params": {"w": jnp.zeros(3)}},
        loss=loss,
        fit=lambda variables, good_images, key: {},
        score=score,
    )
    monkeypatch.setitem(methods.METHODS, "brightness", lambda config: method)


def training(root, workdir, **overrides):
    """Arguments that train `brightness` on the parts for four steps, with a checkpoint after each."""
    given = {"method": "brightness", "data__root": root, "data__category": "nut", "data__size": 32, "data__holdout": 0}
    given |= {"batch": 8, "epochs": 4, "log_every": 1, "checkpoint__every_steps": 1} | overrides
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    return ["--config", f"{NSA}:object", "--workdir", workdir, *flags]


# Folders


@pytest.mark.medium
def test_missing_root(capsys, tmp_path, workdir):
    message = refusal(capsys, train.main, *baseline(tmp_path / "nowhere", workdir))
    assert str(tmp_path / "nowhere") in message and "exist" in message
    assert not workdir.exists()


@pytest.mark.medium
def test_no_root(capsys, workdir):
    assert "config.data.root is empty" in refusal(capsys, train.main, *baseline("", workdir))


@pytest.mark.medium
def test_a_folder_for_the_demo_source_is_not_passed_over(capsys, root, workdir):
    message = refusal(capsys, train.main, "--config", NSA, "--workdir", workdir, f"--config.data.root={root}")
    assert message.startswith("config.data.source is demo, which reads no folder, but a folder is given; ")


@pytest.mark.medium
def test_unknown_category_of_the_data(capsys, root, workdir):
    message = refusal(capsys, train.main, *baseline(root, workdir, data__category="nutt"))
    assert str(root) in message and "'nutt'" in message and "'nut'?" in message


@pytest.mark.medium
@pytest.mark.parametrize("arguments, words", [
    ((f"{NSA}:botle",), "NSA has no settings for category 'botle'; the nearest name is 'bottle'"),
    ((NSA, "--config.data.category=cab"), "there is no demo category 'cab'; did you mean 'cap'?"),
])  # fmt: skip
def test_unknown_category_of_experiment_and_demo(capsys, workdir, arguments, words):
    assert words in refusal(capsys, train.main, "--workdir", workdir, "--config", *arguments)


@pytest.mark.medium
def test_empty_train_good(capsys, good, root, workdir):
    for path in good.iterdir():
        path.unlink()
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(good) in message and "no images" in message


@pytest.mark.medium
def test_a_single_training_image(capsys, good, root, workdir):
    for path in sorted(good.iterdir())[1:]:
        path.unlink()
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert "at least 2 good images" in message and "there are 1" in message


# Image files


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def no_image(path):
    path.write_text("these are not the pixels you are looking for")


def directory(path):
    path.unlink()
    path.mkdir()


def too_small(path):
    write(path, part(0)[:20])


def broken_link(path):
    path.unlink()
    path.symlink_to("nothing.png")


DAMAGES = [  # and a word that says what is wrong
    (corrupt, "truncated or damaged"),
    (empty, "empty"),
    (no_image, "not an image"),
    (directory, "directory"),
    (broken_link, "not exist"),
    (too_small, f"{WIDTH} x 20 pixels"),
]


@pytest.mark.medium
@pytest.mark.parametrize("damage, words", DAMAGES)
def test_a_training_file_that_cannot_be_used(capsys, good, root, workdir, damage, words):
    damage(good / "003.png")
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(good / "003.png") in message and words in message


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_file_that_is_found_out_in_the_middle(capsys, good, root, workdir, brightness, workers):
    # Streamed images are decoded by the pipeline's threads or processes, the damaged one in the first or second step.
    empty(good / "003.png")
    arguments = training(root, workdir, data__cache_gib=0.0, data__workers=workers)
    message = refusal(capsys, train.main, *arguments)
    assert str(good / "003.png") in message and "empty" in message


def deny(monkeypatch, module, *, match, code):
    """Lets `open` in a module fail for paths that contain `match`; root may read everything, so it is made up."""

    def refuse(path, *args, **options):
        if match in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return open(path, *args, **options)

    monkeypatch.setattr(module, "open", refuse, raising=False)


@pytest.mark.medium
def test_an_unreadable_file(capsys, monkeypatch, good, root, workdir):
    deny(monkeypatch, images, match="003.png", code=errno.EACCES)
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(good / "003.png") in message and "Permission denied" in message


# Masks: found before anything is fitted, but for sizes, which need the files opened


@pytest.mark.medium
def test_a_mask_of_another_size_costs_no_training(capsys, root, workdir):
    mask = root / "nut" / "ground_truth" / "spot" / "001_mask.png"
    whole = np.array(Image.open(mask))
    write(mask, whole[:-1])
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(mask) in message and str(root / "nut" / "test" / "spot" / "001.png") in message
    assert f"{WIDTH} x {HEIGHT - 1}" in message and f"{WIDTH} x {HEIGHT};" in message
    write(mask, whole)
    assert command(evaluate.main, "--workdir", workdir) == 0


@pytest.mark.medium
def test_a_mask_without_its_image(capsys, root, workdir):
    (root / "nut" / "test" / "spot" / "001.png").unlink()
    mask = root / "nut" / "ground_truth" / "spot" / "001_mask.png"
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(mask) in message and "no image" in message
    assert not workdir.exists()


@pytest.mark.medium
def test_a_defective_image_without_its_mask(capsys, root, workdir):
    (root / "nut" / "ground_truth" / "spot" / "001_mask.png").unlink()
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert message.startswith(f"defective image '{root / 'nut' / 'test' / 'spot' / '001.png'}' has no mask ")
    assert not workdir.exists()


# The workdir


@pytest.mark.medium
def test_an_unwritable_workdir(capsys, monkeypatch, root, workdir):
    def refuse(path, *args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(workdir) in message and "Permission denied" in message and "--workdir" in message


@pytest.mark.medium
def test_a_file_in_the_place_of_the_workdir(capsys, root, workdir):
    workdir.write_text("mine")
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert str(workdir) in message and message.endswith("choose another --workdir")
    assert workdir.read_text() == "mine"


@pytest.mark.medium
def test_a_workdir_of_another_config(capsys, copy, fitted):
    before = (copy / "results.json").read_bytes()
    message = refusal(capsys, train.main, *baseline(fitted / "sets", copy, data__holdout=0.3, seed=7))
    assert str(copy) in message and "seed (0 there, 7 now)" in message
    assert "--workdir" in message and "--restart" in message and "deletes" in message
    assert (copy / "results.json").read_bytes() == before


@pytest.mark.parametrize("main, arguments", [(evaluate.main, ()), (predict.main, (ROOT,))])
def test_no_workdir(capsys, tmp_path, main, arguments):
    message = refusal(capsys, main, "--workdir", tmp_path / "no", *arguments)
    assert str(tmp_path / "no") in message and "no workdir" in message


# The config


@pytest.mark.medium
@pytest.mark.parametrize("argument, words", [
    ("--config.epoch=3", "config has no key 'epoch'; did you mean config.epochs?"),
    ("--config.data.rot=/x", "config has no key 'data.rot'; did you mean config.data.root?"),
    ("--config.epochs=many", "config.epochs must be of type int, not 'many'"),
    ("--epochs=3", "unknown argument '--epochs=3'; see --help"),
    ("--config.epochs=0", "config.epochs must be at least 1 for nsa, not 0"),
    ("--config.epochs=-1", "config.epochs must be at least 0, not -1"),
    ("--config.batch=0", "config.batch must be at least 1, not 0"),
    ("--config.method=nas", "config.method 'nas' is unknown; did you mean 'nsa'?"),
    ("--config.label=logstic", "config.label must be one of binary, continuous, continuous_sigmoid, logistic, factor, "
                               "not 'logstic'"),
    ("--config.dtype=float64", "config.dtype must be one of auto, float32, bfloat16, not 'float64'"),
    ("--config.synthesis.blending=mix", "config.synthesis.blending must be one of source, mixed, paste, "),
    ("--config.synthesis.patches=0", "config.synthesis.patches must be at least 1, not 0"),
    ("--config.synthesis.background=(3,)", "config.synthesis.background must be none or (brightness, threshold)"),
    ("--config.data.source=webdataset", "config.data.source must be demo, tfds, chest_xray, folder, mvtec_ad, "),
    # What evaluation alone needs is refused before the training, too.
    ("--config.score.reduction=median", "config.score.reduction must be mean, max or top, not 'median'"),
    ("--config.score.top=0", "config.score.top must lie in (0, 1], not 0.0"),
    ("--config.evaluate.crop=512", "config.evaluate.crop 512 is no central square of config.score.size 128; "),
    ("--config.evaluate.crop=100", "config.evaluate.crop is 100, but the network takes multiples of 32 pixels only"),
    ("--config.evaluate.pro_limit=2", "config.evaluate.pro_limit must lie in (0, 1], not 2.0"),
    ("--config.evaluate.mask_rule=most", "config.evaluate.mask_rule must be one of any, half, all, not 'most'"),
    ("--config.threshold.false_alarm_rate=5", "config.threshold.false_alarm_rate must lie in [0, 1), not 5.0"),
    # Sizes that the network or the crops cannot take.
    ("--config.view.crop=100", "config.view.crop is 100, but the network takes multiples of 32 pixels only"),
    ("--config.view.crop=0", "config.score.size must be at least 1, not 0"),
    ("--config.view.crop=160", "config.view.crop 160 does not fit into config.view.center_crop none or "
                               "config.data.size 136; lower the first or raise the last"),
    ("--config.view.center_crop=140", "config.view.crop 128 does not fit into config.view.center_crop 140 or "),
    ("--config.score.size=100", "config.score.size is 100, but the network takes multiples"),
    ("--config.data.size=16", "config.view.crop 128 does not fit into"),
    # Distributions that cannot be drawn from.
    ("--config.synthesis.half_height=(0.6,0.7)", "config.synthesis.half_height must be (low, high) with half a pixel"),
    ("--config.synthesis.half_width=(0.4,0.03)", "config.synthesis.half_width must be (low, high) with half a pixel"),
    ("--config.synthesis.scale=(3,1)", "config.synthesis.scale must be (low, high) with 0 < low <= high, not (3, 1)"),
    ("--config.synthesis.gamma=(-1,1,0)", "config.synthesis.gamma must be a shape and a scale above 0 and an offset"),
    ("--config.synthesis.overlap=1", "config.synthesis.overlap must lie in [0, 1), not 1.0"),
])  # fmt: skip
def test_a_config_that_cannot_work(capsys, workdir, argument, words):
    message = refusal(capsys, train.main, "--config", NSA, "--workdir", workdir, argument)
    assert message.startswith(words)
    assert not workdir.exists()


@pytest.mark.medium
@pytest.mark.parametrize("overrides, words", [
    ({"epochs": 3}, "config.epochs must be 0 for baseline_mean, which is not trained, not 3"),
    ({"evaluate__crop": 16}, "baseline_mean compares whole images pixel by pixel: config.evaluate.crop must be 0"),
    ({"score__size": 64}, "baseline_mean compares whole images pixel by pixel: config.evaluate.crop must be 0"),
    ({"score__sigma": 0}, "config.score.sigma must be positive and at most config.score.size, not 0.0"),
    ({"score__floor": 0}, "config.score.floor must be positive, not 0.0"),
])  # fmt: skip
def test_a_config_that_cannot_work_for_the_baseline(capsys, root, workdir, overrides, words):
    assert refusal(capsys, train.main, *baseline(root, workdir, **overrides)).startswith(words)
    assert not workdir.exists()


@pytest.mark.medium
def test_a_crop_that_cannot_be_centred(capsys, root, workdir, brightness):
    message = refusal(capsys, train.main, *training(root, workdir, evaluate__crop=31, data__resize="squeeze"))
    assert "config.evaluate.crop 31" in message and "even" in message


@pytest.mark.medium
def test_an_unknown_optimizer(capsys, root, workdir, brightness):
    message = refusal(capsys, train.main, *training(root, workdir, optim__name="rmsprop"))
    assert "config.optim.name" in message and "sgd, adam, adamw" in message and "'rmsprop'" in message


@pytest.mark.medium
def test_a_batch_that_the_devices_cannot_share(capsys, root, workdir, brightness):
    message = refusal(capsys, train.main, *training(root, workdir, batch=12))
    assert "config.batch is 12" in message and "8 devices" in message


@pytest.mark.medium
def test_a_batch_larger_than_the_data_set_says_so_and_trains(capsys, root, workdir, brightness):
    assert command(train.main, *training(root, workdir, batch=16)) == 0
    assert "batch 16 is larger than the 6 training images: images repeat within a batch" in capsys.readouterr().out
    assert (workdir / "results.json").is_file()


# A full disk and damaged files


@pytest.mark.slow
def test_a_full_disk_while_checkpointing(capsys, monkeypatch, root, workdir, brightness):
    original = ocp.StandardCheckpointer.save

    def save(self, directory, *args, **options):
        if pathlib.Path(directory).name == "3":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, directory, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(ocp.StandardCheckpointer, "save", save)
        message = refusal(capsys, train.main, *training(root, workdir))
    assert f"checkpoint 3 cannot be written to {workdir / 'checkpoints'}" in message
    assert "No space left on device" in message and "the last complete one is step 2" in message
    assert command(train.main, *training(root, workdir)) == 0  # with space again, nothing was lost
    assert "resuming at step 2 of 4" in capsys.readouterr().out


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.slow
def test_a_truncated_checkpoint_falls_back_and_says_so(capsys, root, workdir, brightness):
    assert command(train.main, *training(root, workdir)) == 0
    file = largest(workdir / "checkpoints" / "4")
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    assert command(train.main, *training(root, workdir)) == 0
    printed = capsys.readouterr()
    assert f"checkpoint 4 in {workdir / 'checkpoints'} is damaged" in printed.out
    assert "resuming at step 3 of 4" in printed.out and "Traceback" not in printed.out + printed.err


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("main, arguments", [(evaluate.main, ()), (predict.main, (ROOT,))])
def test_a_tampered_detector(capsys, copy, main, arguments):
    flip(largest(copy / "detector"))
    message = refusal(capsys, main, "--workdir", copy, *arguments)
    assert message.startswith(f"the detector in {copy} is damaged (")
    assert message.endswith("was changed); run its training command again to rewrite it")


def test_a_detector_with_missing_files(capsys, copy):
    largest(copy / "detector").unlink()
    assert "is missing); run its training command again" in refusal(capsys, evaluate.main, "--workdir", copy)
    shutil.rmtree(copy / "detector")
    assert "is damaged (it is missing or incomplete)" in refusal(capsys, evaluate.main, "--workdir", copy)
    (copy / "detector.json").unlink()
    message = refusal(capsys, evaluate.main, "--workdir", copy)
    assert str(copy) in message and "no trained detector" in message


@pytest.mark.slow
def test_training_again_repairs_a_detector(capsys, copy, fitted):
    flip(largest(copy / "detector"))
    assert command(train.main, *baseline(fitted / "sets", copy, data__holdout=0.3)) == 0
    assert command(evaluate.main, "--workdir", copy) == 0


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"arrays": "x", "sha256": 3, "values": {}}'])
def test_a_damaged_threshold_file(capsys, copy, text):
    (copy / "detector.json").write_text(text)
    message = refusal(capsys, evaluate.main, "--workdir", copy)
    assert str(copy) in message and "damaged" in message and "detector.json" in message


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "[", "7"])
@pytest.mark.parametrize("name, remedy", [
    ("config.json", "restore it or choose another --workdir"),
    ("synthetic.json", "run the training command again to rewrite it"),
    ("provenance.json", "restore it, or move it away: results then don't say which command and commit trained"),
])  # fmt: skip
def test_damaged_json_is_told_and_what_it_says_to_do_helps(capsys, copy, fitted, name, remedy, text):
    (copy / name).write_text(text)
    mine = {path.name for path in copy.iterdir()}
    message = refusal(capsys, evaluate.main, "--workdir", copy)
    assert message.startswith(f"{copy / name} is damaged (") and f"; {remedy}" in message
    assert {path.name for path in copy.iterdir()} == mine  # nothing is removed
    if name == "synthetic.json":
        assert command(train.main, *baseline(fitted / "sets", copy, data__holdout=0.3)) == 0
    elif name == "provenance.json":
        assert refusal(capsys, train.main, *baseline(fitted / "sets", copy, data__holdout=0.3)) == message
        (copy / name).unlink()
    else:
        assert refusal(capsys, train.main, *baseline(fitted / "sets", copy, data__holdout=0.3)) == message
        assert refusal(capsys, predict.main, "--workdir", copy, fitted / "sets") == message
        shutil.copy(fitted / "work" / name, copy)
    assert command(evaluate.main, "--workdir", copy) == 0


@pytest.mark.medium
def test_damaged_results_are_made_again(capsys, copy):
    (copy / "results.json").write_text('{"experiment": "ba')
    message = refusal(capsys, report.main, copy)
    assert message.startswith(f"{copy / 'results.json'} cannot be read (")
    assert message.endswith("; run python -m jaxad.evaluate again")
    assert command(evaluate.main, "--workdir", copy) == 0 and command(report.main, copy) == 0


@pytest.mark.medium
def test_an_evaluation_beside_another_command(capsys, copy):
    """Results of a detector that is being replaced, or of two evaluations at once, would not belong together."""
    with ThreadPoolExecutor(1) as other:
        lock = disk.locked(copy)
        other.submit(lock.__enter__).result()
        message = refusal(capsys, evaluate.main, "--workdir", copy)
        other.submit(lock.__exit__, None, None, None).result()
    assert message.startswith(f"{copy} is in use by another thread of process ")
    assert command(evaluate.main, "--workdir", copy) == 0


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("name", ["results.json", "scores.csv", "report.html"])
def test_a_full_disk_when_writing_results(capsys, copy, name):
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(FULL)
    message = refusal(capsys, evaluate.main, "--workdir", copy)
    assert "No space left on device" in message and (str(copy) in message or name in message)


@needs_full
@pytest.mark.parametrize(
    "name", ["predictions.csv", "heatmaps/00001_000.jpg", "maps/00001_000.npy", "maps/00001_000.tiff"]
)
def test_a_full_disk_when_writing_predictions(capsys, fitted, tmp_path, monkeypatch, name):
    output, paths = tmp_path / "out", fitted / "sets" / "nut" / "test"
    temporary = disk.temporary

    def full(path):  # what is written for this name goes to a full disk
        unfinished = temporary(path)
        if path == output / name:
            unfinished.symlink_to(FULL)
        return unfinished

    monkeypatch.setattr(disk, "temporary", full)
    kind = name.rpartition(".")[2] if name.startswith("maps") else "npy"
    message = refusal(capsys, predict.main, "--workdir", fitted / "work", "--output", output, "--maps", kind, paths)
    assert str(output) in message and os.strerror(errno.ENOSPC) in message and "--output" in message


@pytest.mark.medium
@needs_full
def test_a_full_disk_when_training_writes_its_log(capsys, root, workdir, brightness):
    workdir.mkdir()
    (workdir / "provenance.json").symlink_to(FULL)
    message = refusal(capsys, train.main, *training(root, workdir))
    assert "No space left on device; free some space and run the same command again" in message


def test_a_file_in_the_place_of_the_output(capsys, fitted, tmp_path):
    (tmp_path / "out").write_text("mine")
    message = refusal(
        capsys, predict.main, "--workdir", fitted / "work", "--output", tmp_path / "out", fitted / "sets"
    )
    assert message.startswith(f"the predictions cannot be written to {tmp_path / 'out'} (")
    assert (tmp_path / "out").read_text() == "mine"


# Prediction


@pytest.mark.parametrize("damage, words", [pair for pair in DAMAGES if pair[0] not in (broken_link, directory)])
def test_an_image_that_cannot_be_predicted(capsys, fitted, tmp_path, damage, words):
    path = write(tmp_path / "new" / "a.png", part(1))
    damage(path)
    output = tmp_path / "out"
    assert command(predict.main, "--workdir", fitted / "work", "--output", output, path.parent) == 1
    with open(output / "predictions.csv", newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["decision"] == "unreadable" and str(path) in row["reason"] and words in row["reason"]
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "1 of 1 image" in printed and str(output / "predictions.csv") in printed


def test_a_path_that_does_not_exist(capsys, fitted, tmp_path):
    path = tmp_path / "x.png"
    message = refusal(capsys, predict.main, "--workdir", fitted / "work", "--output", tmp_path / "out", path)
    assert str(path) in message and "exist" in message


def test_a_folder_without_images(capsys, fitted, tmp_path):
    folder = tmp_path / "new"
    (folder / "below").mkdir(parents=True)
    message = refusal(capsys, predict.main, "--workdir", fitted / "work", "--output", tmp_path / "out", folder)
    assert str(folder) in message and "no images" in message
    assert not (tmp_path / "out").exists()


# The entry point itself


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.ENOTDIR])
def test_what_the_file_system_refuses_is_one_sentence(capsys, code):
    with pytest.raises(SystemExit) as status:
        errors.run(raising(OSError(code, os.strerror(code), "/some/file")))
    printed = capsys.readouterr()
    assert sentence(status.value.code, printed.err).startswith(f"/some/file: {os.strerror(code)}; ")


def test_numbers_and_what_they_count():
    assert [errors.counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_faults_of_the_program_keep_their_traceback():
    for error in (ValueError("x"), OSError("no number"), OSError(errno.EBADF, "bad")):
        with pytest.raises(type(error)):
            errors.run(raising(error))


@pytest.mark.medium
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_the_terminal_cannot_show_are_printed_as_escapes(encoding):
    code = "from jaxad import errors; errors.run(lambda: print('/parts/caf\\udce9.png'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (made.returncode, made.stdout, made.stderr) == (0, b"/parts/caf\\udce9.png\n", b"")


def test_an_interrupt_exits_with_130(capsys):
    with pytest.raises(SystemExit) as status:
        errors.run(raising(KeyboardInterrupt()))
    assert status.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.medium
@pytest.mark.parametrize("arguments, words", [
    (["jaxad.train", "--config", BASELINE.replace("mean", "maen")], "did you mean"),
    (["jaxad.predict", "--workdir", "nowhere", "a.png"], "nowhere is no workdir"),
    (["jaxad.evaluate", "--workdir", "nowhere"], "nowhere is no workdir"),
])  # fmt: skip
def test_as_a_process(tmp_path, arguments, words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert words in sentence(result.returncode, result.stderr, result.stdout)
    assert list(tmp_path.iterdir()) == []
