"""DLA's ablation: Yoa et al., IEEE Access 2021, Table 2, third row.

    python -m jaxad.train --config experiments/dla_global_neg.py
    python -m jaxad.train --config experiments/dla_global_neg.py:bottle --config.data.root=DIR

Global loss and dynamic local augmentation, without dense loss.
Everything else is written out in dla.py. See docs/dla.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("dla.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "dla_global_neg", "objective.dense_weight": "0"})
