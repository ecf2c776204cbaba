"""The HTML report of one evaluated workdir: one file, with its pictures inside and nothing to fetch."""

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxad import metrics
from jaxad.config import recorded
from jaxad.data.geometry import Geometry
from jaxad.errors import UserError
from jaxad.metrics import IGNORED, TestScores
from jaxad.reporting import charts, published, threshold_slider
from jaxad.reporting.sample_grid import rgb
from jaxad.runtime import disk
from jaxad.scoring.region import Region
from jaxad.scoring.regions import region_mask

HEADINGS = {"auroc": "AUROC", "ap": "AP", "f1_max": "F1-max", "aupro_005": "AU-PRO(0.05)", "aupimo": "AUPIMO"}
_SPRO = "auspro_005"  # the limit of the paper; results.json has the others
HEADINGS[_SPRO] = "AU-sPRO(0.05)"
FOUND, TRUTH = (255, 140, 0), (0, 230, 118)  # outlines of regions and of the ground truth, RGB
TILE = 320  # pixels of the longer side of an example; larger images are reduced so that the report stays small

CSS = """
:root{--ink:#1a202c;--soft:#4a5568;--line:#e2e8f0;--pale:#f7fafc;--good:#2b6cb0;--bad:#c2410c}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.6rem 4rem;max-width:1180px;background:#fff;color:var(--ink);
 font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.75rem;margin:0;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .1rem}
p{margin:.3rem 0 .8rem;max-width:75ch}.soft{color:var(--soft)}
code,.id{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:1rem;margin:1.4rem 0 .6rem}
.card{background:var(--pale);border:1px solid var(--line);border-radius:10px;padding:.8rem 1.1rem}
.card b{display:block;font-size:2rem;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.card span{color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{padding:.4rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{color:var(--soft);font-weight:600;font-size:.88rem;border-bottom:2px solid #cbd5e0;white-space:nowrap}
.metrics td,.metrics th{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.metrics td:first-child,.metrics th:first-child{text-align:left}
.metrics .group{text-align:center}.metrics .first{border-left:1px solid var(--line)}
.metrics tbody tr:first-child{background:var(--pale);font-weight:650}
.facts th{width:11rem;color:var(--soft);font-weight:500}
sup{font-size:.7em}.na{color:var(--soft);font-weight:400}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:1.2rem 2rem}
figure{margin:0;break-inside:avoid}figcaption{font-weight:600;margin-bottom:.2rem}
.charts img,.samples{width:100%;height:auto;display:block}.samples{max-width:1000px}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(480px,100%),1fr));gap:1.2rem 1.6rem}
.tiles{display:grid;grid-template-columns:repeat(3,1fr);gap:4px}
.tiles img{width:100%;height:auto;display:block;border-radius:3px;outline:1px solid var(--line)}
.tiles div{display:flex;align-items:center;justify-content:center;text-align:center;background:var(--pale);
 border:1px dashed #cbd5e0;border-radius:3px;color:var(--soft);font-size:.82rem;padding:.4rem}
.examples figcaption{font-weight:400;font-size:.86rem;margin:.25rem 0 0;color:var(--soft)}
.examples .good{color:var(--good);font-weight:650}.examples .bad{color:var(--bad);font-weight:650}
.tiles.terms{grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}.examples.terms{grid-template-columns:1fr}
.tiles figure{display:flex;flex-direction:column}.tiles figure>div{flex:1}.tiles figcaption{margin:.1rem 0 .2rem}
.scale{display:flex;align-items:center;gap:.6rem;color:var(--soft);font-size:.86rem;font-variant-numeric:tabular-nums}
.scale span{min-width:8rem}.scale span+span{min-width:3rem;text-align:right}
.scale img{width:220px;height:12px;border-radius:2px}
pre{background:var(--pale);border:1px solid var(--line);border-radius:6px;padding:.8rem;overflow-x:auto;font-size:.8rem}
summary{cursor:pointer;color:var(--soft)}
@media print{body{padding:0;max-width:none;font-size:11px}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
 h2,h3{break-after:avoid}.examples{grid-template-columns:repeat(2,1fr)}.charts{grid-template-columns:repeat(2,1fr)}}
"""


def write_html(
    path: str | Path,
    *,
    results: dict,
    scores: TestScores,
    history: Sequence[dict],
    samples_png: str | Path | None = None,
    features: dict[str, np.ndarray] | None = None,
    terms: dict[str, dict[int, np.ndarray]] | None = None,
    unseen: Sequence[float] = (),
) -> None:
    """Writes a report of one evaluation as a single HTML file that loads nothing from elsewhere.

    Args:
      path: The file to write.
      results: What results.json holds: `metrics.evaluate`'s dict and the provenance; absent provenance is left out.
      scores: The test set with its scores and maps.
      history: Rows of metrics.jsonl, each with "step"; empty for a method without training.
      samples_png: A picture of synthetic training samples, or None.
      features: Features (n, d) of good, defective and changed images by kind, or None.
      terms: Maps (h, w) whose sum is the score map, by name and by index of the images of `pick_examples`, or None.
      unseen: Image scores of the good images that the threshold was fitted on; empty where there is none.

    Raises:
      UserError: The file cannot be written or the picture cannot be read.
    """
    experiment, config = results.get("experiment"), recorded(results.get("config", {}))
    experiment = experiment and published.name_of(experiment, config)
    name = " · ".join(str(part) for part in (experiment, results.get("category")) if part)
    try:
        body = [_summary(name, results), _metric_table(results), _charts(results, scores, history, features)]
        if samples_png is not None:
            source = _data_uri(Path(samples_png).read_bytes(), "png")
            body.append(
                "<h2>What the network is taught</h2><p class=soft>Synthetic training images. A dark map to the right "
                "of one is its label. A name above says how images were changed, whichever of these changes the "
                "training tells apart; a number behind it is the weight of this change in a sum, and a frame shows "
                f"where local changes lie.</p><img class=samples src='{source}' alt='synthetic samples'>"
            )
        if len(scores.ids):
            body.append(threshold_slider.section(scores, _value(results, "threshold"), unseen))
            body.append(_examples(scores, terms or {}, results))
            body.append(f"<script>{threshold_slider.SCRIPT}</script>")
        body.append(_provenance(results))
        disk.write_text(
            path,
            "<!doctype html><html lang=en><head><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width, initial-scale=1'>"
            f"<title>{html.escape(name)}: report</title><style>{CSS}{threshold_slider.CSS}</style></head>\n<body>"
            + "\n".join(body)
            + "</body></html>\n",
        )
    except OSError as error:
        place = error.filename or path
        raise UserError(f"{place}: {error.strerror}; the report could not be written", about=place) from error


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _picture(image: np.ndarray, alt: str) -> str:
    """An <img> of a uint8 RGB image, reduced to TILE pixels."""
    scale = TILE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    return f"<img src='{_data_uri(data, 'jpeg')}' alt='{html.escape(alt, quote=True)}'>"


def _value(results: dict, name: str) -> float | None:
    """A threshold in the results; None where none was fitted."""
    return results.get(name, {}).get("value")


def _percent(value: float | None, *, digits: int = 2) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def _summary(name: str, results: dict) -> str:
    counts, threshold = results["counts"], results.get("threshold", {})
    about = f"{counts['good']} good and {counts['defective']} defective test "
    about += "image" if counts["good"] + counts["defective"] == 1 else "images"
    about += f", {counts['with_mask']} of them with a ground-truth mask." if counts["defective"] else "."
    if "sample" in results:
        samples = f"{counts['good_samples']} good and {counts['defective_samples']} defective samples"
        about += f" The images are views of {samples}, and a sample has the score of its highest view."
    if threshold.get("value") is not None and "reason" not in threshold:
        rates = [
            f"{_percent(threshold[key], digits=1)} % of the {kind} images"
            for key, kind in (("false_alarm_rate", "good"), ("detection_rate", "defective"))
            if threshold.get(key) is not None
        ]
        about += f" The threshold {threshold['value']:.4g} calls {' and '.join(rates)} defective."
    elif threshold.get("reason"):
        about += f" Decision threshold: n/a ({html.escape(threshold['reason'])})."
    about += threshold_slider.on_pixels(results.get("pixel_threshold", {}))
    about += _without_labels(results.get("synthetic", {}))
    return f"<h1>{html.escape(name)}</h1><div class=cards>{_cards(results)}</div><p class=soft>{about}</p>"


def _cards(results: dict) -> str:
    """The metrics that come first; those of samples, and of MVTec LOCO AD, where there are any."""
    main = [
        ("image", "auroc", "image AUROC, %"),
        ("pixel", "auroc", "pixel AUROC, %"),
        ("pixel", "aupro", f"AU-PRO({results['pro_limit']:g}), %"),
    ]
    if "sample" in results:
        main.insert(0, ("sample", "auroc", "sample AUROC, %"))
    rows = [(results[level][name], label, results["reasons"].get(f"{level}.{name}")) for level, name, label in main]
    if "over_types" in results:
        rows.append((results["over_types"]["pixel"][_SPRO], f"{HEADINGS[_SPRO]}, %", "mean over defect types"))
    return "".join(
        f"<div class=card><b>{_percent(value)}</b><span>{label}"
        f"{f'<br><small>{html.escape(note)}</small>' if note else ''}</span></div>"
        for value, label, note in rows
    )


def _without_labels(synthetic: dict) -> str:
    """How synthetic defects in held-out good images are found, in a sentence; empty where the results do not say."""
    if not synthetic:
        return ""
    if "reason" in synthetic:
        found = f"n/a ({html.escape(synthetic['reason'])})"
    else:
        levels = ("image", "pixel")
        found = ", ".join(f"{level} AUROC {_percent(synthetic[f'synthetic_{level}_auroc'])} %" for level in levels)
    return f" Synthetic defects in held-out good images: {found}."


def _metric_table(results: dict) -> str:
    reasons = list(dict.fromkeys(results["reasons"].values()))
    counts, pixel_names = results["counts"], metrics.PIXEL_METRICS
    if _SPRO in results["pixel"]:  # takes the place of AU-PRO up to the same rate
        pixel_names = [_SPRO if name == "aupro_005" else name for name in pixel_names]
    columns = [("image", name) for name in metrics.IMAGE_METRICS] + [("pixel", name) for name in pixel_names]
    rows = [("all", counts["good"] + counts["defective"], results, "")]
    rows += [(kind, own["images"], own, f"by_defect.{kind}.") for kind, own in results["by_defect"].items()]

    def cell(values: dict, prefix: str, level: str, name: str) -> str:
        first = " class=first" if name == "auroc" else ""
        if values[level][name] is not None:
            return f"<td{first}>{_percent(values[level][name])}</td>"
        number = reasons.index(results["reasons"][f"{prefix}{level}.{name}"]) + 1
        return f"<td{first}><span class=na>n/a<sup>{number}</sup></span></td>"

    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{images}</td>{''.join(cell(values, prefix, *c) for c in columns)}</tr>"
        for name, images, values, prefix in rows
    )
    headings = HEADINGS | {"aupro": f"AU-PRO({results['pro_limit']:g})"}
    heads = "".join(f"<th{' class=first' if name == 'auroc' else ''}>{headings[name]}</th>" for _, name in columns)
    notes = "".join(f"<br><sup>{i}</sup> n/a: {html.escape(reason)}" for i, reason in enumerate(reasons, 1))
    return (
        "<h2>Metrics, in %</h2><div class=scroll><table class=metrics><thead><tr><th></th><th></th>"
        f"<th class='group first' colspan={len(metrics.IMAGE_METRICS)}>image level</th>"
        f"<th class='group first' colspan={len(pixel_names)}>pixel level</th></tr>"
        f"<tr><th>defect type</th><th>images</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        "<p class=soft><small>A defect type is measured against all good images. F1-max is the F1 at the threshold "
        "that is best for these labels. AU-PRO up to the false positive rate in brackets. AUPIMO at rates from "
        f"{metrics.PIMO_BOUNDS[0]:g} to {metrics.PIMO_BOUNDS[1]:g} in good images.{notes}</small></p>"
    )


def _charts(results: dict, scores: TestScores, history: Sequence[dict], features: dict | None) -> str:
    drawn = []
    threshold = _value(results, "threshold")
    if len(scores.ids):
        drawn.append(("Image scores", charts.score_histogram(scores.labels, scores.image_scores, threshold)))
        drawn.append(
            ("Image scores by defect type", charts.score_strips(scores.defects, scores.image_scores, threshold))
        )
    curves = {}
    everything = np.ones(len(scores.ids), bool)
    if results["image"]["auroc"] is not None:
        images = metrics.rank_images(scores.labels, scores.image_scores)
        curves["images"] = metrics.select(images, everything)
    if results["pixel"]["auroc"] is not None:
        known, masks = metrics.known_masks(scores)
        pixels = metrics.rank_pixels(masks, scores.maps[known])
        curves["pixels"] = metrics.select(pixels, everything[known])
        drawn.append(("Pixel scores", charts.pixel_histogram(masks, scores.maps[known])))
    if curves:
        drawn.append(("ROC curves", charts.roc_chart(curves)))
    if "pixels" in curves:
        drawn.append(("Per-region overlap", charts.pro_chart(curves["pixels"], limit=results["pro_limit"])))
    if features and (embedding := charts.tsne_chart(features)):
        drawn.append(("Features of the images (t-SNE)", embedding))
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row and math.isfinite(row["loss"])]
    if losses:
        drawn.append(("Training loss", charts.loss_chart(*np.array(losses).T)))
    names = ("step", "synthetic_image_auroc", "synthetic_pixel_auroc")
    if watched := [[row[name] for name in names] for row in history if names[1] in row]:
        drawn.append(("Synthetic defects while training", charts.synthetic_chart(*np.array(watched).T)))
    return (
        "<h2>Scores and curves</h2><div class=charts>"
        + "".join(
            f"<figure><figcaption>{title}</figcaption><img src='{_data_uri(svg, 'svg+xml')}' alt='{title}'></figure>"
            for title, svg in drawn
        )
        + "</div>"
    )


def pick_examples(scores: TestScores, *, count: int = 6) -> list[tuple[str, str, list[int]]]:
    """Chooses examples by their scores' order alone, each image once: (title, explanation, indices) for each group.

    False alarms and misses come first, `count` of each; then the median image of each defect type; then the clearest.
    """
    labels, image_scores, defects = scores.labels, scores.image_scores, np.array(scores.defects, dtype=str)
    order = np.argsort(image_scores, kind="stable")
    good, defective = [i for i in order if labels[i] == 0], [i for i in order if labels[i] == 1]
    medians = []
    for kind in ["good", *sorted(set(defects[labels == 1].tolist()))]:
        own = [i for i in (good if kind == "good" else defective) if kind == "good" or defects[i] == kind]
        medians += [own[len(own) // 2]] if own else []
    groups = [
        ("False alarms, or nearest to one", "Good images with the highest scores.", good[::-1][:count]),
        ("Misses, or nearest to one", "Defective images with the lowest scores.", defective[:count]),
        ("Typical", "The image with the median score of each kind.", medians),
        (
            "Best",
            "Defective images with the highest scores, good ones with the lowest.",
            defective[::-1][: count - 2] + good[:2],
        ),
    ]
    taken, picked = set(), []
    for title, explanation, indices in groups:
        fresh = [int(i) for i in indices if i not in taken]
        taken.update(fresh)
        if fresh:
            picked.append((title, explanation, fresh))
    return picked


def _examples(scores: TestScores, terms: dict[str, dict[int, np.ndarray]], results: dict) -> str:
    """Examples with heatmaps, which ``config.evaluate`` may smooth, and restrict to the region that is judged."""
    if not len(scores.ids):
        return ""
    settings = results.get("config", {}).get("evaluate", {})
    thresholds = _value(results, "threshold"), _value(results, "pixel_threshold")
    size, crop, sigma = scores.maps.shape[1:], settings.get("crop", 0), settings.get("heatmap_sigma", 0)
    region = Region(Geometry(size), (min(size) - crop) // 2 if crop else 0)
    limits = {"score": charts.colour_limits(_judged(scores, region))}
    limits |= {
        name: charts.colour_limits(region.inside(np.stack(list(maps.values())))) for name, maps in terms.items()
    }
    scale = "one logarithmic colour scale" if charts.logarithmic(*limits["score"]) else "one colour scale"
    about = f"heatmap. All heatmaps share {scale}"
    if terms:
        about = (
            "heatmap of the score, and of each of the terms whose sum it is. Each kind of heatmap has its own colour "
            "scale: the score's is set by all test images, a term's by those shown here"
        )
    if region.border:
        about += f". The central {crop} of {min(size)} pixels are judged, the darkened border is not"
    if sigma:
        about += f". Heatmaps are smoothed with a standard deviation of {sigma:g} pixels, scores are not"
    marked = thresholds[1] is not None
    lines = "outlines (ground truth green, regions above the threshold orange)" if marked else "ground truth outline"
    body = [f"<h2>Examples</h2><p class=soft>Image, {lines}, {about}.</p>"]
    for name, (low, high) in limits.items():
        start = f"<span>{html.escape(name)}</span><span>{low:.3g}</span>" if terms else f"{low:.3g}"
        note = " (logarithmic)" if terms and charts.logarithmic(low, high) else ""
        bar = _picture(charts.colour_bar(), "colour scale")
        body.append(f"<div class=scale>{start}{bar}{high:.3g}{note}</div>")
    for title, explanation, indices in pick_examples(scores):
        cards = "".join(_example(scores, terms, i, limits, region, sigma, thresholds) for i in indices)
        kind = "'examples terms'" if terms else "examples"
        body.append(f"<h3>{title}</h3><p class=soft>{explanation}</p><div class={kind}>{cards}</div>")
    return "\n".join(body)


def _judged(scores: TestScores, region: Region) -> np.ndarray:
    """The values of all maps where they are judged, in any order."""
    maps = region.inside(scores.maps)
    known = [np.zeros(maps.shape[1:], np.uint8) if mask is None else region.inside(mask) for mask in scores.masks]
    return maps[np.stack(known) != IGNORED]


def _example(
    scores: TestScores,
    terms: dict[str, dict[int, np.ndarray]],
    i: int,
    limits: dict[str, tuple[float, float]],
    region: Region,
    sigma: float,
    thresholds: tuple[float | None, float | None],
) -> str:
    image, mask, label, score = scores.images[i], scores.masks[i], scores.labels[i], scores.image_scores[i]
    filled = None if mask is None else mask == IGNORED
    mask = np.uint8(mask == 1) if mask is not None and (mask == 1).any() else None
    level = np.inf if thresholds[1] is None else thresholds[1]
    found = region_mask(_placed(region, scores.maps[i], filled), level)
    drawn = {FOUND: found, TRUTH: mask}
    if drawn := {color: marked for color, marked in drawn.items() if marked is not None and marked.any()}:
        outlined = image
        for color, marked in drawn.items():
            outlined = charts.outline(outlined, marked, color)
        truth = _picture(outlined, "ground truth outline" if TRUTH in drawn else "outline of the regions")
    else:
        truth = f"<div>{'good: nothing to outline' if label == 0 else 'no ground-truth mask'}</div>"
    others = scores.image_scores[scores.labels != label]
    kind, other = ("good", "defective") if label == 0 else ("bad", "good")
    rank = f", above {(others < score).sum()} of {len(others)} {other}" if len(others) else ""
    caption = (
        f"<span class=id>{html.escape(scores.ids[i])}</span> · <span class={kind}>"
        f"{html.escape(scores.defects[i])}</span> · score {score:.4g}{rank}"
        f"{threshold_slider.caption(score, thresholds[0])}"
    )
    tiles = {"image": _picture(rgb(image), "image"), "ground truth" if thresholds[1] is None else "outlines": truth}
    for name, map in {"score": scores.maps[i], **{name: maps[i] for name, maps in terms.items()}}.items():
        low, high = limits[name]
        alt = "heatmap" if name == "score" else f"heatmap of the {name}"
        map = _placed(region, map, filled, sigma=sigma)
        tiles[name] = _picture(charts.overlay(image, map, low=low, high=high, mask=mask), alt)
    if terms:  # only then a heatmap can be taken for another one
        tiles = {k: f"<figure>{tile}<figcaption>{html.escape(k)}</figcaption></figure>" for k, tile in tiles.items()}
    classes = "'tiles terms'" if terms else "tiles"
    data = f"data-score={float(score)!r} data-label={label}"
    shown = f"<div class={classes}>{''.join(tiles.values())}</div><figcaption>{caption}</figcaption>"
    return f"<figure {data}>{shown}</figure>"


def _placed(region: Region, map: np.ndarray, filled: np.ndarray | None, *, sigma: float = 0.0) -> np.ndarray:
    """A map as it is shown: NaN where it is not judged, or where there is no image."""
    map = region.map_at(map, map.shape, sigma=sigma)
    return map if filled is None else np.where(filled, np.float32(np.nan), map)


def _provenance(results: dict) -> str:
    seconds = {name: value for name, value in (results.get("wall_time_s") or {}).items() if value is not None}
    facts = {
        "seed": results.get("seed"),
        "command": results.get("command"),
        "commit": results.get("commit"),
        "commit of the evaluation": (results.get("evaluated") or {}).get("commit"),
        "device": results.get("device"),
        "date": results.get("date"),
        "wall time": ", ".join(f"{name} {value:,.0f} s" for name, value in seconds.items()) or None,
        "versions": ", ".join(f"{k} {v}" for k, v in (results.get("versions") or {}).items() if v is not None) or None,
    }
    rows = ""
    for name, value in facts.items():
        if value is not None:
            tag = "code" if name.startswith("com") else "span"
            rows += f"<tr><th>{name}</th><td><{tag}>{html.escape(str(value))}</{tag}></td></tr>"
    config = html.escape(json.dumps(results.get("config", {}), indent=2))
    return (
        f"<h2>Provenance</h2><table class=facts><tbody>{rows}</tbody></table>"
        f"<details><summary>config</summary><pre>{config}</pre></details>"
    )
