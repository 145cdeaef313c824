"""Control: attention over frames in place of locations (Yao et al. 2015, arXiv 1502.08029, without the decoder)."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from action_attention.models.base import ActionModel, ModelSettings
from action_attention.models.locations import flatten_locations, uniform_maps
from action_attention.registry import register_model
from action_attention.settings import setting


@dataclass(frozen=True)
class TemporalAttentionSettings(ModelSettings):
    score_units: int = setting(128, "units of the hidden layer that scores frames", low=1, high=65536)


class FrameScores(keras.layers.Layer):
    """One vector for a clip, the weighted sum of its frames, given for each of them.

        e_t = w . tanh(U x_t + b);  a = softmax over real frames;  hidden = sum_t a_t x_t, x_t the mean over locations

    Yao's scores depend on the words said so far too; a class is a single word.
    """

    def __init__(self, settings: TemporalAttentionSettings, options: dict[str, Any], **kwargs: Any):
        super().__init__(dtype=options["dtype"], **kwargs)
        self.from_frame = keras.layers.Dense(settings.score_units, "tanh", name="from_frame", **options)
        self.to_scores = keras.layers.Dense(1, use_bias=False, name="scores", **options)
        self.dropout = keras.layers.Dropout(settings.dropout, dtype=self.dtype_policy, name="core_dropout")

    def build(self, features_shape: tuple, mask_shape: tuple | None = None) -> None:
        self.from_frame.build((None, features_shape[-1]))
        self.to_scores.build((None, self.from_frame.units))

    def call(self, features: Any, mask: Any, training: bool | None = None) -> tuple[Any, Any]:
        means = ops.mean(flatten_locations(features), axis=2)
        scores = ops.cast(self.to_scores(self.from_frame(self.dropout(means, training=training))), "float32")
        shares = ops.exp(scores - ops.max(scores, axis=1, keepdims=True)) * ops.cast(mask, "float32")[..., None]
        weights = shares / ops.sum(shares, axis=1, keepdims=True)
        clip = ops.sum(means * ops.cast(weights, means.dtype), axis=1, keepdims=True)
        return ops.repeat(clip, means.shape[1], axis=1), uniform_maps(features, mask)


@register_model("temporal_attention", TemporalAttentionSettings)
class TemporalAttention(ActionModel):
    """Which frames matter, not where in them."""

    has_attention = False
    small_operations = True

    def make_core(self, settings: TemporalAttentionSettings, options: dict[str, Any]) -> FrameScores:
        return FrameScores(settings, options, name="core")
