"""Layers computed by oneDNN, the library that PyTorch computes with on CPU.

It is used where pip has installed it; XLA's own forms take up to five times as long for convolutions, and 5 to 50 times
for max pooling. `jaxad.runtime.foreign` calls it from compiled programs through its C interface, on images in XLA's
layout.
"""
