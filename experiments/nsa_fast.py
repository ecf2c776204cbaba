"""NSA (logistic) in a fifth of its images: for a first detector on a CPU, not a row of the paper.

    python -m jaxad.train --config experiments/nsa_fast.py
    python -m jaxad.train --config experiments/nsa_fast.py:bottle --config.data.root=DIR
    python -m jaxad.train --config experiments/nsa_fast.py:object --config.data.root=MY_PARTS

Everything is as in nsa_logistic.py but for the length: a fifth of its epochs, in batches of at most 16 images. With the
paper's batches of 64 that is 0.8 of its steps; on the demo, whose batches are small already, a fifth.
docs/performance.md tells how long it takes; nsa_logistic.py is the paper's row.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("nsa_logistic.py")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category, one of MVTec AD, a chest X-ray's, `object` or `texture`."""
    config = configs.load(f"{BASE}:{category}", {"experiment": "nsa_fast"})
    config.epochs = round(config.epochs / 5)
    config.batch = min(config.batch, 16)
    return config
