"""The Siamese network: heads against NumPy, parameters counted by hand, the backbone against the plain ResNet-18."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxad.models.resnet import DropoutSpec, ResNet18
from jaxad.models.siamese import STARTS, DenseHeads, GlobalHeads, SiameseNetwork

WIDTH, BOTTLENECK, HIDDEN, DENSE = 6, 3, 5, 4
BACKBONE = 11_689_512 - 513_000  # torchvision's count, without its classifier of 1,000 classes
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than these few images


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IMAGES = normal(0, 3, 32, 64, 3)


def network(**options: Any) -> SiameseNetwork:
    sizes = {"width": WIDTH, "bottleneck": BOTTLENECK, "dense_hidden": HIDDEN, "dense_width": DENSE}
    return SiameseNetwork(**sizes | options)


def initial(**options: Any) -> dict[str, Any]:
    """Shapes and dtypes of the variables, without computing anything."""
    return jax.eval_shape(functools.partial(network(**options).init, train=False), jax.random.key(0), IMAGES[:1])


def shapes(**options: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters by path."""
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(initial(**options)["params"]).items()}


def quick(function: Callable, **options: Any) -> Callable:
    """The function compiled with its options."""
    return jax.jit(functools.partial(function, **options), compiler_options=QUICK)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Random kernels beside the initial scales, biases and statistics."""
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            return rng.standard_normal(leaf.shape, np.float32) * np.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, initial())


@pytest.fixture(scope="module")
def applied(variables: dict[str, Any]) -> dict[bool, tuple[dict[str, Any], dict[str, Any]]]:
    """What the network makes of the images, positions of the first two, and its updated statistics, in inference and
    in training."""
    return {
        train: quick(network().apply, train=train, dense=2, mutable=["batch_stats"])(variables, IMAGES)
        for train in (False, True)
    }


# Parameters


def test_parameters_by_hand() -> None:
    found = shapes()
    heads = {path: shape for path, shape in found.items() if not path.startswith("backbone/")}
    assert heads == {
        "heads/project1/kernel": (512, 6), "heads/bn1/scale": (6,), "heads/bn1/bias": (6,),
        "heads/project2/kernel": (6, 6), "heads/bn2/scale": (6,), "heads/bn2/bias": (6,),
        "heads/project3/kernel": (6, 6), "heads/bn3/scale": (6,), "heads/bn3/bias": (6,),
        "heads/predict1/kernel": (6, 3), "heads/bn_predict/scale": (3,), "heads/bn_predict/bias": (3,),
        "heads/predict2/kernel": (3, 6), "heads/predict2/bias": (6,),
        "dense_heads/project1/kernel": (128, 5), "dense_heads/bn1/scale": (5,), "dense_heads/bn1/bias": (5,),
        "dense_heads/project2/kernel": (5, 4), "dense_heads/bn2/scale": (4,), "dense_heads/bn2/bias": (4,),
        "dense_heads/predict1/kernel": (4, 5), "dense_heads/bn_predict/scale": (5,),
        "dense_heads/bn_predict/bias": (5,), "dense_heads/predict2/kernel": (5, 4), "dense_heads/predict2/bias": (4,),
    }  # fmt: skip
    assert sum(math.prod(shape) for path, shape in found.items() if path.startswith("backbone/")) == BACKBONE


def test_the_papers_sizes_have_so_many_parameters() -> None:
    """SimSiam's heads for ResNet-18, layer by layer, and dense ones of DenseCL's 512 and 128 channels."""
    found = shapes(width=2048, bottleneck=512, dense_hidden=512, dense_width=128)
    project = 512 * 2048 + 2 * 2048 * 2048 + 3 * 2 * 2048
    predict = 2048 * 512 + 2 * 512 + 512 * 2048 + 2048
    dense = 2 * (128 * 512 + 512 * 128) + 2 * (512 + 128 + 512) + 128
    assert sum(map(math.prod, found.values())) == BACKBONE + project + predict + dense


def test_remat_and_dtype_leave_the_variables_alone() -> None:
    made, other = initial(), initial(remat=True, dtype=jnp.bfloat16, axis_name="batch")
    assert made == other
    assert {leaf.dtype for leaf in jax.tree.leaves(other)} == {jnp.dtype("float32")}


# Heads


def reference_norm(x: np.ndarray) -> np.ndarray:
    """BatchNorm of (b, d) in training at initialisation."""
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


@pytest.mark.medium
def test_global_heads_equal_numpy() -> None:
    """Three layers, each with BatchNorm, the third without ReLU; then a bottleneck with a plain second layer."""
    features = normal(1, 16, 9)
    heads = GlobalHeads(WIDTH, BOTTLENECK)
    made = quick(heads.init, train=True)(jax.random.key(0), features)
    params = jax.tree.map(np.float64, made["params"])
    (p, z), updated = quick(heads.apply, train=True, mutable=["batch_stats"])(made, features)
    expected = np.maximum(reference_norm(features @ params["project1"]["kernel"]), 0)
    expected = np.maximum(reference_norm(expected @ params["project2"]["kernel"]), 0)
    expected = reference_norm(expected @ params["project3"]["kernel"])
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-4)
    expected = np.maximum(reference_norm(expected @ params["predict1"]["kernel"]), 0)
    expected = expected @ params["predict2"]["kernel"] + params["predict2"]["bias"]
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-4)
    assert sorted(updated["batch_stats"]) == ["bn1", "bn2", "bn3", "bn_predict"]


def test_projections_are_centred_in_training() -> None:
    """BatchNorm is the last: mean 0 and variance 1 of each unit over the batch, so values of both signs."""
    heads = GlobalHeads(WIDTH, BOTTLENECK)
    features = 5 + normal(1, 32, 9)
    made = quick(heads.init, train=True)(jax.random.key(0), features)
    (_, z), _ = quick(heads.apply, train=True, mutable=["batch_stats"])(made, features)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-3)
    assert (z.min(axis=0) < 0).all() and (z.max(axis=0) > 0).all()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("heads", [functools.partial(GlobalHeads, 300, 200), functools.partial(DenseHeads, 300, 200)])
def test_how_the_heads_start(heads: Callable, start: str) -> None:
    """PyTorch draws weights and biases uniformly within 1 / sqrt(inputs), Flax weights of variance 1 / inputs."""
    made = heads(start=start).init(jax.random.key(3), normal(1, 4, 5, 256), train=False)["params"]
    layers = {name: layer for name, layer in made.items() if not name.startswith("bn")}
    assert len(layers) == (5 if heads.func is GlobalHeads else 4)
    for layer in layers.values():
        kernel = np.asarray(layer["kernel"])
        limit = kernel.shape[0] ** -0.5
        deviation = limit / math.sqrt(3) if start == "torch" else limit
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
        assert (np.abs(kernel).max() <= limit) == (start == "torch")
    bias = np.abs(layers["predict2"]["bias"])
    assert 0.95 * limit < bias.max() <= limit if start == "torch" else (bias == 0).all()


def test_dense_heads_equal_numpy() -> None:
    """As the global ones, with a projection of two layers, and statistics over all positions of all images."""
    features = normal(1, 3, 7, 9)
    heads = DenseHeads(HIDDEN, DENSE)
    made = quick(heads.init, train=True)(jax.random.key(0), features)
    params = jax.tree.map(np.float64, made["params"])
    (p, z), updated = quick(heads.apply, train=True, mutable=["batch_stats"])(made, features)
    assert p.shape == z.shape == (3, 7, DENSE)
    expected = np.maximum(reference_norm(features.reshape(21, 9) @ params["project1"]["kernel"]), 0)
    expected = reference_norm(expected @ params["project2"]["kernel"])
    np.testing.assert_allclose(z.reshape(21, DENSE), expected, rtol=0, atol=1e-4)
    assert (expected.min(axis=0) < 0).all() and (expected.max(axis=0) > 0).all()
    expected = np.maximum(reference_norm(expected @ params["predict1"]["kernel"]), 0)
    expected = expected @ params["predict2"]["kernel"] + params["predict2"]["bias"]
    np.testing.assert_allclose(p.reshape(21, DENSE), expected, rtol=0, atol=1e-4)
    assert sorted(updated["batch_stats"]) == ["bn1", "bn2", "bn_predict"]


@pytest.mark.medium
def test_dense_heads_see_one_position_at_a_time() -> None:
    """In training, too, a position's place doesn't count; in inference nor do other positions."""
    features = normal(1, 2, 7, 9)
    heads = DenseHeads(HIDDEN, DENSE)
    made = quick(heads.init, train=True)(jax.random.key(0), features)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    learn = quick(heads.apply, train=True, mutable=["batch_stats"])
    infer = quick(heads.apply, train=False)
    for one, moved in zip(learn(made, features)[0], learn(made, features[:, order])[0], strict=True):
        np.testing.assert_allclose(moved, one[:, order], rtol=0, atol=1e-4)
    third = np.eye(7, dtype=np.float32)[2][:, None]
    for one, other in zip(infer(made, features), infer(made, features + third), strict=True):
        differs = np.abs(other - one).max(axis=(0, 2)) > 1e-5
        assert differs.tolist() == [False, False, True, False, False, False, False]


# The network


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("train", [False, True])
def test_outputs_have_the_stated_shapes(count: int, train: bool) -> None:
    """In float32 also beside a backbone in bfloat16; whatever is computed, there are statistics of all parts."""
    made, model = initial(), network(dtype=jnp.bfloat16)
    call = functools.partial(model.apply, train=train, dense=count, mutable=["batch_stats"])
    found, updated = jax.eval_shape(call, made, IMAGES)
    expected = {"global": ((3, WIDTH),) * 2}
    if count:
        expected |= {"features": (count, 4 * 8, 128), "dense": ((count, 4 * 8, DENSE),) * 2}
    assert jax.tree.map(jnp.shape, found) == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert updated["batch_stats"] == made["batch_stats"]


@pytest.mark.slow
def test_the_parts_are_the_backbone_and_its_heads(variables: dict[str, Any], applied: dict[bool, tuple]) -> None:
    """Stages are those of the plain network; heads take the pooled last stage, and the positions of stride 8 of as many
    images as asked for."""
    found, _ = applied[False]
    names = ("backbone", "heads", "dense_heads")
    backbone, heads, dense = ({kind: tree[name] for kind, tree in variables.items() if name in tree} for name in names)
    plain = quick(ResNet18().apply, train=False)(backbone, IMAGES)
    stages = quick(network().apply, method="stages")(variables, IMAGES)
    assert sorted(stages) == sorted(plain) == ["layer1", "layer2", "layer3", "layer4", "stem"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, stages, plain)
    for place, row, column in ((0, 0, 0), (5, 0, 5), (8, 1, 0), (31, 3, 7)):
        close(found["features"][:, place], plain["layer2"][:2, row, column])
    pooled = np.asarray(plain["layer4"]).mean((1, 2))
    jax.tree.map(close, found["global"], quick(GlobalHeads(WIDTH, BOTTLENECK).apply, train=False)(heads, pooled))
    jax.tree.map(close, found["dense"], quick(DenseHeads(HIDDEN, DENSE).apply, train=False)(dense, found["features"]))


def test_so_many_stages(variables: dict[str, Any]) -> None:
    """Neither what is behind them nor the heads are computed, which a network without their parameters shows."""

    def part(backbone: dict[str, Any]) -> dict[str, Any]:
        return {"backbone": {name: leaf for name, leaf in backbone.items() if name[:6] not in ("layer3", "layer4")}}

    bare = {kind: part(tree["backbone"]) for kind, tree in variables.items()}
    thinning, rngs = DropoutSpec(0.5, None, "stages"), {"dropout": jax.random.key(1)}
    found = quick(network().apply, count=2, method="stages")(bare, IMAGES)
    assert sorted(found) == ["layer1", "layer2", "stem"]
    thinned = quick(network().apply, count=1, method="stages", thinning=thinning, rngs=rngs)(bare, IMAGES)
    assert abs((thinned["layer1"] > 0).mean() / (found["layer1"] > 0).mean() - 0.5) < 0.05


def test_only_training_moves_the_running_statistics(variables: dict[str, Any], applied: dict[bool, tuple]) -> None:
    """All but the means of predictions: their input is linear in projections, whose mean is 0 at first."""
    before = flatten_dict(variables["batch_stats"])
    (_, unchanged), (_, updated) = applied[False], applied[True]
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], variables["batch_stats"])
    after = flatten_dict(updated["batch_stats"])
    assert set(after) == set(before) and {path[0] for path in after} == {"backbone", "heads", "dense_heads"}
    still = {path for path in before if np.abs(after[path] - before[path]).max() < 1e-6}
    assert still == {("heads", "bn_predict", "mean"), ("dense_heads", "bn_predict", "mean")}
