"""PII, Poisson image interpolation, a baseline of NSA: Schlüter et al., ECCV 2022, Tables 1, 2, 3 and 8, column "PII".

    python -m jaxad.train --config experiments/pii.py
    python -m jaxad.train --config experiments/pii.py:bottle --config.data.root=DIR

FPI with Poisson blending, of mixed gradients for every category, where the factor weights the patch's gradients. Sizes,
number and constraints of the patches are NSA's. Everything else, every category with its settings and the chest X-rays'
command included, is written out in nsa_logistic.py. See docs/nsa.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")
CHANGES = {
    "experiment": "pii",
    "synthesis.resized": "false",
    "synthesis.moved": "false",
    "synthesis.blending": "mixed",
    "synthesis.factor": "(0.05, 0.95)",
    "label": "factor",
}


def get_config(category: str = "demo") -> ConfigDict:
    """The config of every category that nsa_logistic.py has; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", CHANGES)
