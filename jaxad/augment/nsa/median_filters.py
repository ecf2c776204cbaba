"""Medians of whole images on the device, by counting: majorities of masks, and the median over a disk.

The counterparts of ``majority`` and ``disk_median`` in `host_labels`, and equal to them. Every operation is elementwise
on shifted images; nothing is sorted or gathered, so a count over all neighbours is one kernel on CPU, GPU and TPU.
"""

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

RADIUS = 5
_ROWS, _COLUMNS = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
_DISK = np.argwhere(_ROWS**2 + _COLUMNS**2 <= RADIUS**2).tolist()  # 81 offsets into the padded image


def majority(mask: jax.Array, side: int) -> jax.Array:
    """Median of a mask over squares of an odd side, the border repeated outwards.

    Args:
      mask: (h, w) of 0 and 1, of any dtype.
      side: Side of the squares in pixels, at most 15.

    Returns:
      bool (h, w), whether more than half of a square is 1.
    """
    height, width = mask.shape
    padded = jnp.pad(mask.astype(jnp.uint8), side // 2, mode="edge")
    columns = _total(padded[row : row + height] for row in range(side))
    counts = _total(columns[:, column : column + width] for column in range(side))
    return counts > side * side // 2


def disk_median(values: jax.Array, *, highest: int) -> jax.Array:
    """Median over a disk of radius 5 (81 pixels), at every pixel whose disk lies inside the array.

    The answer is built from its highest bit down: a bit stays set where at least 41 of the 81 neighbours reach the
    number built so far.

    Args:
      values: (h + 10, w + 10), whole numbers from 0 to ``highest``, of any dtype.
      highest: Largest possible value, below 2**15.

    Returns:
      int16 (h, w).
    """
    height, width = (side - 2 * RADIUS for side in values.shape)
    values = values.astype(jnp.int16)

    def settle(median: jax.Array, bit: jax.Array) -> tuple[jax.Array, None]:
        candidate = median | bit
        reaches = (values[row : row + height, column : column + width] >= candidate for row, column in _DISK)
        # Narrower counts than values would have to be repacked on a CPU.
        counts = _total(reached.astype(jnp.int16) for reached in reaches)
        return jnp.where(counts > len(_DISK) // 2, candidate, median), None

    # A scan, because XLA fuses nothing into a loop: neither what the values are computed from, 81 times over, nor
    # floating point that follows and would halve the width of a CPU's vectors.
    bits = 1 << jnp.arange(highest.bit_length(), dtype=jnp.int16)
    median = jnp.zeros_like(values[:height, :width])
    return jax.lax.scan(settle, median, bits, reverse=True)[0]


def _total(images: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, images)
