"""How XLA compiles on CPU, settled when jaxad is imported: JAX reads the flags once, at its first computation.

XLA's CPU backend hands dots, convolutions and reductions to YNNPACK. What it is allowed to hand over is chosen by
release, since neither its numbers nor its speed are the same in all:

- jaxlib 0.10, the last for Python 3.11: nothing. Whatever YNNPACK takes, rows of small products whose squares are
  summed can be wrong (see `jaxad.runtime.devices.check_numbers`). What it adds faster than XLA,
  `jaxad.models.cpu.sums` adds fast.
- jaxlib 0.12: dots alone. Numbers are right, but by default the gradient of a convolution's kernel, itself a
  convolution with a kernel as large as the image, takes so long that a whole training step takes twice the time.

Other releases get no flag, since one that they do not know would stop the process.
"""

import importlib.metadata
import os

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_RELEASE = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])  # without importing it: workers need no JAX
_VALUES = {"0.10": "", "0.12": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
NEEDED = _RELEASE == "0.10"  # for right numbers, not for speed alone

if _RELEASE in _VALUES and FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={_VALUES[_RELEASE]}"
