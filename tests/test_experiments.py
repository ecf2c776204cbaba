"""Every experiment file, for every category: it loads, is locked, survives JSON, and says what the tables say."""

import json
import pathlib

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import methods
from jaxad.augment.nsa_settings import SETTINGS
from jaxad.data import demo
from jaxad.errors import UserError
from tests.parts import BASELINE, NSA, ROOT

FILES = sorted(ROOT.glob("experiments/*.py"))
OWN = ("object", "texture")
PUBLISHED = tuple(category for category in SETTINGS if category not in (*OWN, *demo.CATEGORIES))
MVTEC_AD = {
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
}  # fmt: skip
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
EVERY = ("demo", *SETTINGS)
CASES = [(file, category) for file in FILES for category in EVERY]


def test_every_published_category_has_a_row_of_its_own():
    # A demo category of the same name would hide it.
    assert set(PUBLISHED) == MVTEC_AD | {"chest_xray_male", "chest_xray_female"}
    assert set(demo.CATEGORIES) < set(SETTINGS)


@pytest.mark.parametrize("file, category", CASES, ids=[f"{file.stem}:{category}" for file, category in CASES])
def test_it_loads_is_locked_and_survives_json(file, category, tmp_path):
    config = configs.load(f"{file}:{category}")
    with pytest.raises(AttributeError):
        config.no_such_key = 1
    configs.claim(tmp_path, config)
    again = configs.read(tmp_path)
    assert configs.flatten(again) == configs.flatten(config)
    configs.claim(tmp_path, config)
    for one in (config, again):  # what was read back makes the same method
        assert (methods.create(one).loss is None) == (config.epochs == 0)
    if category in demo.CATEGORIES:
        assert (config.data.source, config.data.category, config.data.holdout) == ("demo", category, 0.1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_without_a_category_it_is_the_first_demo(file):
    assert configs.flatten(configs.load(str(file))) == configs.flatten(configs.load(f"{file}:{demo.CATEGORIES[0]}"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_docstring_gives_the_command(file):
    assert f"python -m jaxad.train --config experiments/{file.name}" in file.read_text().split('"""')[1]


@pytest.mark.parametrize("category", SETTINGS)
def test_nsa_takes_its_row_of_the_table(category):
    config, row = configs.load(f"{NSA}:{category}"), SETTINGS[category]
    assert {name: config.synthesis[name] for name in row.synthesis._fields} == row.synthesis._asdict()
    assert (config.method, config.label, config.epochs) == ("nsa", "logistic", row.epochs)
    assert config.batch == (8 if category in demo.CATEGORIES else 64)
    assert (config.view.rotation, config.view.crop, config.view.flip) == (
        row.view.rotation, row.view.crop, row.view.flip,
    )  # fmt: skip
    assert (config.data.size, config.data.source) == (
        row.view.resize, "demo" if category in demo.CATEGORIES else "folder",
    )  # fmt: skip
    assert config.score.reduction == ("top" if category in demo.CATEGORIES else "mean")
    assert config.evaluate.pro_limit == 0.3
    assert (config.optim.name, config.optim.learning_rate, config.optim.final_learning_rate) == ("adam", 1e-3, 1e-6)
    assert (config.normalize.std[0] == 1.0) == category.startswith("chest")


@pytest.mark.parametrize("category", PUBLISHED)
def test_published_categories_follow_the_papers_protocol(category):
    config = configs.load(f"{NSA}:{category}")
    assert config.data.holdout == 0 and config.data.category == category
    assert config.view.center_crop == SETTINGS[category].view.center_crop
    if category in TEXTURES:
        # Trained on 256 of 264, tested on the whole image at 256.
        assert (config.data.size, config.view.crop, config.score.size, config.evaluate.crop) == (264, 256, 256, 0)
    else:
        # Trained on 224 of the central 230 of 256, tested on the central 224 of 256.
        assert (config.data.size, config.view.crop, config.score.size, config.evaluate.crop) == (256, 224, 256, 224)
        assert config.view.center_crop == 230


@pytest.mark.parametrize("category", (*OWN, *demo.CATEGORIES))
def test_your_own_images_and_the_demo_are_seen_whole_with_a_threshold(category):
    config = configs.load(f"{NSA}:{category}")
    assert (config.view.center_crop, config.evaluate.crop, config.data.holdout) == (0, 0, 0.1)
    assert config.data.category == ("" if category in OWN else category)


@pytest.mark.parametrize("category", ("bottle", "any_folder_of_mine"))
def test_the_baseline_takes_any_folder(category):
    config = configs.load(f"{BASELINE}:{category}")
    assert (config.data.source, config.data.category) == ("folder", category)
    assert (config.data.holdout, config.epochs) == (0.0, 0)


def test_an_unknown_category_names_the_nearest():
    with pytest.raises(UserError, match="'hazelnutt'; the nearest name is 'hazelnut'"):
        configs.load(f"{NSA}:hazelnutt")


@pytest.mark.parametrize("category", ["bottle", "tile"])
def test_values_read_back_from_json_are_usable(category, tmp_path):
    configs.claim(tmp_path, configs.load(f"{NSA}:{category}"))
    config = configs.read(tmp_path)
    assert jnp.asarray(config.normalize.mean).shape == (3,)
    assert isinstance(config.synthesis, ConfigDict) and len(config.synthesis.gamma) == 3
    assert json.loads((tmp_path / "config.json").read_text())["category"] == category
    assert pathlib.Path(tmp_path / "config.json").read_text().endswith("}\n")
