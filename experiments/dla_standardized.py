"""DLA's network with a score of our own: no row of Yoa et al., IEEE Access 2021.

    python -m jaxad.train --config experiments/dla_standardized.py
    python -m jaxad.train --config experiments/dla_standardized.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/dla_standardized.py:object --config.data.root=MY_PARTS

The training is the paper's. The score is not: the squared differences of Equations 9 and 11 are high also where good
images differ, as at glints, and those of Equation 11 so small that their weight in Equation 12 does not matter. Here
each is divided by its variance over the good images (plus 1 % of the stage's mean variance) and averaged over the
channels, of the first two stages, without uncertainty, which saves the passes under dropout. All of this was chosen on
synthetic defects in held-out good images alone. Everything else is written out in dla.py. See docs/dla.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("dla.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    own = {"score.standardize": "true", "score.channels": "mean", "score.stages": "layer1,layer2"}
    own |= {"experiment": "dla_standardized", "score.uncertainty_weight": "0"}
    return configs.load(f"{BASE}:{category}", own)
