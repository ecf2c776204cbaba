"""A file of arrays and values: what comes back, and that no damage passes."""

import jax
import numpy as np
import pytest

from jaxad.runtime import arrays


def test_arrays_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    held = {"a": {"b": rng.normal(size=(3, 2)), "c": np.asarray(7)}, "d": rng.integers(0, 255, (4, 5)).astype(np.uint8)}
    arrays.write(tmp_path / "x.npz", held, {"n": [1, "é"]})
    found, values = arrays.read(tmp_path / "x.npz")
    assert values == {"n": [1, "é"]}
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(held), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert jax.tree.structure(found) == jax.tree.structure(held)


def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path):
    path, held = tmp_path / "x.npz", {"a": np.arange(5.0), "b": {"c": np.arange(3, dtype=np.uint8)}}
    arrays.write(path, held, {"n": 1})
    content, told = path.read_bytes(), 0
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                found, values = arrays.read(path)
            except ValueError:
                told += 1
                continue
            assert values == {"n": 1}
            np.testing.assert_array_equal(found["a"], held["a"])
            np.testing.assert_array_equal(found["b"]["c"], held["b"]["c"])
    assert told > 4 * len(content)


def test_another_file_and_none_are_told(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"hello")
    with pytest.raises(ValueError):
        arrays.read(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError):
        arrays.read(tmp_path / "y.npz")
