"""The table of MVTec LOCO AD that says how much of a defect is enough."""

import json

import pytest

from jaxad.data import saturation
from jaxad.data.saturation import Saturation
from tests.refusals import refuses

ROW = {"defect_name": "x", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True}


@pytest.mark.parametrize("threshold, relative, area, share", [
    (0.5, True, 10, 0.5),
    (0.5, True, 7, 3 / 7),  # whole pixels, as in the authors' program
    (0.1, True, 7, 1 / 7),  # of which the authors' program would divide by none
    (1.0, True, 7, 1.0),
    (8, False, 32, 0.25),
    (8, False, 7, 1.0),
])  # fmt: skip
def test_share(threshold, relative, area, share):
    assert Saturation(threshold, relative).share(area) == share


def test_the_table(tmp_path):
    other = {"pixel_value": 254, "saturation_threshold": 25000, "relative_saturation": False}
    (tmp_path / saturation.NAME).write_text(json.dumps([ROW, other]))
    found = saturation.read(tmp_path / saturation.NAME, "unpack it")
    assert found == {255: Saturation(0.5, True), 254: Saturation(25000, False)}


@pytest.mark.parametrize("text, word", [
    ("[", "damaged"),
    ("{}", "damaged"),
    ("[3]", "entry 1"),
    (json.dumps([ROW, ROW | {"pixel_value": 0}]), "entry 2"),
    (json.dumps([ROW | {"pixel_value": True}]), "entry 1"),
    (json.dumps([ROW | {"saturation_threshold": 1.5}]), "entry 1"),
    (json.dumps([ROW | {"saturation_threshold": 0}]), "entry 1"),
    (json.dumps([ROW | {"saturation_threshold": "0.5"}]), "entry 1"),
    (json.dumps([ROW | {"relative_saturation": 1}]), "entry 1"),
    (json.dumps([{"pixel_value": 1}]), "saturation_threshold"),
])  # fmt: skip
def test_a_table_that_says_something_else(tmp_path, text, word):
    path = tmp_path / saturation.NAME
    path.write_text(text)
    with refuses(path, word) as caught:
        saturation.read(path, "unpack it again")
    assert str(caught.value).endswith("unpack it again")


def test_no_table(tmp_path):
    with refuses(tmp_path / "no.json", "No such file"):
        saturation.read(tmp_path / "no.json", "unpack it again")
