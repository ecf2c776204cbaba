"""Reading experiments, overrides of every type, the command line, and the config.json of a workdir."""

import argparse
import json
import re
import shutil

import pytest

from jaxad import config as configs
from jaxad import evaluate, train
from jaxad.errors import UserError
from tests.parts import BASELINE, NSA, baseline, command, refusal, write_parts


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
    ("seed", "4294967296", "config.seed must be below 2**32, not 4294967296"),
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
    ("[]", "config.json is damaged (it holds no JSON object); restore it or train"),
    (None, "it has no config.json; train with --workdir"),
])  # fmt: skip
def test_a_workdir_without_a_readable_config(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        configs.read(tmp_path)


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
