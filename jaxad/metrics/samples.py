"""Samples of several images, such as the views of one part: a sample is as anomalous as the worst of its images."""

from collections.abc import Sequence

import numpy as np


def by_sample(groups: Sequence[str], labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels and scores of samples from those of their n images.

    Args:
      groups: The sample that each image belongs to; an image with "" is a sample of its own.
      labels: int (n,), 0 good, 1 defective. A sample is defective if any of its images is.
      scores: (n,), higher is more anomalous. A sample has the highest of its images.

    Returns:
      Labels and scores (m,), in the order of the samples' first images.
    """
    numbers: dict[str | int, int] = {}
    sample = np.array([numbers.setdefault(group or i, len(numbers)) for i, group in enumerate(groups)], np.int64)
    of_samples = np.zeros(len(numbers), np.asarray(labels).dtype), np.full(len(numbers), -np.inf)
    for made, values in zip(of_samples, (labels, scores), strict=True):
        np.maximum.at(made, sample, values)
    return of_samples
