"""The per-pixel baseline |x - mean| / std of the good images, blurred: the floor that every other number stands on.

python -m jaxad.train --config experiments/baseline_mean.py
python -m jaxad.train --config experiments/baseline_mean.py:bottle --config.data.root=DIR
python -m jaxad.train --config experiments/baseline_mean.py:object --config.data.root=MY_PARTS

The last line (or `:texture`) is for images of your own.
"""

from ml_collections import ConfigDict

from jaxad.data import folder
from jaxad.data.demo import source as demo

CATEGORIES = folder.TEXTURES + folder.OBJECTS
OWN_IMAGES = ("object", "texture")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    category = demo.CATEGORIES[0] if category == "demo" else category
    is_demo = category in demo.CATEGORIES

    config = ConfigDict()
    config.experiment = "baseline_mean"
    config.category = category
    config.method = "baseline_mean"
    config.seed = 0
    config.epochs = 0

    config.data = ConfigDict()
    config.data.source = "demo" if is_demo else "folder"
    config.data.root = ""
    config.data.category = "" if category in OWN_IMAGES else category
    config.data.test = ""
    config.data.ground_truth = ""
    config.data.size = 256
    config.data.roi = ""
    config.data.resize = "keep" if category in OWN_IMAGES else "squeeze"
    config.data.aspect = 0.0
    config.data.tile = 0
    config.data.tile_overlap = 0.125
    config.data.white_level = 0
    config.data.max_megapixels = 1000
    config.data.holdout = 0.1 if is_demo or category in OWN_IMAGES else 0.0
    config.data.workers = 0
    config.data.cache_gib = 4.0

    config.score = ConfigDict()
    config.score.size = config.data.get_ref("size").identity()  # follows data.size
    config.score.sigma = 4.0
    config.score.floor = 5.0
    config.score.reduction = "max"
    config.score.top = 0.01

    config.threshold = ConfigDict()
    config.threshold.false_alarm_rate = 0.05

    config.evaluate = ConfigDict()
    config.evaluate.crop = 0
    config.evaluate.heatmap_sigma = 0.0
    config.evaluate.batch = 8
    config.evaluate.pro_limit = 0.3
    config.evaluate.mask_rule = "any"
    return config
