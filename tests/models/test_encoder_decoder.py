"""The encoder-decoder against golden logits, and its promises on shapes, dtypes and synchronised statistics."""

import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxad.models.encoder_decoder import EncoderDecoder
from tests.refusals import refuses
from tests.shared import SHARED, needs_shared

LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def golden_tensor(name: str, shape: list[int]) -> np.ndarray:
    """Draws a tensor as the golden file's author did: from its name alone."""
    r = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(r)
    if len(shape) == 4:
        return r * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return 1 + 0.1 * r if name.endswith("weight") else 0.1 * r


def from_torch(name: str, tensor: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Translates a tensor of the PyTorch program into the path and the layout of the Flax network."""
    *modules, leaf = name.split(".")
    path = re.sub(r"^uplayer(\d)\.0", r"up\1", ".".join(modules))
    path = re.sub(r"^layer(\d)\.(\d)", r"encoder.layer\1_\2", path)
    path = re.sub(r"^(conv1|bn1)$", r"encoder.\1", path)
    path = path.replace("downsample.0", "downsample_conv").replace("downsample.1", "downsample_bn")
    path = path.replace("upsample.0", "upsample_conv").replace("upsample.1", "upsample_bn")
    path = path.replace("nin.0", "squeeze1").replace("nin.2", "squeeze2").replace("convtranspose1", "head")
    if tensor.ndim < 4:
        return (*path.split("."), LEAVES.get(leaf, "scale")), tensor
    if path == "head" or re.match(r"up\d\.(conv1|upsample_conv)", path):
        tensor = tensor[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)  # (in, out, h, w), flipped by definition
    else:
        tensor = tensor.transpose(2, 3, 1, 0)
    return (*path.split("."), "kernel"), tensor


def golden_variables() -> dict:
    shapes = json.loads((SHARED / "golden" / "nsa_encdec_tensors.json").read_text())
    flat = {"params": {}, "batch_stats": {}}
    for name, shape in shapes.items():
        path, tensor = from_torch(name, golden_tensor(name, shape))
        flat["batch_stats" if path[-1] in ("mean", "var") else "params"][path] = jnp.asarray(tensor)
    return {collection: unflatten_dict(tensors) for collection, tensors in flat.items()}


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
@needs_shared("golden", "nsa_encdec_forward.npz")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_logits(mode: str) -> None:
    golden = np.load(SHARED / "golden" / "nsa_encdec_forward.npz", allow_pickle=False)

    @jax.jit
    def forward(variables: dict, x: jax.Array) -> dict[str, jax.Array]:
        return EncoderDecoder().apply(variables, x, train=mode == "train", mutable=["batch_stats"])[0]

    stages = forward(golden_variables(), golden["x_nhwc"])
    reference = golden[f"logits_{mode}_nhw"]
    assert np.abs(stages["logits"] - reference).max() <= 1e-3 * np.abs(reference).max()


@needs_shared("golden", "nsa_encdec_tensors.json")
def test_variables_have_the_reference_shapes() -> None:
    variables = jax.eval_shape(lambda: EncoderDecoder().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    shapes = jax.tree.map(jnp.shape, golden_variables())
    assert flatten_dict(jax.tree.map(jnp.shape, variables)) == flatten_dict(shapes)
    assert sum(np.size(p) for p in jax.tree.leaves(golden_variables()["params"])) == 11_497_712


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_stages_have_the_promised_shapes_and_dtypes(channels: int, dtype: jnp.dtype) -> None:
    model = EncoderDecoder(axis_name="batch", dtype=dtype)
    images = jnp.zeros((2, 64, 96, channels))

    def init_and_apply() -> tuple[dict, dict]:
        variables = model.init(jax.random.key(0), images, train=True)
        return variables, model.apply(variables, images, train=False)

    variables, stages = jax.eval_shape(init_and_apply)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {name: stage.shape[1:] for name, stage in stages.items()} == {
        "stem": (16, 24, 64),
        "layer1": (16, 24, 64),
        "layer2": (8, 12, 128),
        "layer3": (4, 6, 256),
        "layer4": (2, 3, 512),
        "squeeze": (2, 3, 128),
        "up1": (4, 6, 64),
        "up2": (8, 12, 32),
        "up3": (16, 24, 16),
        "logits": (64, 96),
    }
    assert stages["logits"].dtype == jnp.float32
    assert {stage.dtype for name, stage in stages.items() if name != "logits"} == {jnp.dtype(dtype)}


@pytest.mark.medium
def test_another_network_can_be_the_encoder() -> None:
    model = EncoderDecoder(backbone="efficientnet_lite0", stage="level7", frozen_norm=True)
    images = jnp.zeros((2, 64, 96, 3))

    def init_and_apply() -> tuple[dict, tuple[dict, dict]]:
        variables = model.init(jax.random.key(0), images, train=True)
        return variables, model.apply(variables, images, train=True, mutable=["batch_stats"])

    variables, (stages, _) = jax.eval_shape(init_and_apply)
    assert (stages["level7"].shape, stages["squeeze"].shape) == ((2, 2, 3, 320), (2, 2, 3, 128))
    assert stages["logits"].shape == (2, 64, 96)
    assert "top" not in stages and "top_conv" not in variables["params"]["encoder"]


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_averages() -> None:
    model = EncoderDecoder(backbone="resnet18", frozen_norm=True)

    @jax.jit
    def updated(key: jax.Array) -> tuple[dict, dict]:
        images = jax.random.normal(key, (2, 32, 32, 3))
        variables = model.init(key, images, train=False)
        return variables["batch_stats"], model.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    before, after = updated(jax.random.key(0))
    after = after["batch_stats"]
    for name in before:
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[name], after[name])
        assert set(jax.tree.leaves(moved)) == {name != "encoder"}, name


@pytest.mark.slow
def test_score_maps_of_bfloat16_networks_have_more_than_its_digits() -> None:
    """With the 8 bits of bfloat16 most of a map's values would be ties."""

    @jax.jit
    def logits(key: jax.Array) -> jax.Array:
        images = jax.random.normal(key, (1, 64, 64, 3))
        variables = EncoderDecoder().init(key, images, train=False)
        return EncoderDecoder(dtype=jnp.bfloat16).apply(variables, images, train=False)["logits"]

    found = logits(jax.random.key(0))
    assert len(jnp.unique(found)) > 0.9 * found.size
    assert len(jnp.unique(found.astype(jnp.bfloat16))) < 0.5 * found.size


@pytest.mark.parametrize("shape", [(1, 64, 230, 3), (1, 100, 64, 3)])
def test_sides_must_be_multiples_of_32(shape: tuple[int, ...]) -> None:
    with refuses(None, "multiples"):
        jax.eval_shape(lambda: EncoderDecoder().init(jax.random.key(0), jnp.zeros(shape), train=False))
