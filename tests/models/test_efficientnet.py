"""EfficientNet against Hugging Face's implementation, its parameter counts, BatchNorm modes and stochastic depth.

``efficientnet_golden.npz`` holds what ``EfficientNetModel`` of transformers 5.23.0 with torch 2.13.0 (CPU) computes:
for B0 the configuration width_coefficient 1.0, depth_coefficient 1.0, hidden_dim 1280, depthwise_padding [] on images
of 64 pixels; for B4 1.4, 1.8, 1792, [6, 22] on images of 76 pixels. ``depthwise_padding`` lists the blocks whose
strided convolution is padded alike on both sides there, which is TensorFlow's SAME where their input has an odd size:
here those of levels 3 and 6 of B4, at 19 and 5 pixels. The stem there fits even sizes only. The images are
``default_rng(0).standard_normal((2, pixels, pixels, 3))`` in float32; `tensor` draws the weights by their names, with a
gain for each variant that keeps the activations near 1 and the two images apart through all levels. Of "stem" (the
hidden state 0), of the last hidden state of each stage and of "top" (last_hidden_state), as NHWC, there are
``[:, ::3, ::3, ::5]`` and the means over positions; of ``pooler_output`` all.
"""

import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.sharding import PartitionSpec

from jaxad.models.cpu.depthwise import depthwise_conv
from jaxad.models.efficientnet import (
    LEVELS,
    SCALES,
    Block,
    EfficientNet,
    Stage,
    end_features,
    hugging_face_names,
    lite_names,
    scaled_stages,
)  # fmt: skip
from jaxad.runtime import devices

QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than these few images
GOLDEN = Path(__file__).with_name("efficientnet_golden.npz")
PIXELS, GAIN = {"b0": 64, "b4": 76}, {"b0": 2.5, "b4": 2.2}


def tensor(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """A tensor of the reference, drawn by its name; kernels are (out, in, h, w)."""
    r = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(r)
    if len(shape) == 4:
        return r * np.float32(np.sqrt(gain / np.prod(shape[1:])))
    return np.float32(name.endswith(".weight")) + np.float32(0.1) * r


@functools.cache
def shapes(variant: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    init = functools.partial(EfficientNet(variant).init, train=False)
    made = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return {path: leaf.shape for path, leaf in flatten_dict(made).items()}


@functools.cache
def variables(variant: str) -> dict[str, Any]:
    """The weights of the recipe, by the public names."""
    made = {}
    for name, path in hugging_face_names(variant).items():
        shape = shapes(variant)[path]
        if len(shape) == 4:
            made[path] = tensor(name, (*shape[:1:-1], *shape[:2]), GAIN[variant]).transpose(2, 3, 1, 0)
        else:
            made[path] = tensor(name, shape, GAIN[variant])
    return unflatten_dict(made)


def images(pixels: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, pixels, pixels, 3)).astype(np.float32)


def apply(model: EfficientNet, made: dict[str, Any], x: np.ndarray, **options: Any) -> Any:
    call = functools.partial(model.apply, **options)
    return jax.jit(call, compiler_options=QUICK)(made, x)


# The same function as the reference


@pytest.mark.slow
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("variant", PIXELS)
def test_all_levels_equal_the_reference(variant: str) -> None:
    found = apply(EfficientNet(variant), variables(variant), images(PIXELS[variant]), train=False)
    assert set(found) == {"stem", *LEVELS} == {"stem", *(f"level{n}" for n in range(1, 8)), "top"}
    golden = np.load(GOLDEN)

    def close(found: np.ndarray, name: str) -> None:
        expected = golden[f"{variant}/{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)

    for name, level in found.items():
        close(level[:, ::3, ::3, ::5], f"{name}/values")
        one, other = level
        assert np.abs(one - other).max() > 0.1 * np.abs(level).max(), "the images reach this level"
        close(level.mean((1, 2)), f"{name}/means")
    close(found["top"].mean((1, 2)), "pooled")


@pytest.mark.slow
def test_every_variable_has_one_name() -> None:
    for variant in PIXELS:
        names = hugging_face_names(variant)
        assert set(names.values()) == set(shapes(variant)) and len(names) == len(shapes(variant))


@pytest.mark.slow
def test_every_variable_of_lite_has_one_name() -> None:
    for variant in ("lite0", "lite4"):
        names = lite_names(variant)
        assert set(names.values()) == set(shapes(variant)) and len(names) == len(shapes(variant))


PUBLISHED = {
    "b0": 5_288_548, "b1": 7_794_184, "b2": 9_109_994, "b3": 12_233_232,
    "b4": 19_341_616, "b5": 30_389_784, "b6": 43_040_704, "b7": 66_347_960,
    # By efficientnet-lite-pytorch 0.1.0; published are 4.7, 5.4, 6.1, 8.2 and 13.0 million.
    "lite0": 4_652_008, "lite1": 5_416_680, "lite2": 6_092_072, "lite3": 8_197_096, "lite4": 13_006_568,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", SCALES)
def test_parameter_counts_are_those_published(variant: str) -> None:
    """Of the published models, with a classifier of 1000 classes."""
    counted = {path: int(np.prod(shape)) for path, shape in shapes(variant).items() if path[0] == "params"}
    width = shapes(variant)["params", "top_bn", "scale"][0]
    assert sum(counted.values()) + width * 1000 + 1000 == PUBLISHED[variant]


def test_scaling_by_hand() -> None:
    """B4: 1.4 times 24 is 33.6, nearer to 32 than to 40; 1.8 times 3 blocks is 5.4, rounded up."""
    assert scaled_stages("b4")[1] == Stage(6, 3, 2, 32, 4) and scaled_stages("b4")[3] == Stage(6, 3, 2, 112, 6)
    assert [stage.blocks for stage in scaled_stages("b4")] == [2, 4, 4, 6, 6, 8, 2]
    assert end_features("b4") == (48, 1792)


def test_the_ends_of_lite_are_not_scaled() -> None:
    """Lite4 has B4's factors."""
    assert [stage.blocks for stage in scaled_stages("lite4")] == [1, 4, 4, 6, 6, 8, 1]
    assert [stage.features for stage in scaled_stages("lite4")] == [stage.features for stage in scaled_stages("b4")]
    assert end_features("lite4") == (32, 1280)


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_a_block_of_lite_by_hand() -> None:
    """At one pixel of 2 channels: doubled and negated, cut to [0, 6], tripled, cut again, summed, and added to x."""
    ones = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    params = {
        "expand_conv": {"kernel": jnp.asarray([[2, -1, 0, 0], [0, 0, 2, -1]], jnp.float32).reshape(1, 1, 2, 4)},
        "depthwise_conv": {"kernel": jnp.zeros((3, 3, 1, 4)).at[1, 1].set(3)},
        "project_conv": {"kernel": jnp.ones((1, 1, 4, 2))},
        "expand_bn": ones, "depthwise_bn": ones, "project_bn": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
    }  # fmt: skip
    # A variance of 1 less the epsilon changes nothing.
    statistics = {
        name: {"mean": jnp.zeros_like(leaves["bias"]), "var": jnp.full_like(leaves["bias"], 1 - 1e-3)}
        for name, leaves in params.items() if name.endswith("_bn")
    }  # fmt: skip
    block, x = Block(Stage(2, 3, 1, 2, 1), lite=True), jnp.asarray([0.5, -4]).reshape(1, 1, 1, 2)
    y = block.apply({"params": params, "batch_stats": statistics}, x, train=False, drop=0.0, examples=None)
    # Expanded: 1, 0 | 0, 4; by the depthwise kernel 3, 0, 0, 12, of which 6 are left.
    np.testing.assert_allclose(y.ravel(), [0.5 + 9, -4 + 9], rtol=1e-6)


def test_only_the_levels_asked_for_are_computed() -> None:
    """They need no parameters of the others; parameters are float32 whatever the computation is in."""
    model, x = EfficientNet("b0", dtype=jnp.bfloat16), jax.ShapeDtypeStruct((2, 33, 48, 3), jnp.float32)

    def call(key: jax.Array, x: jax.Array) -> tuple[dict, dict]:
        return model.init_with_output(key, x, train=False, stages=3)

    levels, made = jax.eval_shape(call, jax.random.key(0), x)
    found = {name: (*level.shape, level.dtype.name) for name, level in levels.items()}
    assert found == {
        "stem": (2, 17, 24, 32, "bfloat16"), "level1": (2, 17, 24, 16, "bfloat16"),
        "level2": (2, 9, 12, 24, "bfloat16"), "level3": (2, 5, 6, 40, "bfloat16"),
    }  # fmt: skip
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made)} == {"float32"}
    assert set(made["params"]) == {
        "stem_conv", "stem_bn", "level1_0", "level2_0", "level2_1", "level3_0", "level3_1"
    }  # fmt: skip


# BatchNorm


def trained(**options: Any) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The first levels of B0 and the statistics after a call in training."""
    levels, updated = apply(
        EfficientNet("b0"), variables("b0"), images(32), train=True, stages=2, mutable=["batch_stats"], **options
    )
    return levels, flatten_dict(updated["batch_stats"])


@pytest.mark.medium
def test_frozen_norm_is_inference() -> None:
    before = flatten_dict(variables("b0")["batch_stats"])
    levels, after = trained(frozen_norm=True)
    for path, leaf in before.items():
        assert np.array_equal(after[path], leaf), path
    plain = apply(EfficientNet("b0"), variables("b0"), images(32), train=False, stages=2)
    for name, level in plain.items():
        np.testing.assert_allclose(levels[name], level, rtol=1e-5, atol=1e-6)


@pytest.mark.medium
def test_training_moves_the_statistics_by_a_hundredth() -> None:
    """And normalises by the batch's, with TensorFlow's epsilon: by hand for the stem, by all variables elsewhere."""
    made, (levels, after) = variables("b0"), trained()
    padded, kernel = np.pad(images(32), ((0, 0), (0, 1), (0, 1), (0, 0))), made["params"]["stem_conv"]["kernel"]
    taps = [(i, j) for i in range(3) for j in range(3)]
    y = sum(padded[:, i : i + 31 : 2, j : j + 31 : 2].astype(np.float64) @ kernel[i, j] for i, j in taps)
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    norm = made["params"]["stem_bn"]
    z = (y - mean) / np.sqrt(var + 1e-3) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(levels["stem"], z / (1 + np.exp(-z)), rtol=1e-4, atol=1e-5)
    count = y[..., 0].size
    for name, new in (("mean", mean), ("var", var * count / (count - 1))):
        old = made["batch_stats"]["stem_bn"][name]
        np.testing.assert_allclose(after["stem_bn", name], 0.99 * old + 0.01 * new, rtol=1e-5, atol=1e-6)
    for path, old in flatten_dict(made["batch_stats"]).items():
        computed = path[0].split("_")[0] in ("stem", "level1", "level2")
        assert (path in after and not np.array_equal(after[path], old)) == computed, path


# Stochastic depth


@pytest.mark.medium
def test_rates_grow_linearly_over_the_blocks() -> None:
    """0.2 / 16 at the first, 0.2 at the last of B0's 16 blocks, none in inference; frozen norms change nothing."""
    model, x = EfficientNet("b0", stochastic_depth=0.2), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    rates = []

    def note(call: Callable, arguments: tuple, keywords: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Block):
            rates.append(keywords["drop"])
        return call(*arguments, **keywords)

    for options in ({"train": True, "frozen_norm": True}, {"train": False}):
        with nn.intercept_methods(note):
            rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            jax.eval_shape(functools.partial(model.init, **options), rngs, x)
    np.testing.assert_allclose(rates, [*(0.2 * n / 16 for n in range(1, 17)), *[0] * 16])


@pytest.mark.medium
def test_a_skipped_block_is_its_shortcut_and_the_mean_is_kept() -> None:
    """Of 512 examples at rate 1/4 each is skipped or has its branch times 4/3; 128 skips have a standard deviation of
    9.8. What an example does depends on its number alone."""
    block, x = Block(Stage(6, 3, 1, 8, 1)), np.random.default_rng(1).standard_normal((512, 2, 2, 8)).astype(np.float32)
    made = jax.jit(functools.partial(block.init, train=False, drop=0.0, examples=None), compiler_options=QUICK)(
        jax.random.key(0), x
    )

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(x: jax.Array, examples: jax.Array) -> tuple[jax.Array, jax.Array]:
        call = functools.partial(block.apply, made, x, train=False, examples=examples)
        return call(drop=0.0), call(drop=0.25, rngs={"dropout": jax.random.key(2)})

    full, thinned = map(np.asarray, run(x, jnp.arange(512)))
    skipped = (thinned == x).all((1, 2, 3))
    assert abs(skipped.sum() - 128) < 45
    expected = np.where(skipped[:, None, None, None], x, x + (full - x) * 4 / 3)
    np.testing.assert_allclose(thinned, expected, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(2).permutation(512)
    np.testing.assert_allclose(run(x[order], jnp.asarray(order))[1], thinned[order], rtol=1e-5, atol=1e-6)


# Depthwise convolution


def grouped(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own grouped convolution, which knows TensorFlow's SAME padding."""
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": x.shape[-1]}
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", **options)


@pytest.mark.slow
@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("shape, size, stride", [
    ((6, 7), 3, 1), ((6, 7), 3, 2), ((5, 8), 5, 1), ((5, 8), 5, 2), ((2, 1), 5, 2), ((1, 3), 3, 2),
])  # fmt: skip
def test_depthwise_is_a_grouped_convolution(shape: tuple[int, int], size: int, stride: int) -> None:
    """Values and both gradients, at odd and even sizes and where the kernel is larger than the map."""
    draw = np.random.default_rng(3).standard_normal
    x, kernel = (draw(s).astype(np.float32) for s in ((2, *shape, 4), (size, size, 1, 4)))
    weights = draw((2, *(-(-n // stride) for n in shape), 4)).astype(np.float32)

    def both(conv: Callable) -> Any:
        made, pull = jax.vjp(lambda x, kernel: conv(x, kernel), x, kernel)
        return made, *pull(weights)

    def run(conv: Callable) -> Any:
        return jax.jit(lambda: both(conv), compiler_options=QUICK)()

    found = run(lambda x, kernel: depthwise_conv(x, kernel, stride=stride))
    for one, other in zip(found, run(lambda x, kernel: grouped(x, kernel, stride)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.medium
@pytest.mark.usefixtures("formulation")
def test_depthwise_by_hand() -> None:
    """A row of 4 pixels at stride 2: one zero behind, so the outputs start at pixels 0 and 2. Of 5 pixels, one zero on
    either side."""
    kernel = jnp.asarray([[0, 0, 0], [1, 10, 100], [0, 0, 0]], jnp.float32).reshape(3, 3, 1, 1)
    for row, expected in (([1, 2, 3, 4], [321, 43]), ([1, 2, 3, 4, 5], [210, 432, 54])):
        x = jnp.asarray(row, jnp.float32).reshape(1, 1, -1, 1)
        assert depthwise_conv(x, kernel, stride=2).ravel().tolist() == expected


@pytest.mark.medium
def test_depthwise_sums_half_precision_in_float32() -> None:
    """256 + 24 ones: in bfloat16, ones added to 256 are lost."""
    x = jnp.ones((1, 5, 5, 1), jnp.bfloat16)
    kernel = jnp.ones((5, 5, 1, 1), jnp.bfloat16).at[0, 0].set(256)
    found, (dx, dk) = jax.value_and_grad(lambda x, k: depthwise_conv(x, k)[0, 2, 2, 0], (0, 1))(x, kernel)
    assert found.dtype == dx.dtype == dk.dtype == jnp.bfloat16 and float(found) == 280
    assert float(dx[0, 0, 0, 0]) == 256 and float(dk[0, 0, 0, 0]) == 1


@pytest.mark.usefixtures("formulation")
def test_gradient_of_a_replicated_kernel_sums_over_devices() -> None:
    mesh, draw = devices.make_mesh(2), np.random.default_rng(4).standard_normal
    x, kernel = (draw(s).astype(np.float32) for s in ((4, 5, 5, 3), (3, 3, 1, 3)))

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.square(depthwise_conv(x, kernel)).mean()

    def mapped(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jax.grad(lambda kernel: lax.pmean(loss(kernel, x), devices.AXIS))(kernel)

    specs = (PartitionSpec(), PartitionSpec(devices.AXIS))
    found = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=specs[0]), compiler_options=QUICK)
    whole = jax.jit(jax.grad(loss), compiler_options=QUICK)
    np.testing.assert_allclose(found(kernel, x), whole(kernel, x), rtol=1e-5, atol=1e-6)
