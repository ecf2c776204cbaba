"""Augmentations as pure functions of one image, vectorized by ``jax.vmap``: one folder a paper."""
