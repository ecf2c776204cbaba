"""How fast, and in how much memory, a large image is scored in tiles.

    python3 -m docs.tiles WORKDIR FILE.json

WORKDIR holds a detector that was trained with ``config.data.tile``. The same number of pixels is scored in single
images of a tile's size, in turns with the large image. The peak is that of the whole process, which loads the detector
and scores; the large image is made of noise.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxad import detector, report
from jaxad.benchmark import peak_memory
from jaxad.errors import UserError, run
from jaxad.runtime import provenance

_REPEATS = 5


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(workdir: Path) -> dict:
    """Sizes, the medians of the seconds that both take, the network's pixels in each, and the peak in bytes.

    Raises:
      UserError: The detector has no tiles.
    """
    found = detector.load(workdir)
    if found.tiling is None:
        raise UserError(f"{workdir} was trained without tiles; set config.data.tile", about=workdir)
    size, side, tiles = found.region.size, found.tiling.side, len(found.tiling.corners())
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, *size, found.channels), dtype=np.uint8)
    found.score(frame)
    peak = peak_memory()  # of one large image alone
    count = round(size[0] * size[1] / side**2)
    single = rng.integers(0, 256, (count, side, side, found.channels), dtype=np.uint8)

    def untiled() -> None:
        found._call(found._score, single)  # the same program, for images that are no parts of another

    took = {"tiled": [], "untiled": []}
    for _ in range(_REPEATS):
        took["tiled"].append(_seconds(lambda: found.score(frame)))
        took["untiled"].append(_seconds(untiled))
    seconds = {name: float(np.median(values)) for name, values in took.items()}
    return {
        "frame": list(size), "tile": side, "tiles": tiles, "overlap": found.tiling.overlap, "untiled images": count,
        "seconds": seconds, "speed of the frame's pixels": seconds["untiled"] / seconds["tiled"],
        "speed of the network's pixels": seconds["untiled"] / seconds["tiled"] * tiles / count,
        "peak memory": peak,
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.tiles", description="Speed and memory of scoring in tiles.")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("output", type=Path, metavar="FILE.json")
    flags = parser.parse_args(argv)
    trained = json.loads((flags.workdir / "provenance.json").read_text())[-1]
    made = {"command": report.portable(trained["command"]), **provenance.collect(), **measure(flags.workdir)}
    flags.output.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
