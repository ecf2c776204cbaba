"""The synthetic anomalies of NSA (Schlüter et al. 2022), on the device with jnp and on the host with OpenCV.

The names of the package are those of the device.
"""

from jaxad.runtime import lazy

__all__, __getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "settings": ("SETTINGS", "Synthesis"),
        "device": ("Defects", "Patch", "Synthetic", "random_synthesize", "sample_defects", "synthesize"),
        "views": ("random_view", "view"),
    },
)
