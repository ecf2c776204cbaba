"""The stream of batches: a function of seed and step, whatever the workers, the memory and the starting point."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxad import config as configs
from jaxad.data import pipeline
from jaxad.data.demo import source as demo
from jaxad.data.geometry import Geometry
from jaxad.data.record import Record
from jaxad.errors import UserError
from jaxad.methods import nsa
from tests.parts import NSA, ROOT
from tests.refusals import refuses


class Numbered:
    """Source of `count` plain grey images whose grey level is their number; `broken` cannot be read."""

    def __init__(self, count: int, broken: int | None = None):
        self.count, self.broken, self.decoded = count, broken, 0
        self.ids, self.labels, self.defects = [str(n) for n in range(count)], [0] * count, ["good"] * count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        self.decoded += 1
        if index == self.broken:
            raise UserError(f"image {index} is corrupt")
        mask = np.zeros((48, 40), np.uint8)
        mask[:, 20:] = 1
        return Record(np.full((48, 40, 3), index, np.uint8), 0, mask, self.ids[index], "good")


def which(rng: np.random.Generator, image: np.ndarray, partner: np.ndarray) -> dict[str, np.ndarray]:
    """A host example that tells which images it was made of, and a random number."""
    return {"image": image, "number": image[0, 0, 0], "partner": partner[0, 0, 0], "draw": rng.random()}


def numbered(count: int, *, cache_bytes: float = 1e9, broken: int | None = None) -> pipeline.Images:
    return pipeline.Images(
        Numbered(count, broken), np.arange(count), geometry=Geometry((32, 32)), cache_bytes=cache_bytes
    )


def stream(images: pipeline.Images, example=which, **options) -> list[dict[str, np.ndarray]]:
    """The stream's batches, one by one and copied: arrays of worker processes live in shared memory."""
    defaults = {"seed": 0, "batch": 4, "start": 0, "stop": 10, "workers": 0}
    calls = pipeline.batches(images, example, **defaults | options)
    per_call = options.get("per_call", 1)
    return [{name: np.array(rows[step]) for name, rows in call.items()} for call in calls for step in range(per_call)]


def assert_identical(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def nsa_stream():
    """Seven demo images, NSA's host part, and the first six batches made without workers."""
    size = {"data.size": "64", "view.crop": "64"}
    config = configs.load(f"{NSA}:cap", size)
    source = demo.load("cap", size=64, train=7).train
    images = pipeline.Images(source, np.arange(7), geometry=Geometry((64, 64)), cache_bytes=1e9)
    example = nsa.HostExample(config)
    return images, example, stream(images, example, stop=6)


def test_opencv_has_one_thread_for_a_while_only():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    with pytest.raises(RuntimeError), pipeline.opencv_on_one_thread():
        assert cv2.getNumThreads() == 1
        raise RuntimeError
    assert cv2.getNumThreads() == 3
    cv2.setNumThreads(before)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(nsa_stream, workers: int) -> None:
    images, example, expected = nsa_stream
    assert max(batch["label"].max() for batch in expected) > 0.5  # there is something to be equal
    assert_identical(stream(images, example, stop=6, workers=workers), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "workers"), [(1, 0), (5, 0), (3, 2)])
def test_resuming_slices_the_stream(nsa_stream, start: int, workers: int) -> None:
    images, example, expected = nsa_stream
    assert_identical(stream(images, example, start=start, stop=6, workers=workers), expected[start:])


def test_processes_make_the_rows_of_one_stream() -> None:
    images, options = numbered(5), {"batch": 6, "start": 1, "stop": 5, "per_call": 2}
    whole = stream(images, **options)
    parts = zip(*(stream(images, **options, part=(k, 3)) for k in range(3)), strict=True)
    assert_identical([{name: np.concatenate([part[name] for part in row]) for name in row[0]} for row in parts], whole)
    assert whole[0]["index"].tolist() == [6, 7, 8, 9, 10, 11]


def test_streaming_from_disk_equals_the_cache(nsa_stream) -> None:
    _, example, expected = nsa_stream
    source = demo.load("cap", size=64, train=7).train
    images = pipeline.Images(source, np.arange(7), geometry=Geometry((64, 64)), cache_bytes=7 * 64 * 64 * 3 - 1)
    assert_identical(stream(images, example, stop=2), expected[:2])


def test_cache_decodes_once_and_its_bound_holds() -> None:
    cached, streamed = numbered(5, cache_bytes=5 * 32 * 32 * 3), numbered(5, cache_bytes=5 * 32 * 32 * 3 - 1)
    for images in (cached, streamed):
        for _ in range(3):
            assert images[4].shape == (32, 32, 3) and images[4].dtype == np.uint8
    assert cached._source.decoded == 5
    assert streamed._source.decoded == 6
    np.testing.assert_array_equal(cached.stack(), streamed.stack())


def test_every_epoch_shows_every_image_once_in_a_new_order() -> None:
    steps = stream(numbered(7), stop=14, batch=4)  # 56 examples: 8 epochs, whose borders lie inside batches
    epochs = np.concatenate([step["number"] for step in steps]).reshape(8, 7)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(7), (8, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 8
    positions = np.concatenate([step["index"] for step in steps])
    np.testing.assert_array_equal(positions, np.arange(56))
    assert positions.dtype == np.int32


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_steps_of_a_call_are_those_of_single_calls(workers: int) -> None:
    images = numbered(7)
    assert_identical(stream(images, start=2, stop=8, per_call=3, workers=workers), stream(images, start=2, stop=8))
    (call,) = pipeline.batches(images, which, seed=0, batch=4, start=0, stop=5, per_call=5)
    assert call["image"].shape == (5, 4, 32, 32, 3) and call["index"].shape == (5, 4)


def test_numbers_of_images_are_drawn_as_the_images_are() -> None:
    """What the devices look up by their numbers is what they would have been sent."""
    images = numbered(7)
    sent, drawn = stream(images, None), stream(np.arange(7, dtype=np.int32), None)
    told = stream(images)
    for batch, numbers, other in zip(sent, drawn, told, strict=True):
        assert numbers["image"].dtype == np.int32 and numbers["image"].shape == (4,)
        np.testing.assert_array_equal(batch["image"], images.stack()[numbers["image"]])
        np.testing.assert_array_equal(batch["partner"], images.stack()[numbers["partner"]])
        np.testing.assert_array_equal(numbers["image"], other["number"])
        np.testing.assert_array_equal(numbers["partner"], other["partner"])
        np.testing.assert_array_equal(batch["index"], other["index"])
        assert (numbers["image"] != numbers["partner"]).all()


def test_batch_larger_than_the_dataset_is_full() -> None:
    (step,) = stream(numbered(3), batch=8, stop=1)
    assert step["image"].shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(np.sort(step["number"][:3]), [0, 1, 2])
    np.testing.assert_array_equal(np.sort(step["number"][3:6]), [0, 1, 2])
    assert len(set(step["draw"].tolist())) == 8  # an image that repeats is augmented anew


def test_partner_is_any_other_image() -> None:
    steps = stream(numbered(4), stop=60)
    pairs = {(int(n), int(p)) for step in steps for n, p in zip(step["number"], step["partner"], strict=True)}
    assert pairs == {(n, p) for n in range(4) for p in range(4) if n != p}


def test_randomness_is_of_seed_and_position_alone() -> None:
    first = np.concatenate([step["draw"] for step in stream(numbered(7), stop=4)])
    assert len(set(first.tolist())) == 16
    rebatched = np.concatenate([step["draw"] for step in stream(numbered(7), batch=8, stop=2)])
    np.testing.assert_array_equal(first, rebatched)
    other = np.concatenate([step["draw"] for step in stream(numbered(7), seed=1, stop=4)])
    assert not set(first.tolist()) & set(other.tolist())


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_the_stream_with_its_sentence(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        stream(numbered(5, cache_bytes=0, broken=3), workers=workers)
    assert str(caught.value) == "image 3 is corrupt"


KILLED = """
import os, signal
from tests.data import test_pipeline as t
stream = t.pipeline.batches(t.numbered(5), t.process, seed=0, batch=4, start=0, stop=1000, workers=1)
print(int(next(stream)["process"][0, 0]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def process(rng: np.random.Generator, image: np.ndarray, partner: np.ndarray) -> dict[str, np.ndarray]:
    """A host example that tells which process made it."""
    return {"process": np.int64(os.getpid())}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_workers_end_with_a_killed_training_process() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = Path("/proc") / done.stdout.strip() / "status"
    end = time.monotonic() + 30
    while worker.exists() and "(zombie)" not in worker.read_text():
        assert time.monotonic() < end, f"{worker} still runs"
        time.sleep(0.05)


IDS = [f"train/good/{number}" for number in range(120)]


def test_holdout_is_a_random_fixed_part() -> None:
    fitted, held = pipeline.split_holdout(IDS, holdout=0.1, seed=0)
    assert len(held) == 12
    np.testing.assert_array_equal(np.sort(np.concatenate([fitted, held])), np.arange(120))
    np.testing.assert_array_equal(pipeline.split_holdout(IDS, holdout=0.1, seed=0)[1], held)
    assert not np.array_equal(pipeline.split_holdout(IDS, holdout=0.1, seed=1)[1], held)
    fitted, held = pipeline.split_holdout(IDS[:2], holdout=0.0, seed=0)
    assert (len(fitted), len(held)) == (2, 0)


@pytest.mark.parametrize("holdout", [-0.1, 1.0])
def test_holdout_must_be_a_fraction(holdout: float) -> None:
    with refuses("data.holdout", "[0, 1)"):
        pipeline.split_holdout(IDS, holdout=holdout, seed=0)


def test_holdout_leaves_two_images() -> None:
    with refuses(None, "2 good"):
        pipeline.split_holdout(IDS[:2], holdout=0.5, seed=0)


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_validation_images_are_held_out_in_place_of_a_share(holdout: float) -> None:
    ids = [*IDS[:3], "validation/good/0", IDS[3], "validation/good/1"]
    fitted, held = pipeline.split_holdout(ids, holdout=holdout, seed=0)
    assert (fitted.tolist(), held.tolist()) == ([0, 1, 2, 4], [3, 5])
    with refuses(None, "2 good"):
        pipeline.split_holdout(ids[2:4], holdout=holdout, seed=0)


def test_read_all_keeps_order_and_squeezes_both_image_and_mask() -> None:
    records = pipeline.read_all(Numbered(6), Geometry((32, 32)))
    assert [record.id for record in records] == [str(n) for n in range(6)]
    assert all(record.image.shape == (32, 32, 3) and record.image[0, 0, 0] == n for n, record in enumerate(records))
    assert all(record.mask.shape == (32, 32) and record.mask[:, 16:].all() for record in records)
    assert not any(record.mask[:, :16].any() for record in records)
