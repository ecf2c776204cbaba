"""How CutPaste and the other proxy tasks change an image."""

from typing import NamedTuple


class CutPasteOptions(NamedTuple):
    """How the proxy tasks change an image; the defaults are the paper's where it gives any.

    Attributes:
      area: Bounds of a patch's area, as shares of the square of the image's shorter side; Appendix A.3 also tries 0.1,
        0.2 and 0.3 for the second.
      aspect: Bounds of a patch's height over its width; half of the draws lie below 1 and half above.
      scar_width: Fewest and most pixels across a scar, in an image of 256.
      scar_length: Fewest and most pixels along a scar, in an image of 256.
      scar_angle: Largest rotation of a scar in degrees, in both directions.
      side: Side of the whole image in pixels where the images given are crops of it (the patch model); 0 where they
        are whole. Scars are scaled by side / 256.
      jitter: Largest colour jitter of a patch before it is pasted, 0 for none; Appendix A.3 tries 0, 0.2 and 0.3.
      confetti: Largest shift of each colour channel by the confetti noise (the paper gives none).
      translation: Largest random shift of every image, class 0 included, as a share of its side (the paper gives none).
      image_jitter: Largest colour jitter of every image, class 0 included (the paper gives none).
    """

    area: tuple[float, float] = (0.02, 0.15)
    aspect: tuple[float, float] = (0.3, 3.3)
    scar_width: tuple[int, int] = (2, 16)
    scar_length: tuple[int, int] = (10, 25)
    scar_angle: float = 45.0
    side: int = 0
    jitter: float = 0.1
    confetti: float = 0.5
    translation: float = 0.05
    image_jitter: float = 0.1
