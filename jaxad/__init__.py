"""jaxad: image anomaly detection from good images alone, in JAX.

detector = jaxad.load("runs/nsa_logistic/cap/seed0")
for prediction in detector.predict(images):  # paths, images of Pillow, or uint8 arrays (h, w, 3)
    print(prediction.score, prediction.defective, prediction.peak)
"""

import sys

from jaxad import errors

if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module of ``python -m``
    errors.end_on_interrupt("jaxad.")  # before anything else is imported

from jaxad.runtime import xla_flags as xla_flags  # before JAX computes anything

__version__ = "0.1.0"


def __getattr__(name: str):
    # Lazily: importing the package must not start JAX.
    if name == "load":
        from jaxad.detector import load

        return load
    raise AttributeError(f"module 'jaxad' has no attribute {name!r}")
