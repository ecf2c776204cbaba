"""Every experiment file, for every category: it loads, is locked, survives JSON, and says what the tables say."""

import itertools
import json
import pathlib

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import methods
from jaxad.augment.cutpaste.proxy_tasks import PROXIES
from jaxad.augment.nsa.settings import SETTINGS
from jaxad.data.demo import source as demo
from tests.parts import BASELINE, NSA, ROOT
from tests.refusals import refuses

# The settings of synthetic anomalies are no training, and CIFAR-10 has categories of its own.
FILES = [
    file
    for file in sorted(ROOT.glob("experiments/*.py"))
    if file.stem not in ("cifar10_oneclass", "synthetic_anomalies")
]
OWN = ("object", "texture")
PUBLISHED = tuple(category for category in SETTINGS if category not in (*OWN, *demo.CATEGORIES))
MVTEC_AD = {
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
}  # fmt: skip
CHEST_XRAYS = ("chest_xray_male", "chest_xray_female")
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
EVERY = ("demo", *SETTINGS)


def test_every_published_category_has_a_row_of_its_own():
    # A demo category of the same name would hide it.
    assert set(PUBLISHED) == MVTEC_AD | set(CHEST_XRAYS)
    assert set(demo.CATEGORIES) < set(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_loads_is_locked_and_survives_json_in_every_category(file, tmp_path):
    for category in EVERY:
        config, workdir = configs.load(f"{file}:{category}"), tmp_path / category
        with pytest.raises(AttributeError):
            config.no_such_key = 1
        configs.claim(workdir, config)
        again = configs.read(workdir)
        assert configs.flatten(again) == configs.flatten(config), category
        configs.claim(workdir, config)
        assert (methods.create(again).loss is None) == (config.epochs == 0), category
        if category in demo.CATEGORIES:
            assert (config.data.source, config.data.category, config.data.holdout) == ("demo", category, 0.1)


def test_without_a_category_each_is_the_first_demo():
    for file in FILES:
        first = configs.load(f"{file}:{demo.CATEGORIES[0]}")
        assert configs.flatten(configs.load(str(file))) == configs.flatten(first), file


def test_all_names_the_categories_of_mvtec_ad_in_every_experiment():
    for file in FILES:
        assert set(configs.categories(file)) == MVTEC_AD, file


def test_each_docstring_gives_the_command():
    for file in FILES:
        assert f"python -m jaxad.train --config experiments/{file.name}" in file.read_text().split('"""')[1], file


def test_nsa_takes_its_row_of_the_table():
    for category, row in SETTINGS.items():
        config = configs.load(f"{NSA}:{category}")
        is_demo, grey = category in demo.CATEGORIES, category in CHEST_XRAYS
        source = "demo" if is_demo else "chest_xray" if grey else "folder"
        found = {name: config.synthesis[name] for name in row.synthesis._fields}
        found |= {name: config.view[name] for name in ("rotation", "crop", "flip")}
        found |= {"method": config.method, "label": config.label, "epochs": config.epochs, "batch": config.batch}
        found |= {"size": config.data.size, "data": config.data.source, "reduction": config.score.reduction}
        found |= {"limit": config.evaluate.pro_limit, "channels": config.data.channels}
        found |= {f"optim.{name}": config.optim[name] for name in ("name", "learning_rate", "final_learning_rate")}
        found |= {name: tuple(config.normalize[name])[:1] for name in ("mean", "std")}
        expected = row.synthesis._asdict()
        expected |= {name: getattr(row.view, name) for name in ("rotation", "crop", "flip")}
        expected |= {"method": "nsa", "label": "logistic", "epochs": row.epochs, "batch": 8 if is_demo else 64}
        expected |= {"size": row.view.resize, "data": source, "reduction": "top" if is_demo else "mean"}
        expected |= {"limit": 0.3, "channels": 1 if grey else 3}
        expected |= {"optim.name": "adam", "optim.learning_rate": 1e-3, "optim.final_learning_rate": 1e-6}
        expected |= {"mean": (0.0,), "std": (1.0,)} if grey else {"mean": (0.485,), "std": (0.229,)}
        assert found == expected, category
        assert len(config.normalize.mean) == len(config.normalize.std) == config.data.channels, category


def test_published_categories_follow_the_papers_protocol():
    for category in PUBLISHED:
        config = configs.load(f"{NSA}:{category}")
        sizes = (config.data.size, config.view.center_crop, config.view.crop, config.score.size, config.evaluate.crop)
        # Textures: trained on 256 of 264, tested on the whole image at 256. Objects: trained on 224 of the central 230
        # of 256, tested on the central 224 of 256.
        textures, objects = (264, SETTINGS[category].view.center_crop, 256, 256, 0), (256, 230, 224, 256, 224)
        assert sizes == (textures if category in TEXTURES else objects), category
        assert SETTINGS[category].view.center_crop == config.view.center_crop, category
        assert (config.data.holdout, config.data.category) == (0, category)


def test_men_and_women_differ_in_nothing_but_the_lists():
    male, female = (configs.flatten(configs.load(f"{NSA}:{category}")) for category in CHEST_XRAYS)
    for values in (male, female):
        assert (values["view.rotation"], values["synthesis.background"]) == (3.0, [0.0, 20.0])
        assert (values["synthesis.gamma"], values["synthesis.overlap"]) == ([2.0, 0.03, 0.05], 0.7)
        assert values["epochs"] == 240
    lists = {f"data.{name}_list" for name in ("train", "test_good", "test_abnormal")}
    assert {key for key in male if male[key] != female[key]} == {"category", "data.category"} | lists
    assert all(female[key] == male[key].replace("_Male", "_Female") for key in lists)


@pytest.mark.medium
def test_what_is_judged_was_trained_on():
    """A central crop is all that the training sees; without one, its random crops reach every border."""
    for file, category in itertools.product(FILES, EVERY):
        config = configs.load(f"{file}:{category}")
        judged = (config.evaluate.crop or config.score.size) / config.score.size
        trained = (config.get("view", {}).get("center_crop", 0) or config.data.size) / config.data.size
        assert judged <= trained, (file, category)


def test_what_was_not_trained_on_cannot_be_judged():
    config = configs.load(f"{NSA}:bottle", {"evaluate.crop": 0})
    with refuses("evaluate.crop", "config.view.center_crop=230"):
        methods.create(config)
    methods.create(configs.load(f"{NSA}:bottle", {"evaluate.crop": 0, "view.center_crop": 0}))


def test_your_own_images_and_the_demo_are_seen_whole_with_a_threshold():
    for category in (*OWN, *demo.CATEGORIES):
        config = configs.load(f"{NSA}:{category}")
        assert (config.view.center_crop, config.evaluate.crop, config.data.holdout) == (0, 0, 0.1), category
        assert config.data.category == ("" if category in OWN else category)


@pytest.mark.parametrize("category", ("bottle", "any_folder_of_mine"))
def test_the_baseline_takes_any_folder(category):
    config = configs.load(f"{BASELINE}:{category}")
    assert (config.data.source, config.data.category) == ("folder", category)
    assert (config.data.holdout, config.epochs) == (0.0, 0)


def test_an_unknown_category_names_the_nearest():
    with refuses("category", "'hazelnut'"):
        configs.load(f"{NSA}:hazelnutt")


@pytest.mark.parametrize("category", ["bottle", "tile"])
def test_values_read_back_from_json_are_usable(category, tmp_path):
    configs.claim(tmp_path, configs.load(f"{NSA}:{category}"))
    config = configs.read(tmp_path)
    assert jnp.asarray(config.normalize.mean).shape == (3,)
    assert isinstance(config.synthesis, ConfigDict) and len(config.synthesis.gamma) == 3
    assert json.loads((tmp_path / "config.json").read_text())["category"] == category
    assert pathlib.Path(tmp_path / "config.json").read_text().endswith("}\n")


# Columns of CutPaste's Tables 1, 4 and 5 by file; the patch model and the untrained network learn the first's task.
CUTPASTE_TASKS = {
    "cutpaste_3way": "cutpaste_3way", "cutpaste": "cutpaste", "cutpaste_scar": "cutpaste_scar",
    "cutpaste_union": "cutpaste_union", "rotation": "rotation", "cutout": "cutout_grey", "scar": "scar",
    "confetti": "confetti", "cutpaste_patch": "cutpaste_3way", "cutpaste_untrained": "cutpaste_3way",
}  # fmt: skip


def cutpaste(name, category="bottle", **overrides):
    return configs.load(f"{ROOT}/experiments/{name}.py:{category}", overrides)


@pytest.mark.parametrize("name", CUTPASTE_TASKS)
def test_cutpastes_rows_differ_in_nothing_else(name):
    config, base = configs.flatten(cutpaste(name)), configs.flatten(cutpaste("cutpaste_3way"))
    assert (config["experiment"], config["proxy.task"]) == (name, CUTPASTE_TASKS[name])
    changed = {key for key in config.keys() | base.keys() if config.get(key) != base.get(key)}
    allowed = {
        "cutpaste_patch": {"proxy.side", "score.gradcam", "score.level", "density.levels", "density.per_location"}
        | {key for key in config if key.startswith("patch.")},
        "cutpaste_untrained": {"method", "epochs"},
    }
    assert changed <= {"experiment", "proxy.task"} | allowed.get(name, set())


def test_cutpaste_is_trained_as_appendix_a1_says():
    config = cutpaste("cutpaste_3way")
    assert config.epochs * configs.steps_per_epoch(config, images=209) == 65_536
    assert (config.batch, len(PROXIES[config.proxy.task]), config.data.size) == (32, 3, 256)  # 96 images a step
    assert (config.optim.name, config.optim.learning_rate, config.optim.momentum, config.optim.l2) == (
        "sgd", 0.03, 0.9, 3e-5,
    )  # fmt: skip
    assert (config.proxy.area, config.proxy.jitter, config.proxy.scar_angle) == ((0.02, 0.15), 0.1, 45)
    assert config.data.holdout == 0


def test_efficientnet_is_fine_tuned_as_appendix_a4_says():
    config = configs.load(f"{ROOT}/experiments/efficientnet_finetune.py:bottle")
    assert config.model.backbone == "efficientnet_b4" and config.model.frozen_norm
    assert config.batch * len(PROXIES[config.proxy.task]) == 24
    assert (config.optim.head_epochs, config.epochs - config.optim.head_epochs) == (10, 64)
    assert (config.optim.head_learning_rate, config.optim.learning_rate) == (0.03, 1e-4)
    assert (config.optim.momentum, config.optim.l2, config.steps_per_epoch) == (0.9, 3e-5, 256)  # as Appendix A.1
    pretrained = configs.load(f"{ROOT}/experiments/efficientnet_pretrained.py:bottle")
    changed = {key for key, value in configs.flatten(pretrained).items() if value != configs.flatten(config)[key]}
    assert changed == {"experiment", "method", "epochs", "optim.head_epochs"}


@pytest.mark.medium
def test_cutpastes_ablations_are_overrides_and_in_the_docstring():
    values = {  # Appendix A.3
        "optim.learning_rate": ("0.03", "0.1", "0.01", "0.003"), "epochs": ("256", "128", "192", "320", "384"),
        "proxy.jitter": ("0.1", "0", "0.2", "0.3"), "proxy.area": ("0.02,0.15", "0.02,0.1", "0.02,0.2", "0.02,0.3"),
    }  # fmt: skip
    text = (ROOT / "experiments" / "cutpaste_3way.py").read_text().split('"""')[1]
    for key, (default, *others) in values.items():
        line = next(line for line in text.splitlines() if f"--config.{key}={default} " in line)
        assert line.split("(")[0].split()[1:] == others
        for value in (default, *others):
            methods.create(cutpaste("cutpaste_3way", **{key: value}))


def test_the_patch_model_has_a_density_for_each_place_of_aligned_objects():
    aligned = {category for category in MVTEC_AD if cutpaste("cutpaste_patch", category).patch.per_location}
    assert aligned == MVTEC_AD - {"hazelnut", "screw", *TEXTURES}
    settings = cutpaste("cutpaste_patch").patch
    assert (settings.crop, settings.size, settings.stride) == (64, 32, 4)
    assert cutpaste("cutpaste_patch", **{"data.size": "128"}).proxy.side == 128


# What the other columns of NSA's Tables 1, 2, 3, 7 and 8 change, whatever the category.
UNMOVED = {"synthesis.resized": False, "synthesis.moved": False, "synthesis.factor": [0.05, 0.95], "label": "factor"}
NSA_CHANGES = {
    "nsa_binary": {"label": "binary"},
    "nsa_continuous": {"label": "continuous"},
    "cutpaste_end_to_end": {
        "synthesis.source": "same", "synthesis.resized": False, "synthesis.blending": "paste", "label": "binary",
    },
    "fpi": UNMOVED | {"synthesis.blending": "interpolate"},
    "pii": UNMOVED | {"synthesis.blending": "mixed"},
    "nsa_no_constraints": {"synthesis.background": None},
    "nsa_one_patch": {"synthesis.patches": 1},
    "nsa_cutpaste_shapes": {
        "synthesis.shape": "cutpaste", "synthesis.resized": False, "synthesis.background": None, "synthesis.patches": 1,
    },
    "nsa_ellipses": {"synthesis.shape": "ellipses"},
}  # fmt: skip


def test_every_file_that_derives_from_nsa_is_a_column():
    derived = {file.stem for file in FILES if "nsa_logistic" in file.read_text()} - {pathlib.Path(NSA).stem}
    assert derived == {*NSA_CHANGES, "lite_nsa", "lite_nsa_finetune", "nsa_fast"}


def test_the_fast_nsa_is_a_shorter_one_with_smaller_batches():
    for category, epochs, batch in (("demo", 13, 8), ("bottle", 64, 16), ("tile", 64, 16)):
        ours, paper = (configs.flatten(configs.load(f"{ROOT}/experiments/{name}.py:{category}", {}))
                       for name in ("nsa_fast", "nsa_logistic"))  # fmt: skip
        changed = {key: value for key, value in ours.items() if paper[key] != value}
        assert changed | {"batch": batch} == {"experiment": "nsa_fast", "epochs": epochs, "batch": batch}
        assert ours["batch"] == batch


@pytest.mark.medium
def test_nsa_on_published_weights_keeps_the_categorys_synthesis():
    """And the model is that of lite.py."""
    lite = configs.load(f"{ROOT}/experiments/lite.py:bottle")
    for name, category in itertools.product(("lite_nsa", "lite_nsa_finetune"), EVERY):
        config, base = (configs.load(f"{file}:{category}") for file in (f"{ROOT}/experiments/{name}.py", NSA))
        assert (config.synthesis, config.label, config.data.source) == (base.synthesis, base.label, base.data.source)
        assert {key: config.model[key] for key in lite.model} == dict(lite.model)
        assert config.normalize == lite.normalize
        sizes = config.data.size, config.view.crop, config.view.center_crop, config.view.rotation, config.evaluate.crop
        assert sizes == ((256, 256) if name == "lite_nsa" else (base.data.size, base.view.crop)) + (0, 0, 0), category
    changed = configs.load(f"{ROOT}/experiments/lite_nsa.py:bottle", {"data.size": "128"})
    assert (changed.view.crop, changed.score.size) == (128, 128)
    methods.create(changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NSA_CHANGES)
def test_nsas_columns_differ_in_nothing_else(name):
    for category in SETTINGS:
        config = configs.flatten(configs.load(f"{ROOT}/experiments/{name}.py:{category}"))
        base = configs.flatten(configs.load(f"{NSA}:{category}"))
        expected = base | {"experiment": name} | NSA_CHANGES[name]
        if name == "nsa_ellipses" and category not in demo.CATEGORIES:
            expected["epochs"] = 800 if category in ("hazelnut", "metal_nut", "screw") else base["epochs"] + 240
        assert config == expected, category


def test_nsas_columns_name_their_tables():
    ablations = {"nsa_no_constraints": "A", "nsa_one_patch": "B", "nsa_cutpaste_shapes": "C", "nsa_ellipses": "D"}
    for name in NSA_CHANGES:
        text = (ROOT / "experiments" / f"{name}.py").read_text().split('"""')[1].replace("\n", " ")
        assert (f"Table 7, column {ablations[name]}" if name in ablations else "Tables 1, 2, 3 and 8") in text, name


def test_nsas_columns_can_be_made_smaller():
    overrides = {"data.size": "128", "view.crop": "96", "view.center_crop": "0", "evaluate.crop": "96", "epochs": "5"}
    for name, category in itertools.product(NSA_CHANGES, ("bottle", "tile")):
        config = configs.load(f"{ROOT}/experiments/{name}.py:{category}", overrides)
        # These still refer to what was changed.
        assert config.score.size == (96 if category == "tile" else 128), (name, category)
        assert (config.epochs, config.view.crop) == (5, 96), (name, category)
        methods.create(config)
