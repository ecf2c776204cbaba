"""Where an image is anomalous: dense patch features, receptive-field upsampling and GradCAM.

A patch detector scores every patch of a regular grid; the grid of scores becomes a map of the image's size by
receptive-field upsampling. A detector of whole images is localised by GradCAM.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxad.errors import UserError


def grid_size(size: tuple[int, int], *, patch: int, stride: int) -> tuple[int, int]:
    """How many patches stand below and beside each other; patch (i, j) begins at pixel (stride i, stride j).

    Patches of 32 at stride 4 make a grid of 57 x 57 on a 256 x 256 image (CutPaste, Appendix A.5).

    Args:
      size: Height and width of the image in pixels.
      patch: Side of the square patches in pixels.
      stride: Distance of neighbouring patches in pixels.

    Raises:
      UserError: The patch is larger than the image, a number is not positive, the stride is larger than the patch, or
        the stride does not divide what the patch leaves of a side: the last rows or columns would be in no patch.
    """
    if patch < 1 or stride < 1:
        raise UserError(f"patch and stride must be at least 1 pixel, not {patch} and {stride}")
    if patch > min(size):
        raise UserError(
            f"a patch of {patch} x {patch} pixels is larger than the image of {size[0]} x {size[1]}: "
            "choose a smaller patch or a larger image size"
        )
    if stride > patch:
        raise UserError(
            f"a stride of {stride} pixels leaves gaps between patches of {patch}: choose a stride of at most {patch}"
        )
    for side in size:
        if rest := (side - patch) % stride:
            raise UserError(
                f"a stride of {stride} does not divide {side} - {patch} = {side - patch}: patches of {patch} would "
                f"cover only {side - rest} of {side} pixels; choose a stride that divides {side - patch}"
            )
    return (size[0] - patch) // stride + 1, (size[1] - patch) // stride + 1


def dense_features(
    apply: Callable[[jax.Array], jax.Array], images: jax.Array, *, patch: int, stride: int, chunk: int
) -> jax.Array:
    """Features of all patches of the grid (CutPaste, Appendix A.5), computed `chunk` patches at a time.

    Only one chunk of patches and its activations exist at any time, and `apply` is compiled for one shape. The chunks
    are made equally large, so that few patches are computed twice to fill the last one.

    Args:
      apply: Maps patches (n, patch, patch, c) to features (n, ...), each patch on its own.
      images: (b, h, w, c)
      patch: Side of the square patches in pixels.
      stride: Distance of neighbouring patches in pixels.
      chunk: How many patches are computed together, at most, but one of every image.

    Returns:
      (b, gh, gw, ...), with the grid of ``grid_size``.

    Raises:
      UserError: See ``grid_size``; or `chunk` is not positive.
    """
    if chunk < 1:
        raise UserError(f"the number of patches computed together must be at least 1, not {chunk}")
    b, h, w, channels = images.shape
    grid = grid_size((h, w), patch=patch, stride=stride)
    places = math.prod(grid)
    chunks = math.ceil(places / max(1, chunk // b))
    length = math.ceil(places / chunks)
    row, column = np.unravel_index(np.minimum(np.arange(chunks * length), places - 1), grid)
    starts = np.stack([row * stride, column * stride], axis=-1).astype(np.int32)

    def cut(start: jax.Array) -> jax.Array:
        return lax.dynamic_slice(images, (0, *start, 0), (b, patch, patch, channels))

    # The same places of every image together: images that are spread over devices stay where they are.
    def compute(start: jax.Array) -> jax.Array:
        patches = jax.vmap(cut, out_axes=1)(start)
        features = apply(patches.reshape(b * length, *patches.shape[2:]))
        return features.reshape(b, length, *features.shape[1:])

    features = jnp.moveaxis(lax.map(compute, starts.reshape(chunks, length, 2)), 0, 1)
    return features.reshape(b, chunks * length, *features.shape[3:])[:, :places].reshape(b, *grid, *features.shape[3:])


def receptive_field_kernel(patch: int, *, deviation: float | None = None) -> np.ndarray:
    """The Gaussian by which a patch's score is spread over its pixels, along one axis (Liznerski et al., ICLR 2021).

    A patch of even size has no central pixel: the Gaussian is sampled at ``patch - 1`` points and its central value
    taken twice.

    Args:
      patch: Side of the patch in pixels.
      deviation: Standard deviation in pixels; None takes 10 for patches of 32 and larger and
        log10(0.45 patch + 1) + 0.25 for smaller ones.

    Returns:
      float64 (patch,), symmetric, of sum 1.

    Raises:
      UserError: The deviation is not positive.
    """
    if deviation is None:
        deviation = 10.0 if patch >= 32 else math.log10(0.45 * patch + 1) + 0.25
    if not deviation > 0:
        raise UserError(f"the standard deviation of the upsampling must be positive, not {deviation}")
    centre = (patch - 1) // 2
    distance = np.abs(np.arange(patch) - centre)
    if patch % 2 == 0:
        distance = np.minimum(distance, np.abs(np.arange(patch) - centre - 1))
    kernel = np.exp(-0.5 * (distance / deviation) ** 2)
    return kernel / kernel.sum()


def receptive_field_upsample(
    maps: jax.Array, *, patch: int, stride: int, size: tuple[int, int], deviation: float | None = None
) -> jax.Array:
    """Spreads the scores of a grid of patches over the image's pixels (CutPaste, Appendix A.5; Liznerski et al. 2021).

    A transposed convolution of the grid with the Gaussian kernel of the patch's size and the grid's stride. The kernel
    is separable, so it is two matrix products. Its weights sum to stride^2: a constant grid keeps its value wherever
    the patches overlap fully. Less than a patch from the border fewer patches see a pixel and its score falls: the
    paper's transposed convolution, kept as it is, because there also fewer patches speak for the score.

    Args:
      maps: (b, gh, gw), scores of the patches of ``grid_size(size, patch=patch, stride=stride)``.
      patch: Side of the patches in pixels.
      stride: Distance of neighbouring patches in pixels.
      size: Height and width of the image in pixels.
      deviation: Standard deviation of the Gaussian in pixels; None follows ``receptive_field_kernel``.

    Returns:
      (b, *size)

    Raises:
      UserError: See ``grid_size`` and ``receptive_field_kernel``.
      ValueError: The maps are not of the grid's size.
    """
    grid = grid_size(size, patch=patch, stride=stride)
    if maps.shape[1:] != grid:
        raise ValueError(f"maps of {maps.shape[1:]} do not fit the grid of {grid}")
    kernel = stride * receptive_field_kernel(patch, deviation=deviation)
    return _upsample(maps, *(_spreading(n, kernel, stride=stride) for n in grid))


def _upsample(maps: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Multiplies maps (b, gh, gw) by (h, gh) along the rows and by (w, gw) along the columns: (b, h, w)."""
    # Scores of single patches differ by less than the rounding of the reduced precision that accelerators default to.
    exact = lax.Precision.HIGHEST
    rows, columns = (matrix.astype(maps.dtype) for matrix in (rows, columns))
    maps = jnp.einsum("bhw,Ww->bhW", maps, columns, precision=exact)
    return jnp.einsum("Hh,bhW->bHW", rows, maps, precision=exact)


def _spreading(patches: int, kernel: np.ndarray, *, stride: int) -> np.ndarray:
    """The matrix (pixels, patches) whose column i holds the kernel from row stride * i on."""
    matrix = np.zeros((stride * (patches - 1) + len(kernel), patches))
    for i in range(patches):
        matrix[stride * i : stride * i + len(kernel), i] = kernel
    return matrix


def gaussian_blur(maps: jax.Array, *, sigma: float) -> jax.Array:
    """Blurs float32 (b, h, w) maps with a Gaussian of `sigma` pixels, cut at 4 sigma; borders are reflected."""
    radius = int(4 * sigma + 0.5)
    offsets = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = jnp.pad(maps, ((0, 0), (radius, radius), (radius, radius)), mode="symmetric")[..., None]
    for one_side in (kernel[:, None, None, None], kernel[None, :, None, None]):
        padded = jax.lax.conv_general_dilated(
            padded, one_side, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return padded[..., 0]


def resample_stage(
    stage: jax.Array,
    *,
    stride: int,
    first: tuple[float, float],
    onto: tuple[int, int],
    to_stride: int,
    to_first: tuple[float, float],
) -> jax.Array:
    """Features of a stage at the positions of another one.

    Between positions that are farther apart, features are interpolated linearly. Of positions that are closer together
    the new one takes a mean, weighted by a triangle that reaches to its neighbors, so that no position is left out.

    Args:
      stage: (b, h, w, c)
      stride: Pixels between its positions.
      first: Row and column of the pixel that its first position is centered on.
      onto: Rows and columns of the other stage.
      to_stride: Pixels between its positions.
      to_first: Row and column of its first one.

    Returns:
      (b, *onto, c)
    """
    axes = zip(stage.shape[1:3], onto, first, to_first, strict=True)
    rows, columns = (
        _resampling(cells, stride=stride, first=start, onto=count, to_stride=to_stride, to_first=to_start)
        for cells, count, start, to_start in axes
    )
    exact = lax.Precision.HIGHEST
    rows, columns = (matrix.astype(stage.dtype) for matrix in (rows, columns))
    return jnp.einsum(
        "Hh,bhWc->bHWc", rows, jnp.einsum("Ww,bhwc->bhWc", columns, stage, precision=exact), precision=exact
    )


def _resampling(cells: int, *, stride: int, first: float, onto: int, to_stride: int, to_first: float) -> np.ndarray:
    """The matrix (onto, cells) of `resample_stage` along an axis; each row has the sum 1."""
    here = first + stride * np.arange(cells)
    there = np.clip(to_first + to_stride * np.arange(onto), here[0], here[-1])
    matrix = np.maximum(0, 1 - np.abs(there[:, None] - here) / max(stride, to_stride))
    return matrix / matrix.sum(axis=1, keepdims=True)


def gradcam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """GradCAM (Selvaraju et al., ICCV 2017, equations 1 and 2): relu(sum_k alpha_k A^k), alpha_k the mean gradient.

    Args:
      activations: (b, h, w, c), a stage of the network.
      gradients: (b, h, w, c), of each image's score by its activations.

    Returns:
      (b, h, w), at least 0; larger where the stage speaks for a larger score.
    """
    alpha = gradients.mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((alpha * activations).sum(axis=-1))


def upsample_stage(maps: jax.Array, *, size: tuple[int, int], first: tuple[int, int] = (0, 0)) -> jax.Array:
    """Interpolates maps at the positions of a stage linearly to the input's size.

    Convolutions and poolings of stride 2 that pad by half their kernel centre cell i of a stage of stride s on pixel
    s i, so that is where it is laid: resizing by half pixels, which assumes s i + (s - 1) / 2, would shift the map of a
    stage of stride 32 by 15.5 pixels down and to the right. Before the first and past the last cell the value is held.

    Args:
      maps: (b, ceil(height / s), ceil(width / s)), of a stage whose stride s is a power of two.
      size: Height and width of the network's input in pixels.
      first: Row and column of the pixel on which the first cell is centred, where the network pads otherwise.

    Returns:
      (b, *size)

    Raises:
      ValueError: No stride makes maps of this size from the input.
    """
    stride = _stride(maps.shape[1:], size)
    axes = zip(maps.shape[1:], size, first, strict=True)
    matrices = (_interpolation(n, stride=stride, pixels=side, first=start) for n, side, start in axes)
    return _upsample(maps, *matrices)


def gradcam_maps(
    head: Callable[[jax.Array], jax.Array],
    activations: jax.Array,
    *,
    size: tuple[int, int],
    first: tuple[int, int] = (0, 0),
) -> jax.Array:
    """GradCAM of a score that is a function of one stage, as a map of the input's size (see ``upsample_stage``).

    Args:
      head: Maps the stage's activations (b, h, w, c) to one score per image (b,), each image on its own: the
        classifier's abnormal logit, say, or the Gaussian score of the pooled features.
      activations: (b, ceil(height / s), ceil(width / s), c), of a stage whose stride s is a power of two.
      size: Height and width of the network's input in pixels.
      first: See ``upsample_stage``.

    Returns:
      (b, *size), at least 0.

    Raises:
      UserError: The activations have no height and width, or only one position.
      ValueError: No stride makes activations of this size from the input.
    """
    if activations.ndim != 4 or math.prod(activations.shape[1:3]) == 1:
        raise UserError(
            "GradCAM needs a stage with several positions (b, h, w, channels), but this one is of shape "
            f"{activations.shape}: choose an earlier stage of the network or a larger input size"
        )
    gradients = jax.grad(lambda a: head(a).sum())(activations)
    return upsample_stage(gradcam(activations, gradients), size=size, first=first)


def _stride(cells: tuple[int, int], size: tuple[int, int]) -> int:
    """The power of two s of which ceil(size / s) is the number of cells; with several cells there is one at most."""
    for stride in (2**n for n in range(max(size).bit_length())):
        if all(math.ceil(side / stride) == n for side, n in zip(size, cells, strict=True)):
            return stride
    raise ValueError(f"no stride of a power of two makes {cells} cells of {size} pixels")


def _interpolation(cells: int, *, stride: int, pixels: int, first: int) -> np.ndarray:
    """The matrix (pixels, cells) of linear interpolation with cell i on pixel first + stride * i, constant outside."""
    position = np.clip((np.arange(pixels) - first) / stride, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))
