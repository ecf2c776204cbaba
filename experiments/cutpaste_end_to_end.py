"""CutPaste (end-to-end), the baseline of NSA: Schlüter et al., ECCV 2022, Tables 1, 2, 3 and 8.

    python -m jaxad.train --config experiments/cutpaste_end_to_end.py
    python -m jaxad.train --config experiments/cutpaste_end_to_end.py:bottle --config.data.root=DIR

Patches of the image itself are pasted at another place of it, as they are, and the network of NSA learns where. Sizes,
number and constraints of the patches are NSA's. CutPaste as its authors have it is in cutpaste.py and its neighbours.
Everything else, every category with its settings and the chest X-rays' command included, is written out in
nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")
CHANGES = {
    "experiment": "cutpaste_end_to_end",
    "synthesis.source": "same",
    "synthesis.resized": "false",
    "synthesis.blending": "paste",
    "label": "binary",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
