"""A folder that is watched: every file is scored and moved once, whatever ends the server in between."""

import collections
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxad.data.room import Room
from jaxad.errors import UserError
from jaxad.runtime import disk
from jaxad.serving import watch
from jaxad.serving.scorer import Scorer
from jaxad.serving.watch import Watcher, folders
from tests.parts import ROOT, part, write
from tests.refusals import refuses

pytestmark = pytest.mark.medium


class Killed(BaseException):
    """What a test raises in place of a kill: nothing catches it."""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "in").mkdir()
    return folders(str(tmp_path / "in"), str(tmp_path / "done"), None)


@pytest.fixture
def watching(found):
    """Makes watchers of folders, as processes that are started anew."""
    scorer = Scorer(batch=2, wait=0)
    scorer.start([found])
    with ThreadPoolExecutor(2) as readers:
        yield lambda place: Watcher(place, "nut", found, scorer, readers, Room(), batch=2, every=0.01)
    scorer.stop()


def parts(place, *names):
    """Writes parts, every second one with a spot, each another."""
    for number, name in enumerate(names):
        write(place.watched / name, part(number, spot=number % 2 == 1))


def lines(place):
    text = place.results.read_text() if place.results.exists() else ""
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def moved(place):
    """The files that are done, and those that could not be read."""
    kinds = (place.done, place.done / "unreadable")
    return [sorted(path.name for path in kind.iterdir() if path.is_file() and path != place.results) for kind in kinds]


def looks(watcher, number=2):
    for _ in range(number):
        watcher.look()


def test_files_are_scored_written_down_and_moved(place, watching, found):
    names = ["a.png", "b.png", "c.png"]
    parts(place, *names)
    (place.watched / "damaged.png").write_bytes(b"no")
    (place.watched / "x.gif").write_bytes(b"GIF89a")
    (place.watched / "notes.txt").write_text("stays")
    (place.watched / ".hidden.png").write_text("stays")
    (place.watched / "sub").mkdir()
    digests = {name: hashlib.sha256((place.watched / name).read_bytes()).hexdigest() for name in names}
    watcher = watching(place)
    watcher.look()
    assert lines(place) == []  # nobody knows yet whether the files are whole
    watcher.look()
    assert sorted(os.listdir(place.watched)) == [".hidden.png", "notes.txt", "sub"]
    assert moved(place) == [names, ["damaged.png", "x.gif"]]
    said = {line["file"]: line for line in lines(place)}
    assert list(said) == [*names, "damaged.png", "x.gif"]
    expected = found.predict([part(number, spot=number % 2 == 1) for number in range(3)])
    for name, one in zip(names, expected, strict=True):
        assert said[name]["score"] == pytest.approx(one.score, rel=1e-5)
        assert said[name]["decision"] == ("defective" if one.defective else "good")
        assert len(said[name]["regions"]) == len(one.regions)
        assert (said[name]["sha256"], said[name]["moved_to"], said[name]["detector"]) == (digests[name], name, "nut")
    assert said["damaged.png"]["moved_to"] == "unreadable/damaged.png" and said["damaged.png"]["score"] is None
    assert "not an image" in said["damaged.png"]["reason"]


def test_a_file_that_is_still_written_is_left(place, watching):
    parts(place, "a.png")
    content = (place.watched / "a.png").read_bytes()
    (place.watched / "a.png").write_bytes(content[:100])
    watcher = watching(place)
    watcher.look()
    for size in (200, 300, len(content)):
        (place.watched / "a.png").write_bytes(content[:size])
        watcher.look()
        assert lines(place) == []
    watcher.look()
    assert [line["decision"] for line in lines(place)] == ["good"] and moved(place) == [["a.png"], []]


def test_a_name_that_comes_again_takes_no_place(place, watching):
    watcher = watching(place)
    for number in range(3):
        write(place.watched / "a.png", part(number // 2))  # the second is the same as the first
        looks(watcher)
    assert [line["moved_to"] for line in lines(place)] == ["a.png", "a-2.png", "a-3.png"]
    assert moved(place)[0] == ["a-2.png", "a-3.png", "a.png"]
    write(place.watched / "a.png", part(0))
    looks(watching(place))  # a new process too takes it for what it is, another file
    assert [line["moved_to"] for line in lines(place)][3:] == ["a-4.png"]


def test_names_may_be_no_utf_8(place, watching):
    name = os.fsdecode(b"caf\xe9.png")
    parts(place, "a.png")
    os.rename(place.watched / "a.png", place.watched / name)
    looks(watching(place))
    assert (place.done / name).is_file() and lines(place)[0]["file"] == name
    looks(watching(place))
    assert len(lines(place)) == 1


# When the process is killed: in which call of which function, before or after it has done its work.
KILLS = [
    (watch._Lines, "add", 1, "before"),
    (watch._Lines, "add", 2, "before"),
    (watch._Lines, "add", 1, "after"),
    (watch._Lines, "add", 2, "after"),
    *((os, "rename", number, when) for number in (1, 2, 3, 5) for when in ("before", "after")),
    *((disk, "sync", number, "before") for number in (1, 4)),
]


@pytest.mark.parametrize(("owner", "name", "number", "when"), KILLS)
def test_a_kill_loses_nothing_and_doubles_nothing(place, watching, monkeypatch, owner, name, number, when):
    names = [f"{letter}.png" for letter in "abcde"]
    parts(place, *names)
    function, calls = getattr(owner, name), []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == number and when == "before":
            raise Killed
        function(*arguments)
        if len(calls) == number:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, killed)
        looks(watching(place))
    looks(watching(place))
    assert os.listdir(place.watched) == [] and moved(place) == [names, []]
    assert [line["file"] for line in lines(place)] == names


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_line_that_a_kill_cut_off_is_written_again(place, watching, cut):
    parts(place, "a.png", "b.png")
    looks(watching(place))
    whole = place.results.read_bytes()
    os.rename(place.done / "b.png", place.watched / "b.png")  # it was not moved before its line was whole
    place.results.write_bytes(whole[:-cut])
    looks(watching(place))
    assert place.results.read_bytes() == whole and moved(place)[0] == ["a.png", "b.png"]


def failing_once(patch, owner, name, number):
    """Lets a function of the system fail once, in that call."""
    function, calls = getattr(owner, name), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments)

    patch.setattr(owner, name, failing)


@pytest.mark.parametrize(("name", "number"), [("fsync", 1), ("rename", 1), ("rename", 2)])
def test_a_disk_that_refuses_is_tried_again(place, watching, monkeypatch, name, number):
    parts(place, "a.png", "b.png")
    watcher = watching(place)
    watcher.look()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        failing_once(patch, os, name, number)
        watcher.look()
    assert len(lines(place)) == (0 if name == "fsync" else 2)
    watcher.look()
    assert moved(place)[0] == ["a.png", "b.png"] and [line["file"] for line in lines(place)] == ["a.png", "b.png"]


def test_the_thread_goes_on_after_an_error(place, watching, monkeypatch, caplog):
    failing_once(monkeypatch, os, "rename", 1)
    parts(place, "a.png")
    watcher = watching(place)
    watcher.start()
    try:
        until(lambda: moved(place)[0] == ["a.png"])
    finally:
        watcher.stop()
    assert len(lines(place)) == 1
    assert "is watched on, though: No space left on device; free some space" in caplog.text


def test_a_file_that_is_replaced_while_it_is_scored_gets_a_line_of_its_own(place, watching, monkeypatch):
    parts(place, "a.png")
    add = watch._Lines.add

    def replaced(self, said):
        add(self, said)
        write(place.watched / "a.png", part(77, spot=True))

    watcher = watching(place)
    with monkeypatch.context() as patch:
        patch.setattr(watch._Lines, "add", replaced)
        looks(watcher)
    looks(watcher)
    assert [line["decision"] for line in lines(place)] == ["good", "defective"] and moved(place)[0] == ["a.png"]


def test_a_file_that_is_touched_after_its_line_keeps_that_line(place, watching, monkeypatch):
    parts(place, "a.png")
    add = watch._Lines.add

    def touched(self, said):
        add(self, said)
        os.utime(place.watched / "a.png", ns=(1, 1))

    watcher = watching(place)
    with monkeypatch.context() as patch:
        patch.setattr(watch._Lines, "add", touched)
        looks(watcher)
    looks(watcher)
    assert len(lines(place)) == 1 and moved(place)[0] == ["a.png"] and not os.listdir(place.watched)


@pytest.mark.parametrize("fault", ["read", "score", "not finite", "move"])
def test_a_file_that_fails_holds_up_no_other(place, watching, found, monkeypatch, fault):
    parts(place, "a.png", "b.png", "c.png", "d.png", "e.png")
    rename, read, described = os.rename, watch.predict.read, watch.predict.described

    def failing(function, error):
        def called(first, *arguments):
            if "b.png" in str([first, *arguments[:1]]):
                raise error
            return function(first, *arguments)

        return called

    with monkeypatch.context() as patch:
        if fault == "move":
            patch.setattr(os, "rename", failing(rename, PermissionError(errno.EPERM, "Operation not permitted")))
        elif fault == "read":
            patch.setattr(watch.predict, "read", failing(read, MemoryError()))
        elif fault == "not finite":
            patch.setattr(watch.predict, "described", failing(described, UserError("the score is not finite")))
        else:
            patch.setattr(found, "score", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        watcher = watching(place)
        watcher.look()
        with pytest.raises((MemoryError, PermissionError, UserError)):
            watcher.look()
        assert moved(place)[0] == ([] if fault == "score" else ["a.png", "c.png", "d.png", "e.png"])
    watcher.look()
    assert moved(place)[0] == ["a.png", "b.png", "c.png", "d.png", "e.png"] and len(lines(place)) == 5


def test_a_long_name_that_comes_again_is_made_shorter(place, watching):
    name, watcher = "\u00e9" * 125 + "a.png", watching(place)
    assert len(os.fsencode(name)) == 255
    for number in range(2):
        parts(place, "b.png")
        os.rename(write(place.watched / "b.png", part(number)), place.watched / name)
        looks(watcher)
    assert [line["moved_to"] for line in lines(place)] == [name, "\u00e9" * 124 + "-2.png"]
    assert moved(place)[0] == sorted([name, "\u00e9" * 124 + "-2.png"])


def test_the_file_of_lines_may_be_rotated(place, watching):
    watcher = watching(place)
    parts(place, "a.png")
    looks(watcher)
    os.rename(place.results, place.results.with_suffix(".old"))
    parts(place, "b.png")
    looks(watcher)
    assert [line["file"] for line in lines(place)] == ["b.png"] and not os.listdir(place.watched)


def test_a_file_of_lines_has_one_server(place):
    with watch.locked(place.results), refuses("--results", "in use by another server"), watch.locked(place.results):
        pass
    with watch.locked(place.results):
        pass


def test_the_map_of_an_image_takes_room_too(place, watching, monkeypatch):
    taken, pixels = Room.taken, []
    monkeypatch.setattr(Room, "taken", lambda self, number: (pixels.append(number), taken(self, number))[1])
    parts(place, "a.png")
    looks(watching(place))
    assert pixels == [part(0).shape[0] * part(0).shape[1]] * 2


def test_the_folder_of_the_lines_is_synced_before_a_file_is_moved(place, watching, tmp_path, monkeypatch):
    (tmp_path / "lines").mkdir()
    place, calls, rename = place._replace(results=tmp_path / "lines" / "said.jsonl"), [], os.rename
    parts(place, "a.png")
    watcher = watching(place)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", calls.append)
        patch.setattr(os, "rename", lambda *paths: (calls.append("rename"), rename(*paths)))
        looks(watcher)
    assert calls.index(tmp_path / "lines") < calls.index("rename")


def test_folders_that_do_not_do_are_refused(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    with refuses("--watch", "there is no folder"):
        folders(str(tmp_path / "no"), str(tmp_path / "done"), None)
    with refuses("--done", "same folder"):
        folders(str(tmp_path / "in"), str(tmp_path / "in"), None)
    (tmp_path / "file").write_text("")
    with refuses("--done", "cannot be made"):
        folders(str(tmp_path / "in"), str(tmp_path / "file" / "done"), None)
    stat = os.stat

    def elsewhere(path, **options):
        found = stat(path, **options)
        return found if "other" not in str(path) else os.stat_result((*found[:2], found.st_dev + 1, *found[3:]))

    with monkeypatch.context() as patch, refuses("--done", "different file systems"):
        patch.setattr(os, "stat", elsewhere)
        folders(str(tmp_path / "in"), str(tmp_path / "other"), None)


def test_another_file_of_lines_is_refused(place, watching):
    place.results.write_text('{"path": "a.png"}\n')
    with refuses("--results", "was not written by jaxad.serve (line 1"):
        watching(place)
    assert place.results.read_text() == '{"path": "a.png"}\n'
    place.results.write_text('{"file": 1, "sha256": "a", "moved_to": "b"}\n')
    with refuses("--results", "file, sha256 and moved_to are no texts"):
        watching(place)


def until(condition, seconds=120):
    """Waits for what must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_while_200_files_are_watched(place, workdir, tmp_path):
    """The process is killed where it happens to be, five times, and started again."""
    for number in range(200):
        path = write(tmp_path / "new" / f"{number:03d}.png", part(number, spot=number % 5 == 0))
        if number % 50 == 7:
            path.write_bytes(b"damaged")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "new").iterdir()}
    command = [
        sys.executable, "-m", "jaxad.serve", "--workdir", workdir, "--port", "0", "--watch", place.watched,
        "--done", place.done, "--poll", "0.02", "--batch", "4",
    ]  # fmt: skip
    rng, told, left = np.random.default_rng(0), tmp_path / "told.txt", []
    shutil.copytree(tmp_path / "new", place.watched, dirs_exist_ok=True)
    for wanted in (1, 30, 70, 110, 150, None):
        with open(told, "ab") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:

            def reached(process=process, wanted=wanted):
                written = place.results.read_bytes().count(b"\n") if place.results.exists() else 0
                there = not list(place.watched.glob("*.png")) if wanted is None else written >= wanted
                return there or process.poll() is not None

            until(reached)
            time.sleep(rng.uniform(0, 0.05))
            assert process.poll() is None, told.read_text()
            process.send_signal(signal.SIGKILL)
        left.append(len(list(place.watched.glob("*.png"))))
    assert len(set(left)) >= 4 and left[-1] == 0  # it was killed in the middle of the work, several times
    assert "Traceback" not in told.read_text()
    said = lines(place)
    assert collections.Counter(line["file"] for line in said) == dict.fromkeys(digests, 1)
    assert {line["file"]: line["sha256"] for line in said} == digests
    done = {line["file"]: hashlib.sha256((place.done / line["moved_to"]).read_bytes()).hexdigest() for line in said}
    assert done == digests and sum(map(len, moved(place))) - 1 == 200  # beside the file of the lock
    assert sorted(os.listdir(place.done / "unreadable")) == ["007.png", "057.png", "107.png", "157.png"]
