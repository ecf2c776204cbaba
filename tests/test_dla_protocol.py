"""DLA's experiments: every value of its protocol, and where in the paper it stands (Yoa et al., IEEE Access 2021)."""

import re

import pytest

from jaxad import config as configs
from jaxad.augment.dla import local, views
from jaxad.data import folder
from jaxad.methods import dla
from jaxad.methods.method import options_of
from jaxad.models import siamese, siamese_loss
from jaxad.reporting import published
from tests.parts import ROOT

SETUP = "Section IV, Setup"
SIMSIAM = "SimSiam (Chen & He, CVPR 2021), on which Section III-A builds"
OPEN = "left open by the paper"
PROTOCOL = {
    "method": ("dla", "Section III"),
    "seed": (0, "Section IV-A averages three seeds, unnamed"),
    "epochs": (200, SETUP),
    "batch": (200, SETUP),
    "dtype": ("float32", OPEN),
    "data.source": ("folder", "Section IV: MVTec AD"),
    "data.size": (224, "Section III-E1: C2 is 56x56 at stride 4"),
    "data.resize": ("squeeze", "Section III-E1: images are squares"),
    "data.white_level": (0, "Section IV: MVTec AD, whose files have 8 bits"),
    "data.holdout": (0.0, "Section III-D1: the mean is that of all training images"),
    "normalize.mean": ([0.485, 0.456, 0.406], OPEN),
    "normalize.std": ([0.229, 0.224, 0.225], OPEN),
    "view.area": ([0.8, 1.0], OPEN),
    "view.aspect": ([0.95, 1.05], OPEN),
    "view.flip": (0.0, OPEN),
    "view.jitter": (0.1, OPEN),
    "view.hue": (0.02, OPEN),
    "view.jitter_probability": (0.8, SIMSIAM),
    "view.grey": (0.0, OPEN),
    "view.blur": (0.0, OPEN),
    "view.sigma": ([0.1, 2.0], SIMSIAM),
    "local.mode": ("dynamic", "Section III-C, Equations 4 to 6"),
    "local.size": ([50, 128], SETUP),
    "local.angle": (180.0, OPEN),
    "local.jitter": (0.4, SIMSIAM),
    "local.hue": (0.1, SIMSIAM),
    "local.parts": (2, "Section III-C1 has no number; that of Tack et al., NeurIPS 2020"),
    "model.width": (2048, SIMSIAM),
    "model.bottleneck": (512, SIMSIAM),
    "model.dense_hidden": (128, OPEN),
    "model.dense_width": (128, OPEN),
    "model.zero_init_residual": (True, OPEN),
    "model.head_init": ("lecun", OPEN),
    "model.batch_norm": ("shared", OPEN),
    "model.dropout": (0.1, OPEN),
    "model.dropout_place": ("blocks", OPEN),
    "objective.global_weight": (1.0, f"{SETUP}: lambda_1 of Equation 8"),
    "objective.dense_weight": (0.1, f"{SETUP}: lambda_2 of Equation 8"),
    "objective.negative_weight": (0.5, f"{SETUP}: lambda_3 of Equation 8"),
    "objective.pairs": ("all", "Sections III-B and III-C2: i and j are any two images of the batch"),
    "objective.reverse": ("recomputed", "Equation 14, whose second term prints the index of the first"),
    "optim.name": ("sgd", SETUP),
    "optim.momentum": (0.9, SETUP),
    "optim.learning_rate": (0.02 * 200 / 256, f"{SETUP}: a base rate of 0.02; times batch / 256 by {SIMSIAM}"),
    "optim.final_learning_rate": (0.0, f"the cosine schedule of {SIMSIAM}"),
    "optim.weight_decay": (5e-4, SETUP),
    "score.size": (224, "Section III-D1"),
    "score.stages": ("layer1,layer2,layer3", "Sections III-D1 and III-E1: C2, C3 and C4"),
    "score.channels": ("sum", "Equations 9 and 11: the squared norm"),
    "score.standardize": (False, "Equations 9 and 11 divide by nothing"),
    "score.passes": (10, OPEN),
    "score.regression_weight": (1.0, f"{SETUP}: alpha_1 of Equation 12"),
    "score.uncertainty_weight": (0.1, f"{SETUP}: alpha_2 of Equation 12"),
    "score.reduction": ("top", "the paper has no score of an image"),
    "score.top": (0.01, "the paper has no score of an image"),
    "threshold.false_alarm_rate": (0.05, "the paper has no threshold"),
    "evaluate.crop": (0, "Section III-D1: every pixel of the image is judged"),
    "evaluate.heatmap_sigma": (0.0, "Equation 12 is not smoothed"),
    "evaluate.pro_limit": (0.3, "the paper has no AU-PRO"),
    "evaluate.mask_rule": ("any", OPEN),
}
# Names, places, logs and memory, which change no number.
NO_PROTOCOL = {
    "experiment", "category", "data.category", "data.root", "data.test", "data.ground_truth", "data.max_megapixels",
    "data.roi", "data.aspect", "data.tile", "data.tile_overlap", "threshold.cross_fit_below",
    "data.workers", "data.cache_gib", "data.device_gib", "log_every", "synthetic_every",
    "steps_per_call", "model.remat", "evaluate.batch", "checkpoint.every_steps", "checkpoint.keep",
}  # fmt: skip
# What the other rows change, and the row of the paper that the docstring names.
CHANGES = {
    "dla_static": ({"local.mode": "static"}, "Table 2, fourth row, and Table 3, column LA."),
    "dla_global_neg": ({"objective.dense_weight": 0.0}, "Table 2, third row."),
    "dla_global_dense": ({"objective.negative_weight": 0.0}, "Table 2, second row."),
    "dla_global_only": ({"objective.dense_weight": 0.0, "objective.negative_weight": 0.0}, "Table 2, first row."),
    "dla_untrained": (
        {"method": "dla_untrained", "epochs": 0, "score.uncertainty_weight": 0.0},
        "no row of the paper but the floor of its rows.",
    ),
    "dla_standardized": (
        {"score.standardize": True, "score.channels": "mean", "score.stages": "layer1,layer2",
         "score.uncertainty_weight": 0.0},
        "with a score of our own: no row of Yoa et al., IEEE Access 2021.",
    ),
}
DEMO = {"data.source": "demo", "data.size": 128, "score.size": 128, "data.holdout": 0.1, "epochs": 30, "batch": 16}


def load(name="dla", category="bottle", **overrides):
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return configs.load(f"{ROOT}/experiments/{name}.py:{category}", given)


def docstring(name):
    return (ROOT / "experiments" / f"{name}.py").read_text().split('"""')[1]


def test_every_value_is_the_papers():
    config = configs.flatten(load())
    assert config.keys() == PROTOCOL.keys() | NO_PROTOCOL
    for key, (value, source) in PROTOCOL.items():
        assert config[key] == value, f"{key}: {source}"
    assert config["experiment"] == "dla"
    for category in folder.TEXTURES + folder.OBJECTS:
        assert configs.flatten(load(category=category)) == config | {"category": category, "data.category": category}


def test_the_optimiser_takes_as_many_steps_as_the_text_says():
    config = load()
    assert config.epochs * configs.steps_per_epoch(config, images=209) == 400  # bottle; docs/dla.md
    assert config.epochs * configs.steps_per_epoch(config, images=60) == 200  # toothbrush, whose images repeat


def test_what_refers_to_another_value_follows_it():
    assert load(batch=256).optim.learning_rate == 0.02  # SimSiam's rule
    assert load(data__size=256).score.size == 256


def test_the_demo_is_shorter_and_smaller_alone():
    config = configs.flatten(load(category="cap"))
    rate = {"optim.learning_rate": 0.02 * 16 / 256}
    expected = configs.flatten(load()) | DEMO | rate | {"category": "cap", "data.category": "cap"}
    assert config == expected


def test_your_own_images_are_trained_on_as_the_papers():
    for category in ("object", "texture"):
        changes = {"category": category, "data.category": "", "data.holdout": 0.1, "data.resize": "keep"}
        assert configs.flatten(load(category=category)) == configs.flatten(load()) | changes


@pytest.mark.parametrize("name", CHANGES)
def test_the_other_rows_differ_in_nothing_else(name):
    changes, row = CHANGES[name]
    for category in ("bottle", "tile", "cap", "object"):
        expected = configs.flatten(load(category=category)) | {"experiment": name} | changes
        assert configs.flatten(load(name, category)) == expected, category
    assert docstring(name).splitlines()[0].endswith(row)


def test_the_options_of_the_docstring_begin_with_the_default():
    config = configs.flatten(load())
    text = docstring("dla").partition("the first value is the default")[2].partition("Not options")[0]
    options = re.findall(r"--config\.(\S+)=(\S+)", text)
    assert len(options) == 12
    for key, value in options:
        assert configs.flatten(load(**{key.replace(".", "__"): value})) == config, key


def test_the_published_numbers_are_of_the_score_of_the_files():
    """What tables take for the paper's score is what its experiments compute, and dla_standardized is none of them."""
    for name in ("dla", *CHANGES):
        config = configs.flatten(load(name))
        assert published.other_score(name, config) == [], name
        is_papers = name.startswith("dla_standardized") or published.other_score(name, config | {"score.channels": "?"})
        assert is_papers, name
    ours = configs.flatten(load("dla_standardized"))
    assert published.other_score("dla", ours) == [
        "score.stages=layer1,layer2", "score.channels=mean", "score.standardize=True", "score.uncertainty_weight=0.0",
    ]  # fmt: skip
    assert not any("dla_standardized" in column.experiments for column in published.columns())


def test_the_local_augmentations_are_those_of_section_iii_c1():
    assert list(local.LOCAL) == ["rotation", "jitter", "permutation", "grey"]  # K = 4, Section IV-B
    config = load()
    assert options_of(config.local, local.LocalOptions) == local.LocalOptions()
    assert options_of(config.view, views.ViewOptions) == views.ViewOptions()
    # Section IV's 50 to 128 pixels are those of an image of 224, Section III-E1.
    for side, limits in ((224, (50, 128)), (448, (100, 256)), (128, (29, 73))):
        assert local.region_limit((side, side, 3), options=local.LocalOptions()) == limits


def test_what_the_config_cannot_say_is_the_papers():
    assert siamese.DENSE_STAGE == "layer2"  # C3, Section III-E2
    # Which pairs and which indices there are to choose from, the default first.
    assert (siamese_loss.PAIRS, siamese_loss.REVERSE) == (("all", "same"), ("recomputed", "literal"))
    assert dla.FLOOR == 0.01  # with score.standardize alone; said in the docstring as 1 %
    assert "plus 1 % of the stage's mean variance" in docstring("dla_standardized").replace("\n", " ")
