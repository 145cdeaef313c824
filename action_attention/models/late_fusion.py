"""Control: late fusion of two frames, half a second apart (Karpathy et al. 2014, CVPR), above the frozen features."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from action_attention.models.base import ActionModel, ModelSettings
from action_attention.models.locations import flatten_locations, uniform_maps
from action_attention.registry import register_model
from action_attention.settings import setting


@dataclass(frozen=True)
class LateFusionSettings(ModelSettings):
    frames_apart: int = setting(8, "distance, in frames, of the two that are seen together", low=1, high=1000)
    hidden_units: int = setting(512, "units of the layer that merges both frames", low=1, high=65536)


class LateFusionPair(keras.layers.Layer):
    """Merges each frame with the one `frames_apart` before it, or the clip's first, in a fully connected layer.

        hidden_t = relu(W [x_t, x_{max(t - apart, 0)}] + b), x_t the frame's mean over locations

    Karpathy's networks see the maps before the mean, which would take 60 million weights here.
    """

    def __init__(self, settings: LateFusionSettings, options: dict[str, Any], **kwargs: Any):
        super().__init__(dtype=options["dtype"], **kwargs)
        self.apart = settings.frames_apart
        self.merge = keras.layers.Dense(settings.hidden_units, "relu", name="merge", **options)
        self.dropout = keras.layers.Dropout(settings.dropout, dtype=self.dtype_policy, name="core_dropout")

    def build(self, features_shape: tuple, mask_shape: tuple | None = None) -> None:
        self.merge.build((None, 2 * features_shape[-1]))

    def call(self, features: Any, mask: Any, training: bool | None = None) -> tuple[Any, Any]:
        means = ops.mean(flatten_locations(features), axis=2)
        before = ops.take(means, np.maximum(np.arange(means.shape[1]) - self.apart, 0), axis=1)
        pair = self.dropout(ops.concatenate([means, before], axis=-1), training=training)
        return self.merge(pair), uniform_maps(features, mask)


@register_model("late_fusion", LateFusionSettings)
class LateFusion(ActionModel):
    """Two frames at a time, no recurrence, no attention."""

    has_attention = False
    small_operations = True

    def make_core(self, settings: LateFusionSettings, options: dict[str, Any]) -> LateFusionPair:
        return LateFusionPair(settings, options, name="core")
