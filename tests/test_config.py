"""Reading experiments, overrides of every type, the command line, and the config.json of a workdir."""

import argparse
import copy
import json
import math
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxad
from jaxad import config as configs
from jaxad import evaluate, predict
from jaxad.errors import UserError
from tests.commands import train
from tests.parts import BASELINE, NSA, ROOT, baseline, command, refusal, write_parts

CUTPASTE = f"{ROOT}/experiments/cutpaste_3way.py"


def parser():
    result = argparse.ArgumentParser()
    result.add_argument("--config", required=True)
    result.add_argument("--workdir")
    return result


def refused(spec, **overrides):
    with pytest.raises(UserError) as caught:
        configs.load(spec, {key.replace("__", "."): value for key, value in overrides.items()})
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize("key, given, words", [
    ("seed", 1.5, "config.seed must be of type int, not 1.5"),
    ("seed", 3.0, "config.seed must be of type int, not 3.0"),
    ("seed", True, "config.seed must be of type int, not True"),
    ("seed", np.True_, "config.seed must be of type int, not "),
    ("seed", None, "config.seed must be of type int, not None"),
    ("seed", [3], "config.seed must be of type int, not [3]"),
    ("seed", {"a": 3}, "config.seed must be of type int, not {'a': 3}"),
    ("seed", -1, "config.seed must be at least 0, not -1"),
    ("score.top", False, "config.score.top must be of type float, not False"),
    ("score.top", 2, "config.score.top must lie in (0, 1], not 2.0"),
    ("score.top", math.nan, "config.score.top must be finite, not nan"),
    ("optim.learning_rate", math.inf, "config.optim.learning_rate must be finite, not inf"),
    ("optim.learning_rate", "1e999", "config.optim.learning_rate must be finite, not inf"),
    ("optim.learning_rate", -1, "config.optim.learning_rate must be at least 0, not -1.0"),
    ("optim.learning_rate", 10**400, "config.optim.learning_rate must be of type float, not 1000"),
    ("data.root", None, "config.data.root must be of type str, not None"),
    ("data.root", 12, "config.data.root must be of type str, not 12"),
    ("view.flip", 1, "config.view.flip must be true or false, not 1"),
    ("view.flip", None, "config.view.flip must be true or false, not None"),
    ("synthesis.gamma", None, "config.synthesis.gamma must be of type tuple, not None"),
    ("synthesis.gamma", (2, 0.1), "config.synthesis.gamma must hold 3 numbers, not (2, 0.1)"),
    ("synthesis.gamma", (2, True, 1), "config.synthesis.gamma must hold 3 numbers, not (2, True, 1)"),
    ("synthesis.gamma", (2, math.inf, 1), "config.synthesis.gamma must be finite, not [2, inf, 1]"),
    ("normalize.mean", 0.5, "config.normalize.mean must be of type tuple, not 0.5"),
    (3, 4, "config has no key '3'; the keys are batch, "),
    ("score", {"top": 0.5}, "config has no key 'score'; did you mean config.score."),
])  # fmt: skip
def test_values_from_python_of_the_wrong_type(key, given, words):
    with pytest.raises(UserError) as caught:
        configs.load(f"{NSA}:object", {key: given})
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file, given, words", [
    (f"{NSA}:object", {"score.top": "0.05"},
     "config.score.top has no effect while config.score.reduction is mean; set config.score.reduction to top as well, "
     "or leave config.score.top out"),
    (f"{NSA}:bottle", {"threshold.false_alarm_rate": 0.01},
     "config.threshold.false_alarm_rate has no effect while config.data.holdout is 0.0; set config.data.holdout above "
     "0 as well, or leave config.threshold.false_alarm_rate out"),
    (CUTPASTE, {"optim.head_learning_rate": 0.1}, "config.optim.head_learning_rate has no effect while config.optim."),
    (CUTPASTE, {"density.components": 3}, "config.density.components has no effect while config.density.name is gauss"),
    (CUTPASTE, {"density.bandwidth": "0.5"}, "config.density.bandwidth has no effect while config.density.name is gau"),
    (f"{NSA}:object", {"category": "bottle"},
     f"config.category only names what the experiment was made for; write --config {NSA}:CATEGORY"),
])  # fmt: skip
def test_an_override_without_effect_is_refused(file, given, words):
    with pytest.raises(UserError) as caught:
        configs.load(file, given)
    assert str(caught.value).startswith(words)


def test_an_override_that_another_one_puts_into_effect():
    given = {"score.reduction": "top", "score.top": 0.05, "data.holdout": 0.1, "threshold.false_alarm_rate": 0.01}
    assert configs.load(f"{NSA}:bottle", given).score.top == 0.05
    given = {"density.components": 3, "density.name": "gaussian_mixture"}
    assert configs.load(CUTPASTE, given).density.components == 3


def test_overrides_that_are_no_dict():
    with pytest.raises(UserError, match="overrides must be a dict of values by key, such as "):
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
    message = refused(NSA, **{"data.channels": "1"})
    assert message == "config.normalize.mean must hold config.data.channels=1 numbers, not [0.485, 0.456, 0.406]"
    assert refused(NSA, **{"data.channels": "4"}) == "config.data.channels must be 3 (RGB) or 1 (grey), not 4"
    message = refused(NSA, **{"normalize.std": "(1, 2)"})
    assert message == "config.normalize.std must hold config.data.channels=3 numbers, not [1, 2]"
    assert configs.channels(configs.load(BASELINE)) == 3  # has no such key


@pytest.mark.parametrize("key, near", [
    ("epoch", "did you mean config.epochs?"),
    ("data.sise", "did you mean config.data.size?"),
    ("learning_rate", "did you mean config.optim.learning_rate?"),
    ("dta.root", "did you mean config.data.root?"),
    ("data", "did you mean config.data."),
    ("zzz", "the keys are batch, category, checkpoint.every_steps,"),
])  # fmt: skip
def test_a_misspelt_key_names_the_right_one(key, near):
    message = refused(NSA, **{key: "1"})
    assert message.startswith(f"config has no key {key!r}; ") and near in message


@pytest.mark.parametrize("key, text, words", [
    ("seed", "1.5", "config.seed must be of type int, not '1.5'"),
    ("seed", "one", "config.seed must be of type int, not 'one'"),
    ("seed", "true", "config.seed must be of type int, not 'true'"),
    ("seed", "none", "config.seed must be of type int, not 'none'"),
    ("optim.learning_rate", "fast", "config.optim.learning_rate must be of type float, not 'fast'"),
    ("optim.learning_rate", "True", "config.optim.learning_rate must be of type float, not 'True'"),
    ("view.flip", "1", "config.view.flip must be true or false, not '1'"),
    ("synthesis.gamma", "2", "config.synthesis.gamma must be of type tuple, not '2'"),
    ("synthesis.gamma", "(2, 0.1)", "config.synthesis.gamma must hold 3 numbers, not '(2, 0.1)'"),
    ("synthesis.gamma", "(2, 'a', 3)", "config.synthesis.gamma must hold 3 numbers"),
    ("synthesis.gamma", "none", "config.synthesis.gamma must be of type tuple, not 'none'"),
])  # fmt: skip
def test_a_value_of_the_wrong_type(key, text, words):
    assert words in refused(NSA, **{key: text})


@pytest.mark.parametrize("key, text, words", [
    ("seed", "-1", "config.seed must be at least 0, not -1"),
    ("seed", "4294967296", "config.seed must be below 4294967296, not 4294967296"),
    ("evaluate.heatmap_sigma", "1e5", "config.evaluate.heatmap_sigma must be below 100, not 100000.0"),
    ("batch", "0", "config.batch must be at least 1, not 0"),
    ("epochs", "-2", "config.epochs must be at least 0, not -2"),
    ("log_every", "0", "config.log_every must be at least 1, not 0"),
    ("synthetic_every", "-1", "config.synthetic_every must be at least 0, not -1"),
    ("data.workers", "-1", "config.data.workers must be at least 0, not -1"),
    ("data.holdout", "1", "config.data.holdout must lie in [0, 1), not 1.0"),
    ("data.holdout", "-0.1", "config.data.holdout must lie in [0, 1), not -0.1"),
    ("score.top", "0", "config.score.top must lie in (0, 1], not 0.0"),
    ("score.top", "1.5", "config.score.top must lie in (0, 1], not 1.5"),
    ("evaluate.pro_limit", "0", "config.evaluate.pro_limit must lie in (0, 1], not 0.0"),
    ("evaluate.batch", "0", "config.evaluate.batch must be at least 1, not 0"),
    ("threshold.false_alarm_rate", "1", "config.threshold.false_alarm_rate must lie in [0, 1), not 1.0"),
    ("checkpoint.every_steps", "0", "config.checkpoint.every_steps must be at least 1, not 0"),
    ("checkpoint.keep", "0", "config.checkpoint.keep must be at least 1, not 0"),
    ("normalize.std", "(1, 0, 1)", "config.normalize.std must hold numbers above 0, not [1, 0, 1]"),
    ("normalize.std", "(1, -1, 1)", "config.normalize.std must hold numbers above 0, not [1, -1, 1]"),
])  # fmt: skip
def test_a_value_out_of_range(key, text, words):
    assert refused(NSA, **{key: text}) == words


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
    with pytest.raises(UserError, match=r"none\.py has no CATEGORIES"):
        configs.categories(tmp_path / "none.py")
    with pytest.raises(UserError, match=r"any\.py does not exist"):
        configs.categories(tmp_path / "any.py")


def test_a_missing_file_names_a_near_one(tmp_path):
    near = refused(NSA.replace("logistic", "logstic"))
    assert "nsa_logstic.py does not exist; did you mean" in near and near.endswith("experiments/nsa_logistic.py?")
    assert refused(str(tmp_path / "any.py")).endswith("does not exist; give the path of an experiment file")


@pytest.mark.parametrize("text, words", [
    ("x = (", "cannot be loaded: SyntaxError"),
    ("import no_such_module_here", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module_here'"),
    ("x = y", "cannot be loaded: NameError: name 'y' is not defined"),
    ("x = 1", "has no function get_config(category)"),
])  # fmt: skip
def test_a_file_that_is_no_experiment(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    message = refused(str(tmp_path / "mine.py"))
    assert str(tmp_path / "mine.py") in message and words in message


def test_a_category_for_a_file_that_takes_none(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return None\n")
    assert refused(f"{tmp_path}/mine.py:cap").endswith("takes no category, but 'cap' was given")


def test_both_forms_of_an_override_anywhere_on_the_line():
    argv = ["--config.seed=3", "--config", "a.py:cap", "--config.data.root", "/x y", "--workdir=w", "--config.e", "-1"]
    flags, overrides = configs.arguments(parser(), argv)
    assert (flags.config, flags.workdir) == ("a.py:cap", "w")
    assert overrides == {"seed": "3", "data.root": "/x y", "e": "-1"}


@pytest.mark.parametrize("argument, words", [
    ("--epochs=3", "unknown argument '--epochs=3'; see --help"),
    ("cap", "unknown argument 'cap'; see --help"),
    ("--config.seed", "--config.seed needs a value: --config.seed=VALUE"),
])  # fmt: skip
def test_arguments_that_are_neither(argument, words):
    with pytest.raises(UserError) as caught:
        configs.arguments(parser(), ["--config", "a.py", argument])
    assert str(caught.value) == words


@pytest.mark.parametrize("argv", [["--config", "a.py", "--workdir="], ["--config", "a.py", "--workdir", ""]])
def test_an_empty_flag_as_of_an_unset_variable_is_no_default(argv):
    with pytest.raises(UserError) as caught:
        configs.arguments(parser(), argv)
    assert str(caught.value) == "the value given for workdir is empty; write one, or leave it out"
    assert configs.arguments(parser(), argv[:2])[0].workdir is None


def test_an_empty_category_is_not_the_demo():
    assert refused(f"{NSA}:") == (
        f"--config {NSA}: names no category after the colon; write {NSA}:CATEGORY, or {NSA} alone"
    )


def test_a_config_file_that_is_no_python(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert refused(f"{tmp_path}/config.json:cap") == (
        f"config file {tmp_path}/config.json is no Python file (.py); see experiments/ for examples"
    )


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
    with pytest.raises(UserError) as caught:
        configs.claim(tmp_path, configs.load(NSA, {"seed": "3", "optim.name": "sgd"}))
    assert str(caught.value) == (
        f"{tmp_path} was made with another config: optim.name ('adam' there, 'sgd' now), seed (0 there, 3 now); "
        "choose another --workdir"
    )
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("text, words", [
    ("{", "config.json is damaged (Expecting property name"),
    ("[]", "config.json is damaged (it holds no JSON object); restore it or choose another"),
    (None, "it has no config.json; train with --workdir"),
    ("workdir", "it has no config.json; train with --workdir"),
])  # fmt: skip
def test_a_workdir_without_a_readable_config(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        configs.read(tmp_path / "config.json" if text == "workdir" else tmp_path)


def edited(workdir, change):
    """Changes the config.json of a workdir as an editor, or another version of jaxad, would."""
    values = json.loads((workdir / "config.json").read_text())
    change(values)
    (workdir / "config.json").write_text(json.dumps(values))


OTHER_VERSION = (
    "it was written by another version of jaxad, or edited: restore it, or train anew, with jaxad.train --restart or "
    "into another --workdir"
)


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
    assert str(tmp_path / "config.json") in told and words in told and told.endswith(OTHER_VERSION)


def test_a_key_that_is_missing_is_named_where_it_is_needed(tmp_path):
    configs.claim(tmp_path, configs.load(NSA))
    edited(tmp_path, lambda values: (values["optim"].pop("name"), values.pop("label")))
    config = configs.read(tmp_path)
    copies = [config, copy.deepcopy(config), pickle.loads(pickle.dumps(config)), configs.override(config, {"seed": 3})]
    for one in copies:
        for key, ask in (("optim.name", lambda c: c.optim.name), ("label", lambda c: c["label"]),
                         ("optim.name", lambda c: c["optim.name"])):  # fmt: skip
            with pytest.raises(UserError) as caught:
                ask(one)
            assert str(caught.value) == f"{tmp_path / 'config.json'} lacks config.{key}; {OTHER_VERSION}"
        assert "name" not in one.optim and one.optim.get("name", 7) == 7 and not hasattr(one, "label")
    assert config == copies[1] and config.optim == copies[3].optim


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


def test_an_experiment_need_not_say_what_is_optional(tmp_path, capsys):
    """A user's own file without the newest keys trains, and its detector takes them in predict."""
    lines = f"from jaxad import config\ndef get_config():\n    c = config.load({str(ROOT / BASELINE)!r} + ':nut')\n"
    lines += "    c.unlock()\n    del c.data.white_level, c.data.max_megapixels, c.evaluate.heatmap_sigma\n"
    lines += "    return c\n"
    (tmp_path / "mine.py").write_text(lines)
    root = write_parts(tmp_path / "sets")
    arguments = baseline(root, tmp_path / "work")
    arguments[1] = str(tmp_path / "mine.py")
    assert command(train.main, *arguments) == 0
    image = root / "nut" / "test" / "good" / "000.png"
    assert command(predict.main, image, "--workdir", tmp_path / "work", "--max-megapixels", "1") == 0
    values = json.loads((tmp_path / "work" / "config.json").read_text())
    del values["data"]["white_level"], values["data"]["max_megapixels"], values["evaluate"]["heatmap_sigma"]
    (tmp_path / "work" / "config.json").write_text(json.dumps(values))
    assert command(predict.main, image, "--workdir", tmp_path / "work") == 0
    assert command(train.main, *arguments) == 0 and command(evaluate.main, "--workdir", tmp_path / "work") == 0
    config = configs.load(str(tmp_path / "mine.py"), {"evaluate.heatmap_sigma": 2.5})
    assert (config.data.white_level, config.data.max_megapixels, config.evaluate.heatmap_sigma) == (0, 1000, 2.5)
    assert list(json.loads(config.to_json())["data"])[-2:] == ["white_level", "max_megapixels"]  # in every process


def test_references_between_keys_outlive_the_reading_of_an_experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"from jaxad import config\ndef get_config():\n    return config.load({NSA!r} + ':object')\n")
    config = configs.load(str(path), {"data.size": 64})
    assert config.score.size == 64
    with config.unlocked():
        config.normalize = {"mean": (0.0,), "std": (1.0,)}  # as an experiment may that starts from another one
    assert config.normalize.mean == (0.0,)


@pytest.mark.parametrize("section, key", [("score", "reduction"), ("score", "sigma"), ("evaluate", "crop")])
def test_commands_on_a_workdir_without_a_key(tmp_path, capsys, section, key):
    root, workdir = write_parts(tmp_path / "sets"), tmp_path / "w"
    assert command(train.main, *baseline(root, workdir)) == 0
    edited(workdir, lambda values: values[section].pop(key))
    words = f"{workdir / 'config.json'} lacks config.{section}.{key}; {OTHER_VERSION}"
    assert refusal(capsys, evaluate.main, "--workdir", workdir) == words
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
