"""NSA's network in PyTorch, as `jaxad.benchmark` times it beside jaxad's where PyTorch is installed; it learns nothing.

It is written as a user of PyTorch would: channels-last, and with autocast where jaxad computes in bfloat16.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable

import numpy as np


def installed() -> bool:
    """Whether there is a PyTorch to compare with."""
    return importlib.util.find_spec("torch") is not None


def _branch(nn, first, outputs: int):
    """A residual branch, by its first convolution."""
    second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), second, nn.BatchNorm2d(outputs))


def _block(nn, inputs: int, outputs: int, stride: int):
    """The residual branch of ResNet-18's block, and its shortcut."""
    branch = _branch(nn, nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), outputs)
    if stride == 1 and inputs == outputs:
        return branch, nn.Identity()
    return branch, nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _up_block(nn, inputs: int, outputs: int):
    """The residual branch of the decoder's block, and its shortcut."""
    branch = _branch(nn, nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1, bias=False), outputs)
    shortcut = nn.ConvTranspose2d(inputs, outputs, 1, 2, output_padding=1, bias=False)
    return branch, nn.Sequential(shortcut, nn.BatchNorm2d(outputs))


def _network():
    """`jaxad.models.encoder_decoder.EncoderDecoder` with a ResNet-18."""
    from torch import nn

    class Sum(nn.Module):
        def __init__(self, branch, shortcut):
            super().__init__()
            self.branch, self.shortcut = branch, shortcut

        def forward(self, x):
            return nn.functional.relu(self.branch(x) + self.shortcut(x), inplace=True)

    widths = (64, 64, 128, 256, 512)
    blocks = [
        Sum(*_block(nn, inputs, outputs, stride))
        for before, outputs in itertools.pairwise(widths)
        for inputs, stride in ((before, 1 if before == outputs else 2), (outputs, 1))
    ]
    squeezes = [layer for inputs, outputs in ((512, 256), (256, 128))
                for layer in (nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU(inplace=True))]  # fmt: skip
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        *(*blocks, *squeezes, *(Sum(*_up_block(nn, *pair)) for pair in ((128, 64), (64, 32), (32, 16)))),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.ConvTranspose2d(16, 1, 7, 2, 3, output_padding=1, bias=False),
    )


def calls(*, batch: int, size: int, scored: int, scored_batch: int, dtype: str) -> dict[str, Callable[[], None]]:
    """What PyTorch is timed with.

    Args:
      batch: Images of a training step.
      size: Side of these in pixels.
      scored: Side of images that are scored.
      scored_batch: How many of these are scored at once.
      dtype: "float32", or "bfloat16" for autocast.

    Returns:
      ``training step``, with Adam and the binary cross-entropy, and ``inference``, each a call for so many images.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = _network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    random = np.random.default_rng(0)

    def images(count: int, side: int) -> "torch.Tensor":
        made = torch.from_numpy(random.standard_normal((count, 3, side, side), np.float32))
        return made.contiguous(memory_format=torch.channels_last)

    given, labels = images(batch, size), torch.from_numpy(random.random((batch, 1, size, size), np.float32))
    seen = images(scored_batch, scored)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def train() -> None:
        network.train()
        optimizer.zero_grad()
        with autocast:
            logits = network(given)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
        optimizer.step()

    def infer() -> None:
        network.eval()
        with torch.inference_mode(), autocast:
            torch.sigmoid(network(seen).float())

    return {"training step": train, "inference": infer}
