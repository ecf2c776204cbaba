"""NSA (continuous): Schlüter et al., ECCV 2022, Tables 1, 2, 3 and 8, column "NSA (continuous)".

    python -m jaxad.train --config experiments/nsa_continuous.py
    python -m jaxad.train --config experiments/nsa_continuous.py:bottle --config.data.root=DIR

The label is the change in grey levels, learnt by the squared error of a rectified output, as the paper says. In the
authors' program four of the five runs have a sigmoid in the rectifier's place, `--config.label=continuous_sigmoid`.
Everything else, every category with its settings and the chest X-rays' command included, is written out in
nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "nsa_continuous", "label": "continuous"})
