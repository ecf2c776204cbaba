"""The HTTP interface over real sockets: answers as jaxad.predict gives them, and what is refused."""

import base64
import contextlib
import io
import json
import re
import socket
import struct
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import detector, predict
from jaxad.data.image import to_grey
from jaxad.data.room import Room
from jaxad.reporting.charts import overlay
from jaxad.serving import options, server
from tests.parts import SPOT, command, part
from tests.serving.running import LIMITS, form, post, raw, request, running

pytestmark = pytest.mark.medium


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def picture(uri):
    """What a data URI shows."""
    head, _, data = uri.partition(",")
    assert re.fullmatch(r"data:image/(png|jpeg);base64", head)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


GOOD, BAD = encoded(part(1)), encoded(part(2, spot=True))
FILES = {
    "good.png": GOOD,
    "bad.png": BAD,
    "large.bmp": encoded(np.tile(part(4, spot=True), (2, 3, 1)), "BMP"),
    "grey.tif": encoded(part(5, spot=True)[..., 0], "TIFF"),
}


def header(width, height):
    """A PNG that says it has so many pixels, and holds none."""
    fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", fields), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )


def test_answers_are_the_lines_of_predict(served, workdir, tmp_path):
    paths = []
    for name, content in FILES.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    paths.append(tmp_path / "damaged.png")
    paths[-1].write_bytes(GOOD[:200])
    command(predict.main, "--workdir", workdir, "--output", tmp_path / "out", "--no-heatmaps", *paths)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    files = [(path.name, path.read_bytes()) for path in paths]
    together = post(served.port, *files).said["predictions"]
    alone = [post(served.port, one).said["predictions"][0] for one in files]
    assert [line["decision"] for line in lines] == ["good", *["defective"] * 3, "unreadable"]
    for said in (together, alone):
        for one, line in zip(said, lines, strict=True):
            assert one.keys() == line.keys()
            assert rounded(one) == rounded(json.loads(json.dumps(line).replace(f"{tmp_path}/", "")))


def rounded(value):
    """The same with numbers of five significant digits: programs for other batches round otherwise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(held) for key, held in value.items()}
    return [rounded(held) for held in value] if isinstance(value, list) else value


def test_heatmaps_are_those_of_predict(served, found):
    size = part(2).shape[:2]
    [said] = post(served.port, ("bad.png", BAD), query="?heatmap=overlay").said["predictions"]
    [expected] = found.predict([part(2, spot=True)])
    assert (said["height"], said["width"]) == size and said["highest"] == pytest.approx(expected.map.max(), rel=0.2)
    low, high = found.heat_range
    resized = found.region.geometry.image(part(2, spot=True))
    scored = found.score(resized[None], batch=1).map[0]
    smooth = found.region.map_at(scored, size, sigma=found.config.evaluate.heatmap_sigma)
    drawn = overlay(part(2, spot=True), smooth, low=low, high=high)
    as_jpeg = picture(f"data:image/jpeg;base64,{base64.b64encode(encoded(drawn, 'JPEG', quality=90)).decode()}")
    assert np.abs(picture(said["heatmap"]["overlay"]).astype(int) - as_jpeg).max() <= 8
    [said] = post(served.port, ("bad.png", BAD), query="?heatmap=layers").said["predictions"]
    layer, grey = picture(said["heatmap"]["layer"]), picture(said["heatmap"]["picture"])
    assert layer.shape == (*size, 4) and grey.shape == size
    alpha = layer[..., 3:] / 255
    exact = to_grey(part(2, spot=True))
    assert np.abs(grey.astype(int) - exact[..., 0]).mean() < 3  # JPEG
    assert np.abs((1 - alpha) * exact + alpha * layer[..., :3] - drawn).max() < 2
    assert layer[SPOT][..., 3].mean() > layer[:20, 25:, 3].mean()


def test_another_threshold_for_pixels_finds_other_regions(served, found):
    [said] = post(served.port, ("bad.png", BAD)).said["predictions"]
    assert said["pixel_threshold"] == found.pixel_threshold and len(said["regions"]) == 1
    peak = said["regions"][0]["peak_score"]
    areas = []
    for level in (found.pixel_threshold, (found.pixel_threshold + peak) / 2, peak + 1):
        [other] = post(served.port, ("bad.png", BAD), query=f"?pixel_threshold={level}").said["predictions"]
        assert other["pixel_threshold"] == level and other["decision"] == "defective"
        areas.append(sum(region["area"] for region in other["regions"]))
    assert areas[0] == said["regions"][0]["area"] > areas[1] > areas[2] == 0


def test_detectors_are_asked_by_name(found, workdir):
    other = detector.load(workdir)
    other.threshold, other.pixel_threshold, other.calibration = None, None, None
    with running({"nut": found, "other": other}) as started:
        said = [post(started.port, ("a.png", BAD), query=query).said for query in ("", "?detector=other")]
        assert [one["detector"] for one in said] == ["nut", "other"]
        assert [one["predictions"][0]["decision"] for one in said] == ["defective", "n/a"]
        assert said[1]["predictions"][0]["regions"] is None
        listed = request(started.port, "GET", "/detectors").said["detectors"]
        assert [(one["name"], one["threshold"]) for one in listed] == [("nut", found.threshold), ("other", None)]
        refused = post(started.port, ("a.png", BAD), query="?detector=bolt")
        assert refused.status == 404
        assert refused.said == {"error": "there is no detector 'bolt'; the detectors are nut, other"}


def test_one_bad_image_spoils_no_other(served):
    answer = post(served.port, ("good.png", GOOD), ("text.png", b"text"), ("bad.png", BAD))
    assert answer.status == 200
    assert [one["decision"] for one in answer.said["predictions"]] == ["good", "unreadable", "defective"]
    assert "'text.png' is not an image" in answer.said["predictions"][1]["reason"]


def test_names_of_files_are_only_names(served, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for name in ("../../x.png", "./q.png", "a//b.png", "a%00b.png", "\u00e9\u4e2d.png", "a\\b.png"):
        for content, decision in ((GOOD, "good"), (b"text", "unreadable")):
            [said] = post(served.port, (name, content)).said["predictions"]
            assert (said["path"], said["decision"]) == (name, decision)
    [said] = post(served.port, ("C:\\a\\x.png", GOOD)).said["predictions"]
    assert said["path"] == "x.png"  # as old browsers of Windows are treated
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def multipart(body, boundary="edge"):
    return {"body": body, "content_type": f"multipart/form-data; boundary={boundary}"}


def sent(*files, **more):
    body, kind = form(*files, **more)
    return {"body": body, "content_type": kind}


PART = b'--edge\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'
ONE = ("a.png", GOOD)
# What is sent, as arguments of `request`; the status; and words of the sentence.
MALFORMED = {
    "get instead of post": (("GET", "/predict", {}), 405, "does not take GET; it takes POST"),
    "put": (("PUT", "/predict", sent(ONE)), 405, "does not take PUT"),
    "post to health": (("POST", "/health", sent(ONE)), 405, "does not take POST"),
    "unknown path": (("GET", "/../../etc/passwd", {}), 404, "there is no"),
    "no content type": (("POST", "/predict", {"body": GOOD}), 415, "not given, not multipart/form-data"),
    "json": (("POST", "/predict", {"body": b"{}", "content_type": "application/json"}), 415, "application/json"),
    "bare image": (("POST", "/predict", {"body": GOOD, "content_type": "image/png"}), 415, "image/png"),
    "no boundary": (("POST", "/predict", {"body": GOOD, "content_type": "multipart/form-data"}), 400, "boundary"),
    "no body": (("POST", "/predict", multipart(b"")), 400, "ends too early"),
    "garbage": (("POST", "/predict", multipart(b"\0\1garbage")), 400, "form cannot be read"),
    "other boundary": (("POST", "/predict", multipart(b"--other\r\n\r\nx\r\n--other--")), 400, "form cannot be read"),
    "cut off": (("POST", "/predict", multipart(PART + GOOD[:50])), 400, "ends too early"),
    "part without name": (
        ("POST", "/predict", multipart(b"--edge\r\nContent-Type: image/png\r\n\r\nx\r\n--edge--\r\n")), 400, "name",
    ),
    "field": (
        ("POST", "/predict", multipart(b'--edge\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--edge--\r\n')),
        400, "'x', which is no file",
    ),
    "huge field": (
        ("POST", "/predict", multipart(
            b'--edge\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + bytes(2**20 - 500) + b"\r\n--edge--\r\n"
        )),
        400, "'x', which is no file",
    ),
    "no file chosen": (("POST", "/predict", sent(("", b""))), 400, "holds no file"),
    "empty file": (("POST", "/predict", sent(("a.png", b""))), 422, "'a.png' is empty"),
    "text": (("POST", "/predict", sent(("a.png", b"hello"))), 422, "'a.png' is not an image"),
    "page": (("POST", "/predict", sent(("<b>.png", b"<svg onload='alert(1)'/>"))), 422, "is not an image"),
    "cut png": (("POST", "/predict", sent(("a.png", GOOD[:300]))), 422, "'a.png' is truncated or damaged"),
    "cut jpeg": (("POST", "/predict", sent(("a.jpg", encoded(part(1), "JPEG")[:300]))), 422, "truncated or damaged"),
    "gif": (("POST", "/predict", sent(("a.gif", encoded(part(1)[..., 0], "GIF")))), 422, "is not an image"),
    "bomb": (("POST", "/predict", sent(("a.png", header(60000, 60000)))), 422, "than the limit of 10,000,000 pixels"),
    "no pixels": (("POST", "/predict", sent(("a.png", header(40, 40)))), 422, "truncated or damaged"),
    "tiny": (("POST", "/predict", sent(("a.png", encoded(part(1)[:2, :2])))), 422, "2 x 2 pixels"),
    "detector": (("POST", "/predict?detector=x", sent(ONE)), 404, "there is no detector 'x'; the detectors are nut"),
    "option": (("POST", "/predict?heatmaps=1", sent(ONE)), 400, "there is no option 'heatmaps'"),
    "option twice": (("POST", "/predict?heatmap=bogus&heatmap=none", sent(ONE)), 400, "'heatmap' is given 2 times"),
    "slash": (("POST", "/predict/", sent(ONE)), 404, "there is no /predict/ here"),
    "heatmap": (("POST", "/predict?heatmap=yes", sent(ONE)), 400, "none, overlay, layers, not 'yes'"),
    "not finite": (("POST", "/predict?pixel_threshold=nan", sent(ONE)), 400, "a finite number, not 'nan'"),
    "no number": (("POST", "/predict?pixel_threshold=a", sent(ONE)), 400, "a finite number, not 'a'"),
    "too many files": (("POST", "/predict", sent(*[ONE] * 6)), 400, "Maximum number of files is 5"),
    "too large": (("POST", "/predict", sent(("a.png", bytes(3 * 2**20)))), 413, "more than 1 MiB"),
    "too large, in chunks": (
        ("POST", "/predict", multipart([PART, *[bytes(2**16)] * 64])), 413, "more than 1 MiB",
    ),
    **{
        f"charset {charset}": (
            ("POST", "/predict", multipart(PART + GOOD + b"\r\n--edge--\r\n", f"edge; charset={charset}")),
            400, f"the charset '{charset}'",
        )
        for charset in ("undefined", "punycode", "unicode_escape", "utf-7")
    },
}  # fmt: skip


def is_refused(answer, status, words):
    """Whether an answer is a refusal in JSON, of one sentence."""
    assert answer is not None and answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    sentence = answer.said["error"]
    assert words in sentence and "\n" not in sentence and len(sentence) < 300, sentence
    return True


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_get_one_clear_sentence(served, name):
    (method, path, given), status, words = MALFORMED[name]
    assert is_refused(request(served.port, method, path, **given), status, words)
    assert post(served.port, ONE).status == 200  # the server is alive


HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
NO_HTTP = {
    "no http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "large header": b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2**18 + b"\r\n\r\n",
    "length": HEAD + b"Content-Length: much\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nnohex\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_gets_one_clear_sentence(served, name):
    answer = raw(served.port, NO_HTTP[name])
    if answer is not None or name != "large header":  # of which the rest may come when the connection is closed
        assert is_refused(answer, 400, "HTTP" if name != "chunk" else "")
    assert post(served.port, ONE).status == 200


def test_nonsense_behind_a_refused_request_ends_the_connection(served, caplog):
    refused = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert is_refused(raw(served.port, refused, b"nohex\r\n", pause=0.3), 415, "content type")
    assert post(served.port, ONE).status == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_slow_clients_are_told_and_let_go(found):
    with running({"nut": found}, limits=LIMITS._replace(read=0.5)) as started:
        length = HEAD + b"Content-Length: 5000\r\n\r\n"
        assert is_refused(raw(started.port, length + PART, GOOD[:10], pause=1.5), 408, "within 0.5 seconds")
        assert is_refused(raw(started.port, HEAD[:30], b"", pause=1.5), 408, "within 0.5 seconds")
        assert raw(started.port, b"", b"", pause=1.5) is None  # who says nothing is not told anything
        # Of a request that was refused the rest is dropped, but not for ever.
        start = time.monotonic()
        refused = b"POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", started.port), timeout=20) as connection:
            with pytest.raises(OSError):
                connection.sendall(refused)
                while time.monotonic() < start + 15:
                    connection.sendall(bytes(100))
                    time.sleep(0.05)
        assert request(started.port, "GET", "/health").status == 200


def test_who_takes_no_answer_is_let_go(found):
    with running({"nut": found}, limits=LIMITS._replace(read=0.5)) as started:
        with slow_reader(started.port) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
            until(lambda: started.connections)
            until(lambda: not started.connections)
        assert post(started.port, ONE).status == 200


def slow_reader(port):
    """A connection that the system takes few bytes for."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def test_who_takes_an_answer_slowly_gets_all_of_it(found):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    body, kind = form(("a.png", encoded(noise, compress_level=1)))
    head = f"POST /predict?heatmap=layers HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
    with running({"nut": found}, limits=LIMITS._replace(read=1.0, upload=2**24)) as started:
        with slow_reader(started.port) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            start, taken = time.monotonic(), b""
            while more := connection.recv(2**14):
                taken += more
                time.sleep(0.02)
        assert time.monotonic() - start > 2
    content = taken.partition(b"\r\n\r\n")[2]
    assert json.loads(content)["predictions"][0]["heatmap"]["picture"]


def test_connections_have_a_most(found, monkeypatch):
    monkeypatch.setattr(server, "_SPARE", 0)
    with running({"nut": found}, limits=LIMITS._replace(queue=2)) as started, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", started.port)))
        until(lambda: len(started.connections) == 2)
        assert is_refused(raw(started.port), 503, "2 connections already")
        stack.close()
        until(lambda: not started.connections)
        assert post(started.port, ONE).status == 200


def test_who_leaves_early_harms_nobody(served):
    for part_sent in (HEAD + b"Content-Length: 5000\r\n\r\n" + PART, HEAD[:20], b""):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(part_sent)
    assert post(served.port, ONE).status == 200


def test_a_full_queue_sends_clients_away(found):
    with running({"nut": found}, limits=LIMITS._replace(queue=2)) as started:
        release, score = threading.Event(), found.score

        def slow(*arguments, **options):
            release.wait(60)
            return score(*arguments, **options)

        found.score = slow
        try:
            with ThreadPoolExecutor(2) as clients:
                first = [clients.submit(post, started.port, ONE) for _ in range(2)]
                until(lambda: b"jaxad_requests_active 2.0" in request(started.port, "GET", "/metrics").body)
                answer = post(started.port, ONE)
                assert is_refused(answer, 503, "works on 2 requests already") and answer.headers["retry-after"] == "1"
                assert request(started.port, "GET", "/health").status == 200
                release.set()
                assert [one.result().status for one in first] == [200, 200]
        finally:
            del found.score
        assert post(started.port, ONE).status == 200


def test_images_that_are_decoded_have_a_most_together(found, monkeypatch):
    release, score, look, looked = threading.Event(), found.score, predict.look, []

    def slow(*arguments, **options):
        release.wait(60)
        return score(*arguments, **options)

    monkeypatch.setattr(predict, "look", lambda *given: (looked.append(1), look(*given))[1])
    with running({"nut": found}, limits=LIMITS._replace(queue=2)) as started, ThreadPoolExecutor(2) as clients:
        monkeypatch.setattr(found, "score", slow)  # not before the programs are compiled
        answers = [clients.submit(post, started.port, *[ONE] * 4) for _ in range(2)]
        try:
            until(lambda: len(looked) >= 5)
            time.sleep(0.3)
            assert len(looked) == 5  # the files of a request, which are more than the queue
        finally:
            release.set()
        assert [one.result().status for one in answers] == [200, 200] and len(looked) == 8


def test_the_map_of_an_image_takes_room_too(served, monkeypatch):
    taken, pixels = Room.taken, []
    monkeypatch.setattr(Room, "taken", lambda self, number: (pixels.append(number), taken(self, number))[1])
    post(served.port, ("bad.png", BAD))
    assert pixels == [part(2).shape[0] * part(2).shape[1]] * 2


def test_a_fault_of_the_server_ends_one_request_alone(served, found):
    def fail(*_, **__):
        raise MemoryError

    found.score = fail
    try:
        assert is_refused(post(served.port, ONE), 500, "the server has failed")
    finally:
        del found.score
    assert post(served.port, ONE).status == 200


def test_many_clients_get_the_answers_to_their_own_images(served, found):
    images = [part(number, spot=number % 3 == 0) for number in range(24)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda image: post(served.port, ("a.png", encoded(image))), images))
    expected = found.predict(images)
    assert {answer.status for answer in answers} == {200}
    scores = [answer.said["predictions"][0]["score"] for answer in answers]
    np.testing.assert_allclose(scores, [one.score for one in expected], rtol=1e-5)


def test_nothing_is_written_to_the_disk(found, tmp_path, monkeypatch):
    """Files of more than a megabyte are kept in memory too."""
    opened = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: opened.append(self))
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1000, 3), np.uint8)
    with running({"nut": found}, limits=LIMITS._replace(upload=2**24)) as started:
        assert post(started.port, ("large.png", encoded(noise, compress_level=1))).status == 200
    assert opened == []


def test_metrics_and_health(found):
    with running({"nut": found}) as started:
        post(started.port, ONE, ("b.png", BAD), ("c.png", b"text"))
        post(started.port, ONE, query="?detector=x")
        request(started.port, "GET", "/nope")
        assert request(started.port, "GET", "/health").said == {"status": "ok", "detectors": ["nut"]}
        answer = request(started.port, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    told = dict(line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#"))
    for row, value in {
        'jaxad_requests_total{method="POST",route="/predict",status="200"}': 1,
        'jaxad_requests_total{method="POST",route="/predict",status="404"}': 1,
        'jaxad_requests_total{method="GET",route="other",status="404"}': 1,
        'jaxad_images_total{decision="good",detector="nut"}': 1,
        'jaxad_images_total{decision="defective",detector="nut"}': 1,
        'jaxad_images_total{decision="unreadable",detector="nut"}': 1,
        'jaxad_request_seconds_count{route="/predict"}': 2,
        "jaxad_images_waiting": 0,
        "jaxad_requests_active": 0,
    }.items():
        assert float(told[row]) == value, row


def test_the_document_describes_the_routes(served):
    said = request(served.port, "GET", "/openapi.json").said
    assert said["openapi"].startswith("3.1") and said["info"]["version"] == jaxad.__version__
    routes = {(route.path, method.lower()) for route in served.service.routes for method in route.methods - {"HEAD"}}
    assert {(path, method) for path, held in said["paths"].items() for method in held} == routes
    asked = said["paths"]["/predict"]["post"]
    assert tuple(one["name"] for one in asked["parameters"]) == options.QUERY
    answered = asked["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]["items"]
    [one] = post(served.port, ("bad.png", BAD), query="?heatmap=layers").said["predictions"]
    assert list(answered["properties"]) == list(one)
    assert list(answered["properties"]["regions"]["items"]["properties"]) == list(one["regions"][0])
    assert {str(status) for _, status, _ in MALFORMED.values()} - {"405"} <= asked["responses"].keys()


def until(condition):
    """Waits for what must come."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
