"""NSA's network in PyTorch beside jaxad's, where PyTorch is installed."""

import jax
import numpy as np
import pytest

from jaxad import pytorch_peer
from jaxad.models.encoder_decoder import EncoderDecoder


@pytest.mark.slow
def test_it_is_the_same_network() -> None:
    """As many parameters in arrays of the same sizes, and logits of the same shape."""
    torch = pytest.importorskip("torch")
    network, images = pytorch_peer._network(), np.zeros((2, 64, 96, 3), np.float32)
    model = EncoderDecoder()
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    ours = sorted(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sorted(parameter.numel() for parameter in network.parameters()) == ours
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False)["logits"], variables)
    assert network(torch.from_numpy(images).permute(0, 3, 1, 2)).shape == (2, 1, *logits.shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_calls_run(dtype: str) -> None:
    pytest.importorskip("torch")
    for call in pytorch_peer.calls(batch=2, size=32, scored=64, scored_batch=2, dtype=dtype).values():
        call()


def test_without_pytorch_there_is_none(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not pytorch_peer.installed()
