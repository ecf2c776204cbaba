"""Augmentations as pure functions of one image, vectorized by ``jax.vmap``: one package a paper.

A function without a key is deterministic. `sample_x` draws its parameters, and `random_x` does both.
"""

from jaxad.runtime import lazy

__all__, __getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "boxes": ("Box", "RotatedBox", "box_mask", "rotated_box_mask", "sample_box", "sample_rotated_box"),
        "color": ("Jitter", "color_jitter", "random_color_jitter", "sample_jitter"),
    },
)
