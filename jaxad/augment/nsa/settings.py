"""NSA's settings for every category of the paper, in one table.

Schlüter et al. 2022, Table 4 and Section 4.1, as the authors' program uses them: patch sizes are *half*-sizes, as
fractions of the image's height and width. ``SETTINGS["object"]`` and ``SETTINGS["texture"]`` are for your own images;
"cap", "fabric" and "wood_screw" are the demo's categories, small enough for minutes on two CPU cores.
"""

import difflib
from typing import NamedTuple

from jaxad.errors import UserError

# What the choices below, and that of the label, may be. "factor" is the label of FPI and PII.
SOURCES = ("other", "same")
SHAPES = ("rectangle", "cutpaste", "ellipses")
BLENDINGS = ("source", "mixed", "paste", "interpolate")
CONTINUOUS = ("continuous", "continuous_sigmoid")  # the same label, learnt in two ways
LABELS = ("binary", *CONTINUOUS, "logistic", "factor")
# Where the paper's text differs from the authors' program, which comes first.
SIZE_BOUNDS = ("half", "full")
OBJECT_TESTS = ("source", "destination")


class Synthesis(NamedTuple):
    """What the synthetic defects of a category look like.

    Attributes:
      half_height: Bounds of the patch's half-height, as fractions of the image height.
      half_width: Bounds of the patch's half-width, as fractions of the image width.
      gamma: Shape, scale and offset of the half-sizes' distribution, offset + Gamma(shape, scale).
      background: Brightness b and threshold t of the plain background in grey levels; None where there is none, and
        then no patch is rejected for what it shows.
      object_fraction: Smallest share of object pixels in a patch (exclusive).
      overlap: Smallest share of the patch's object that lands on the destination's object (exclusive).
      patches: Most patches in an image.
      scale: Bounds of the factor by which a patch is resized.
      size_bounds: What a resized patch's full height and width are bounded by: "half", the bounds of the half-sizes, as
        in the authors' program; or "full", twice these, with one factor for both sides, as Equation 9 is printed. In
        both ``scale`` bounds the factor too (Section 3 and Table 4).
      object_test: Where ``object_fraction`` is asked for again at the destination: of the "source", the resized patch,
        as in the authors' program; or of the "destination" below it, as Equation 11 is printed.
      source: "other" for patches of another image, "same" for patches of the image itself (CutPaste end-to-end).
      shape: "rectangle" for boxes with Gamma-distributed sides, "cutpaste" for CutPaste's boxes (ablation C), or
        "ellipses" for the union of 5 random ellipses in such a rectangle (ablation D).
      resized: Whether patches are resized by ``scale``.
      moved: Whether a patch goes to another place, or stays where it was cut (FPI, PII).
      blending: "source" or "mixed", the guidance field of Poisson blending; "paste" for the patch as it is (CutPaste
        end-to-end); "interpolate" for the mean of image and patch, weighted by the factor (FPI).
      factor: Bounds of the uniform factor by which a patch is blended, one for all patches of an image. Poisson
        blending weights the patch's gradients by it (PII).
      tolerance: The change in grey levels, as a mean over the channels, from which on (exclusive) a pixel counts as
        changed: 1 in the authors' program, 0 as Equation 13 is printed.
      steepness: k of the logistic label, per grey level.
      midpoint: y0 of the logistic label, in grey levels.
    """

    half_height: tuple[float, float] = (0.03, 0.40)
    half_width: tuple[float, float] = (0.03, 0.40)
    gamma: tuple[float, float, float] = (2.0, 0.05, 0.03)
    background: tuple[float, float] | None = None
    object_fraction: float = 0.70
    overlap: float = 0.25
    patches: int = 3
    scale: tuple[float, float] = (0.7, 1.3)
    size_bounds: str = "half"
    object_test: str = "source"
    source: str = "other"
    shape: str = "rectangle"
    resized: bool = True
    moved: bool = True
    blending: str = "source"
    factor: tuple[float, float] = (1.0, 1.0)
    tolerance: float = 1.0
    steepness: float = 1 / 12
    midpoint: float = 24.0


class View(NamedTuple):
    """How a training image becomes the network's input.

    Attributes:
      resize: Side of the square that every image is resized to.
      rotation: Largest random rotation in degrees, 0 for none.
      center_crop: Side of the central square before the random crop, 0 for the whole image.
      crop: Side of the random crop, the network's input size in training.
      flip: Whether images are turned upside down at random.
      normalize: Whether the ImageNet mean and standard deviation are applied after synthesis.
    """

    resize: int = 256
    rotation: float = 0.0
    center_crop: int = 230
    crop: int = 224
    flip: bool = False
    normalize: bool = True


class Settings(NamedTuple):
    """One category's row: synthesis, training view and the number of epochs, the paper's for its categories."""

    synthesis: Synthesis
    view: View
    epochs: int = 320


_ALIGNED = View()
_ROTATED = View(rotation=5.0)
_TEXTURE_VIEW = View(resize=264, center_crop=0, crop=256, flip=True)
_DEMO_VIEW = View(resize=136, center_crop=0, crop=128)
_CHEST_VIEW = View(rotation=3.0, normalize=False)

_WHITE = (200.0, 60.0)  # bright background: brightness, threshold
_BLACK = (20.0, 20.0)

_TEXTURE = Settings(
    Synthesis(patches=4, scale=(0.5, 2.0), blending="mixed", steepness=1 / 3, midpoint=7.0), _TEXTURE_VIEW
)
_WOOD = _TEXTURE._replace(synthesis=_TEXTURE.synthesis._replace(steepness=1 / 6, midpoint=15.0))
_CHEST = Settings(
    Synthesis(
        gamma=(2.0, 0.03, 0.05), background=(0.0, 20.0), overlap=0.70, blending="mixed", steepness=1 / 2, midpoint=4.0
    ),
    _CHEST_VIEW,
    epochs=240,
)

SETTINGS: dict[str, Settings] = {
    "bottle": Settings(Synthesis(background=_WHITE), _ROTATED),
    "cable": Settings(Synthesis(half_height=(0.05, 0.40), half_width=(0.05, 0.40)), _ALIGNED),
    "capsule": Settings(
        Synthesis(half_height=(0.03, 0.15), background=_WHITE, steepness=1 / 2, midpoint=4.0), _ALIGNED
    ),
    "hazelnut": Settings(
        Synthesis(half_height=(0.03, 0.35), half_width=(0.03, 0.35), background=_BLACK), _ROTATED, epochs=560
    ),
    "metal_nut": Settings(
        Synthesis(background=_BLACK, object_fraction=0.50, steepness=1 / 3, midpoint=7.0), _ROTATED, epochs=560
    ),
    "pill": Settings(Synthesis(half_height=(0.03, 0.20), background=_BLACK, steepness=1 / 3, midpoint=7.0), _ALIGNED),
    "screw": Settings(
        Synthesis(
            half_height=(0.03, 0.12),
            half_width=(0.03, 0.12),
            background=_WHITE,
            object_fraction=0.50,
            patches=4,
            steepness=1.0,
            midpoint=3.0,
        ),
        _ROTATED,
        epochs=560,
    ),
    "toothbrush": Settings(
        Synthesis(half_width=(0.03, 0.20), background=_BLACK, object_fraction=0.25, steepness=1 / 6, midpoint=15.0),
        _ALIGNED,
    ),
    "transistor": Settings(Synthesis(steepness=1 / 6, midpoint=15.0), _ALIGNED),
    "zipper": Settings(
        Synthesis(half_width=(0.03, 0.20), background=_WHITE, patches=4, steepness=1 / 6, midpoint=15.0), _ALIGNED
    ),
    "carpet": _TEXTURE,
    "grid": _TEXTURE,
    "leather": _TEXTURE,
    "tile": _TEXTURE,
    "wood": _WOOD,
    "chest_xray_male": _CHEST,
    "chest_xray_female": _CHEST,
    "cap": Settings(Synthesis(steepness=1 / 3, midpoint=7.0), _DEMO_VIEW, epochs=64),
    "fabric": Settings(_TEXTURE.synthesis, _DEMO_VIEW._replace(flip=True), epochs=64),
    "wood_screw": Settings(
        Synthesis(half_height=(0.03, 0.20), half_width=(0.03, 0.20), steepness=1 / 3, midpoint=7.0),
        _DEMO_VIEW._replace(flip=True),
        epochs=64,
    ),
    "object": Settings(Synthesis(half_height=(0.05, 0.40), half_width=(0.05, 0.40)), _ALIGNED),
    "texture": _WOOD,
}


def settings(category: str) -> Settings:
    """The row of a category.

    Raises:
      UserError: There is no such row; the sentence names the nearest one.
    """
    if category in SETTINGS:
        return SETTINGS[category]
    near = difflib.get_close_matches(category, SETTINGS, n=1, cutoff=0.0)[0]
    raise UserError(
        f"NSA has no settings for category '{category}'; the nearest name is '{near}' "
        "('object' and 'texture' are for images of your own)",
        about="category",
    )
