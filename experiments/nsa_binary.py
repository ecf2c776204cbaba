"""NSA (binary): Schlüter et al., ECCV 2022, Tables 1, 2, 3 and 8, column "NSA (binary)".

    python -m jaxad.train --config experiments/nsa_binary.py
    python -m jaxad.train --config experiments/nsa_binary.py:bottle --config.data.root=DIR

The label says where blending changed the image, and not how much. Everything else, every category with its settings and
the chest X-rays' command included, is written out in nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "nsa_binary", "label": "binary"})
