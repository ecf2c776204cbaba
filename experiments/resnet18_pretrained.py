"""ResNet-18 as it was published for ImageNet, no row of Li et al., CVPR 2021, but what its rows are compared with.

    pip install 'jaxad[weights]'
    python -m jaxad.train --config experiments/resnet18_pretrained.py
    python -m jaxad.train --config experiments/resnet18_pretrained.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/resnet18_pretrained.py:object --config.data.root=MY_PARTS

Nothing is trained: a density is fitted on the features of the good images. For maps of where the defects are, in parts
in the same position in every image, one density for each position of an earlier stage (as PaDiM has of several stages):

    --config.density.per_location=true --config.density.levels=layer3 --config.score.level=layer3

The weights are torchvision's IMAGENET1K_V1 from the Hugging Face hub, fetched once and checked by their SHA-256;
without a network, `--config.model.weights=FILE` names a safetensors file of them. Everything else is written out in
cutpaste_3way.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("cutpaste_3way.py")
CHANGES = {
    "experiment": "resnet18_pretrained",
    "method": "cutpaste_untrained",
    "epochs": "0",
    "data.size": "224",
    "model.weights": "hf:timm/resnet18.tv_in1k",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
