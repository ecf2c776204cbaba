"""CutPaste, binary on the union: Li et al., CVPR 2021, Table 5, column "Binary (Union)".

    python -m jaxad.train --config experiments/cutpaste_union.py
    python -m jaxad.train --config experiments/cutpaste_union.py:bottle --config.data.root=DIR

Normal images against CutPaste or CutPaste-Scar, each half of the time. Everything else is written out in
cutpaste_3way.py, whose overrides for Appendix A.3 hold here too. See docs/cutpaste.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("cutpaste_3way.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    return configs.load(f"{BASE}:{category}", {"experiment": "cutpaste_union", "proxy.task": "cutpaste_union"})
