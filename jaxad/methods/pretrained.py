"""Networks whose part ``encoder`` may start from published weights: which there are, and how they are trained on."""

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.errors import UserError
from jaxad.methods.method import Hooks, check_choices
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES, Backbone


def backbone_of(config: ConfigDict) -> Backbone:
    """The network of ``config.model.backbone``.

    Raises:
      UserError: There is no such network, or an option of it is out of place.
    """
    settings = config.model
    check_choices({"model.backbone": (settings.backbone, tuple(BACKBONES))})
    backbone = BACKBONES[settings.backbone]
    if settings.get("stochastic_depth") and not backbone.drops:
        raise UserError(
            f"config.model.stochastic_depth is {settings.stochastic_depth}, but {settings.backbone} has no blocks to "
            "skip; set it to 0",
            about="model.stochastic_depth",
        )
    if settings.sha256 and not settings.weights:
        raise UserError(
            "config.model.sha256 is set, but config.model.weights is empty; name a file, or empty both",
            about="model.sha256",
        )
    if (config.optim.head_epochs or settings.frozen_norm) and not settings.weights:
        raise UserError(
            "config.optim.head_epochs and config.model.frozen_norm are for published weights, but config.model.weights "
            "is empty; name them, or set config.optim.head_epochs=0 and config.model.frozen_norm=false",
            about="optim.head_epochs",
        )
    if config.optim.head_epochs and not settings.frozen_norm:
        raise UserError(
            "config.optim.head_epochs leaves the backbone as it is at first, but config.model.frozen_norm=false lets "
            "its statistics change; set config.model.frozen_norm=true or config.optim.head_epochs=0",
            about="optim.head_epochs",
        )
    return backbone


def _param_labels(params: Any, *, frozen_norm: bool) -> Any:
    """`Hooks.param_labels`: the encoder is loaded, its BatchNorm frozen with `frozen_norm`, and all else is new."""

    def label(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> str:
        if path[0].key != "encoder":
            return "new"
        return "frozen" if frozen_norm and "bn" in path[-2].key else "loaded"

    return jax.tree_util.tree_map_with_path(label, params)


def check_channels(config: ConfigDict) -> None:
    """Refuses grey images, of one channel, where there are weights for color."""
    if config.model.weights and configs.channels(config) != 3:
        raise UserError(
            f"config.data.channels is {configs.channels(config)}, but config.model.weights are for images in color; "
            "grey images are read in color with config.data.channels=3, and config.normalize for three channels",
            about="data.channels",
        )


def loaded_network(config: ConfigDict) -> Hooks:
    """The hooks that load ``config.model.weights``, and name them in the records, of a method that is the network."""
    settings, source = config.model, config.model.weights
    return Hooks(
        load_pretrained=lambda variables: weights.load(
            source, variables, model=settings.backbone, sha256=settings.sha256
        ),
        pretrained_checksums=lambda: {source: weights.find(source, sha256=settings.sha256)[1]},
    )


def encoder_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Those of the part ``encoder``."""
    return {collection: tree["encoder"] for collection, tree in variables.items()}


def loaded_encoder(config: ConfigDict) -> Hooks:
    """Those of `loaded_network` where the network is the encoder; none without weights."""
    if not config.model.weights:
        return Hooks()
    network = loaded_network(config)

    def load(variables):
        encoder = network.load_pretrained(encoder_variables(variables))
        return {collection: tree | {"encoder": encoder[collection]} for collection, tree in variables.items()}

    return network._replace(load_pretrained=load)


def trained_encoder(config: ConfigDict) -> Hooks:
    """Those of `loaded_encoder`, and which parameters wait in the first ``optim.head_epochs`` or stay as they are."""
    hooks, frozen_norm = loaded_encoder(config), config.model.frozen_norm
    if config.optim.head_epochs or frozen_norm:
        hooks = hooks._replace(param_labels=functools.partial(_param_labels, frozen_norm=frozen_norm))
    return hooks
