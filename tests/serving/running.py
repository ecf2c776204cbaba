"""A server in a thread of the test, on a port of its own, and requests to it over real sockets."""

import contextlib
import http.client
import json
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxad.data.room import Room
from jaxad.serving import app, server
from jaxad.serving.options import Limits
from jaxad.serving.scorer import Scorer
from tests.commands import train
from tests.parts import baseline, command, write_parts

LIMITS = Limits(upload=2**20, files=5, queue=8, read=20.0)
PATIENCE = 60  # seconds for what must come


class Running(NamedTuple):
    """A server that runs: its port, its scorer, what decodes its images, and its connections."""

    port: int
    scorer: Scorer
    readers: ThreadPoolExecutor
    service: app.Service
    connections: set


class Answer(NamedTuple):
    """What a server has answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self):
        return json.loads(self.body)


def fitted(folder):
    """The workdir of a detector of parts with both thresholds, which reads images of up to 10 megapixels."""
    write_parts(folder / "sets", train=20)
    given = {"data__holdout": 0.3, "threshold__cross_fit_below": 0, "data__max_megapixels": 10}
    assert command(train.main, *baseline(folder / "sets", folder / "work", **given)) == 0
    return folder / "work"


@contextlib.contextmanager
def running(detectors, *, limits=LIMITS, batch=4, wait=0.005):
    """A server of detectors by name."""
    scorer, room = Scorer(batch=batch, wait=wait), Room()
    scorer.start(list(detectors.values()))
    with server.listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(2) as readers:
        service = app.Service(detectors, scorer, readers, room, limits)
        made = server.create(app.create(service), read=limits.read, queue=limits.queue)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]})
        thread.start()
        while not made.started:
            time.sleep(0.01)
        try:
            yield Running(listening.getsockname()[1], scorer, readers, service, made.server_state.connections)
        finally:
            made.should_exit = True
            thread.join()
            scorer.stop()


def form(*files, field="image"):
    """The body of a form with files (name, content), and its content type."""
    boundary = secrets.token_hex(8)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'.encode()
        + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
        for name, content in files
    ]  # fmt: skip
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def request(port, method, path, body=None, **headers):
    """Sends a request; returns the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def post(port, *files, query=""):
    """Sends files (name, content) to be scored."""
    body, kind = form(*files)
    return request(port, "POST", f"/predict{query}", body, content_type=kind)


def raw(port, *parts, pause=0.0):
    """Sends bytes as they are, with a pause between two parts; returns the answer, or None where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        for number, part in enumerate(parts):
            if number:
                time.sleep(pause)
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        answer = http.client.HTTPResponse(connection)
        try:
            answer.begin()
        except http.client.BadStatusLine:  # the server has closed the connection
            return None
        with answer:
            return Answer(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
