"""A workdir is bound to its training images: what changed is named, nothing is mixed and nothing is lost."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from jaxad import evaluate
from jaxad.data import binding
from jaxad.runtime import checkpoint
from jaxad.synthetic_anomalies import __main__ as synthetic_anomalies
from jaxad.training.log import read_history
from tests.commands import train
from tests.parts import NSA, command, interrupted, part, refusal, sentence, write, write_fabric
from tests.tiny import environment  # noqa: F401 (a fixture)

IMAGES, STEPS, SWAPS = 24, 9, 10  # two images are held out; 22 images in batches of 8 make 3 steps an epoch


@pytest.fixture
def root(tmp_path) -> Path:
    write_fabric(tmp_path / "parts", count=IMAGES)
    for number in range(2):
        write(tmp_path / "check" / "good" / f"{number}.png", part(number))
        write(tmp_path / "check" / "spot" / f"{number}.png", part(10 + number, spot=True))
    return tmp_path / "parts"


def arguments(root: Path, workdir: Path, **changes) -> list[str]:
    """Trains the tiny method on images that are decoded again for every example, and for the density."""
    given = {"data__root": root, "data__test": root.parent / "check", "data__size": 64, "view__crop": 64}
    given |= {"method": "tiny", "batch": 8, "epochs": 3, "log_every": 1, "checkpoint__every_steps": 2}
    given |= {"evaluate__batch": 8, "data__synthesis": "host", "data__cache_gib": 0.0} | changes
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    return ["--config", f"{NSA}:texture", "--workdir", str(workdir), *flags]


def result(workdir: Path) -> tuple:
    """Weights, threshold, losses and test scores, for a comparison to the bit."""
    tree, fitted = checkpoint.load(workdir / "detector.json")
    weights = [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]
    losses = [(row["step"], row["loss"]) for row in read_history(workdir)]
    return weights, losses, fitted, (workdir / "scores.csv").read_text()


@pytest.fixture
def complete(root, tmp_path) -> Path:
    """The workdir of an undisturbed run."""
    assert command(train.main, *arguments(root, tmp_path / "complete")) == 0
    return tmp_path / "complete"


CHANGES = {
    "replaced": (IMAGES, 1, "24 changed ('train/good/00', 'train/good/01', 'train/good/02' and 21 more)"),
    "fewer": (14, 0, "10 missing ('train/good/14', 'train/good/15', 'train/good/16' and 7 more)"),
    "more": (IMAGES + 1, 0, "1 added ('train/good/24')"),
}


@pytest.mark.medium
@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_by_name_and_cost_nothing(complete, root, capsys, change) -> None:
    count, seed, words = CHANGES[change]
    before = result(complete)
    kept = shutil.copytree(root, root.with_name("kept"))
    shutil.rmtree(root)
    write_fabric(root, count=count, seed=seed)
    message = refusal(capsys, train.main, *arguments(root, complete))
    assert all(part in message for part in (str(complete), words, "--restart", "deletes"))
    assert result(complete) == before
    shutil.rmtree(root)
    shutil.move(kept, root)
    assert command(train.main, *arguments(root, complete)) == 0  # and so do images that were restored
    assert result(complete) == before


@pytest.mark.slow
def test_restart_trains_on_the_new_images_as_in_a_fresh_workdir(complete, root, tmp_path) -> None:
    (complete / "predictions").mkdir()
    (complete / "notes.txt").write_text("mine")
    for name in (synthetic_anomalies.FILE, synthetic_anomalies.PICTURE):  # of the detector that goes
        (complete / name).write_text("{}")
    write(root / "00.png", part(5))
    assert command(train.main, *arguments(root, complete), "--restart") == 0
    assert command(train.main, *arguments(root, tmp_path / "fresh")) == 0
    assert result(complete) == result(tmp_path / "fresh")
    assert len(json.loads((complete / "provenance.json").read_text())) == 1
    assert (complete / "predictions").is_dir() and (complete / "notes.txt").read_text() == "mine"
    assert not (complete / synthetic_anomalies.FILE).exists() and not (complete / synthetic_anomalies.PICTURE).exists()


@pytest.mark.parametrize("place", [".", "predictions"])
@pytest.mark.parametrize("trained, marked", [(True, True), (True, False), (False, True)])
def test_predictions_of_a_detector_that_is_deleted_stay_and_are_told(tmp_path, capsys, trained, marked, place) -> None:
    kept = tmp_path / place / ("predict.json" if marked else "mine.txt")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("{}")
    if trained:
        (tmp_path / "config.json").write_text("{}")
    binding.clear(tmp_path)
    assert kept.exists() and not (tmp_path / "config.json").exists()
    sentence = (
        f"{tmp_path / place} holds predictions of the detector that is deleted; they stay until jaxad.predict "
        "writes there again\n"
    )
    assert capsys.readouterr().out == (sentence if trained and marked else "")


@pytest.mark.medium
def test_restart_deletes_nothing_before_the_images_were_read(complete, root, capsys) -> None:
    before = result(complete)
    (root / "03.png").write_bytes(b"")
    message = refusal(capsys, train.main, *arguments(root, complete, batch=16), "--restart")
    assert str(root / "03.png") in message and "empty" in message
    assert result(complete) == before


@pytest.mark.medium
@pytest.mark.parametrize("foreign", ["", '{"mine": 1}'])
def test_a_folder_of_the_user_is_never_a_workdir(root, tmp_path, capsys, foreign) -> None:
    """Files with names that a training writes, in a folder that no training made: refused, also a second time."""
    folder = tmp_path / "project"
    mine = {"checkpoints/model.pt": "precious", "report.html": "mine"} | ({"config.json": foreign} if foreign else {})
    for name, text in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for flags in ((), ("--restart",), ("--restart",)):
        message = refusal(capsys, train.main, *arguments(root, folder), *flags)
        assert str(folder) in message and "--restart" not in message
        assert {name: (folder / name).read_text() for name in mine} == mine
        assert (folder / "config.json").exists() == bool(foreign)


@pytest.mark.medium
def test_restart_reads_every_image_before_it_deletes(complete, root, capsys) -> None:
    image = root / "03.png"
    image.write_bytes(image.read_bytes()[:-20])
    before = {path.name for path in complete.iterdir()}
    message = refusal(capsys, train.main, *arguments(root, complete), "--restart")
    assert f"'{image}' is truncated or damaged" in message and {path.name for path in complete.iterdir()} == before


def test_restart_in_a_folder_without_a_training_deletes_nothing(tmp_path) -> None:
    for name in ("report.html", "checkpoints"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    binding.clear(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["checkpoints", "report.html"]


@pytest.mark.slow
@pytest.mark.parametrize("content, words", [
    (None, "images.json is missing"),
    ('{"images": {"train/good/00": {"byt', "images.json is damaged"),
])  # fmt: skip
def test_a_lost_or_damaged_list_of_images_is_a_sentence(complete, root, capsys, content, words) -> None:
    path = complete / "images.json"
    path.unlink() if content is None else path.write_text(content)
    message = refusal(capsys, train.main, *arguments(root, complete))
    assert all(part in message for part in (str(complete), words, "--restart", "deletes"))


@pytest.mark.slow
def test_workdirs_of_other_versions_are_told_so_and_restart_helps(complete, root, capsys) -> None:
    """Whatever keys they lack, they are not called damaged, and what the sentence says to do works."""
    again, kept = arguments(root, complete), (complete / "config.json").read_text()
    older = {
        "images.json": [{"images": 3}, {}, {"images": {"train/good/00": {"bytes": 3}}}],
        "detector.json": [{"threshold": 0.5}, {"arrays": "x", "sha256": {"a": "b"}}],
    }
    values = json.loads(kept)
    older["config.json"] = [{key: values[key] for key in values if key != left_out} for left_out in ("score", "data")]
    for name, texts in older.items():
        for text in texts:
            (complete / name).write_text(json.dumps(text))
            main, given = (train.main, again) if name == "images.json" else (evaluate.main, ["--workdir", complete])
            message = refusal(capsys, main, *given)
            assert "written by another version of jaxad" in message and "damaged" not in message, message
            assert "--restart" in message and "--workdir" in message
            assert command(train.main, *again, "--restart") == 0
            assert (complete / "results.json").exists()
        assert (complete / "config.json").read_text() == kept


@pytest.mark.medium
def test_another_order_of_the_same_images_is_refused(complete, root, capsys) -> None:
    """The names lack the suffix, by which files are sorted too."""
    path = complete / "images.json"
    images = json.loads(path.read_text())["images"]
    path.write_text(json.dumps({"images": dict(reversed(images.items()))}))
    assert "was made with: their order has changed; restore" in refusal(capsys, train.main, *arguments(root, complete))


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_may_be_replaced_before_anything_was_made(root, tmp_path, capsys) -> None:
    whole = (root / "00.png").read_bytes()
    (root / "00.png").write_bytes(whole[:-20])
    assert "'{}' is truncated or damaged".format(root / "00.png") in refusal(
        capsys, train.main, *arguments(root, tmp_path / "run")
    )
    write(root / "00.png", part(5))
    assert command(train.main, *arguments(root, tmp_path / "run")) == 0
    assert command(train.main, *arguments(root, tmp_path / "fresh")) == 0
    assert result(tmp_path / "run") == result(tmp_path / "fresh")


@pytest.mark.medium
def test_images_that_change_while_a_training_was_stopped_are_refused(root, tmp_path, monkeypatch, capsys) -> None:
    interrupted(monkeypatch, 4, lambda: train.main(arguments(root, tmp_path / "run")))
    write(root / "07.png", part(5))
    assert "was made with: 1 changed ('train/good/07'); restore them" in refusal(
        capsys, train.main, *arguments(root, tmp_path / "run")
    )


@pytest.mark.slow
def test_a_stopped_training_goes_on_by_its_white_level(root, tmp_path, monkeypatch, capsys) -> None:
    """Images of 12 bits in 16: weights, threshold and scores are those of an undisturbed run."""
    for path in root.glob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 16)
    assert command(train.main, *arguments(root, tmp_path / "complete")) == 0
    interrupted(monkeypatch, 4, lambda: train.main(arguments(root, tmp_path / "run")))
    capsys.readouterr()
    assert command(train.main, *arguments(root, tmp_path / "run")) == 0
    assert f"{IMAGES} training images have 16 bits; white is 4095, " in capsys.readouterr().out
    assert result(tmp_path / "run") == result(tmp_path / "complete")
    assert json.loads((tmp_path / "run" / "detector.json").read_text())["values"]["white_level"] == 4095


def swap(path: Path, other: Path, workdir: Path, delay: float) -> threading.Thread:
    """A thread that replaces a file so many seconds after a training has been bound to its images."""

    def act() -> None:
        while not (workdir / "images.json").exists():
            time.sleep(0.001)
        time.sleep(delay)
        os.replace(other, path)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.slow
def test_files_swapped_under_a_running_command(complete, root, tmp_path, capsys) -> None:
    """At random moments an image is replaced: the run ends as an undisturbed one to the bit, or with one sentence."""
    expected, rng, refused = result(complete), np.random.default_rng(), 0
    start = time.perf_counter()
    assert command(train.main, *arguments(root, tmp_path / "timed")) == 0
    duration = time.perf_counter() - start
    for number in range(SWAPS):
        path, workdir = root / f"{rng.integers(IMAGES):02d}.png", tmp_path / f"run{number}"
        kept, other = path.read_bytes(), write(tmp_path / "other.png", part(100 + number))
        capsys.readouterr()
        thread = swap(path, other, workdir, rng.uniform(0, duration))
        status = command(train.main, *arguments(root, workdir))
        thread.join()
        printed = capsys.readouterr()
        path.write_bytes(kept)
        if status:
            refused += 1
            assert sentence(status, printed.err, printed.out) == (
                f"image '{path}' is not the one that this training began with; restore it and run the same command "
                "again"
            )
            assert not (workdir / "detector.json").exists()
            assert command(train.main, *arguments(root, workdir)) == 0
        assert result(workdir) == expected
    with capsys.disabled():
        print(f"\n{refused} of {SWAPS} runs ended with a sentence")
