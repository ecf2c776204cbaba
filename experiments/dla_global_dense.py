"""DLA's ablation: Yoa et al., IEEE Access 2021, Table 2, second row.

    python -m jaxad.train --config experiments/dla_global_dense.py
    python -m jaxad.train --config experiments/dla_global_dense.py:bottle --config.data.root=DIR

Global and dense loss, without negatives.
Everything else is written out in dla.py. See docs/dla.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("dla.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "dla_global_dense", "objective.negative_weight": "0"})
