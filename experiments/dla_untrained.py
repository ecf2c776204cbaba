"""DLA on an untrained network: Yoa et al., IEEE Access 2021, no row of the paper but the floor of its rows.

    python -m jaxad.train --config experiments/dla_untrained.py
    python -m jaxad.train --config experiments/dla_untrained.py:bottle --config.data.root=DIR

Maps of a network with random weights, never trained: by the shortcuts of its blocks alone, or by all of it with
`--config.model.zero_init_residual=false`. There is no uncertainty, as dropout acts inside the silent blocks. Everything
else is written out in dla.py. See docs/dla.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("dla.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    own = {"experiment": "dla_untrained", "method": "dla_untrained", "epochs": "0", "score.uncertainty_weight": "0"}
    return configs.load(f"{BASE}:{category}", own)
