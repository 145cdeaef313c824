"""Backbones by name: those that are registered, every network of `keras.applications`, and of timm and keras-hub."""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import data_prep.quiet_tensorflow  # isort: skip  # noqa: F401 - before Keras
import keras
import numpy as np

from action_attention.errors import UserError
from action_attention.registry import registered_backbones
from data_prep.backbones import applications, efficientnet_lite, hubs, quantized, vgg16  # noqa: F401 - two register
from data_prep.backbones.base import Backbone
from data_prep.backbones.openvino_runtime import OpenVinoNetwork, graph_of
from data_prep.backbones.pooled import PooledNetwork

__all__ = ["Backbone", "build_backbone"]

POOLED = ", mean of each cell of a grid of "  # in a backbone's name, which caches keep


def build_backbone(
    name: str = "vgg16",
    weights: str = "imagenet",
    precision: str = "auto",
    runtime: str | None = None,
    grid: int | None = None,
) -> Backbone:
    """A backbone with its weights and preprocessing.

    Args:
        name: of a registered backbone, in whatever case; of a network of `keras.applications`, as Keras spells it;
            `timm:NAME` or `keras_hub:PRESET`. The name that a cache keeps is one too, and brings its grid.
        weights: `imagenet`, `random` (seeded; for tests and dry runs), a file of weights of the backbone, or one of the
            backbone in int8 (`quantized`).
        precision: `float32`, `bfloat16`, `int8` for such a file alone, or `auto`: what is best here.
        runtime: what runs the network, `tensorflow` or `openvino`; it changes speed, and no cube beyond rounding. None
            is OpenVINO for a network in int8, else TensorFlow.
        grid: means over so many by so many cells in place of the network's own map.

    Raises:
        UserError: there is no such backbone, or its weights cannot be had or are not what they claim to be.
    """
    name, _, of_cache = name.partition(POOLED)
    name, grid = name.split(" ")[0], int(of_cache) if of_cache else grid
    build = _builder(name)
    in_int8 = quantized.is_meant(weights, precision, runtime)
    backbone = quantized.read(Path(weights), build("random", "float32")) if in_int8 else build(weights, precision)
    if backbone.name.split(" ")[0].lower() != name.lower():
        raise UserError(
            f"the backbone {name} calls itself {backbone.name!r}; a cache finds its backbone again by the first word "
            f"of that, so it must be {name}"
        )
    if not all(np.isfinite(tensor).all() for tensor in backbone.model.get_weights()):
        raise UserError(f"the weights of {backbone.name} hold NaN or infinity; give other ones with --weights")
    if runtime == "openvino" and not in_int8:
        exact = backbone if backbone.precision == "float32" else build(weights, "float32")
        if not isinstance(exact.model, keras.Model):
            raise UserError(f"--runtime=openvino runs Keras networks only, and {name} is not one; leave it out")
        network = OpenVinoNetwork(graph_of(exact.model), exact.model, backbone.precision)
        backbone = replace(backbone, model=network, runtime=runtime)
    if grid:
        backbone = replace(backbone, model=PooledNetwork(backbone.model, grid), name=f"{backbone.name}{POOLED}{grid}")
    return backbone


def _builder(name: str) -> Callable[[str, str], Backbone]:
    """What makes the backbone of its weights and precision."""
    builders = {registered.lower(): build for registered, build in registered_backbones().items()}
    if build := builders.get(name.lower()):
        return build
    library, colon, network = name.partition(":")
    if colon and library in hubs.LIBRARIES:
        return lambda weights, precision: hubs.LIBRARIES[library](network, weights, precision)
    if name in applications.NAMES:
        return lambda weights, precision: applications.build(name, weights, precision)
    raise UserError(
        f"there is no backbone {name}; there are {', '.join(builders)} and the networks of keras.applications, "
        f"such as {', '.join(get_close_matches(name, applications.NAMES, 3, 0))}, and timm:NAME and keras_hub:PRESET; "
        "--import=MODULE brings your own"
    )
