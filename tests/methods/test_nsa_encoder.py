"""NSA's encoder-decoder with an encoder that starts from published weights: its two phases, and what is refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from jaxad import config as configs
from jaxad import methods
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES, Backbone, Stage
from jaxad.models.layers import BatchNorm, Conv
from jaxad.runtime import devices
from jaxad.runtime.checkpoint import Checkpoints
from jaxad.training import loop
from jaxad.training import step as training
from tests.augment.quick import quick_compiled
from tests.methods.test_transfer import assert_same, published
from tests.parts import ROOT, write_parts
from tests.refusals import refuses

FILE = f"{ROOT}/experiments/lite_nsa_finetune.py"
FLAGS = {
    "data.size": 64, "view.crop": 64, "score.size": 64, "batch": 8, "epochs": 4, "optim.head_epochs": 2,
    "steps_per_epoch": 2, "checkpoint.every_steps": 1, "checkpoint.keep": 20, "log_every": 1, "evaluate.batch": 4,
    "data.holdout": 0.0,
}  # fmt: skip


class Small(nn.Module):
    """Stands in for a published network: "early" at stride 8, "level7" at stride 32."""

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, *, train, frozen_norm=False, stages=2):
        assert stages == 1  # "top" is for the classifier
        norm, train = functools.partial(BatchNorm, self.axis_name), train and not frozen_norm
        x = nn.leaky_relu(norm(name="bn1")(Conv(5, 9, 8, dtype=self.dtype, name="conv1")(x), train=train))
        late = nn.leaky_relu(norm(name="bn2")(Conv(6, 5, 4, dtype=self.dtype, name="conv2")(x), train=train))
        return {"early": x, "level7": late}


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        stages = {"early": Stage(8, 5), "level7": Stage(32, 6), "top": Stage(32, 6)}
        patch.setitem(BACKBONES, "efficientnet_lite0", Backbone(Small, stages, lambda stage, side: 0))
        patch.setattr(devices, "jit", quick_compiled)
        patch.setattr(weights, "load", published)
        patch.setattr(weights, "find", lambda source, *, sha256: (source, f"hash of {source}"))
        yield


def config_of(root="", **changes):
    given = FLAGS | {"data.root": root} | {key.replace("__", "."): value for key, value in changes.items()}
    return configs.load(f"{FILE}:object", {key: str(value) for key, value in given.items()})


@pytest.mark.slow
def test_the_decoder_is_trained_first_then_all_but_the_normalization(tmp_path):
    config = config_of(write_parts(tmp_path / "parts") / "nut")
    trained = loop.train(config, tmp_path / "run")
    method = methods.create(config)
    plan = training.plan(config, method, 6)
    start = training.init_state(method, plan.optimizer, np.zeros((64, 64, 3), np.uint8), seed=0)
    encoder = {"params": start.params["encoder"], "batch_stats": start.batch_stats["encoder"]}
    assert_same(encoder, published("", encoder, model=""))
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=20) as checkpoints:
        first, last = (devices.to_host(checkpoints.read(step, start)) for step in (4, 8))
    assert_same(last.params, trained.variables["params"])
    assert_same(first.params["encoder"], start.params["encoder"])
    for part in first.params.keys() - {"encoder"}:
        for state, before in ((first, start), (last, first)):
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params[part], before.params[part])
            assert min(jax.tree.leaves(moved)) > 1e-7, part
    for name in ("bn1", "bn2"):
        assert_same(last.params["encoder"][name], start.params["encoder"][name])
    assert_same(last.batch_stats["encoder"], start.batch_stats["encoder"])
    for name in ("conv1", "conv2"):
        moved = last.params["encoder"][name]["kernel"] - first.params["encoder"][name]["kernel"]
        assert np.abs(moved).max() > 1e-6


@pytest.mark.parametrize(
    "changes, key, word",
    [
        ({"model__backbone": "resnet18_small"}, "model.backbone", "stride 8"),
        ({"model__backbone": "vgg"}, "model.backbone", "resnet18"),
        ({"model__weights": ""}, "optim.head_epochs", "published"),
        ({"model__frozen_norm": "false"}, "optim.head_epochs", "statistics"),
        ({"data__channels": 1, "normalize__mean": "0.5,", "normalize__std": "0.5,"}, "data.channels", "color"),
    ],
)
def test_encoders_that_cannot_be_are_refused(changes, key, word):
    with refuses(key, word):
        methods.create(config_of(**changes))


@pytest.mark.medium
def test_without_published_weights_all_is_drawn_and_trained():
    method = methods.create(config_of(model__weights="", model__frozen_norm="false", optim__head_epochs=0))
    assert method.hooks.param_labels is None and method.hooks.load_pretrained is None
