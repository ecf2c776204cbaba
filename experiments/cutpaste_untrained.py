"""CutPaste's density on an untrained network: Li et al., CVPR 2021, no row of the paper but the floor of its rows.

    python -m jaxad.train --config experiments/cutpaste_untrained.py
    python -m jaxad.train --config experiments/cutpaste_untrained.py:bottle --config.data.root=DIR

The features of a network with random weights, never trained. Everything else is written out in cutpaste_3way.py, whose
overrides for Appendix A.3 hold here too. See docs/cutpaste.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("cutpaste_3way.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(
        f"{BASE}:{category}", {"experiment": "cutpaste_untrained", "method": "cutpaste_untrained", "epochs": "0"}
    )
