"""Puts a server under load, and compares it with a call of ``jaxad.predict`` on the same images.

    python3 -m docs.serve_load WORKDIR FILE.json

Images of the demo, in several sizes and formats, are sent by clients that each wait for an answer before they send the
next image. They come in rounds; between two rounds predict scores a folder of them, so that both meet the same load of
the machine, which server, clients and predict share with whatever else runs there. docs/serving.md shows the file as a
table.
"""

import argparse
import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jaxad import report
from jaxad.data.demo import source as demo
from jaxad.errors import UserError, run
from jaxad.runtime import provenance

SIZES = ((192, 192), (256, 256), (480, 640), (768, 1024), (1080, 1920))  # height, width
KINDS = ("PNG", "JPEG")
DISTINCT = 100  # images; they are sent several times
FOLDER = 160  # files that predict scores: whole batches, since the last one is padded
ROUNDS = 3  # after the first one


def images() -> list[tuple[str, bytes]]:
    """Names and contents of image files: good and defective ones of the demo, in every size and kind."""
    test = list(demo.load("cap", size=256, train=1, seed=0).test)
    made = []
    for number in range(DISTINCT):
        size, kind = SIZES[number % len(SIZES)], KINDS[number // len(SIZES) % len(KINDS)]
        image = cv2.resize(test[number % len(test)].image, size[::-1], interpolation=cv2.INTER_CUBIC)
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind)
        made.append((f"{number:03d}.{kind.lower()}", file.getvalue()))
    return made


def predicted(workdir: Path, folder: Path, *options: str | Path) -> float:
    """Images/s of a call of ``jaxad.predict``, as it says itself: loading and compiling left out."""
    command = [sys.executable, "-m", "jaxad.predict", "--workdir", workdir, folder, *options]
    with tempfile.TemporaryDirectory() as output:
        done = subprocess.run([*command, "--output", output], stdout=subprocess.PIPE, text=True, check=True)
    return float(re.findall(r"([\d.]+) images/s", done.stdout)[-1])  # the last one; others tell of progress


@contextlib.contextmanager
def serving(workdir: Path) -> Iterator[tuple[int, int]]:
    """A server with its defaults; yields its port and its process."""
    command = [sys.executable, "-m", "jaxad.serve", "--workdir", workdir, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            if not said:
                raise UserError("the server did not start; its own sentence says why")
            yield int(re.search(r":(\d+) ", said)[1]), process.pid
        finally:
            process.terminate()


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Client(threading.Thread):
    """Sends every so-manieth image of a list, one after the other, on a connection of its own."""

    def __init__(self, port: int, files: Sequence[tuple[str, bytes]]):
        super().__init__()
        self._port, self._files = port, files
        self.seconds: list[float] = []
        self.failed: list[str] = []

    def run(self) -> None:
        connection, edge = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120), secrets.token_hex(8)
        for name, content in self._files:
            head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
            body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
                answer = connection.getresponse()
                said = json.loads(answer.read())
                if answer.status != 200 or said["predictions"][0]["score"] is None:
                    self.failed.append(f"{name}: {answer.status} {said}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed.append(f"{name}: {error!r}")
                connection.close()
            self.seconds.append(time.perf_counter() - start)
        connection.close()


def send(port: int, files: Sequence[tuple[str, bytes]], clients: int) -> tuple[float, list[float], list[str]]:
    """Sends all files; returns the seconds that it took, those of each request, and what went wrong."""
    threads = [_Client(port, files[number::clients]) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - start
    return passed, [one for thread in threads for one in thread.seconds], [one for t in threads for one in t.failed]


def measure(workdir: Path, *, clients: int, requests: int, first: int) -> dict:
    """The figures: `requests` images, of which the `first` ones come before memory is first looked at."""
    made = images()
    files = [made[number] for number in _order(len(made), requests)]
    parts, speeds, seconds, failed = np.array_split(np.arange(first, requests), ROUNDS), [], [], []
    loads, memory, passed = [], [], []
    with tempfile.TemporaryDirectory() as folder, serving(workdir) as (port, process):
        for number in range(FOLDER):
            name, content = made[number % len(made)]
            (Path(folder) / f"{number:03d}_{name}").write_bytes(content)
        for part in (range(first), *parts):
            speeds.append(predicted(workdir, Path(folder), "--no-heatmaps"))
            loads.append(os.getloadavg()[0])
            took, own, wrong = send(port, [files[number] for number in part], clients)
            passed.append(took)
            seconds += own
            failed += wrong
            memory.append(resident(process))
            print(f"{len(seconds)} requests, {len(part) / took:.2f} images/s, predict {speeds[-1]:.2f}", flush=True)
        speeds.append(predicted(workdir, Path(folder), "--no-heatmaps"))
    return {
        "clients": clients,
        "requests": requests,
        "failed": len(failed),
        "failures": failed[:5],
        "images/s": requests / sum(passed),
        "images/s of each round": [len(part) / took for part, took in zip((range(first), *parts), passed, strict=True)],
        "images/s of predict around them": speeds,
        "share of predict": requests / sum(passed) / float(np.mean(speeds)),
        "seconds": {f"p{share}": float(np.percentile(seconds, share)) for share in (50, 95, 99)},
        "memory after each round": memory,
        "growth of memory": memory[-1] / memory[0] - 1,
        "processors": os.cpu_count(),
        "load of the machine before each round": loads,
        "images": hashlib.sha256(b"".join(content for _, content in made)).hexdigest(),
    }


def _order(count: int, requests: int) -> np.ndarray:
    """Which image each request sends: every image once before one is sent again, in another order each time."""
    rounds = [np.random.default_rng(number).permutation(count) for number in range(-(-requests // count))]
    return np.concatenate(rounds)[:requests]


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.serve_load", description="Puts a server under load.")
    parser.add_argument("workdir", type=Path, help="where a detector was trained")
    parser.add_argument("output", type=Path, metavar="FILE.json")
    parser.add_argument("--clients", type=int, default=16, help="that send at the same time (default 16)")
    parser.add_argument("--requests", type=int, default=2000, help="of one image each (default 2000)")
    parser.add_argument("--first", type=int, default=200, help="requests before memory is looked at (default 200)")
    flags = parser.parse_args(argv)
    trained = provenance.recorded(flags.workdir)[-1]
    origin = {"command": report.portable(trained["command"]), "trained": trained["commit"], **provenance.collect()}
    found = measure(flags.workdir, clients=flags.clients, requests=flags.requests, first=flags.first)
    print(json.dumps(found, indent=1))
    flags.output.write_text(json.dumps(origin | found, indent=1) + "\n")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
