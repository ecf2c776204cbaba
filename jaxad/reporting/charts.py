"""Pictures of results: heatmap overlays, mask outlines, and the charts of the report.

Charts are drawn on `matplotlib.figure.Figure` objects, never through pyplot, so no window system is ever asked for.
"""

import io
import itertools
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxad import metrics
from jaxad.reporting.sample_grid import rgb

GOOD, DEFECTIVE, NEUTRAL = "#2b6cb0", "#d9541e", "#4a5568"
CHANGED = ("#2f855a", "#d69e2e", "#805ad5", "#718096")  # good images as a proxy task changes them
_BAND = 2**18  # pixels that are blended at a time
EMBEDDED = 200  # images of a kind in a t-SNE; its time grows faster than their number
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#a0aec0",
    "axes.labelcolor": "#2d3748",
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
    "axes.grid": True,
    "grid.color": "#edf2f7",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "jaxad",
    "figure.constrained_layout.use": True,
}


def logarithmic(low: float, high: float) -> bool:
    """Whether scores from `low` to `high` are drawn on a logarithmic scale.

    Squared distances under a density run over many orders of magnitude; probabilities, which are below 1, never do.
    """
    return bool(low >= 1 and high > 100 * low)


def _level(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if logarithmic(low, high):
        values, low, high = np.log(np.maximum(values, low)), np.log(low), np.log(high)
    if not high > low:  # good images whose maps are flat leave no scale: what exceeds them is the highest
        return (values > low).astype(np.float32)
    return np.clip((values - low).astype(np.float64) / (high - low), 0, 1).astype(np.float32)


def _coloured(level: np.ndarray) -> np.ndarray:
    """Levels (h, w) from 0 to 1 on the Turbo scale from blue to red: uint8 RGB."""
    return cv2.cvtColor(cv2.applyColorMap(np.uint8(np.round(255 * level)), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def heat(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Colours (h, w) values, blue at `low` and below to red at `high` and above: uint8 RGB."""
    return _coloured(_level(values, low, high))


def colour_bar() -> np.ndarray:
    """The colours of `heat` from the lowest to the highest: uint8 (12, 220, 3), RGB."""
    return _coloured(np.linspace(0, 1, 220)[None].repeat(12, 0))


def outline(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = (0, 230, 118)) -> np.ndarray:
    """Draws a line around, not over, what a mask marks.

    Args:
      image: uint8 (h, w, 3), RGB, or (h, w, 1), grey; not changed.
      mask: (h, w), non-zero inside.
      colour: RGB of the line, whose width grows with the image.

    Returns:
      uint8 (h, w, 3).
    """
    width = max(1, round(max(mask.shape) / 128))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    inside = np.uint8(mask != 0)
    drawn = rgb(image)
    drawn[cv2.dilate(inside, kernel) > inside] = colour
    return drawn


def overlay(
    image: np.ndarray, map: np.ndarray, *, low: float, high: float, mask: np.ndarray | None = None
) -> np.ndarray:
    """Lays a heatmap over the grey version of an image, the more opaque the higher.

    Args:
      image: uint8 (h, w, 3), RGB, or (h, w, 1), grey.
      map: (h, w), anomaly scores; where they are NaN the image was not judged and is drawn at half its brightness.
      low: Score drawn blue.
      high: Score drawn red.
      mask: (h, w), outlined in white where given.

    Returns:
      uint8 (h, w, 3).

    Raises:
      ValueError: Image and map differ in size.
    """
    if image.shape[:2] != map.shape:
        raise ValueError(f"the image is {image.shape[:2]}, its map {map.shape}")
    blended = np.empty((*map.shape, 3), np.uint8)
    rows = max(1, _BAND // map.shape[1])
    for top in range(0, len(map), rows):  # a large image is not held several times, as floats
        band = slice(top, top + rows)
        blended[band] = _blend(image[band], map[band], low, high)
    return blended if mask is None else outline(blended, mask, (255, 255, 255))


def _blend(image: np.ndarray, map: np.ndarray, low: float, high: float) -> np.ndarray:
    """Some rows of `overlay`."""
    grey = cv2.cvtColor(rgb(image), cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    outside = np.isnan(map)
    map = np.where(outside, low, map)
    opacity = _opacity(map, low, high)[..., None]
    blended = np.uint8(np.round((1 - opacity) * grey + opacity * heat(map, low=low, high=high)))
    blended[outside] = np.uint8(grey[outside] / 2)
    return blended


def _opacity(map: np.ndarray, low: float, high: float) -> np.ndarray:
    return 0.15 + 0.6 * np.sqrt(_level(map, low, high))


def heat_layer(map: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """What `overlay` lays over an image, uint8 (h, w, 4): RGB and alpha; arguments are those of `overlay`."""
    outside = np.isnan(map)
    map = np.where(outside, low, map)
    alpha = np.uint8(np.round(255 * _opacity(map, low, high)))[..., None]
    layer = np.concatenate([heat(map, low=low, high=high), alpha], axis=-1)
    layer[outside] = (0, 0, 0, 128)
    return layer


def colour_limits(maps: np.ndarray) -> tuple[float, float]:
    """Scores (low, high) for `overlay` that show a whole set of maps (n, h, w) on one scale.

    Half of all pixels are drawn in the lowest colour and the highest 0.5 % in the highest, so that one extreme image
    does not darken the others.
    """
    sample = maps.ravel()[:: max(1, maps.size // 2_000_000)]  # quantiles of 2 million pixels are exact enough
    low, high = np.quantile(sample, [0.5, 0.995])
    return float(low), float(high)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _axes(*, height: float = 3.1):
    figure = Figure(figsize=(5.2, height))
    return figure, figure.add_subplot()


def _log_axis(scores: np.ndarray) -> bool:
    return scores.min() > 0 and logarithmic(np.median(scores), scores.max())


def score_histogram(labels: np.ndarray, scores: np.ndarray, threshold: float | None) -> bytes:
    """SVG: how often good and defective images (n,) get which score, with the decision threshold if there is one."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        scores, tail = scores.astype(np.float64), _log_axis(scores)
        bins = np.exp(np.histogram_bin_edges(np.log(scores), 30)) if tail else np.histogram_bin_edges(scores, 30)
        for label, name, colour in ((0, "good", GOOD), (1, "defective", DEFECTIVE)):
            if (labels == label).any():
                axes.hist(
                    scores[labels == label],
                    bins,
                    histtype="stepfilled",
                    color=colour,
                    alpha=0.55,
                    edgecolor=colour,
                    label=f"{name} ({(labels == label).sum()})",
                )
        if threshold is not None:
            axes.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1, label="threshold")
        axes.set(xlabel="image score", ylabel="images", xscale="log" if tail else "linear")
        axes.legend()
        return _svg(figure)


def pixel_histogram(masks: Sequence[np.ndarray], maps: np.ndarray) -> bytes:
    """SVG: densities of the scores of good (0) and anomalous pixels (1); masks: n of (h, w), maps: (n, h, w)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        # The few highest stretch no axis.
        low, median, high = np.quantile(maps[:, ::2, ::2], [0, 0.5, 0.9999]).astype(np.float64)
        tail = logarithmic(median, high)
        if tail:
            edges = np.geomspace(max(low, 1), high, 81)
        else:
            edges = np.linspace(low, high, 81) if high > low else np.linspace(low - 0.5, low + 0.5, 81)
        marks = np.stack(masks)
        for mark, name, colour in ((0, "good", GOOD), (1, "anomalous", DEFECTIVE)):
            chosen = marks == mark
            if chosen.any():
                density = np.histogram(maps[chosen].clip(min=edges[0]), edges)[0] / chosen.sum()
                axes.stairs(density, edges, fill=True, color=colour, alpha=0.45, label=f"{name} pixels")
        axes.set(xlabel="pixel score", ylabel="share of the pixels of a kind", yscale="log")
        axes.set_xscale("log" if tail else "linear")
        axes.legend()
        return _svg(figure)


def score_strips(defects: Sequence[str], scores: np.ndarray, threshold: float | None) -> bytes:
    """SVG: one row of dots for each defect type, "good" on top; a bar marks the median."""
    kinds = sorted(set(defects), key=lambda kind: (kind != "good", kind))
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(height=max(1.6, 0.7 + 0.4 * len(kinds)))
        for row, kind in enumerate(kinds):
            own = scores[np.array(defects) == kind]
            colour = GOOD if kind == "good" else DEFECTIVE
            spread = np.random.default_rng(row).uniform(-0.22, 0.22, len(own))
            axes.scatter(own, row + spread, s=9, color=colour, alpha=0.55, linewidths=0)
            axes.vlines(np.median(own), row - 0.34, row + 0.34, color=colour, linewidth=2)
        if threshold is not None:
            axes.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1)
        axes.set(xlabel="image score", yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5))
        axes.set_xscale("log" if _log_axis(scores) else "linear")
        axes.grid(False, axis="y")
        return _svg(figure)


def _thin(x: np.ndarray, y: np.ndarray, *, points: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` points of a rising curve, evenly spaced along it."""
    length = np.concatenate([[0.0], np.cumsum(np.diff(x) + np.diff(y))])
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)).clip(0, len(x) - 1))
    return x[kept], y[kept]


def roc_chart(curves: dict[str, metrics.Thresholds]) -> bytes:
    """SVG: a ROC curve for each name, with its area in the legend."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(height=3.6)
        axes.plot([0, 1], [0, 1], color="#cbd5e0", linewidth=1, linestyle=":")
        for (name, thresholds), colour in zip(curves.items(), (GOOD, DEFECTIVE), strict=False):
            label = f"{name}: {100 * metrics.auroc(thresholds):.2f}"
            axes.plot(*_thin(*metrics.roc_curve(thresholds)), color=colour, label=label, clip_on=False)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1))
        axes.legend(title="AUROC in %", loc="lower right")
        return _svg(figure)


def pro_chart(thresholds: metrics.Thresholds, *, limit: float) -> bytes:
    """SVG: the per-region overlap up to the limit, the area that AU-PRO measures shaded."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(height=3.6)
        fpr, overlap = _thin(*metrics.pro_curve(thresholds, limit=limit))
        axes.fill_between(fpr, overlap, color=DEFECTIVE, alpha=0.12, linewidth=0)
        label = f"AU-PRO({limit:g}): {100 * metrics.aupro(thresholds, limit=limit):.2f} %"
        axes.plot(fpr, overlap, color=DEFECTIVE, label=label, clip_on=False)
        axes.set(xlabel="false positive rate of pixels", ylabel="per-region overlap", xlim=(0, limit), ylim=(0, 1))
        axes.legend(loc="lower right")
        return _svg(figure)


def tsne_chart(features: dict[str, np.ndarray]) -> bytes | None:
    """SVG: a t-SNE of features (n, d) by kind, "good" and "defective" in their colours (CutPaste, Figure 3).

    Of each kind up to `EMBEDDED` images are drawn, evenly chosen. None where there are too few for an embedding.
    """
    kinds = {name: rows[:: -(-len(rows) // EMBEDDED)] for name, rows in features.items() if len(rows)}
    points = np.concatenate(list(kinds.values())).astype(np.float64) if kinds else np.empty((0, 0))
    if len(points) < 5:
        return None
    from sklearn.manifold import TSNE  # takes half a second, which commands without this chart are spared

    # The usual perplexity of 30, but for the fewest images; all choices fixed, so a report is the same every time.
    embedding = TSNE(perplexity=min(30, (len(points) - 1) / 3), init="pca", random_state=0).fit_transform(points)
    others = (name for name in kinds if name not in ("good", "defective"))
    colours = {"good": GOOD, "defective": DEFECTIVE} | dict(zip(others, itertools.cycle(CHANGED), strict=False))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _axes(height=3.6)
        for (name, rows), end in zip(kinds.items(), np.cumsum([len(rows) for rows in kinds.values()]), strict=True):
            own = embedding[end - len(rows) : end]
            axes.scatter(*own.T, s=12, color=colours[name], alpha=0.7, linewidths=0, label=f"{name} ({len(rows)})")
        axes.set(xticks=[], yticks=[])
        figure.legend(loc="outside lower center", ncols=2)
        return _svg(figure)


def loss_chart(steps: np.ndarray, losses: np.ndarray) -> bytes:
    """SVG: the training loss over the steps (n,), smoothed over a twentieth of the run where there are many points."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        window = len(losses) // 20
        axes.plot(steps, losses, color=GOOD, alpha=0.35 if window > 1 else 1, linewidth=1)
        if window > 1:
            smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
            axes.plot(steps[window // 2 :][: len(smooth)], smooth, color=GOOD, linewidth=1.8)
        if losses.min() > 0 and losses.max() > 10 * losses.min():
            axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="training loss")
        return _svg(figure)


def synthetic_chart(steps: np.ndarray, image: np.ndarray, pixel: np.ndarray) -> bytes:
    """SVG: AUROC of synthetic defects in held-out good images, in [0, 1], over the steps (n,) of the training."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        for name, values, colour in (("images", image, GOOD), ("pixels", pixel, DEFECTIVE)):
            axes.plot(steps, 100 * values, color=colour, marker="o", markersize=3, label=name)
        axes.set(xlabel="step", ylabel="AUROC, %")
        axes.legend(loc="lower right")
        return _svg(figure)
