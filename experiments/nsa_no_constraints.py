"""NSA (logistic) without foreground constraints: Schlüter et al., ECCV 2022, Table 7, column A.

    python -m jaxad.train --config experiments/nsa_no_constraints.py
    python -m jaxad.train --config experiments/nsa_no_constraints.py:bottle --config.data.root=DIR

Patches are taken from and go to any place, also of plain background. This is nsa_logistic.py itself where there is no
plain background: for cable, transistor, textures and the demo. Everything else, every category with its settings and
the chest X-rays' command included, is written out in nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "nsa_no_constraints", "synthesis.background": "none"})
