"""How fast a detector's exports are beside jaxad's own programs, and beside PyTorch where it is installed.

    python3 -m docs.export_speed WORKDIR FILE.json IMAGES

IMAGES is a folder, which jaxad.predict scores with heatmaps, by the export and without it. All programs take turns, so
that each meets the same machine. jaxad and the exports turn uint8 images into scores and maps. PyTorch is given floats:
of NSA it computes the network alone, of Gaussians at each position the network, the distances and the blurred map,
which needs the package efficientnet-lite-pytorch. docs/export.md shows the file as a table.
"""

import argparse
import functools
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from docs.exports import exported
from docs.serve_load import predicted
from jaxad import detector, pytorch_peer, report
from jaxad.detector import Detector
from jaxad.errors import UserError, run
from jaxad.exporting import card as cards
from jaxad.exporting import formats
from jaxad.runtime import devices, provenance

BATCHES = (1, 8)
EXPORTS = ("openvino:float32", "openvino:bfloat16", "onnx:float32")
DTYPES = ("float32", "bfloat16")
ROUNDS = 9
FOLDER_ROUNDS = 3  # calls of jaxad.predict
SAMPLE_S = 0.5  # what is faster is called several times for one sample

Call = Callable[[], object]


def _noise(found: Detector, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *found.region.size, found.channels), dtype=np.uint8)


def _own(found: Detector, dtype: str, images: np.ndarray) -> Call:
    """jaxad's program, computed in a dtype."""
    config = found.config.copy_and_resolve_references()
    config.dtype = dtype
    made = Detector(config, found.variables, found.density)
    return lambda: made.score(images, batch=len(images))


def _exported(found: Detector, kind: str, folder: Path) -> formats.Run:
    """``batch -> run`` of a new export."""
    format, precision = kind.split(":")
    place = folder / kind.replace(":", "_")
    place.mkdir()
    good = _noise(found, 32) if precision == "int8" else None  # ranges are no matter for the speed
    formats.write(found, place, format=format, precision=precision, good=good)
    return formats.runner(place, cards.described(found, format=format, precision=precision, command=""))


def _lite_in_pytorch(found: Detector, dtype: str, count: int) -> Call:
    """EfficientNet-Lite0 and Gaussians at each position, as a user of PyTorch would write them."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from torch.nn import functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    side = found.config.score.size
    network = EfficientNet.from_name("efficientnet-lite0").eval().to(memory_format=torch.channels_last)
    ends = (2, 4, 10)  # the last blocks of the levels 2, 3 and 5
    random = torch.Generator().manual_seed(0)
    places = (side // 8) ** 2
    images = torch.rand((count, 3, side, side), generator=random).contiguous(memory_format=torch.channels_last)
    scorer = found.density["features"]["scorer"]
    mean, whitening = (torch.from_numpy(np.array(scorer[name])).flatten(0, 1) for name in ("mean", "whitening"))
    if mean.shape != (places, 24 + 40 + 112):
        raise UserError("PyTorch's program has Gaussians at each position of level3, of level2, level3 and level5")
    reach = torch.arange(-8.0, 9.0)
    blur = torch.softmax(-(reach**2) / (2 * found.config.score.sigma**2), 0)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def score() -> object:
        with torch.inference_mode(), autocast:
            x = F.relu6(network._bn0(network._conv_stem(images)))
            levels = []
            for number, block in enumerate(network._blocks[: ends[-1] + 1]):
                x = block(x)
                if number in ends:
                    levels.append(x.float())
            laid = [F.interpolate(one, levels[1].shape[2:], mode="bilinear", antialias=True) for one in levels]
            features = F.avg_pool2d(torch.cat(laid, 1), 3, 1, 1, count_include_pad=False)
            centered = features.flatten(2).permute(2, 0, 1) - mean[:, None]
            with torch.autocast("cpu", enabled=False):
                distances = torch.bmm(whitening, centered.transpose(1, 2)).norm(dim=1)
            maps = distances.T.reshape(count, 1, *features.shape[2:])
            maps = F.interpolate(maps, (side, side), mode="bilinear")
            maps = F.conv2d(F.conv2d(maps, blur[None, None, None], padding="same"), blur[None, None, :, None])
            return maps.flatten(1).amax(1)

    return score


def _pytorch(found: Detector, dtype: str, count: int) -> Call | None:
    """PyTorch's program; None where it is not installed, or has none for the method."""
    if not pytorch_peer.installed():
        return None
    lite = importlib.util.find_spec("efficientnet_lite_pytorch") and found.config.method == "features"
    if found.config.method == "nsa":
        side = found.config.evaluate.crop or found.config.score.size
        return pytorch_peer.calls(batch=1, size=64, scored=side, scored_batch=count, dtype=dtype)["inference"]
    return _lite_in_pytorch(found, dtype, count) if lite else None


def _seconds(call: Call, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def _measured(programs: dict[str, Call], count: int) -> dict[str, dict]:
    """Images/s of each program, and its speed as a multiple of jaxad's in float32; the medians of all rounds."""
    times = {}
    for name, call in programs.items():
        call()  # compiles
        times[name] = max(1, round(SAMPLE_S / _seconds(call, 2)))
    taken = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, call in programs.items():
            taken[name].append(_seconds(call, times[name]))
    first = np.array(taken["jaxad float32"])
    return {
        name: {
            "images_per_s": count / float(np.median(seconds)),
            "of_jaxad_float32": float(np.median(first / seconds)),
            "quartiles": [float(part) for part in np.quantile(first / seconds, (0.25, 0.75))],
        }
        for name, seconds in taken.items()
    }


def measure(found: Detector) -> dict[str, dict]:
    """The speeds of all programs, for each number of images in a call."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = EXPORTS if jax.tree.leaves(found.density) else (*EXPORTS, "openvino:int8")
        exports = {kind: _exported(found, kind, Path(folder)) for kind in kinds}
        for count in BATCHES:
            images = _noise(found, count)
            programs = {f"jaxad {dtype}": _own(found, dtype, images) for dtype in DTYPES}
            for kind, run_of in exports.items():
                programs[kind.replace(":", " ")] = functools.partial(run_of(count), images)
            for dtype in DTYPES:
                if (call := _pytorch(found, dtype, count)) is not None:
                    programs[f"pytorch {dtype}"] = call
            made[str(count)] = _measured(programs, count)
            print(json.dumps(made[str(count)], indent=1), flush=True)
    return made


def measure_folder(workdir: Path, images: Path) -> dict:
    """Images/s of ``jaxad.predict`` by an export in bfloat16 and without, in turns, and the ratio of the medians."""
    taken = {"export": [], "jaxad": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "export"
        exported(workdir, place, "openvino:bfloat16")
        for _ in range(FOLDER_ROUNDS):
            taken["export"].append(predicted(workdir, images, "--engine", "openvino", "--export", place))
            taken["jaxad"].append(predicted(workdir, images))
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    return {"images_per_s": taken, "ratio": medians["export"] / medians["jaxad"]}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.export_speed", description="How fast exports are.")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("output", type=Path, metavar="FILE.json")
    parser.add_argument("images", type=Path, metavar="IMAGES")
    flags = parser.parse_args(argv)
    devices.set_up_process()
    found, trained = detector.load(flags.workdir), json.loads((flags.workdir / "provenance.json").read_text())[-1]
    made = {
        "command": report.portable(trained["command"]),
        "measured_by": "python -m docs.export_speed WORKDIR FILE.json IMAGES",
        "processors": len(os.sched_getaffinity(0)),
        "computed_in": formats.computes_in("openvino", "bfloat16"),
        **provenance.collect(),
        "trained_in": found.config.dtype,
        "batches": measure(found),
        "folder": measure_folder(flags.workdir, flags.images),
    }
    made["versions"] |= {name: formats.version(name) for name in ("onnx", "onnxruntime", "openvino", "torch")}
    flags.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
