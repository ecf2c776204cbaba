"""CIFAR-10, one class against nine: Li et al., CVPR 2021, Section 5.4 (semantic outliers instead of defects).

    tfds build cifar10 --data_dir=DIR --file_format=array_record
    python -m jaxad.train --config experiments/cifar10_oneclass.py:airplane --config.data.root=DIR
    python -m jaxad.sweep --config experiments/cifar10_oneclass.py --categories all --config.data.root=DIR \\
      --grid config.proxy.task=rotation,cutpaste,cutout_grey

The first line prepares the dataset, where tensorflow and tensorflow-datasets are installed; jaxad reads it without
TensorFlow (`pip install 'jaxad[tfds]'`). The second trains on the 5,000 airplanes and scores all 10,000 test images,
airplanes being the good ones. The third makes the paper's comparison, class by class: rotation, for which it prints an
AUROC of 91.3 (mean over the classes), CutPaste (69.4) and Cutout (60.2). For one proxy alone, give
`--config.proxy.task=cutpaste` in place of the grid. Images have no masks, so there are no metrics by pixel.

Without TFDS, `--config.data.source=folder` reads classes in MVTec AD's layout, of any images: DIR/airplane/train/good,
DIR/airplane/test/good, DIR/airplane/test/bird, ...

The paper says no more than that, so these are choices: its own schedule, optimiser and density, written out in
cutpaste_3way.py; a ResNet-18 whose first convolution has 3x3 and stride 1, without pooling, as is usual at 32 pixels;
translation by up to 4 pixels, as usual too. Patches have the paper's shares of the area (squares of 5 to 12
pixels); scars would have 1 to 2 by 2 to 3 pixels if they were scaled with the image, and are 1 to 3 by 5 to 12 here.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data import tfds

BASE = Path(__file__).with_name("cutpaste_3way.py")
CATEGORIES = tfds.CATEGORIES["cifar10"]
CHANGES = {
    "experiment": "cifar10_oneclass",
    "data.source": "tfds",
    "data.size": "32",
    "model.backbone": "resnet18_small",
    "proxy.task": "rotation",
    "proxy.translation": "0.125",
    "proxy.scar_width": "8,24",  # in an image of 256, as in the paper
    "proxy.scar_length": "40,96",
    "evaluate.batch": "256",
}


def get_config(category: str = "airplane") -> ConfigDict:
    """The config of a class, whose images are the good ones."""
    return configs.load(f"{BASE}:{category}", CHANGES)
