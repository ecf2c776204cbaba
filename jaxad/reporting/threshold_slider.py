"""The part of report.html in which a threshold is moved: what it calls defective, and how often it is right.

One step of the slider is one image that is called otherwise. The script is in the page and fetches nothing. Without
it, as in print, the page shows the decisions by the fitted threshold.
"""

import html
import json
from collections.abc import Sequence

import numpy as np

from jaxad.metrics import TestScores

CSS = """
.slider{display:flex;flex-wrap:wrap;align-items:center;gap:.5rem 1rem;margin:.6rem 0}
.slider input{flex:1 1 260px;min-width:0;height:1.8rem;accent-color:var(--good)}
.slider output{font-weight:650;font-variant-numeric:tabular-nums;min-width:6.5rem}
.slider button{font:inherit;padding:.2rem .8rem;border:1px solid var(--line);border-radius:6px;background:var(--pale);
 cursor:pointer}
.decisions{width:auto;min-width:min(520px,100%)}.metrics.decisions td:first-child{white-space:normal}
.metrics.decisions tbody tr:first-child{background:none;font-weight:400}
.call{font-weight:650;white-space:nowrap}
.wrong .call{color:#fff;background:var(--bad);border-radius:3px;padding:0 .3rem}
.wrong .tiles{outline:3px solid var(--bad);outline-offset:1px}
"""
SCRIPT = """
(function () {
  var held = JSON.parse(document.getElementById('decision-data').textContent);
  var slider = document.getElementById('threshold');
  function above(scores, threshold) { return scores.filter(function (s) { return s > threshold; }).length; }
  function percent(part, whole) { return whole ? (100 * part / whole).toFixed(1) : 'n/a'; }
  function put(id, text) { document.getElementById(id).textContent = text; }
  function counts(part, whole) { return part + ' of ' + whole; }
  function show() {
    var threshold = held.thresholds[+slider.value], hits = 0, defective = 0;
    var alarms = above(held.good, threshold);
    var words = threshold.toPrecision(4) + (+slider.value === held.start && held.fitted ? ' (fitted)' : '');
    put('threshold-value', words);
    slider.setAttribute('aria-valuetext', 'threshold ' + words);
    held.kinds.forEach(function (kind, number) {
      var found = above(kind.scores, threshold);
      hits += found;
      defective += kind.scores.length;
      put('kind-' + number, counts(found, kind.scores.length));
      put('kind-share-' + number, percent(found, kind.scores.length));
    });
    put('alarms', counts(alarms, held.good.length));
    put('alarms-share', percent(alarms, held.good.length));
    put('hits', counts(hits, defective));
    put('hits-share', percent(hits, defective));
    put('right', counts(hits, hits + alarms));
    put('right-share', percent(hits, hits + alarms));
    if (held.unseen.length) {
      var rate = (above(held.unseen, threshold) + 1) / (held.unseen.length + 1);
      put('rate', rate < 1 ? (Math.ceil(rate * 1e4 - 1e-6) / 1e4).toFixed(4) : 'n/a');  // rounded down it is less
    }
    document.querySelectorAll('figure[data-score]').forEach(function (figure) {
      var called = +figure.dataset.score > threshold;
      figure.querySelector('.call').textContent = called ? 'called defective' : 'called good';
      figure.classList.toggle('wrong', called !== (figure.dataset.label === '1'));
    });
  }
  slider.addEventListener('input', show);
  document.getElementById('fitted').addEventListener('click', function () { slider.value = held.start; show(); });
  show();
})();
"""


def candidates(scores: np.ndarray, fitted: float | None) -> tuple[list[float], int]:
    """Thresholds that differ in what they call defective, in ascending order, and the number of the first to show.

    One lies below all scores, one above, and one between any two neighbors. The fitted one takes the place of that
    which decides alike; without it the middle one comes first.
    """
    levels = np.unique(scores.astype(np.float64))
    distance = (levels[-1] - levels[0]) / max(len(levels) - 1, 1) or abs(levels[0]) or 1.0
    found = [levels[0] - distance / 2, *((levels[1:] + levels[:-1]) / 2), levels[-1] + distance / 2]
    if fitted is None:
        return [float(one) for one in found], len(found) // 2
    start = int(np.searchsorted(levels, fitted, "right"))
    found[start] = fitted
    return [float(one) for one in found], start


def section(scores: TestScores, fitted: float | None, unseen: Sequence[float]) -> str:
    """The section, of a test set with at least one image.

    Args:
      scores: The test set.
      fitted: The fitted threshold, None where there is none.
      unseen: Image scores of the good images that it was fitted on.
    """
    thresholds, start = candidates(scores.image_scores, fitted)
    kinds = sorted({kind for kind, label in zip(scores.defects, scores.labels, strict=True) if label})
    defects = np.array(scores.defects, dtype=str)
    of = {kind: (defects == kind) & (scores.labels == 1) for kind in kinds}
    held = {
        "thresholds": thresholds,
        "start": start,
        "fitted": fitted is not None,
        "good": scores.image_scores[scores.labels == 0].tolist(),
        "kinds": [{"scores": scores.image_scores[chosen].tolist()} for chosen in of.values()],
        "unseen": list(unseen),
    }
    data = json.dumps(held).replace("<", "\\u003c")
    rows = [("good images called defective: false alarms", "alarms", "alarms-share")]
    rows += [("defective images called defective: recall", "hits", "hits-share")]
    several = len(kinds) > 1
    rows += [(f"· {kind}", f"kind-{number}", f"kind-share-{number}") for number, kind in enumerate(kinds)]
    rows += [("defective among those called defective: precision", "right", "right-share")]
    body = "".join(
        f"<tr{'' if several or not name.startswith('·') else ' hidden'}><td>{html.escape(name)}</td>"
        f"<td id={count}></td><td id={share}></td></tr>"
        for name, count, share in rows
    )
    about = "It starts at the fitted one." if fitted is not None else "None was fitted; it starts in the middle."
    if unseen:
        about += (
            f" By the {len(unseen)} good images that the threshold was fitted on, this one has a false-alarm rate of "
            "<b id=rate></b>, as jaxad.predict --false-alarm-rate takes it."
        )
    return (
        "<h2>The decision</h2><p class=soft>Move the threshold, with the arrow keys too: a step changes one decision. "
        f"{about} The table counts test images, and a threshold that is chosen by it has seen their labels: "
        "its figures hold for no other images. Examples below that are called wrongly have a frame.</p>"
        "<div class=slider><label for=threshold>threshold</label>"
        f"<input type=range id=threshold min=0 max={len(thresholds) - 1} step=1 value={start}>"
        "<output id=threshold-value for=threshold></output>"
        "<button type=button id=fitted>back to the start</button></div>"
        "<div class=scroll><table class='metrics decisions'><thead><tr><th></th><th>images</th><th>%</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
        f"<script type=application/json id=decision-data>{data}</script>"
    )


def caption(score: float, fitted: float | None) -> str:
    """What an example's caption says of the decision; the script changes it."""
    words = "" if fitted is None else "called defective" if score > fitted else "called good"
    return f" · <span class=call>{words}</span>"


def on_pixels(found: dict) -> str:
    """How the threshold for pixels does, in sentences; empty where the results do not say."""
    if not found:
        return ""
    if found["value"] is None:
        return f" Threshold for pixels and SegF1: n/a ({html.escape(found['reason'])})."
    told = f" The threshold for pixels {found['value']:.4g}"
    if found["false_alarm_rate"] is not None:
        told += f" marks regions in {100 * found['false_alarm_rate']:.1f} % of the good images"
        told += f", {found['regions_per_good_image']:.2g} in one on average,"
    if found["seg_f1"] is None:
        return f"{told} has no SegF1 ({html.escape(found['reason'])})."
    precision = "n/a" if found["precision"] is None else f"{100 * found['precision']:.2f} %"
    rates = f"precision {precision}, recall {100 * found['recall']:.2f} %"
    return f"{told} has a SegF1 of {100 * found['seg_f1']:.2f} % ({rates})."
