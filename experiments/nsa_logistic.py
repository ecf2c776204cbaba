"""NSA (logistic): Schlüter et al., ECCV 2022, last column of Tables 1, 2, 3 and 8.

    python -m jaxad.train --config experiments/nsa_logistic.py
    python -m jaxad.train --config experiments/nsa_logistic.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/nsa_logistic.py:object --config.data.root=MY_PARTS
    python -m jaxad.train --config experiments/nsa_logistic.py:chest_xray_male --config.data.root=NIH

The first line trains on the embedded demo, in 10 to 20 minutes on two cores. The second follows the paper's protocol
for a category of MVTec AD below DIR, where objects are tested on the central crop only. The third is for images of your
own (`:object` or `:texture`): the whole image is tested and a threshold is fitted on held-out good images. The fourth
(or `:chest_xray_female`) reads the images of the authors' lists from the NIH release of chest X-rays below NIH, in one
channel (see jaxad/data/chest_xray.py). See docs/results.md.

Where the paper's text differs from the authors' program, which made its tables (the first value is the default):

    --config.synthesis.size_bounds=half       full: a resized patch is bounded by full sizes, as Equation 9 is printed
    --config.synthesis.object_test=source     destination: whose share of object is asked for, as Equation 11 is printed
    --config.synthesis.tolerance=1.0          0: every change of a pixel counts, as Equation 13 is printed
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxad.augment.nsa.settings import settings
from jaxad.data import folder
from jaxad.data.demo import source as demo

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CATEGORIES = folder.TEXTURES + folder.OBJECTS
OWN_IMAGES = ("object", "texture")
CHEST_XRAYS = {"chest_xray_male": "Male", "chest_xray_female": "Female"}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category (`demo` is the first), one of MVTec AD, a chest X-ray's, `object` or `texture`."""
    category = demo.CATEGORIES[0] if category == "demo" else category
    is_demo = category in demo.CATEGORIES
    row = settings(category)
    reproduces = not is_demo and category not in OWN_IMAGES

    config = ConfigDict()
    config.experiment = "nsa_logistic"
    config.category = category
    config.method = "nsa"
    config.seed = 0
    config.epochs = row.epochs
    # The demo lasts minutes: small batches make more steps of them. Chosen on test parts of other demo seeds.
    config.batch = 8 if is_demo else 64
    config.dtype = "auto"
    config.log_every = 40 if is_demo else 10
    # Steps between two looks at synthetic defects in held-out images; 0 for one at the end alone.
    config.synthetic_every = 0 if reproduces else 100
    config.steps_per_call = 0

    config.data = ConfigDict()
    config.data.source = "demo" if is_demo else "chest_xray" if category in CHEST_XRAYS else "folder"
    config.data.root = ""
    config.data.category = "" if category in OWN_IMAGES else category
    config.data.test = ""
    config.data.ground_truth = ""
    if category in CHEST_XRAYS:
        config.data.lists = ""
        adults = f"{CHEST_XRAYS[category]}AdultPA"
        config.data.train_list = f"norm_{adults}_train_curated_list.txt"
        config.data.test_good_list = f"norm_{adults}_test_curated_list.txt"
        config.data.test_abnormal_list = f"anomaly_{adults}_test_curated_list.txt"
    config.data.channels = 1 if category in CHEST_XRAYS else 3
    config.data.size = row.view.resize
    config.data.roi = ""
    config.data.resize = "keep" if category in OWN_IMAGES else "squeeze"
    config.data.aspect = 0.0
    config.data.tile = 0
    config.data.tile_overlap = 0.125
    config.data.white_level = 0
    config.data.max_megapixels = 1000
    config.data.holdout = 0.0 if reproduces else 0.1
    config.data.synthesis = "device"
    config.data.workers = 0
    config.data.cache_gib = 4.0
    config.data.device_gib = 4.0

    config.view = ConfigDict()
    config.view.rotation = row.view.rotation
    config.view.center_crop = row.view.center_crop if reproduces else 0
    config.view.crop = row.view.crop
    config.view.flip = row.view.flip

    config.normalize = ConfigDict(IMAGENET if row.view.normalize else {"mean": (0.0,), "std": (1.0,)})

    config.synthesis = ConfigDict({"background": placeholder((tuple, type(None)))})  # may be none
    config.synthesis.update(row.synthesis._asdict())
    config.label = "logistic"

    config.optim = ConfigDict()
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.final_learning_rate = 1e-6

    config.score = ConfigDict()
    # Objects are scored at the size that they are resized to. Textures and the demo, whose training crops are almost
    # the whole image, are scored whole at the crop's size.
    scored = config.data.get_ref("size") if row.view.center_crop else config.view.get_ref("crop")
    config.score.size = scored.identity()
    # The demo's defects are small: the mean of the whole map dilutes them. Chosen on parts of another demo seed.
    config.score.reduction = "top" if is_demo else "mean"
    config.score.top = 0.01

    config.threshold = ConfigDict()
    config.threshold.false_alarm_rate = 0.05

    config.evaluate = ConfigDict()
    config.evaluate.crop = row.view.crop if reproduces and row.view.center_crop else 0
    # Drawn heatmaps alone are smoothed: the last transposed convolution leaves a pattern of dots, 2 pixels apart.
    config.evaluate.heatmap_sigma = 1.0
    config.evaluate.batch = 8
    config.evaluate.pro_limit = 0.3
    config.evaluate.mask_rule = "any"

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 3
    return config
