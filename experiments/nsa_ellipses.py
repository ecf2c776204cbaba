"""NSA (logistic) with patches that are no rectangles: Schlüter et al., ECCV 2022, Table 7, column D.

    python -m jaxad.train --config experiments/nsa_ellipses.py
    python -m jaxad.train --config experiments/nsa_ellipses.py:bottle --config.data.root=DIR

Of every patch only the union of five random ellipses is blended. This trains for 240 epochs more than NSA, as in the
authors' program; the demo, which lasts minutes, does not. Everything else, every category with its settings and the
chest X-rays' command included, is written out in nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")
MORE_EPOCHS = 240


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    base = configs.load(f"{BASE}:{category}", {"experiment": "nsa_ellipses", "synthesis.shape": "ellipses"})
    more = 0 if base.data.source == "demo" else MORE_EPOCHS
    return configs.override(base, {"epochs": str(base.epochs + more)})
