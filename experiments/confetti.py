"""Confetti noise: Li et al., CVPR 2021, Table 4, column "Confetti".

    python -m jaxad.train --config experiments/confetti.py
    python -m jaxad.train --config experiments/confetti.py:bottle --config.data.root=DIR

Normal images against patches whose colour is shifted, by up to `proxy.confetti` of each channel, which the paper does
not give. Everything else is written out in cutpaste_3way.py, whose overrides for Appendix A.3 hold here too. See
docs/cutpaste.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("cutpaste_3way.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "confetti", "proxy.task": "confetti"})
