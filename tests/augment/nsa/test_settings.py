import pytest

from jaxad.augment.nsa.settings import SETTINGS, settings
from tests.refusals import refuses

# Table 4 of the paper, with full patch sizes: n; h_min, h_max; w_min, w_max; b, t; t_object; t_overlap; s; y0; 1/k.
TABLE_4 = """
bottle            3 .06 .80 .06 .80 200 60 .70 .25 0.7 1.3 24 12
cable             3 .10 .80 .10 .80   -  -   -   - 0.7 1.3 24 12
capsule           3 .06 .30 .06 .80 200 60 .70 .25 0.7 1.3  4  2
hazelnut          3 .06 .70 .06 .70  20 20 .70 .25 0.7 1.3 24 12
metal_nut         3 .06 .80 .06 .80  20 20 .50 .25 0.7 1.3  7  3
pill              3 .06 .40 .06 .80  20 20 .70 .25 0.7 1.3  7  3
screw             4 .06 .24 .06 .24 200 60 .50 .25 0.7 1.3  3  1
toothbrush        3 .06 .80 .06 .40  20 20 .25 .25 0.7 1.3 15  6
transistor        3 .06 .80 .06 .80   -  -   -   - 0.7 1.3 15  6
zipper            4 .06 .80 .06 .40 200 60 .70 .25 0.7 1.3 15  6
carpet            4 .06 .80 .06 .80   -  -   -   - 0.5 2.0  7  3
grid              4 .06 .80 .06 .80   -  -   -   - 0.5 2.0  7  3
leather           4 .06 .80 .06 .80   -  -   -   - 0.5 2.0  7  3
tile              4 .06 .80 .06 .80   -  -   -   - 0.5 2.0  7  3
wood              4 .06 .80 .06 .80   -  -   -   - 0.5 2.0 15  6
chest_xray_male   3 .06 .80 .06 .80   0 20 .70 .70 0.7 1.3  4  2
chest_xray_female 3 .06 .80 .06 .80   0 20 .70 .70 0.7 1.3  4  2
"""
ROWS = [line.split() for line in TABLE_4.split("\n") if line]
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_synthesis_settings_are_the_papers(row):
    name, patches, *cells = row
    numbers = [None if cell == "-" else float(cell) for cell in cells]
    synthesis = settings(name).synthesis
    assert synthesis.patches == int(patches)
    assert [2 * x for x in (*synthesis.half_height, *synthesis.half_width)] == pytest.approx(numbers[:4])
    if numbers[4] is None:
        assert synthesis.background is None
    else:
        assert [*synthesis.background, synthesis.object_fraction, synthesis.overlap] == numbers[4:8]
    assert [*synthesis.scale] == numbers[8:10]
    assert synthesis.midpoint == numbers[10]
    assert 1 / synthesis.steepness == pytest.approx(numbers[11])
    mixed = name in TEXTURES or name.startswith("chest")
    assert synthesis.blending == ("mixed" if mixed else "source")
    assert synthesis.gamma == ((2.0, 0.03, 0.05) if name.startswith("chest") else (2.0, 0.05, 0.03))


@pytest.mark.parametrize("name", [row[0] for row in ROWS])
def test_view_settings_are_the_papers(name):
    view = settings(name).view
    rotated = {"bottle": 5, "hazelnut": 5, "metal_nut": 5, "screw": 5, "chest_xray_male": 3, "chest_xray_female": 3}
    assert view.rotation == rotated.get(name, 0)
    expected = (264, 0, 256, True) if name in TEXTURES else (256, 230, 224, False)
    assert (view.resize, view.center_crop, view.crop, view.flip) == expected
    assert view.normalize == (not name.startswith("chest"))


def test_epochs():
    epochs = {name: row.epochs for name, row in SETTINGS.items()}
    assert {name for name, count in epochs.items() if count == 560} == {"hazelnut", "metal_nut", "screw"}
    assert {name for name, count in epochs.items() if count == 240} == {"chest_xray_male", "chest_xray_female"}
    assert {name for name, count in epochs.items() if count == 64} == {"cap", "fabric", "wood_screw"}
    assert set(epochs.values()) == {64, 240, 320, 560}


def test_generic_rows_have_no_background_and_no_rotation():
    assert settings("object").synthesis == settings("cable").synthesis
    assert settings("texture") == settings("wood")
    assert settings("object").view.rotation == 0


@pytest.mark.parametrize(("wrong", "right"), [("botle", "bottle"), ("metalnut", "metal_nut"), ("Screw", "screw")])
def test_unknown_category_names_the_nearest(wrong, right):
    with refuses("category", f"'{right}'"):
        settings(wrong)
