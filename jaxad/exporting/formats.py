"""The formats of an export: how a detector is written in each, and how it is run."""

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxad.detector import Detector
from jaxad.errors import UserError
from jaxad.exporting import card as cards
from jaxad.exporting import program, quantization
from jaxad.runtime import disk

_LARGEST = 2**31 - 2**20  # bytes of a model in a file of ONNX, whose lengths are numbers of 32 bits
# What each format and precision needs: a package, and the extra that brings it.
_NEEDS = {
    "onnx": (("onnx", "onnx"), ("onnxruntime", "onnx")),
    "openvino": (("onnx", "openvino"), ("openvino", "openvino")),
    "stablehlo": (),
    "int8": (("nncf", "int8"),),
}
# What OpenVINO computes in; without being asked, it takes bfloat16 on processors that multiply in it.
_HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "f32"}

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def require(name: str) -> None:
    """Checks that a format's or precision's packages are installed; raises UserError with the command to do so."""
    for package, extra in _NEEDS.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"{name} needs the package {package}; run python3 -m pip install 'jaxad[{extra}]'"
            ) from None


def version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def computes_in(format: str, precision: str) -> str:
    """What an export of this precision computes in on this machine."""
    if format == "openvino" and precision == "bfloat16":
        import openvino

        return precision if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"
    return "float32" if precision == "float16" else precision


def write(
    found: Detector, folder: Path, *, format: str, precision: str, good: Sequence[np.ndarray] | None = None
) -> None:
    """Writes the model of a detector.

    Args:
      found: The detector.
      folder: Where to.
      format: A key of `card.FILES`.
      precision: One of `card.PRECISIONS` of the format.
      good: Good images as they are scored, uint8 (h, w, c) each, by which int8 is calibrated.

    Raises:
      UserError: The method has no such form, or a package is missing.
    """
    path = folder / cards.FILES[format][0]
    if format == "stablehlo":
        disk.write_bytes(path, _stablehlo(found, precision))
        return
    model = _onnx(found, half=format == "onnx" and precision == "float16")
    if format == "onnx":
        disk.write_bytes(path, model)
    else:
        _write_openvino(model, path, precision, good)


def _onnx(found: Detector, *, half: bool) -> bytes:
    from jaxad.exporting import convert, graph  # need the package onnx

    with program.tracing():
        model = convert.to_onnx(program.program(found), program.input_shape(found))
    if half:
        graph.halve(model)
    if (size := sum(len(tensor.raw_data) for tensor in model.graph.initializer)) > _LARGEST:
        raise UserError(
            f"the detector has {size / 2**30:.1f} GiB of numbers, and a file of ONNX takes 2; export it as stablehlo, "
            "or train with a lower config.density.channels or config.score.size"
        )
    return model.SerializeToString()


def _write_openvino(model: bytes, path: Path, precision: str, good: Sequence[np.ndarray] | None) -> None:
    import openvino

    converted = openvino.Core().read_model(model=model)
    if precision == "int8":
        converted = quantization.quantized(converted, good)
    openvino.save_model(converted, path, compress_to_fp16=precision == "float16")


def _stablehlo(found: Detector, precision: str) -> bytes:
    dtype = None if precision == "float32" else precision
    if dtype and "dtype" not in found.config:
        raise UserError(f"{found.config.method} has no network that could compute in {precision}; choose float32")
    with program.tracing():
        function = jax.vmap(program.program(found, dtype or "float32"))
        (count,) = jax.export.symbolic_shape("n")
        images = jax.ShapeDtypeStruct((count, *program.input_shape(found)), np.uint8)
        return bytes(jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(images).serialize())


def runner(folder: Path, card: dict[str, Any]) -> Callable[[int], Run]:
    """``batch -> run``, where ``run(images)`` scores so many images with the export in a folder."""
    require(card["format"])
    path, engines = folder / cards.FILES[card["format"]][0], {"onnx": _onnxruntime, "openvino": _openvino}
    made = _loaded(path, lambda: engines.get(card["format"], _jax)(path, card))
    return lambda batch: _loaded(path, lambda: made(batch))


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    """What a runtime makes of a model; each has its own kinds of errors."""
    try:
        return load()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be run here ({reason}); run jaxad.export again") from error


def _onnxruntime(path: Path, card: dict[str, Any]) -> Callable[[int], Run]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images):
        return tuple(session.run(["score", "map"], {"images": images}))

    return lambda batch: run


def _openvino(path: Path, card: dict[str, Any]) -> Callable[[int], Run]:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": _HINTS[card["precision"]], "PERFORMANCE_HINT": "LATENCY"}

    def compiled(batch):
        # A known number of images is faster than any number.
        model = core.read_model(path)
        model.reshape({"images": [batch, *card["input"]["shape"][1:]]})
        program = core.compile_model(model, "CPU", options)

        def run(images):
            made = program({"images": images})
            return made["score"], made["map"]

        return run

    return compiled


def _jax(path: Path, card: dict[str, Any]) -> Callable[[int], Run]:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(exported.call)

    def run(images):
        made = jax.device_get(call(images))
        return made["score"], made["map"]

    return lambda batch: run
