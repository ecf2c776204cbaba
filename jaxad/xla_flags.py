"""How XLA compiles on CPU, settled when jaxad is imported: JAX reads the flags once, at its first computation.

XLA's CPU backend hands dots, convolutions and reductions to YNNPACK. In jaxlib 0.10, the last for Python 3.11, this
gives wrong rows for small products whose squares are summed (see `jaxad.parallel.check_numbers`), whichever of them it
takes; 0.11 and 0.12 are right. There nothing is handed over. What YNNPACK adds faster than XLA, `jaxad.models.sums`
adds fast too. Other releases get no flag, since an unknown one would stop the process.
"""

import importlib.metadata
import os

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
NEEDED = importlib.metadata.version("jaxlib").startswith("0.10.")  # without importing it: workers need no JAX

if NEEDED and FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}="
