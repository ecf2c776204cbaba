"""Reading experiments, overrides of every type, the command line, and the config.json of a workdir."""

import argparse
import copy
import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxad
from jaxad import config as configs
from jaxad import evaluate, methods, predict
from jaxad.errors import UserError
from tests.commands import train
from tests.parts import BASELINE, NSA, ROOT, baseline, command, refusal, write_parts
from tests.refusals import refuses

CUTPASTE = f"{ROOT}/experiments/cutpaste_3way.py"
DLA = f"{ROOT}/experiments/dla.py"


def parser():
    result = argparse.ArgumentParser()
    result.add_argument("--config", required=True)
    result.add_argument("--workdir")
    return result


def test_file_and_category():
    assert configs.load(NSA).category == "cap"
    assert configs.load(f"{NSA}:fabric").data.category == "fabric"
    assert configs.load(f"{NSA}:bottle").data.source == "folder"


def test_a_file_name_may_hold_a_colon(tmp_path):
    path = tmp_path / "a:b.py"
    shutil.copy(BASELINE, path)
    assert configs.load(str(path)).experiment == "baseline_mean"
    assert configs.load(f"{tmp_path}/a:b.py").category == "cap"


def test_the_config_is_locked():
    with pytest.raises(AttributeError, match="epoch"):
        configs.load(NSA).epoch = 3


@pytest.mark.parametrize("key, text, value", [
    ("seed", "3", 3),
    ("optim.learning_rate", "1e-4", 1e-4),
    ("optim.learning_rate", "1", 1.0),
    ("data.root", "/a b/c=d:e", "/a b/c=d:e"),
    ("data.root", "12", "12"),
    ("data.root", "", ""),
    ("view.flip", "true", True),
    ("view.flip", "False", False),
    ("synthesis.gamma", "(2, 0.1, 0.03)", (2, 0.1, 0.03)),
    ("synthesis.gamma", "[2, 0.1, 0.03]", (2, 0.1, 0.03)),
    ("synthesis.background", "none", None),
    ("synthesis.background", "(20.0, 20.0)", (20.0, 20.0)),
])  # fmt: skip
def test_overrides_of_every_type(key, text, value):
    got = configs.flatten(configs.load(f"{NSA}:bottle", {key: text}))[key]
    assert got == (list(value) if isinstance(value, tuple) else value)
    assert type(configs.load(f"{NSA}:bottle", {key: text})[key.split(".")[0]]) is not str


@pytest.mark.parametrize("key, given, value", [
    ("seed", 3, 3),
    ("seed", np.int64(3), 3),
    ("seed", "3", 3),
    ("evaluate.pro_limit", 1, 1.0),
    ("evaluate.pro_limit", np.float32(0.25), 0.25),
    ("evaluate.pro_limit", np.array(0.25), 0.25),
    ("optim.learning_rate", 0, 0.0),
    ("view.flip", True, True),
    ("view.flip", np.True_, True),
    ("data.root", Path("/a/b"), "/a/b"),
    ("synthesis.gamma", (2, 0.1, 0.03), (2, 0.1, 0.03)),
    ("synthesis.gamma", [2, 0.1, np.float64(0.03)], (2, 0.1, 0.03)),
    ("synthesis.gamma", np.array([2, 0.5, 0.25]), (2.0, 0.5, 0.25)),
    ("synthesis.background", None, None),
    ("synthesis.background", (20.0, 20.0), (20.0, 20.0)),
])  # fmt: skip
def test_overrides_from_python(key, given, value):
    config = configs.load(f"{NSA}:bottle", {key: given})
    section, _, leaf = key.rpartition(".")
    got = (config[section] if section else config)[leaf]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("key, given, word", [
    ("seed", 1.5, "int"),
    ("seed", 3.0, "int"),
    ("seed", True, "int"),
    ("seed", np.True_, "int"),
    ("seed", None, "int"),
    ("seed", [3], "int"),
    ("seed", {"a": 3}, "int"),
    ("seed", -1, "least"),
    ("score.top", False, "float"),
    ("score.top", 2, "(0, 1]"),
    ("score.top", math.nan, "finite"),
    ("optim.learning_rate", math.inf, "finite"),
    ("optim.learning_rate", "1e999", "finite"),
    ("optim.learning_rate", -1, "least"),
    ("optim.learning_rate", 10**400, "float"),
    ("data.root", None, "str"),
    ("data.root", 12, "str"),
    ("view.flip", 1, "true"),
    ("view.flip", None, "true"),
    ("synthesis.gamma", None, "tuple"),
    ("synthesis.gamma", (2, 0.1), "3 numbers"),
    ("synthesis.gamma", (2, True, 1), "3 numbers"),
    ("synthesis.gamma", (2, math.inf, 1), "finite"),
    ("normalize.mean", 0.5, "tuple"),
    (3, 4, "keys are batch, "),
    ("score", {"top": 0.5}, "mean config.score."),
])  # fmt: skip
def test_values_from_python_of_the_wrong_type(key, given, word):
    with refuses(str(key), word):
        configs.load(f"{NSA}:object", {key: given})


@pytest.mark.parametrize("file, given, word", [
    (f"{NSA}:object", {"score.top": "0.05"}, "config.score.reduction to top"),
    (f"{NSA}:bottle", {"synthesis.size_bounds": "full", "synthesis.resized": False}, "synthesis.resized as well"),
    (f"{NSA}:carpet", {"synthesis.object_test": "destination"}, "config.synthesis.background as well"),
    (CUTPASTE, {"optim.head_learning_rate": 0.1}, "config.optim.head_epochs as well"),
    (CUTPASTE, {"density.components": 3}, "config.density.name to gaussian_mixture"),
    (CUTPASTE, {"density.bandwidth": "0.5"}, "config.density.name to kernel"),
    (CUTPASTE, {"density.ridge": 0.1, "density.name": "kernel"}, "to gaussian or gaussian_mixture"),
    (CUTPASTE, {"proxy.jitter": 0.2, "proxy.task": "rotation"}, "config.proxy.task to cutpaste or"),
    (CUTPASTE, {"score.gradcam": "density", "density.per_location": True}, "config.density.per_location to False"),
    (f"{NSA}:carpet", {"synthesis.overlap": 0.5}, "config.synthesis.background as well"),
    (f"{NSA}:bottle", {"synthesis.steepness": 0.5, "label": "binary"}, "config.label to logistic"),
    (DLA, {"local.mode": "static", "objective.negative_weight": 0}, "config.objective.negative_weight as well"),
    (DLA, {"score.passes": 4, "score.uncertainty_weight": 0}, "config.score.uncertainty_weight as well"),
    (f"{NSA}:object", {"category": "bottle"}, f"--config {NSA}:CATEGORY"),
])  # fmt: skip
def test_an_override_without_effect_is_refused(file, given, word):
    with refuses(next(iter(given)), word):
        configs.load(file, given, rules_of=methods.rules_of)


def test_an_override_that_another_one_puts_into_effect():
    given = {"score.reduction": "top", "score.top": 0.05}
    assert configs.load(f"{NSA}:bottle", given).score.top == 0.05
    given = {"density.components": 3, "density.name": "gaussian_mixture"}
    assert configs.load(CUTPASTE, given).density.components == 3


def test_a_value_that_is_none_in_a_workdir_can_be_given_again(tmp_path):
    """JSON's null has lost the type of its key."""
    configs.claim(tmp_path, configs.load(f"{NSA}:cable"))
    read = configs.read(tmp_path)
    assert configs.override(read, {"synthesis.background": "none"}).synthesis.background is None
    assert configs.override(read, {"synthesis.background": (200, 60)}).synthesis.background == (200, 60)
    with refuses("synthesis.background", "tuple"):
        configs.override(read, {"synthesis.background": "3"})


def test_overrides_that_are_no_dict():
    with refuses(None, "dict"):
        configs.load(NSA, "seed=3")


def test_an_override_leaves_the_original_alone():
    config = configs.load(f"{NSA}:object")
    changed = configs.override(config, {"score.reduction": "max", "data.size": "64", "seed": "3"})
    assert (changed.score.reduction, changed.score.size, changed.seed) == ("max", 64, 3)
    assert (config.score.reduction, config.score.size, config.seed) == ("mean", 256, 0)


def test_an_optional_value_can_be_set_where_it_was_none():
    assert configs.load(f"{NSA}:cable").synthesis.background is None
    config = configs.load(f"{NSA}:cable", {"synthesis.background": "(200, 60)"})
    assert config.synthesis.background == (200, 60)


def test_grey_images_need_one_mean_and_one_deviation():
    given = {"data.channels": "1", "normalize.mean": "0.4,", "normalize.std": "(0.2,)"}
    config = configs.load(f"{NSA}:object", given)
    assert (configs.channels(config), config.normalize.mean, config.normalize.std) == (1, (0.4,), (0.2,))
    for given, about, word in (
        ({"data.channels": "1"}, "normalize.mean", "config.data.channels=1"),
        ({"data.channels": "4"}, "data.channels", "3 (RGB) or 1 (grey)"),
        ({"normalize.std": "(1, 2)"}, "normalize.std", "config.data.channels=3"),
    ):
        with refuses(about, word):
            configs.load(NSA, given)
    assert configs.channels(configs.load(BASELINE)) == 3  # has no such key


@pytest.mark.parametrize("key, near", [
    ("epoch", "config.epochs?"),
    ("data.sise", "config.data.size?"),
    ("learning_rate", "config.optim.learning_rate?"),
    ("dta.root", "config.data.root?"),
    ("data", "config.data."),
    ("zzz", "batch, category, checkpoint.every_steps,"),
])  # fmt: skip
def test_a_misspelt_key_names_the_right_one(key, near):
    with refuses(key, near):
        configs.load(NSA, {key: "1"})


@pytest.mark.parametrize("key, text, word", [
    ("seed", "1.5", "int"),
    ("seed", "one", "int"),
    ("seed", "true", "int"),
    ("seed", "none", "int"),
    ("optim.learning_rate", "fast", "float"),
    ("optim.learning_rate", "True", "float"),
    ("view.flip", "1", "true"),
    ("synthesis.gamma", "2", "tuple"),
    ("synthesis.gamma", "(2, 0.1)", "3 numbers"),
    ("synthesis.gamma", "(2, 'a', 3)", "3 numbers"),
    ("synthesis.gamma", "none", "tuple"),
])  # fmt: skip
def test_a_value_of_the_wrong_type(key, text, word):
    with refuses(key, word):
        configs.load(NSA, {key: text})


@pytest.mark.parametrize("key, text, word", [
    ("seed", "-1", "least"),
    ("seed", "4294967296", "below 4294967296"),
    ("evaluate.heatmap_sigma", "1e5", "below 100"),
    ("batch", "0", "least"),
    ("epochs", "-2", "least"),
    ("log_every", "0", "least"),
    ("synthetic_every", "-1", "least"),
    ("data.workers", "-1", "least"),
    ("data.holdout", "1", "[0, 1)"),
    ("data.holdout", "-0.1", "[0, 1)"),
    ("score.top", "0", "(0, 1]"),
    ("score.top", "1.5", "(0, 1]"),
    ("evaluate.pro_limit", "0", "(0, 1]"),
    ("evaluate.batch", "0", "least"),
    ("threshold.false_alarm_rate", "1", "[0, 1)"),
    ("checkpoint.every_steps", "0", "least"),
    ("checkpoint.keep", "0", "least"),
    ("normalize.std", "(1, 0, 1)", "[1, 0, 1]"),
    ("normalize.std", "(1, -1, 1)", "[1, -1, 1]"),
])  # fmt: skip
def test_a_value_out_of_range(key, text, word):
    with refuses(key, word):
        configs.load(NSA, {key: text})


def test_values_at_the_ends_of_their_ranges_are_accepted():
    config = configs.load(NSA, {"data.holdout": "0", "score.top": "1", "evaluate.pro_limit": "1", "seed": "4294967295"})
    assert (config.data.holdout, config.score.top, config.seed) == (0.0, 1.0, 2**32 - 1)


def test_scoring_follows_the_size_of_the_data_until_it_is_set():
    assert configs.load(f"{NSA}:object", {"data.size": "64"}).score.size == 64
    config = configs.load(f"{NSA}:object", {"data.size": "64", "score.size": "96"})
    assert (config.data.size, config.score.size) == (64, 96)


def test_the_categories_of_a_table_are_those_of_the_file_or_of_the_one_it_changes(tmp_path):
    names = configs.categories(NSA)
    assert len(set(names)) == 15 and (names[0], names[5], names[14]) == ("carpet", "bottle", "zipper")
    assert configs.categories(NSA.replace("logistic", "binary")) == names
    (tmp_path / "own.py").write_text("CATEGORIES = ['left', 'right']\n")
    assert configs.categories(tmp_path / "own.py") == ("left", "right")
    (tmp_path / "none.py").write_text("")
    with refuses(tmp_path / "none.py", "CATEGORIES"):
        configs.categories(tmp_path / "none.py")
    with refuses(tmp_path / "any.py", "exist"):
        configs.categories(tmp_path / "any.py")


def test_a_missing_file_names_a_near_one(tmp_path):
    wrong = NSA.replace("logistic", "logstic")
    with refuses(wrong, "experiments/nsa_logistic.py?"):
        configs.load(wrong)
    with refuses(tmp_path / "any.py", "exist"):
        configs.load(str(tmp_path / "any.py"))


@pytest.mark.parametrize("text, word", [
    ("x = (", "SyntaxError"),
    ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    ("x = y", "NameError: name 'y' is not defined"),
    ("x = 1", "get_config(category)"),
])  # fmt: skip
def test_a_file_that_is_no_experiment(tmp_path, text, word):
    (tmp_path / "mine.py").write_text(text)
    with refuses(tmp_path / "mine.py", word):
        configs.load(str(tmp_path / "mine.py"))


def test_a_category_for_a_file_that_takes_none(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return None\n")
    with refuses(tmp_path / "mine.py", "'cap'"):
        configs.load(f"{tmp_path}/mine.py:cap")


def test_both_forms_of_an_override_anywhere_on_the_line():
    argv = ["--config.seed=3", "--config", "a.py:cap", "--config.data.root", "/x y", "--workdir=w", "--config.e", "-1"]
    flags, overrides = configs.arguments(parser(), argv)
    assert (flags.config, flags.workdir) == ("a.py:cap", "w")
    assert overrides == {"seed": "3", "data.root": "/x y", "e": "-1"}


@pytest.mark.parametrize("argument, word", [("--epochs=3", "--help"), ("cap", "--help"), ("--config.seed", "=VALUE")])
def test_arguments_that_are_neither(argument, word):
    with refuses(argument, word):
        configs.arguments(parser(), ["--config", "a.py", argument])


@pytest.mark.parametrize("argv", [["--config", "a.py", "--workdir="], ["--config", "a.py", "--workdir", ""]])
def test_an_empty_flag_as_of_an_unset_variable_is_no_default(argv):
    with refuses("workdir", "empty"):
        configs.arguments(parser(), argv)
    assert configs.arguments(parser(), argv[:2])[0].workdir is None


def test_an_empty_category_is_not_the_demo():
    with refuses("--config", f"{NSA}:CATEGORY"):
        configs.load(f"{NSA}:")


def test_a_config_file_that_is_no_python(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with refuses(tmp_path / "config.json", "Python"):
        configs.load(f"{tmp_path}/config.json:cap")


def test_claim_round_trip(tmp_path):
    config = configs.load(f"{NSA}:bottle", {"data.root": "/d"})
    configs.claim(tmp_path / "a" / "b", config)
    again = configs.read(tmp_path / "a" / "b")
    assert configs.flatten(again) == configs.flatten(config)
    assert (again.seed, again.data.root, again.optim.learning_rate, again.view.flip) == (0, "/d", 1e-3, False)
    configs.claim(tmp_path / "a" / "b", config)  # the same config may resume
    with pytest.raises(AttributeError):
        again.epoch = 3
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


def test_claim_names_the_keys_that_differ(tmp_path):
    configs.claim(tmp_path, configs.load(NSA))
    before = (tmp_path / "config.json").read_bytes()
    with refuses(tmp_path, "optim.name ('adam' there, 'sgd' now), seed (0 there, 3 now)"):
        configs.claim(tmp_path, configs.load(NSA, {"seed": "3", "optim.name": "sgd"}))
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("text, about, word", [
    ("{", "config.json", "Expecting"),
    ("[]", "config.json", "object"),
    (None, "", "--workdir"),
    ("workdir", "config.json", "--workdir"),
])  # fmt: skip
def test_a_workdir_without_a_readable_config(tmp_path, text, about, word):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with refuses(tmp_path / about, word):
        configs.read(tmp_path / "config.json" if text == "workdir" else tmp_path)


def edited(workdir, change):
    """Changes the config.json of a workdir as an editor, or another version of jaxad, would."""
    values = json.loads((workdir / "config.json").read_text())
    change(values)
    (workdir / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("change, words", [
    (lambda c: c.pop("data"), "lacks data; "),
    (lambda c: c.pop("seed"), "lacks seed; "),
    (lambda c: c.update(score=3), "must be a section, not 3; "),
    (lambda c: c.update(category=None), "must be of type str, not None; "),
    (lambda c: c.update(epochs=True), "must be of type int, not True; "),
    (lambda c: c.update(batch="8"), "cannot be used: config.batch must be of type int, not '8'; "),
    (lambda c: c["score"].update(top=[1]), "cannot be used: config.score.top must be of type float, not [1]; "),
    (lambda c: c["normalize"].update(mean=1), "cannot be used: config.normalize.mean must hold config.data.channels=3"),
    (lambda c: c["evaluate"].update(batch=0), "cannot be used: config.evaluate.batch must be at least 1, not 0; "),
])  # fmt: skip
def test_a_workdirs_config_of_other_keys_and_types(tmp_path, change, words):
    configs.claim(tmp_path, configs.load(NSA))
    edited(tmp_path, change)
    with pytest.raises(UserError) as caught:
        configs.read(tmp_path)
    told = str(caught.value)
    assert str(tmp_path / "config.json") in told and words in told and "another version" in told and "--restart" in told


def test_a_key_that_is_missing_is_named_where_it_is_needed(tmp_path):
    configs.claim(tmp_path, configs.load(NSA))
    edited(tmp_path, lambda values: (values["optim"].pop("name"), values.pop("label")))
    config = configs.read(tmp_path)
    copies = [config, copy.deepcopy(config), pickle.loads(pickle.dumps(config)), configs.override(config, {"seed": 3})]
    for one in copies:
        for key, ask in (("optim.name", lambda c: c.optim.name), ("label", lambda c: c["label"]),
                         ("optim.name", lambda c: c["optim.name"])):  # fmt: skip
            with refuses(key, str(tmp_path / "config.json")):
                ask(one)
        assert "name" not in one.optim and one.optim.get("name", 7) == 7 and not hasattr(one, "label")
    assert config == copies[1] and config.optim == copies[3].optim


@pytest.mark.medium
def test_an_experiment_that_lacks_a_key_or_has_one_of_another_type(tmp_path, capsys):
    lines = f"from jaxad import config\ndef get_config():\n    c = config.load({NSA!r})\n    c.unlock()\n    "
    path = tmp_path / "mine.py"
    for change, words in (
        ("del c.optim.learning_rate", f"the config of {path} lacks config.optim.learning_rate; see experiments/"),
        ("del c.view", f"the config of {path} lacks config.view; see experiments/ for examples"),
        ("del c.data", f"the config of {path} lacks data; see experiments/ for examples"),
        ("c.ignore_type(); del c.data; c.data = 3", f"config.data in the config of {path} must be a section, not 3;"),
        ("del c.epochs; c.epochs = 2.5", f"config.epochs in the config of {path} must be of type int, not 2.5; see"),
    ):
        path.write_text(f"{lines}{change}\n    return c\n")
        message = refusal(capsys, train.main, "--config", path, "--workdir", tmp_path / "w")
        assert message.startswith(words), message
        assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_an_experiment_need_not_say_what_is_optional(tmp_path, capsys):
    """A user's own file without the newest keys trains, and its detector takes them in predict."""
    lines = f"from jaxad import config\ndef get_config():\n    c = config.load({str(ROOT / BASELINE)!r} + ':nut')\n"
    lines += "    c.unlock()\n    del c.data.white_level, c.data.max_megapixels, c.evaluate.heatmap_sigma\n"
    lines += "    del c.evaluate.mask_rule\n    return c\n"
    (tmp_path / "mine.py").write_text(lines)
    root = write_parts(tmp_path / "sets")
    arguments = baseline(root, tmp_path / "work")
    arguments[1] = str(tmp_path / "mine.py")
    assert command(train.main, *arguments) == 0
    image = root / "nut" / "test" / "good" / "000.png"
    assert command(predict.main, image, "--workdir", tmp_path / "work", "--max-megapixels", "1") == 0
    values = json.loads((tmp_path / "work" / "config.json").read_text())
    del values["data"]["white_level"], values["data"]["max_megapixels"]
    del values["evaluate"]["heatmap_sigma"], values["evaluate"]["mask_rule"]
    (tmp_path / "work" / "config.json").write_text(json.dumps(values))
    assert command(predict.main, image, "--workdir", tmp_path / "work") == 0
    assert command(train.main, *arguments) == 0 and command(evaluate.main, "--workdir", tmp_path / "work") == 0
    config = configs.load(str(tmp_path / "mine.py"), {"evaluate.heatmap_sigma": 2.5})
    assert (config.data.white_level, config.data.max_megapixels, config.evaluate.heatmap_sigma) == (0, 1000, 2.5)
    assert config.evaluate.mask_rule == "any"
    assert list(json.loads(config.to_json())["data"])[-2:] == ["white_level", "max_megapixels"]  # in every process


def test_references_between_keys_outlive_the_reading_of_an_experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"from jaxad import config\ndef get_config():\n    return config.load({NSA!r} + ':object')\n")
    config = configs.load(str(path), {"data.size": 64})
    assert config.score.size == 64
    with config.unlocked():
        config.normalize = {"mean": (0.0,), "std": (1.0,)}  # as an experiment may that starts from another one
    assert config.normalize.mean == (0.0,)


@pytest.mark.slow
@pytest.mark.parametrize("section, key", [("score", "reduction"), ("score", "sigma"), ("evaluate", "crop")])
def test_commands_on_a_workdir_without_a_key(tmp_path, capsys, section, key):
    root, workdir = write_parts(tmp_path / "sets"), tmp_path / "w"
    assert command(train.main, *baseline(root, workdir)) == 0
    edited(workdir, lambda values: values[section].pop(key))
    words = refusal(capsys, evaluate.main, "--workdir", workdir)
    assert f"{workdir / 'config.json'} lacks config.{section}.{key}; " in words
    assert refusal(capsys, predict.main, "--workdir", workdir, root / "nut" / "test" / "good") == words
    with pytest.raises(UserError) as caught:
        jaxad.load(workdir).predict([np.zeros((40, 40, 3), np.uint8)])
    assert str(caught.value) == words
    message = refusal(capsys, train.main, *baseline(root, workdir))
    assert message.startswith(f"{workdir} was made with another config: {section}.{key} (absent there, ")
    assert message.endswith(f"deletes the training in {workdir} and begins it anew")


def test_steps_per_epoch_are_rounded_up():
    config = configs.load(NSA, {"batch": "32"})
    assert [configs.steps_per_epoch(config, images) for images in (1, 32, 33, 96)] == [1, 1, 2, 3]


@pytest.mark.medium
def test_evaluation_takes_overrides_of_scoring_alone(tmp_path, capsys):
    root, workdir = write_parts(tmp_path / "sets"), tmp_path / "w"
    assert command(train.main, *baseline(root, workdir)) == 0
    trained = json.loads((workdir / "results.json").read_text())
    assert command(evaluate.main, "--workdir", workdir, "--config.score.reduction", "mean") == 0
    changed = json.loads((workdir / "results.json").read_text())
    assert changed["config"]["score"]["reduction"] == "mean" != trained["config"]["score"]["reduction"]
    assert configs.read(workdir).score.reduction == "max"  # the workdir's own config stays
    message = refusal(capsys, evaluate.main, "--workdir", workdir, "--config.seed=3")
    assert message.startswith(f"config.seed was settled by the training of {workdir}; ")
    assert "config.evaluate" in message and "config.score" in message
    message = refusal(capsys, evaluate.main, "--workdir", workdir, "--config.score.reducton=max")
    assert message.endswith("did you mean config.score.reduction?")
