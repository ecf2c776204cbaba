"""Every small product of jaxad, compiled, against NumPy in float64; ``python -m tests.products`` names the wrong ones.

jaxlib 0.10.2 computes some programs wrong for certain numbers of rows and inner sizes of 2 to 4 (jax-ml/jax#39103).
`PRODUCTS` holds whatever in jaxad multiplies, adds up or turns so few numbers for each of many rows: densities,
reductions, colors and geometry. A new one belongs here.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from jaxad.augment import boxes, color
from jaxad.augment.dla import views
from jaxad.augment.nsa import poisson
from jaxad.methods import dla
from jaxad.models import efficientnet, layers, siamese_loss
from jaxad.models.cpu import sums
from jaxad.runtime import devices
from jaxad.scoring import density, localization

ROWS = (32767, 32768, 32769, 36864, 40000, 45057)
SIZES = (2, 3, 4)
PUBLIC = "public case"


def _rows(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count + size).random((count, size), np.float32)


def _matrix(size: int) -> np.ndarray:
    return (np.random.default_rng(size).normal(0, 1, (size, size)) + 2 * np.eye(size)).astype(np.float32)


def _public(size: int) -> tuple[Callable, Callable]:
    matrix = _matrix(size)
    return lambda x: jax.vmap(lambda row: jnp.square(matrix @ row).sum())(x), lambda x: ((x @ matrix.T) ** 2).sum(1)


def _gaussian(size: int) -> tuple[Callable, Callable]:
    whitening, mean = np.tril(_matrix(size)), np.full(size, 0.3, np.float32)
    fitted = density.Gaussian(np.asarray(False), mean, whitening)
    return functools.partial(density.gaussian_score, fitted), lambda x: 0.5 * (((x - mean) @ whitening.T) ** 2).sum(1)


def _low_rank(size: int) -> tuple[Callable, Callable]:
    basis = np.linalg.qr(_matrix(size))[0].astype(np.float32)
    mean, roots, floor = np.full(size, 0.3, np.float32), np.arange(1, size + 1, dtype=np.float32), np.float32(3)
    fitted = density.LowRankGaussian(np.asarray(False), mean, basis[:-1], roots[:-1], floor)

    def expected(x):
        wide = basis[:-1].astype(np.float64)
        inside = (x - mean) @ wide.T
        outside = x - mean - inside @ wide
        return 0.5 * (((inside * roots[:-1]) ** 2).sum(1) + ((outside * floor) ** 2).sum(1))

    return functools.partial(density.gaussian_score, fitted), expected


def _kernel(size: int) -> tuple[Callable, Callable]:
    points, width = _rows(5, size), np.float32(0.4)
    fitted = density.KernelDensity(np.asarray(True), points, width)

    def expected(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        squares = (((x[:, None] - points) / width) ** 2).sum(2)
        return np.log(5) + size * (0.5 * np.log(2 * np.pi) + np.log(width)) - logsumexp(-0.5 * squares, axis=1)

    return functools.partial(density.kernel_score, fitted), expected


def _mixture(size: int, *, full: bool) -> tuple[Callable, Callable]:
    weights, means = np.log(np.float32([0.3, 0.7])), _rows(2, size)
    factors = np.stack([np.linalg.cholesky(_matrix(size) @ _matrix(size).T / n) for n in (1, 2)]).astype(np.float32)
    factors = factors if full else np.stack([np.diagonal(factor) for factor in factors])
    fitted = density.GaussianMixture(np.asarray(False), weights, means, factors)

    def expected(x):
        joint = []
        for weight, mean, factor in zip(weights, means, factors.astype(np.float64), strict=True):
            factor = factor if full else np.diag(factor)
            white = (x - mean) @ np.linalg.inv(factor).T
            scale = 0.5 * size * np.log(2 * np.pi) + np.log(np.diagonal(factor)).sum()
            joint.append(weight - scale - 0.5 * (white**2).sum(1))
        return -logsumexp(joint, axis=0)

    return functools.partial(density.mixture_score, fitted), expected


def _per_location(size: int) -> tuple[Callable, Callable]:
    """A Gaussian for every row's place, on three images."""
    whitening = np.tril(_matrix(size))

    def found(x):
        fitted = density.Gaussian(np.asarray(False), x, jnp.broadcast_to(whitening, (len(x), size, size)))
        return density.gaussian_score(fitted, jnp.stack([x + 0.1, 2 * x, x + 0.2]))

    def expected(x):
        differences = np.full_like(x, 0.1), x, np.full_like(x, 0.2)
        return np.stack([0.5 * ((d @ whitening.T.astype(np.float64)) ** 2).sum(1) for d in differences])

    return found, expected


def _normalized(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _batch_norm(size: int) -> tuple[Callable, Callable]:
    layer = layers.BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.zeros((1, size)), train=False)

    def found(x):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    return found, lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def _pointwise(size: int) -> tuple[Callable, Callable]:
    """A 1x1 convolution, whose outputs are squared and added up."""
    variables = {"params": {"kernel": _matrix(size)[None, None]}}
    layer = efficientnet.Pointwise(size)
    return lambda x: jnp.square(layer.apply(variables, x)).sum(-1), lambda x: ((x @ _matrix(size)) ** 2).sum(1)


def _conv(size: int) -> tuple[Callable, Callable]:
    def found(x):
        y = layers.conv(x.reshape(1, -1, 1, size), _matrix(size)[None, None], padding=(0, 0))
        return jnp.square(y).sum(-1).ravel()

    return found, lambda x: ((x @ _matrix(size)) ** 2).sum(1)


def _resampled(size: int) -> tuple[Callable, Callable]:
    """Rows and columns of an image with few rows, as crops and blurs are made; and the products of Poisson blending."""
    matrix = _matrix(size)

    def found(x):
        view = views.resample(x.reshape(-1, size, 1), jnp.eye(1, len(x)) + 0.5, jnp.abs(matrix))
        wide = poisson._product("ik,kcj->ijc", matrix, x.T[:, None])
        return jnp.concatenate([view.ravel(), jnp.square(wide).sum(0).ravel()])

    def expected(x):
        weights = 0.5 + np.eye(1, len(x))
        return np.concatenate([(weights @ x @ np.abs(matrix).T).ravel(), ((matrix @ x.T) ** 2).sum(0)])

    return found, expected


def _upsampled(size: int) -> tuple[Callable, Callable]:
    """Maps of few columns, as many images as rows."""
    matrix = _matrix(size)

    def found(x):
        return localization._upsample(x[:, None], np.ones((1, 1)), matrix)[:, 0]

    return found, lambda x: x @ matrix.T


def _gradcam(size: int) -> tuple[Callable, Callable]:
    def found(x):
        activations = x.reshape(1, -1, 1, size)
        return localization.gradcam(activations, activations**2).ravel()

    return found, lambda x: np.maximum((x**2).mean(0) @ x.T, 0)


def _turned(size: int) -> tuple[Callable, Callable]:
    """Whole numbers: where pixels of an image with `size` columns lie in a turned bar."""
    bar = boxes.RotatedBox(*(np.int32(n) for n in (3, 0, 5000, 2)), np.float32(0.02 * size))

    def found(x):
        rows, columns = jnp.arange(len(x))[:, None], jnp.arange(size)
        return jnp.stack([part.astype(jnp.float32) for part in boxes.rotated_pixels(bar, rows, columns)])

    def expected(x):
        rows, columns = np.arange(len(x))[:, None], np.arange(size)
        one, radians = 2**14, np.float32(np.deg2rad(np.float32(bar.angle)))
        cosine, sine = (int(np.round(one * f(radians))) for f in (np.cos, np.sin))
        extent = [(a + one - 1) >> 14 for a in (cosine * 5000 + sine * 2, sine * 5000 + cosine * 2)]
        down, right = 2 * (rows - 3) + 1 - extent[0], 2 * columns + 1 - extent[1]
        row, column = (cosine * down + sine * right + one * 5000) >> 15, (cosine * right - sine * down + one * 2) >> 15
        inside = (row >= 0) & (row < 5000) & (column >= 0) & (column < 2)
        return np.stack([row, column, inside])

    return found, expected


def _distance(size: int) -> tuple[Callable, Callable]:
    def found(x):
        maps = x.reshape(1, -1, 1, size)
        return jnp.square(dla.deviation(maps, 0.5 * maps[0], maps[0])).sum(-1).ravel()

    return found, lambda x: ((0.5 * x) ** 2 / (x + dla.FLOOR * x.mean())).sum(1)


def _jitter(size: int) -> tuple[Callable, Callable]:
    """All color operations, of an image with one column, whose colors are some of the row's numbers."""
    drawn = color.Jitter(np.float32([1.2, 0.7, 1.3]), np.float32(0.1), np.int32([2, 0, 3, 1]))
    planes = (slice(None), 0), (slice(None), size // 2), (slice(None), size - 1)

    def found(x):
        image = jnp.stack([x[plane] for plane in planes], -1)[:, None]
        return color.color_jitter(image, drawn)[:, 0]

    def expected(x):
        rgb = np.stack([x[plane] for plane in planes], -1)
        return _jittered(rgb, drawn)

    return found, expected


def _jittered(rgb: np.ndarray, drawn: color.Jitter) -> np.ndarray:
    """Saturation, brightness, hue, contrast of colors (n, 3), in float64."""

    def blend(x, reference, factor):
        return np.clip(factor * x + (1 - factor) * reference, 0, 1)

    luma, (brightness, contrast, saturation) = np.array(color.LUMA), drawn.factors.astype(np.float64)
    rgb = blend(rgb, (rgb @ luma)[:, None], saturation)
    rgb = blend(rgb, 0, brightness)
    value, chroma = rgb.max(1), rgb.max(1) - rgb.min(1)
    red, green, blue = rgb.T
    safe = np.where(chroma > 0, chroma, 1)
    sixths = [((green - blue) / safe) % 6, 2 + (blue - red) / safe, 4 + (red - green) / safe]
    hue = np.choose(rgb.argmax(1), sixths) + 6 * np.float64(drawn.hue)
    turned = [(hue + offset) % 6 for offset in (5, 3, 1)]
    rgb = np.stack([value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1) for k in turned], 1)
    return blend(rgb, (rgb @ luma).mean(), contrast)


def _plain(found: Callable, expected: Callable) -> Callable[[int], tuple[Callable, Callable]]:
    return lambda size: (found, expected)


PRODUCTS: dict[str, Callable[[int], tuple[Callable, Callable]]] = {
    PUBLIC: _public,
    "gaussian density": _gaussian,
    "low-rank Gaussian density": _low_rank,
    "kernel density": _kernel,
    "diagonal mixture": functools.partial(_mixture, full=False),
    "full mixture": functools.partial(_mixture, full=True),
    "Gaussian for every location": _per_location,
    "unit length": _plain(density.unit_length, _normalized),
    "unit vectors' similarity": _plain(
        lambda x: (siamese_loss.normalize(x) * siamese_loss.normalize(x**2)).sum(-1),
        lambda x: (_normalized(x) * _normalized(x**2)).sum(1),
    ),
    "sum by channel": _plain(lambda x: sums.channel_sum(jnp.square(x)), lambda x: (x**2).sum(0)),
    "norm": _plain(lambda x: sums.norm([x])[None], lambda x: np.sqrt((x**2).sum())[None]),
    "mean of channels": _plain(lambda x: jnp.abs(x - 0.5).mean(-1), lambda x: np.abs(x - 0.5).mean(1)),
    "variance of passes": _plain(lambda x: dla.dropout_variance(x.T), lambda x: x.var(1)),
    "batch normalization": _batch_norm,
    "1x1 convolution by product": _pointwise,
    "1x1 convolution": _conv,
    "resampling and blending": _resampled,
    "upsampling of maps": _upsampled,
    "GradCAM": _gradcam,
    "distance of maps": _distance,
    "turned bars": _turned,
    "color jitter": _jitter,
}


def wrong(names: Iterator[str] | None = None, jit: Callable = devices.jit) -> list[str]:
    """``name, rows x size: how many values`` for each product that is wrong by more than float32's rounding."""
    found = []
    for name in names or PRODUCTS:
        for size in SIZES:
            function, expected = PRODUCTS[name](size)
            compiled = jit(function)
            for count in ROWS:
                x = _rows(count, size)
                right = np.asarray(expected(x.astype(np.float64)))
                close = np.isclose(compiled(x), right, rtol=1e-4, atol=1e-4 * np.abs(right).mean())
                if not close.all():
                    found.append(f"{name}, {count} x {size}: {(~close).sum()} of {close.size} values")
    return found


if __name__ == "__main__":
    print("\n".join(wrong()))
