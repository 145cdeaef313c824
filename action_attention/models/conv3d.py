"""Control: 3D convolutions over the cubes. It is not C3D (Tran et al. 2015), whose convolutions begin at the pixels."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from action_attention.models.base import ActionModel, ModelSettings
from action_attention.models.locations import flatten_locations, uniform_maps
from action_attention.registry import register_model
from action_attention.settings import setting


@dataclass(frozen=True)
class Conv3DSettings(ModelSettings):
    filters: int = setting(128, "number of filters of each 3D convolution", low=1, high=65536)
    layers: int = setting(2, "number of 3D convolutions", low=1, high=16)


class Convolutions3D(keras.layers.Layer):
    """A 1x1x1 convolution to fewer channels, then `layers` of 3x3x3 with same padding, each with ReLU.

    Hidden vectors `(B, T, filters)` are each frame's mean over locations.
    """

    def __init__(self, settings: Conv3DSettings, options: dict[str, Any], **kwargs: Any):
        super().__init__(dtype=options["dtype"], **kwargs)
        names = ["reduce", *(f"conv{n}" for n in range(1, settings.layers + 1))]
        self.convolutions = [
            keras.layers.Conv3D(
                settings.filters, 1 if name == "reduce" else 3, padding="same", activation="relu", name=name, **options
            )
            for name in names
        ]

    def build(self, features_shape: tuple, mask_shape: tuple | None = None) -> None:
        shape = features_shape
        for convolution in self.convolutions:
            convolution.build(shape)
            shape = (*shape[:-1], convolution.filters)

    def call(self, features: Any, mask: Any, training: bool | None = None) -> tuple[Any, Any]:
        maps = features
        for convolution in self.convolutions:
            maps = convolution(maps)
        return ops.mean(flatten_locations(maps), axis=2), uniform_maps(features, mask)


@register_model("conv3d", Conv3DSettings)
class Conv3D(ActionModel):
    """Short-range motion in place of a memory; no attention."""

    has_attention = False

    def make_core(self, settings: Conv3DSettings, options: dict[str, Any]) -> Convolutions3D:
        return Convolutions3D(settings, options, name="core")
