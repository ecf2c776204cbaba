import itertools
import pickle

import numpy as np
import pytest

from jaxad.data.geometry import Geometry
from jaxad.data.pipeline import Images
from jaxad.data.record import Record
from jaxad.data.tiling import Tiles, Tiling


class Numbers:
    """Records whose pixels tell the image, the row and the column; `opened` counts how often one is decoded."""

    def __init__(self, count, size):
        self.count, self.size, self.opened = count, size, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.opened += 1
        rows, columns = np.indices(self.size)
        image = np.stack([np.full(self.size, index), rows, columns], axis=-1).astype(np.uint8)
        return Record(image, 0, None, str(index), "good")


@pytest.mark.parametrize(
    ("size", "side", "overlap", "corners"),
    [
        ((64, 64), 64, 0.5, [(0, 0)]),
        ((64, 128), 64, 0.0, [(0, 0), (0, 64)]),
        ((64, 128), 64, 0.125, [(0, 0), (0, 32), (0, 64)]),  # two would have nothing in common
        ((64, 129), 64, 0.0, [(0, 0), (0, 32), (0, 65)]),
        ((120, 64), 64, 0.125, [(0, 0), (56, 0)]),
        ((120, 120), 64, 0.125, [(0, 0), (0, 56), (56, 0), (56, 56)]),
    ],
)
def test_corners_by_hand(size, side, overlap, corners):
    assert Tiling(size, side, overlap).corners() == corners


@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.3, 0.5])
@pytest.mark.parametrize("size", [(64, 64), (64, 1000), (97, 331)])
def test_tiles_cover_the_frame_overlap_enough_and_count_one_in_all(size, overlap):
    tiling = Tiling(size, 64, overlap)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in tiling.corners()})
        assert starts[0] == 0 and starts[-1] == size[axis] - 64
        assert all(64 - (after - before) >= overlap * 64 - 1 for before, after in itertools.pairwise(starts))
    own, total = tiling.weights()
    shares = np.zeros(size)
    for place in tiling.places():
        shares[place] += own / total[place]
    np.testing.assert_allclose(shares, 1, rtol=1e-5)
    assert own.min() > 0


def test_a_joined_map_has_no_seams():
    """Tiles whose maps differ by a constant are joined without a step of more than a part of it."""
    tiling = Tiling((64, 200), 64, 0.25)
    own, total = tiling.weights()
    joined = np.zeros(tiling.size)
    for number, place in enumerate(tiling.places()):
        joined[place] += own * number
    joined /= total
    steps = np.abs(np.diff(joined[32]))
    assert steps.max() <= 1 / 15 and joined.min() == 0 and joined.max() == len(tiling.corners()) - 1


def test_tiles_are_those_of_the_first_image_then_of_the_next_and_none_is_decoded_for_each():
    source, tiling = Numbers(3, (64, 96)), Tiling((64, 96), 32, 0.0)
    tiles = Tiles(Images(source, np.array([2, 0]), geometry=Geometry((64, 96)), cache_bytes=0), tiling)
    assert len(tiles) == 12 and tiles.nbytes == 12 * 32 * 32 * 3
    stack = tiles.stack()
    assert source.opened == 2
    assert stack[:, 0, 0].tolist() == [
        [image, row, column] for image in (2, 0) for row in (0, 32) for column in (0, 32, 64)
    ]
    assert (stack[7] == tiles[7]).all() and tiles[7].flags.c_contiguous
    assert tiling.rows(np.array([0, 2])).tolist() == [*range(6), *range(12, 18)]
    third = Tiles(Images(source, np.arange(3), geometry=Geometry((64, 96)), cache_bytes=0), tiling, number=2)
    assert third.stack()[:, 0, 0].tolist() == [[image, 0, 64] for image in range(3)]


def test_tiles_travel_to_workers_and_remember_few_frames():
    source, tiling = Numbers(9, (64, 96)), Tiling((64, 96), 32, 0.0)
    tiles = Tiles(Images(source, np.arange(9), geometry=Geometry((64, 96)), cache_bytes=0), tiling)
    before = tiles.stack()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tiles)).stack(), before)
    assert len(tiles._kept) == 4
