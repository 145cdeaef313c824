"""Control: every frame classified by itself, from its mean over locations."""

from typing import Any

import keras
from keras import ops

from action_attention.models.base import ActionModel, ModelSettings
from action_attention.models.locations import flatten_locations, uniform_maps
from action_attention.registry import register_model


class MeanPooling(keras.layers.Layer):
    """No recurrence: each frame's mean over locations, `(B, T, D)`, and uniform maps."""

    def call(self, features: Any, mask: Any, training: bool | None = None) -> tuple[Any, Any]:
        return ops.mean(flatten_locations(features), axis=2), uniform_maps(features, mask)


@register_model("softmax", ModelSettings)
class SoftmaxRegression(ActionModel):
    """Control without memory."""

    has_attention = False
    small_operations = True

    def make_core(self, settings: ModelSettings, options: dict[str, Any]) -> MeanPooling:
        return MeanPooling(name="core", dtype=options["dtype"])
