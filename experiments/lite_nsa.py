"""A small network on the features of lite.py, taught by NSA's synthetic defects: minutes on two cores.

    pip install 'jaxad[lite]'
    python -m jaxad.train --config experiments/lite_nsa.py
    python -m jaxad.train --config experiments/lite_nsa.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/lite_nsa.py:object --config.data.root=MY_PARTS

The first line runs on the embedded demo, the second on a category of MVTec AD below DIR, the third on images of your
own (`:object` or `:texture`). EfficientNet-Lite0 stays as it was published. This is no row of a paper: the synthetic
defects are NSA's (Schlüter et al., ECCV 2022), all else is ours. See docs/pretrained_weights.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE, LITE = (Path(__file__).with_name(f"{name}.py") for name in ("nsa_logistic", "lite"))
CHANGES = {
    "experiment": "lite_nsa",
    "dtype": "float32",
    "method": "nsa_features",
    "epochs": "20",
    "batch": "8",
    "log_every": "20",
    "synthetic_every": "0",
    "data.size": "256",
    "data.channels": "3",  # of X-rays too
    "data.holdout": "0.1",
    # (x - 127) / 128 of images in [0, 255], as these weights were trained.
    "normalize.mean": str((127 / 255,) * 3),
    "normalize.std": str((128 / 255,) * 3),
    # Features are judged by their position: views are whole images as they are.
    "view.rotation": "0",
    "view.center_crop": "0",
    "view.flip": "false",
    "score.reduction": "top",
    "evaluate.crop": "0",
    "evaluate.heatmap_sigma": "0",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category (`demo` is the first), one of MVTec AD, `object` or `texture`."""
    config, lite = configs.load(f"{BASE}:{category}", CHANGES), configs.load(f"{LITE}:{category}")
    with config.unlocked():
        config.steps_per_epoch = 20
        config.model, config.density = lite.model, lite.density
        config.view.crop = config.data.get_ref("size").identity()
        config.score.size = config.data.get_ref("size").identity()
        config.score.sigma, config.score.reweight, config.score.emphasis = lite.score.sigma, lite.score.reweight, 2.0
    return config
