"""NSA (logistic) with the patches of CutPaste: Schlüter et al., ECCV 2022, Table 7, column C.

    python -m jaxad.train --config experiments/nsa_cutpaste_shapes.py
    python -m jaxad.train --config experiments/nsa_cutpaste_shapes.py:bottle --config.data.root=DIR

One patch in every image, whose area and aspect ratio are drawn as CutPaste draws them, at any place and without
resizing. Everything else, every category with its settings and the chest X-rays' command included, is written out in
nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")
CHANGES = {
    "experiment": "nsa_cutpaste_shapes",
    "synthesis.shape": "cutpaste",
    "synthesis.resized": "false",
    "synthesis.background": "none",
    "synthesis.patches": "1",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
