"""What the server was asked for, and what a request may ask for."""

import math
from typing import NamedTuple

from starlette.datastructures import QueryParams

HEATMAPS = ("none", "overlay", "layers")
QUERY = ("detector", "heatmap", "pixel_threshold")


class Limits(NamedTuple):
    """What the server takes of one request, and of all together.

    Attributes:
      upload: Bytes of a request's body.
      files: Images of a request.
      queue: Requests that are worked on at a time.
      read: Seconds that a request's bytes may take to come.
    """

    upload: int
    files: int
    queue: int
    read: float


class Refusal(Exception):
    """A request that is answered with an error: its status, one sentence, and headers."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Asked(NamedTuple):
    """What the query of a request says.

    Attributes:
      detector: The name of the detector.
      heatmap: One of `HEATMAPS`.
      level: The threshold for pixels; None for the detector's own.
    """

    detector: str
    heatmap: str
    level: float | None


def asked(query: QueryParams, names: list[str]) -> Asked:
    """Reads the query of a request; `names` are those of the detectors, of which the first is the default.

    Raises:
      Refusal: It names what there is not, or holds no such value.
    """
    keys = [key for key, _ in query.multi_items()]
    for key in keys:
        if key not in QUERY:
            raise Refusal(400, f"there is no option {key!r}; the options are {', '.join(QUERY)}")
        if keys.count(key) > 1:
            raise Refusal(400, f"the option {key!r} is given {keys.count(key)} times; give it once")
    name = query.get("detector", names[0])
    if name not in names:
        raise Refusal(404, f"there is no detector {name!r}; the detectors are {', '.join(names)}")
    heatmap = query.get("heatmap", HEATMAPS[0])
    if heatmap not in HEATMAPS:
        raise Refusal(400, f"heatmap must be one of {', '.join(HEATMAPS)}, not {heatmap!r}")
    text = query.get("pixel_threshold")
    try:
        level = None if text is None else float(text)
    except ValueError:
        level = math.nan
    if level is not None and not math.isfinite(level):
        raise Refusal(400, f"pixel_threshold must be a finite number, not {text!r}")
    return Asked(name, heatmap, level)
