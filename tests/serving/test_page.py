"""The page in a browser: an image is dropped, the sliders are moved, and the session is taken along."""

import base64
import csv
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxad import detector
from tests.parts import HEIGHT, WIDTH, part
from tests.serving.running import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
pytestmark = pytest.mark.slow

DROP = """
([name, data]) => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), carried = new DataTransfer();
  carried.items.add(new File([bytes], name));
  for (const kind of ["dragover", "drop"]) {
    document.querySelector("#drop").dispatchEvent(
      new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
  }
}
"""


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, served):
    """Opens the page at a width; nothing may fail, or be fetched from elsewhere."""
    wrong, pages, home = [], [], f"http://127.0.0.1:{served.port}/"

    def fetched(request):
        if not request.url.startswith((home, "data:", f"blob:{home}")):
            wrong.append(request.url)

    def open_page(width, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", fetched)
        page.goto(home)
        page.locator("#detector option").first.wait_for(state="attached")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def drop(page, name, content):
    """Drops a file and waits until it is shown."""
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])
    page.locator("#status", has_text=f"{name}: ").wait_for()


def area(page):
    """Pixels in all regions that are listed."""
    return sum(int(text.split()[0]) for text in page.locator("#list li").all_text_contents())


def when(page, condition):
    """Waits for the page; its own rules forbid Playwright to wait inside it."""
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError(page.locator("body").inner_text())


@pytest.mark.parametrize("width", [375, 1440])
def test_an_image_is_dropped_and_thresholds_are_moved(opened, found, width):
    page = opened(width)
    said = {name: page.locator(f"#{name}") for name in ("decision", "score", "count", "threshold-value", "level-value")}
    assert page.locator("#threshold").is_disabled()
    drop(page, "good.png", encoded(part(1)))
    assert said["decision"].text_content() == "good" and said["count"].text_content() == "0"
    drop(page, "bad.png", encoded(part(2, spot=True)))
    [expected] = found.predict([part(2, spot=True)])
    assert said["decision"].text_content() == "defective"
    assert float(said["score"].text_content()) == pytest.approx(expected.score, rel=1e-4)
    assert said["threshold-value"].text_content() == f"{found.threshold:.5g} (fitted)"
    assert area(page) == sum(region.area for region in expected.regions)
    assert page.locator("#outlines .front").count() == len(expected.regions) == 1
    box = page.locator("#outlines .front").bounding_box()
    shown, (top, left, *_) = page.locator("#image").bounding_box(), expected.regions[0].box
    factor = shown["width"] / WIDTH
    assert shown["height"] == pytest.approx(HEIGHT * factor, abs=1)
    assert box["x"] - shown["x"] == pytest.approx((left + 0.5) * factor, abs=3)
    assert box["y"] - shown["y"] == pytest.approx((top + 0.5) * factor, abs=3)

    # The threshold of pixels: the server finds fewer, then none.
    before, level = area(page), page.locator("#level")
    level.focus()
    for _ in range(20):
        level.press("ArrowRight")
    when(page, lambda: 0 < area(page) < before)
    level.press("End")
    when(page, lambda: said["count"].text_content() == "0")
    assert page.locator("#outlines polygon").count() == 0

    # The threshold of the image decides on all of the session.
    page.locator("#threshold").focus()
    page.locator("#threshold").press("End")
    assert said["decision"].text_content() == "good"
    page.locator("#threshold").press("Home")
    decided = page.locator("#history li span span")
    assert said["decision"].text_content() == "defective" and decided.all_text_contents()[0] == "defective"
    page.locator("#fitted").click()
    when(page, lambda: area(page) == before)
    assert decided.all_text_contents() == ["defective", "good"]

    page.locator("#opacity").fill("25")
    assert page.locator("#layer").evaluate("image => image.style.opacity") == "0.25"
    assert page.locator("#layer").evaluate("image => image.naturalWidth") == WIDTH
    assert page.evaluate("document.documentElement.scrollWidth") == width

    with page.expect_download() as download:
        page.locator("#export").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["decision"], row["detector"]) for row in rows] == [
        ("good.png", "good", "nut"), ("bad.png", "defective", "nut"),
    ]  # fmt: skip
    assert float(rows[1]["score"]) == pytest.approx(expected.score, rel=1e-5) and rows[1]["regions"] == "1"
    assert float(rows[1]["threshold"]) == found.threshold


def test_names_in_the_table_are_no_formulas(opened):
    page, names = opened(1440), ["=1+1.png", "+a.png", "-a.png", "@a.png", "a=b.png"]
    for name in names:
        drop(page, name, encoded(part(1)))
    with page.expect_download() as download:
        page.locator("#export").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [*(f"'{name}" for name in names[:4]), "a=b.png"]


def test_the_keyboard_does_it_all(opened):
    page = opened(1440)
    page.set_input_files("#file", [
        {"name": "a.png", "mimeType": "image/png", "buffer": encoded(part(1))},
        {"name": "b.png", "mimeType": "image/png", "buffer": encoded(part(2, spot=True))},
    ])  # fmt: skip
    page.locator("#status", has_text="b.png: ").wait_for()
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    wanted = ["detector", "file", "camera", "opacity", "threshold", "level", "fitted", "export"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    page.locator("#history button").last.focus()
    page.keyboard.press("Enter")
    page.locator("#status", has_text="a.png: good").wait_for()
    when(page, lambda: page.evaluate("document.activeElement.getAttribute('aria-current')") == "true")


def test_what_cannot_be_read_is_told_and_the_page_goes_on(opened):
    page = opened(375, "dark")
    page.evaluate(DROP, ["notes.txt", base64.b64encode(b"text").decode()])
    page.locator("#status", has_text="Error: 'notes.txt' is not an image").wait_for()
    assert page.locator("#history li").count() == 0
    # A browser shows no TIFF, so that the server's picture stands for it.
    drop(page, "a.tif", encoded(part(2, spot=True), "TIFF"))
    assert page.locator("#image").evaluate("image => image.naturalWidth") == WIDTH
    assert page.locator("#image").get_attribute("src").startswith("data:image/jpeg")
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_light_and_dark_differ(opened):
    def brightness(scheme):
        shown = np.asarray(Image.open(io.BytesIO(opened(375, scheme).screenshot())).convert("L"))
        return np.median(shown)

    assert brightness("light") > 200 and brightness("dark") < 60


def test_a_picture_is_taken_by_the_camera(opened):
    page = opened(1440)
    page.locator("#camera").click()
    page.locator("#shoot").click()
    page.locator("#status", has_text="camera-").wait_for()
    when(page, lambda: page.locator("#history li").count() == 1)
    page.locator("#close").click()
    assert page.locator("#filming").is_hidden()


def test_another_detector_scores_the_image_that_is_seen(browser, found, workdir):
    other = detector.load(workdir)
    other.threshold = other.pixel_threshold = other.calibration = None
    with running({"nut": found, "other": other}) as started:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{started.port}/")
        page.locator("#detector option").nth(1).wait_for(state="attached")
        drop(page, "bad.png", encoded(part(2, spot=True)))
        page.locator("#detector").select_option("other")
        page.locator("#status", has_text="bad.png: n/a").wait_for()
        assert page.locator("#threshold-value").text_content() == "none was fitted"
        assert page.locator("#count").text_content() == "n/a"
        page.locator("#threshold").focus()
        page.locator("#threshold").press("Home")
        assert page.locator("#decision").text_content() in ("good", "defective")
        page.close()
