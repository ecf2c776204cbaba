"""DLA: Yoa et al., IEEE Access 2021, Table 1, column "Ours", and Table 3, column "DLA".

    python -m jaxad.train --config experiments/dla.py
    python -m jaxad.train --config experiments/dla.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/dla.py:object --config.data.root=MY_PARTS

The first line trains on the embedded demo, shortened. The second trains as in the paper for a category of MVTec AD in
DIR: 200 epochs of batches of 200, two steps each for bottle, which is work for a GPU (`--config.model.remat=true` for a
small one). The third is for images of your own (`:object` or `:texture`), where a threshold is fitted on held-out good
images. The other rows of Table 2 are dla_static.py (LA), dla_global_only.py, dla_global_dense.py and dla_global_neg.py,
the floor is dla_untrained.py. Figures 2 and 3 are samples.png of a run, Figure 4 its report.html.

The score is the paper's (Equations 9 to 12): sums of squares over the channels, which nothing divides. A score of our
own, which divides them by how much good images vary, is dla_standardized.py.

What the paper leaves open, and what it could also be (the first value is the default):

    --config.objective.pairs=all              same: pair each image with itself only
    --config.objective.reverse=recomputed     literal: Equation 14 as printed
    --config.model.zero_init_residual=true    false: residual blocks start as torchvision's, not as SimSiam's program's
    --config.model.head_init=lecun            torch: as PyTorch's linear layers, on which SimSiam's program relies
    --config.model.batch_norm=shared          apart: views, images and augmentations have BatchNorm statistics of their
                                              own, and images are scored by those of images. Take
                                              objective.pairs=same with it: of all pairs nothing can be learnt then
    --config.model.dropout=0.1                in training too
    --config.model.dropout_place=blocks       stages: behind each stage. Blocks start silent, and so does the dropout in
                                              them: the uncertainty grows with the training. Behind stages it is large
                                              from the start, but most of it is the stage itself, squared
    --config.score.passes=10
    --config.score.channels=sum               mean: the mean difference of which Section III-D1 speaks, not the norm of
                                              Equation 9
    --config.local.mode=dynamic               static (LA), rotation, jitter, permutation, grey
    --config.local.parts=2                    parts of a side that the permutation exchanges
    --config.data.size=224                    256, which the paper mentions too, has maps of 64, 32 and 16 positions

Not options, and not in the paper either: the dense heads have BatchNorm, dropout masks of the scoring are the same for
all images, and the size of a local region refers to an image of 224. Other than in SimSiam's program, the projection's
last BatchNorm has a scale and a bias, and the prediction's learning rate decays with all others.

The views are milder than SimSiam's: parts lie still, so crops keep most of them, and colour and sharpness are what
defects change, so the features had better not be made blind to them. See docs/dla.md.
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
    config.experiment = "dla"
    config.category = category
    config.method = "dla"
    config.seed = 0
    # Two steps an epoch for bottle's 209 images, one where there are 200 or fewer, which then repeat within a batch.
    config.epochs = 30 if is_demo else 200
    config.batch = 16 if is_demo else 200
    config.dtype = "float32"
    config.log_every = 10
    # Steps between two looks at synthetic defects in held-out images, and means and variances are computed for each;
    # 0 for one at the end alone.
    config.synthetic_every = 0
    config.steps_per_call = 0

    config.data = ConfigDict()
    config.data.source = "demo" if is_demo else "folder"
    config.data.root = ""
    config.data.category = "" if category in OWN_IMAGES else category
    config.data.test = ""
    config.data.ground_truth = ""
    config.data.size = 128 if is_demo else 224
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

    config.view = ConfigDict()  # of the two global views
    config.view.area = (0.8, 1.0)
    config.view.aspect = (0.95, 1.05)
    config.view.flip = 0.0
    config.view.jitter = 0.1
    config.view.hue = 0.02
    config.view.jitter_probability = 0.8
    config.view.grey = 0.0
    config.view.blur = 0.0
    config.view.sigma = (0.1, 2.0)

    config.local = ConfigDict()  # of the local augmentation
    config.local.mode = "dynamic"
    config.local.size = (50, 128)  # pixels of an image of 224
    config.local.angle = 180.0
    config.local.jitter = 0.4
    config.local.hue = 0.1
    config.local.parts = 2

    config.model = ConfigDict()
    config.model.width = 2048
    config.model.bottleneck = 512
    config.model.dense_hidden = 128
    config.model.dense_width = 128
    config.model.zero_init_residual = True
    config.model.head_init = "lecun"
    config.model.batch_norm = "shared"
    config.model.dropout = 0.1
    config.model.dropout_place = "blocks"
    config.model.remat = False

    config.objective = ConfigDict()
    config.objective.global_weight = 1.0
    config.objective.dense_weight = 0.1
    config.objective.negative_weight = 0.5
    config.objective.pairs = "all"
    config.objective.reverse = "recomputed"

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # or adamw, which needs momentum 0; or adam, which needs weight_decay 0 too
    config.optim.momentum = 0.9
    config.optim.learning_rate = config.get_ref("batch").to_float() * (0.02 / 256)  # SimSiam's rule
    config.optim.final_learning_rate = 0.0
    config.optim.weight_decay = 5e-4

    config.score = ConfigDict()
    config.score.size = config.data.get_ref("size").identity()  # follows data.size
    config.score.stages = "layer1,layer2,layer3"
    config.score.channels = "sum"
    config.score.standardize = False
    config.score.passes = 10
    config.score.regression_weight = 1.0
    config.score.uncertainty_weight = 0.1
    config.score.reduction = "top"
    config.score.top = 0.01

    config.threshold = ConfigDict()
    config.threshold.false_alarm_rate = 0.05

    config.evaluate = ConfigDict()
    config.evaluate.crop = 0
    config.evaluate.heatmap_sigma = 0.0
    config.evaluate.batch = 8
    config.evaluate.pro_limit = 0.3
    config.evaluate.mask_rule = "any"

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 50
    config.checkpoint.keep = 3
    return config
