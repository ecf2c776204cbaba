"""Which images are scored together, with a detector that only notes it."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from jaxad.methods.method import Scores
from jaxad.predict import Seen
from jaxad.serving.scorer import Scorer, sizes

LONG = 600.0  # seconds that no test waits


class Noting:
    """A detector whose score of an image is its first pixel, and which notes the batches that it is given.

    While it is held (`free` is cleared) it does not answer, so that images gather behind the batch that it works on.
    """

    def __init__(self):
        self.prepared, self.calls, self.free = [], [], threading.Event()
        self.free.set()

    def prepare(self, size):
        self.prepared.append(size)

    def score(self, stack, *, batch, boxes):
        self.calls.append((len(stack), batch))
        assert self.free.wait(20)
        if stack[0, 0, 0, 0] == 255:
            raise MemoryError
        return Scores(stack[:, 0, 0, 0].astype(np.float32), stack[..., 0].astype(np.float32))


def seen(value):
    return Seen(SimpleNamespace(name="a"), "", None, resized=np.full((2, 2, 1), value, np.uint8), box=(0, 0, 2, 2))


@pytest.fixture
def started():
    """Makes scorers that have been started, and stops them."""
    made = []

    def make(*detectors, **options):
        made.append(Scorer(**options))
        made[-1].start(list(detectors))
        return made[-1]

    yield make
    for scorer in made:
        scorer.stop()


def test_programs_are_compiled_for_powers_of_two_and_the_whole_batch():
    assert [sizes(batch) for batch in (1, 2, 3, 4, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


def test_a_full_batch_does_not_wait(started):
    found = Noting()
    scorer = started(found, batch=3, wait=LONG)
    assert found.prepared == [1, 2, 3]
    futures = [scorer.submit(found, seen(value)) for value in (5, 7, 9)]
    assert [future.result(20)[0] for future in futures] == [5, 7, 9]
    assert found.calls == [(3, 3)] and futures[1].result()[1].tolist() == [[7, 7], [7, 7]] and scorer.waiting() == 0


def test_a_batch_that_is_not_full_waits_as_long_as_it_may(started):
    found = Noting()
    scorer = started(found, batch=8, wait=0.2)
    begun = time.monotonic()
    assert scorer.submit(found, seen(1)).result(20)[0] == 1
    assert time.monotonic() - begun >= 0.2
    hold(scorer, found)
    futures = [scorer.submit(found, seen(value)) for value in (2, 3, 4)]
    found.free.set()
    assert [future.result(20)[0] for future in futures] == [2, 3, 4]
    assert found.calls == [(1, 1), (1, 1), (3, 4)]


def hold(scorer, found):
    """Lets a detector work on an image until it is set free."""
    found.free.clear()
    before = len(found.calls)
    scorer.submit(found, seen(0))
    end = time.monotonic() + 20
    while len(found.calls) == before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_detectors_are_not_mixed(started):
    one, other = Noting(), Noting()
    scorer = started(one, other, batch=2, wait=0.2)
    hold(scorer, one)
    futures = [scorer.submit(found, seen(value)) for value, found in enumerate((one, other, one, other, other))]
    one.free.set()
    assert [future.result(20)[0] for future in futures] == [0, 1, 2, 3, 4]
    assert one.calls == [(1, 1), (2, 2)] and other.calls == [(2, 2), (1, 1)]


def test_an_error_fails_its_batch_alone(started):
    found = Noting()
    scorer = started(found, batch=1, wait=0)
    futures = [scorer.submit(found, seen(value)) for value in (255, 4)]
    with pytest.raises(MemoryError):
        futures[0].result(20)
    assert futures[1].result(20)[0] == 4


def test_who_has_left_is_not_scored(started):
    found = Noting()
    scorer = started(found, batch=2, wait=LONG)
    left = scorer.submit(found, seen(1))
    assert left.cancel()
    assert scorer.submit(found, seen(2)).result(20)[0] == 2
    assert found.calls == [(1, 1)]


def test_stopping_scores_what_waits_and_takes_no_more():
    found, scorer = Noting(), Scorer(batch=4, wait=LONG)
    scorer.start([found])
    future = scorer.submit(found, seen(3))
    scorer.stop()
    assert future.result(0)[0] == 3
    with pytest.raises(RuntimeError):
        scorer.submit(found, seen(3))
