"""``python -m jaxad.serve``: its flags, its refusals, and that it starts, answers and ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxad import serve
from tests.parts import ROOT, command, part, refusal, sentence, write
from tests.serving.running import fitted, post, request

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("served"))


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "x"], "--port must be a whole number from 0 to 65535, not 'x'"),
        (["--port", "70000"], "--port must be a whole number from 0 to 65535, not '70000'"),
        (["--batch", "0"], "--batch must be a whole number from 1"),
        (["--batch", "1.5"], "--batch must be a whole number from 1"),
        (["--queue", "0"], "--queue must be a whole number from 1"),
        (["--max-files", "-1"], "--max-files must be a whole number from 1"),
        (["--max-upload-mib", "nan"], "--max-upload-mib must be a whole number from 1"),
        (["--max-megapixels", "1e3"], "--max-megapixels must be a whole number from 1"),
        (["--wait-ms", "-1"], "--wait-ms must be a number from 0"),
        (["--wait-ms", "inf"], "--wait-ms must be a number from 0"),
        (["--read-timeout", "0"], "--read-timeout must be a number from 0.01"),
        (["--poll", "nan"], "--poll must be a number from 0.01"),
        (["--watch", "x"], "--watch and --done stand together"),
        (["--done", "x"], "--watch and --done stand together"),
        (["--results", "x"], "--results is for --watch"),
        (["--host", ""], "the value given for host is empty"),
        ([], "is no workdir: it has no config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags_are_refused(empty, capsys, arguments, words):
    assert words in refusal(capsys, serve.main, "--workdir", empty, *arguments)


def test_names_of_detectors(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "x=y"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["a", "other=b", "x=y", f"z={tmp_path}/x=y"]
    assert list(serve._named(given).items()) == [
        ("a", Path("a")),
        ("other", Path("b")),
        ("x=y", Path("x=y")),
        ("z", tmp_path / "x=y"),
    ]
    words = refusal(capsys, serve.main, "--workdir", "a", "--workdir", tmp_path / "a")
    assert words == "two workdirs have the name 'a'; name each as --workdir NAME=W"


@pytest.mark.parametrize("package", ["starlette", "python_multipart"])
def test_a_missing_package_is_told(empty, package):
    """The command itself can be imported without what it takes."""
    code = (
        "import sys\nfrom jaxad import errors, serve\n"
        f"sys.modules[{package!r}] = None\nerrors.run(lambda: serve.main(['--workdir', {str(empty)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert sentence(done.returncode, done.stderr, done.stdout) == (
        f"the server takes optional packages ({package} is missing); run python3 -m pip install 'jaxad[serve]'"
    )


def test_a_port_that_is_taken_is_told(workdir, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = refusal(capsys, serve.main, "--workdir", workdir, "--port", port)
    assert words.startswith(f"the server cannot listen on 127.0.0.1 port {port} (Address already in use)")

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    words = refusal(capsys, serve.main, "--workdir", workdir, "--host", "no.such.host.invalid")
    assert words.startswith("the server cannot listen on no.such.host.invalid port 8000 (Name or service not known)")


def test_a_folder_that_is_watched_already_is_told(workdir, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    holder = (
        "import sys, time; from jaxad.runtime import disk\nwith disk.locked(sys.argv[1]): print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path / "done"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        folders = ["--watch", tmp_path / "in", "--done", tmp_path / "done"]
        words = refusal(capsys, serve.main, "--workdir", workdir, "--port", 0, *folders)
        process.communicate(b"\n")
    assert f"{tmp_path / 'done'} is in use by process {process.pid}" in words and "another --done" in words


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)], ids=str)
def test_it_starts_answers_and_ends(workdir, tmp_path, number, status):
    (tmp_path / "in").mkdir()
    content = write(tmp_path / "a.png", part(1)).read_bytes()
    arguments = ["--port", "0", "--watch", "in", "--done", "done", "--results", "said.jsonl", "--poll", "0.05"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "jaxad.serve", "--workdir", f"nut={workdir}", *arguments],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = process.stdout.readline()
        port = int(re.fullmatch(r"nut: http://127\.0\.0\.1:(\d+)  \(Ctrl-C ends it\)\n", said)[1])
        assert post(port, ("a.png", content)).said["predictions"][0]["decision"] == "good"
        assert "<title>jaxad</title>" in request(port, "GET", "/").body.decode()
        (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
        end = time.monotonic() + 60
        while not (tmp_path / "done" / "a.png").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    assert (printed, errors) == ("", "interrupted\n" if number == signal.SIGINT else "")
    assert process.returncode == status
    assert (tmp_path / "said.jsonl").read_text().count("\n") == 1


def test_help_tells_every_option(capsys):
    assert command(serve.main, "--help") == 0
    told = capsys.readouterr().out
    for option in ("--wait-ms", "--batch", "--max-upload-mib", "--max-megapixels", "--queue", "--watch", "--done"):
        assert option in told
