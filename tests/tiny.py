"""A method with a network of a few hundred weights, for tests of the loop; ``python -m tests.tiny`` trains with it, and
``python -m tests.tiny evaluate`` or ``predict`` uses it.

The host part is NSA's own, the device part adds noise from the example's key, and BatchNorm is synchronised, so
everything that the loop promises of a method is in use.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.typing import DTypeLike

from jaxad import errors, evaluate, methods, predict
from jaxad.methods import nsa
from jaxad.methods.method import Hooks, Method, Scores
from jaxad.models.layers import BatchNorm, Conv
from jaxad.reporting.sample_grid import label_grid
from jaxad.runtime.devices import AXIS
from tests.commands import train


class Network(nn.Module):
    """Convolution, synchronised BatchNorm, ReLU, convolution: (b, h, w, 3) to logits (b, h, w)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(8, 3, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(AXIS, name="bn")(x, train=train))
        return Conv(1, 3, dtype=self.dtype, name="conv2")(x)[..., 0]


def add_noise(keys: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Adds noise of -16 to 15 grey levels to every image, each from its own key; whole levels, so without rounding."""
    batch = labelled(batch)
    noise = jax.vmap(lambda key: jax.random.bits(key, batch["image"].shape[1:], jnp.uint8) % 32)(keys)
    return batch | {"image": batch["image"] + noise.astype(jnp.float32) - 16}


def labelled(batch):
    """Labels images that have none by where their partners are brighter."""
    return batch if "label" in batch else batch | {"label": (batch["partner"] > batch["image"]).mean(-1)}


def make(*, host_augment=None, dtype: DTypeLike = jnp.float32) -> Method:
    """The method; `host_augment` is its host part."""
    network = Network(dtype)

    def loss(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        images = (batch["image"] / 255).astype(dtype)
        logits, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
        value = optax.sigmoid_binary_cross_entropy(logits, batch["label"]).mean()
        return value, (updated["batch_stats"], {"brightness": images.mean()})

    def score(variables, density, images):
        maps = jax.nn.sigmoid(network.apply(variables, images, train=False))
        return Scores(maps.mean((1, 2)), maps)

    return Method(
        host_augment=host_augment,
        init=lambda key, image: network.init(key, image, train=False),
        loss=loss,
        fit=lambda variables, good_images, key: {},
        score=score,
        hooks=Hooks(
            device_augment=add_noise, samples=lambda batch: label_grid(batch["image"], labelled(batch)["label"])
        ),
    )


def create(config) -> Method:
    """The method as ``config.method = "tiny"``; without a host part where the synthesis is for the device."""
    return make(host_augment=nsa.HostExample(config) if config.data.synthesis == "host" else None)


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """For test modules that import it: the method has a name, and programs of several runs are compiled once."""
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "tiny", create)
        yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", before)


if __name__ == "__main__":
    methods.METHODS["tiny"] = create
    others = {"evaluate": evaluate, "predict": predict}
    errors.run(others[sys.argv.pop(1)].main if sys.argv[1] in others else train.main)
