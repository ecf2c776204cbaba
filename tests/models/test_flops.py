"""Operations of networks against numbers derived by hand, and against XLA's own count where that is of products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxad.models import flops
from jaxad.models.cpu import winograd
from jaxad.models.encoder_decoder import EncoderDecoder
from jaxad.models.layers import BatchNorm, Conv, ConvTranspose
from jaxad.models.resnet import ResNet18


class Small(nn.Module):
    """A layer of each kind, of this project or of Flax."""

    flax: bool = False

    @nn.compact
    def __call__(self, x):
        if self.flax:
            x = nn.Conv(4, (3, 3), (2, 2), use_bias=False)(x)
            x = nn.ConvTranspose(6, (3, 3), (2, 2), use_bias=False)(x)
        else:
            x = ConvTranspose(6, 3)(nn.relu(BatchNorm(None)(Conv(4, 3, 2)(x), train=False)))
        return nn.Dense(5, use_bias=False)(x.mean((1, 2)))


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def network(model, *sides, **options):
    """A network as a function of variables and images, and their shapes."""
    variables = jax.eval_shape(lambda key, x: model.init(key, x, **options), jax.random.key(0), shape(*sides))
    return lambda variables, x: model.apply(variables, x, **options), variables, shape(*sides)


# Of 2 images of 8 x 6 pixels, a convolution to 4 x 3, one back to 8 x 6, and a fully connected layer of their means.
SMALL = [2 * 4 * 3 * 3 * 3 * 3 * 4, 2 * 4 * 3 * 3 * 3 * 4 * 6, 2 * 6 * 5]


@pytest.mark.parametrize("flax", [False, True])
def test_each_kind_of_layer_by_hand(flax):
    given = network(Small(flax), 2, 8, 6, 3)
    assert flops.multiply_adds(*given) == SMALL == [2592, 5184, 60]
    assert flops.forward(*given) == 2 * (2592 + 5184 + 60)
    assert flops.training(*given) == 2 * (2 * 2592 + 3 * 5184 + 3 * 60)


@pytest.mark.parametrize("wrap", [
    lambda call: lambda v, xs: jax.vmap(lambda x: call(v, x))(xs),
    lambda call: lambda v, xs: jax.lax.map(lambda x: call(v, x), xs),
    lambda call: lambda v, xs: jax.vmap(jax.vmap(lambda x: call(v, x[None])))(xs),
    lambda call: jax.jit(lambda v, xs: jnp.stack([jax.jit(call)(v, x) for x in xs])),
], ids=["vmap", "scan", "vmap of vmap", "jit"])  # fmt: skip
def test_what_is_mapped_counts_as_often_as_it_runs(wrap):
    call, variables, _ = network(Small(), 2, 8, 6, 3)
    assert sum(flops.multiply_adds(wrap(call), variables, shape(7, 2, 8, 6, 3))) == 7 * sum(SMALL)


def test_what_maps_share_counts_once():
    call, variables, x = network(Conv(4, 3), 1, 8, 6, 3)
    twice = network(Conv(5, 1), 1, 8, 6, 4)

    def passes(variables, x):
        made = call(variables[0], x)
        return jax.vmap(lambda rate: twice[0](variables[1], rate * made))(jnp.arange(10.0))

    assert flops.multiply_adds(passes, (variables, twice[1]), x) == [48 * 27 * 4, 10 * 48 * 4 * 5]


def test_gradients_inside_a_function_add_nothing():
    call, variables, x = network(Small(), 2, 8, 6, 3)
    gradient = jax.grad(lambda variables, x: call(variables, x).sum())
    assert flops.multiply_adds(gradient, variables, x) == SMALL


# Multiply-adds by hand, images of 224 pixels; stages of 56, 28, 14 and 7 pixels.
STAGE = 56**2 * 9 * 64**2  # a 3x3 convolution that keeps the shape takes the same in each stage: 115,605,504
STEM = 112**2 * 49 * 3 * 64
# Each later stage: one convolution to twice the channels at half the resolution, three more, and a 1x1 shortcut.
RESNET18 = STEM + 4 * STAGE + 3 * (STAGE // 2 + 3 * STAGE + STAGE // 18)
SQUEEZE = 7**2 * (512 * 256 + 256 * 128)
# Each block: a transposed 3x3 convolution from n x n pixels, a 3x3 one on 2n x 2n, and the transposed 1x1 shortcut.
BLOCKS = sum(n**2 * (9 + 1) * 2 * c * c + (2 * n) ** 2 * 9 * c * c for n, c in ((7, 64), (14, 32), (28, 16)))
HEAD = 112**2 * 49 * 16


@pytest.mark.medium
@pytest.mark.parametrize("model, count", [
    (ResNet18(), RESNET18),
    (ResNet18(remat=True), RESNET18),
    (EncoderDecoder(), RESNET18 + SQUEEZE + BLOCKS + HEAD),
], ids=["ResNet-18", "with remat", "encoder-decoder"])  # fmt: skip
def test_networks_by_hand(model, count):
    given = network(model, 1, 224, 224, 3, train=False)
    assert flops.forward(*given) == 2 * count
    assert flops.training(*given) == 2 * (3 * count - STEM)


def test_the_numbers_by_hand_are_those_that_are_known():
    assert RESNET18 + 512 * 1000 == 1_814_073_344  # torchvision's 1.81e9, which has a classifier
    assert RESNET18 + SQUEEZE + BLOCKS + HEAD == 1_865_142_272


@pytest.mark.parametrize("pays", [True, False])
def test_formulations_change_nothing(monkeypatch, pays):
    monkeypatch.setattr(winograd, "pays", lambda shape, features, dtype: pays)
    assert flops.multiply_adds(*network(Conv(128, 3), 8, 16, 16, 128)) == [8 * 16 * 16 * 9 * 128 * 128]


def test_xla_counts_the_same_of_products():
    """XLA counts what it computes, so networks without padding, in which the two are the same; activations are few."""
    model = nn.Sequential([nn.Dense(300, use_bias=False), nn.relu, nn.Dense(200, use_bias=False)])
    call, variables, x = network(model, 64, 100)
    programs = (call, flops.forward), (jax.grad(lambda v, x: jnp.square(call(v, x)).sum()), flops.training)
    for program, count in programs:
        computed = jax.jit(program).lower(variables, x).compile().cost_analysis()["flops"]
        assert count(call, variables, x) == pytest.approx(computed, rel=0.02)
