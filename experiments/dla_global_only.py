"""DLA's ablation: Yoa et al., IEEE Access 2021, Table 2, first row.

    python -m jaxad.train --config experiments/dla_global_only.py
    python -m jaxad.train --config experiments/dla_global_only.py:bottle --config.data.root=DIR

The global loss alone, without dense loss and without negatives.
Everything else is written out in dla.py. See docs/dla.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("dla.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(
        f"{BASE}:{category}",
        {"experiment": "dla_global_only", "objective.dense_weight": "0", "objective.negative_weight": "0"},
    )
