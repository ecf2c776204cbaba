"""Residual networks: kinds of blocks and stems, frozen BatchNorm, dropout in training and inference, stages that are
left out, and blocks computed again. Their stages are compared with plain NumPy in test_weights.py."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxad.models.resnet import Bottleneck, DropoutSpec, ResNet, ResNet18, ResNet34, ResNet50
from jaxad.runtime import devices

BLOCKS = (1, 1, 1, 1)
RATE = 0.3
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than these few images


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


NETWORK, REMAT = ResNet(BLOCKS), ResNet(BLOCKS, remat=True)
IMAGES = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)


def started(model: ResNet) -> dict[str, Any]:
    """Variables as they are drawn."""
    init = functools.partial(model.init, train=False)
    return jax.jit(init, compiler_options=QUICK)(jax.random.key(0), IMAGES[:1])


@functools.cache
def variables() -> dict[str, Any]:
    return started(NETWORK)


@functools.partial(jax.jit, static_argnames=("place", "count"), compiler_options=QUICK)
def apply(made, images, rate, key, examples, *, place, count) -> dict[str, jax.Array]:
    thinning, rngs = DropoutSpec(rate, examples, place), {"dropout": key}
    return NETWORK.apply(made, images, train=False, thinning=thinning, stages=count, rngs=rngs)


def thinned(images, rate, key, *, examples=None, place="blocks", count=2) -> dict[str, jax.Array]:
    """Stages in inference with dropout."""
    return apply(variables(), images, rate, key, examples, place=place, count=count)


@functools.cache
def plain() -> dict[str, jax.Array]:
    whole = functools.partial(NETWORK.apply, train=False)
    return jax.jit(whole, compiler_options=QUICK)(variables(), IMAGES)


def numbers(*values: int) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def assert_equal(found: dict[str, jax.Array], expected: dict[str, jax.Array]) -> None:
    """The stages of `found` up to the rounding of another order of sums."""
    for name, stage in found.items():
        np.testing.assert_allclose(
            stage, expected[name], rtol=0, atol=2e-5 * np.abs(expected[name]).max(), err_msg=name
        )


def differing(one: jax.Array, other: jax.Array) -> float:
    """The share of values that are not nearly the same."""
    return float((np.abs(one - other) > 1e-3 * np.abs(other).max()).mean())


# Stages


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_the_stages_asked_for_are_computed(count: int) -> None:
    """They are those of the whole network, and need no parameters of the others."""
    names = ["stem", "layer1", "layer2", "layer3", "layer4"][: count + 1]

    def needed(path: str) -> bool:
        return path.split("_")[0] in ("conv1", "bn1", *names)

    part = {kind: {path: leaf for path, leaf in tree.items() if needed(path)} for kind, tree in variables().items()}
    assert len(part["params"]) == 2 + count
    call = functools.partial(NETWORK.apply, train=False, stages=count)
    found = jax.jit(call, compiler_options=QUICK)(part, IMAGES)
    assert sorted(found) == sorted(names)
    assert_equal(found, plain())
    init = functools.partial(NETWORK.init, train=False, stages=count)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0), IMAGES))
    assert shapes == jax.tree.map(jnp.shape, part)


def test_stages_have_the_stated_shapes() -> None:
    assert {name: stage.shape for name, stage in plain().items()} == {
        "stem": (3, 8, 8, 64), "layer1": (3, 8, 8, 64), "layer2": (3, 4, 4, 128), "layer3": (3, 2, 2, 256),
        "layer4": (3, 1, 1, 512),
    }  # fmt: skip


def shapes(model: ResNet, *sides: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and stages without computing anything."""
    images = jax.ShapeDtypeStruct(sides, jnp.float32)
    made = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    return made, jax.eval_shape(functools.partial(model.apply, train=False), made, images)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "published", "features"), [
    (ResNet18(), 11_689_512, 512), (ResNet34(), 21_797_672, 512), (ResNet50(), 25_557_032, 2048),
], ids=["18", "34", "50"])  # fmt: skip
def test_parameters_are_as_many_as_torchvisions(model: ResNet, published: int, features: int) -> None:
    """Of which those of the classifier of 1,000 classes are not here."""
    made, stages = shapes(model, 2, 224, 192, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == published - 1000 * (features + 1)
    assert stages["layer4"].shape == (2, 7, 6, features)


def test_a_bottleneck_by_hand() -> None:
    """A 3x3 sum at every second pixel, times 1, 2, 3 and 4, beside the pixels there, a hundredfold, on channel 0.

    The sums reach all pixels, where a stride in the first convolution would leave only every second one.
    """
    kernels = {"conv1": np.ones((1, 1, 1, 1)), "conv2": np.ones((3, 3, 1, 1))}
    kernels |= {"conv3": np.float32([[[[1, 2, 3, 4]]]]), "downsample_conv": np.float32([[[[100, 0, 0, 0]]]])}
    norms = {"bn1": 1, "bn2": 1, "bn3": 4, "downsample_bn": 4}
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    params |= {name: {"scale": np.ones(channels), "bias": np.zeros(channels)} for name, channels in norms.items()}
    statistics = {name: {"mean": np.zeros(channels), "var": np.ones(channels)} for name, channels in norms.items()}
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    apply = jax.jit(functools.partial(Bottleneck(1, 2).apply, train=False), compiler_options=QUICK)
    found = apply({"params": params, "batch_stats": statistics}, image)
    sums, pixels = np.float32([[10, 24], [51, 90]]), np.float32([[0, 2], [8, 10]])
    expected = sums[..., None] * [1, 2, 3, 4] + pixels[..., None] * [100, 0, 0, 0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)  # variances get 1e-5


def test_the_small_stem_keeps_the_size() -> None:
    """Strides 1, 1, 2, 4 and 8; only the first kernel has another shape."""
    small, stages = shapes(ResNet(BLOCKS, small_stem=True), 3, 32, 20, 3)
    assert {name: stage.shape for name, stage in stages.items()} == {
        "stem": (3, 32, 20, 64), "layer1": (3, 32, 20, 64), "layer2": (3, 16, 10, 128), "layer3": (3, 8, 5, 256),
        "layer4": (3, 4, 3, 512),
    }  # fmt: skip
    assert small["params"]["conv1"]["kernel"].shape == (3, 3, 3, 64)
    small["params"]["conv1"] = {"kernel": variables()["params"]["conv1"]["kernel"]}
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, variables())


@pytest.mark.slow
@pytest.mark.parametrize(("bottleneck", "last"), [(False, "bn2"), (True, "bn3")])
def test_zero_init_residual_changes_the_last_scales_alone(bottleneck: bool, last: str) -> None:
    make = functools.partial(ResNet, (2, 1, 1, 1), bottleneck=bottleneck)
    plain, zero = (flatten_dict(started(make(zero_init_residual=on))["params"], sep="/") for on in (False, True))
    expected = {path: leaf * (not path.endswith(f"/{last}/scale")) for path, leaf in plain.items()}
    assert sum(not leaf.any() for path, leaf in expected.items() if path.endswith("/scale")) == 5
    jax.tree.map(np.testing.assert_array_equal, zero, expected)


@pytest.mark.slow
def test_zero_init_residual_starts_with_the_shortcuts_and_trains_the_scales() -> None:
    model = ResNet((2, 1, 1, 1), zero_init_residual=True)
    made = started(model)

    def loss(params: dict) -> tuple[jax.Array, dict]:
        stages, _ = model.apply({**made, "params": params}, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.square(stages["layer4"]).sum(), stages

    gradient, stages = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(made["params"])
    np.testing.assert_array_equal(stages["layer1"], stages["stem"])
    last = [leaf for path, leaf in flatten_dict(gradient, sep="/").items() if path.endswith("/bn2/scale")]
    assert len(last) == 5 and all(np.abs(leaf).max() > 0 for leaf in last)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "seen"), [("blocks", False), ("stages", True)])
def test_dropout_is_seen_behind_the_stages_alone_where_blocks_are_silent(place: str, seen: bool) -> None:
    model = ResNet((1,), zero_init_residual=True)
    made = started(model)

    def run(thinning: DropoutSpec | None) -> np.ndarray:
        return model.apply(made, IMAGES, train=False, thinning=thinning, rngs={"dropout": jax.random.key(1)})["layer1"]

    assert (run(DropoutSpec(RATE, place=place)) != run(None)).any() == seen


@pytest.mark.medium
def test_frozen_norm_is_inference_in_training() -> None:
    """Nothing is updated, and gradients still reach all parameters, scales and biases among them."""
    made = {kind: {path: leaf for path, leaf in tree.items() if path < "layer2"} for kind, tree in variables().items()}
    made["batch_stats"] = jax.tree.map(lambda leaf: leaf - 0.3, made["batch_stats"])

    def run(params: dict, **options: bool) -> tuple[dict, dict]:
        given = {"params": params, "batch_stats": made["batch_stats"]}
        return NETWORK.apply(given, IMAGES, stages=1, mutable=["batch_stats"], **options)

    def everything(params: dict) -> tuple:
        def loss(params: dict) -> jax.Array:
            return run(params, train=True, frozen_norm=True)[0]["layer1"].mean()

        modes = [{"train": True, "frozen_norm": True}, {"train": False}, {"train": True}]
        return *(run(params, **mode) for mode in modes), jax.grad(loss)(params)

    frozen, inference, training, gradients = jax.jit(everything, compiler_options=QUICK)(made["params"])
    assert_equal(frozen[0], inference[0])
    assert differing(frozen[0]["layer1"], training[0]["layer1"]) > 0.3
    jax.tree.map(np.testing.assert_array_equal, frozen[1]["batch_stats"], made["batch_stats"])
    for path, moved in flatten_dict(training[1]["batch_stats"]).items():
        assert (np.asarray(moved) != flatten_dict(made["batch_stats"])[path]).any(), path
    for path, gradient in flatten_dict(gradients).items():
        assert np.abs(gradient).max() > 0, path


# Dropout


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"thinning.place must be one of blocks, stages, not 'block'"):
        NETWORK.apply(variables(), IMAGES, train=False, thinning=DropoutSpec(RATE, place="block"))


def test_a_bottleneck_is_thinned_before_its_last_convolution() -> None:
    """There half of what was positive is zeroed, over thousands of values, and the rest is doubled."""
    model = Bottleneck(16)
    init = functools.partial(model.init, train=False)
    made = jax.jit(init, compiler_options=QUICK)(jax.random.key(0), IMAGES[:1])

    def inside(images: jax.Array) -> dict[str, Any]:
        options = {"capture_intermediates": lambda module, _: module.name in ("bn2", "dropout")}
        options |= {"mutable": ["intermediates"], "rngs": {"dropout": jax.random.key(1)}}
        return model.apply(made, images, train=False, thinning=DropoutSpec(0.5), **options)[1]["intermediates"]

    values = jax.jit(inside, compiler_options=QUICK)(IMAGES[:1])
    behind, found = (np.asarray(values[name]["__call__"][0]) for name in ("bn2", "dropout"))
    kept = found > 0
    assert abs(kept[behind > 0].mean() - 0.5) < 0.03 and not kept[behind <= 0].any()
    np.testing.assert_allclose(found[kept], 2 * behind[kept], rtol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("place", ["blocks", "stages"])
@pytest.mark.parametrize("examples", [None, numbers(5, 6, 7)])
def test_rate_zero_is_no_dropout(place: str, examples: jax.Array | None) -> None:
    found = thinned(IMAGES, 0.0, jax.random.key(1), examples=examples, place=place)
    assert_equal(found, plain())


@pytest.mark.medium
@pytest.mark.parametrize("place", ["blocks", "stages"])
def test_dropout_changes_all_stages_behind_the_stem(place: str) -> None:
    found = thinned(IMAGES, RATE, jax.random.key(1), place=place, count=4)
    np.testing.assert_allclose(found["stem"], plain()["stem"], rtol=1e-6)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        assert differing(found[name], plain()[name]) > 0.2, name


def test_behind_stages_dropout_thins_what_they_return() -> None:
    """The first stage, which gets the same input as without: a share of RATE of its values is zeroed, which over 4,096
    values has a standard deviation of 0.007; the others are scaled."""
    full, found = (
        np.asarray(plain()["layer1"]),
        np.asarray(thinned(IMAGES, RATE, jax.random.key(1), place="stages")["layer1"]),
    )
    positive = full > 1e-6
    kept = found > 0
    assert positive.mean() > 0.5
    assert not (kept & ~(full > 0)).any()
    assert abs(1 - kept[positive].mean() - RATE) < 0.04
    np.testing.assert_allclose(found[kept], full[kept] / (1 - RATE), rtol=1e-5)
    inside = np.asarray(thinned(IMAGES, RATE, jax.random.key(1))["layer1"])
    assert (inside[positive] == 0).mean() < RATE / 2


@pytest.mark.medium
@pytest.mark.parametrize("place", ["blocks", "stages"])
def test_an_image_is_thinned_alike_in_any_company(place: str) -> None:
    """Without numbers all images share the masks: no image depends on its place or on its neighbours."""
    together = thinned(IMAGES, RATE, jax.random.key(1), place=place)
    for n in range(len(IMAGES)):
        alone = thinned(IMAGES[n : n + 1], RATE, jax.random.key(1), place=place)
        assert_equal(alone, {name: stage[n : n + 1] for name, stage in together.items()})


@pytest.mark.parametrize("place", ["blocks", "stages"])
def test_with_numbers_masks_are_of_the_example(place: str) -> None:
    """The same image three times: equal where the number is, whatever the place; unlike otherwise."""
    same = IMAGES[[0, 0, 0]]
    first = thinned(same, RATE, jax.random.key(1), examples=numbers(7, 8, 7), place=place)
    moved = thinned(same, RATE, jax.random.key(1), examples=numbers(8, 9, 7), place=place)

    def pick(stages: dict[str, jax.Array], n: int) -> dict[str, jax.Array]:
        return {name: stage[n] for name, stage in stages.items()}

    assert_equal(pick(first, 2), pick(first, 0))
    assert_equal(pick(moved, 0), pick(first, 1))
    assert_equal(pick(moved, 2), pick(first, 0))
    for one, other in [(first["layer2"][0], first["layer2"][1]), (first["layer2"][0], moved["layer2"][1])]:
        assert differing(one, other) > 0.1


@pytest.mark.medium
@pytest.mark.parametrize("place", ["blocks", "stages"])
def test_passes_by_vmap_are_those_of_a_loop(place: str) -> None:
    """Keys and rates are traced: one program of all passes, of which the first is plain."""
    keys, rates = jax.random.split(jax.random.key(3), 4), np.float32([0, RATE, RATE, 0.6])
    together = jax.vmap(lambda key, rate: thinned(IMAGES, rate, key, place=place))(keys, rates)
    passes = [thinned(IMAGES, rate, key, place=place) for key, rate in zip(keys, rates, strict=True)]
    for n, stages in enumerate(passes):
        assert_equal({name: stage[n] for name, stage in together.items()}, stages)
    assert_equal(passes[0], plain())
    for one, other in [(1, 2), (1, 3), (2, 3)]:
        assert differing(passes[one]["layer1"], passes[other]["layer1"]) > 0.1


@pytest.mark.medium
def test_masks_of_blocks_are_drawn_apart() -> None:
    """Of values that are positive in both blocks of a stage a quarter is kept in both, not the half of one mask."""
    model = ResNet((2, 1, 1, 1))
    init = functools.partial(model.init, train=False, stages=1)
    made = jax.jit(init, compiler_options=QUICK)(jax.random.key(0), IMAGES[:1])

    def inside(images: jax.Array) -> dict[str, Any]:
        options = {"capture_intermediates": lambda module, _: module.name in ("bn1", "dropout")}
        options |= {"mutable": ["intermediates"], "rngs": {"dropout": jax.random.key(1)}}
        _, seen = model.apply(made, images, train=False, thinning=DropoutSpec(0.5), stages=1, **options)
        return seen["intermediates"]

    blocks = [jax.jit(inside, compiler_options=QUICK)(IMAGES[:1])[f"layer1_{n}"] for n in range(2)]
    positive, kept = ([block[name]["__call__"][0] > 1e-6 for block in blocks] for name in ("bn1", "dropout"))
    both = positive[0] & positive[1]
    assert both.sum() > 500
    assert abs((kept[0] & kept[1])[both].mean() - 0.25) < 0.08


# Blocks computed again


def objective(remat: bool) -> Callable:
    """A loss of the parameters with dropout in training, with the updated statistics beside it, and its gradient."""
    model, weights = REMAT if remat else NETWORK, normal(5, len(IMAGES), 4, 4, 128)

    def loss(params: dict, statistics: dict, rate: jax.Array, examples: jax.Array) -> tuple[jax.Array, dict]:
        thinning, rngs = DropoutSpec(rate, examples), {"dropout": jax.random.key(2)}
        options = {"train": True, "thinning": thinning, "stages": 2, "mutable": ["batch_stats"], "rngs": rngs}
        stages, updated = model.apply({"params": params, "batch_stats": statistics}, IMAGES, **options)
        return (stages["layer2"] * weights).mean() + jnp.square(stages["layer1"]).mean(), updated["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)


def arguments(made: dict[str, Any]) -> tuple:
    return made["params"], made["batch_stats"], np.float32(RATE), numbers(4, 5, 6)


@pytest.mark.slow
def test_remat_keeps_parameters_and_results() -> None:
    """Loss, gradients, updated statistics and the masks of dropout; checkpoints can be exchanged."""
    shapes = [jax.eval_shape(lambda n=n: n.init(jax.random.key(0), IMAGES, train=False)) for n in (NETWORK, REMAT)]
    assert shapes[0] == shapes[1]
    made = variables()
    kept, again = (jax.jit(objective(remat), compiler_options=QUICK)(*arguments(made)) for remat in (False, True))
    assert jax.tree.structure(again) == jax.tree.structure(kept)

    def close(found: jax.Array, expected: jax.Array) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    jax.tree.map(close, again, kept)
    (_, updated), gradients = kept
    for path, gradient in flatten_dict(gradients).items():
        assert (np.abs(gradient).max() > 0) == (not path[0].startswith(("layer3", "layer4"))), path
    moved = {path[0] for path, leaf in flatten_dict(updated).items() if not np.isin(leaf, (0, 1)).all()}
    assert moved == {"bn1", "layer1_0", "layer2_0"}


def test_remat_computes_the_inside_of_each_block_again() -> None:
    """Seen in the program: one region for each of the two blocks, with convolutions that the plain one lacks."""
    plain, remat = (str(jax.make_jaxpr(objective(remat))(*arguments(variables()))) for remat in (False, True))
    assert plain.count("remat") == 0 and remat.count("remat") == 2
    calls = [
        max(program.count(name) for name in ("conv_general_dilated[", "ffi_call[")) for program in (plain, remat)
    ]
    assert calls[1] >= calls[0] + 4


@pytest.mark.slow
def test_remat_takes_less_memory() -> None:
    """As a step is compiled, where activations outweigh parameters: of each block only the input is kept."""
    sizes = []
    for remat in (False, True):
        model, images = ResNet((12, 1, 1, 1), remat=remat), jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.float32)
        made = jax.eval_shape(functools.partial(model.init, train=False, stages=1), jax.random.key(0), images)

        def loss(params: dict, statistics: dict, images: jax.Array, model: ResNet = model) -> tuple[jax.Array, dict]:
            options = {"train": True, "stages": 1, "mutable": ["batch_stats"]}
            stages, updated = model.apply({"params": params, "batch_stats": statistics}, images, **options)
            return stages["layer1"].mean(), updated

        call = devices.jit(jax.value_and_grad(loss, has_aux=True))
        program = call.lower(made["params"], made["batch_stats"], images).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.8 * sizes[0]
