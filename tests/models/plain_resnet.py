"""Residual networks in plain NumPy under torchvision's names and layouts, to compare the project's own with.

Written from He et al. (CVPR 2016) and torchvision's names alone: tensors are (out, in, h, w), maps (b, c, h, w).
"""

import numpy as np

EPSILON = 1e-5


def draw(rng: np.random.Generator, blocks: tuple[int, ...], *, bottleneck: bool = False, stem: int = 7) -> dict:
    """Random tensors of a network with a classifier of 10 classes, as its file has them."""
    made = {}

    def conv(name: str, out: int, given: int, size: int) -> None:
        kernel = rng.standard_normal((out, given, size, size), np.float32)
        made[f"{name}.weight"] = kernel * np.float32(2 / (given * size**2)) ** 0.5

    def norm(name: str, channels: int) -> None:
        made[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        made[f"{name}.bias"] = rng.normal(0, 0.3, channels)
        made[f"{name}.running_mean"] = rng.normal(0, 0.3, channels)
        made[f"{name}.running_var"] = rng.uniform(0.5, 2, channels)
        made[f"{name}.num_batches_tracked"] = np.array(12345)

    conv("conv1", 64, 3, stem)
    norm("bn1", 64)
    given = 64
    for layer, count in enumerate(blocks, 1):
        width = 32 * 2**layer
        out = 4 * width if bottleneck else width
        for block in range(count):
            at = f"layer{layer}.{block}"
            sizes = [(width, given, 1), (width, width, 3), (out, width, 1)] if bottleneck else None
            for n, shape in enumerate(sizes or [(width, given, 3), (width, width, 3)], 1):
                conv(f"{at}.conv{n}", *shape)
                norm(f"{at}.bn{n}", shape[0])
            if block == 0 and given != out:
                conv(f"{at}.downsample.0", out, given, 1)
                norm(f"{at}.downsample.1", out)
            given = out
    made["fc.weight"], made["fc.bias"] = rng.normal(size=(10, given)), np.zeros(10)
    return {name: tensor if tensor.dtype == np.int64 else tensor.astype(np.float32) for name, tensor in made.items()}


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Cross-correlation with zeros around, half the kernel wide."""
    size = kernel.shape[2]
    around = np.pad(x, [(0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2])
    h, w = (-(-side // stride) for side in x.shape[2:])
    total = 0
    for i in range(size):
        for j in range(size):
            part = around[:, :, i : i + stride * h : stride, j : j + stride * w : stride][:, :, :h, :w]
            total = total + np.tensordot(kernel[:, :, i, j], part, (1, 1))
    return total.swapaxes(0, 1)


def forward(tensors: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """Stages (b, h, w, c) of images (b, h, w, 3) in inference."""

    def conv_norm(x: np.ndarray, conv: str, norm: str, stride: int = 1) -> np.ndarray:
        x = convolve(x, tensors[f"{conv}.weight"].astype(np.float64), stride)
        weight, bias, mean, var = (
            tensors[f"{norm}.{name}"].astype(np.float64)[:, None, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + EPSILON) * weight + bias

    def pooled(x: np.ndarray) -> np.ndarray:
        around = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
        h, w = (-(-side // 2) for side in x.shape[2:])
        shifted = [around[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] for i in range(3) for j in range(3)]
        return np.max([part[:, :, :h, :w] for part in shifted], axis=0)

    def residual(x: np.ndarray, at: str, stride: int) -> np.ndarray:
        convolutions = 3 if f"{at}.conv3.weight" in tensors else 2
        y = x
        for n in range(1, convolutions + 1):
            # torchvision strides in the first 3x3 convolution of a block.
            y = conv_norm(y, f"{at}.conv{n}", f"{at}.bn{n}", stride if n == convolutions - 1 else 1)
            y = np.maximum(y, 0) if n < convolutions else y
        if f"{at}.downsample.0.weight" in tensors:
            x = conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
        return np.maximum(x + y, 0)

    small = tensors["conv1.weight"].shape[2] == 3
    x = np.maximum(conv_norm(images.transpose(0, 3, 1, 2), "conv1", "bn1", 1 if small else 2), 0)
    x = x if small else pooled(x)
    found = {"stem": x}
    for layer in range(1, 5):
        block = 0
        while f"layer{layer}.{block}.conv1.weight" in tensors:
            x = residual(x, f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1)
            block += 1
        found[f"layer{layer}"] = x
    return {name: stage.transpose(0, 2, 3, 1) for name, stage in found.items()}
