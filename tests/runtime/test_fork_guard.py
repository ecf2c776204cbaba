"""A detector in other processes: passed to spawned ones by its path, refused at once in forked ones.

Each test is a program of its own, since forking this process, in which JAX has run, is what a user must not do.
"""

import os
import pickle
import shutil
import subprocess
import sys

import pytest

import jaxad
from tests.commands import train
from tests.parts import ROOT, baseline, command, write_parts
from tests.refusals import refuses
from tests.test_detector import baseline as unsaved

TRAIN = """
import numpy as np, sys
import jaxad
image = np.random.default_rng(0).integers(90, 110, (48, 40, 3)).astype(np.uint8)
"""

FORKED = TRAIN + """
import multiprocessing, os, warnings
warnings.simplefilter("ignore")  # Python and JAX warn of the fork, which a user may overlook
detector = jaxad.load(sys.argv[1])
detector.predict([image])
others = detector.with_weights
stack = np.zeros((1, 32, 32, 3), np.uint8)
calls = {
    "predict": lambda: detector.predict([image]),
    "score": lambda: detector.score(stack),
    "prepare": lambda: detector.prepare(8),
    "with_weights": lambda: detector.with_weights(detector.variables, detector.density),
    "load": lambda: jaxad.load(sys.argv[1]),
}
for name, call in calls.items():
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            call()
            told = "computed"
        except jaxad.detector.UserError as error:
            told = f"refused: {error}"
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    print(name, os.read(reader, 10_000).decode(), flush=True)
    os.waitpid(child, 0)
with multiprocessing.get_context("fork").Pool(1) as pool:  # as PyTorch's DataLoader starts its workers
    try:
        pool.apply(detector.predict, ([image],))
    except jaxad.detector.UserError as error:
        print("pool", "refused:", error)
print("parent", detector.predict([image])[0].score == detector.predict([image])[0].score)
"""

SPAWNED = TRAIN + """
import multiprocessing, os, shutil
def score(detector):
    os.chdir("/")
    [made] = detector.predict([image])
    return made.score, made.threshold, detector.config.evaluate.batch, detector.channels
if __name__ == "__main__":
    detector = jaxad.load(sys.argv[1], {"evaluate.batch": 3})
    gone = os.path.abspath(sys.argv[2])
    again = jaxad.load(sys.argv[2])
    shutil.rmtree(gone)  # as a workdir that the other process does not see
    detector.threshold = 1.5  # as the user sets it, not as it was fitted
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(score, [detector]) == [score(detector)], pool.map(score, [detector])
        assert score(detector)[1:] == (1.5, 3, 3)
        try:
            pool.map(score, [again])
        except jaxad.detector.UserError as error:
            assert str(error).startswith(f"{gone} is no workdir"), error
        else:
            raise AssertionError
    print("same")
"""

FORKED_BEFORE = TRAIN + """
import os, warnings
import jaxad.detector
if not (child := os.fork()):
    print("child", jaxad.load(sys.argv[1]).predict([image])[0].score > 0, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", jaxad.load(sys.argv[1]).predict([image])[0].score > 0)
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fork")
    assert command(train.main, *baseline(write_parts(folder / "sets"), folder / "w")) == 0
    return folder / "w"


def run(program, folder, *workdirs, cwd=ROOT) -> str:
    """The output of a program; it must end within a minute."""
    path = folder / "program.py"
    path.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, path, *workdirs], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.medium
def test_a_forked_worker_is_refused_at_once(tmp_path, workdir):
    *rows, parent = run(FORKED, tmp_path, workdir).splitlines()
    assert [row.split()[0] for row in rows] == ["predict", "score", "prepare", "with_weights", "load", "pool"]
    for row in rows:
        assert " refused: this process was forked from one that has a detector, " in row
        assert 'start workers by multiprocessing.get_context("spawn"), and pass them the detector or load it' in row
    assert parent == "parent True"


@pytest.mark.slow
def test_a_worker_forked_before_anything_was_loaded_may_load(tmp_path, workdir):
    assert sorted(run(FORKED_BEFORE, tmp_path, workdir).split()) == ["True", "True", "child", "parent"]


@pytest.mark.slow
def test_a_spawned_worker_gets_the_detector_by_its_path(tmp_path, workdir):
    shutil.copytree(workdir, tmp_path / "copy")
    assert run(SPAWNED, tmp_path, os.path.relpath(workdir, tmp_path), "copy", cwd=tmp_path) == "same\n"


@pytest.mark.medium
def test_what_is_pickled_is_a_path(workdir):
    found = jaxad.load(workdir)
    text = pickle.dumps(found)
    assert str(workdir).encode() in text and len(text) < 1000
    assert pickle.loads(text).predict(str(workdir.parent / "sets/nut/test/spot/000.png"))[0].score > 0


def test_a_detector_that_was_never_saved_cannot_be_pickled(tmp_path):
    with refuses(None, "workdir"):
        pickle.dumps(unsaved())
    with refuses(None, "workdir"):
        pickle.dumps(unsaved().with_weights({}, {}))


@pytest.mark.medium
def test_a_detector_that_was_trained_again_meanwhile_is_refused(tmp_path, workdir):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    text = pickle.dumps(jaxad.load(copy))
    other = jaxad.load(copy)
    other.heat_range = (0.25, 0.5)
    other.save(copy)
    assert pickle.loads(pickle.dumps(other)).heat_range == (0.25, 0.5)  # what is saved can be passed on
    again = pickle.loads(text)  # an error here would leave a pool waiting for ever
    for use in (lambda: again.predict([]), lambda: again.config, lambda: pickle.dumps(again)):
        with refuses(copy, "again"):
            use()
