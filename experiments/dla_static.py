"""DLA's ablation: Yoa et al., IEEE Access 2021, Table 2, fourth row, and Table 3, column LA.

    python -m jaxad.train --config experiments/dla_static.py
    python -m jaxad.train --config experiments/dla_static.py:bottle --config.data.root=DIR

Negatives are the sum of all local augmentations, none weighted (the paper's static local augmentation).
Everything else is written out in dla.py. See docs/dla.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("dla.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "dla_static", "local.mode": "static"})
