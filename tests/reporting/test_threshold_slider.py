"""The slider of report.html: its thresholds by hand, and the page in a browser in which a test moves it."""

import json
import re
import shutil

import numpy as np
import pytest

from jaxad import metrics
from jaxad.reporting import html_report
from jaxad.reporting.threshold_slider import candidates, section

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
GOOD, CRACK, HOLE = [0.1, 0.2, 0.5], [0.4, 0.8], [0.9, 0.3]


def scored():
    """Three good images and two of each defect, with maps whose peak is the score."""
    scores = np.float32(GOOD + CRACK + HOLE)
    maps = np.zeros((7, 48, 64), np.float32)
    maps[:, 10:20, 12:30] = scores[:, None, None]
    truth = np.zeros(maps.shape, np.uint8)
    truth[3:, 10:22, 12:30] = 1
    return metrics.TestScores(
        ids=[str(number) for number in range(7)],
        labels=np.array([0] * 3 + [1] * 4),
        defects=["good"] * 3 + ["crack"] * 2 + ["</script><b>"] * 2,
        images=np.random.default_rng(0).integers(80, 120, (*maps.shape, 3), np.uint8),
        masks=list(truth),
        image_scores=scores,
        maps=maps,
    )


def test_thresholds_lie_between_the_scores_and_the_fitted_one_is_among_them():
    found, start = candidates(np.float32([1, 3, 3, 7]), None)
    assert found == [-0.5, 2, 5, 8.5] and start == 2
    assert candidates(np.float32([1, 3, 3, 7]), 4.5) == ([-0.5, 2, 4.5, 8.5], 2)
    assert candidates(np.float32([1, 3, 3, 7]), 3.0) == ([-0.5, 2, 3, 8.5], 2)  # a score must lie above it
    assert candidates(np.float32([1, 3, 3, 7]), 50.0) == ([-0.5, 2, 5, 50], 3)
    assert candidates(np.float32([1, 3, 3, 7]), -9.0) == ([-9, 2, 5, 8.5], 0)
    for scores, fitted in (([2.0], None), ([0.0, 0.0], 0.5)):
        below, above = candidates(np.float32(scores), fitted)[0]
        assert below < scores[0] < above


def test_names_cannot_end_the_script():
    page = section(scored(), 0.6, [])
    [data] = re.findall(r"<script type=application/json id=decision-data>(.*?)</script>", page, flags=re.DOTALL)
    assert json.loads(data)["start"] == 6 - 1 and "</script><b>" not in page and "id=rate" not in page


def written(folder, fitted=0.6, pixel=0.35, unseen=(0.1, 0.2, 0.7)):
    scores = scored()
    results = metrics.evaluate(scores) | {
        "threshold": {"value": fitted, "false_alarm_rate": 0.0, "detection_rate": 0.5},
        "pixel_threshold": {
            "value": pixel, "seg_f1": 0.5, "precision": 0.5, "recall": 0.5, "false_alarm_rate": 1 / 3,
            "regions_per_good_image": 1 / 3,
        },
    }  # fmt: skip
    if fitted is None:
        results |= {"threshold": {"value": None, "reason": "none"}}
        results |= {"pixel_threshold": {"value": None, "seg_f1": None, "reason": "none"}}
    html_report.write_html(folder / "report.html", results=results, scores=scores, history=[], unseen=unseen)
    return folder / "report.html"


def test_without_a_script_the_page_shows_the_fitted_decisions(tmp_path):
    page = written(tmp_path).read_text()
    called = dict(re.findall(r"<figure data-score=([\d.]+) .*?<span class=call>([a-z ]+)</span>", page))
    assert {float(score): words for score, words in called.items()} == {
        float(np.float32(score)): "called defective" if score > 0.6 else "called good" for score in GOOD + CRACK + HOLE
    }
    assert "SegF1 of 50.00 %" in page and "regions above the threshold orange" in page
    page = written(tmp_path, fitted=None, unseen=()).read_text()
    assert "None was fitted" in page and "SegF1: n/a (none)" in page and "orange" not in page.split("<h2>Examples")[1]


@pytest.fixture
def page(tmp_path):
    """The report in a browser 375 pixels wide, in which nothing may be fetched or fail."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    wrong = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 375, "height": 800})
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        shown.goto(f"file://{written(tmp_path)}")
        yield shown
        browser.close()
    assert wrong == []


@pytest.mark.medium
def test_the_slider_moves_in_a_browser(page):
    def said():
        names = ("threshold-value", "alarms", "hits", "hits-share", "right", "kind-0", "kind-1", "rate")
        return [page.locator(f"#{name}").text_content() for name in names]

    def called():
        figures = page.locator("figure[data-score]").all()
        return {
            float(one.get_attribute("data-score")): (
                one.locator(".call").text_content(),
                "wrong" in (one.get_attribute("class") or ""),
            )
            for one in figures
        }

    def expected(threshold):
        rows = [(score, 0) for score in GOOD] + [(score, 1) for score in CRACK + HOLE]
        return {
            float(np.float32(score)): (
                f"called {'defective' if score > threshold else 'good'}",
                (score > threshold) != label,
            )
            for score, label in rows
        }

    slider = page.locator("#threshold")
    assert said() == ["0.6000 (fitted)", "0 of 3", "2 of 4", "50.0", "2 of 2", "1 of 2", "1 of 2", "0.5000"]
    assert called() == expected(0.6)
    slider.focus()
    for _ in range(2):
        slider.press("ArrowLeft")  # 0.45, then 0.35
    assert said()[1:] == ["1 of 3", "3 of 4", "75.0", "3 of 4", "1 of 2", "2 of 2", "0.5000"]
    assert called() == expected(0.35) and said()[0] == "0.3500"
    assert slider.get_attribute("aria-valuetext") == "threshold 0.3500"
    slider.press("End")
    assert said()[1:5] == ["0 of 3", "0 of 4", "0.0", "0 of 0"] and page.locator("#right-share").text_content() == "n/a"
    slider.press("Home")
    assert said()[1:5] == ["3 of 3", "4 of 4", "100.0", "4 of 7"] and said()[-1] == "n/a"
    page.locator("#fitted").click()
    assert said()[0] == "0.6000 (fitted)" and called() == expected(0.6)
    slider.fill("1")
    assert called() == expected(0.15)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
