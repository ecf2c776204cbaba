"""CutPaste (3-way): Li et al., CVPR 2021, Table 1, column "CutPaste (3-way)"; GradCAM maps as in Section 4.2.

    python -m jaxad.train --config experiments/cutpaste_3way.py
    python -m jaxad.train --config experiments/cutpaste_3way.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/cutpaste_3way.py:object --config.data.root=MY_PARTS

The first line trains on the embedded demo, shortened. The second follows the paper for a category of MVTec AD in DIR:
65,536 steps of 32 images, each as normal, CutPaste and CutPaste-Scar, which is work for a GPU. The third is for images
of your own (`:object` or `:texture`), where a threshold is fitted on held-out good images.

The ablations of Appendix A.3 (Tables 7 and 8) are overrides; the first value is the default:

    --config.optim.learning_rate=0.03    0.1 0.01 0.003
    --config.epochs=256                  128 192 320 384 (an epoch is 256 steps, as the paper defines it)
    --config.proxy.jitter=0.1            0 0.2 0.3
    --config.proxy.area=0.02,0.15        0.02,0.1 0.02,0.2 0.02,0.3

What the paper leaves open: the projection head, strength of translation and of the jitter of whole images, the
covariance's shrinkage, the normalisation. `--config.density.name` may also be kernel or gaussian_mixture (footnote 1).
See docs/cutpaste.md.
"""

from ml_collections import ConfigDict

from jaxad.data import folder
from jaxad.data.demo import source as demo

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CATEGORIES = folder.TEXTURES + folder.OBJECTS
OWN_IMAGES = ("object", "texture")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    category = demo.CATEGORIES[0] if category == "demo" else category
    is_demo = category in demo.CATEGORIES

    config = ConfigDict()
    config.experiment = "cutpaste_3way"
    config.category = category
    config.method = "cutpaste"
    config.seed = 0
    # The learning rate is constant within an epoch.
    config.epochs = 50 if is_demo else 256
    config.steps_per_epoch = 16 if is_demo else 256
    config.batch = 8 if is_demo else 32  # source images; each is seen as every class of the task
    config.dtype = "float32"
    config.log_every = 20 if is_demo else 64
    # Steps between two looks at synthetic defects in held-out images, and a density is fitted for each;
    # 0 for one at the end alone.
    config.synthetic_every = 0
    config.steps_per_call = 0

    config.data = ConfigDict()
    config.data.source = "demo" if is_demo else "folder"
    config.data.root = ""
    config.data.category = "" if category in OWN_IMAGES else category
    config.data.test = ""
    config.data.ground_truth = ""
    config.data.size = 128 if is_demo else 256
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
    config.data.device_gib = 4.0

    config.normalize = ConfigDict(IMAGENET)

    config.proxy = ConfigDict()
    config.proxy.task = "cutpaste_3way"
    config.proxy.area = (0.02, 0.15)
    config.proxy.aspect = (0.3, 3.3)
    config.proxy.scar_width = (2, 16)
    config.proxy.scar_length = (10, 25)
    config.proxy.scar_angle = 45.0
    config.proxy.side = 0
    config.proxy.jitter = 0.1
    config.proxy.confetti = 0.5
    config.proxy.translation = 0.05
    config.proxy.image_jitter = 0.1

    config.model = ConfigDict()
    config.model.backbone = "resnet18"
    config.model.weights = ""  # a published file, see efficientnet_finetune.py; empty to train from scratch
    config.model.sha256 = ""
    config.model.frozen_norm = False
    config.model.stochastic_depth = 0.0
    config.model.head_depth = 2
    config.model.head_width = 512

    config.optim = ConfigDict()
    config.optim.name = "sgd"
    config.optim.momentum = 0.9
    config.optim.head_epochs = 0
    config.optim.head_learning_rate = 0.03
    config.optim.learning_rate = 0.03
    config.optim.final_learning_rate = 0.0
    config.optim.l2 = 3e-5  # of the kernels of convolutions and fully connected layers

    config.density = ConfigDict()
    config.density.levels = "pool"  # separated by commas: the pooled last stage, or stages such as layer3
    config.density.per_location = False
    config.density.name = "gaussian"
    config.density.l2_normalize = False
    config.density.shrinkage = "ledoit_wolf"  # needs no number that fits the features' scale
    config.density.ridge = 1e-6
    config.density.bandwidth = "scott"
    config.density.components = 2
    config.density.covariance = "diag"
    config.density.tolerance = 1e-3

    config.score = ConfigDict()
    config.score.size = config.data.get_ref("size").identity()  # follows data.size
    config.score.level = "pool"  # one of density.levels
    config.score.gradcam = "density"

    config.threshold = ConfigDict()
    config.threshold.false_alarm_rate = 0.05

    config.evaluate = ConfigDict()
    config.evaluate.crop = 0
    config.evaluate.heatmap_sigma = 0.0
    config.evaluate.batch = 8
    config.evaluate.pro_limit = 0.3
    config.evaluate.mask_rule = "any"

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 256
    config.checkpoint.keep = 3
    return config
