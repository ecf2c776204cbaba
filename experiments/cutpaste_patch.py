"""CutPaste (3-way) on patches: Li et al., CVPR 2021, Table 2, column "CutPaste (3-way)".

    python -m jaxad.train --config experiments/cutpaste_patch.py
    python -m jaxad.train --config experiments/cutpaste_patch.py:bottle --config.data.root=DIR

Trained on random crops of 64 pixels (Section 4.2; 32 with `--config.patch.crop=32`), scored on all patches of 32 pixels
at a stride of 4 (Appendix A.5). Everything else is written out in cutpaste_3way.py, whose overrides for Appendix A.3
hold here too. See docs/cutpaste.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs

BASE = Path(__file__).with_name("cutpaste_3way.py")
# Objects in the same position in every image, as `:object` is said to, have one density for each place (Appendix A.5).
ALIGNED = ("bottle", "cable", "capsule", "metal_nut", "pill", "toothbrush", "transistor", "zipper", "object")


def get_config(category: str = "demo") -> ConfigDict:
    """The config of a demo category or of any folder of categories; `demo` is the first demo category."""
    config = configs.load(f"{BASE}:{category}", {"experiment": "cutpaste_patch"})
    config.unlock()
    config.proxy.side = config.data.get_ref("size").identity()  # follows data.size: scars are as large as in an image

    config.patch = ConfigDict()
    config.patch.crop = 64
    config.patch.size = 32
    config.patch.stride = 4
    config.patch.chunk = 256  # patches computed together
    config.patch.per_location = category in ALIGNED

    del config.density.levels, config.density.per_location, config.score.level, config.score.gradcam
    return config
