"""jaxad: image anomaly detection from good images alone, in JAX.

config = jaxad.configs.load("nsa_logistic", "object")
detector = jaxad.train(config, images, "runs/mine")  # later: jaxad.load("runs/mine")
for prediction in detector.predict(new_images):  # paths, images of Pillow, or uint8 arrays (h, w, 3)
    print(prediction.score, prediction.defective, prediction.peak)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jaxad import errors

if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module of ``python -m``
    errors.end_on_interrupt("jaxad")  # before anything else is imported

__version__ = "0.1.0"
__all__ = ["Detector", "Prediction", "UserError", "configs", "load", "refit", "train"]

if TYPE_CHECKING:
    from jaxad import configs
    from jaxad.detector import Detector, Prediction, load
    from jaxad.errors import UserError
    from jaxad.training.api import train
    from jaxad.training.refit import refit
else:
    _HOMES = {
        "Detector": "jaxad.detector",
        "Prediction": "jaxad.detector",
        "UserError": "jaxad.errors",
        "load": "jaxad.detector",
        "refit": "jaxad.training.refit",
        "train": "jaxad.training.api",
    }

    def __getattr__(name: str) -> Any:
        # Lazily: importing the package must not start JAX.
        if name == "configs":
            return import_module("jaxad.configs")
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'jaxad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `jaxad.train` and `jaxad.refit` the functions: importing the modules would bind these to the names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in ("train", "refit") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
