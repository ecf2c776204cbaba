"""What `jaxad` exports: experiments by name, trainings on images that a program gives, and types."""

import importlib
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import config as configs
from jaxad import data, methods
from jaxad.data import folder
from jaxad.data.given import ArraySource
from jaxad.runtime import provenance
from jaxad.training import synthetic_validation
from tests.parts import BASELINE, ROOT, SIZE, part, refusal, write, write_parts
from tests.refusals import refuses

COUNT = 12


@pytest.fixture
def config():
    return jaxad.configs.load("baseline_mean", "object", data={"size": SIZE}, score={"sigma": 1.0})


@pytest.fixture
def parts():
    return [part(number) for number in range(COUNT)]


def files(root, images):
    return [write(root / f"{number:02d}.png", image) for number, image in enumerate(images)]


def test_the_function_is_not_hidden_by_the_module_of_the_command():
    module = importlib.import_module("jaxad.train")
    assert jaxad.train is importlib.import_module("jaxad.training.api").train is not module
    assert pickle.loads(pickle.dumps(jaxad.train)) is jaxad.train


def test_what_is_exported_is_there_and_nothing_else_is():
    assert all(getattr(jaxad, name) is not None for name in jaxad.__all__)
    assert set(jaxad.__all__) <= set(dir(jaxad))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxad.trian  # noqa: B018


# Experiments by name.


def test_an_experiment_by_name_is_the_file_with_changes():
    changes = {"epochs": 2, "data": {"root": ROOT, "holdout": 0}, "normalize": {"mean": (0.5,) * 3}}
    found = jaxad.configs.load("nsa_binary", "bottle", **changes)
    texts = {"epochs": "2", "data.root": str(ROOT), "data.holdout": "0", "normalize.mean": "0.5,0.5,0.5"}
    expected = configs.load(f"{ROOT}/experiments/nsa_binary.py:bottle", texts)
    assert configs.flatten(found) == configs.flatten(expected)
    assert found.is_locked


def test_an_experiment_has_its_own_default_category_and_may_be_a_file():
    by_name, by_file = jaxad.configs.load("baseline_mean"), jaxad.configs.load(BASELINE, category="cap")
    assert configs.flatten(by_name) == configs.flatten(by_file)
    assert configs.flatten(jaxad.configs.load(pathlib.Path(BASELINE))) == configs.flatten(by_name)
    with refuses(None, "no_such"):
        jaxad.configs.load(pathlib.Path("no_such"))


@pytest.mark.parametrize(
    "name, values, word",
    [
        ("nsa_logistc", {}, "did you mean nsa_logistic?"),
        ("xyz", {}, "the names are baseline_mean, "),
        ("nsa_logistic", {"epoch": 2}, "did you mean config.epochs?"),
        ("nsa_logistic", {"data": {"rot": "a"}}, "did you mean config.data.root?"),
        ("nsa_logistic", {"data": "a"}, "config has no key 'data'"),
        ("nsa_logistic", {"epochs": {"a": 1}}, "config has no key 'epochs.a'"),
        ("nsa_logistic", {"epochs": 1.5}, "config.epochs must be of type int"),
        ("nsa_logistic", {"data": {"holdout": 1}}, "config.data.holdout must lie in"),
    ],
)
def test_a_wrong_name_key_or_value_is_refused(name, values, word):
    with pytest.raises(jaxad.UserError) as told:
        jaxad.configs.load(name, **values)
    assert word in str(told.value)


# Images of a program.


@pytest.mark.medium
def test_images_of_any_kind_make_the_same_detector(config, parts, tmp_path):
    paths = files(tmp_path / "good", parts)
    options = {"min_side": 32, "channels": 3}
    kinds = {
        "array": np.stack(parts),
        "arrays": parts,
        "generator": (image for image in parts),
        "Pillow": [Image.fromarray(image) for image in parts],
        "mixed": [Image.fromarray(parts[0]), *parts[1:]],
        "paths": [str(paths[0]), *paths[1:]],
        "folder": tmp_path / "good",
        "folder as text": str(tmp_path / "good"),
        "source": folder.load(tmp_path / "good", "", **options).train,
    }
    new = [part(100, spot=True), part(101)]
    trained = {name: jaxad.train(config, images) for name, images in kinds.items()}
    first = trained.pop("array")
    assert first.threshold is not None
    assert [prediction.defective for prediction in first.predict(new)] == [True, False]
    for name, detector in trained.items():
        assert detector.threshold == first.threshold, name
        assert [row.score for row in detector.predict(new)] == [row.score for row in first.predict(new)], name


@pytest.mark.medium
def test_a_stack_of_grey_images_is_taken_apart(config, parts):
    grey = [image[..., 0] for image in parts]
    assert jaxad.train(config, np.stack(grey)).threshold == jaxad.train(config, grey).threshold


@pytest.mark.medium
def test_without_images_the_config_names_the_data(config, tmp_path):
    write_parts(tmp_path, train=COUNT)
    named = configs.override(config, {"data.root": tmp_path, "data.category": "nut"})
    assert jaxad.train(named).threshold == jaxad.train(config, tmp_path / "nut").threshold


@pytest.mark.medium
def test_without_a_workdir_nothing_is_kept(config, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    detector = jaxad.train(config, parts)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(jaxad.UserError, match="in none"):
        pickle.dumps(detector)
    detector.save(tmp_path / "kept")
    loaded = jaxad.load(tmp_path / "kept")
    assert [row.score for row in loaded.predict(parts)] == [row.score for row in detector.predict(parts)]
    assert loaded.threshold == detector.threshold


@pytest.mark.medium
def test_a_detector_is_not_saved_where_another_config_is(config, parts, tmp_path):
    jaxad.train(config, parts).save(tmp_path / "kept")
    other = jaxad.train(configs.override(config, {"seed": 1}), parts)
    with pytest.raises(jaxad.UserError, match="made with another config"):
        other.save(tmp_path / "kept")


@pytest.mark.medium
def test_a_workdir_is_bound_to_the_images(config, parts, tmp_path):
    first = jaxad.train(config, parts, tmp_path / "w")
    again = jaxad.train(config, np.stack(parts), tmp_path / "w")
    assert jaxad.load(tmp_path / "w").threshold == first.threshold == again.threshold
    changed = [*parts[:-1], part(99)]
    with pytest.raises(jaxad.UserError, match=f"1 changed .'train/good/{COUNT - 1:06d}'"):
        jaxad.train(config, changed, tmp_path / "w")
    with pytest.raises(jaxad.UserError, match="1 missing"):
        jaxad.train(config, parts[:-1], tmp_path / "w")
    reshaped = [image.reshape(parts[0].shape[1], -1, 3) for image in parts]  # the same bytes
    with pytest.raises(jaxad.UserError, match=f"{COUNT} changed"):
        jaxad.train(config, reshaped, tmp_path / "w")
    assert [row["command"] for row in provenance.recorded(tmp_path / "w")] == ["jaxad.train"] * 2


@pytest.mark.medium
def test_the_white_level_of_files_is_found(config, tmp_path):
    deep = [(part(number)[..., 0].astype(np.uint16) * 16) for number in range(COUNT)]
    detector = jaxad.train(config, files(tmp_path, deep))
    assert detector.white_level == 4095


@pytest.mark.medium
@pytest.mark.parametrize(
    "images, word",
    [
        ([], "at least 2 good images"),
        (part(0), "at least 2 good images"),
        ([part(0), "a.png"], "images must be all paths"),
        ([part(0), part(1).astype(np.float32)], "image 1 must be uint8"),
        ([part(0), part(1)[:20]], "image 1 is 40 x 20 pixels"),
        ([part(0), 3], "image 1 must be a path, an image of Pillow or an array"),
        (3, "images must be paths"),
        (["a.png", "b.png"], "a.png"),
        ("no_such_folder", "no_such_folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_that_cannot_be_used_are_refused(config, images, word, tmp_path):
    with pytest.raises(jaxad.UserError) as told:
        jaxad.train(config, images, tmp_path / "w")
    assert word in str(told.value)


@pytest.mark.medium
def test_a_source_must_hold_good_images_of_the_configs_channels(config, parts, tmp_path):
    write_parts(tmp_path, train=COUNT)
    defective = data.load(configs.override(config, {"data.root": tmp_path, "data.category": "nut"})).test
    with refuses(None, "defective"):
        jaxad.train(config, defective)
    grey = configs.override(config, {"data.root": tmp_path, "data.category": "nut"})
    source = ArraySource([image[..., :1] for image in parts])
    with refuses("data.channels", "1 channel"):
        jaxad.train(grey, source)


@pytest.mark.medium
def test_a_detector_keeps_its_config_when_the_caller_changes_its_own(config, parts, tmp_path):
    write_parts(tmp_path, train=COUNT)
    named = configs.override(config, {"data.root": tmp_path, "data.category": "nut"})
    for images in (None, parts):
        named.seed = 3
        detector = jaxad.train(named, images)
        named.seed = 4
        assert detector.config.seed == 3


@pytest.mark.parametrize("key, value", [("batch", 0), ("log_every", 0), ("checkpoint.every_steps", 0), ("seed", -1)])
def test_values_that_were_set_in_the_config_itself_are_checked(key, value, parts):
    config = jaxad.configs.load("nsa_logistic", "texture")
    config.update_from_flattened_dict({key: value})
    with refuses(key, "at least"):
        jaxad.train(config, parts)
    with refuses(key, "at least"):
        methods.create(config)


@pytest.mark.medium
def test_a_detector_is_not_saved_over_that_of_another_training(config, parts, tmp_path):
    first = jaxad.train(config, parts, tmp_path / "w")
    first.threshold = 2.0
    first.save(tmp_path / "w")
    assert jaxad.load(tmp_path / "w").threshold == 2
    other = jaxad.train(config, parts[:-1])
    with refuses(tmp_path / "w", "holds a training"):
        other.save(tmp_path / "w")
    assert jaxad.load(tmp_path / "w").threshold == 2


@pytest.mark.medium
def test_restart_begins_a_workdir_anew(config, parts, tmp_path):
    jaxad.train(config, parts, tmp_path / "w")
    changed = configs.override(config, {"seed": 1})
    with pytest.raises(jaxad.UserError, match="restart=True"):
        jaxad.train(changed, parts[:-1], tmp_path / "w")
    jaxad.train(changed, parts[:-1], tmp_path / "w", restart=True)
    assert jaxad.load(tmp_path / "w").config.seed == 1


@pytest.mark.medium
def test_figures_that_a_saved_detector_lacks_are_explained(config, parts, tmp_path):
    jaxad.train(config, parts).save(tmp_path / "w")
    reason = synthetic_validation.read(tmp_path / "w", jaxad.load(tmp_path / "w").config)["reason"]
    assert "no synthetic.json" in reason and "held out" not in reason


def test_the_name_of_an_experiment_is_no_config(parts):
    with pytest.raises(jaxad.UserError, match=r"that jaxad\.configs\.load returns, not 'nsa_logistic'"):
        jaxad.train("nsa_logistic", parts)


@pytest.mark.medium
def test_images_of_a_program_are_not_looked_for_by_a_command(config, parts, tmp_path, capsys):
    jaxad.train(config, parts, tmp_path / "w")
    with pytest.raises(jaxad.UserError, match=r"config.data.source is given.*config.data.root"):
        data.load(jaxad.load(tmp_path / "w").config)
    evaluate = importlib.import_module("jaxad.evaluate")
    assert "config.data.source is given" in refusal(capsys, evaluate.main, "--workdir", tmp_path / "w")
    flags = ["--config.data.source=folder", f"--config.data.root={write_parts(tmp_path / 'sets')}"]
    evaluate.main(["--workdir", str(tmp_path / "w"), *flags, "--config.data.category=nut"])
    assert (tmp_path / "w" / "results.json").exists()


# Types.

PROGRAM = """
import numpy as np
import jaxad

config = jaxad.configs.load("nsa_logistic", "object", epochs=2, data={"root": "parts"})
trained = jaxad.train(config, np.zeros((20, 64, 64, 3), np.uint8), "runs/mine")
detector: jaxad.Detector = jaxad.load("runs/mine")
try:
    for prediction in detector.predict(["new.png"]):
        print(prediction.score + 1, prediction.peak[0], prediction.map.shape)
except jaxad.UserError as error:
    print(error)
reveal_type(trained)
reveal_type(jaxad.load)
reveal_type(prediction.score)
reveal_type(prediction.defective)
reveal_type(detector.predict([], keep_errors=True)[0])
detector.predict([])[0].scor
jaxad.train()
jaxad.load(3)
jaxad.trian
"""


@pytest.mark.medium
def test_a_users_program_sees_the_types(tmp_path):
    pytest.importorskip("mypy", reason="mypy comes with the extra test")
    (tmp_path / "user.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True
    )
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("user.py")]
    revealed = [line.split('"')[1] for line in lines if line.startswith("note: Revealed")]
    assert revealed[0] == "jaxad.detector.Detector"
    assert revealed[1].startswith("def (workdir: str | pathlib.Path, overrides: ")
    assert revealed[1].endswith("-> jaxad.detector.Detector")
    assert revealed[2:4] == ["float", "bool | None"]
    assert revealed[4].endswith("fallback=jaxad.detector.Prediction] | jaxad.errors.UserError")
    errors = [line for line in lines if line.startswith("error: ")]
    words = ['"Prediction" has no attribute "scor"', 'Missing positional argument "config"', "incompatible type",
             "has no attribute"]  # fmt: skip
    assert len(errors) == len(words), done.stdout
    assert all(word in error for word, error in zip(words, errors, strict=True)), done.stdout
